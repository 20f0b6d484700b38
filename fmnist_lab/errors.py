"""The exception that means "you can mend this", and how every command reports it."""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fmnist_lab.texts import line

ELSEWHERE = "tracking.uri=sqlite:////tmp/mlflow.db"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Bad input, a missing file, a store out of reach: anything the user can put right.

    Its message is a single paragraph that names what was received, what was expected and how to
    mend it. Every command prints it alone, without a traceback, and exits non-zero.
    """


class DivergedError(UserError):
    """The loss became nan or infinite."""


class TooLargeError(UserError):
    """A model has more parameters than are allowed, or needs more memory than there is."""


class Terminated(KeyboardInterrupt):
    """A signal to end, raised where the process happened to be, so that it can say goodbye.

    Attributes:
        number: The signal's: SIGTERM, or SIGHUP when the terminal has gone away.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        """Note the signal's number."""
        super().__init__(number)
        self.number = number


def cannot_write(place: Path, error: OSError) -> UserError:
    """Return the error about a place that cannot be written, with the way to mend it.

    Args:
        place: The file or folder.
        error: The exception that was raised.
    """
    mend = f"{permission(place)}choose another place, for example {ELSEWHERE}"
    if error.errno in FULL_DISK:
        mend = "make room, and repeat the command with resume=true"
    elif error.errno in (errno.ENOENT, errno.ENOTDIR):
        mend = "something has removed it; repeat the command in a folder that stays"
    return UserError(f"{place} cannot be written: {os.strerror(error.errno or 0)}; {mend}")


def permission(place: Path) -> str:
    """Return the beginning of a sentence: how another user can share a place, or else "".

    Args:
        place: A file or folder that could not be used; perhaps one above it is the other user's.
    """
    for each in (place, *place.parents):
        try:
            owner = each.stat().st_uid
        except OSError:
            continue
        if owner in (os.getuid(), 0):
            return ""
        try:
            name = each.owner()
        except (KeyError, OSError):
            name = str(owner)
        return (
            f"it belongs to user {name}, who can share it with a group (chmod -R g+rwX, and umask "
            "002 from then on); or "
        )
    return ""


def ended_by(error: KeyboardInterrupt) -> str:
    """Return the name of the signal that has ended the work, in words."""
    name = signal.Signals(error.number).name if isinstance(error, Terminated) else "Ctrl-C"
    return f"ended by {name}"


@contextmanager
def raised() -> Iterator[None]:
    """Make a `UserError` of an error about a file that cannot be used, if a person can mend it.

    Raises:
        UserError: With the sentence that `reported` would print.
    """
    try:
        yield
    except OSError as error:
        told = _told(error)
        if not told:
            raise
        raise UserError(told) from error


@contextmanager
def reported() -> Iterator[None]:
    """Print a `UserError`, or the error about a file that cannot be used, as one line and exit.

    Anything else is a bug and keeps its traceback.

    Raises:
        SystemExit: 2 after one of these; 130 after Ctrl-C, 143 after SIGTERM and 129 after
            SIGHUP, the shell's 128 + signal.
    """
    try:
        with raised():
            yield
    except UserError as error:
        # A received value, or a folder's name, may hold line breaks and control characters.
        print(f"error: {line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except Terminated as end:
        raise SystemExit(128 + end.number) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _told(error: OSError) -> str:
    """Return the sentence about a file error that a person can mend; empty for any other."""
    mend = "make room, and repeat the command" if error.errno in FULL_DISK else ""
    if error.filename:
        return f"{error.filename}: {error.strerror}{mend and f'; {mend}'}"
    if mend or error.errno in (errno.EROFS, errno.EIO):
        # A file's name is not known any more when something is written into it.
        mend = mend or "repeat the command where one can be written"
        return f"a disk cannot be written: {error.strerror}; {mend}"
    try:
        Path.cwd()
    except FileNotFoundError:
        return "the working folder does not exist any more; repeat the command in one that does"
    try:
        tempfile.gettempdir()
    except FileNotFoundError as none:
        return (
            f"temporary files cannot be written: {none.strerror}; make room, or name another "
            "folder in the environment as TMPDIR"
        )
    return ""
