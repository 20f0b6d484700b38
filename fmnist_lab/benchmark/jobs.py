"""Seconds and memory of whole processes: the default job against the tutorial as a script."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from fmnist_lab.benchmark.results import BENCHMARK, RUN, check_ended, keep, require, with_store

# SQLite's own waiting, in C, is part of both.
UNSYNCED = """
import os, runpy
os.fsync = lambda _: None
runpy.run_module("fmnist_lab.run", run_name="__main__", alter_sys=True)
"""
DEFAULT, UNWAITED, SCRIPT = (
    "default job",
    "default job, disk not waited for",
    "tutorial as a script",
)
COMMANDS: dict[str, tuple[str, ...]] = {
    DEFAULT: RUN,
    UNWAITED: (sys.executable, "-c", UNSYNCED),
    "default job, tracking=none": (*RUN, "tracking=none"),
    SCRIPT: (*BENCHMARK, "tutorial"),
}


def job(*, rounds: int = 3, output: Path | None = None) -> None:
    """Time whole processes: the default job, tracked and not, against the tutorial as a script.

    The default job is also done without waiting until its files are on disk, for the price of that.

    Args:
        rounds: How many runs of each count, after one that does not.
        output: Folder for jobs.csv.
    """
    require("--rounds", rounds, 1)
    with tempfile.TemporaryDirectory() as folder:
        rows: list[dict[str, Any]] = [
            {"command": name, "round": number, "seconds": seconds, "peak_megabytes": megabytes}
            for number in range(rounds + 1)
            for name, command in COMMANDS.items()
            for seconds, megabytes in [_run_process(command, Path(folder))]
            if number
        ]
    timed, memory = (
        {name: [row[key] for row in rows if row["command"] == name] for name in COMMANDS}
        for key in ("seconds", "peak_megabytes")
    )
    table = Table("", "seconds", "ratio", "peak MB", "ratio", box=None, pad_edge=False)
    for name in COMMANDS:
        table.add_row(
            name,
            f"{median(timed[name]):.1f} ({min(timed[name]):.1f} to {max(timed[name]):.1f})",
            f"{median(timed[name]) / median(timed[SCRIPT]):.2f}",
            f"{median(memory[name]):,.0f}",
            f"{median(memory[name]) / median(memory[SCRIPT]):.2f}",
        )
    console = Console(highlight=False)
    console.print(table)
    prices = [one - other for one, other in zip(timed[DEFAULT], timed[UNWAITED], strict=True)]
    console.print(
        f"Until its files are on disk, a run waits {median(prices):.2f} s "
        f"({min(prices):.2f} to {max(prices):.2f}, {len(prices)} pairs)."
    )
    keep(output, "jobs", sorted(rows, key=lambda row: list(COMMANDS).index(row["command"])))


def _run_process(command: tuple[str, ...], folder: Path) -> tuple[float, float]:
    """Run a command to its end; return its wall seconds and its peak memory in megabytes."""
    quiet = subprocess.DEVNULL
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, env=with_store(folder), stdout=quiet, stderr=quiet
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    check_ended(process)
    unit = 1e6 if platform.system() == "Darwin" else 1e3
    return seconds, usage.ru_maxrss / unit
