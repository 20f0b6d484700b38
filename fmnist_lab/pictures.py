"""The pictures that a person names: files, folders and patterns, read a few at a time."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from fmnist_lab import photographs
from fmnist_lab.errors import UserError

# In a folder; a file that is named is read whatever it is called.
SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png"),
    *(".ppm", ".tif", ".tiff", ".webp"),
)


@dataclass(frozen=True, eq=False)
class Picture:
    """An image to be predicted.

    Attributes:
        name: The user's name for it.
        pixels: What the model sees, uint8 (height, width) or (height, width, 3).
        label: The true class, if it is known.
        photograph: Where the pixels come from; None for an image of a data set.
    """

    name: str
    pixels: np.ndarray
    label: int | None = None
    photograph: photographs.Photograph | None = None


def find(named: Sequence[str]) -> list[Path]:
    """Return the files that are meant, in the order named, those of a folder or pattern by name.

    Args:
        named: Files, folders, and patterns such as '*.png' or 'shoes/**/*.jpg'.

    Raises:
        UserError: A folder or a pattern has no picture.
    """
    files: dict[Path, None] = {}
    for name in named:
        path = Path(name)
        if path.is_dir():
            found = [each for each in path.iterdir() if each.suffix.lower() in SUFFIXES]
            if not found:
                raise UserError(
                    f"{name}: received a folder without pictures, expected files that end in "
                    f"{', '.join(SUFFIXES)}"
                )
        elif path.exists() or not glob.has_magic(str(name)):
            found = [path]
        else:
            found = _matching(path)
        files |= dict.fromkeys(sorted(found))
    return list(files)


def check_readable(file: Path) -> None:
    """Refuse a file that is no picture; what it shows is another question.

    Raises:
        UserError: It is missing or no image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            photographs.read(file)
        except photographs.NoObject:
            return
        except photographs.UnreadablePhotograph as error:
            raise UserError(f"{file}: {error}") from None


def _matching(pattern: Path) -> list[Path]:
    try:
        start = Path(pattern.anchor)
        matched = start.glob(str(pattern.relative_to(pattern.anchor)))
        found = [each for each in matched if each.is_file()]
    except ValueError:  # A pattern that makes no sense, such as '**.png'.
        found = []
    if not found:
        raise UserError(f"{pattern}: received a pattern that no file matches")
    return found


def read_image(file: Path, size: tuple[int, int] = (28, 28), *, colour: bool = False) -> Picture:
    """Read an image file and convert it to what a model sees; see `photographs.read`.

    Args:
        file: A file in a common format.
        size: Height and width of the model's images.
        colour: Whether they are in colour.

    Raises:
        UserError: The file is missing or no image, or shows no object.
    """
    try:
        with warnings.catch_warnings():
            # Pillow's remarks on a damaged file would break into our lines.
            warnings.simplefilter("ignore")
            photograph = photographs.read(file, size, colour)
    except photographs.UnreadablePhotograph as error:
        raise UserError(f"{file}: {error}") from None
    return Picture(str(file), photograph.pixels, photograph=photograph)


def batches(
    files: Sequence[Path],
    size: tuple[int, int],
    *,
    colour: bool,
    most: int,
    on_read: Callable[[], object],
) -> Iterator[list[Picture | UserError]]:
    """Yield the pictures of files in lists of at most `most`, an error for a bad one.

    Args:
        files: The files.
        size: Height and width of the model's images.
        colour: Whether they are in colour.
        most: The length of a list, at most.
        on_read: Called after each file.
    """
    rest = iter(files)
    while some := list(islice(rest, most)):
        batch: list[Picture | UserError] = []
        for file in some:
            try:
                batch.append(read_image(file, size, colour=colour))
            except UserError as error:
                batch.append(error)
            on_read()
        yield batch
