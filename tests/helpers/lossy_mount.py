"""`lossy_disk.Disk` as a folder that any program can use, by Linux' FUSE protocol.

The protocol (`linux/fuse.h`) is spoken directly, so that it needs nothing but the kernel and
`fusermount3`, of Debian's package fuse3. File locks and shared memory maps are left to the kernel.
What sync(2) and syncfs(2) do is not seen here: the kernel does not tell a file system of this kind.
"""

import errno
import os
import pickle
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lossy_disk import Disk, Node, Operation, read_tree

FUSERMOUNT = "fusermount3"
DEVICE = Path("/dev/fuse")
MOUNTED = b"mounted\n"

HEADER = struct.Struct("=IIQQIIIHH")  # length, opcode, request, node, uid, gid, pid, …
ANSWER = struct.Struct("=IiQ")  # length, error, request
MOST_WRITTEN = 1 << 17
# For ever: nobody but the kernel changes anything.
VALID = 1 << 30
ASYNC_READ, BIG_WRITES = 1 << 0, 1 << 5
SET_MODE, SET_SIZE = 1 << 0, 1 << 3
NO_REPLACE = 1


class Server:
    """Answers the kernel's requests for one mounted disk.

    Args:
        disk: The disk.
        device: /dev/fuse, opened and mounted.
    """

    def __init__(self, disk: Disk, device: int) -> None:
        self.disk = disk
        self._device = device
        self._listings: dict[int, list[tuple[str, Node]]] = {}
        # By their numbers in linux/fuse.h. All others are not there, which the kernel puts up with:
        # files need not be opened, for example. Requests 2, 36 and 42 expect no answer.
        self._answers = {
            1: self._look_up,
            2: None,  # forget
            3: lambda number, _: self._attributes(number),
            4: self._set_attributes,
            8: self._make_file,
            9: self._make_folder,
            10: self._remove,
            11: self._remove_folder,
            12: self._rename,
            15: self._read,
            16: self._write,
            17: self._space,
            20: self._sync,
            26: self._begin,
            27: self._open_folder,
            28: self._list,
            29: self._close_folder,
            30: self._sync,
            36: None,  # interrupt
            42: None,  # forget many
            45: self._rename_unless,
        }

    def serve(self, stop: int) -> None:
        """Answer until there is something to read, or an end, at another file descriptor."""
        os.set_blocking(self._device, False)
        waiting = select.poll()
        waiting.register(self._device, select.POLLIN)
        waiting.register(stop, select.POLLIN)
        buffer = bytearray(MOST_WRITTEN + (1 << 16))
        while True:
            ready = dict(waiting.poll())
            if self._device not in ready:
                return
            try:
                length = os.readv(self._device, [buffer])
            except (BlockingIOError, FileNotFoundError):  # a request was withdrawn
                continue
            _, opcode, request, number, *_ = HEADER.unpack_from(buffer)
            answer = self._answers.get(opcode, self._unknown)
            if answer is None:
                continue
            code, data = 0, b""
            try:
                data = answer(number, bytes(memoryview(buffer)[HEADER.size : length]))
            except OSError as error:
                code = error.errno or errno.EIO
            head = ANSWER.pack(ANSWER.size + len(data), -code, request)
            try:
                os.writev(self._device, [head, data])
            except FileNotFoundError:  # it was withdrawn
                continue

    def _begin(self, _: int, body: bytes) -> bytes:
        readahead = struct.unpack_from("=III", body)[2]
        flags = ASYNC_READ | BIG_WRITES
        return struct.pack(
            "=IIIIHHIIHHI28x", 7, 31, readahead, flags, 16, 12, MOST_WRITTEN, 1, 0, 0, 0
        )

    def _unknown(self, _: int, body: bytes) -> bytes:
        raise OSError(errno.ENOSYS, "")

    # Names

    def _child(self, number: int, name: str) -> Node:
        try:
            return self.disk.nodes[number].names[name]
        except KeyError:
            raise OSError(errno.ENOENT, name) from None

    def _look_up(self, number: int, body: bytes) -> bytes:
        return self._entry(self._child(number, _name(body)))

    def _make_file(self, number: int, body: bytes) -> bytes:
        mode = struct.unpack_from("=I", body)[0]
        if not stat.S_ISREG(mode):
            raise OSError(errno.EPERM, "neither a file nor a folder")
        return self._entry(self.disk.make(number, _name(body[16:]), mode))

    def _make_folder(self, number: int, body: bytes) -> bytes:
        mode = struct.unpack_from("=I", body)[0]
        node = self.disk.make(number, _name(body[8:]), stat.S_IFDIR | stat.S_IMODE(mode))
        return self._entry(node)

    def _remove(self, number: int, body: bytes) -> bytes:
        self.disk.remove(number, _name(body))
        return b""

    def _remove_folder(self, number: int, body: bytes) -> bytes:
        name = _name(body)
        self._refuse_to_lose(self._child(number, name))
        self.disk.remove(number, name)
        return b""

    def _rename(self, number: int, body: bytes, flags: int = 0, start: int = 8) -> bytes:
        new = struct.unpack_from("=Q", body)[0]
        old_name, new_name = map(os.fsdecode, body[start:].split(b"\0")[:2])
        there = self.disk.nodes[new].names.get(new_name)
        if flags & ~NO_REPLACE:
            raise OSError(errno.EINVAL, "")
        if there and flags:
            raise OSError(errno.EEXIST, "")
        if there:
            self._refuse_to_lose(there)
        self.disk.rename(number, old_name, new, new_name)
        return b""

    def _rename_unless(self, number: int, body: bytes) -> bytes:
        return self._rename(number, body, struct.unpack_from("=QI", body)[1], 16)

    @staticmethod
    def _refuse_to_lose(node: Node) -> None:
        if node.names:
            raise OSError(errno.ENOTEMPTY, node.name)

    def _open_folder(self, number: int, body: bytes) -> bytes:
        handle = len(self._listings) + 1
        self._listings[handle] = []
        return struct.pack("=QII", handle, 0, 0)

    def _list(self, number: int, body: bytes) -> bytes:
        handle, offset, size = struct.unpack_from("=QQI", body)
        if offset == 0:
            self._listings[handle] = list(self.disk.nodes[number].names.items())
        listed = b""
        for place, (name, node) in enumerate(self._listings[handle][offset:], offset + 1):
            text = os.fsencode(name)
            entry = struct.pack("=QQII", node.number, place, len(text), node.mode >> 12) + text
            entry += bytes(-len(entry) % 8)
            if len(listed) + len(entry) > size:
                break
            listed += entry
        return listed

    def _close_folder(self, _: int, body: bytes) -> bytes:
        self._listings[struct.unpack_from("=Q", body)[0]] = []
        return b""

    # Contents

    def _read(self, number: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("=QQI", body)
        return bytes(self.disk.nodes[number].content[offset : offset + size])

    def _write(self, number: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("=QQI", body)
        self.disk.write(number, offset, body[40 : 40 + size])
        return struct.pack("=II", size, 0)

    def _sync(self, number: int, _: bytes) -> bytes:
        self.disk.sync(number)
        return b""

    def _set_attributes(self, number: int, body: bytes) -> bytes:
        asked, _, _, size = struct.unpack_from("=IIQQ", body)
        if asked & SET_SIZE:
            self.disk.resize(number, size)
        if asked & SET_MODE:
            self.disk.permit(number, struct.unpack_from("=I", body, 68)[0])
        return self._attributes(number)

    # What is told of them

    def _entry(self, node: Node) -> bytes:
        return struct.pack("=QQQQII", node.number, 0, VALID, VALID, 0, 0) + self._facts(node)

    def _attributes(self, number: int) -> bytes:
        return struct.pack("=QII", VALID, 0, 0) + self._facts(self.disk.nodes[number])

    @staticmethod
    def _facts(node: Node) -> bytes:
        size = len(node.content)
        seconds, rest = divmod(node.changed, 10**9)
        times = (seconds,) * 3, (rest,) * 3
        owner = os.getuid(), os.getgid()
        return struct.pack(
            "=6Q10I",
            *(node.number, size, -(-size // 512), *times[0], *times[1]),
            *(node.mode, 2 if node.is_folder else 1, *owner, 0, 4096, 0),
        )

    @staticmethod
    def _space(_: int, body: bytes) -> bytes:
        free = 1 << 20  # blocks
        return struct.pack("=5Q4I24x", free, free, free, free, free, 4096, 255, 4096, 0)


def _name(body: bytes) -> str:
    return os.fsdecode(body.partition(b"\0")[0])


def mount(folder: Path) -> int:
    """Mount a file system on a folder, and return the device that its requests come from.

    Raises:
        OSError: It cannot be mounted.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [FUSERMOUNT, "-o", "default_permissions,fsname=lossy", "--", folder],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise OSError(done.stderr.strip() or f"{FUSERMOUNT} failed")
        _, (device,), *_ = socket.recv_fds(ours, 1, 1)
    return device


def unmount(folder: Path) -> None:
    """Unmount, even if a process has not let go of it."""
    subprocess.run([FUSERMOUNT, "-u", "-z", "--", folder], check=True, capture_output=True)


def obstacle() -> str:
    """Return why nothing can be mounted here; "" if it can."""
    if not DEVICE.exists():
        return f"{DEVICE} is not here"
    with tempfile.TemporaryDirectory() as folder:
        try:
            device = mount(Path(folder))
        except OSError as error:
            return f"no FUSE: {error}"
        unmount(Path(folder))
        os.close(device)
    return ""


class Mounted:
    """A folder on a lossy disk.

    Attributes:
        log: The operations on the disk; there once it is unmounted.
    """

    log: Sequence[Operation]


@contextmanager
def mounted(folder: Path) -> Iterator[Mounted]:
    """Put a lossy disk over a folder, whose files it starts with; they stay as they are below.

    The disk is served by another process: this one would wait for itself when it starts a program
    in the folder.

    Args:
        folder: The folder.

    Yields:
        What was done to the disk, after the block.
    """
    command = [sys.executable, __file__, folder]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    found = Mounted()
    with server:
        assert server.stdin is not None
        assert server.stdout is not None
        if server.stdout.readline() != MOUNTED:
            raise OSError(f"{folder} cannot be mounted")
        try:
            yield found
        finally:
            server.stdin.close()
            log = server.stdout.read()
    found.log = pickle.loads(log)


def main() -> None:
    """Serve the folder that is named until standard input ends, and write the log."""
    folder = Path(sys.argv[1])
    # Ctrl-C is for the tests, which close standard input, as happens when they are killed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    disk = Disk(read_tree(folder))
    device = mount(folder)
    server = Server(disk, device)
    sys.stdout.buffer.write(MOUNTED)
    sys.stdout.flush()
    server.serve(stop=sys.stdin.fileno())
    # First of all nobody is answered any more: a process that has made a mount namespace of its own
    # in the meantime keeps what was mounted, and would be waited for.
    os.close(device)
    unmount(folder)
    pickle.dump(disk.log, sys.stdout.buffer)


if __name__ == "__main__":
    main()
