"""Summaries of studies in, charts out: Vega-Lite specifications, the same for paper and page.

The tables are as in `frames`; `vega` draws the specifications.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from fmnist_lab.evaluation.statistics import Interval
from fmnist_lab.studies import vega
from fmnist_lab.studies.frames import (
    CLEAN_GAP,
    DRAWN,
    GAP,
    MEMORISED,
    METRICS,
    TRAINED,
    VALIDATED,
    cell,
    grouped,
    listed,
    mean_text,
    number,
    ordered,
    parameters_of,
    short_names,
    shown,
)
from fmnist_lab.studies.vega import (
    BLUE,
    ENDS,
    GREY,
    MOST_GROUPS,
    ORANGE,
    PURPLE,
    RED,
    TEAL,
    Chart,
    Records,
)
from fmnist_lab.texts import counted

HUES = {VALIDATED: TEAL, "accuracy/test": BLUE, GAP: RED, CLEAN_GAP: ORANGE, MEMORISED: PURPLE}
HUES |= {TRAINED: GREY}
NAMES = METRICS | {TRAINED: "Training accuracy"}
FROM_ZERO = (GAP, CLEAN_GAP, MEMORISED)
BARS = "Bars: 95 % intervals (t) of the means of {} runs."
BANDS = BARS.replace("Bars", "Bands")
JACKKNIFE = "Bars: 95 % intervals (jackknife, t) from {} runs."
MOST_PANELS = 6
GIVEN = " Accuracy gap: by the labels trained on, wrong ones among them."


def charted(summary: pd.DataFrame) -> list[str]:
    """Return the metrics that are drawn, that on held-out images if most settings have it."""
    most = len(summary) / 2
    return [
        metric
        for metric in DRAWN
        if f"{metric}/mean" in summary
        and (metric != VALIDATED or summary[f"{metric}/mean"].notna().sum() >= max(most, 1))
    ]


def titled(names: Iterable[str]) -> str:
    """Return the common name of metrics of these names: "Test accuracy and gap"."""
    first, *others = (name.lower() for name in names)
    return listed([first, *(name.replace("accuracy gap", "gap") for name in others)]).capitalize()


def against(
    summary: pd.DataFrame,
    x: str,
    group: str = "",
    metrics: Mapping[str, str] | None = None,
) -> Chart:
    """Metrics against one parameter: lines over numbers, else rows of points.

    Args:
        summary: One row per setting; where they differ in more than `x` and `group`, each is a
            point.
        x: The parameter.
        group: Another one, each value of which is a line of its own colour over numbers; "": none.
        metrics: The names of estimates that are no means of runs; None: what `charted` returns.
    """
    bars = JACKKNIFE if metrics else BARS
    names, metrics = short_names(parameters_of(summary)), metrics or _named(charted(summary))
    levels = vega.labels(summary[x], x)
    colors = vega.labels(summary[group], group) if group else {}
    note = interval_note(summary["runs"], bars) + GIVEN * (CLEAN_GAP in metrics)
    if others := [names[name] for name in names if name not in (x, group)]:
        note += f" Settings differ in {listed(others)}, too."
    is_numeric = all(isinstance(level, int | float) for level in levels)
    rows = summary.to_dict("records")
    panels = []
    for metric, title in metrics.items():
        records = [
            {end: row[f"{metric}/{end}"] for end in ENDS}
            | {"x": row[x] if is_numeric else levels[row[x]], "tip": _tip(row, names, metrics)}
            | ({"level": colors[row[group]]} if group else {})
            for row in rows
        ]
        if is_numeric:
            over = _over_numbers(records, list(levels), names[x], metric, bool(others), title)
            if group:
                over["encoding"] |= {"color": vega.color(names[group], colors)}
            panels.append(over)
        else:
            panels.append(_rows(records, list(levels.values()), metric))
    by = f" by {listed([names[x], *([names[group]] if group else [])])}"
    return _side_by_side(panels, titled(metrics.values()) + by, note)


def _named(metrics: Iterable[str]) -> dict[str, str]:
    return {metric: METRICS[metric] for metric in metrics}


def _side_by_side(panels: Sequence[Chart], title: str, note: str) -> Chart:
    """Put panels into one row, or into two where there are more than three."""
    if len(panels) > 3:
        return vega.finished({"concat": panels, "columns": 2}, title, note, 440)
    return vega.finished({"hconcat": panels}, title, note, 220 * len(panels))


def runs(frame: pd.DataFrame, intervals: Mapping[str, Interval]) -> Chart:
    """Accuracies of every run of one setting, with their means and intervals.

    Args:
        frame: One row per run: `seed`, `name`, and the metrics of `intervals`.
        intervals: Of each of the metrics.
    """
    note = interval_note(pd.Series([len(frame)]), f"Lines: means. {BANDS}")
    note += GIVEN * (CLEAN_GAP in intervals)
    labels = list(vega.unique([f"seed {shown(seed)}" for seed in frame["seed"]]))
    every = frame.to_dict("records")
    panels = []
    for metric, known in intervals.items():
        records = [
            {"x": label, "mean": run[metric], "tip": _run_tip(run, intervals)}
            for label, run in zip(labels, every, strict=True)
        ]
        panels.append(_rows(records, labels, metric, known))
    title = f"{titled(_named(intervals).values())} of each run"
    return _side_by_side(panels, title, note)


def _over_numbers(
    records: Records,
    levels: Sequence[float],
    name: str,
    metric: str,
    is_cloud: bool,
    title: str,
) -> Chart:
    """Draw points over an axis of numbers, logarithmic where they call for it."""
    is_geometric = levels[0] > 0 and levels[-1] / levels[0] >= 16
    scale = {"type": "log" if is_geometric else "linear", "zero": False, "nice": False}
    # A count of ticks beside their values would leave every other one out, and a format of the axis
    # itself would round 64 to 60 where the ticks are 20 apart.
    ticks: dict[str, Any] = {"values": list(levels)}
    if is_geometric:
        ticks = vega.logarithmic_ticks(levels)
    elif len(levels) > MOST_GROUPS + 1:
        ticks = {"tickCount": 5}
    labels = {"labelExpr": vega.NUMBER, "labelOverlap": "greedy", "labelSeparation": 5}
    axis: dict[str, Any] = labels | ticks
    x = vega.field("x", title=vega.capital(name), scale=scale | {"padding": 12}, axis=axis)
    span = vega.scale(records, from_zero=metric in FROM_ZERO)
    low, mean = (vega.field(end, title=title, scale=span) for end in ("low", "mean"))
    layers = [
        vega.mark("rule", y=low, y2={"field": "high"}),
        *([] if is_cloud else [vega.mark("line", y=mean, style={"strokeWidth": 1.4})]),
        vega.mark("circle", y=mean, description=vega.TIP, style={"size": 36, "opacity": 1}),
    ]
    encoding = {"x": x, "color": {"value": HUES.get(metric, BLUE)}}
    sizes = {"width": 200, "height": 150}
    return {"data": vega.data(records), "encoding": encoding, "layer": layers, **sizes}


def _rows(
    records: Records, labels: Sequence[str], metric: str, known: Interval | None = None
) -> Chart:
    """Draw rows of points, downwards, with their intervals or over that of their mean."""
    pitch = min(18.0, 600 / len(labels))
    axis = {"ticks": False, "domain": False, "labelOverlap": "greedy"}
    y = vega.field("x", "ordinal", title=None, scale={"domain": list(labels)}, axis=axis)
    has_mean = known is not None and known.count > 1
    ends = [vars(known)] if has_mean else []
    x = vega.field("mean", title=METRICS[metric], scale=vega.scale([*records, *ends]))
    x["axis"] = {"tickCount": 4}
    layers = [
        vega.mark(
            "circle",
            x=x,
            y=y,
            description=vega.TIP,
            style={"size": 36 if pitch > 6 else 12, "opacity": 1},
        )
        | {"data": vega.data(records)}
    ]
    low = vega.field("low", title=METRICS[metric])
    if known is None:
        bars = vega.mark("rule", x=low, x2={"field": "high"}, y=y)
        layers.insert(0, bars | {"data": vega.data(records)})
    sizes = {"width": 180, "height": {"step": pitch}}
    chart: Chart = {"encoding": {"color": {"value": HUES[metric]}}, "layer": layers, **sizes}
    if known is not None and has_mean:
        band = vega.mark("rect", x=low, x2={"field": "high"}, style={"opacity": 0.14})
        layers[:0] = [each | {"data": vega.data(ends)} for each in (band, vega.mark("rule", x=x))]
        told = f"mean {number(known.mean)} ± {number(known.high - known.mean)}"
        chart["title"] = {"text": told, "color": HUES[metric], "anchor": "end"}
    return chart


def against_epochs(
    points: pd.DataFrame, group: Sequence[str], metric: str, *, is_noisy: bool = False
) -> Chart:
    """A metric against epoch, a line for each setting, with a band where it has several seeds.

    Args:
        points: What `summary.mean_curves` returns.
        group: The varied parameters but for the epochs: a colour for each value of the first, a
            panel for each setting of the rest.
        metric: Its name.
        is_noisy: Whether some of the training labels are wrong.
    """
    names, first = short_names(group), group[0] if group else ""
    levels = vega.labels(points[first], first) if group else {None: ""}
    note = interval_note(points["runs"], BANDS) + GIVEN * (is_noisy and metric == GAP)
    panels = list(grouped(points, list(group[1:])).items())
    if len(panels) > MOST_PANELS:
        note += f" The first {MOST_PANELS} of {len(panels)} panels."
    if len(levels) > MOST_GROUPS:
        note += _of_many(names[first], levels)
    parts = {
        setting(dict(zip(group[1:], key, strict=True)), names): part
        for key, part in panels[:MOST_PANELS]
    }
    records = [
        {name: row[name] for name in ("epoch", *ENDS)}
        | {"level": levels[row.get(first)], "panel": head}
        | {"tip": _epoch_tip(row, names, metric)}
        for head, part in parts.items()
        for row in part.to_dict("records")
    ]
    # From 0, or a gap that hardly grows would look as if it soared.
    scale = vega.scale(records, from_zero=metric in FROM_ZERO)
    mean = vega.field("mean", title=NAMES[metric], scale=scale)
    low = vega.field("low", scale=scale)
    # Dots where few epochs were measured: they show which. Elsewhere they only carry the texts.
    is_sparse = points["epoch"].nunique() <= MOST_GROUPS
    ticks = {"values": sorted(set(points["epoch"]))} if is_sparse else {"tickCount": 6}
    axis: dict[str, Any] = {"tickMinStep": 1, "format": "d", **ticks}
    x = vega.field("epoch", title="Epoch", axis=axis)
    x["scale"] = {"nice": False, "zero": False, "padding": 4}
    color = vega.color(names[first], levels) if group else {"value": HUES[metric]}
    dot = {"size": 22, "opacity": int(is_sparse)}
    chart: Chart = {
        "encoding": {"x": x, "color": color},
        "layer": [
            vega.mark("area", y=low, y2={"field": "high"}, style={"opacity": 0.18}),
            vega.mark("line", y=mean, style={"strokeWidth": 1.5}),
            vega.mark("circle", y=mean, description=vega.TIP, style=dot),
        ],
        "width": 300 if len(parts) == 1 else 180,
        "height": 190 if len(parts) == 1 else 140,
    }
    columns = {1: 1, 2: 2, 4: 2}.get(len(parts), 3)
    if columns > 1:
        panel = vega.field("panel", "nominal", sort=list(parts))
        chart = {"facet": panel, "columns": columns, "spec": chart}
    by = f" by {listed(list(names.values()))}" if group else ""
    title = f"{NAMES[metric]} against epoch{by}"
    return vega.finished(chart | {"data": vega.data(records)}, title, note, 220 * max(columns, 2))


def accuracy_against_gap(
    summary: pd.DataFrame, group: str, path: str | None, frame: pd.DataFrame
) -> Chart:
    """Test accuracy against accuracy gap, a point for each setting, with intervals both ways.

    Args:
        summary: One row per setting.
        group: The parameter that gives points their colour.
        path: Another one, with an order; a line joins points that differ in it alone.
        frame: The runs that the summary is of. Each becomes a small, pale point.
    """
    names, levels = short_names(parameters_of(summary)), vega.labels(summary[group], group)
    rest = [name for name in names if name != path]
    note = interval_note(summary["runs"], BARS)
    runs = frame.to_dict("records") if len(frame) > len(summary) else []
    if runs:
        note += " Pale points: runs."
    if len(grouped(summary, rest)) > MOST_GROUPS:
        path = None
    steps = ordered(summary[path]) if path else []
    if path:
        note += f" Lines follow {names[path]} from {shown(steps[0])} to {shown(steps[-1])}."
    if len(levels) > MOST_GROUPS:
        note += _of_many(names[group], levels)
    # A reader takes the gap for overfitting: with wrong labels, that is the one on true labels.
    axes = {"x": CLEAN_GAP if CLEAN_GAP in charted(summary) else GAP, "y": "accuracy/test"}
    told = _named(each for each in charted(summary) if each in (VALIDATED, *axes.values()))
    records = [
        {f"{axis}_{end}": row[f"{metric}/{end}"] for axis, metric in axes.items() for end in ENDS}
        | {"level": levels[row[group]], "tip": _tip(row, names, told)}
        | {"path": str([row[name] for name in rest])}
        | {"step": steps.index(row[path]) if path else 0}
        for row in summary.to_dict("records")
    ]
    single = [
        {f"{axis}_mean": run[metric] for axis, metric in axes.items()}
        | {"level": levels[run[group]], "tip": _run_tip(run, list(axes.values())[::-1])}
        for run in runs
    ]
    x, y = (
        vega.field(f"{axis}_mean", title=METRICS[metric], axis={"tickCount": 6})
        | {"scale": vega.scale([*records, *single], [f"{axis}_{end}" for end in ENDS])}
        for axis, metric in axes.items()
    )
    layers = [
        vega.mark("rule", x=x, y=vega.field("y_low", title=y["title"]), y2={"field": "y_high"}),
        vega.mark("rule", x=vega.field("x_low", title=x["title"]), x2={"field": "x_high"}, y=y),
        vega.mark("circle", x=x, y=y, description=vega.TIP, style={"size": 10, "opacity": 0.35})
        | {"data": vega.data(single)},
        vega.mark("circle", x=x, y=y, description=vega.TIP, style={"size": 32, "opacity": 1}),
    ]
    if path:
        order = {"detail": vega.field("path", "nominal"), "order": vega.field("step")}
        layers.insert(2, vega.mark("line", x=x, y=y, **order, style={"strokeWidth": 1}))
    chart: Chart = {
        "data": vega.data(records),
        "encoding": {"color": vega.color(names[group], levels)},
    }
    chart |= {"layer": layers, "width": 320, "height": 230}
    return vega.finished(chart, "Test accuracy against the gap", note, 420)


def _tip(row: Mapping[str, Any], names: Mapping[str, str], metrics: Mapping[str, str]) -> str:
    """Return the text at the point of a setting: its values, then its results."""
    results = [f"{title.lower()} {cell(row, metric)}" for metric, title in metrics.items()]
    lines = [setting({name: row[name] for name in names}, names), *results, f"runs: {row['runs']}"]
    return "\n".join(filter(None, lines))


def _epoch_tip(row: Mapping[str, Any], names: Mapping[str, str], metric: str) -> str:
    """Return the text at a point of a curve."""
    at_setting = setting({name: row[name] for name in names}, names)
    mean = mean_text(row["mean"], row["high"] - row["mean"])
    at = ", ".join(filter(None, [at_setting, f"epoch {row['epoch']}"]))
    return f"{at}\n{NAMES[metric].lower()} {mean}"


def _run_tip(run: Mapping[str, Any], metrics: Iterable[str]) -> str:
    """Return the text at the point of a run: its name, then its results."""
    results = [f"{METRICS[metric].lower()} {number(run[metric])}" for metric in metrics]
    return "\n".join([str(run["name"]), *results])


def setting(values: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return a setting in words: "epochs 5, hidden units 128".

    Args:
        values: The values of its parameters.
        names: What the parameters are called.
    """
    return ", ".join(f"{names[name]} {shown(value, name)}" for name, value in values.items())


def _of_many(name: str, levels: Mapping[Any, str]) -> str:
    """Return the note on more levels than can be labelled."""
    if vega.has_text(levels):
        settings = counted(len(levels), "setting")
        return f" One of {settings} each; report.html tells which, at the pointer."
    labels = list(levels.values())
    return f" Light to dark: {name} {labels[0]} to {labels[-1]}."


def interval_note(runs: pd.Series, words: str) -> str:
    """Return the meaning of intervals, or that there are none.

    Args:
        runs: The number of runs of each setting.
        words: The meaning, with {} for that number.
    """
    least, most = int(runs.min()), int(runs.max())
    if most == 1:
        return "One run per setting: no intervals."
    return words.format(most if least == most else f"{least} to {most}")
