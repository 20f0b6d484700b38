"""The journal: the folder that a run keeps on this machine until it is finished and delivered.

The folder holds a lock for as long as the run's process lives, the list of the run's events, the
files that go with the run, and checkpoints. The folder outlives the process, whatever ends that,
and a later process goes on from it. It is removed when nothing is left to be done. So the folders
in `mlruns/unfinished/` are exactly the runs that can be resumed or sent.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import threading
import time
from pathlib import Path

from fmnist_lab.system import durable
from fmnist_lab.tracking.events import End, Event, Opened, Opening, Status, decode, encode

LOCK, EVENTS = "lock", "journal.jsonl"
# The tag of a run in the store with the token that its journal notes before the run has an id.
TOKEN_TAG = "scratch.token"
PLACE = re.compile(r"mlruns/unfinished/[0-9A-Za-z]{1,64}(-[0-9]{1,9})?")
# A look at a lock takes it for a moment.
PROBE_SECONDS = 0.5


class Journal:
    """A journal whose lock this process holds; see `claim` and `reclaim`.

    Attributes:
        folder: The journal's folder.
        files: The folder for the run's files until they are delivered.
        checkpoints: The folder for the training's state.
        temporary: The folder for the libraries' temporary files.
    """

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self.files = folder / "files"
        self.checkpoints = folder / "checkpoints"
        self.temporary = folder / "tmp"
        self._lock = lock
        self._append = threading.Lock()
        self._unsynced = self._unnamed = True
        shutil.rmtree(self.temporary, ignore_errors=True)
        for part in (self.files, self.checkpoints, self.temporary):
            part.mkdir(exist_ok=True)
        durable.sync_folder(folder)

    @classmethod
    def claim(cls, root: Path, identity: str) -> Journal:
        """Make a new journal for a run of a config.

        Args:
            root: The folder of all journals.
            identity: The config's hash; the folder's name, with a number from the second on.

        Raises:
            OSError: The folder cannot be made.
        """
        durable.make_folder(root)
        number = 1
        while True:
            folder = root / (identity if number == 1 else f"{identity}-{number}")
            number += 1
            try:
                # The folder is private, because a store's address may hold a password.
                folder.mkdir(mode=0o700)
            except FileExistsError:
                continue
            lock = _lock(folder)
            if lock is not None:
                durable.sync_folder(root)
                return cls(folder, lock)

    @classmethod
    def reclaim(cls, folder: Path) -> Journal | None:
        """Take over a folder that its process has left; None if that process is alive."""
        lock = _lock(folder)
        if lock is None:
            return None
        _end_torn_line(folder / EVENTS)
        return cls(folder, lock)

    def append(self, event: Event) -> None:
        """Write an event, which outlives this process, and after `sync` a power cut as well.

        Raises:
            OSError: The disk is full, or the folder is gone.
        """
        line = encode(event) + "\n"
        with self._append, (self.folder / EVENTS).open("a", encoding="utf-8") as file:
            file.write(line)
            self._unsynced = True

    def sync(self) -> None:
        """Wait until all events are on disk.

        Raises:
            OSError: The disk is full or failing, or the folder is gone.
        """
        with self._append:
            unsynced, self._unsynced = self._unsynced, False
        if not unsynced:
            return
        try:
            durable.sync_file(self.folder / EVENTS)
            if self._unnamed:
                durable.sync_folder(self.folder)
                self._unnamed = False
        except OSError:
            self._unsynced = True
            raise

    def events(self) -> list[Event]:
        """Return the events so far; see `read_events`."""
        return read_events(self.folder)

    def release(self) -> None:
        """Leave the folder for a later process to go on from."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        self._unlock()

    def remove(self) -> None:
        """Remove the folder: nothing is left to be done."""
        # A half removed folder has another name, so that nobody takes it for a run.
        gone = self.folder.with_name(f".{self.folder.name}.{os.getpid()}")
        try:
            self.folder.rename(gone)
        except FileNotFoundError:
            gone = self.folder
        # Some file systems keep a file that is open in its folder, which then cannot be removed.
        self._unlock()
        shutil.rmtree(gone, ignore_errors=True)

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def journal_at(tag: str) -> Path | None:
    """Return the folder that a run's tag names; None if there is no journal of this user.

    Anyone may have written the tag, and a journal may be removed. So the folder has to belong to
    this user and to lie where journals lie, with the name of a journal, and it is no link.
    """
    folder = Path(tag)
    if not PLACE.fullmatch("/".join(folder.parts[-3:])) or not folder.is_absolute():
        return None
    try:
        found = folder.lstat()
    except (OSError, ValueError):
        return None
    return folder if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() else None


def read_events(folder: Path) -> list[Event]:
    """Return a journal's events, without lines that were torn by a process's end."""
    try:
        text = (folder / EVENTS).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return [event for line in text.splitlines() if (event := decode(line)) is not None]


def owner(events: list[Event]) -> Opened | Opening | None:
    """Return the event that says which run a journal is of; None if there is none.

    The last such event counts: the run's id, or the token that the run has as `TOKEN_TAG` if the
    store has come to know of the run.
    """
    return next((each for each in reversed(events) if isinstance(each, Opened | Opening)), None)


def is_finished(events: list[Event]) -> bool:
    """Return whether a journal's run has come to its end, and only the store may not know."""
    last = events[-1] if events else None
    return isinstance(last, End) and last.status is Status.FINISHED


def is_at_rest(events: list[Event]) -> bool:
    """Return whether a journal's run is finished or paused, and only the store may not know."""
    last = events[-1] if events else None
    return isinstance(last, End) and last.status in (Status.FINISHED, Status.PAUSED)


def abandoned(root: Path) -> list[Path]:
    """Return the journals below a folder whose processes are gone."""
    if not root.is_dir():
        return []
    folders = (folder for folder in sorted(root.iterdir()) if not folder.name.startswith("."))
    return [folder for folder in folders if folder.is_dir() and not is_live(folder)]


def folders_of(root: Path, identity: str) -> list[Path]:
    """Return the folders of the journals of a config's runs.

    Args:
        root: The folder with all journals.
        identity: The hash of the config.
    """
    return [*root.glob(identity), *root.glob(f"{identity}-*")]


def clear_half_removed(root: Path) -> None:
    """Remove the rest of the journals whose removal was itself cut short."""
    for folder in root.glob(".*"):
        shutil.rmtree(folder, ignore_errors=True)


def is_live(folder: Path) -> bool:
    """Return whether the process of a journal still holds its lock."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR)
    except PermissionError:
        # The journal is another user's, in a shared store; that user looks after it.
        return True
    except OSError:
        return False
    try:
        # A shared lock lets several processes look at once.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _lock(folder: Path) -> int | None:
    """Take a journal's lock; None if another process holds it, or the folder is gone.

    The lock of a library would make a folder again that another process has just removed.
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
            # The process that held the lock may have removed the folder just before.
            if file.exists() and os.path.samestat(os.fstat(handle), file.stat()):
                return handle
        os.close(handle)
        return None


def _end_torn_line(file: Path) -> None:
    """End a last line that was torn, so that the next event gets a line of its own."""
    try:
        with file.open("rb+") as stream:
            if stream.seek(0, os.SEEK_END):
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    stream.write(b"\n")
    except FileNotFoundError:
        pass
