"""Find, fetch, verify, parse and split Fashion-MNIST, or any data set in four IDX files.

`load` looks into our cache, Keras' download folder, the system package's folder, the upstream
server and the Debian package, in that order, or into the one folder the user names. Whatever the
source, a file counts only if its content has the SHA-256 that its description (`FASHION_MNIST`)
gives, so it does not matter whom the bytes came from.

Fashion-MNIST: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms", 2017, arXiv:1708.07747. IDX: LeCun, Cortes, Burges, "The MNIST
database of handwritten digits".
"""

import gzip
import hashlib
import io
import math
import os
import shutil
import subprocess
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

import numpy as np
import platformdirs
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from fmnist_lab.errors import UserError

TIMEOUT_SECONDS = 10.0  # for a connection, and for each read from it
APT_SECONDS = 600.0  # for one apt-get or dpkg-deb, which have timeouts of their own on the network
MAX_BYTES = 2**30  # no file we know comes near; stops a gzip bomb or a server that never ends
SPLIT_STREAM = 0x5A11D  # keeps the split's random numbers apart from other uses of the same seed

MEND = (
    "Give data.dir=FOLDER with the original files, packed as .gz or not, "
    "or leave data.dir out to have them fetched."
)


@dataclass(frozen=True)
class IdxFile:
    """One file of a data set: its unpacked name and the SHA-256 (hex) of its unpacked content."""

    name: str
    sha256: str


@dataclass(frozen=True)
class IdxDataset:
    """A data set in four IDX files, and where its files may be found.

    Attributes:
        name: Names the data set in messages and its folder in the cache.
        train_images, train_labels, test_images, test_labels: The four files.
        class_names: One name a class; the labels are indices into it.
        image_shape: Height and width of every image.
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
    image_shape: tuple[int, int] = (28, 28)
    url: str | None = None
    keras_folder: str | None = None
    debian_package: str | None = None
    system_folder: str | None = None

    @property
    def files(self) -> tuple[IdxFile, IdxFile, IdxFile, IdxFile]:
        """The four files, always in this order."""
        return self.train_images, self.train_labels, self.test_images, self.test_labels


FASHION_MNIST = IdxDataset(
    name="fashion-mnist",
    train_images=IdxFile(
        "train-images-idx3-ubyte",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    train_labels=IdxFile(
        "train-labels-idx1-ubyte",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    test_images=IdxFile(
        "t10k-images-idx3-ubyte",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    test_labels=IdxFile(
        "t10k-labels-idx1-ubyte",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    class_names=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    url="https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    keras_folder="fashion-mnist",
    debian_package="dataset-fashion-mnist",
    system_folder="/usr/share/datasets/fashion-mnist",
)


@dataclass(frozen=True, eq=False)  # arrays have no single truth value; compare digests instead
class Dataset:
    """What `load` returns. All arrays are uint8 and read-only.

    Attributes:
        train_images, validation_images, test_images: (n, height, width) each; there are 0
            validation images if no split was asked for.
        train_labels, validation_labels, test_labels: (n,) each, indices into `class_names`.
        class_names: One name a class.
        name: Name of the data set.
        digest: SHA-256 (hex) of the arrays after limits and split, in the order below; each enters
            as its shape, "(n, ...)" and a line feed, and its bytes in C order. Equal data have
            equal digests, whatever the source.
        source: Where the files came from, in plain words.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    name: str
    digest: str
    source: str


def load(
    dir: str | Path | None = None,
    *,
    cache_dir: str | Path | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    validation_fraction: float = 0.0,
    seed: int = 0,
    dataset: IdxDataset = FASHION_MNIST,
    download: bool = True,
) -> Dataset:
    """Load a data set from the first source that has it, verified.

    Args:
        dir: Folder with the four files, packed as .gz or not; no other source is then tried.
        cache_dir: Our cache; default is FMNIST_LAB_CACHE or the user's cache folder.
        train_limit: Keep the first so many training images, before the split; None keeps all.
        test_limit: Keep the first so many test images; None keeps all.
        validation_fraction: In [0, 1). `round(validation_fraction * n)` of the n training images,
            stratified by class, become the validation set; both parts keep their order.
        seed: Chooses which images go into the validation set.
        dataset: What to load.
        download: Whether sources on the network may be used.

    Returns:
        The images (n, height, width) and labels (n,) as read-only uint8 arrays.

    Raises:
        UserError: No source has the files, the files in `dir` are missing or wrong, or a limit,
            the fraction or the seed is out of range.
    """
    if dir is not None:
        folder = _path(dir)
        contents, source = _read_dir(folder, dataset), f"folder {folder}"
    else:
        contents, source = _find(dataset, cache_dir, download)
    train_images, train_labels, test_images, test_labels = _parse(dataset, contents, source)
    if dir is not None:  # only now, as what is wrong inside a file says more than a digest does
        for file, content in contents.items():
            if (received := _sha256(content)) != file.sha256:
                received = f"content that is not {dataset.name}'s (SHA-256 {received})"
                raise _fault(f"{file.name} ({source})", received, f"SHA-256 {file.sha256}")

    train = slice(_checked_limit("train_limit", train_limit, len(train_labels)))
    test = slice(_checked_limit("test_limit", test_limit, len(test_labels)))
    train_images, train_labels = train_images[train], train_labels[train]
    kept, cut = _split(train_labels, validation_fraction, seed)
    arrays = (
        *(train_images[kept], train_labels[kept]),
        *(train_images[cut], train_labels[cut]),
        *(test_images[test], test_labels[test]),
    )
    digest = hashlib.sha256()
    for array in arrays:
        array.setflags(write=False)
        digest.update(f"{array.shape}\n".encode())
        digest.update(array.reshape(-1).data)
    return Dataset(*arrays, dataset.class_names, dataset.name, digest.hexdigest(), source)


