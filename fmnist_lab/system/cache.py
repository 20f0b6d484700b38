"""The folder in which this machine keeps what later runs need again: data, compiled programs.

A container may know its user by a number only, without a home folder or with a read-only one. A
folder among the temporary files takes its place then.
"""

from __future__ import annotations

import functools
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from fmnist_lab.errors import UserError


def folders() -> Iterator[Path]:
    """Yield the folders that may be the cache; the first that can be written is the cache.

    There is one, FMNIST_LAB_CACHE or the user's cache folder, unless the latter cannot be written:
    then a folder among the temporary files is the second.

    Raises:
        UserError: The user has no home folder, and nothing can take its place.
    """
    find_home()
    named = os.environ.get("FMNIST_LAB_CACHE")
    if named:
        yield expanded(named)
        return
    own = platformdirs.user_cache_path("fmnist_lab")
    yield own
    # Where the user's own folder serves, files that an earlier run left in another are not read.
    if not _can_be_written(own) and (temporary := temporary_folder()):
        yield temporary


def find_home() -> None:
    """Name a home folder for libraries that ask for it, and a folder for matplotlib's own files.

    MLflow cannot be imported without a home folder. Without a folder of its own, matplotlib says so
    at each start, and looks through all fonts.

    Raises:
        UserError: The user has no home folder, and nothing can take its place.
    """
    if expanded("~") == Path("~"):
        home = temporary_folder()
        if home is None:
            raise UserError(
                f"this user, number {os.getuid()}, has no home folder, and none can be made among "
                "temporary files; set HOME to a folder"
            )
        os.environ["HOME"] = str(home)
        if not os.environ.get("FMNIST_LAB_CACHE"):
            print(
                f"This user has no home folder; {home} serves as one, and for the cache. HOME or "
                "FMNIST_LAB_CACHE names another.",
                file=sys.stderr,
            )
    elif "MPLCONFIGDIR" not in os.environ:
        settings = Path(os.environ.get("XDG_CONFIG_HOME") or expanded("~/.config"))
        if not _can_be_written(settings) and (home := temporary_folder()):
            os.environ["MPLCONFIGDIR"] = str(home / "matplotlib")


def expanded(path: str | Path) -> Path:
    """Return a path with ~ replaced; Path.expanduser fails for an account without a home."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def _can_be_written(folder: Path) -> bool:
    """Return whether files can be made in a folder, or in the nearest one above that is there."""
    there = next(each for each in (folder, *folder.parents) if os.access(each, os.F_OK))
    return there.is_dir() and os.access(there, os.W_OK)


def make(folder: Path) -> None:
    """Make a folder, and check that files can be made in it.

    Raises:
        OSError: Files cannot be made in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


@functools.cache
def temporary_folder() -> Path | None:
    """Make this user's folder among the temporary files; None if others could write to it.

    Compiled programs are run from there. The answer is kept, because a run moves the place for
    temporary files while it lasts.
    """
    try:
        folder = Path(tempfile.gettempdir(), f"fmnist_lab-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o022
    return folder if private and found.st_uid == os.getuid() else None
