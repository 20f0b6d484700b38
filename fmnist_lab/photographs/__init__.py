"""Photographs as a model of Fashion-MNIST knows its images: small, grey, light on dark.

`read` converts a picture as Xiao, Rasul and Vollgraf (2017), "Fashion-MNIST", section 2, converted
theirs (arXiv:1708.07747): trim to the object, bring the longest edge to 28 pixels by leaving out
rows and columns, sharpen along outlines with a Gaussian of radius and standard deviation 1.0, put
the object into the middle of 28x28 pixels, negate, 8-bit grey. Their pictures were thumbnails on
one light grey; here, the background is found. In the published images, the lightest pixel is 254 or
255 in every one, so that the last step here is to stretch the grey levels to 255.

The package is shipped inside logged models: it imports NumPy and Pillow alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fmnist_lab.photographs.files import UnreadablePhotograph as UnreadablePhotograph
from fmnist_lab.photographs.files import opened
from fmnist_lab.photographs.objects import (
    GREY,
    Array,
    FoundObject,
    border_of,
    find,
    longest,
    shrunk,
    squared,
)
from fmnist_lab.photographs.objects import NoObject as NoObject

THUMBNAIL = 320  # Longest edge of the small copy that is kept for a drawing.


@dataclass(frozen=True, eq=False)
class Photograph:
    """A picture and what a model is to see of it.

    Attributes:
        pixels: uint8 (height, width) or, in colour, (height, width, 3).
        box: left, top, right and bottom of the object, in pixels of the upright original.
        background: Its colour in plain words and its grey level, such as "pale grey (221)".
        negated: Whether light was made dark and dark light, as on a light background.
        converted: False for a file that had the model's size already, light on dark.
        size: Width and height of the upright original.
        thumbnail: uint8 (height, width, 3), the upright original, at most 320 pixels long.
    """

    pixels: NDArray[np.uint8]
    box: tuple[int, int, int, int]
    background: str
    negated: bool
    converted: bool
    size: tuple[int, int]
    thumbnail: NDArray[np.uint8]


def read(
    source: str | Path | bytes | BinaryIO, size: tuple[int, int] = (28, 28), colour: bool = False
) -> Photograph:
    """Read a picture and convert it to what a model sees.

    Args:
        source: A file's name, its bytes, or a binary stream.
        size: Height and width of the model's images.
        colour: Whether the model's images are in colour. Then nothing is negated, sharpened or
            stretched, and the object is put on its own background.

    Raises:
        UnreadablePhotograph: The file is missing, damaged, too large or no picture, or the picture
            shows one colour alone.
    """
    picture, original = opened(source)
    if picture.size == (size[1], size[0]) == original:
        as_it_is = _as_it_is(picture, colour)
        if as_it_is is not None:
            return as_it_is
    alpha = None
    if picture.mode == "RGBA":
        alpha = picture.getchannel("A")
        if np.asarray(alpha).min() > 250:
            alpha = None
        picture = _on_one_colour(picture, alpha)
    found = find(picture, alpha)
    if original == (size[1], size[0]) and longest(found.box) > 0.9 * max(size):
        # A negative of the data set's own images: as large as they are, and sharp already.
        found = found._replace(box=(0, 0, *original))
    pixels = _seen(picture, found, size, colour)
    scale = (original[0] / picture.width, original[1] / picture.height)
    left, top, right, bottom = (round(edge * scale[at % 2]) for at, edge in enumerate(found.box))
    return Photograph(
        pixels,
        (left, top, max(right, left + 1), max(bottom, top + 1)),
        "transparent" if alpha else _described(found.background.colour),
        found.is_light and not colour,
        True,
        original,
        np.asarray(shrunk(picture, THUMBNAIL)),
    )


def _as_it_is(picture: Image.Image, colour: bool) -> Photograph | None:
    """Return a picture of the model's size as it is, or None for a grey one that is dark on light.

    Corners and border must be more dark than light together. All 70,000 images of Fashion-MNIST
    pass (the least, by 1.32 of 2), and none of their negatives does.
    """
    rgb = picture.convert("RGB")
    grey = np.asarray(rgb.convert("L"))
    corners, border = grey[[0, 0, -1, -1], [0, -1, 0, -1]], border_of(grey)
    if not colour and np.mean(corners < 128) + np.mean(border < 128) < 1:
        return None
    level, whole = np.full(3, np.median(border), np.float32), (0, 0, *picture.size)
    seen, small = (np.asarray(each) for each in (rgb if colour else grey, rgb))
    return Photograph(seen, whole, _described(level), False, False, picture.size, small)


def _on_one_colour(picture: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """Return a picture with its transparent parts white, or black where white would hide it all."""
    if alpha is None:
        return picture.convert("RGB")
    weights = np.asarray(alpha, np.float32)
    grey = np.asarray(picture.convert("RGB"), np.float32) @ GREY
    mean = float((grey * weights).sum() / max(weights.sum(), 1))
    under = Image.new("RGBA", picture.size, "black" if mean > 245 else "white")
    return Image.alpha_composite(under, picture).convert("RGB")


def _seen(
    picture: Image.Image, found: FoundObject, size: tuple[int, int], colour: bool
) -> NDArray[np.uint8]:
    """Return the pixels that a model sees, uint8 size or (*size, 3)."""
    left, top, right, bottom = found.box
    scale = min(size[1] / (right - left), size[0] / (bottom - top))
    wide = min(max(1, round((right - left) * scale)), size[1])
    high = min(max(1, round((bottom - top) * scale)), size[0])
    # The authors left out rows and columns of thumbnails, whose pixels were means already.
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    colours = np.asarray(picture.resize((wide, high), how, box=found.box), np.float32)
    surface = found.background.over(found.box, (wide, high), picture.size)
    # In the middle; an odd pixel is left over on the left and above, as in the published images.
    y, x = (size[0] - high + 1) // 2, (size[1] - wide + 1) // 2
    where = slice(y, y + high), slice(x, x + wide)
    if colour:
        canvas = np.empty((*size, 3), np.float32)
        canvas[:] = surface.mean((0, 1))
        canvas[where] = colours
        return np.clip(canvas, 0, 255).round().astype(np.uint8)
    off = squared(colours - surface) ** 0.5
    there = off > max(3 * found.noise, 1)
    if not there.any():
        raise NoObject("the picture shows noise and no object; expected one of clothing")
    # Lighter parts of an object on grey count like darker ones: its outline is what matters.
    grey = np.abs((colours - surface) @ GREY)
    # An object of another colour may be as light as its background.
    levels: Array = (grey if grey[there].sum() > 0.15 * off[there].sum() else off) * there
    canvas = np.zeros(size, np.float32)
    canvas[where] = levels if scale == 1 else _sharpened(levels)
    canvas *= 255 / max(float(canvas.max()), 1e-3)
    return canvas.round().astype(np.uint8)


def _sharpened(levels: Array) -> Array:
    """Sharpen outlines: a 3x3 Gaussian of standard deviation 1.0, as ImageMagick's sharpening."""
    weights = np.exp(-0.5 * np.array([[2, 1, 2], [1, 0, 1], [2, 1, 2]], np.float32))
    weights[1, 1] = 0
    padded = np.pad(levels, 1, mode="edge")
    high, wide = levels.shape
    shifts = [padded[y : y + high, x : x + wide] for y in range(3) for x in range(3)]
    around = np.tensordot(weights.ravel(), np.stack(shifts), 1) / weights.sum()
    edges = np.max(shifts, 0) - np.min(shifts, 0)
    strength = 0.66 * edges / max(float(edges.max()), 1e-3)
    sharp: Array = np.maximum(levels + strength * (levels - around), 0)
    return sharp


def _described(background: Array) -> str:
    """Return a colour, (3,), in plain words and with its grey level."""
    colour = np.clip(background, 0, 255)
    level = round(float(colour @ GREY))
    if np.ptp(colour) > 40:
        name = ("red", "green", "blue")[int(colour.argmax())]
        name = "yellow" if colour[:2].min() > colour[2] + 40 else name
        word = f"{'pale ' if level > 200 else 'dark ' if level < 60 else ''}{name}"
    else:
        steps = {245: "white", 190: "pale grey", 100: "grey", 25: "dark grey", 0: "black"}
        word = next(name for least, name in steps.items() if level >= least)
    return f"{word} ({level})"
