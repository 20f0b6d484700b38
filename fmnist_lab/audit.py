"""The door to a data set itself: looks for near duplicates and for labels that are wrong."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from cyclopts import App, Parameter
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from fmnist_lab import data
from fmnist_lab.config.overrides import quoted
from fmnist_lab.data import idx
from fmnist_lab.errors import UserError, reported
from fmnist_lab.system import process, provenance
from fmnist_lab.system.terminal import aligned, printout
from fmnist_lab.texts import duration
from fmnist_lab.training import runtime

if TYPE_CHECKING:
    import keras
    from rich.console import Console

    from fmnist_lab.data import Dataset
    from fmnist_lab.evaluation.label_errors import LabelErrors
    from fmnist_lab.evaluation.neighbours import Pairs
    from fmnist_lab.evaluation.neighbours import Progress as Report

app = App(
    name="python -m fmnist_lab.audit",
    help="Look at a data set itself: near duplicates within and between its training and test "
    "images, and labels that are probably wrong.",
    version_flags=(),
    default_parameter=Parameter(negative=""),
)
CLOSER_THAN, CORRELATION, LESS_LIKELY_THAN = 1.5, 0.995, 0.01
# The cross-validated models: a perceptron is as good at finding planted errors as two convolutions
# that take thirty times as long (docs/audit.md).
HIDDEN_UNITS, EPOCHS, BATCH_SIZE = 256, 6, 64
LEAST_STEPS = 300  # of a model's training, which is longer for few images
USUAL_FILES = (
    *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
MOST_CLASSES = 256  # that labels of one byte can have
Names = Parameter(consume_multiple=True, show_default=False)


@app.default
def audit(
    *,
    data_dir: Path | None = None,
    class_names: Annotated[tuple[str, ...], Names] = (),
    files: Annotated[tuple[str, str, str, str], Names] = USUAL_FILES,
    output: Path = Path("audit"),
    overwrite: Annotated[bool, Parameter(show_default=False)] = False,
    closer_than: float = CLOSER_THAN,
    correlation: float = CORRELATION,
    less_likely_than: float = LESS_LIKELY_THAN,
    folds: int = 4,
    seeds: int = 3,
) -> None:
    """Look for near duplicates and suspect labels; write CSV files, contact sheets and a page.

    The CSV files are lists of images for data.exclude and data.exclude_test of
    python -m fmnist_lab.run. docs/audit.md says how to read them.

    Args:
        data_dir: Folder with the four IDX files of a data set, packed as .gz or not; left out,
            Fashion-MNIST.
        class_names: The names of its classes in the order of the labels; left out, Fashion-MNIST's
            or, for another data set, the numbers.
        files: The names of its four files, if they are not MNIST's: training images and labels,
            test images and labels.
        output: Folder for what is found.
        overwrite: Replace an audit that is in the folder already.
        closer_than: Two images are near duplicates below this L2 distance of pixels / 255.
        correlation: Two images are altered copies if the coefficient of their pixels is this or
            more after a shift by up to one pixel, whatever their brightness.
        less_likely_than: A label is suspect if models that have not seen its image give it a
            probability below this.
        folds: Parts that the training images are dealt into; each is predicted by a model that was
            trained on the others.
        seeds: How often that is done; 0 leaves out the labels.
    """
    with reported():
        _check(closer_than, correlation, less_likely_than, folds, seeds)
        from fmnist_lab.studies import audit_files
        from fmnist_lab.studies.audit import Audit, sentences

        dataset = load(data_dir, class_names, files)
        if folds > len(dataset.train_labels):
            raise UserError(
                f"--folds: received {folds}, expected at most {len(dataset.train_labels)}, the "
                "training images"
            )
        audit_files.prepare(output, overwrite=overwrite)
        console = printout()
        pairs = find_pairs(dataset, closer_than, correlation, console)
        labels = find_label_errors(dataset, folds, seeds, console) if seeds else {}
        found = Audit(dataset, *pairs, closer_than, correlation, labels, less_likely_than)
        console.print()
        for sentence in sentences(found):
            console.print(escape(sentence), soft_wrap=True)
            console.print()
        title = f"Audit of {dataset.name}"
        with _stage(console, "writing the files"):
            written = audit_files.write(found, output, title=title, command=provenance.command())
        names = ", ".join(file.name for file in written)
        console.print(f"written to {escape(str(output))}: {escape(names)}", soft_wrap=True)
        if not data_dir and len(found.leaked):
            listed = str(output / "leaked_images.csv")
            if not re.fullmatch(r"[\w./-]+", listed):
                listed = quoted(listed)
            near = shlex.quote(f"data.exclude={listed}")
            aligned(console, {"train without leaked images": f"python -m fmnist_lab.run {near}"})


def _check(
    closer_than: float, correlation: float, less_likely_than: float, folds: int, seeds: int
) -> None:
    """Refuse options outside their bounds."""
    for option, value, is_right, expected in (
        ("--closer-than", closer_than, 0 < closer_than < np.inf, "a number above 0"),
        ("--correlation", correlation, 0.9 <= correlation < 1, "a number from 0.9 to below 1"),
        ("--less-likely-than", less_likely_than, 0 < less_likely_than <= 1, "a share above 0"),
        ("--folds", folds, folds >= 2, "a whole number, 2 or more"),
        ("--seeds", seeds, seeds >= 0, "a whole number, 0 or more"),
    ):
        if not is_right:
            raise UserError(f"{option}: received {value}, expected {expected}")


def load(folder: Path | None, class_names: Sequence[str], files: Sequence[str]) -> Dataset:
    """Load the data set of an audit.

    Args:
        folder: Folder with its four files; None: Fashion-MNIST, wherever it is.
        class_names: Its classes; none: Fashion-MNIST's if it is that, or else the numbers.
        files: The names of the files: training images and labels, test images and labels.

    Raises:
        UserError: The files are missing or wrong, or there are labels without a class.
    """
    is_usual = not class_names and tuple(files) == USUAL_FILES
    if folder is None:
        if is_usual:
            return data.load()
        raise UserError(
            "received --class-names or --files without --data-dir, expected the folder with the "
            "files of that data set beside them"
        )
    if is_usual:
        # Fashion-MNIST in a folder of the user's own has its names all the same.
        with suppress(UserError):
            return data.load(folder)
    one, two, three, four = (idx.IdxFile(name, None) for name in files)
    names = tuple(class_names) or tuple(map(str, range(MOST_CLASSES)))
    description = idx.IdxDataset(
        folder.resolve().name, one, two, three, four, class_names=names, image_shape=None
    )
    dataset = data.load(folder, dataset=description)
    labels = (dataset.train_labels, dataset.test_labels)
    used = max(int(each.max()) for each in labels) + 1
    return dataset if class_names else replace(dataset, class_names=names[:used])


def find_pairs(
    dataset: Dataset, closer_than: float, correlation: float, console: Console
) -> tuple[Pairs, Pairs]:
    """Return the close pairs and the altered pairs among all images, training images first.

    The close pairs reach as far as the table of distances (`studies.audit.STEPS`) does.

    Args:
        dataset: The data set.
        closer_than: The threshold of near duplicates, L2 distance of pixels / 255.
        correlation: The threshold of altered copies.
        console: Shows how far it is.

    Raises:
        UserError: Training and test images differ in size, or too many pairs are found.
    """
    from fmnist_lab.evaluation import neighbours
    from fmnist_lab.studies.audit import STEPS

    images = np.concatenate([dataset.train_images, dataset.test_images])
    threads = runtime.usable_cores()
    too_loose = partial(_few, "--closer-than", closer_than, "a smaller number")
    with _stage(console, "comparing all images as they are") as report, too_loose():
        radius = closer_than * STEPS[-1]
        close = neighbours.close_pairs(images, radius, threads=threads, on_progress=report)
    too_loose = partial(_few, "--correlation", correlation, "a larger number, below 1")
    with _stage(console, "looking for shifted and brightened copies") as report, too_loose():
        altered = neighbours.altered_pairs(images, correlation, threads=threads, on_progress=report)
    return close, altered


def find_label_errors(
    dataset: Dataset, folds: int, seeds: int, console: Console
) -> dict[str, LabelErrors]:
    """Return the doubts about the labels of each split, by cross-validated models.

    Args:
        dataset: The data set.
        folds: Parts of the training images.
        seeds: How often they are dealt.
        console: Shows how far it is.
    """
    with _stage(console, "starting TensorFlow"):
        runtime.start()
        import keras

        from fmnist_lab.evaluation.label_errors import label_errors
        from fmnist_lab.models.dense import mlp
        from fmnist_lab.training.folds import out_of_fold

    def build() -> tuple[keras.Model, keras.Optimizer]:
        shape, classes = dataset.train_images.shape[1:], len(dataset.class_names)
        return mlp(shape, classes, hidden_units=HIDDEN_UNITS), keras.optimizers.Adam()

    steps = -(-len(dataset.train_labels) * (folds - 1) // folds // BATCH_SIZE)
    with _stage(console, f"training {folds * seeds} models, {folds} folds each seed") as report:
        inside, outside = out_of_fold(
            build,
            *(dataset.train_images, dataset.train_labels, dataset.test_images),
            folds=folds,
            seeds=range(seeds),
            epochs=max(EPOCHS, -(-LEAST_STEPS // steps)),
            batch_size=BATCH_SIZE,
            on_progress=report,
        )
    return {
        "train": label_errors(inside, dataset.train_labels),
        "test": label_errors(outside, dataset.test_labels),
    }


@contextmanager
def _few(option: str, value: float, expected: str) -> Iterator[None]:
    """Name the option to change where too many pairs are found."""
    from fmnist_lab.evaluation import neighbours

    try:
        yield
    except neighbours.TooManyPairsError:
        raise UserError(
            f"{option}: received {value:g}, at which more than {neighbours.MOST_PAIRS:,} pairs of "
            f"images are alike; expected {expected}"
        ) from None


@contextmanager
def _stage(console: Console, name: str) -> Iterator[Report]:
    """Show a stage: a bar on a terminal, and when it is over a line with its time anywhere."""
    began = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
    console.print(f"{name:<46}[dim]{duration(time.perf_counter() - began):>12}[/dim]")


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    process.run(main)
