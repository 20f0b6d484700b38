"""Files that outlive a power cut: synced before anything says that they are there.

A file that a process has written is in the system's memory at first, and a power cut may leave it
empty or torn. Its content, its name in its folder, and the name of that folder in the one above are
three things, and each has to be synced.
"""

from __future__ import annotations

import errno
import hashlib
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Files that are synced side by side: the disk takes many in the time of one or two.
AT_ONCE = 8
# How a file system says that it has nothing to sync for a folder.
NOT_FOR_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EROFS)


def sync_file(file: Path) -> None:
    """Wait until a file's content is on disk.

    Raises:
        OSError: The disk is full or failing, or the file is gone.
    """
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk, where a folder can be opened for that."""
    try:
        sync_file(folder)
    except OSError as error:
        if error.errno not in NOT_FOR_FOLDERS:
            raise


def sync_tree(folder: Path, above: int = 0) -> None:
    """Sync all files and folders below a folder, itself, and some of the folders above it.

    Args:
        folder: The folder.
        above: How many of the folders above it may be new too.

    Raises:
        OSError: The disk is full or failing.
    """
    walked = list(os.walk(folder))
    files = [Path(place, name) for place, _, names in walked for name in names]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(sync_file, filter(Path.is_file, files)))
    below = [Path(place) for place, _, _ in reversed(walked)]
    for each in (*below, *folder.parents[:above]):
        sync_folder(each)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, so that a power cut leaves them.

    Raises:
        OSError: It cannot be made.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        sync_folder(each.parent)


def replace(made: Path, file: Path) -> None:
    """Give a file that was written aside its name; whole or not at all, whatever happens.

    Args:
        made: The file that was written.
        file: Its name from now on, in a folder that is there.

    Raises:
        OSError: The disk is full or failing.
    """
    sync_file(made)
    made.replace(file)
    sync_folder(file.parent)


def fingerprint(file: Path) -> str:
    """Return a file's size and the beginning of its SHA-256, such as "1024 9f86d081884c7d65"."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return f"{file.stat().st_size} {digest[:16]}"


def damage(file: Path, expected: str = "", *, thorough: bool = True) -> str:
    """Return the fault of a file that was once whole.

    Args:
        file: The file.
        expected: Its `fingerprint`; "" if that is unknown: then only a file that cannot be one of
            ours counts as damaged.
        thorough: Whether to read all of the file, not only its size and its end.

    Returns:
        "is missing", "is empty" or "is damaged"; "" if nothing is wrong.
    """
    try:
        size = file.stat().st_size
        if not file.is_file():
            return "is missing"
        if expected:
            changed = str(size) != expected.partition(" ")[0] or (
                thorough and fingerprint(file) != expected
            )
        else:
            changed = size == 0 or _is_torn(file)
    except (OSError, ValueError):  # ValueError: no file can have such a name
        return "is missing"
    return ("is damaged" if size else "is empty") if changed else ""


def local_path(uri: str) -> Path | None:
    """Return where an artifact URI of MLflow's points to on this machine; None: a server's."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return None
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if parts.scheme else Path(uri)


def _is_torn(file: Path) -> bool:
    """Return whether a file begins with zeros, as after a power cut, or is half of an archive."""
    with file.open("rb") as stream:
        if not stream.read(16).strip(b"\0"):
            return True
    return file.suffix in (".keras", ".npz") and not zipfile.is_zipfile(file)
