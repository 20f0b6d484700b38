"""Summaries of studies in, matplotlib `Figure` out; drawn as `plots` draws, on the same pages.

A summary is what `study.summarize` returns: a row a setting, a column for each varied parameter,
`runs`, and for each metric `METRIC/mean`, `METRIC/low` and `METRIC/high`, nan where a single run
leaves no interval. Values of parameters are numbers, texts, tuples of numbers (widths of layers)
or None where a setting has no such parameter.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from fmnist_lab.page import (
    BLUE,
    GREY,
    INK,
    PALE,
    RED,
    SMALL,
    TEXT,
    Page,
    cut,
    spread,
    widest,
    width_of,
)
from fmnist_lab.statistics import Interval

METRICS = {
    "accuracy/test": "Test accuracy",
    "accuracy/gap": "Accuracy gap",
    "loss/test": "Test loss",
    "loss/gap": "Loss gap",
}
HEADS = METRICS | {"accuracy/gap": "Accuracy gap, train - test"}
SPOKEN = {"data.train_limit": "training images", "data.test_limit": "test images"}
PAIR = {"accuracy/test": BLUE, "accuracy/gap": RED}
# Paul Tol's "vibrant" scheme, which stays apart under the common kinds of colour blindness.
DISTINCT = (BLUE, RED, "#009988", "#ee7733", "#33bbee", "#ee3377", GREY)
BARS = "Bars: 95 % intervals (t) of the means of {} runs."
BANDS = BARS.replace("Bars", "Bands")
HALVES = "Means of {} runs, ± half their 95 % intervals (t)."
# Beyond this many, labels and colours say nothing any more.
MOST_GROUPS = 12
MOST_CELLS = 24
MOST_PANELS = 6
TINY = 6.0  # Type size of half-widths in cells, in points.
EVEN_LUMINANCE = 0.213  # Where white and INK contrast with a colour alike.
STEPS = [1, 2, 2.5, 5, 10]  # matplotlib's own choice has ticks at multiples of 0.006, too.
LEAST_SPAN = 0.01  # Of a scale, else noise between settings would look like something.


def order_key(value: Any) -> tuple[Any, ...]:
    """Return what a parameter's values are sorted by: numbers, layers, texts, then None."""
    if value is None:
        return (2,)
    if isinstance(value, str):
        return (1, value)
    layers = value if isinstance(value, tuple) else (value,)
    return (0, len(layers), *layers)


def ordered(values: Iterable[Any]) -> list[Any]:
    """Return the distinct values of a parameter in order."""
    return sorted(set(values), key=order_key)


def shown(value: Any) -> str:
    """Return a parameter's value as run names have it: 0.001, 256-128, SGD, true."""
    if value is None:
        return "none"
    if value in ("True", "False"):  # As MLflow has stored them.
        return value.lower()
    if isinstance(value, tuple):
        return "-".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def number(value: float) -> str:
    """Return a metric to four decimals, and never -0.0000."""
    return f"{round(float(value), 4) + 0.0:.4f}"


def short_names(parameters: Sequence[str]) -> dict[str, str]:
    """Return what parameters are called in figures: `trainer.epochs` is "epochs"."""
    short = [SPOKEN.get(name, name.rpartition(".")[2]) for name in parameters]
    return {
        name: (last if short.count(last) == 1 else name).replace("_", " ")
        for name, last in zip(parameters, short, strict=True)
    }


def palette(levels: Sequence[Any]) -> list[str]:
    """Return a colour for each level: light to dark where they have an order, else distinct."""
    if _is_text(levels) and len(levels) <= len(DISTINCT):
        return list(DISTINCT[: len(levels)])
    # Without the yellow end, which is lost on white.
    return [to_hex(color) for color in colormaps["viridis"](np.linspace(0.78, 0.05, len(levels)))]


def parameters_of(summary: pd.DataFrame) -> list[str]:
    """Return the varied parameters of a summary: all columns but the results."""
    return [name for name in summary if name != "runs" and "/" not in name]


def grouped(frame: pd.DataFrame, parameters: Sequence[str]) -> dict[tuple[Any, ...], pd.DataFrame]:
    """Return the rows of each setting, in the order of their first; tuples and None are values."""
    return {key: frame.iloc[rows] for key, rows in rows_of(frame, parameters).items()}


