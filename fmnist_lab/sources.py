"""Where the files of a data set come from: a folder, our cache, Keras, the system, the network.

`read_dir` takes the one folder the user names. `find` looks into our cache, Keras' download folder,
the system package's folder, the upstream server and the Debian package, in that order, and keeps in
the cache what it found elsewhere. What `find` returns has the SHA-256 that the description of the
data set gives, so it does not matter whom the bytes came from.
"""

import gzip
import hashlib
import io
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

import platformdirs
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from fmnist_lab.errors import UserError

TIMEOUT_SECONDS = 10.0  # for a connection, and for each read from it
APT_SECONDS = 600.0  # for one apt-get or dpkg-deb, which have timeouts of their own on the network
MAX_BYTES = 2**30  # no file we know comes near; stops a gzip bomb or a server that never ends

MEND = (
    "Give data.dir=FOLDER with the original files, packed as .gz or not, "
    "or, for Fashion-MNIST, leave data.dir out to have them fetched."
)


@dataclass(frozen=True)
class IdxFile:
    """One file of a data set: its unpacked name and the SHA-256 (hex) of its unpacked content.

    Only a file from a folder that the user names may do without a digest, None.
    """

    name: str
    sha256: str | None


@dataclass(frozen=True)
class IdxDataset:
    """A data set in four IDX files, and where its files may be found.

    Attributes:
        name: Names the data set in messages and its folder in the cache.
        train_images, train_labels, test_images, test_labels: The four files.
        class_names: One name a class; the labels are indices into it.
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


# A source is given the files still wanted, and yields those it has, unverified; it raises when it
# cannot go on.
Source = Callable[[Sequence[IdxFile]], Iterator[tuple[IdxFile, bytes]]]


def find(
    dataset: IdxDataset, cache_dir: str | Path | None, download: bool
) -> tuple[dict[IdxFile, bytes], str]:
    """Collect the files, verified, from the cache or else into it.

    Args:
        dataset: Whose files.
        cache_dir: Our cache; default is FMNIST_LAB_CACHE or the user's cache folder.
        download: Whether sources on the network may be used.

    Returns:
        The content of each file, and where they came from, in plain words.

    Raises:
        UserError: No source has the files.
    """
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


def read_dir(dir: str | Path, dataset: IdxDataset) -> tuple[dict[IdxFile, bytes], str]:
    """Read the files, not verified, from a folder.

    Args:
        dir: The folder.
        dataset: Whose files.

    Returns:
        The content of each file, and where they came from, in plain words.

    Raises:
        UserError: The folder cannot be read or lacks a file.
    """
    folder = _path(dir)
    try:
        return dict(_from_folder(folder, dataset.files)), f"folder {folder}"
    except (UserError, OSError) as error:
        expected = f"expected a folder with {_names(dataset.files)}, intact"
        raise UserError(f"data.dir={folder} cannot be used: {error}; {expected}. {MEND}") from error


def sha256(content: bytes) -> str:
    """Return the SHA-256 of a file's content in hex."""
    return hashlib.sha256(content).hexdigest()


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
            if (digest := sha256(content)) == file.sha256:
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
        with Console(stderr=True).status("waiting for apt-get"):
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


def _names(files: Sequence[IdxFile]) -> str:
    return ", ".join(file.name for file in files)


def _say(message: str) -> None:
    Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)
