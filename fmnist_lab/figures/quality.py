"""Figures of how good a model's predictions are: confusions and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fmnist_lab.evaluation.metrics import Calibration
from fmnist_lab.figures.style import (
    BLUE,
    GREY,
    INK,
    PALE_BLUE,
    PALE_RED,
    RED,
    SMALL,
    boxes,
    picture,
    plain,
    sheet,
    shortened,
    write,
)

# Settings of a study, told apart under the common kinds of colour blindness (Paul Tol's "bright").
LINES = ("#4477aa", "#ee6677", "#228833", "#aa3377", "#66ccee", "#ccbb44")


def confusion_matrix(matrix: NDArray[np.integer[Any]], class_names: Sequence[str]) -> Figure:
    """Counts of true against predicted class, coloured by their share of the true class.

    Right predictions are blue and mistakes red, each on a scale of its own: on a common scale the
    diagonal would leave the mistakes, which are what there is to see, all but white.

    Args:
        matrix: int64 (classes, classes), rows true, columns predicted, as
            `evaluation.confusion_matrix` returns it.
        class_names: A name for every class.
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
    names = [shortened(name, 22) for name in class_names]
    side = classes * max(min(300 / classes, 60), 20, 5 * len(str(matrix.max())) + 6)
    room = 5.2 * max(map(len, names))
    note = (
        "Number of images. Colour: share of the true class, right in blue, wrong in red "
        f"(up to {deepest:.0%})."
    )
    left, cell, below = room + 16, side / classes, 0.75 * room + 22
    figure, axes = sheet(left + side, side + below, "Confusion matrix", note)
    places = []
    for row, name in enumerate(names):
        middle = cell * (row + 0.5)
        write(axes, left - 5, middle, name, ha="right", va="center_baseline")
        slant: dict[str, Any] = {"ha": "right", "va": "top", "rotation_mode": "anchor"}
        write(axes, left + middle - 3, side + 4, name, rotation=45, **slant)
        for column in range(classes):
            x, y = left + cell * column, cell * row
            places.append((x, y, x + cell, y + cell))
            if count := int(matrix[row, column]):
                ink = "white" if depth[row, column] > 0.85 else INK
                center: dict[str, Any] = {"ha": "center", "va": "center_baseline"}
                write(axes, x + cell / 2, y + cell / 2, str(count), SMALL, ink, **center)
    boxes(axes, places, (1 - depth[..., None] * (1 - full)).reshape(-1, 3), "#eeeeee")
    write(axes, 0, side / 2, "True class", color=GREY, rotation=90, va="center")
    write(axes, left + side / 2, side + below, "Predicted class", color=GREY, ha="center")
    return figure


def reliability_diagram(calibration: Calibration) -> Figure:
    """Accuracy against confidence, the gap to perfect calibration, and how often each occurs.

    Args:
        calibration: What `evaluation.calibration` returns.
    """
    count = calibration.count.sum()
    note = (
        "Blue: share of right predictions among those of like confidence. Red: gap to their mean "
        f"confidence. Expected calibration error (ECE): {calibration.ece:.3f}, the mean of these "
        f"gaps over {count:,} images; 0 is perfect."
    )
    title = "Reliability of the model's confidence"
    figure = picture(210, 270, title, note, (40, 6, 12, 34))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    plain(above, ylabel="Accuracy")
    plain(below, xlabel="Confidence", ylabel="Images")
    _reliability(above, calibration)
    some = np.flatnonzero(calibration.count)
    part = calibration.count[some] / max(count, 1)
    low, high, zero = calibration.edges[some], calibration.edges[some + 1], np.zeros(len(some))
    boxes(below, zip(low, part, high, zero, strict=True), GREY, "white")
    top = float(part.max(initial=0)) or 1.0
    below.set_ylim(0, 1.05 * top)
    below.set_yticks([0, top], ["0", f"{top:.0%}"])
    return figure


def reliability_diagrams(diagrams: Mapping[str, tuple[Calibration, Calibration | None]]) -> Figure:
    """Reliability of several models, side by side: as they are, and below it with a temperature.

    Args:
        diagrams: For each model's name, what `evaluation.calibration` returns before and after; no
            model has an after if it has no temperature.
    """
    note = (
        "Blue: share of right predictions among those of like confidence. Red: gap to their mean "
        "confidence. ECE: the mean of these gaps over all images; 0 is perfect. Of several runs "
        "of a setting, the first is shown."
    )
    rows = 2 if any(after for _, after in diagrams.values()) else 1
    columns = len(diagrams)
    figure = picture(
        150 * columns,
        160 * rows,
        "Reliability of the models' confidence, before and after a temperature",
        note,
        (40, 20, 6, 34),
    )
    spaces = {"wspace": 0.25, "hspace": 0.35}
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=spaces)
    for column, (name, pair) in enumerate(diagrams.items()):
        for row, calibration in enumerate(pair[:rows]):
            here = axes[row, column]
            if calibration is None:
                here.set_axis_off()
                continue
            title = shortened(name, 26) if row == 0 else "with its temperature"
            xlabel = "Confidence" if row == rows - 1 else ""
            plain(here, title, xlabel, "Accuracy" if column == 0 else "")
            _reliability(here, calibration)
            write(here, 0.05, 0.9, f"ECE {calibration.ece:.3f}")
    return figure


def risk_coverage(
    curves: Mapping[str, Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]],
) -> Figure:
    """Share of wrong answers against the share of images that are answered, the surest first.

    Args:
        curves: For each setting's name, one curve per run: coverage and risk, as
            `evaluation.confidence.risk_coverage` returns them.
    """
    note = (
        "The model answers the images that it is surest of and abstains from the others. Pale: one "
        "run. Strong: the mean over runs."
    )
    figure = picture(260, 180, "What abstaining buys", note, (42, 6, 150, 34))
    axes = figure.add_subplot()
    plain(axes, "", "Share of the images that are answered", "Share of wrong answers")
    at = np.linspace(0.02, 1, 197)
    for place, (name, runs) in enumerate(curves.items()):
        color = LINES[place % len(LINES)]
        risks = [np.interp(at, covered, risk) for covered, risk in runs]
        for risk in risks if len(risks) > 1 else []:
            axes.plot(at, risk, color=color, linewidth=0.5, alpha=0.35)
        axes.plot(at, np.mean(risks, axis=0), color=color, linewidth=1.6)
        beside: dict[str, Any] = {"transform": axes.transAxes, "va": "center_baseline"}
        label = shortened(name, 26)
        write(axes, 1.03, 0.97 - 0.08 * place, label, color=color, **beside)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.05)
    return figure


def _reliability(axes: Axes, calibration: Calibration) -> None:
    """Draw the accuracy in each bin of confidence, and its gap to the mean confidence there."""
    some = np.flatnonzero(calibration.count)
    mean, share = calibration.confidence[some], calibration.accuracy[some]
    low, high, zero = calibration.edges[some], calibration.edges[some + 1], np.zeros(len(some))
    boxes(axes, zip(low, share, high, zero, strict=True), PALE_BLUE, "white")
    boxes(axes, zip(low, share, high, mean, strict=True), PALE_RED, "white")
    tops = [[(x0, y), (x1, y)] for x0, x1, y in zip(low, high, share, strict=True)]
    axes.add_collection(LineCollection(tops, colors=BLUE, linewidths=1.8), autolim=False)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    ticks = np.linspace(0, 1, 6)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=ticks, yticks=ticks)