def rows_of(frame: pd.DataFrame, parameters: Sequence[str]) -> dict[tuple[Any, ...], list[int]]:
    """Return the numbers of each setting's rows, from 0; without parameters all are of one."""
    if not parameters:
        return {(): list(range(len(frame)))}
    places: dict[tuple[Any, ...], list[int]] = {}
    for place, key in enumerate(zip(*(frame[name] for name in parameters), strict=True)):
        places.setdefault(key, []).append(place)
    return places


def cells(
    summary: pd.DataFrame, x: str, y: str, metric: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], str]:
    """Return what a heat map's cells show, rows upwards, and what its reader must know.

    Args:
        summary: As above.
        x: The parameter across.
        y: The parameter upwards.
        metric: Such as `accuracy/gap`.

    Returns:
        Means (nan where there is no setting), half-widths (nan where there are none), and a note.
    """
    columns, rows = ordered(summary[x]), ordered(summary[y])
    mean, low, high = mean_low_high(summary, metric)
    sums, halves = np.zeros((len(rows), len(columns))), np.full((len(rows), len(columns)), np.nan)
    counts = np.zeros_like(sums)
    for index, (across, up) in enumerate(zip(summary[x], summary[y], strict=True)):
        cell = rows.index(up), columns.index(across)
        sums[cell] += mean[index]
        halves[cell] = (high[index] - low[index]) / 2
        counts[cell] += 1
    with np.errstate(invalid="ignore"):
        means = sums / counts
    if counts.max() <= 1:
        return means, halves, interval_note(summary["runs"], HALVES)
    halves[:] = np.nan
    names = short_names(parameters_of(summary))
    others = [names[name] for name in parameters_of(summary) if name not in (x, y)]
    least, most = int(counts[counts > 0].min()), int(counts.max())
    note = f"Each cell is the mean over {least} settings of {_listed(others)}."
    if least < most:
        note = (
            f"Each cell is the mean over {least} to {most} settings of {_listed(others)}, "
            "not the same ones everywhere."
        )
    return means, halves, note


def shades(depth: NDArray[np.float64], hue: str) -> NDArray[np.float64]:
    """Return RGB colours: nearly white at 0, `hue` at 0.65, a dark shade of it at 1."""
    full = np.array(to_rgb(hue))
    stops = np.stack([0.96 + 0.04 * full, full, 0.4 * full])
    return np.stack([np.interp(depth, [0, 0.65, 1], stop) for stop in stops.T], axis=-1)


def inks(means: NDArray[np.float64], metric: str) -> NDArray[Any]:
    """Return the colours in which to write on a heat map's cells, by their WCAG luminance."""
    colors = _cell_colors(means, metric)
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    return np.where(linear @ (0.2126, 0.7152, 0.0722) < EVEN_LUMINANCE, "white", INK)


def is_geometric(levels: Any) -> bool:
    """Return whether numbers in order call for a logarithmic axis."""
    return bool(levels[0] > 0 and levels[-1] / levels[0] >= 16)


def mean_low_high(summary: pd.DataFrame, metric: str) -> list[NDArray[np.float64]]:
    """Return a metric's means and the ends of their intervals."""
    return [summary[f"{metric}/{part}"].to_numpy(float) for part in ("mean", "low", "high")]


def span(values: NDArray[np.float64], pad: float = 0.06) -> tuple[float, float]:
    """Return the lowest and highest finite value, apart by `LEAST_SPAN` at least, and padded."""
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    lack = max(LEAST_SPAN - (high - low), 0) / 2
    margin = pad * (high - low + 2 * lack)
    return low - lack - margin, high + lack + margin


def interval_note(runs: pd.Series, words: str) -> str:
    """Return what intervals mean, the number of runs filled in, or that there are none."""
    least, most = int(runs.min()), int(runs.max())
    if most == 1:
        return "One run a setting: no intervals."
    return words.format(most if least == most else f"{least} to {most}")


