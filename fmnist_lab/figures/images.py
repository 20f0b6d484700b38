"""Figures of images and of what a model says of them.

`images` are uint8 (n, height, width) or, in colour, (n, height, width, 3), `probabilities` float32
(n, classes), `labels` uint8 (n,), `class_names` a name for every class. A name too long for its
place ends in an ellipsis. Arrays that do not fit together raise a `ValueError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from fmnist_lab.figures.style import (
    BLUE,
    DPI,
    GREY,
    INK,
    PALE,
    RED,
    SMALL,
    TEXT,
    boxes,
    letters,
    picture,
    plain,
    sheet,
    shortened,
    write,
)

Labels = Sequence[int | None] | NDArray[Any]
Point = tuple[float, float]
SIDE = 56  # Of an image in a grid, in points.


def first_image(image: NDArray[np.uint8], class_name: str) -> Figure:
    """The first training image, if grey with the scale of its raw pixel values, 0 to 255.

    Args:
        image: uint8 (height, width) or (height, width, 3).
        class_name: The name of its class.
    """
    _check(image[None], [0], [class_name])
    width, height = scaled_size(image.shape, 196)
    note = f"{image.shape[0]} by {image.shape[1]} raw pixels, before rescaling."
    tall = max(height, 84)
    margins = (8, 4, 8 if image.ndim == 3 else 60, 4)
    figure = picture(width, tall, f"First training image: {class_name}", note, margins)
    axes = figure.add_subplot()
    axes.set_axis_off()
    style: dict[str, Any] = {"cmap": "viridis", "vmin": 0, "vmax": 255}
    axes.imshow(image, interpolation="nearest", **style)
    if image.ndim == 2:
        axes.set_anchor("NW")
        long = tall / height
        scale = axes.inset_axes((1 + 10 / width, 1 - long, 10 / width, long))
        scale.imshow(np.arange(256)[:, None], aspect="auto", origin="lower", **style)
        plain(scale, ylabel="Pixel value")
        scale.yaxis.set(label_position="right", ticks_position="right", ticks=range(0, 256, 51))
        scale.set_xticks([])
    return figure


def image_grid(
    images: NDArray[np.uint8],
    labels: NDArray[Any],
    class_names: Sequence[str],
    rows: int = 5,
    columns: int = 5,
    wrong: NDArray[np.bool_] | None = None,
) -> Figure:
    """Training images with their classes below.

    Args:
        images: uint8 (n, height, width[, 3]); the first rows * columns are shown.
        labels: uint8 (n,).
        class_names: A name for every class.
        rows: Rows, at most.
        columns: Columns, at most.
        wrong: bool (n,), the labels that were made wrong, which are red; None: none was.
    """
    _check(images, labels, class_names)
    count = min(len(images), rows * columns)
    red = np.zeros(count, bool) if wrong is None else wrong[:count]
    size = scaled_size(images.shape[1:], SIDE)
    cells, extent = cells_of(count, columns, (max(size[0], SIDE) + 10, size[1] + 20))
    note = "Red: labels that were made wrong." if red.any() else ""
    figure, axes = sheet(*extent, "Training images and their classes", note)
    draw_images(axes, cells, size, images)
    for (x, y), label, is_wrong in zip(cells, labels, red, strict=False):
        name = shortened(class_names[label], letters(max(size[0], SIDE) + 10))
        write(axes, x, y + size[1] + 3, name, color=RED if is_wrong else INK, va="top")
    return figure


def single_prediction(
    image: NDArray[np.uint8], probabilities: NDArray[Any], label: int, class_names: Sequence[str]
) -> Figure:
    """An image beside the probability of every class; blue for the true class, red for a wrong one.

    Args:
        image: uint8 (height, width) or (height, width, 3).
        probabilities: float32 (classes,).
        label: The true class.
        class_names: A name for every class.

    Returns:
        The figure, captioned `predicted class, its probability, (true class)`.
    """
    _check(image[None], [label], class_names, probabilities[None])
    size = scaled_size(image.shape, 140)
    pitch = min(max(size[1] / len(class_names), 11), 24)
    tall = pitch * len(class_names)
    names = [shortened(name, 24) for name in class_names]
    start, long = size[0] + 22 + 5 * max(map(len, names)), 120
    title = "One image and the probability of each class"
    figure, axes = sheet(start + long + 28, max(size[1], tall) + 18, title)
    caption, color = _caption(probabilities, label, class_names, letters(start + long + 28))
    write(axes, 0, 2, caption, color=color, va="top")
    draw_images(axes, [(0, 18)], size, image[None])
    top = 18 + max(size[1] - tall, 0) / 2
    colors, bars = _bar_colors(probabilities, label), []
    for row, (name, value, color) in enumerate(zip(names, probabilities, colors, strict=True)):
        y, end = top + pitch * (row + 0.5), start + long * float(np.nan_to_num(value))
        bars.append((start, y - 0.34 * pitch, end, y + 0.34 * pitch))
        ink = INK if color == GREY else color
        write(axes, start - 5, y, name, color=ink, ha="right", va="center_baseline")
        if not value < 0.005:
            write(axes, end + 4, y, f"{value:.0%}", color=ink, va="center_baseline")
    boxes(axes, [(start - 0.6, top, start, top + tall)], GREY)
    boxes(axes, bars, colors)
    return figure


def prediction_grid(
    images: NDArray[np.uint8],
    probabilities: NDArray[Any],
    labels: Labels,
    class_names: Sequence[str],
    rows: int = 5,
    columns: int = 3,
) -> Figure:
    """Images, each beside the bar chart of its probabilities, captioned as `single_prediction`.

    Args:
        images: uint8 (n, height, width[, 3]); the first rows * columns are shown.
        probabilities: float32 (n, classes).
        labels: uint8 (n,), or a sequence with None where the true class is not known.
        class_names: A name for every class; written once a column, under its last chart.
        rows: Rows, at most.
        columns: Columns, at most.
    """
    _check(images, labels, class_names, probabilities)
    count = min(len(images), rows * columns)
    size = scaled_size(images.shape[1:], SIDE)
    pitch = max(8.6, 72 / len(class_names))
    chart = pitch * len(class_names)
    names = [shortened(name, 16) for name in class_names]
    wide = size[0] + 6 + chart
    cells, (across, down) = cells_of(count, columns, (wide + 14, size[1] + 28))
    below = max(map(len, names)) * 0.62 * SMALL
    note = (
        "Above each image: predicted class, its probability and (true class). Beside it: the "
        "probability of each class, up to 100%, blue for the true class, red for a wrong one."
    )
    figure, axes = sheet(across, down - 10 + below, "Predictions", note)
    draw_images(axes, [(x, y + 14) for x, y in cells], size, images)
    bars, frames, colors = [], [], []
    for index, ((x, y), values) in enumerate(zip(cells, probabilities, strict=False)):
        caption, color = _caption(values, labels[index], class_names, letters(wide))
        write(axes, x, y + 10, caption, TEXT, color)
        left, base = x + size[0] + 6, y + 14 + size[1]
        frames.append((left, y + 14, left + chart, base))
        colors += _bar_colors(values, labels[index])
        for place, value in enumerate(np.nan_to_num(values).tolist()):
            start = left + pitch * (place + 0.1)
            bars.append((start, base - value * size[1], start + 0.8 * pitch, base))
            if index + columns >= count:
                style = {"rotation": 90, "ha": "center", "va": "top"}
                write(axes, start + 0.4 * pitch, base + 4, names[place], SMALL, **style)
    boxes(axes, frames, "none", PALE)
    boxes(axes, bars, colors)
    return figure


def confident_mistakes(
    images: NDArray[np.uint8],
    probabilities: NDArray[Any],
    labels: NDArray[Any],
    class_names: Sequence[str],
    rows: int = 3,
    columns: int = 5,
) -> Figure:
    """Images the model got wrong with the highest confidence, as `evaluation` selects them.

    Args:
        images: uint8 (n, height, width[, 3]); the first rows * columns are shown. n may be 0.
        probabilities: float32 (n, classes).
        labels: uint8 (n,).
        class_names: A name for every class.
        rows: Rows, at most.
        columns: Columns, at most.
    """
    _check(images, labels, class_names, probabilities)
    count = min(len(images), rows * columns)
    title = "The most confident mistakes"
    if not count:
        figure, axes = sheet(200, 14, title)
        write(axes, 0, 2, "None: every prediction is right.", TEXT, GREY, va="top")
        return figure
    size = scaled_size(images.shape[1:], SIDE)
    wide = max(size[0], 1.3 * SIDE)
    cells, extent = cells_of(count, columns, (wide + 10, size[1] + 30))
    note = "Red: predicted class and its probability. Blue: the true class."
    figure, axes = sheet(*extent, title, note)
    draw_images(axes, cells, size, images)
    for (x, y), row, label in zip(cells, probabilities, labels, strict=False):
        place = int(row.argmax())
        name = shortened(class_names[place], letters(wide + 8) - 5)
        write(axes, x, y + size[1] + 3, f"{name} {row[place]:.0%}", TEXT, RED, va="top")
        true = shortened(class_names[label], letters(wide + 8) - 2)
        write(axes, x, y + size[1] + 13, f"({true})", TEXT, BLUE, va="top")
    return figure


def scaled_size(shape: tuple[int, ...], side: int) -> Point:
    """Return an image's width and height in points.

    Args:
        shape: Its (height, width), perhaps with more behind, in pixels.
        side: Its longer side in points; it becomes that or little less, so that pixels stay alike.
    """
    pixels, longest = side * DPI // 72, max(shape[:2])
    factor = pixels // longest if longest <= pixels else pixels / longest
    return shape[1] * factor * 72 / DPI, shape[0] * factor * 72 / DPI


def cells_of(count: int, columns: int, cell: Point) -> tuple[list[Point], Point]:
    """Return the top left corners of cells, row by row, and the extent of them all.

    Args:
        count: Number of cells.
        columns: Cells in a row, at most.
        cell: Width and height of a cell, in points.
    """
    columns = max(min(columns, count), 1)
    places = [(index % columns * cell[0], index // columns * cell[1]) for index in range(count)]
    return places, (columns * cell[0], max(-(-count // columns), 1) * cell[1])


def draw_images(
    axes: Axes, places: Sequence[Point], size: Point, images: NDArray[np.uint8]
) -> None:
    """Draw images, grey ones dark on white.

    Args:
        axes: Where to.
        places: The top left corner of each image, in points.
        size: Width and height of an image, in points.
        images: uint8 (n, height, width) or (n, height, width, 3).
    """
    frames = [(x, y, x + size[0], y + size[1]) for x, y in places]
    shrunk = images.shape[2] > size[0] * DPI / 72 + 0.5
    # An artist for every image draws three times faster than one mosaic of them all, as only their
    # own pixels are resampled, and RGB spares the way through a colour map.
    for (left, top, right, bottom), image in zip(frames, images, strict=False):
        colors = image if image.ndim == 3 else np.repeat(255 - image[..., None], 3, axis=2)
        artist = AxesImage(
            axes,
            extent=(left, right, bottom, top),
            origin="upper",
            interpolation="antialiased" if shrunk else "nearest",
        )
        artist.set_data(colors)
        axes.add_image(artist)
    boxes(axes, frames, "none", PALE)


def _caption(
    probabilities: NDArray[Any], label: int | None, class_names: Sequence[str], room: float
) -> tuple[str, str]:
    """Return `Ankle boot 95% (Ankle boot)` and its colour, in `room` letters."""
    place = int(probabilities.argmax())
    sure = f"{probabilities[place]:.0%}"
    if label is None:
        return f"{shortened(class_names[place], room - 5)} {sure}", INK
    true = class_names[label]
    name = shortened(class_names[place], room - 8 - min(len(true), room / 2 - 4))
    caption = f"{name} {sure} ({shortened(true, room - 8 - len(name))})"
    return caption, BLUE if place == label else RED


def _bar_colors(probabilities: NDArray[Any], label: int | None) -> list[str]:
    colors = [GREY] * len(probabilities)
    colors[int(probabilities.argmax())] = INK if label is None else RED
    if label is not None:
        colors[int(label)] = BLUE
    return colors


def _check(
    images: NDArray[np.uint8],
    labels: Labels,
    class_names: Sequence[str],
    probabilities: NDArray[Any] | None = None,
) -> None:
    shape = (len(images), len(class_names))
    highest = max((label for label in labels if label is not None), default=0)
    if (
        images.ndim not in (3, 4)
        or images.shape[3:] not in ((), (3,))
        or images.dtype != np.uint8
        or len(labels) != len(images)
        or highest >= len(class_names)
        or (probabilities is not None and probabilities.shape != shape)
    ):
        raise ValueError(
            "`images` must be uint8 (n, height, width) or (n, height, width, 3), with n labels, a "
            "name for every label and n rows of probabilities. Received: images "
            f"{images.dtype} {images.shape}, "
            f"{len(labels)} labels up to {highest}, {len(class_names)} class names, "
            f"probabilities {None if probabilities is None else probabilities.shape}"
        )
