"""The program in C, compiled for this processor and kept."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from fmnist_lab.errors import UserError
from fmnist_lab.system import durable
from fmnist_lab.training import runtime

SOURCES = Path(__file__).with_name("c")
SOURCE = SOURCES / "network.c"
# All instructions that this very processor has.
TUNE = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
FLAGS = ("-std=gnu11", "-O3", TUNE, "-fno-math-errno", "-shared", "-fPIC", "-pthread")


@functools.cache
def library() -> ctypes.CDLL:
    """Return the program, compiled for this processor now or by an earlier process.

    Raises:
        UserError: No compiler works, or the system runs nothing that it makes.
    """
    folder = runtime.compiled_folder("native")
    if folder is not None:
        with suppress(OSError):
            return ctypes.CDLL(str(compile_library(folder)))
        # What was kept may be damaged, or nothing may be written there or run from it.
        with suppress(OSError):
            for kept in folder.glob("network-*.so"):
                kept.unlink(missing_ok=True)
            return ctypes.CDLL(str(compile_library(folder)))
    try:
        with tempfile.TemporaryDirectory() as temporary:
            return ctypes.CDLL(str(compile_library(Path(temporary))))
    except OSError as error:
        raise UserError(f"trainer.engine=native: {error}; use trainer.engine=auto") from None


def compile_library(folder: Path) -> Path:
    """Compile the program into a folder, unless it is there; return the library's path."""
    source = b"".join(file.read_bytes() for file in sorted(SOURCES.glob("*.[ch]")))
    key = hashlib.sha256(source + " ".join(FLAGS).encode()).hexdigest()[:8]
    library = folder / f"network-{key}.so"
    if library.exists():
        return library
    complaints = []
    with tempfile.TemporaryDirectory(dir=folder, prefix="network-") as temporary:
        made = Path(temporary) / library.name
        for compiler in compilers():
            complaint = complaint_of([*compiler, *FLAGS, "-o", str(made), str(SOURCE), "-lm"])
            if complaint is None:
                # Two processes may compile at once; whichever is last is no worse.
                durable.replace(made, library)
                return library
            complaints.append(f"{shlex.join(compiler)} cannot compile {SOURCE.name}: {complaint}")
    problem = complaints[0] if complaints else "there is no C compiler"
    raise UserError(
        f"trainer.engine=native: {problem}; install one, such as Debian's packages gcc and "
        "libc6-dev, or pip install 'fmnist_lab[native]'; or use trainer.engine=auto"
    )


def compilers() -> Iterator[list[str]]:
    """Yield the commands of the C compilers that are here, the user's own first."""
    chosen = os.environ.get("CC", "").split()
    if chosen and shutil.which(chosen[0]):
        yield chosen
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            yield [name]
    if importlib.util.find_spec("ziglang"):
        yield [sys.executable, "-m", "ziglang", "cc"]


def complaint_of(command: list[str]) -> str | None:
    """Run a compiler; return its message if it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
    except OSError as error:
        return str(error)
    return " ".join(done.stderr.split())[:300] if done.returncode else None
