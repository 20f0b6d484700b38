"""The memory that jobs of differing width leave behind in one process, and how soon they begin."""

from __future__ import annotations

import contextlib
import gc
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from fmnist_lab.benchmark.results import keep, require
from fmnist_lab.config.schema import Engine
from fmnist_lab.system import process
from fmnist_lab.system.terminal import aligned


def memory(
    *,
    jobs: int = 30,
    engine: Engine = "auto",
    output: Path | None = None,
) -> None:
    """Run default jobs of differing width, twice each, in this process; measure its memory.

    Each is short (one epoch of 6,400 images, in full batches as those of all images are), because
    only how soon it begins and what it leaves behind is looked at. Linux only.

    Args:
        jobs: How many widths.
        engine: The jobs' trainer.engine.
        output: Folder for memory.csv.
    """
    require("--jobs", jobs, 6)
    # As for `python -m fmnist_lab.run`.
    gc.set_threshold(*process.GC_THRESHOLDS)
    console = Console(highlight=False)
    console.print("Seconds from a job's beginning to that of its first epoch\n")
    console.print("width  first job  another seed     MB then")
    rows = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for number in range(jobs):
            width = 32 + 8 * number
            new, known = _job(width, 0, engine), _job(width, 1, engine)
            megabytes = _resident()
            seconds = {"seconds_before_new": new, "seconds_before_known": known}
            rows.append({"width": width, **seconds, "megabytes": megabytes})
            console.print(f"{width:5}  {new:9.2f}  {known:12.2f}  {megabytes:10,.0f}")
    grown = rows[-1]["megabytes"] - rows[4]["megabytes"]
    new, known = (
        statistics.median(row[f"seconds_before_{job}"] for row in rows[1:])
        for job in ("new", "known")
    )
    console.print("")
    summary = {
        "the first of all, which imports TensorFlow": f"{rows[0]['seconds_before_new']:.2f} s",
        "of a new width, median": f"{new:.2f} s",
        "of a known width, median": f"{known:.2f} s",
        f"memory grown from the 5th width to the {jobs}th": f"{grown:.0f} MB",
    }
    aligned(console, summary)
    keep(output, "memory", rows)


# When each epoch has begun, by `time.perf_counter`.
_moments: list[float] = []


def beginning() -> Any:
    """Return a Keras callback that notes the moment of each epoch's beginning."""
    # Here, because importing Keras is a part of the first job.
    import keras

    return keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda *_: _moments.append(time.perf_counter())
    )


def _job(width: int, seed: int, engine: str) -> float:
    """Run a job here; return the seconds until its first epoch began."""
    from fmnist_lab.run import main

    sys.argv[1:] = [
        *(f"model.hidden_units={width}", f"seed={seed}", "trainer.epochs=1"),
        *("data.train_limit=6400", f"trainer.engine={engine}"),
        "+callbacks.beginning._target_=fmnist_lab.benchmark.memory.beginning",
    ]
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        main()
    return _moments[-1] - began


def _resident() -> float:
    """Return this process' resident memory in megabytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * 4096 / 1e6
