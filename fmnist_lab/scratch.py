"""What a run keeps on this machine until it is finished and delivered: its scratch folder.

It holds a lock for as long as the run's process lives, a journal of all that is to be known of the
run, the files that go with it, and checkpoints. Whatever ends the process, the folder is there to
go on from; when nothing is left to be done, it is removed. So what lies in `mlruns/unfinished/` is
exactly what can be resumed or sent.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOCK, JOURNAL = "lock", "journal.jsonl"
# Looking whether a lock is held takes it for a moment.
PROBE_SECONDS = 0.5

Event = dict[str, Any]


class Scratch:
    """A scratch folder whose lock this process holds; see `claim` and `reclaim`.

    Attributes:
        folder: The folder.
        files: Where files that go with the run are kept until they are delivered.
        checkpoints: Where the training's state is kept.
        temporary: Where libraries may put what they need for a moment.
    """

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self.files = folder / "files"
        self.checkpoints = folder / "checkpoints"
        self.temporary = folder / "tmp"
        self._lock = lock
        self._append = threading.Lock()
        shutil.rmtree(self.temporary, ignore_errors=True)
        for part in (self.files, self.checkpoints, self.temporary):
            part.mkdir(exist_ok=True)

    @classmethod
    def claim(cls, root: Path, identity: str) -> Scratch:
        """Make a new folder for a run of a configuration.

        Args:
            root: Folder of scratch folders.
            identity: The configuration's hash; a number is added where there are others of it.
        """
        root.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            folder = root / (identity if number == 1 else f"{identity}-{number}")
            try:
                # Private, as a store's address may hold a password.
                folder.mkdir(mode=0o700)
            except FileExistsError:
                number += 1
                continue
            lock = _lock(folder)
            if lock is None:
                number += 1
                continue
            return cls(folder, lock)

    @classmethod
    def reclaim(cls, folder: Path) -> Scratch | None:
        """Take over a folder that its process has left; None if that process is alive."""
        lock = _lock(folder)
        if lock is None:
            return None
        scratch = cls(folder, lock)
        _end_torn_line(folder / JOURNAL)
        return scratch

    def append(self, event: Mapping[str, Any]) -> None:
        """Write an event at the end of the journal; it outlives this process from then on.

        Raises:
            OSError: The disk is full, or the folder is gone.
        """
        line = json.dumps(event) + "\n"
        with self._append, (self.folder / JOURNAL).open("a") as journal:
            journal.write(line)

    def events(self) -> list[Event]:
        """Return the journal; a last line that was torn by the process's end is left out."""
        return read_journal(self.folder)

    def release(self) -> None:
        """Leave the folder for a later process to go on from."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        self._unlock()

    def remove(self) -> None:
        """Remove the folder: there is nothing left to do."""
        # First out of the way, so that what is half removed is never taken for a run.
        gone = self.folder.with_name(f".{self.folder.name}.{os.getpid()}")
        try:
            self.folder.rename(gone)
        except FileNotFoundError:
            gone = self.folder
        shutil.rmtree(gone, ignore_errors=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def read_journal(folder: Path) -> list[Event]:
    """Return a scratch folder's journal, without lines that were torn by a process's end."""
    try:
        lines = (folder / JOURNAL).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    events = []
    for line in lines:
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return [event for event in events if isinstance(event, dict) and "kind" in event]


def abandoned(root: Path) -> list[Path]:
    """Return the scratch folders whose processes are gone."""
    if not root.is_dir():
        return []
    folders = (folder for folder in sorted(root.iterdir()) if not folder.name.startswith("."))
    return [folder for folder in folders if folder.is_dir() and not is_live(folder)]


def clear_half_removed(root: Path) -> None:
    """Remove what is left of scratch folders whose removal was itself cut short."""
    for folder in root.glob(".*"):
        shutil.rmtree(folder, ignore_errors=True)


def is_live(folder: Path) -> bool:
    """Return whether the process that claimed a scratch folder still holds its lock."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        # Shared, so that several may look at once.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _lock(folder: Path) -> int | None:
    """Take a folder's lock; None if another process holds it, or the folder is gone.

    A library's lock would make a folder that another process has just removed anew.
    """
    file = folder / LOCK
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except (FileNotFoundError, NotADirectoryError):
        return None
    deadline = time.monotonic() + PROBE_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.01)
                continue
        else:
            # Its holder may have removed the folder just before it let go.
            if file.exists() and os.path.samestat(os.fstat(handle), file.stat()):
                return handle
        os.close(handle)
        return None


def _end_torn_line(journal: Path) -> None:
    """Close a last line that was torn, lest the next event be lost with it."""
    try:
        with journal.open("rb+") as stream:
            if stream.seek(0, os.SEEK_END):
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    stream.write(b"\n")
    except FileNotFoundError:
        pass