def parse_idx(content: bytes, name: str) -> np.ndarray:
    """Parse an IDX file of unsigned bytes, without copying it.

    Args:
        content: The whole, unpacked file: two zero bytes, the type 0x08, the number of dimensions,
            each dimension as a big-endian 32-bit number, the data in C order.
        name: Names the file in errors.

    Returns:
        A read-only uint8 view of `content`, of 1 to 4 dimensions, none of them 0.

    Raises:
        UserError: The content is anything else.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08" or not 1 <= content[3] <= 4:
        received = f"{len(content)} bytes that begin with {content[:4].hex(' ') or 'nothing'}"
        raise _fault(name, received, "an IDX file of unsigned bytes, 00 00 08 01 to 00 00 08 04")
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise _fault(name, f"{len(content)} bytes", f"a header of {header}")
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4))
    expected = header + math.prod(shape)  # of Python's integers, which cannot overflow
    sizes = " x ".join(map(str, shape))
    if len(content) != expected:
        raise _fault(name, f"{len(content)} bytes", f"{expected} for the {sizes} in its header")
    if 0 in shape:
        raise _fault(name, f"the dimensions {sizes}", "none of them 0")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _parse(
    dataset: IdxDataset, contents: dict[IdxFile, bytes], source: str
) -> tuple[np.ndarray, ...]:
    """Parse the four files and check that they fit together and the description."""
    names = [f"{file.name} ({source})" for file in dataset.files]
    arrays = [parse_idx(contents[dataset.files[at]], names[at]) for at in range(4)]
    height, width = dataset.image_shape
    last = len(dataset.class_names) - 1
    for at in (0, 2):
        images, labels = arrays[at : at + 2]
        if images.shape[1:] != (height, width):
            received = "an array of " + " x ".join(map(str, images.shape))
            raise _fault(names[at], received, f"images of {height} x {width}")
        if labels.shape != images.shape[:1]:
            received = "labels in an array of " + " x ".join(map(str, labels.shape))
            expected = f"{len(images)}, one for each image in {dataset.files[at].name}"
            raise _fault(names[at + 1], received, expected)
        if labels.max() > last:
            expected = f"0 to {last}, the classes of {dataset.name}"
            raise _fault(names[at + 1], f"the label {labels.max()}", expected)
    return tuple(arrays)


def _checked_limit(name: str, limit: int | None, available: int) -> int | None:
    if limit is not None and not 1 <= limit <= available:
        mend = "Choose one in that range, or null for all."
        raise _fault(f"data.{name}", str(limit), f"1 to {available}, the images there are", mend)
    return limit


def _split(
    labels: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray | slice, np.ndarray | slice]:
    """Indices of the images that stay in the training set, and of those cut for validation."""
    if fraction == 0:
        return slice(None), slice(0)  # views: nothing is copied
    name = "data.validation_fraction"
    if not 0 < fraction < 1:
        raise _fault(name, str(fraction), "0 <= fraction < 1", "0.1 is common, 0 is no split.")
    if seed < 0:
        raise _fault("seed", str(seed), "0 or more", "Choose another seed.")
    total = round(fraction * len(labels))
    if not 0 < total < len(labels):
        received = f"{fraction}, which is {total} of {len(labels)} training images"
        mend = "Choose another fraction, 0 for no split, or a larger data.train_limit."
        raise _fault(name, received, "at least one image in each part", mend)
    # Largest remainders, in integers so that no rounding can lose or add an image.
    counts = np.bincount(labels)
    quotas, remainders = np.divmod(total * counts, len(labels))
    quotas[np.argsort(-remainders, kind="stable")[: total - quotas.sum()]] += 1
    # One random key an image, rather than draws class by class: a larger fraction keeps choosing
    # what a smaller one chose.
    keys = np.random.default_rng([seed, SPLIT_STREAM]).random(len(labels))
    chosen = np.zeros(len(labels), bool)
    for label, quota in enumerate(quotas):
        members = np.flatnonzero(labels == label)
        chosen[members[np.argsort(keys[members], kind="stable")[:quota]]] = True
    return ~chosen, chosen


# Finding the files. A source is a function that is given the files still wanted, and yields those
# it has, unverified; it raises when it cannot go on.

Source = Callable[[Sequence[IdxFile]], Iterator[tuple[IdxFile, bytes]]]


def _find(
    dataset: IdxDataset, cache_dir: str | Path | None, download: bool
) -> tuple[dict[IdxFile, bytes], str]:
    """Collect the files, verified, from the cache or else into it; also say where from."""
    root = cache_dir or os.environ.get("FMNIST_LAB_CACHE")
    cache = (_path(root) if root else platformdirs.user_cache_path("fmnist_lab")) / dataset.name
    from_cache = partial(_from_folder, cache)
    found: dict[IdxFile, bytes] = {}
    faults = _take(from_cache, dataset, found)
    if not faults:
        return found, f"cache {cache}"
    tried = [f"cache {cache}: {'; '.join(faults)}"]
    with ExitStack() as held:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(cache / ".lock"))
            writable = True
            # Again, as another process may have filled it while we waited.
            faults = _take(from_cache, dataset, found)
            if faults and any((cache / file.name).exists() for file in dataset.files):
                _say(f"Repairing the cache {cache}: {'; '.join(faults)}")
        except (OSError, NotImplementedError) as error:  # the latter: no locks on this file system
            writable = False
            tried.append(f"writing to that cache: {error}")
            _say(
                f"The cache {cache} cannot be written ({error}), so the data stay in memory for "
                "this once; FMNIST_LAB_CACHE=FOLDER names another."
            )
        origins = [f"cache {cache}"] if found else []
        for origin, source in _sources_beyond_the_cache(dataset, download):
            if len(found) == len(dataset.files):
                break
            had = set(found)
            if faults := _take(source, dataset, found):
                tried.append(f"{origin}: {'; '.join(faults)}")
            if new := [file for file in found if file not in had]:
                origins.append(origin)
                try:
                    for file in new if writable else ():
                        _store(cache / file.name, found[file])
                except OSError as error:
                    _say(f"The cache {cache} could not be filled: {error}")
    if len(found) < len(dataset.files):
        raise UserError(_nothing_found(dataset, tried, download))
    return found, " and ".join(origins)


def _sources_beyond_the_cache(dataset: IdxDataset, download: bool) -> Iterator[tuple[str, Source]]:
    if dataset.keras_folder:
        keras = _keras_datasets() / dataset.keras_folder
        yield f"Keras' folder {keras}", partial(_from_folder, keras)
    if dataset.system_folder:
        system = Path(dataset.system_folder)
        yield f"system folder {system}", partial(_from_folder, system)
    if download and dataset.url:
        yield f"upstream {dataset.url}", partial(_from_upstream, dataset.url)
    if download and dataset.debian_package and dataset.system_folder:
        package = partial(_from_debian, dataset.debian_package, dataset.system_folder)
        yield f"Debian package {dataset.debian_package}", package


def _take(source: Source, dataset: IdxDataset, found: dict[IdxFile, bytes]) -> list[str]:
    """Add to `found` what is still wanted and verifies; return what went wrong."""
    faults = []
    try:
        for file, content in source([file for file in dataset.files if file not in found]):
            if (digest := _sha256(content)) == file.sha256:
                found[file] = content
            else:
                faults.append(f"{file.name} has SHA-256 {digest}, expected {file.sha256}")
    except (UserError, OSError, HTTPException, ValueError) as error:
        faults.append(str(error) or type(error).__name__)
    return faults


def _path(path: str | Path) -> Path:
    # Unlike Path.expanduser, this does not raise for an account without a home.
    return Path(os.path.expanduser(path))  # noqa: PTH111


def _keras_datasets() -> Path:
    return _path(os.environ.get("KERAS_HOME") or "~/.keras") / "datasets"


def _read_dir(folder: Path, dataset: IdxDataset) -> dict[IdxFile, bytes]:
    try:
        return dict(_from_folder(folder, dataset.files))
    except (UserError, OSError) as error:
        expected = f"expected a folder with {_names(dataset.files)}, intact"
        raise UserError(f"data.dir={folder} cannot be used: {error}; {expected}. {MEND}") from error


def _from_folder(folder: Path, wanted: Sequence[IdxFile]) -> Iterator[tuple[IdxFile, bytes]]:
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
            content = _read_bounded(stream, str(path))
        yield file, _unpack(content, str(path))
    if missing:
        raise UserError(f"it holds no {_names(missing)}")


def _from_upstream(url: str, wanted: Sequence[IdxFile]) -> Iterator[tuple[IdxFile, bytes]]:
    console = Console(stderr=True)
    if not console.is_terminal:
        _say(f"Fetching {_names(wanted)} from {url}")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as progress:
        for file in wanted:
            name = f"{file.name}.gz"
            address = f"{url.rstrip('/')}/{name}"
            with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as response:
                size = response.length  # what the server promised, if anything
                reader = progress.wrap_file(response, total=size or 0, description=name)
                content = _read_bounded(reader, name)
            if size is not None and len(content) != size:
                raise UserError(f"{name} ended after {len(content)} of {size} bytes")
            yield file, _unpack(content, name)


def _from_debian(
    package: str, folder: str, wanted: Sequence[IdxFile]
) -> Iterator[tuple[IdxFile, bytes]]:
    """Download and unpack the package in a temporary folder; needs neither root nor lists."""
    if missing := [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]:
        raise UserError(f"{' and '.join(missing)} not installed")
    _say(f"Fetching the Debian package {package} with apt-get")
    with tempfile.TemporaryDirectory(prefix="fmnist_lab-") as temporary:
        work = Path(temporary)
        work.chmod(0o755)  # apt, run by root, reads its lists as the user _apt
        lists, cache, unpacked = work / "lists", work / "cache", work / "unpacked"
        for new in (lists, cache, unpacked):
            new.mkdir()
        apt = ["apt-get", "-q", f"-oDir::State::Lists={lists}", f"-oDir::Cache={cache}"]
        apt += [f"-oAcquire::{way}::Timeout={TIMEOUT_SECONDS:.0f}" for way in ("http", "https")]
        # A third party's list that fails must not stop us, so only the archive counts.
        complaints = _run([*apt, "-oAcquire::Languages=none", "update"], work)
        complaints += _run([*apt, "download", package], work)
        archives = list(work.glob("*.deb"))
        if not archives:
            raise UserError("; ".join(complaints) or "apt-get left no archive")
        complaints = _run(["dpkg-deb", "-x", str(archives[0]), str(unpacked)], work)
        try:
            yield from _from_folder(unpacked / folder.lstrip("/"), wanted)
        except UserError as error:
            raise UserError("; ".join([*complaints, f"in the package, {error}"])) from error


def _run(command: list[str], folder: Path) -> list[str]:
    """Run a command quietly; return its lines of error."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=APT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return [f"{command[0]} took more than {APT_SECONDS:.0f} s"]
    return [line for line in done.stderr.splitlines() if line.startswith(("E:", "dpkg-deb:"))]


