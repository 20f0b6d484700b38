"""The Debian package of a data set, as a source of its files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from fmnist_lab.data.idx import IdxFile, read_folder
from fmnist_lab.errors import UserError

NETWORK_SECONDS = 10  # for a connection of apt-get's, and for each read from it
COMMAND_SECONDS = 600.0  # for one apt-get or dpkg-deb


def read_package(
    package: str, folder: str, wanted: Sequence[IdxFile]
) -> Iterator[tuple[IdxFile, bytes]]:
    """Download and unpack a package in a temporary folder; needs neither root nor lists.

    Args:
        package: The package's name.
        folder: The absolute folder into which it installs the files.
        wanted: The files to read.

    Yields:
        Each file that the package has, with its unpacked content, not verified.

    Raises:
        UserError: A tool or the package is missing, or the package lacks a file.
    """
    if missing := [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]:
        raise UserError(f"{' and '.join(missing)} not installed")
    print(f"Fetching the Debian package {package} with apt-get", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="fmnist_lab-") as temporary:
        work = Path(temporary)
        work.chmod(0o755)  # apt, run by root, reads its lists as the user _apt
        lists, cache, unpacked = work / "lists", work / "cache", work / "unpacked"
        for new in (lists, cache, unpacked):
            new.mkdir()
        apt = ["apt-get", "-q", f"-oDir::State::Lists={lists}", f"-oDir::Cache={cache}"]
        apt += [f"-oAcquire::{way}::Timeout={NETWORK_SECONDS}" for way in ("http", "https")]
        # The list of a third party may fail without harm, so only the archive counts.
        with Console(stderr=True, force_jupyter=False).status("waiting for apt-get"):
            complaints = _run([*apt, "-oAcquire::Languages=none", "update"], work)
            complaints += _run([*apt, "download", package], work)
        archives = list(work.glob("*.deb"))
        if not archives:
            raise UserError("; ".join(complaints) or "apt-get left no archive")
        complaints = _run(["dpkg-deb", "-x", str(archives[0]), str(unpacked)], work)
        try:
            yield from read_folder(unpacked / folder.lstrip("/"), wanted)
        except UserError as error:
            raise UserError("; ".join([*complaints, f"in the package, {error}"])) from error


def _run(command: list[str], folder: Path) -> list[str]:
    """Run a command quietly; return its lines of error."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=COMMAND_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return [f"{command[0]} took more than {COMMAND_SECONDS:.0f} s"]
    return [line for line in done.stderr.splitlines() if line.startswith(("E:", "dpkg-deb:"))]
