"""Photographs beside what a model sees of them, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fmnist_lab.figures.images import cells_of, draw_images
from fmnist_lab.figures.style import (
    GREY,
    INK,
    PALE,
    RED,
    SMALL,
    TEXT,
    boxes,
    letters,
    sheet,
    shortened,
    write,
)

SIDE = 84  # Of an image, in points.
MOST_BARS = 10
CHART = 60  # Length of a bar of 100 %, in points.


class Shown(NamedTuple):
    """A photograph in the drawing.

    Attributes:
        name: Stands above.
        note: Stands below the photograph.
        original: uint8 (height, width, 3).
        box: left, top, right and bottom of the object, as shares of the original's sides.
        pixels: What the model sees, uint8 (height, width) or (height, width, 3).
    """

    name: str
    note: str
    original: NDArray[np.uint8]
    box: tuple[float, float, float, float]
    pixels: NDArray[np.uint8]


def photograph_predictions(
    shown: Sequence[Shown],
    probabilities: NDArray[Any],
    class_names: Sequence[str],
    note: str = "",
    columns: int = 2,
) -> Figure:
    """Photographs with the found box, what the model sees of each, and its most probable classes.

    Args:
        shown: The photographs, at least one.
        probabilities: float32 (n, classes).
        class_names: A name for every class.
        note: A sentence more for the note below.
        columns: Photographs in a row, at most.
    """
    bars = min(MOST_BARS, len(class_names))
    names = [shortened(name, 16) for name in class_names]
    start = 2 * SIDE + 12 + 0.62 * SMALL * max(map(len, names))
    cell = (start + CHART + 30, SIDE + 36)
    cells, extent = cells_of(len(shown), columns, cell)
    note = (
        "Left: the picture and the object that was found in it. Middle: what the model sees. "
        f"Right: the most probable classes. {note}"
    )
    figure, axes = sheet(*extent, "Predictions of photographs", note.strip())
    frames, filled, colors, found = [], [], [], []
    for (x, y), each, values in zip(cells, shown, probabilities, strict=True):
        write(axes, x, y + 8, shortened(each.name, letters(cell[0] - 10)), TEXT, INK)
        top = y + 13
        high, wide = each.original.shape[:2]
        size = (SIDE * wide / max(high, wide), SIDE * high / max(high, wide))
        draw_images(axes, [(x, top)], size, each.original[None])
        left, upper, right, lower = each.box
        found.append(
            (x + left * size[0], top + upper * size[1], x + right * size[0], top + lower * size[1])
        )
        high, wide = each.pixels.shape[:2]
        size = (SIDE * wide / max(high, wide), SIDE * high / max(high, wide))
        # As the model has it, where other figures draw grey images dark on white.
        pixels = each.pixels if each.pixels.ndim == 3 else each.pixels[..., None].repeat(3, 2)
        draw_images(axes, [(x + SIDE + 5, top)], size, pixels[None])
        write(axes, x, top + SIDE + 9, shortened(each.note, letters(2 * SIDE, SMALL)), SMALL, GREY)
        pitch = SIDE / bars
        frames.append((x + start, top, x + start + CHART, top + SIDE))
        for row, place in enumerate(np.argsort(-values, kind="stable")[:bars]):
            middle, share = top + pitch * (row + 0.5), float(np.nan_to_num(values[place]))
            ink = GREY if row else INK
            beside: dict[str, Any] = {"va": "center_baseline"}
            write(axes, x + start - 4, middle, names[place], SMALL, ink, ha="right", **beside)
            end = x + start + CHART * share
            filled.append((x + start, middle - 0.35 * pitch, end, middle + 0.35 * pitch))
            colors.append(ink)
            if share >= 0.005:
                write(axes, end + 3, middle, f"{share:.0%}", SMALL, ink, **beside)
    boxes(axes, frames, "none", PALE)
    boxes(axes, filled, colors)
    # White below, for photographs as red as the box.
    boxes(axes, found, "none", "white", 1.8)
    boxes(axes, found, "none", RED)
    return figure
