"""IDX, the format of MNIST and its kin: a data set in four files, and how such files are read.

LeCun, Cortes, Burges, "The MNIST database of handwritten digits". Each file may be packed as .gz.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fmnist_lab.errors import UserError

MAX_BYTES = 2**30  # far above any file we know; stops a gzip bomb or a server that never ends

OWN_MEND = "Mend the files; docs/own_model.md says what belongs into them."
MEND = (
    "Give data.dir=FOLDER with the original files, packed as .gz or not, "
    "or, for Fashion-MNIST, leave data.dir out to have them fetched."
)


@dataclass(frozen=True)
class IdxFile:
    """One file of a data set: its unpacked name and the SHA-256 (hex) of its unpacked content.

    Only a file from a folder that the user names may have no digest, None.
    """

    name: str
    sha256: str | None


@dataclass(frozen=True)
class IdxDataset:
    """A data set in four IDX files, and where its files may be found.

    Attributes:
        name: Names the data set in messages and its folder in the cache.
        train_images, train_labels, test_images, test_labels: The four files.
        class_names: One name per class; the labels are indices into it.
        image_shape: Height and width of every image; None: those of the training images.
        url: Folder on a server that has each file as NAME.gz, or None.
        keras_folder: Name of the folder in Keras' own download folder, or None.
        debian_package: Debian package that installs the files into `system_folder`, or None.
        system_folder: Absolute folder where a system package puts the files, or None.
    """

    name: str
    train_images: IdxFile
    train_labels: IdxFile
    test_images: IdxFile
    test_labels: IdxFile
    class_names: tuple[str, ...]
    image_shape: tuple[int, int] | None = (28, 28)
    url: str | None = None
    keras_folder: str | None = None
    debian_package: str | None = None
    system_folder: str | None = None

    @property
    def files(self) -> tuple[IdxFile, IdxFile, IdxFile, IdxFile]:
        """The four files, always in this order."""
        return self.train_images, self.train_labels, self.test_images, self.test_labels

    @property
    def mend(self) -> str:
        """The advice about a wrong file: one of known content has an original."""
        return MEND if all(file.sha256 for file in self.files) else OWN_MEND


def names(files: Sequence[IdxFile]) -> str:
    """Return the names of files as a list in words."""
    return ", ".join(file.name for file in files)


def read_folder(folder: Path, wanted: Sequence[IdxFile]) -> Iterator[tuple[IdxFile, bytes]]:
    """Read files, packed or not and not verified, from a folder.

    Args:
        folder: The folder.
        wanted: The files to read.

    Yields:
        Each file that the folder has, with its unpacked content.

    Raises:
        UserError: There is no such folder, a file is damaged, or, at the end, files are missing.
    """
    if not folder.is_dir():
        raise UserError("it is not a folder" if folder.exists() else "no such folder")
    missing = []
    for file in wanted:
        paths = (folder / file.name, folder / f"{file.name}.gz")
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            missing.append(file)
            continue
        with path.open("rb") as stream:
            content = read_bounded(stream, str(path))
        yield file, unpack(content, str(path))
    if missing:
        raise UserError(f"it holds no {names(missing)}")


def shape_in(folder: Path, name: str) -> tuple[int, ...] | None:
    """Return the shape that the header of a file says, packed or not; None if there is none.

    Args:
        folder: The folder of the file.
        name: The file's name, without ".gz".
    """
    for path in (folder / name, folder / f"{name}.gz"):
        try:
            with path.open("rb") as stream:
                packed = stream.read(2) == b"\x1f\x8b"
            with gzip.open(path) if packed else path.open("rb") as content:
                header = content.read(20)
        except (OSError, EOFError, zlib.error):
            continue
        if header[:3] == b"\0\0\x08" and len(header) >= 4 + 4 * header[3] > 4:
            ends = range(4, 4 + 4 * header[3], 4)
            return tuple(int.from_bytes(header[at : at + 4], "big") for at in ends)
    return None


def read_bounded(stream: BinaryIO | gzip.GzipFile, name: str) -> bytes:
    """Read a stream to its end.

    Args:
        stream: The stream.
        name: Names the file in errors.

    Raises:
        UserError: It has more than `MAX_BYTES`.
    """
    chunks, size = [], 0
    while chunk := stream.read(2**20):
        chunks.append(chunk)
        if (size := size + len(chunk)) > MAX_BYTES:
            raise UserError(f"{name} is larger than {MAX_BYTES} bytes, which no such file can be")
    return b"".join(chunks)


def unpack(content: bytes, name: str) -> bytes:
    """Return the content of a file, unpacked if it is packed.

    Args:
        content: The file's bytes.
        name: Names the file in errors.

    Raises:
        UserError: The packed content is damaged or too large.
    """
    if content[:2] != b"\x1f\x8b":  # gzip's magic, rather than the name, which browsers change
        return content
    try:
        with gzip.open(io.BytesIO(content)) as stream:
            return read_bounded(stream, name)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{name} is truncated or damaged inside its gzip ({error})") from error


def sha256(content: bytes) -> str:
    """Return the SHA-256 of a file's content in hex."""
    return hashlib.sha256(content).hexdigest()


def parse(content: bytes, name: str, mend: str = MEND) -> NDArray[np.uint8]:
    """Parse an IDX file of unsigned bytes, without copying it.

    Args:
        content: The whole, unpacked file: two zero bytes, the type 0x08, the number of dimensions,
            each dimension as a big-endian 32-bit number, the data in C order.
        name: Names the file in errors.
        mend: Says in errors what to do.

    Returns:
        A read-only uint8 view of `content`, of 1 to 4 dimensions, none of them 0.

    Raises:
        UserError: The content is anything else.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08" or not 1 <= content[3] <= 4:
        received = f"{len(content)} bytes that begin with {content[:4].hex(' ') or 'nothing'}"
        expected = "an IDX file of unsigned bytes, 00 00 08 01 to 00 00 08 04"
        raise fault(name, received, expected, mend)
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise fault(name, f"{len(content)} bytes", f"a header of {header}", mend)
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4))
    size = header + math.prod(shape)  # of Python's integers, which cannot overflow
    sizes = " x ".join(map(str, shape))
    if len(content) != size:
        raise fault(name, f"{len(content)} bytes", f"{size} for the {sizes} in its header", mend)
    if 0 in shape:
        raise fault(name, f"the dimensions {sizes}", "none of them 0", mend)
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def fault(name: str, received: str, expected: str, mend: str = MEND) -> UserError:
    """Return the error about a file or a setting.

    Args:
        name: Names it.
        received: Its content or value.
        expected: The content or values that it may have.
        mend: A sentence with the way to mend it.
    """
    return UserError(f"{name}: received {received}, expected {expected}. {mend}")
