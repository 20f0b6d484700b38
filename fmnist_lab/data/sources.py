"""Where the files of a data set come from: a folder, our cache, Keras, the system, the network.

`read_dir` takes the one folder the user names. `find` looks into our cache, Keras' download folder,
the system package's folder, the upstream server and the Debian package, in that order, and keeps in
the cache what it found elsewhere. What `find` returns has the SHA-256 that the description of the
data set gives, so it does not matter whom the bytes came from.
"""

from __future__ import annotations

import os
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from fmnist_lab.data import debian, idx
from fmnist_lab.data.idx import MEND, IdxDataset, IdxFile, names, read_folder
from fmnist_lab.errors import UserError
from fmnist_lab.system import cache, durable

TIMEOUT_SECONDS = 10.0  # for a connection, and for each read from it

ANOTHER = "FMNIST_LAB_CACHE=FOLDER names another."

# A source is given the files still wanted, and yields those it has, unverified; it raises when it
# cannot go on.
Source = Callable[[Sequence[IdxFile]], Iterator[tuple[IdxFile, bytes]]]


def read_dir(dir: str | Path, dataset: IdxDataset) -> tuple[dict[IdxFile, bytes], str]:
    """Read the files, not verified, from a folder.

    Args:
        dir: The folder.
        dataset: The data set that has the files.

    Returns:
        The content of each file, and the place of the files in plain words.

    Raises:
        UserError: The folder cannot be read or lacks a file.
    """
    folder = cache.expanded(dir)
    try:
        return dict(read_folder(folder, dataset.files)), f"folder {folder}"
    except (UserError, OSError) as error:
        expected = f"expected a folder with {names(dataset.files)}, intact"
        raise UserError(f"data.dir={folder} cannot be used: {error}; {expected}. {MEND}") from error


def find(
    dataset: IdxDataset, cache_dir: str | Path | None, download: bool
) -> tuple[dict[IdxFile, bytes], str]:
    """Collect the files, verified, from the cache or else into it.

    Args:
        dataset: The data set that has the files.
        cache_dir: Our cache; default is FMNIST_LAB_CACHE or the user's cache folder.
        download: Whether sources on the network may be used.

    Returns:
        The content of each file, and the place of the files in plain words.

    Raises:
        UserError: No source has the files.
    """
    roots = [cache.expanded(cache_dir)] if cache_dir else list(cache.folders())
    places = [root / dataset.name for root in roots]
    found: dict[IdxFile, bytes] = {}
    tried: list[str] = []
    for place in places:
        if not _take(f"cache {place}", partial(read_folder, place), dataset, found, tried):
            return found, f"cache {place}"
    with ExitStack() as held:
        kept = _hold(held, places, tried)
        if kept is not None:
            _look_again(kept, dataset, found)
        origins = [f"cache {kept or places[0]}"] if found else []
        for origin, source in _beyond_the_cache(dataset, download):
            if len(found) == len(dataset.files):
                break
            had = set(found)
            _take(origin, source, dataset, found, tried)
            if new := found.keys() - had:
                origins.append(origin)
                _keep(kept, {file: found[file] for file in new})
    if len(found) < len(dataset.files):
        raise UserError(_nothing_found(dataset, tried, download))
    return found, " and ".join(origins)


def _take(
    origin: str,
    source: Source,
    dataset: IdxDataset,
    found: dict[IdxFile, bytes],
    tried: list[str],
) -> list[str]:
    """Add to `found` the wanted files of a source that verify, and to `tried` its faults.

    Returns:
        The faults; none if all is found.
    """
    faults = []
    try:
        for file, content in source([file for file in dataset.files if file not in found]):
            if (digest := idx.sha256(content)) == file.sha256:
                found[file] = content
            else:
                faults.append(f"{file.name} has SHA-256 {digest}, expected {file.sha256}")
    except (UserError, OSError, HTTPException, ValueError) as error:
        faults.append(str(error) or type(error).__name__)
    if faults:
        tried.append(f"{origin}: {'; '.join(faults)}")
    return faults


def _hold(held: ExitStack, places: Sequence[Path], tried: list[str]) -> Path | None:
    """Make and lock the first cache that can be; say so if it is not the usual one.

    Returns:
        Where it is, or None if nothing can be kept.
    """
    problem = ""
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(place / ".lock"))
        except (OSError, NotImplementedError) as error:  # the latter: no locks on this file system
            tried.append(f"writing to the cache {place}: {error}")
            problem = problem or f"The cache {place} cannot be written ({error})"
        else:
            if problem:
                _say(f"{problem}, so the data are kept in {place}; {ANOTHER}")
            return place
    _say(f"{problem}, so the data stay in memory for this once; {ANOTHER}")
    return None


def _look_again(kept: Path, dataset: IdxDataset, found: dict[IdxFile, bytes]) -> None:
    """Read the cache again, as another process may have filled it while we waited for its lock."""
    faults = _take("", partial(read_folder, kept), dataset, found, [])
    if faults and any((kept / file.name).exists() for file in dataset.files):
        _say(f"Repairing the cache {kept}: {'; '.join(faults)}")


def _keep(kept: Path | None, contents: dict[IdxFile, bytes]) -> None:
    """Write files into the cache, if there is one. The caller holds its lock."""
    if kept is None:
        return
    try:
        for file, content in contents.items():
            _store(kept / file.name, content)
    except OSError as error:
        _say(f"The cache {kept} could not be filled: {error}")


def _store(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        durable.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _beyond_the_cache(dataset: IdxDataset, download: bool) -> Iterator[tuple[str, Source]]:
    if dataset.keras_folder:
        keras = _keras_datasets() / dataset.keras_folder
        yield f"Keras' folder {keras}", partial(read_folder, keras)
    if dataset.system_folder:
        system = Path(dataset.system_folder)
        yield f"system folder {system}", partial(read_folder, system)
    if download and dataset.url:
        yield f"upstream {dataset.url}", partial(_from_upstream, dataset.url)
    if download and dataset.debian_package and dataset.system_folder:
        package = partial(debian.read_package, dataset.debian_package, dataset.system_folder)
        yield f"Debian package {dataset.debian_package}", package


def _keras_datasets() -> Path:
    return cache.expanded(os.environ.get("KERAS_HOME") or "~/.keras") / "datasets"


def _from_upstream(url: str, wanted: Sequence[IdxFile]) -> Iterator[tuple[IdxFile, bytes]]:
    console = Console(stderr=True, force_jupyter=False)
    if not console.is_terminal:
        _say(f"Fetching {names(wanted)} from {url}")
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
                content = idx.read_bounded(reader, name)
            if size is not None and len(content) != size:
                raise UserError(f"{name} ended after {len(content)} of {size} bytes")
            yield file, idx.unpack(content, name)


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


def _say(message: str) -> None:
    print(message, file=sys.stderr)
