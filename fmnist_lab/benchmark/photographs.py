"""What accuracy a model loses when it gets test images as photographs instead of arrays."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fmnist_lab import data, photographs
from fmnist_lab import predict as door
from fmnist_lab.benchmark.results import keep, require
from fmnist_lab.errors import UserError

Pixels = NDArray[np.uint8]
Ink = tuple[int, int, int]

SIDE = 280
WHITE, PALE_GREY, BLACK = (255, 255, 255), (221, 221, 221), (0, 0, 0)
MIRRORED = 2  # EXIF's orientation of a file whose left is the picture's right.


def coloured(image: Pixels, ink: Ink, ground: Ink) -> Image.Image:
    """Return a test image enlarged to 280x280: 0 is the ground's colour, 255 the ink's."""
    large = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    inked, empty = (Image.new("RGB", large.size, each) for each in (ink, ground))
    return Image.composite(inked, empty, large)


def on_black(image: Pixels, ink: Ink, file: Path) -> None:
    """Write a light object on black as JPEG."""
    red, green, blue = (255 - level for level in ink)
    coloured(image, (red, green, blue), BLACK).save(file, "JPEG")


def mirrored(image: Pixels, ink: Ink, file: Path) -> None:
    """Write a JPEG that is mirrored left to right, which its EXIF says."""
    exif = Image.Exif()
    exif[0x0112] = MIRRORED
    flipped = coloured(image, ink, WHITE).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    flipped.save(file, "JPEG", exif=exif)


def padded(image: Pixels, ink: Ink, file: Path) -> None:
    """Write a JPEG with the object away from the middle of a larger white picture."""
    canvas = Image.new("RGB", (2 * SIDE, 2 * SIDE), WHITE)
    canvas.paste(coloured(image, ink, WHITE), (SIDE - 30, 40))
    canvas.save(file, "JPEG")


def transparent(image: Pixels, ink: Ink, file: Path) -> None:
    """Write a PNG whose background is transparent."""
    picture = coloured(image, ink, WHITE)
    large = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    picture.putalpha(large.point(lambda level: 255 * (level > 8)))
    picture.save(file, "PNG", compress_level=1)


# How each kind of file is written, and how much accuracy may differ.
KINDS: dict[str, tuple[Callable[[Pixels, Ink, Path], None], float]] = {
    "on white": (lambda image, ink, file: coloured(image, ink, WHITE).save(file, "JPEG"), 0.02),
    "on pale grey": (
        lambda image, ink, file: coloured(image, ink, PALE_GREY).save(file, "JPEG"),
        0.04,
    ),
    "on black": (on_black, 0.04),
    "mirrored in EXIF": (mirrored, 0.04),
    "off-centre": (padded, 0.04),
    "transparent": (transparent, 0.04),
}


def photograph_accuracy(
    model: list[str] | None = None,
    *,
    images: int = 10_000,
    store: str | None = None,
    data_dir: str | None = None,
    output: Path | None = None,
) -> None:
    """Write test images as coloured picture files, read them back, and compare the accuracies.

    Args:
        model: Models as `predict --model` names them; left out, the newest finished run's.
        images: Number of test images, the first ones.
        store: MLflow's tracking URI.
        data_dir: Folder with the data set's files.
        output: Folder for photographs.csv; left out, nothing is written.

    Raises:
        UserError: An accuracy differs by more than is allowed.
    """
    require("--images", images, 1)
    console = Console()
    dataset = data.load(data_dir)
    arrays, labels = dataset.test_images[:images], dataset.test_labels[:images]
    names: list[str | None] = [*model] if model else [None]
    classifiers = [door.load(name, store=store) for name in names]
    known = [accuracy(each, arrays, labels) for each in classifiers]
    table = Table("files", *(each.uri for each in classifiers), "allowed", box=None)
    table.add_row("arrays", *(f"{value:.4f}" for value in known), "")
    rows: list[dict[str, Any]] = []
    for kind, (_, allowed) in KINDS.items():
        seen = read_back(kind, arrays, console)
        got = [accuracy(each, seen, labels) for each in classifiers]
        cells = (f"{now:.4f} ({now - was:+.4f})" for now, was in zip(got, known, strict=True))
        table.add_row(kind, *cells, f"{allowed:.2f}")
        rows += [
            {"files": kind, "model": each.uri, "arrays": was, "accuracy": now, "allowed": allowed}
            for each, was, now in zip(classifiers, known, got, strict=True)
        ]
        keep(output, "photographs", rows)
    console.print(table)
    worst = max(rows, key=lambda row: abs(row["accuracy"] - row["arrays"]) - row["allowed"])
    if abs(worst["accuracy"] - worst["arrays"]) > worst["allowed"]:
        raise UserError(
            f"the accuracy of files {worst['files']} is {worst['accuracy']:.4f} instead of "
            f"{worst['arrays']:.4f}, expected at most {worst['allowed']} of a difference"
        )


def accuracy(classifier: door.Classifier, images: Pixels, labels: NDArray[np.uint8]) -> float:
    """Return the share of images, uint8 (n, 28, 28), that are predicted as their labels, (n,)."""
    return float((classifier.predict(images).argmax(axis=1) == labels).mean())


def read_back(kind: str, images: Pixels, console: Console) -> Pixels:
    """Write each image as a file of a kind in a colour of its own, and return what is read."""
    write, _ = KINDS[kind]
    rng = np.random.default_rng(0)
    seen = np.zeros_like(images)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "picture"
        for at in track(range(len(images)), kind, console=console, transient=True):
            red, green, blue = rng.integers(0, 110, 3).tolist()
            write(images[at], (red, green, blue), file)
            seen[at] = photographs.read(file).pixels
    return seen
