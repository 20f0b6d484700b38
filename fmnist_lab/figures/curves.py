"""Figures of numbers over time: learning curves, and how long an epoch takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fmnist_lab.figures.style import BLUE, GREY, INK, RED, TEXT, picture, plain, write

History = Mapping[str, Sequence[float]]
# Colour, dashes and width of each line.
LINES = {
    "train": (BLUE, "-", 1.4),
    "train_clean": (BLUE, ":", 1.4),
    "test": (RED, "-", 1.4),
    "validation": (GREY, "-", 1.0),
    "fit": (BLUE, "--", 0.8),
}
NAMES = {"train_clean": "true labels"}


def learning_curves(history: History, chosen: int = 0) -> Figure:
    """Accuracy and loss of training and test set against epoch, with the gap between them.

    Values that are not finite leave a hole in the line, and a last one is named in the legend. A
    loss beyond 100 nats, which only divergence reaches, makes the loss axis logarithmic.

    Args:
        history: `epoch`, from 1, and for each epoch `accuracy/train`, `accuracy/test`,
            `loss/train` and `loss/test`; optionally the same two with `/validation`, with `/fit`
            (the running mean that `fit` reports), and with `/train_clean` (by the true labels,
            where labels were made wrong). Other keys are left alone.
        chosen: The epoch whose weights a callback has put in place at the end, so that the last
            figures measured are of that epoch; 0: the last epoch's own.

    Raises:
        ValueError: A series is missing, empty or not as long as `epoch`.
    """
    note = "Measured after each epoch. Shaded: the gap between training and test set."
    if "accuracy/fit" in history or "loss/fit" in history:
        note += " Dashed: the running mean during the epoch."
    if "accuracy/train_clean" in history:
        note += (
            " Train: by the labels that it is trained on, wrong ones among them. Dotted: by the "
            "true labels of the same images."
        )
    note += f" Labels: epoch {chosen}, chosen." if chosen else ""
    note += " A nat is the unit of -ln p: a loss of 0.69 nats stands for tossing a coin."
    figure = picture(440, 150, "Learning curves", note, (36, 20, 82, 34))
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.75})
    plain(left, "Accuracy", "Epoch")
    _curves(left, history, "accuracy", chosen)
    plain(right, "Loss (nats per image)", "Epoch")
    _curves(right, history, "loss", chosen)
    return figure


def mislabelled(history: History, chosen: int = 0) -> Figure:
    """The model's answers to the training images whose labels were made wrong, against epoch.

    Args:
        history: `epoch`, from 1, and for each epoch `mislabelled/memorised` and
            `mislabelled/seen_through`, shares from 0 to 1, nan where an epoch was not evaluated.
        chosen: The epoch whose weights a callback has put in place at the end; 0: the last.

    Raises:
        ValueError: A series is missing, empty or not as long as `epoch`.
    """
    note = (
        "Of the training images whose labels were made wrong, the share that is predicted as that "
        "wrong label (memorised), as the true class (seen through), or as a third class (other)."
    )
    note += f" Labels: epoch {chosen}, chosen." if chosen else ""
    figure = picture(220, 150, "Images with a wrong label", note, (36, 8, 100, 34))
    axes = figure.add_subplot()
    plain(axes, "", "Epoch", "Share")
    epochs = _series(history, "epoch")
    names = ("memorised", "seen_through")
    learnt, seen = (_series(history, f"mislabelled/{name}").copy() for name in names)
    last = -1
    if 0 < chosen < len(epochs):
        # The last measurement belongs to the weights of that epoch.
        last = chosen - 1
        for values in (learnt, seen):
            values[last], values[-1] = values[-1], np.nan
    lines = {"memorised": (learnt, RED), "seen through": (seen, BLUE)}
    lines["other"] = (1 - learnt - seen, GREY)
    for place, (name, (values, color)) in enumerate(lines.items()):
        known = ~np.isnan(values)
        marker = "o" if known.sum() <= 30 else ""
        axes.plot(epochs[known], values[known], color=color, marker=marker, markersize=3.5)
        beside = {"transform": axes.transAxes, "va": "center_baseline"}
        label = f"{name} {_number(values[last])}"
        write(axes, 1.05, 0.98 - 0.08 * place, label, TEXT, color, **beside)
    axes.set_ylim(-0.02, 1.02)
    _epoch_axis(axes, epochs)
    return figure


def speed(timed: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Seconds per epoch of several contenders, one group of bars for each case.

    Args:
        timed: For each case, and in it for each contender, ours first, the seconds of its epochs,
            one per round.

    Returns:
        The figure: medians as bars, lowest to highest as lines, ratios to the first as text, each
        the median over the rounds.
    """
    rows = [len(contenders) for contenders in timed.values()]
    note = "Bar: median. Line: lowest to highest. Beside it: seconds, and how many times ours."
    title = "Seconds to train an epoch of 60,000 images"
    longest_name = max(len(name) for contenders in timed.values() for name in contenders)
    height = sum(rows) * 15 + 26 * len(rows)
    figure = picture(270, height, title, note, (8 + 5 * longest_name, 18, 8, 4))
    ratios = [row + 1 for row in rows]
    panels = figure.subplots(
        len(rows), 1, height_ratios=ratios, squeeze=False, gridspec_kw={"hspace": 0.25}
    )
    for (axes,), (case, contenders) in zip(panels, timed.items(), strict=True):
        plain(axes, case)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(left=False, bottom=False, labelbottom=False)
        ours = np.array(next(iter(contenders.values())))
        longest = max(map(max, contenders.values()))
        axes.set(xlim=(0, 1.35 * longest), ylim=(len(contenders) - 0.4, -0.6))
        axes.set_yticks(range(len(contenders)), list(contenders), size=TEXT, parse_math=False)
        for place, times in enumerate(contenders.values()):
            color, ink = (GREY, INK) if place else (BLUE, BLUE)
            median, high = float(np.median(times)), max(times)
            axes.barh(place, median, 0.7, color=color)
            axes.plot([min(times), high], [place, place], color=INK, linewidth=0.8)
            ratio = f", {np.median(np.array(times) / ours):.1f}x" if place else ""
            x = max(high, median) + 0.015 * longest
            write(axes, x, place, f"{median:.2f} s{ratio}", TEXT, ink, va="center_baseline")
    return figure


