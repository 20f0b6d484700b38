"""What a person reads while a run goes on and when it is over; readable in a file, too."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from fmnist_lab import provenance
from fmnist_lab.data import FASHION_MNIST

if TYPE_CHECKING:
    import keras

    from fmnist_lab.backend import Device
    from fmnist_lab.config import Config
    from fmnist_lab.data import Dataset
    from fmnist_lab.resume import Answered
    from fmnist_lab.tracking import Run
    from fmnist_lab.training import Epoch


class ToTheEnd(Console):
    """A console that nobody has to listen to: a run outlives the `head` it was piped to."""

    def on_broken_pipe(self) -> None:
        """Say the rest to nobody; rich would end the process."""
        self.quiet = True
        nobody = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nobody, sys.stdout.fileno())
        os.close(nobody)


class Screen:
    """Everything that a job prints, in the order in which it happens."""

    def __init__(self) -> None:
        # A file or a pipe has no width; our lines should not be folded there.
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
        self.console = ToTheEnd(highlight=False, width=width)
        self.shown = ""  # the data set's name

    def heading(
        self,
        config: Config,
        dataset: Dataset,
        device: Device,
        model: keras.Model,
        engine: str | None,
    ) -> None:
        """Say what is about to happen, with what."""
        self.shown = dataset.name
        held_out = len(dataset.validation_images)
        facts = {
            "data": [
                f"{dataset.name}: {len(dataset.train_images):,} training",
                *([f"{held_out:,} validation"] if held_out else []),
                f"{len(dataset.test_images):,} test images, {dataset.source}",
            ],
            "model": [f"{model.name}: {model.count_params():,} parameters"],
            "on": [f"{device.name}, {count(device.threads, 'thread')}"],
        }
        if engine:
            options = " ".join(f"{k}={v}" for k, v in config.model.arguments().items())
            facts["model"] = [
                f"{model.name} {options}".strip(),
                f"{model.count_params():,} parameters",
            ]
            facts["training"] = [
                f"{config.optimizer.target.rpartition('.')[2]} "
                f"learning_rate={config.optimizer.learning_rate:g}",
                f"batches of {config.trainer.batch_size}",
                count(config.trainer.epochs, "epoch"),
                f"seed {config.seed}",
                f"{engine} engine",
            ]
        aligned(self.console, {name: ", ".join(parts) for name, parts in facts.items()})
        self.console.print()

    def training(self, epochs: int, images: int, done: int = 0) -> TrainingDisplay:
        """Return the display of a training loop, a context manager.

        Args:
            epochs: The last epoch's number.
            images: Images an epoch.
            done: Epochs that were finished before.
        """
        return TrainingDisplay(self.console, epochs, images, done)

    def answered(self, earlier: Answered) -> None:
        """Say that a finished run has answered this config already."""
        self.console.print(
            f"Run '{escape(earlier.name)}' has answered this config already; its id is "
            f"{earlier.run_id}."
        )
        self._scores(earlier.metrics)
        self.console.print()
        aligned(self.console, {"see it": f"python -m fmnist_lab.runs ui {earlier.run_id}"})

    def resumed(self, done: int, epochs: int, before: Mapping[str, str]) -> None:
        """Say from where a training goes on.

        Args:
            done: The last finished epoch.
            epochs: The last epoch's number.
            before: What of the trainer decides the last bits and was other then.
        """
        self.console.print(f"Going on after epoch {done} of {epochs}, exactly as it was left.")
        if before:
            self.console.print(
                f"It had {' and '.join(f'trainer.{name}={was}' for name, was in before.items())} "
                "before; with another, its last bits are not those of an undisturbed run.",
                soft_wrap=True,
            )
        self.console.print()

    def interrupted(self, saved: int) -> None:
        """Say what is kept of a training that was stopped, and how to go on.

        Args:
            saved: The last epoch after which the state was saved; 0 if there is none.
        """
        kept = f"{count(saved, 'finished epoch')} and the model's exact state are kept"
        nothing = "no finished epoch's state is kept"
        self.console.print(
            f"\nStopped: {kept if saved else nothing}. To go on from "
            f"{'there' if saved else 'the beginning'}:\n"
            f"  {escape(provenance.command('resume=true'))}",
            soft_wrap=True,
        )

    def stopped(self, epoch: int) -> None:
        """Say that a callback ended the training before its time."""
        self.console.print(
            f"A callback stopped the training after epoch {epoch}; its line above, and all that "
            "follows, is of the model as the callback left it."
        )

    def result(
        self, metrics: Mapping[str, float], history: Sequence[Mapping[str, float]], run: Run
    ) -> None:
        """Print the last screen: the scores, what they mean, and where to go from here."""
        self._scores(metrics)
        if not run.id:
            self.console.print("Nothing was kept (tracking=none).")
            return
        if run.waiting:
            assert run.scratch is not None
            self.console.print(
                f"\nThe store {escape(run.store_name)} could not be reached, so the run waits in "
                f"{escape(str(run.scratch.folder))}. When the store is back:\n"
                "  python -m fmnist_lab.runs sync",
                soft_wrap=True,
            )
            return
        self.console.print(
            f"\nRun '{escape(run.name)}', id {run.id}, is kept in {escape(run.store_name)}.\n"
        )
        # `predict` shows images of that set alone.
        predictable = bool(history) and self.shown == FASHION_MNIST.name
        aligned(self.console, _next_steps(run, predictable))

    def _scores(self, metrics: Mapping[str, float]) -> None:
        table = Table(box=None, pad_edge=False, padding=(0, 4, 0, 0), header_style="bold")
        table.add_column("")
        for part in ("train", "test", "gap"):
            table.add_column(part, justify="right")
        for name in ("accuracy", "loss"):
            table.add_row(
                name,
                f"{metrics[f'{name}/train']:.4f}",
                f"{metrics[f'{name}/test']:.4f}",
                f"{metrics[f'{name}/gap']:+.4f}",
            )
        self.console.print()
        self.console.print(table)
        self.console.print()
        self.console.print(verdict(metrics["accuracy/gap"]))


def _next_steps(run: Run, predictable: bool) -> dict[str, str]:
    """Return what a user may want to do now, and the exact command for it."""
    steps = {"see it": f"python -m fmnist_lab.runs ui {run.id}"}
    if predictable:
        model = f"runs:/{run.id}/model"
        steps["predict"] = f"python -m fmnist_lab.predict --model {model} --index 0 12"
    steps["sweep"] = (
        "python -m fmnist_lab.run -m trainer.epochs=1,5,20 model.hidden_units=32,128,512"
    )
    return steps


class TrainingDisplay:
    """One line an epoch, and on a terminal a bar that fills within it."""

    def __init__(self, console: Console, epochs: int, images: int, done: int = 0) -> None:
        self.console = console
        self.epochs = epochs
        self.done = done
        self.images = images
        self.seconds = 0.0
        self.seen = 0
        self.began = time.perf_counter()
        self.progress = Progress(
            TextColumn("{task.description:>7}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(f"1/{epochs}", total=epochs * images, left="")

    def __enter__(self) -> TrainingDisplay:
        self.console.print(
            f"[dim]{'epoch':>7}{'loss':>9}{'accuracy':>10}{'test accuracy':>15}{'gap':>9}"
            f"{'images/s':>11}{'time left':>12}[/dim]"
        )
        self.began = time.perf_counter()
        self.progress.start()
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self.progress.stop()
        if failure is None and self.seen:
            self.console.print(
                f"\nTraining took {duration(self.seconds)}, {self.seen / self.seconds:,.0f} "
                "images/s, without the evaluations."
            )

    def advance(self, epoch: int, seen: int) -> None:
        """Show how far an epoch has come."""
        done = (epoch - 1) * self.images + seen
        self.progress.update(
            self.task,
            description=f"{epoch}/{self.epochs}",
            completed=done,
            left=f"{duration(self._left(done))} left",
        )

    def finished(self, epoch: Epoch, metrics: Mapping[str, float]) -> None:
        """Print a finished epoch."""
        self.seconds += epoch.seconds
        self.seen += epoch.images
        evaluated = (
            f"{metrics['accuracy/test']:15.4f}{metrics['accuracy/gap']:+9.4f}"
            if "accuracy/test" in metrics
            else " " * 24
        )
        self.console.print(
            f"{f'{epoch.number}/{self.epochs}':>7}{epoch.loss:9.4f}{epoch.accuracy:10.4f}{evaluated}"
            f"{epoch.images / epoch.seconds:11,.0f}"
            f"{duration(self._left(epoch.number * self.images)):>12}"
        )

    def _left(self, done: int) -> float:
        elapsed = time.perf_counter() - self.began
        return elapsed / (done - self.done * self.images) * (self.epochs * self.images - done)


def aligned(console: Console, rows: Mapping[str, str]) -> None:
    """Print values under each other, each after its name."""
    width = max(map(len, rows))
    for name, value in rows.items():
        console.print(f"[dim]{name:<{width}}[/dim]  {escape(value)}", soft_wrap=True)


def count(number: int, noun: str) -> str:
    """Return "1 thread" or "2 threads"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a duration as a person would say it: 3.2 s, 4 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // (24 * 60)} days"


def verdict(gap: float) -> str:
    """Say in plain words what an accuracy gap means."""
    if gap <= 0:
        return "It does no worse on new images than on those it has seen: no overfitting."
    return (
        f"In 100 images it gets {100 * gap:.1f} more right among those it has seen than among new "
        "ones: it overfits by that much."
    )
