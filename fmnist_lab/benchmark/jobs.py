"""Seconds and memory of whole processes: the default job against the tutorial as a script."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fmnist_lab.benchmark.results import write_csv
from fmnist_lab.errors import UserError, reported


def job(*, rounds: int = 3, output: Path | None = None) -> None:
    """Time whole processes: the default job, tracked and not, against the tutorial as a script.

    Args:
        rounds: How many runs of each count, after one that does not.
        output: Folder for jobs.csv.
    """
    with reported():
        module = [sys.executable, "-m"]
        commands = {
            "default job": [*module, "fmnist_lab.run"],
            "default job, tracking=none": [*module, "fmnist_lab.run", "tracking=none"],
            "tutorial as a script": [*module, "fmnist_lab.benchmark", "tutorial"],
        }
        timed: dict[str, list[float]] = defaultdict(list)
        memory: dict[str, list[float]] = defaultdict(list)
        with tempfile.TemporaryDirectory() as folder:
            for number in range(rounds + 1):
                for name, command in commands.items():
                    seconds, megabytes = _run_process(command, folder)
                    if number:
                        timed[name].append(seconds)
                        memory[name].append(megabytes)
        table = Table("", "seconds", "ratio", "peak MB", "ratio", box=None, pad_edge=False)
        rows = []
        base_seconds = statistics.median(timed["tutorial as a script"])
        base_memory = statistics.median(memory["tutorial as a script"])
        for name in commands:
            seconds, megabytes = statistics.median(timed[name]), statistics.median(memory[name])
            table.add_row(
                name,
                f"{seconds:.1f} ({min(timed[name]):.1f} to {max(timed[name]):.1f})",
                f"{seconds / base_seconds:.2f}",
                f"{megabytes:,.0f}",
                f"{megabytes / base_memory:.2f}",
            )
            rows += [
                {"command": name, "round": i, "seconds": s, "peak_megabytes": m}
                for i, (s, m) in enumerate(zip(timed[name], memory[name], strict=True), 1)
            ]
        Console(highlight=False).print(table)
        if output:
            write_csv(output / "jobs.csv", rows)


def _run_process(command: list[str], folder: str) -> tuple[float, float]:
    """Run a command to its end; return its wall seconds and its peak memory in megabytes."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise UserError(f"{' '.join(command)} ended with status {status}")
    unit = 1e6 if platform.system() == "Darwin" else 1e3
    return seconds, usage.ru_maxrss / unit
