"""What a command has done to a lossy disk, and what its store said at each moment."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

from lossy_disk import ROOT, Disk, Operation, Tree, moments

DATABASE, JOURNAL = "mlflow.db", "mlflow.db-journal"
READY = 2  # in MLflow's table of models
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Said:
    """What a store says of its runs and models, by their ids.

    Attributes:
        states: The state of each run and model.
        folders: Where their files are, from the root of the disk.
        jobs: What each run does.
        scratch: Where each run keeps what it needs until it is finished, likewise.
    """

    states: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)
    jobs: Mapping[str, str] = field(default_factory=dict)
    scratch: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> set[str]:
        """The runs and models that are said to be complete."""
        return {id for id, state in self.states.items() if state in ("FINISHED", "READY")}


class StoreReader:
    """Reads stores out of trees; those that it has read it knows.

    Args:
        mounted: Where the disk was mounted.
    """

    def __init__(self, mounted: Path) -> None:
        self._mounted = mounted
        self._known: dict[tuple[bytes, bytes | None], Said] = {}

    def read(self, tree: Tree) -> Said:
        """Return what the store of a tree says, after SQLite has rolled back what was half done."""
        database, journal = tree.get(DATABASE), tree.get(JOURNAL)
        if database is None:
            return Said()
        key = database, journal
        if key not in self._known:
            with TemporaryDirectory() as folder:
                file = Path(folder, DATABASE)
                file.write_bytes(database)
                if journal is not None:
                    Path(folder, JOURNAL).write_bytes(journal)
                with closing(sqlite3.connect(file)) as connection:
                    self._known[key] = self._read(connection)
        return self._known[key]

    def _read(self, connection: sqlite3.Connection) -> Said:
        runs = "select run_uuid, status, artifact_uri from runs"
        models = (
            f"select model_id, iif(status = {READY}, 'READY', ''), artifact_location "
            "from logged_models where lifecycle_stage = 'active'"
        )
        found = [row for question in (runs, models) for row in connection.execute(question)]
        tags = "select run_uuid, value from tags where key = ?"
        return Said(
            {id: state for id, state, _ in found},
            {id: self._below(unquote(urlsplit(uri).path)) for id, _, uri in found},
            dict(connection.execute(tags, ["job"])),
            {id: self._below(path) for id, path in connection.execute(tags, ["scratch"])},
        )

    def _below(self, path: str) -> str:
        return Path(path).relative_to(self._mounted).as_posix()


@dataclass(frozen=True)
class Recording:
    """A command that was carried out on a lossy disk.

    Attributes:
        reader: Reads the store.
        before: What was on the disk.
        log: What was done to it.
    """

    reader: StoreReader
    before: Tree
    log: Sequence[Operation]

    def disk(self, number: int = -1) -> Disk:
        """Return the disk as it was after an operation; by default after the last."""
        *_, (_, disk) = moments(self.log[: number + 1 or None], self.before)
        return disk

    def steps(self) -> Iterator[tuple[int, Operation, Disk, Said]]:
        """Yield each operation, the disk after it, and what the store then says to programs."""
        said = self.reader.read(self.before)
        for number, (operation, disk) in enumerate(moments(self.log, self.before)):
            if _is_commit(operation):
                said = self.reader.read({DATABASE: bytes(disk.find(DATABASE).content)})
            yield number, operation, disk, said

    @functools.cached_property
    def seen(self) -> Seen:
        """When what was to be seen."""
        found = Seen()
        for number, operation, disk, said in self.steps():
            found.note("operation", number)
            if DATABASE in disk.nodes[ROOT].names:
                found.note("store", number)
            places = {"run": 0, "model": 0}
            for id, state in said.states.items():
                kind = "run" if id in said.jobs else "model"
                found.note(f"{kind} {places[kind]}", number)
                found.note(f"{kind} {places[kind]} {state}", number)
                places[kind] += 1
            path = _touched(operation, disk)
            for id, state in said.states.items():
                if id in said.jobs and state == "RUNNING" and path.startswith(said.folders[id]):
                    found.note("artifact", number)
            for name in _saved(operation, disk):
                found.note(name, number)
        return found

    def broken_promises(self, kind: str) -> list[str]:
        """Return what a power cut would have lost that was said to be complete, at any moment.

        Args:
            kind: The kind of disk; one of `lossy_disk.KINDS`.
        """
        promised = Promised(self.reader.read(self.before))
        broken: dict[str, str] = {}
        for number, operation, disk, said in self.steps():
            promised.note(operation, disk, said)
            if operation[0] in ("write", "resize", "permit"):
                continue  # what is not synced promises nothing
            tree = disk.after_cut(kind, number)
            for what, how in promised.broken(tree, self.reader.read(tree)):
                broken.setdefault(what, f"{what} is {how}, after operation {number}, {operation}")
        return list(broken.values())


@dataclass
class Seen:
    """When what was to be seen for the first and the last time, by numbers of operations.

    Runs and models are numbered as they appear: "run 0", "run 1 FINISHED", "model 0 READY". There
    are also "store", "artifact" (a file of a run was made, filled or synced), the names of
    checkpoints that were saved, and "operation".
    """

    first: dict[str, int] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)

    def note(self, what: str, number: int) -> None:
        """Note that something is to be seen after an operation."""
        self.first.setdefault(what, number)
        self.last[what] = number


class Promised:
    """What a power cut has to leave, from what programs were told.

    Args:
        said: What the store said before.
    """

    def __init__(self, said: Said) -> None:
        # What was complete before may be made again.
        self._complete: dict[str, Tree] = {id: {} for id in said.complete}
        self._saved: dict[str, bytes] = {}

    def note(self, operation: Operation, disk: Disk, said: Said) -> None:
        """Look at what has been said with an operation."""
        for name, content in _saved(operation, disk).items():
            self._saved.setdefault(f"{disk.nodes[operation[1]].path}/{name}", content)
        if not _is_commit(operation):
            return
        new = said.complete - self._complete.keys()
        if any(said.jobs.get(id) == "sweep" for id in new):
            # With it, all has been said of its jobs.
            new = said.complete
        now = disk.now() if new else {}
        for id in new:
            within = f"{said.folders[id]}/"
            self._complete[id] = {path: now[path] for path in now if path.startswith(within)}

    def broken(self, tree: Tree, said: Said) -> Iterator[tuple[str, str]]:
        """Yield what is not as it was promised, and how it is.

        Args:
            tree: What a power cut has left.
            said: What the store in it says.
        """
        for id in said.complete & self._complete.keys():
            for path, content in self._complete[id].items():
                if tree.get(path, b"") != content:
                    yield f"{said.states[id]}, but {path}", _state(tree, path)
        newest = {path.rpartition("/")[0]: path for path in sorted(self._saved)}
        for folder, path in newest.items():
            scratch = str(PurePosixPath(folder).parent)
            owners = {id for id, place in said.scratch.items() if place == scratch}
            if tree.get(path) != self._saved[path] and not owners & said.complete:
                yield f"saved, but {path}", _state(tree, path)


def _is_commit(operation: Operation) -> bool:
    """Whether an operation ends a transaction of the store, or puts the store there."""
    match operation:
        case ("remove", 1, name):
            return name == JOURNAL
        case ("rename", _, _, 1, name):
            return name == DATABASE
    return False


def _saved(operation: Operation, disk: Disk) -> dict[str, bytes]:
    """Return the checkpoints that are on the disk for good with an operation."""
    node = disk.nodes[operation[1]]
    if operation[0] != "sync" or node.name != CHECKPOINTS:
        return {}
    return {name: bytes(file.content) for name, file in node.synced_names.items()}


def _touched(operation: Operation, disk: Disk) -> str:
    """Return the path of what an operation has made, moved, removed, written or synced."""
    match operation:
        case ("make" | "remove", parent, name, *_) | ("rename", _, _, parent, name):
            return f"{disk.nodes[parent].path}/{name}"
    return disk.nodes[operation[1]].path


def _state(tree: Tree, path: str) -> str:
    content = tree.get(path)
    return "not there" if content is None else "torn" if content else "empty"
