"""Arrays in, matplotlib `Figure` out.

`figure.savefig(path)` writes a PNG at 144 dots an inch. Nothing here touches pyplot or rcParams,
so figures are freed like any other object, may be drawn in any thread, and keep their look under
the caller's style sheets. They are laid out by hand on the pages of `page`.

The arrays are as in `evaluation`: `images` uint8 (n, height, width), `probabilities` float32
(n, classes), `labels` uint8 (n,), `class_names` a name for every class. A name too long for its
place is cut with an ellipsis. What does not fit together raises a `ValueError`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fmnist_lab.evaluation import Calibration
from fmnist_lab.page import (
    BLUE,
    GREY,
    INK,
    PALE,
    PALE_BLUE,
    PALE_RED,
    RED,
    SMALL,
    TEXT,
    Page,
    cut,
    grid,
    image_size,
    rectangles,
    spread,
    widest,
    width_of,
)


def first_image(image: NDArray[np.uint8], class_name: str) -> Figure:
    """The first training image, with the scale of its raw pixel values, 0 to 255.

    Args:
        image: uint8 (height, width).
        class_name: What it shows.

    Returns:
        The figure.
    """
    _check(image[None], [0], [class_name])
    width, height = image_size(image.shape, 196)
    scale = max(height, 84)
    page = Page(
        width + 58,
        scale,
        f"First training image: {class_name}",
        f"{image.shape[0]} by {image.shape[1]} raw pixels, before rescaling.",
    )
    style: dict[str, Any] = {"cmap": "viridis", "vmin": 0, "vmax": 255}
    page.image((0, 0, width, height), image, **style)
    page.image((width + 12, 0, width + 22, scale), np.arange(255, -1, -1)[:, None], **style)
    for value in range(0, 256, 51):
        page.text(width + 26, scale * (1 - value / 255), str(value), SMALL, va="center")
    page.text(width + 48, scale / 2, "Pixel value", rotation=270, va="center")
    return page.figure


def image_grid(
    images: NDArray[np.uint8],
    labels: NDArray[Any],
    class_names: Sequence[str],
    rows: int = 5,
    columns: int = 5,
) -> Figure:
    """Training images with their classes below.

    Args:
        images: uint8 (n, height, width); the first rows * columns are shown.
        labels: uint8 (n,).
        class_names: A name for every class.
        rows: Rows, at most.
        columns: Columns, at most.

    Returns:
        The figure.
    """
    _check(images, labels, class_names)
    count = min(len(images), rows * columns)
    names = [class_names[label] for label in labels[:count]]
    size = image_size(images.shape[1:], 56)
    wide = max(size[0], min(widest(names, TEXT), 100))
    cells, extent = grid(count, columns, wide, size[1] + 14, gap=10)
    page = Page(*extent, "Training images and their classes")
    page.images(cells, size, images[:count])
    for (x, y), name in zip(cells, names, strict=True):
        page.text(x, y + size[1] + 4, cut(name, TEXT, wide), va="top")
    return page.figure


def single_prediction(
    image: NDArray[np.uint8], probabilities: NDArray[Any], label: int, class_names: Sequence[str]
) -> Figure:
    """An image beside the probability of every class; blue for the true class, red for a wrong one.

    Args:
        image: uint8 (height, width).
        probabilities: float32 (classes,).
        label: The true class.
        class_names: A name for every class.

    Returns:
        The figure, captioned `predicted class, its probability, (true class)`.
    """
    _check(image[None], [label], class_names, probabilities[None])
    width, height = image_size(image.shape, 140)
    pitch = min(max(height / len(class_names), 11), 24)
    tall = pitch * len(class_names)
    names = [cut(name, TEXT, 130) for name in class_names]
    start, long = width + 22 + widest(names, TEXT), 120
    full = start + long + 28
    page = Page(full, max(height, tall) + 18, "One image and the probability of each class")
    caption, color = _caption(probabilities, label, class_names, full)
    page.text(0, 2, caption, color=color, va="top")
    page.images([(0, 18)], (width, height), image[None])
    top = 18 + max(height - tall, 0) / 2
    colors, boxes = _bar_colors(probabilities, label), []
    for row, (name, value, color) in enumerate(zip(names, probabilities, colors, strict=True)):
        y, end = top + pitch * (row + 0.5), start + long * float(np.nan_to_num(value))
        boxes.append((start, y - 0.34 * pitch, end, y + 0.34 * pitch))
        ink = INK if color == GREY else color
        page.text(start - 5, y, name, color=ink, ha="right", va="center_baseline")
        if not value < 0.005:
            page.text(end + 4, y, f"{value:.0%}", color=ink, va="center_baseline")
    page.boxes(boxes, colors)
    page.line((start, top), (start, top + tall), GREY)
    return page.figure


def prediction_grid(
    images: NDArray[np.uint8],
    probabilities: NDArray[Any],
    labels: Sequence[int | None] | NDArray[Any],
    class_names: Sequence[str],
    rows: int = 5,
    columns: int = 3,
) -> Figure:
    """Images, each beside the bar chart of its probabilities, captioned as `single_prediction`.

    Args:
        images: uint8 (n, height, width); the first rows * columns are shown.
        probabilities: float32 (n, classes).
        labels: uint8 (n,), or a sequence with None where the true class is not known.
        class_names: A name for every class; written once a column, under its last chart.
        rows: Rows, at most.
        columns: Columns, at most.

    Returns:
        The figure.
    """
    _check(images, labels, class_names, probabilities)
    count = min(len(images), rows * columns)
    size = image_size(images.shape[1:], 56)
    names = [cut(name, SMALL, 80) for name in class_names]
    pitch = max(8.6, 72 / len(names))
    chart = pitch * len(names) + 6
    upright = widest(names, SMALL) > pitch - 4
    wide = size[0] + 6 + chart
    cells, extent = grid(count, columns, wide, size[1] + 14, gap=14)
    page = Page(
        extent[0],
        extent[1] + 4 + (widest(names, SMALL) if upright else SMALL),
        "Predictions",
        "Above each image: predicted class, its probability and (true class). Beside it: the "
        "probability of each class, up to 100%, blue for the true class, red for a wrong one.",
    )
    page.images([(x, y + 14) for x, y in cells], size, images[:count])
    boxes, frames, colors = [], [], []
    for index, (x, y) in enumerate(cells):
        caption, color = _caption(probabilities[index], labels[index], class_names, wide)
        page.text(x, y + 10, caption, color=color)
        left, base = x + size[0] + 6, y + 14 + size[1]
        frames.append((left, y + 14, left + chart, base))
        colors += _bar_colors(probabilities[index], labels[index])
        for place, value in enumerate(np.nan_to_num(probabilities[index]).tolist()):
            middle = left + 3 + pitch * (place + 0.5)
            half = min(0.4 * pitch, 8)
            boxes.append((middle - half, base - value * size[1], middle + half, base))
            if index + columns >= count:
                style = {"rotation": 90 * upright, "ha": "center", "va": "top"}
                page.text(middle, base + 4, names[place], SMALL, **style)
    page.boxes(frames, "none", PALE)
    page.boxes(boxes, colors)
    return page.figure


def learning_curves(history: Mapping[str, Sequence[float]]) -> Figure:
    """Accuracy and loss of training and test set against epoch, with the gap between them.

    Values that are not finite leave a hole in the line, and a last one is named in its label. A
    loss beyond 100 nats, which only divergence reaches, makes the loss axis logarithmic.

    Args:
        history: `epoch`, from 1, and for each epoch `accuracy/train`, `accuracy/test`,
            `loss/train` and `loss/test`; optionally the same two with `/validation`, and with
            `/fit` (the running mean that `fit` reports). Other keys are left alone.

    Returns:
        The figure.

    Raises:
        ValueError: A series is missing, empty or not as long as `epoch`.
    """
    width, height, gutter = 168, 150, 82
    note = "Measured after each epoch. Shaded: the gap between training and test set."
    if "accuracy/fit" in history or "loss/fit" in history:
        note += " Dashed: the running mean during the epoch."
    page = Page(2 * (24 + width + gutter) + 8, height + 40, "Learning curves", note)
    for left, name, title in (
        (24, "accuracy", "Accuracy"),
        (24 + width + gutter + 32, "loss", "Loss (nats)"),
    ):
        axes = page.panel((left, 16, left + width, 16 + height), title, "Epoch")
        _curves(page, axes, history, name)
    return page.figure


def confusion_matrix(matrix: NDArray[np.integer[Any]], class_names: Sequence[str]) -> Figure:
    """Counts of true against predicted class, coloured by their share of the true class.

    Right predictions are blue and mistakes red, each on a scale of its own: on a common scale the
    diagonal would leave the mistakes, which are what there is to see, all but white.

    Args:
        matrix: int64 (classes, classes), rows true, columns predicted, as
            `evaluation.confusion_matrix` returns it.
        class_names: A name for every class.

    Returns:
        The figure.
    """
    classes = len(class_names)
    if matrix.shape != (classes, classes):
        raise ValueError(
            "`matrix` must have a row and a column for every class. "
            f"Received: shape {matrix.shape}, {classes} class names"
        )
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    right = np.eye(classes, dtype=bool)
    # A floor, so that the one mistake of a near-perfect model does not look like a disaster.
    deepest = max(float(share[~right].max(initial=0)), 0.05)
    depth = np.where(right, 0.45 * share, share / deepest)
    full = np.where(right[..., None], to_rgb(BLUE), to_rgb(RED))
    colors = 1 - depth[..., None] * (1 - full)
    cell = max(min(300 / classes, 60), 20, width_of(str(matrix.max()), SMALL) + 6)
    names = [cut(name, TEXT, 110) for name in class_names]
    left, wide = widest(names, TEXT) + 20, cell * classes
    below = 0.71 * widest(names, TEXT) + 26
    page = Page(
        left + wide,
        wide + below,
        "Confusion matrix",
        "Number of images. Colour: share of the true class, right in blue, wrong in red "
        f"(up to {deepest:.0%}).",
    )
    boxes = []
    for row in range(classes):
        middle = cell * (row + 0.5)
        page.text(left - 5, middle, names[row], ha="right", va="center_baseline")
        slant: dict[str, Any] = {"ha": "right", "va": "top", "rotation_mode": "anchor"}
        page.text(left + middle - 3, wide + 4, names[row], rotation=45, **slant)
        for column in range(classes):
            x, y = left + cell * column, cell * row
            boxes.append((x, y, x + cell, y + cell))
            if count := int(matrix[row, column]):
                ink = "white" if depth[row, column] > 0.85 else INK
                center = {"ha": "center", "va": "center_baseline"}
                page.text(x + cell / 2, y + cell / 2, str(count), SMALL, ink, **center)
    page.boxes(boxes, colors.reshape(-1, 3), "#eeeeee")
    page.text(0, wide / 2, "True class", color=GREY, rotation=90, va="center")
    page.text(left + wide / 2, wide + below, "Predicted class", color=GREY, ha="center")
    return page.figure


def reliability_diagram(calibration: Calibration) -> Figure:
    """Accuracy against confidence, the gap to perfect calibration, and how often each occurs.

    Args:
        calibration: What `evaluation.calibration` returns.

    Returns:
        The figure.
    """
    left, side = 30, 200
    page = Page(
        left + side + 8,
        side + 102,
        "Reliability of the model's confidence",
        "Blue: share of right predictions. Red: gap to mean confidence.",
    )
    above = page.panel((left, 16, left + side, 16 + side), "Accuracy")
    below = page.panel((left, side + 44, left + side, side + 80), "Share of images", "Confidence")
    some = np.flatnonzero(calibration.count)
    part = calibration.count[some] / max(calibration.count.sum(), 1)
    mean, share = calibration.confidence[some], calibration.accuracy[some]
    low, high, zero = calibration.edges[some], calibration.edges[some + 1], np.zeros(len(some))
    rectangles(above, zip(low, share, high, zero, strict=True), PALE_BLUE, "white")
    rectangles(above, zip(low, share, high, mean, strict=True), PALE_RED, "white")
    tops = [[(x0, y), (x1, y)] for x0, x1, y in zip(low, high, share, strict=True)]
    above.add_collection(LineCollection(tops, colors=BLUE, linewidths=1.8), autolim=False)
    above.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    rectangles(below, zip(low, part, high, zero, strict=True), GREY, "white")
    ticks = np.linspace(0, 1, 6)
    above.set(xlim=(0, 1), ylim=(0, 1), xticks=ticks, xticklabels=[], yticks=ticks)
    top = float(part.max(initial=0)) or 1.0
    below.set(xlim=(0, 1), ylim=(0, 1.05 * top), xticks=ticks)
    below.set_yticks([0, top], ["0", f"{top:.0%}"])
    style = {"facecolor": "white", "edgecolor": "none", "pad": 2}
    page.text(left + 8, 26, f"ECE {calibration.ece:.3f}", va="top", weight="bold", bbox=style)
    page.text(left + 8, 38, f"{calibration.count.sum():,} images", va="top", bbox=style)
    return page.figure


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
        images: uint8 (n, height, width); the first rows * columns are shown. n may be 0.
        probabilities: float32 (n, classes).
        labels: uint8 (n,).
        class_names: A name for every class.
        rows: Rows, at most.
        columns: Columns, at most.

    Returns:
        The figure.
    """
    _check(images, labels, class_names, probabilities)
    count = min(len(images), rows * columns)
    title = "The most confident mistakes"
    if not count:
        page = Page(200, 14, title)
        page.text(0, 2, "None: every prediction is right.", color=GREY, va="top")
        return page.figure
    size = image_size(images.shape[1:], 56)
    wide = max(size[0], min(widest(class_names, TEXT) + width_of(" 100%", TEXT), 100))
    cells, extent = grid(count, columns, wide, size[1] + 24, gap=10)
    page = Page(*extent, title, "Red: predicted class and its probability. Blue: the true class.")
    page.images(cells, size, images[:count])
    for (x, y), row, label in zip(cells, probabilities, labels, strict=False):
        place = int(row.argmax())
        sure = f" {row[place]:.0%}"
        name = cut(class_names[place], TEXT, wide - width_of(sure, TEXT))
        true = cut(class_names[label], TEXT, wide - width_of("()", TEXT))
        page.text(x, y + size[1] + 4, name + sure, color=RED, va="top")
        page.text(x, y + size[1] + 14, f"({true})", color=BLUE, va="top")
    return page.figure


