"""Seconds of a whole sweep: ours side by side on all cores, against `fit` job after job."""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fmnist_lab.benchmark.results import (
    BENCHMARK,
    RUN,
    check_ended,
    keep,
    require,
    with_store,
)

SAMPLED_EPOCHS = (1, 3)


def sweep(
    *,
    epochs: Sequence[int] = (1, 5, 10, 20),
    widths: Sequence[int] = (32, 128, 512),
    seeds: int = 5,
    output: Path | None = None,
) -> None:
    """Time a sweep over epochs, widths and seeds against the same jobs with fit and MLflow.

    Ours is one command with hydra/launcher=local_cores, figures and report included. The others
    are estimated: jobs of 1 and 3 epochs of each width, with stock fit, metrics and
    mlflow.tensorflow.log_model without pinned requirements, give the seconds of an epoch and of the
    rest; they are timed once before and once after our sweep, in one warm process each.

    Args:
        epochs: Numbers of epochs to sweep over.
        widths: Numbers of hidden units.
        seeds: How many seeds, from 0.
        output: Folder for sweep.csv.
    """
    require("--seeds", seeds, 1)
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        sampled = _sample(widths, Path(folder), "before", console)
        jobs = len(epochs) * len(widths) * seeds
        ours = _ours(epochs, widths, seeds, Path(folder))
        console.print(f"ours: {jobs} jobs in {ours:.1f} s")
        sampled += _sample(widths, Path(folder), "after", console)
    theirs = seeds * sum(_estimate(sampled, width, number) for width in widths for number in epochs)
    console.print(f"fit: the same {jobs} jobs in {theirs:.0f} s, estimated from those above")
    console.print(f"ours takes 1/{theirs / ours:.1f} of the time")
    rows: list[dict[str, Any]] = [
        {"what": "fit job", "width": width, "epochs": number, "seconds": seconds}
        for width, number, seconds in sampled
    ]
    rows.append({"what": f"fit, {jobs} jobs, estimated", "seconds": theirs})
    rows.append({"what": f"ours, {jobs} jobs", "seconds": ours})
    keep(output, "sweep", rows)


def _sample(
    widths: Sequence[int], folder: Path, when: str, console: Console
) -> list[tuple[int, int, float]]:
    jobs = [(width, number) for width in widths for number in SAMPLED_EPOCHS]
    # The first pays for what a process does once.
    process = subprocess.run(
        [*BENCHMARK, "logged-fit", json.dumps([jobs[0], *jobs])],
        cwd=folder,
        env=with_store(folder, "fit"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    check_ended(process)
    seconds = json.loads(process.stdout.splitlines()[-1])[1:]
    for (width, number), each in zip(jobs, seconds, strict=True):
        console.print(f"fit, {when}: width {width}, epochs {number}: {each:.1f} s", style="dim")
    return [(*job, each) for job, each in zip(jobs, seconds, strict=True)]


def _ours(epochs: Sequence[int], widths: Sequence[int], seeds: int, folder: Path) -> float:
    command = [
        *(*RUN, "-m", "hydra/launcher=local_cores"),
        f"trainer.epochs={','.join(map(str, epochs))}",
        f"model.hidden_units={','.join(map(str, widths))}",
        f"seed={','.join(map(str, range(seeds)))}",
    ]
    began = time.perf_counter()
    process = subprocess.run(command, cwd=folder, env=with_store(folder), stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    check_ended(process)
    return seconds


def _estimate(sampled: Sequence[tuple[int, int, float]], width: int, epochs: int) -> float:
    """Return the seconds of a job: a straight line through the two sampled ones of its width."""
    timed = defaultdict(list)
    for each, number, seconds in sampled:
        if each == width:
            timed[number].append(seconds)
    few, many = (statistics.median(timed[number]) for number in SAMPLED_EPOCHS)
    an_epoch = (many - few) / (SAMPLED_EPOCHS[1] - SAMPLED_EPOCHS[0])
    return few + (epochs - SAMPLED_EPOCHS[0]) * an_epoch
