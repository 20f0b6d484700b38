"""Contact sheets: images side by side that a person is to judge.

A grey image is drawn dark on white, as in `figures.images`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmnist_lab.figures.images import cells_of, draw_images, scaled_size
from fmnist_lab.figures.style import INK, SMALL, Picture, letters, sheet, shortened, write

SIDE = 56  # Of an image, in points.
LINE = 9  # From one line of text to the next, in points.


class Line(NamedTuple):
    """A line of text below an image; `color` as Matplotlib has it."""

    text: str
    color: str = INK


def contact_sheet(
    groups: Sequence[NDArray[np.uint8]],
    lines: Sequence[Sequence[Line]],
    title: str,
    note: str = "",
    columns: int = 6,
) -> Picture:
    """Draw groups of images, each group side by side above its lines of text.

    Args:
        groups: uint8 (k, height, width[, 3]) each, the same shape for all, at least one; k is 1
            for single images and 2 for pairs.
        lines: The lines below each group, as many for each.
        title: Stands above.
        note: Stands below.
        columns: Groups in a row, at most.

    Raises:
        ValueError: There are no groups, or not as many texts as groups.
    """
    if not len(groups) or len(groups) != len(lines):
        raise ValueError(
            "there must be at least one group of images, with lines of text for each. Received: "
            f"{len(groups)} groups, {len(lines)} texts"
        )
    stack = np.stack(groups)
    beside = stack.shape[1]
    size = scaled_size(stack.shape[2:], SIDE)
    wide = beside * max(size[0], SIDE if beside == 1 else 0)
    cell = (max(wide, 1.5 * SIDE) + 14, size[1] + LINE * len(lines[0]) + 14)
    cells, extent = cells_of(len(groups), columns, cell)
    figure, axes = sheet(*extent, title, note)
    places = [(x + at * size[0], y) for x, y in cells for at in range(beside)]
    draw_images(axes, places, size, stack.reshape(-1, *stack.shape[2:]))
    room = letters(cell[0] - 8, SMALL)
    for (x, y), texts in zip(cells, lines, strict=True):
        for row, (text, color) in enumerate(texts):
            down = y + size[1] + 4 + LINE * row
            write(axes, x, down, shortened(text, room), SMALL, color, va="top")
    return figure