def heat_map(summary: pd.DataFrame, x: str, y: str, metric: str, label: str) -> Figure:
    """A metric over two parameters, its mean and the half-width of its interval in each cell.

    Where settings differ in more than the two, a cell is the mean of its settings, without an
    interval: the spread between settings is no measure of chance.

    Args:
        summary: As above.
        x: The parameter across.
        y: The parameter upwards.
        metric: Such as `accuracy/gap`; accuracy is drawn in blue, gaps and losses in red.
        label: What the metric is called in the title.

    Returns:
        The figure.
    """
    names = short_names(parameters_of(summary))
    columns, rows = ordered(summary[x]), ordered(summary[y])
    means, halves, note = cells(summary, x, y, metric)
    colors, writing = _cell_colors(means, metric), inks(means, metric)

    written = max(len(columns), len(rows)) <= MOST_CELLS
    texts = [number(value) for value in means.flat]
    wide = max(widest(texts, SMALL), width_of("± 0.0000", TINY)) + 10 if written else 14.0
    tall = (28.0 if np.isfinite(halves).any() else 22.0) if written else 14.0
    # Room for the title, and for the name of the axis at the side.
    wide = max(wide, 200 / len(columns))
    tall = max(tall, (width_of(names[y], TEXT) + 8) / len(rows))
    across = [cut(shown(value), TEXT, 120) for value in columns]
    upright = widest(across, TEXT) > wide - 4
    upwards = [cut(shown(value), TEXT, 120) for value in rows]
    left = widest(upwards, TEXT) + 20
    right, bottom = left + wide * len(columns), tall * len(rows)
    below = bottom + (widest(across, TEXT) if upright else TEXT) + 19
    page = Page(right + 44, below, f"{label} by {names[x]} and {names[y]}", note)
    boxes = []
    center: dict[str, Any] = {"ha": "center", "va": "center_baseline"}
    for row, name in enumerate(upwards):
        top = bottom - tall * (row + 1)
        page.text(left - 5, top + tall / 2, name, ha="right", va="center_baseline")
        for column in range(len(columns)):
            start, mean, half = left + wide * column, means[row, column], halves[row, column]
            boxes.append((start, top, start + wide, top + tall))
            if not written:
                continue
            ink = writing[row, column]
            middle = top + tall / 2 - (4 if np.isfinite(half) else 0)
            text = number(mean) if np.isfinite(mean) else ""
            page.text(start + wide / 2, middle, text, SMALL, ink, **center)
            if np.isfinite(half):
                page.text(start + wide / 2, middle + 9, f"± {half:.4f}", TINY, ink, **center)
    page.boxes(boxes, colors.reshape(-1, 3), "white")
    for column, name in enumerate(across):
        style: dict[str, Any] = {"ha": "center", "va": "top", "rotation": 90 * upright}
        page.text(left + wide * (column + 0.5), bottom + 5, name, **style)
    page.text(0, bottom / 2, names[y].capitalize(), color=GREY, rotation=90, va="center")
    page.text((left + right) / 2, below, names[x].capitalize(), color=GREY, ha="center")
    scale = shades(np.linspace(1, 0, 128)[:, None], _hue(metric))
    low, high = span(means, pad=0)
    page.image((right + 8, 0, right + 15, bottom), scale)
    page.text(right + 18, 0, f"{high:.3f}", SMALL, va="top")
    page.text(right + 18, bottom, f"{low:.3f}", SMALL, va="baseline")
    return page.figure


def against(summary: pd.DataFrame, x: str) -> Figure:
    """Test accuracy and gap against a single parameter: lines over numbers, else rows of dots.

    Args:
        summary: As above; where settings differ in more than `x`, each is a point of its own.
        x: The parameter.

    Returns:
        The figure.
    """
    parameters = parameters_of(summary)
    names = short_names(parameters)
    levels = ordered(summary[x])
    title, note = f"Test accuracy and gap by {names[x]}", interval_note(summary["runs"], BARS)
    if others := [names[name] for name in parameters if name != x]:
        note += f" Settings differ in {_listed(others)}, too."
    if not all(isinstance(level, int | float) for level in levels):
        places = np.array([levels.index(value) for value in summary[x]])
        bounds = {metric: mean_low_high(summary, metric) for metric in PAIR}
        return _rows(title, note, [shown(level) for level in levels], places, bounds)
    width, height = 190.0, 150.0
    page = Page(2 * width + 78, height + 40, title, note)
    values = summary[x].to_numpy(float)
    order = np.argsort(values, kind="stable")
    for index, (metric, color) in enumerate(PAIR.items()):
        left = 30 + index * (width + 48)
        box = (left, 16, left + width, 16 + height)
        axes = page.panel(box, METRICS[metric], names[x].capitalize())
        seen = [bound[order] for bound in mean_low_high(summary, metric)]
        axes.errorbar(
            values[order],
            seen[0],
            yerr=_reach(seen),
            color=color,
            marker="o",
            markersize=4,
            linewidth=0 if others else 1.2,
            elinewidth=1.0,
            capsize=2.0,
        )
        _limit(axes.set_ylim, np.concatenate([*seen, [0] * (metric == "accuracy/gap")]))
        _mark(axes, np.array(levels, float), width)
    return page.figure