def _read_bounded(stream: BinaryIO | gzip.GzipFile, name: str) -> bytes:
    chunks, size = [], 0
    while chunk := stream.read(2**20):
        chunks.append(chunk)
        if (size := size + len(chunk)) > MAX_BYTES:
            raise UserError(f"{name} is larger than {MAX_BYTES} bytes, which no such file can be")
    return b"".join(chunks)


def _unpack(content: bytes, name: str) -> bytes:
    if content[:2] != b"\x1f\x8b":  # gzip's magic, rather than the name, which browsers change
        return content
    try:
        with gzip.open(io.BytesIO(content)) as stream:
            return _read_bounded(stream, name)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{name} is truncated or damaged inside its gzip ({error})") from error


def _store(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all. The caller holds the cache's lock."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _nothing_found(dataset: IdxDataset, tried: list[str], download: bool) -> str:
    lines = [f"No source has {dataset.name}. Tried:", *(f"  - {line}" for line in tried)]
    lines += [] if download else ["  - the network: not used, as data.download=false"]
    packed = ", ".join(f"{file.name}.gz" for file in dataset.files)
    lines += ["Ways out:", f"  - data.dir=FOLDER, a folder that holds {packed}, packed or not"]
    if dataset.url and dataset.keras_folder:
        folder = _keras_datasets() / dataset.keras_folder
        lines.append(f"  - download {packed} by hand from {dataset.url} into {folder}")
    if dataset.debian_package:
        lines.append(f"  - Debian, Ubuntu: sudo apt-get install {dataset.debian_package}")
    return "\n".join(lines)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _names(files: Sequence[IdxFile]) -> str:
    return ", ".join(file.name for file in files)


def _fault(name: str, received: str, expected: str, mend: str = MEND) -> UserError:
    return UserError(f"{name}: received {received}, expected {expected}. {mend}")


def _say(message: str) -> None:
    Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)
