"""What jobs of differing width leave behind in one process, and what a known one saves."""

from __future__ import annotations

import contextlib
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from fmnist_lab.benchmark.results import write_csv
from fmnist_lab.config import Engine
from fmnist_lab.errors import UserError, reported


def memory(
    *,
    jobs: int = 30,
    engine: Engine = "auto",
    output: Path | None = None,
) -> None:
    """Run default jobs of differing width, twice each, in this process; measure its memory.

    Each is short (one epoch of 6,400 images, in full batches as those of all images are), because
    only what it leaves behind is looked at.
    Linux only.

    Args:
        jobs: How many widths.
        engine: The jobs' trainer.engine.
        output: Folder for memory.csv.
    """
    with reported():
        if jobs < 6:
            raise UserError(f"--jobs: received {jobs}, expected a whole number, 6 or more")
        console = Console(highlight=False)
        rows = []
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            for number in range(jobs):
                width = 32 + 8 * number
                first, second = _job(width, 0, engine), _job(width, 1, engine)
                megabytes = _resident()
                rows.append(
                    {"width": width, "first": first, "second": second, "megabytes": megabytes}
                )
                console.print(
                    f"width {width}: {first:.2f} s, again with another seed {second:.2f} s, "
                    f"then {megabytes:.0f} MB",
                    style="dim",
                )
        grown = rows[-1]["megabytes"] - rows[4]["megabytes"]
        saved = statistics.median(row["first"] - row["second"] for row in rows[1:])
        console.print(f"From the 5th width to the {jobs}th, memory grew by {grown:.0f} MB.")
        console.print(f"The second job of a width took {saved:.2f} s less than the first (median).")
        if output:
            write_csv(output / "memory.csv", rows)


def _job(width: int, seed: int, engine: str) -> float:
    """Run a job here; return its seconds."""
    from fmnist_lab import run

    sys.argv[1:] = [
        *(f"model.hidden_units={width}", f"seed={seed}", "trainer.epochs=1"),
        *("data.train_limit=6400", f"trainer.engine={engine}"),
    ]
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        run.main()
    return time.perf_counter() - began


def _resident() -> float:
    """Return this process' resident memory in megabytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6
