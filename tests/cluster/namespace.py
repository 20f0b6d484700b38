"""A network namespace of our own: nothing in it is seen by, or sees, the machine's network."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from .servers import need, output, server, succeeds, wait_for

CONNECT = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5)"


def network(process: int | str) -> Path:
    """Return what names a process' network namespace."""
    return Path(f"/proc/{process}/ns/net").readlink()


@dataclass(frozen=True)
class Namespace:
    """A network namespace with a loopback interface alone.

    Attributes:
        holder: The process that keeps it.
    """

    holder: int

    @property
    def enter(self) -> tuple[str, ...]:
        """What is put before a command to have it run inside."""
        return ("nsenter", f"--target={self.holder}", "--net", "--")

    def listens(self, port: int) -> bool:
        """Return whether anyone inside listens on a port."""
        return succeeds(*self.enter, sys.executable, "-c", CONNECT, port)

    def processes(self) -> dict[int, tuple[int, list[str]]]:
        """Return the parents and command lines of the processes inside, but for the holder."""
        mine = network(self.holder)
        assert mine != network("self")
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if network(process.name) != mine:
                    continue
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                words = (process / "cmdline").read_text().split("\0")
                if int(process.name) != self.holder:
                    found[int(process.name)] = (parent, words)
        return found

    def clear(self) -> None:
        """End all that is left inside."""
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


@contextmanager
def namespace(log: Path) -> Iterator[Namespace]:
    """Make a namespace; whatever runs in it is ended with it."""
    need("iproute2 util-linux", "ip", "unshare", "nsenter")
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a network namespace")
    with server("unshare", "--net", "sleep", "infinity", log=log) as process:
        inside = Namespace(process.pid)
        own = network("self")
        wait_for(lambda: network(process.pid) != own, "a namespace is there")
        output(*inside.enter, "ip", "link", "set", "lo", "up")
        try:
            yield inside
        finally:
            inside.clear()
