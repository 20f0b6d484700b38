"""A disk in memory that knows what a power cut would leave of it.

`Disk` has two states: what programs see, and what was synced. A power cut keeps what was synced;
of the rest it may keep anything, so `Disk.after_cut` knows three kinds of disks:

strict
    Nothing else is kept. The content of a file is as it was when the file was last synced, and a
    folder holds the names that it held when the folder was last synced, as fsync(2) says: "Calling
    fsync() does not necessarily ensure that the entry in the directory containing the file has
    also reached disk."
ordered
    All names are kept, and contents only as far as they were synced: a file that was never synced
    is empty. It is what ext4 leaves (delayed allocation) once it has committed its journal, as it
    does at every fsync of any file and every five seconds.
scattered
    Each folder's names are those that were synced or the present ones, and each block of 4 KiB of
    a content is as it was synced or as it is now, at random.

A rename from one folder to another is kept as a whole once either folder is synced. SQLite relies
on no more: it syncs its journal, the folder of the journal, and then the database.

The operations that change a disk are recorded, so that one run of a program gives its disk at each
moment; see `moments`.
"""

import random
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = 1
BLOCK = 4096
KINDS = ("strict", "ordered", "scattered")

# Contents of files by their paths; None: a folder.
Tree = Mapping[str, bytes | None]
# The name of a method of `Disk` and its arguments.
Operation = tuple


class Node:
    """A file or a folder: as it is, and as it was last synced."""

    def __init__(self, number: int, mode: int) -> None:
        self.number = number
        self.mode = mode
        self.content = bytearray()
        self.names: dict[str, Node] = {}
        self.synced_content = b""
        self.synced_names: dict[str, Node] = {}
        self.changed = time.time_ns()
        self.parent = self
        self.name = ""

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def path(self) -> str:
        """Where it was put last, from the root; "" is the root itself."""
        above = self.parent.path if self.parent is not self else ""
        return f"{above}/{self.name}" if above else self.name


