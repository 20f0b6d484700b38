"""What the charts of searches share: points of trials, their axes, and the words about them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from fmnist_lab.studies import vega
from fmnist_lab.studies.charts import setting
from fmnist_lab.studies.frames import METRICS, listed, number
from fmnist_lab.studies.trials import MAXIMIZE, Parameter, Search
from fmnist_lab.studies.vega import BLUE, RED, Chart, Records
from fmnist_lab.texts import counted

# Points beyond Tukey's fence would leave no room for the others; they are drawn at the edge.
FENCE = 1.5
DECADES = (1.0, 2.0, 5.0)
NAMES = METRICS | {"accuracy/gap_validation": "Validation accuracy gap"}


def named(metric: str) -> str:
    """Return what a metric is called, as a title: "Validation accuracy"."""
    return NAMES.get(metric, metric)


def spoken(metric: str) -> str:
    """Return what a metric is called within a sentence: "validation accuracy"."""
    return NAMES[metric].lower() if metric in NAMES else metric


def objectives_text(search: Search) -> str:
    """Return the common name of the objectives: "Validation accuracy and accuracy gap"."""
    return vega.capital(listed([spoken(metric) for metric in search.objectives]))


def points(search: Search, metric: str, domain: tuple[float, float]) -> Records:
    """Return one record per trial that has begun: its value, and how it is drawn."""
    worst = domain[0] if search.objectives[metric] == MAXIMIZE else domain[1]
    records = []
    for row in search.trials.to_dict("records"):
        is_known = math.isfinite(row[metric])
        if not is_known and row["status"] == "RUNNING":
            continue
        value, is_beyond = worst, True
        if is_known:
            value, is_beyond = within(row[metric], domain, search.objectives[metric])
        kind = "filled" if row["status"] == "FINISHED" else "hollow"
        if is_beyond:
            kind = "beyond" if is_known else "cross"
        records.append(
            {name: row[name] for name in ("trial", "status", "epochs")}
            | {"value": value, "is_known": is_known, "kind": kind, "tip": trial_tip(search, row)}
        )
    return records


def marks(search: Search, records: Records, x: Chart, y: Chart) -> list[Chart]:
    """Return layers of points: hollow, filled, beyond the scale, failed, and a ring at the best."""
    levels = vega.labels({each["epochs"] for each in records if each["is_known"]}, "epochs")
    color = vega.color("epochs", levels) if len(levels) > 1 else {"value": BLUE}
    records = [each | {"level": levels.get(each["epochs"], "")} for each in records]
    at = {"x": x, "y": y, "description": vega.TIP}
    hollow = {"filled": False, "strokeWidth": 1.4, "size": 26, "opacity": 1}
    filled = {"filled": True, "size": 42, "opacity": 1}
    beyond = {"shape": "triangle-down", "size": 40, "filled": False, "opacity": 1}
    cross = {"shape": "cross", "angle": 45, "size": 46, "color": RED, "opacity": 1, "filled": True}
    ring = {"size": 150, "filled": False, "color": RED, "strokeWidth": 1.6, "opacity": 1}
    kinds: dict[str, dict[str, Any]] = {"hollow": hollow, "filled": filled, "beyond": beyond}
    layers = [
        vega.mark("point", **at, color=color, style=style)
        | {"data": vega.data([each for each in records if each["kind"] == kind])}
        for kind, style in kinds.items()
    ]
    failed = [each for each in records if each["kind"] == "cross"]
    best = [each for each in records if each["trial"] in search.front]
    layers.append(vega.mark("point", **at, style=cross) | {"data": vega.data(failed)})
    layers.append(vega.mark("point", x=x, y=y, style=ring) | {"data": vega.data(best)})
    return layers


def ends_of(search: Search, metric: str) -> tuple[float, float]:
    """Return the ends of the axis of an objective of all trials."""
    return domain_of(search.trials[metric], search.objectives[metric])


def domain_of(values: pd.Series, direction: str) -> tuple[float, float]:
    """Return the ends of an axis, which a few bad trials do not stretch."""
    known = values[values.map(math.isfinite)]
    if known.empty:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    near, far = float(known.quantile(0.25)), float(known.quantile(0.75))
    if direction == MAXIMIZE:
        low = max(low, near - FENCE * (far - near))
    else:
        high = min(high, far + FENCE * (far - near))
    return vega.span([low, high])


def within(value: float, domain: tuple[float, float], direction: str) -> tuple[float, bool]:
    """Return a value on an axis, at its edge if it is too bad, and whether it is."""
    low, high = domain
    if direction == MAXIMIZE:
        return max(value, low), value < low
    return min(value, high), value > high


def beyond(search: Search, metrics: Iterable[str]) -> str:
    """Return a sentence on the trials that are drawn at the edge; "" if there are none."""
    told = []
    for metric in metrics:
        domain, way = ends_of(search, metric), search.objectives[metric]
        count = sum(within(value, domain, way)[1] for value in search.trials[metric])
        side, end = ("below", domain[0]) if way == MAXIMIZE else ("above", domain[1])
        if count:
            told.append(f" {counted(count, 'trial')} {side} {end:.3f}: at the edge.")
    return "".join(told)


def points_note(search: Search, metrics: Iterable[str]) -> str:
    """Return what the points of `marks` mean."""
    known = search.trials[search.trials[search.objective].map(math.isfinite)]
    parts = ["Filled: finished."]
    if others := sorted({state.lower() for state in known["status"]} - {"finished"}):
        parts.append(f"Hollow: {listed(others)}.")
    if search.front:
        one = len(search.objectives) == 1
        parts.append("Red ring: the best." if one else "Red rings: the Pareto front.")
    lost = sum(not math.isfinite(value) for value in search.trials[search.objective])
    if lost:
        parts.append(f"Crosses: {counted(lost, 'trial')} without a value.")
    return " ".join(parts) + beyond(search, metrics)


def trial_tip(search: Search, row: Mapping[str, Any]) -> str:
    """Return the text at a trial: its number and state, its values, its results."""
    values = {each.key: row[each.key] for each in search.parameters}
    names = {each.key: each.name for each in search.parameters}
    results = [
        f"{spoken(metric)} {number(row[metric])}"
        for metric in search.objectives
        if math.isfinite(row[metric])
    ]
    head = f"trial {row['trial']}, {row['status']}, {counted(row['epochs'], 'epoch')}"
    return "\n".join([head, setting(values, names), *results])


def metric_axis(metric: str, domain: tuple[float, float]) -> Chart:
    """Return the upright axis of a metric."""
    scale = {"domain": list(domain), "nice": False, "zero": False}
    return vega.field("value", title=named(metric), scale=scale, axis={"tickCount": 6})


def parameter_axis(parameter: Parameter) -> Chart:
    """Return the axis of a hyperparameter: a scale, or the values of a list side by side."""
    title = vega.capital(parameter.name)
    if parameter.levels:
        labels = list(vega.labels(parameter.levels, parameter.key).values())
        is_upright = max(map(len, labels)) * 6 * len(labels) > 170
        axis: Chart = {
            "labelAngle": -90 if is_upright else 0,
            "labelPadding": 7,
            "labelLimit": 110,
            "ticks": False,
        }
        return vega.field("x", "ordinal", title=title, scale={"domain": labels}, axis=axis)
    scale: Chart = {"type": "log" if parameter.is_log else "linear", "nice": False, "zero": False}
    scale |= {"domain": [parameter.low, parameter.high], "padding": 6}
    values = round_numbers(parameter.low, parameter.high, parameter.is_log)
    axis = {
        "values": values,
        "labelOverlap": "greedy",
        "labelExpr": vega.NUMBER if parameter.low >= 1e-6 else vega.TINY_NUMBER,
    }
    return vega.field("x", title=title, scale=scale, axis=axis)


def round_numbers(low: float, high: float, is_log: bool = False) -> list[float]:
    """Return round numbers between two ends: decades, or five or so equal steps.

    >>> round_numbers(1e-4, 0.1, is_log=True), round_numbers(16, 512, is_log=True)
    ([0.0001, 0.001, 0.01, 0.1], [20.0, 50.0, 100.0, 200.0, 500.0])
    >>> round_numbers(0.0, 0.5)
    [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    """
    if is_log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1.0,), DECADES):
            found = [float(f"{step}e{decade}") for decade in decades for step in steps]
            found = [each for each in found if low <= each <= high]
            if len(found) >= 3:
                return found
    size = 10 ** math.floor(math.log10((high - low) / 2))
    step = next(size * each for each in (1, 2, 5, 10) if (high - low) / (size * each) <= 6)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{place * step:.12g}") for place in range(first, last + 1)]
