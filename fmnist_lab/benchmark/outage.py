"""The time that a training loses when its tracking server goes away."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fmnist_lab import tracking
from fmnist_lab.benchmark.results import RUN, check_ended, keep, require
from fmnist_lab.errors import UserError
from fmnist_lab.runs import ui

UNDISTURBED, BACK, GONE = "undisturbed", "away for a third of it", "away from a third on"
CASES = (UNDISTURBED, BACK, GONE)
LEAST_URGENT = 19


def outage(*, rounds: int = 2, epochs: int = 30, output: Path | None = None) -> None:
    """Time trainings whose tracking server is stopped meanwhile, and check that all is kept.

    The time counts from the end of the first epoch to the end of the last. `runs sync` sends what
    the server has missed. The server has the lowest priority on the processor.

    Args:
        rounds: How often each case is timed, in turn.
        epochs: Epochs of each training, of the default job otherwise.
        output: Folder for outage.csv.
    """
    require("--epochs", epochs, 3)
    console = Console(highlight=False)
    timed: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        for case in CASES:
            with tempfile.TemporaryDirectory() as folder:
                timed[case].append(_training(case, epochs, Path(folder)))
        console.print(f"round {number + 1} of {rounds}", style="dim")
    table = Table("the server is", "seconds, median", "of undisturbed", box=None)
    for case in CASES:
        pairs = zip(timed[case], timed[UNDISTURBED], strict=True)
        ratio = statistics.median(mine / usual for mine, usual in pairs)
        table.add_row(case, f"{statistics.median(timed[case]):.2f}", f"{ratio:.2f}")
    console.print(table)
    console.print("Every run is in the store, with its model and every epoch once.")
    rows = [
        {"case": case, "round": number, "seconds": round(seconds, 3)}
        for case in CASES
        for number, seconds in enumerate(timed[case], 1)
    ]
    keep(output, "outage", rows)


def _training(case: str, epochs: int, folder: Path) -> float:
    """Train once, with a server of its own; return the seconds of the epochs after the first."""
    place = tracking.Store.locate(f"sqlite:///{folder}/server.db")
    place.open(tracking.DEFAULT_EXPERIMENT)
    port = ui.free_port()
    uri = f"http://{ui.HOST}:{port}"
    screen = folder / "screen.txt"
    words = [f"tracking.uri={uri}", f"trainer.epochs={epochs}"]
    with screen.open("w") as out, _served(place, port) as first:
        run = subprocess.Popen([*RUN, *words], cwd=folder, stdout=out)
        if case != UNDISTURBED:
            _wait_for_epoch(run, screen, epochs // 3, epochs)
            first.terminate()
            first.wait()
        if case == BACK:
            _wait_for_epoch(run, screen, 2 * epochs // 3, epochs)
            with _served(place, port):
                run.wait()
        run.wait()
    check_ended(run)
    if case == GONE:
        with _served(place, port):
            sync = [sys.executable, "-m", "fmnist_lab.runs", "sync", "--store", uri]
            subprocess.run(sync, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return _seconds(place, epochs)


@contextmanager
def _served(place: tracking.Store, port: int) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.TemporaryFile() as notes:
        server = ui.serve(place, port, notes.fileno())
        # A server has a machine of its own: here, its start alone would take the training's cores
        # for seconds.
        os.setpriority(os.PRIO_PROCESS, server.pid, LEAST_URGENT)
        with ui.answering(server, port, notes.fileno()):
            yield server


def _wait_for_epoch(run: subprocess.Popen[bytes], screen: Path, epoch: int, epochs: int) -> None:
    while f"{epoch}/{epochs} " not in screen.read_text(encoding="utf-8"):
        if run.poll() is not None:
            raise UserError(f"the training ended before epoch {epoch}")
        time.sleep(0.05)


def _seconds(place: tracking.Store, epochs: int) -> float:
    """Return the seconds from the first epoch to the last of a store's only run, if it is whole."""
    with tracking.asking(place) as client:
        found = client.get_experiment_by_name(tracking.DEFAULT_EXPERIMENT)
        (run,) = client.search_runs([found.experiment_id])
        models = client.search_logged_models([found.experiment_id])
        points = client.get_metric_history(run.info.run_id, "accuracy/test")
    steps = sorted(point.step for point in points)
    if run.info.status != "FINISHED" or len(models) != 1 or steps != list(range(1, epochs + 1)):
        raise UserError(f"run {run.info.run_id} is not whole: {run.info.status}, epochs {steps}")
    times = [float(point.timestamp) for point in points]
    return (max(times) - min(times)) / 1000