class Disk:
    """A file system without links; its methods take the numbers of nodes, as the kernel does.

    Args:
        tree: What it holds, synced.
    """

    def __init__(self, tree: Tree | None = None) -> None:
        self.nodes = {ROOT: Node(ROOT, stat.S_IFDIR | 0o755)}
        self.log: list[Operation] = []
        self._moved: list[tuple[Node, str, Node, str]] = []
        for path, content in sorted((tree or {}).items()):
            above, _, name = path.rpartition("/")
            parent = self.find(above)
            if content is None:
                self.make(parent.number, name, stat.S_IFDIR | 0o755)
            else:
                self.write(self.make(parent.number, name, stat.S_IFREG | 0o644).number, 0, content)
        for number in self.nodes:
            self.sync(number)
        self.log.clear()

    # What programs see

    def find(self, path: str) -> Node:
        """Return the node at a path.

        Raises:
            KeyError: There is none.
        """
        node = self.nodes[ROOT]
        for name in filter(None, path.split("/")):
            node = node.names[name]
        return node

    def make(self, parent: int, name: str, mode: int) -> Node:
        """Make an empty file or folder."""
        self._record("make", parent, name, mode)
        node = self.nodes[len(self.nodes) + 1] = Node(len(self.nodes) + 1, mode)
        self._put(self.nodes[parent], name, node)
        return node

    def remove(self, parent: int, name: str) -> None:
        """Remove a file or an empty folder."""
        self._record("remove", parent, name)
        del self.nodes[parent].names[name]

    def rename(self, parent: int, name: str, new_parent: int, new_name: str) -> None:
        """Move a file or a folder, in place of what is there."""
        self._record("rename", parent, name, new_parent, new_name)
        old, new = self.nodes[parent], self.nodes[new_parent]
        self._put(new, new_name, old.names.pop(name))
        if old is not new:
            self._moved.append((old, name, new, new_name))

    def write(self, number: int, offset: int, data: bytes) -> None:
        """Write into a file, which grows if need be."""
        self._record("write", number, offset, data)
        content = self.nodes[number].content
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data

    def resize(self, number: int, size: int) -> None:
        """Cut a file off, or let it grow by zeros."""
        self._record("resize", number, size)
        content = self.nodes[number].content
        del content[size:]
        content.extend(bytes(size - len(content)))

    def permit(self, number: int, mode: int) -> None:
        """Set the permissions, which a power cut leaves as they are."""
        self._record("permit", number, mode)
        node = self.nodes[number]
        node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)

    def sync(self, number: int) -> None:
        """Have a file's content, or a folder's names, outlast a power cut."""
        self._record("sync", number)
        node = self.nodes[number]
        node.synced_content = bytes(node.content)
        node.synced_names = dict(node.names)
        for move in [move for move in self._moved if node in (move[0], move[2])]:
            self._moved.remove(move)
            for folder, name in (move[:2], move[2:]):
                if name in folder.names:
                    folder.synced_names[name] = folder.names[name]
                else:
                    folder.synced_names.pop(name, None)

    def _record(self, *operation: object) -> None:
        self.log.append(operation)
        number = operation[1]
        assert isinstance(number, int)
        if operation[0] not in ("sync", "permit"):
            self.nodes[number].changed = time.time_ns()

    @staticmethod
    def _put(parent: Node, name: str, node: Node) -> None:
        parent.names[name] = node
        node.parent, node.name = parent, name

    # What is left

    def now(self) -> Tree:
        """Return all as programs see it."""
        return dict(_walk(self.nodes[ROOT], lambda node: node.names, lambda node: node.content))

    def after_cut(self, kind: str, seed: object = 0) -> Tree:
        """Return what a power cut at this moment leaves on a kind of disk.

        Args:
            kind: One of `KINDS`.
            seed: What "scattered" chooses by.
        """
        root = self.nodes[ROOT]
        if kind == "strict":
            return dict(_walk(root, lambda node: node.synced_names, lambda n: n.synced_content))
        if kind == "ordered":
            return dict(_walk(root, lambda node: node.names, lambda node: node.synced_content))
        draw = random.Random(f"{seed}")
        present = {number: draw.random() < 0.5 for number in self.nodes}
        for old, _, new, _ in self._moved:
            present[old.number] = present[new.number] = True
        return dict(
            _walk(
                root,
                lambda node: node.names if present[node.number] else node.synced_names,
                lambda node: _mixed(node.synced_content, node.content, draw),
            )
        )


def _walk(folder: Node, names, content, above: str = "") -> Iterator[tuple[str, bytes | None]]:
    for name, node in names(folder).items():
        path = f"{above}{name}"
        if node.is_folder:
            yield path, None
            yield from _walk(node, names, content, f"{path}/")
        else:
            yield path, bytes(content(node))


def _mixed(before: bytes, now: bytearray, draw: random.Random) -> bytes:
    """Return a content of the present size, of which some blocks have not been written."""
    if before == now:
        return before
    mixed = bytearray(now)
    for start in range(0, len(now), BLOCK):
        if draw.random() < 0.5:
            here = slice(start, min(start + BLOCK, len(now)))
            mixed[here] = before[here].ljust(here.stop - here.start, b"\0")
    return bytes(mixed)


def moments(log: Sequence[Operation], tree: Tree | None = None) -> Iterator[tuple[Operation, Disk]]:
    """Yield each recorded operation, and the disk, which is one and the same, right after it.

    Args:
        log: The operations.
        tree: What the disk held before.
    """
    disk = Disk(tree)
    for operation in log:
        getattr(disk, operation[0])(*operation[1:])
        yield operation, disk


def read_tree(folder: Path) -> Tree:
    """Return what a folder of another disk holds."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def write_tree(tree: Tree, folder: Path) -> None:
    """Have a folder of another disk hold a tree and nothing else."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path, content in sorted(tree.items()):
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)
