"""What a run keeps on this machine until it is finished and delivered: its scratch folder.

It holds a lock for as long as the run's process lives, a journal of all that is to be known of the
run, the files that go with it, and checkpoints. Whatever ends the process, the folder is there to
go on from; when nothing is left to be done, it is removed. So what lies in `mlruns/unfinished/` is
exactly what can be resumed or sent.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

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

    def __init__(self, folder: Path, lock: FileLock) -> None:
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
                folder.mkdir()
            except FileExistsError:
                number += 1
                continue
            lock = FileLock(folder / LOCK)
            try:
                lock.acquire(timeout=PROBE_SECONDS)
            except Timeout:
                number += 1
                continue
            return cls(folder, lock)

    @classmethod
    def reclaim(cls, folder: Path) -> Scratch | None:
        """Take over a folder that its process has left; None if that process is alive."""
        if not folder.is_dir():
            return None
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=PROBE_SECONDS)
        except Timeout:
            return None
        return cls(folder, lock)

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
        self._lock.release()

    def remove(self) -> None:
        """Remove the folder: there is nothing left to do."""
        # First out of the way, so that what is half removed is never taken for a run.
        gone = self.folder.with_name(f".{self.folder.name}.{os.getpid()}")
        try:
            self.folder.rename(gone)
        except FileNotFoundError:
            return
        self._lock.release()
        shutil.rmtree(gone, ignore_errors=True)


def read_journal(folder: Path) -> list[Event]:
    """Return a scratch folder's journal, without a last line that was torn."""
    try:
        lines = (folder / JOURNAL).read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    events = []
    for line in lines:
        try:
            events.append(json.loads(line))
        except ValueError:
            # A later process has gone on behind a torn line, or this is the last one.
            continue
    return events


def abandoned(root: Path) -> list[Path]:
    """Return the scratch folders whose processes are gone, and clear away half-removed ones."""
    if not root.is_dir():
        return []
    found = []
    for folder in sorted(root.iterdir()):
        if folder.name.startswith("."):
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.is_dir() and not is_live(folder):
            found.append(folder)
    return found


def is_live(folder: Path) -> bool:
    """Return whether the process that claimed a scratch folder still holds its lock."""
    lock = FileLock(folder / LOCK)
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True
