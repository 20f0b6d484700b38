"""What the door `run` does, as functions: one run, or a sweep of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fmnist_lab.api.collection import Runs
from fmnist_lab.api.record import Run
from fmnist_lab.errors import UserError, raised

if TYPE_CHECKING:
    from fmnist_lab.data import Dataset
    from fmnist_lab.jobs.outcome import Outcome


def load_data(
    dir: str | Path | None = None,
    *,
    train_limit: int | None = None,
    test_limit: int | None = None,
    validation_fraction: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """Load Fashion-MNIST, from the first place that has it, and check it.

    `fmnist_lab.data.load` has more options.

    Args:
        dir: Folder with the four files; None: the cache, Keras' folder, a package, or a download.
        train_limit: Keep the first so many training images; None keeps all 60,000.
        test_limit: Keep the first so many test images; None keeps all 10,000.
        validation_fraction: Share of the training images that is held out, in [0, 1).
        seed: Chooses which images are held out.

    Returns:
        Images uint8 (n, 28, 28), labels uint8 (n,), and the names of the classes.

    Raises:
        UserError: No place has the files, or a limit or the fraction is out of range.
    """
    from fmnist_lab import data

    with raised():
        return data.load(
            dir,
            train_limit=train_limit,
            test_limit=test_limit,
            validation_fraction=validation_fraction,
            seed=seed,
        )


def run(*overrides: str, seed: int | None = None) -> Run:
    """Train a model and keep everything about it, as `python -m fmnist_lab.run` does.

    The screen shows a line per epoch. The process is left as it was found.

    Args:
        overrides: The words of the command line, such as "model.hidden_units=256".
        seed: Decides the initial weights and the order of the images; None: as configured, 0.

    Returns:
        The run, with its model in memory. With "resume=true", a finished run of the same config.

    Raises:
        UserError: A word is wrong, or the run cannot be done or kept; the message is the one that
            the command prints.
    """
    from fmnist_lab.run import call
    from fmnist_lab.sweep.task import Task

    words = [*_words(overrides), *([] if seed is None else [f"seed={seed}"])]
    if {"-m", "--multirun"}.intersection(words):
        raise UserError("received -m, expected overrides of one run; lab.sweep makes many")
    found: list[Outcome] = []
    try:
        call(words, Task(found.append))
    except SystemExit as end:
        if end.code:
            raise UserError(f"received {' '.join(words)}, which has ended with {end.code}") from end
    if not found:
        raise UserError(
            f"received {' '.join(words)}, which makes no run; it is for the command line, python "
            "-m fmnist_lab.run"
        )
    return Run.of_outcome(found[-1])


def sweep(*overrides: str) -> Runs:
    """Make a run of each combination of values, as `python -m fmnist_lab.run -m` does.

    Jobs are done one after another in this process; with "hydra/launcher=local_cores" side by side
    in processes of their own, which is faster.

    Args:
        overrides: The words of the command line, such as "trainer.epochs=1,5,10", "seed=range(5)".
            "resume=true" goes on with a sweep that was interrupted.

    Returns:
        The runs, in the order of the jobs. Of jobs that have failed, a warning tells, and their
        runs are FAILED with the reason as `failure` in `frame()`.

    Raises:
        UserError: A word is wrong, or the sweep cannot be done or kept.
    """
    from fmnist_lab.run import call
    from fmnist_lab.sweep.task import Task

    if "tracking=none" in overrides:
        raise UserError(
            "tracking=none: received it for lab.sweep, whose results are read from a store; leave "
            "it out, or name a store of its own with tracking.uri=sqlite:////tmp/mlflow.db"
        )
    task = Task()
    given = _words(overrides)
    words = given if {"-m", "--multirun"}.intersection(given) else ["-m", *given]
    try:
        call(words, task)
    except SystemExit as end:
        # A job has failed, or the sweep: its runs say why.
        if end.code and (task.sweep is None or task.sweep.run is None):
            raise UserError(f"received {' '.join(words)}, which has ended with {end.code}") from end
    if task.sweep is None or task.sweep.run is None:
        raise UserError(
            f"received {' '.join(words)}, which makes no sweep in a store; it is for the command "
            "line, python -m fmnist_lab.run"
        )
    parent = task.sweep.run
    found = Runs.of_sweep(parent.store, parent.experiment, parent.id)
    bad = found.frame("name", "status", "failure")
    bad = bad[~bad["status"].isin(["FINISHED", "PAUSED"])]
    if len(bad):
        first = bad.iloc[0]
        why = " ".join(str(first["failure"]).split())
        warnings.warn(
            f"{len(bad)} of {len(found)} jobs of the sweep have not finished; the first is "
            f"'{first['name']}', {first['status']}: {why}",
            stacklevel=2,
        )
    return found


def _words(overrides: Sequence[object]) -> list[str]:
    """Return the words of a command line.

    Raises:
        UserError: One of them is no text.
    """
    for word in overrides:
        if not isinstance(word, str):
            raise UserError(
                f"received {word!r}, expected words of the command line, such as "
                '"trainer.epochs=3", "seed=1"'
            )
    return [str(word) for word in overrides]