def speed(timed: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Seconds an epoch of several contenders, one group of bars for each case.

    Args:
        timed: For each case, and in it for each contender, ours first, the seconds of its epochs,
            one a round.

    Returns:
        The figure: medians as bars, lowest to highest as lines, ratios to the first as text, each
        the median over the rounds.
    """
    label = 4 + max(widest(contenders, TEXT) for contenders in timed.values())
    width, pitch = 200, 14
    rows = [len(contenders) for contenders in timed.values()]
    page = Page(
        label + width + 66,
        sum(rows) * pitch + 34 * len(rows),
        "Seconds to train an epoch of 60,000 images",
        "Bar: median. Line: lowest to highest. Beside it: seconds, and how many times ours.",
    )
    top = 0.0
    for case, contenders in timed.items():
        page.text(0, top + 12, case, weight="bold")
        medians = {name: float(np.median(times)) for name, times in contenders.items()}
        ours = np.array(next(iter(contenders.values())))
        scale = width / max(max(times) for times in contenders.values())
        for place, (name, times) in enumerate(contenders.items()):
            y = top + 20 + place * pitch
            color, ink = (BLUE, BLUE) if place == 0 else (GREY, INK)
            page.text(label - 4, y + 8, name, color=ink, ha="right")
            page.boxes([(label, y, label + medians[name] * scale, y + 10)], color)
            low, high = label + min(times) * scale, label + max(times) * scale
            page.line((low, y + 5), (high, y + 5), INK)
            ratio = f", {np.median(np.array(times) / ours):.1f}x" if place else ""
            note = f"{medians[name]:.2f} s{ratio}"
            page.text(max(high, label + medians[name] * scale) + 4, y + 8, note, color=ink)
        top += 34 + len(contenders) * pitch
    return page.figure


def _curves(page: Page, axes: Axes, history: Mapping[str, Sequence[float]], name: str) -> None:
    epochs = _series(history, "epoch")
    lines = {"train": (BLUE, "-", 1.4), "test": (RED, "-", 1.4)}
    lines |= {"validation": (GREY, "-", 1.0), "fit": (BLUE, "--", 0.8)}
    series = {
        key: _series(history, f"{name}/{key}")
        for key in lines
        if key in ("train", "test") or f"{name}/{key}" in history
    }
    # inf would stretch the axis, and a hole is what both it and nan should leave.
    seen = {key: np.where(np.isfinite(values), values, np.nan) for key, values in series.items()}
    for key, values in seen.items():
        color, dash, width = lines[key]
        solid = dash == "-"
        # Dots also show what stands alone between two holes; on many epochs they would be a smear.
        dots = len(epochs) <= (30 if solid else 1)
        axes.plot(
            epochs,
            values,
            color=color,
            linestyle=dash,
            linewidth=width,
            marker=("o" if solid else "_") if dots else "",
            markersize=3.5,
            markeredgewidth=0 if solid else 0.8,
            solid_capstyle="round",
            zorder=2 + width / 10,
        )
    train, test = seen["train"], seen["test"]
    axes.fill_between(epochs, train, test, color=GREY, alpha=0.16, linewidth=0)
    axes.plot(epochs[[-1, -1]], [train[-1], test[-1]], color=INK, linewidth=0.8, zorder=1.5)

    finite = np.concatenate(list(seen.values()))
    finite = finite[~np.isnan(finite)]
    axes.ticklabel_format(useOffset=False)
    axes.margins(y=0.08)
    if not finite.size:
        axes.set_ylim(0, 1)
    elif name == "loss" and finite.max() > 100:
        axes.set_yscale("log")
        axes.minorticks_off()
    elif (lack := 0.01 - np.ptp(finite)) > 0:
        # Else a run that has settled would show noise as if it were something.
        axes.set_ylim(finite.min() - lack / 2, finite.max() + lack / 2)
    # Half an epoch at most, so that no tick stands for an epoch that never was.
    pad = min(0.03 * (epochs[-1] - epochs[0]), 0.5) or 0.5
    axes.set_xlim(epochs[0] - pad, epochs[-1] + pad)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))

    limits = axes.get_ylim()  # Asking also settles the scale that `to_page` relies on.
    to_page = axes.transData - page.axes.transData
    (start, bottom), (_, top) = to_page.transform([(epochs[-1], limit) for limit in limits])
    side = to_page.transform((axes.get_xlim()[1], limits[0]))[0] + 8
    labels = []
    for key, values in seen.items():
        # A run that diverged is labelled where it was last seen.
        known = values[~np.isnan(values)]
        point = to_page.transform((epochs[-1], known[-1]))[1] if known.size else (top + bottom) / 2
        point = min(max(point, top), bottom)  # A loss of 0 is nowhere on a logarithmic axis.
        labels.append((point, f"{key} {_number(series[key][-1])}", lines[key][0]))
    sign = 1 if name == "accuracy" else -1
    gap = f"gap {_number(sign * (train[-1] - test[-1]))}"
    labels.append(((labels[0][0] + labels[1][0]) / 2, gap, INK))
    labels.sort(key=lambda label: label[0])
    heights = spread(np.array([point for point, _, _ in labels]), 10.5, top, bottom)
    for height, (point, text, color) in zip(heights, labels, strict=True):
        if not text.endswith(("nan", "inf")):
            page.line((start + 3, point), (side - 2, height), PALE)
        page.text(side, height, text, color=color, va="center_baseline")


def _series(history: Mapping[str, Sequence[float]], key: str) -> NDArray[np.float64]:
    series = np.asarray(history.get(key, ()), np.float64)
    if not len(series) or len(series) != len(history.get("epoch", ())):
        lengths = {name: len(values) for name, values in history.items()}
        raise ValueError(
            f"`history` must have `{key}` once for each epoch, and at least one epoch. "
            f"Received: series of lengths {lengths}"
        )
    return series


def _number(value: float) -> str:
    # Rounded first, and 0 added, so that -0.0001 is not "-0.000".
    return f"{round(float(value), 3) + 0.0:.3f}" if abs(value) < 1000 else f"{value:.2g}"


def _caption(
    probabilities: NDArray[Any], label: int | None, class_names: Sequence[str], room: float
) -> tuple[str, str]:
    """`Ankle boot 95% (Ankle boot)` and its colour, the longer name cut first to fit the room."""
    place = int(probabilities.argmax())
    if label is None:
        sure = f" {probabilities[place]:.0%}"
        return cut(class_names[place], TEXT, room - width_of(sure, TEXT)) + sure, INK
    sure = f" {probabilities[place]:.0%} ("
    name, true = class_names[place], class_names[label]
    room -= width_of(sure + ")", TEXT)
    name = cut(name, TEXT, room - min(width_of(true, TEXT), room / 2))
    true = cut(true, TEXT, room - width_of(name, TEXT))
    return f"{name}{sure}{true})", BLUE if place == label else RED


def _bar_colors(probabilities: NDArray[Any], label: int | None) -> list[str]:
    colors = [GREY] * len(probabilities)
    colors[int(probabilities.argmax())] = INK if label is None else RED
    if label is not None:
        colors[int(label)] = BLUE
    return colors


def _check(
    images: NDArray[np.uint8],
    labels: Sequence[int | None] | NDArray[Any],
    class_names: Sequence[str],
    probabilities: NDArray[Any] | None = None,
) -> None:
    shape = (len(images), len(class_names))
    highest = max((label for label in labels if label is not None), default=0)
    if (
        images.ndim != 3
        or images.dtype != np.uint8
        or len(labels) != len(images)
        or highest >= len(class_names)
        or (probabilities is not None and probabilities.shape != shape)
    ):
        raise ValueError(
            "`images` must be uint8 (n, height, width), with n labels, a name for every label and "
            f"n rows of probabilities. Received: images {images.dtype} {images.shape}, "
            f"{len(labels)} labels up to {highest}, {len(class_names)} class names, "
            f"probabilities {None if probabilities is None else probabilities.shape}"
        )