def _curves(axes: Axes, history: History, name: str, chosen: int) -> None:
    epochs = _series(history, "epoch")
    series = {
        key: _series(history, f"{name}/{key}")
        for key in LINES
        if key in ("train", "test") or f"{name}/{key}" in history
    }
    last = -1
    if 0 < chosen < len(epochs):
        # The last measurement belongs to the weights of that epoch, evaluated then or not.
        last = chosen - 1
        for key in series.keys() - {"fit"}:
            series[key][last], series[key][-1] = series[key][-1], np.nan
    # inf would stretch the axis, and a hole is what both it and nan should leave.
    seen = {key: np.where(np.isfinite(values), values, np.nan) for key, values in series.items()}
    for key, values in seen.items():
        _line(axes, epochs, values, key)
    train, test = seen["train"], seen["test"]
    axes.fill_between(epochs, train, test, color=GREY, alpha=0.16, linewidth=0)
    ends = [train[last], test[last]]
    axes.plot(epochs[[last, last]], ends, color=INK, linewidth=0.8, zorder=1.5)
    _limits(axes, epochs, np.concatenate(list(seen.values())), name)
    gap = (train[last] - test[last]) * (1 if name == "accuracy" else -1)
    told = [(key, values[last], LINES[key][0]) for key, values in series.items()]
    for place, (key, value, color) in enumerate([*told, ("gap", gap, INK)]):
        y = 0.98 - 0.08 * place
        beside = {"transform": axes.transAxes, "va": "center_baseline"}
        write(axes, 1.04, y, f"{NAMES.get(key, key)} {_number(value)}", TEXT, color, **beside)


def _line(axes: Axes, epochs: NDArray[np.float64], values: NDArray[np.float64], key: str) -> None:
    color, dash, width = LINES[key]
    is_solid = dash == "-"
    # Dots also show what stands alone between two holes; on many epochs they would be a smear.
    has_dots = len(epochs) <= (30 if is_solid else 1)
    axes.plot(
        epochs,
        values,
        color=color,
        linestyle=dash,
        linewidth=width,
        marker=("o" if is_solid else "_") if has_dots else "",
        markersize=3.5,
        markeredgewidth=0 if is_solid else 0.8,
        solid_capstyle="round",
        zorder=2 + width / 10,
    )


def _limits(
    axes: Axes, epochs: NDArray[np.float64], values: NDArray[np.float64], name: str
) -> None:
    known = values[~np.isnan(values)]
    axes.ticklabel_format(useOffset=False)
    axes.margins(y=0.08)
    if not known.size:
        axes.set_ylim(0, 1)
    elif name == "loss" and known.max() > 100:
        axes.set_yscale("log")
        axes.minorticks_off()
    elif (lack := 0.01 - np.ptp(known)) > 0:
        # Else a run that has settled would show noise as if it were something.
        axes.set_ylim(known.min() - lack / 2, known.max() + lack / 2)
    _epoch_axis(axes, epochs)


def _epoch_axis(axes: Axes, epochs: NDArray[np.float64]) -> None:
    # Half an epoch at most, so that no tick stands for an epoch that never was.
    pad = min(0.03 * (epochs[-1] - epochs[0]), 0.5) or 0.5
    axes.set_xlim(epochs[0] - pad, epochs[-1] + pad)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))


def _series(history: History, key: str) -> NDArray[np.float64]:
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