def seeds(runs: pd.DataFrame, intervals: Mapping[str, Interval]) -> Figure:
    """Test accuracy and gap of every run of one setting, with their means and intervals.

    Args:
        runs: A row a run: `seed`, `accuracy/test` and `accuracy/gap`.
        intervals: Of each of the two metrics.

    Returns:
        The figure.
    """
    note = interval_note(pd.Series([len(runs)]), f"Lines: means. {BANDS}")
    bounds = {metric: tuple([runs[metric].to_numpy(float)] * 3) for metric in PAIR}
    labels = [f"seed {shown(seed)}" for seed in runs["seed"]]
    title = "Test accuracy and gap of each run"
    return _rows(title, note, labels, np.arange(len(runs)), bounds, intervals)


def against_epochs(points: pd.DataFrame, group: Sequence[str], metric: str) -> Figure:
    """A metric against epoch, a line a setting, with a band where there are several seeds.

    Args:
        points: A row a setting and epoch: the columns of `group`, `epoch`, `runs`, `mean`, `low`
            and `high`.
        group: The varied parameters but for the epochs: a colour for each value of the first, a
            panel for each setting of the rest.
        metric: Its name.

    Returns:
        The figure.
    """
    names = short_names(group)
    levels = ordered(points[group[0]]) if group else [None]
    colors = dict(zip(levels, palette(levels) if group else [RED], strict=True))
    rest = list(group[1:])
    panels = list(grouped(points, rest).items())
    note = interval_note(points["runs"], BANDS)
    if len(panels) > MOST_PANELS:
        note += f" The first {MOST_PANELS} of {len(panels)} panels."
        panels = panels[:MOST_PANELS]
    labels = len(levels) <= MOST_GROUPS
    if not labels:
        note += f" Light to dark: {names[group[0]]} {shown(levels[0])} to {shown(levels[-1])}."
    per_row = min(len(panels), 2 if len(panels) in (2, 4) else 3)
    width, height = (300, 190) if len(panels) == 1 else (180, 140)
    gutter = 14.0
    if group and labels:
        gutter += max(widest(map(shown, levels), TEXT), width_of(names[group[0]], SMALL))
    gutter = min(gutter, 134)
    pitch, drop = 26 + width + gutter + 10, height + 54
    lines = -(-len(panels) // per_row)
    by = f" by {_listed(list(names.values()))}" if group else ""
    title = f"{METRICS[metric]} against epoch{by}"
    page = Page(per_row * pitch - 10, lines * drop - 14, title, note)
    values = points[["mean", "low", "high"]].to_numpy(float)
    if metric == "accuracy/gap":
        # From 0, or a gap that hardly grows would look as if it soared.
        values = np.append(values, 0)
    longest = float(points["epoch"].max())
    for index, (setting, part) in enumerate(panels):
        x, y = 26 + index % per_row * pitch, 16 + index // per_row * drop
        head = ", ".join(
            f"{names[name]} {shown(value)}" for name, value in zip(rest, setting, strict=True)
        )
        head = cut(head, TEXT, width + gutter, "bold") or HEADS[metric]
        axes = page.panel((x, y, x + width, y + height), head, "Epoch")
        axes.set_xlim(min(1.0, float(points["epoch"].min())) - 0.02 * longest, 1.02 * longest)
        _limit(axes.set_ylim, values)
        axes.xaxis.set_major_locator(
            MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
        )
        ends = _lines(axes, part, group, colors)
        if group and labels:
            page.text(x + width + 8, y - 6, names[group[0]], SMALL, GREY)
            _label_ends(page, axes, ends, x + width + 8, gutter - 8)
    return page.figure


def accuracy_against_gap(summary: pd.DataFrame, group: str, path: str | None) -> Figure:
    """Test accuracy against accuracy gap, a point a setting, with intervals both ways.

    Args:
        summary: As above.
        group: The parameter that gives points their colour.
        path: Another one, with an order, along which points that differ in it alone are joined.

    Returns:
        The figure.
    """
    parameters = parameters_of(summary)
    names, levels = short_names(parameters), ordered(summary[group])
    colors = dict(zip(levels, palette(levels), strict=True))
    note = interval_note(summary["runs"], BARS)
    rest = [name for name in parameters if name != path]
    if len(grouped(summary, rest)) > MOST_GROUPS:
        path = None
    if path:
        steps = ordered(summary[path])
        note += f" Lines follow {names[path]} from {shown(steps[0])} to {shown(steps[-1])}."
    named = len(levels) <= MOST_GROUPS
    if not named:
        note += f" Light to dark: {names[group]} {shown(levels[0])} to {shown(levels[-1])}."
    legend = [cut(shown(level), TEXT, 130) for level in levels] if named else []
    width, height = 300, 220
    gutter = max(widest(legend, TEXT) + 14, width_of(names[group], SMALL)) + 14 if named else 0
    page = Page(34 + width + gutter, height + 42, "Test accuracy against the gap", note)
    axes = page.panel((34, 16, 34 + width, 16 + height), "Test accuracy", "Accuracy gap")
    for part in grouped(summary, rest if path else [group]).values():
        if path:
            part = part.iloc[np.argsort([steps.index(step) for step in part[path]])]
        gap, accuracy = mean_low_high(part, "accuracy/gap"), mean_low_high(part, "accuracy/test")
        axes.errorbar(
            gap[0],
            accuracy[0],
            xerr=_reach(gap),
            yerr=_reach(accuracy),
            color=colors[part[group].iloc[0]],
            marker="o",
            markersize=3.5,
            linewidth=1.0 if path else 0,
            elinewidth=0.8,
        )
    _limit(axes.set_ylim, np.concatenate(mean_low_high(summary, "accuracy/test")))
    _limit(axes.set_xlim, np.concatenate(mean_low_high(summary, "accuracy/gap")))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
    if named:
        x = 34 + width + 14
        page.text(x, 10, names[group], SMALL, GREY)
        # Numbers upwards, as more of anything tends to lie further up.
        order = list(zip(legend, levels, strict=True))[:: 1 if _is_text(levels) else -1]
        for place, (text, level) in enumerate(order):
            y = 22 + 12 * place
            page.boxes([(x, y - 2.5, x + 8, y + 2.5)], colors[level])
            page.text(x + 12, y, text, va="center_baseline")
    return page.figure


def _hue(metric: str) -> str:
    return BLUE if metric == "accuracy/test" else RED


def _cell_colors(means: NDArray[np.float64], metric: str) -> NDArray[np.float64]:
    low, high = span(means, pad=0)
    colors = shades(np.nan_to_num((means - low) / (high - low)), _hue(metric))
    colors[~np.isfinite(means)] = to_rgb("#f2f2f2")
    return colors


def _rows(
    title: str,
    note: str,
    labels: Sequence[str],
    places: NDArray[np.int64],
    bounds: Mapping[str, Sequence[NDArray[np.float64]]],
    intervals: Mapping[str, Interval] | None = None,
) -> Figure:
    """Draw rows of dots, downwards, for test accuracy and for the gap side by side."""
    pitch = min(16.0, 600 / len(labels))
    # Of very many rows, only as many names as there is room for.
    every = int(np.ceil(10 / pitch))
    labels = [cut(label, TEXT, 160) for label in labels]
    left, width, height = widest(labels, TEXT) + 8, 170.0, pitch * len(labels) + 8
    page = Page(left + 2 * width + 38, height + 40, title, note)
    for row in range(0, len(labels), every):
        y = 20 + pitch * (row + 0.5)
        page.text(left - 6, y, labels[row], ha="right", va="center_baseline")
    for index, (metric, color) in enumerate(PAIR.items()):
        start = left + index * (width + 24)
        axes = page.panel((start, 16, start + width, 16 + height), METRICS[metric])
        seen = list(bounds[metric])
        if intervals:
            known = intervals[metric]
            if known.count > 1:
                axes.axvspan(known.low, known.high, color=color, alpha=0.14, linewidth=0)
                axes.axvline(known.mean, color=color, linewidth=1.0)
                seen.append(np.array([known.low, known.high]))
                text = f"{number(known.mean)} ± {number(known.high - known.mean)}"
                page.text(start + width, 10, text, SMALL, color, ha="right")
        axes.errorbar(
            bounds[metric][0],
            places,
            xerr=None if intervals else _reach(bounds[metric]),
            color=color,
            marker="o",
            markersize=4 if pitch > 6 else 2.5,
            linewidth=0,
            elinewidth=1.0,
        )
        margin = 4 / pitch
        axes.set_ylim(len(labels) - 0.5 + margin, -0.5 - margin)
        axes.yaxis.set_major_locator(NullLocator())
        _limit(axes.set_xlim, np.concatenate(seen))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    return page.figure


def _lines(
    axes: Axes, part: pd.DataFrame, group: Sequence[str], colors: Mapping[Any, str]
) -> list[tuple[float, float, Any]]:
    """Draw a panel's lines and bands; return where each ends and the level it belongs to."""
    ends = []
    for key, line in grouped(part, group[:1]).items():
        line = line.sort_values("epoch")
        level = key[0] if key else None
        epochs, mean = line["epoch"].to_numpy(float), line["mean"].to_numpy(float)
        low, high = line["low"].to_numpy(float), line["high"].to_numpy(float)
        axes.fill_between(epochs, low, high, color=colors[level], alpha=0.18, linewidth=0)
        # Dots where few epochs were measured: they show which.
        marker = "o" if len(epochs) <= 12 else ""
        axes.plot(epochs, mean, color=colors[level], linewidth=1.4, marker=marker, markersize=3)
        ends.append((epochs[-1], mean[-1], level))
    return ends


def _label_ends(
    page: Page, axes: Axes, ends: list[tuple[float, float, Any]], x: float, room: float
) -> None:
    """Write what each line stands for beside its end, apart from each other."""
    to_page = axes.transData - page.axes.transData
    top, bottom = (to_page.transform((0, limit))[1] for limit in reversed(axes.get_ylim()))
    points = sorted((*to_page.transform(end[:2])[::-1], end[2]) for end in ends)
    places = spread(np.array([point[0] for point in points]), 10, top, bottom)
    for place, (y, start, level) in zip(places, points, strict=True):
        page.line((start + 3, y), (x - 2, place), PALE)
        page.text(x, place, cut(shown(level), TEXT, room), va="center_baseline")


def _is_text(levels: Iterable[Any]) -> bool:
    return any(isinstance(level, str) for level in levels)


def _reach(bounds: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """How far intervals go below and above their means, as matplotlib wants it."""
    mean, low, high = bounds
    return np.abs(np.stack([mean - low, high - mean]))


def _limit(setter: Callable[..., Any], values: NDArray[np.float64]) -> None:
    setter(*span(values))


def _mark(axes: Axes, levels: NDArray[np.float64], width: float) -> None:
    """Put ticks on the levels of a numeric axis, on a logarithmic scale where they call for it."""
    scale = "log" if is_geometric(levels) else "linear"
    there: Any = np.log10 if scale == "log" else np.array
    back: Any = partial(np.power, 10.0) if scale == "log" else np.array
    first, last = there(levels[[0, -1]])
    pad = 0.05 * (last - first) or 0.5
    axes.set_xscale(scale)
    axes.set_xlim(*back([first - pad, last + pad]))
    if len(levels) > MOST_GROUPS:
        ticks = MaxNLocator(5, steps=STEPS, integer=scale == "log").tick_values(first, last)
        levels = back(ticks[(ticks >= first - pad) & (ticks <= last + pad)])
    places = (there(levels) - first) * width / (last - first + 2 * pad)
    marks, edge = [], -np.inf
    for level, place in zip(levels.tolist(), places, strict=True):
        half = width_of(f"{level:g}", SMALL) / 2 + 2
        if place - half >= edge:
            marks.append(level)
            edge = place + half
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.xaxis.set_minor_locator(NullLocator())


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
