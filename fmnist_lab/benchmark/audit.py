"""How many planted duplicates and label errors an audit finds, and how many alarms are false."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from fmnist_lab import data
from fmnist_lab.benchmark.results import keep, require
from fmnist_lab.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from fmnist_lab.data import Dataset

Image = NDArray[np.uint8]


def shifted(image: Image, rng: np.random.Generator) -> Image:
    """Return a grey image moved by one pixel in one of eight directions, black where it was."""
    down, across = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)][
        rng.integers(8)
    ]
    height, width = image.shape
    framed: Image = np.pad(image, 1)
    return framed[1 - down : 1 - down + height, 1 - across : 1 - across + width]


def brightened(image: Image, factor: float) -> Image:
    """Return an image whose pixels are multiplied by a factor, at most 255."""
    pixels: Image = np.minimum(image * factor, 255).round().astype(np.uint8)
    return pixels


def recompressed(image: Image, quality: int) -> Image:
    """Return a grey image as it comes back from a JPEG file."""
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(PIL.Image.open(file))


ALTERATIONS: dict[str, Callable[[Image, np.random.Generator], Image]] = {
    "shifted by a pixel": shifted,
    "brightened by 1.2": lambda image, rng: brightened(image, 1.2),
    "brightened by 1.4": lambda image, rng: brightened(image, 1.4),
    "recompressed as JPEG, quality 75": lambda image, rng: recompressed(image, 75),
    "recompressed as JPEG, quality 50": lambda image, rng: recompressed(image, 50),
}


@dataclass(frozen=True, eq=False)
class Planted:
    """A copy of a data set with faults of which all is known.

    Attributes:
        dataset: The copy.
        kind: Names of `ALTERATIONS` by the test images that were replaced by an altered copy.
        source: The training image of each.
        wrong: int64, the training images whose label was changed to another class.
    """

    dataset: Dataset
    kind: dict[int, str]
    source: dict[int, int]
    wrong: NDArray[np.int64]


def plant(dataset: Dataset, copies: int, share: float, seed: int) -> Planted:
    """Plant near duplicates of training images in the test set, and errors in the training labels.

    Args:
        dataset: The data set, of grey images; it stays as it is.
        copies: How many test images are replaced by copies of each kind.
        share: The share of the training labels that is changed, each to any other class.
        seed: Decides all of it.
    """
    rng = np.random.default_rng(seed)
    test, labels = dataset.test_images.copy(), dataset.test_labels.copy()
    places = rng.choice(len(test), copies * len(ALTERATIONS), replace=False)
    sources = rng.choice(len(dataset.train_images), len(places), replace=False)
    kinds = np.repeat(list(ALTERATIONS), copies)
    for place, source, kind in zip(places, sources, kinds, strict=True):
        test[place] = ALTERATIONS[kind](dataset.train_images[source], rng)
        labels[place] = dataset.train_labels[source]
    train_labels, classes = dataset.train_labels.copy(), len(dataset.class_names)
    wrong = rng.choice(len(train_labels), round(share * len(train_labels)), replace=False)
    train_labels[wrong] = (train_labels[wrong] + rng.integers(1, classes, len(wrong))) % classes
    copy = replace(dataset, train_labels=train_labels, test_images=test, test_labels=labels)
    return Planted(
        copy,
        dict(zip(places.tolist(), kinds.tolist(), strict=True)),
        dict(zip(places.tolist(), sources.tolist(), strict=True)),
        np.sort(wrong),
    )


def audit(
    *,
    copies: int = 200,
    share: float = 0.01,
    seed: int = 0,
    folds: int = 4,
    seeds: int = 3,
    output: Path | None = None,
) -> None:
    """Plant duplicates and label errors in a copy of Fashion-MNIST, and audit it.

    Recall is the share of the planted faults that are found; precision is the share of the alarms
    that are planted faults. Fashion-MNIST has near duplicates and wrong labels of its own; an alarm
    about one of them counts as false in "precision", and near duplicates that the audit finds in
    the untouched data as well are left out of "aside from its own".

    Args:
        copies: Test images that are replaced by copies of each kind.
        share: Share of the training labels that is made wrong.
        seed: Decides which.
        folds: As in python -m fmnist_lab.audit.
        seeds: As there.
        output: Folder for audit.csv.
    """
    require("--copies", copies, 1)
    require("--folds", folds, 2)
    require("--seeds", seeds, 1)
    if not 0 < share < 1:
        raise UserError(f"--share: received {share}, expected a share between 0 and 1")
    from fmnist_lab import audit as door
    from fmnist_lab.studies.audit import Audit

    console = Console(highlight=False)
    dataset = data.load()
    most = len(dataset.test_labels) // len(ALTERATIONS)
    if copies > most:
        raise UserError(f"--copies: received {copies}, expected a whole number, 1 to {most}")
    planted = plant(dataset, copies, share, seed)
    thresholds = door.CLOSER_THAN, door.CORRELATION
    found = []
    for name, each in (("the untouched data", dataset), ("the copy", planted.dataset)):
        console.print(f"[dim]{name}[/dim]")
        pairs = door.find_pairs(each, *thresholds, console)
        found.append(Audit(each, *pairs, *thresholds, {}, door.LESS_LIKELY_THAN))
    labels = door.find_label_errors(planted.dataset, folds, seeds, console)
    rows = [
        *duplicate_rows(planted, found[0].duplicates, found[1].duplicates),
        *label_rows(planted, labels["train"].given, door.LESS_LIKELY_THAN),
    ]
    table = Table("planted", "number", "found", "recall", "precision", box=None)
    table.add_column("aside from its own")
    for row in rows:
        shares = (f"{row[name]:.3f}" for name in ("recall", "precision", "precision_aside"))
        table.add_row(row["planted"], f"{row['number']:,}", f"{row['found']:,}", *shares)
    console.print(table)
    console.print(
        f"Confident learning expects {labels['train'].expected:,.0f} label errors in the copy."
    )
    keep(output, "audit", rows)


def duplicate_rows(
    planted: Planted, before: pd.DataFrame, after: pd.DataFrame
) -> list[dict[str, Any]]:
    """Return recall and precision for each kind of planted duplicates, as if it were alone.

    Args:
        planted: The copy.
        before: The near duplicates of the untouched data, as `studies.audit` has them.
        after: Those of the copy.
    """
    across = "split == 'test' and other_split == 'train'"
    before, after = before.query(across), after.query(across)
    pairs = set(zip(after["index"], after["other_index"], strict=True))
    others = set(after["index"]) - set(planted.kind)
    own = others & set(before["index"])
    rows = []
    for kind in ALTERATIONS:
        places = [place for place, each in planted.kind.items() if each == kind]
        found = sum((place, planted.source[place]) in pairs for place in places)
        rows.append(_row(f"copies {kind}", len(places), found, len(others), len(own)))
    return rows


def label_rows(planted: Planted, given: NDArray[np.float64], doubt: float) -> list[dict[str, Any]]:
    """Return recall and precision of the planted label errors, in two rows.

    Args:
        planted: The copy.
        given: float64 (n,), the probability of each training label.
        doubt: The probability below which a label is suspect.
    """
    number = len(planted.wrong)
    choices = {
        f"wrong labels, below {doubt:g}": np.flatnonzero(given < doubt),
        f"wrong labels, the first {number:,}": np.argsort(given, kind="stable")[:number],
    }
    rows = []
    for name, chosen in choices.items():
        found = len(np.intersect1d(chosen, planted.wrong))
        rows.append(_row(name, number, found, len(chosen) - found, 0))
    return rows


def _row(planted: str, number: int, found: int, others: int, own: int) -> dict[str, Any]:
    """Return a row; `others` are the false alarms, `own` those about faults of the data's own."""
    return {
        "planted": planted,
        "number": number,
        "found": found,
        "recall": found / max(number, 1),
        "precision": found / max(found + others, 1),
        "precision_aside": found / max(found + others - own, 1),
    }
