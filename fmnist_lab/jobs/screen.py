"""The lines that a person reads during a run and after it; they are readable in a file, too."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from fmnist_lab.config import naming
from fmnist_lab.config.suggestion import sweep_around
from fmnist_lab.data.dataset import FASHION_MNIST
from fmnist_lab.jobs.verdict import on_confidence, verdict
from fmnist_lab.system import provenance
from fmnist_lab.system.terminal import aligned, printout
from fmnist_lab.texts import counted, duration

if TYPE_CHECKING:
    import keras

    from fmnist_lab.config.schema import Config
    from fmnist_lab.data.dataset import Dataset
    from fmnist_lab.tracking import Run
    from fmnist_lab.training.loop import Epoch
    from fmnist_lab.training.runtime import Device


# The columns of the last table. Those of true labels are there if labels were made wrong.
SCORES = {
    "train": "train",
    "train_clean": "train,\ntrue labels",
    "validation": "validation",
    "test": "test",
    "gap": "gap",
    "gap_clean": "gap,\ntrue labels",
}


class Screen:
    """Everything that a job prints, in the order in which it happens.

    Args:
        dataset: The data that the job is about.
    """

    def __init__(self, dataset: Dataset) -> None:
        # A file or a pipe has no width, and lines should not be folded there.
        self.console = printout(piped=120)
        self.dataset = dataset
        self.sweep = ""  # a command

    def heading(self, config: Config, device: Device, model: keras.Model, engine: str = "") -> None:
        """Show the data, the model, the machine, and how the model is to be trained.

        Args:
            config: The job's config.
            device: The device that the job runs on.
            model: The model that is to be trained or evaluated.
            engine: The engine that will train it; "" if it is only evaluated.
        """
        self.sweep = sweep_around(config)
        dataset, held_out = self.dataset, len(self.dataset.validation_images)
        validation = f"{held_out:,} validation, " if held_out else ""
        size = f"{model.count_params():,} parameters"
        facts = {
            "data": f"{dataset.name}: {len(dataset.train_images):,} training, {validation}"
            f"{len(dataset.test_images):,} test images, {dataset.source}",
            "model": f"{model.name}: {size}",
            "on": f"{device.name}, {counted(device.threads, 'thread')}",
        }
        if wrong := dataset.wrong_labels:
            count = len(dataset.train_labels)
            facts["labels"] = f"{wrong:,} of {count:,} training labels were made wrong" + (
                ", and validation labels too" if dataset.clean_validation_labels is not None else ""
            )
        if engine:
            options = [f"{name}={value}" for name, value in config.model.arguments().items()]
            facts["model"] = f"{' '.join([model.name, *options])}, {size}"
            facts["training"] = f"{naming.training(config)}, {engine} engine"
        aligned(self.console, facts)
        self.console.print()

    def remark(self, text: str) -> None:
        """Say something that a person should know, in a sentence or two."""
        self.console.print(escape(text), soft_wrap=True)

    def training(self, epochs: int, images: int, done: int = 0) -> TrainingDisplay:
        """Return the display of a training loop, a context manager.

        Args:
            epochs: The last epoch's number.
            images: Images per epoch.
            done: Epochs that were finished before.
        """
        validated = len(self.dataset.validation_images) > 0
        noisy = self.dataset.wrong_labels > 0
        return TrainingDisplay(self.console, epochs, images, done, validated, noisy)

    def answered(self, name: str, run_id: str, metrics: Mapping[str, float], see: str) -> None:
        """Say that a finished run has answered this config already.

        Args:
            name: The run's name.
            run_id: The run's id.
            metrics: The run's last metrics.
            see: The command that shows the run.
        """
        self.remark(f"Run '{name}' has answered this config already; its id is {run_id}.")
        self._scores(metrics)
        self.console.print()
        aligned(self.console, {"see it": see})

    def resumed(self, done: int, epochs: int, before: Mapping[str, Sequence[str]]) -> None:
        """Say from which epoch a training goes on.

        Args:
            done: The last finished epoch.
            epochs: The last epoch's number.
            before: The settings of the trainer that affect the last bits and have changed, each
                with its earlier values.
        """
        self.remark(f"Going on after epoch {done} of {epochs}, exactly as it was left.")
        if before:
            had = [f"trainer.{name}={', then '.join(values)}" for name, values in before.items()]
            self.remark(
                f"It had {' and '.join(had)} before; with another, its last bits are not those of "
                "an undisturbed run."
            )
        self.console.print()

    def interrupted(self, saved: int) -> None:
        """Say how much is kept of a training that was stopped, and how to go on.

        Args:
            saved: The last epoch after which the state was saved; 0 if there is none.
        """
        kept, place = "no finished epoch's state is kept", "the beginning"
        if saved:
            kept = f"{counted(saved, 'finished epoch')} and the model's exact state are kept"
            place = "there"
        again = provenance.command("resume=true")
        self.remark(f"\nStopped: {kept}. To go on from {place}:\n  {again}")

    def paused(self, epoch: int, epochs: int, run: Run) -> None:
        """Say that a run is paused, and which commands may follow.

        Args:
            epoch: The last finished epoch.
            epochs: The last epoch's number.
            run: The run, which is closed.
        """
        self.remark(
            f"\nPaused after epoch {epoch} of {epochs}: the run is PAUSED, and the training's "
            "exact state is kept."
        )
        self._kept(run, {"go on": provenance.command("resume=true", without="pause_after")})

    def ended(self, epoch: int, stopped: bool, chosen: str) -> None:
        """Say what callbacks did at the end of the training.

        Args:
            epoch: The last epoch.
            stopped: Whether a callback ended the training with that epoch, before its time.
            chosen: The weights that a callback has put in place, in words; "" if none has.
        """
        said = f"A callback stopped the training after epoch {epoch}" if stopped else ""
        if chosen:
            said = f"{said} and" if said else "At the end of the training a callback"
            said += f" put back {chosen}; all that follows is of the model with those"
        if said:
            self.console.print(f"{said}.")

    def result(self, metrics: Mapping[str, float], run: Run, *, trained: bool = False) -> None:
        """Print the last screen: the scores, their meaning, and the commands that may follow.

        Args:
            metrics: The model's last metrics.
            run: The run, which is closed.
            trained: Whether the run has logged a model.
        """
        self._scores(metrics)
        if run.store is None or not run.id:
            self.console.print("Nothing was kept (tracking=none).")
            return
        steps = {}
        # `predict` shows images of that set alone.
        if trained and self.dataset.name == FASHION_MNIST.name:
            model = f"runs:/{run.id}/model"
            steps["predict"] = run.store.command("predict", "--model", model, "--index", "0", "12")
        if self.sweep:
            steps["sweep"] = self.sweep
        self._kept(run, steps)

    def _kept(self, run: Run, steps: Mapping[str, str]) -> None:
        """Say where a run is kept, and what may follow.

        Args:
            run: The run, which is closed.
            steps: Commands beside the one that shows the run, by the words for them.
        """
        assert run.store is not None
        if run.waiting:
            assert run.journal is not None
            self.remark(
                f"\nThe store {run.store.place} has not taken all of the run: {run.outage}. The "
                f"rest waits in {run.journal.folder}; when the store is back:\n"
                f"  {run.store.command('runs', 'sync')}"
            )
        else:
            self.console.print(
                f"\nRun '{escape(run.name)}', id {run.id}, is kept in {escape(run.store.place)}.\n"
            )
            aligned(self.console, {"see it": run.store.command("runs", "ui", run.id), **steps})

    def _scores(self, metrics: Mapping[str, float]) -> None:
        between = 2 if "accuracy/gap_clean" in metrics else 4
        table = Table(box=None, pad_edge=False, padding=(0, between, 0, 0), header_style="bold")
        table.add_column("")
        parts = {part: title for part, title in SCORES.items() if f"loss/{part}" in metrics}
        for title in parts.values():
            table.add_column(title, justify="right")
        for name in ("accuracy", "loss"):
            signs = ("+" if part.startswith("gap") else "" for part in parts)
            figures = [
                f"{metrics[f'{name}/{part}']:{sign}.4f}"
                for part, sign in zip(parts, signs, strict=True)
            ]
            table.add_row(name, *figures)
        self.console.print()
        self.console.print(table)
        self.console.print()
        self.console.print(verdict(metrics, self.dataset))
        if "calibration/temperature" in metrics:
            self.console.print(f"\n{on_confidence(metrics, len(self.dataset.validation_labels))}")


class TrainingDisplay:
    """One line per epoch, and on a terminal a bar that fills within it.

    Args:
        console: Where to print.
        epochs: The last epoch's number.
        images: Images per epoch.
        done: Epochs that were finished before.
        validated: Whether there are validation images.
        noisy: Whether training labels were made wrong.
    """

    def __init__(
        self,
        console: Console,
        epochs: int,
        images: int,
        done: int = 0,
        validated: bool = False,
        noisy: bool = False,
    ) -> None:
        self.console, self.epochs, self.images, self.done = console, epochs, images, done
        self.seconds, self.seen, self.began = 0.0, 0, time.perf_counter()
        # The measurements of the model after an epoch, each with the title and the width of its
        # column. A line has at most 78 characters.
        self.measured = {"accuracy/test": ("test accuracy", 15), "accuracy/gap": ("gap", 9)}
        if validated:
            self.measured["accuracy/test"] = ("test", 9)
            self.measured = {"accuracy/validation": ("validation", 12), **self.measured}
        elif noisy:
            self.measured["accuracy/test"] = ("test", 9)
            self.measured["mislabelled/memorised"] = ("memorised", 11)
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
        titles = "".join(title.rjust(width) for title, width in self.measured.values())
        self.console.print(
            f"[dim]{'epoch':>7}{'loss':>9}{'accuracy':>10}{titles}{'images/s':>11}"
            f"{'time left':>12}[/dim]"
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
        """Show how far an epoch has come.

        Args:
            epoch: The epoch's number, from 1.
            seen: Its images that have been seen.
        """
        done = (epoch - 1) * self.images + seen
        left = f"{duration(self._left(done))} left"
        name = f"{epoch}/{self.epochs}"
        self.progress.update(self.task, description=name, completed=done, left=left)

    def finished(self, epoch: Epoch, metrics: Mapping[str, float]) -> None:
        """Print a finished epoch.

        The last one gets two lines where a callback has put other weights in place: one with the
        running means of that epoch, one with the measurements of the chosen epoch's weights.

        Args:
            epoch: The epoch, with its running means and its time.
            metrics: The metrics of the model after it.
        """
        self.seconds += epoch.seconds
        self.seen += epoch.images
        shown = metrics
        if epoch.chosen:
            own = epoch.validation
            shown = {"accuracy/validation": own.accuracy} if own else {}
        self.console.print(
            f"{f'{epoch.number}/{self.epochs}':>7}{epoch.loss:9.4f}{epoch.accuracy:10.4f}"
            f"{self._columns(shown)}{epoch.images / epoch.seconds:11,.0f}"
            f"{duration(self._left(epoch.number * self.images)):>12}"
        )
        if epoch.chosen:
            number = f"{epoch.chosen.epoch}/{self.epochs}" if epoch.chosen.epoch else "then"
            self.console.print(f"{number:>7}{'':19}{self._columns(metrics)}  chosen")

    def _columns(self, metrics: Mapping[str, float]) -> str:
        """Return the columns of the measurements, blank where an epoch was not evaluated."""
        columns = ""
        for name, (title, width) in self.measured.items():
            sign = "+" if title == "gap" else ""
            figure = f"{metrics[name]:{sign}.4f}" if name in metrics else ""
            columns += figure.rjust(width)
        return columns

    def _left(self, done: int) -> float:
        """Return the seconds that are left after so many images, those of all epochs."""
        elapsed = time.perf_counter() - self.began
        return elapsed / (done - self.done * self.images) * (self.epochs * self.images - done)
