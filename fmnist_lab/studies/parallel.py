"""A search in, its parallel coordinates out; see `search_charts`."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from fmnist_lab.studies import vega
from fmnist_lab.studies.frames import listed, shown
from fmnist_lab.studies.search_marks import (
    beyond,
    ends_of,
    named,
    objectives_text,
    round_numbers,
    trial_tip,
    within,
)
from fmnist_lab.studies.trials import MAXIMIZE, Parameter, Search
from fmnist_lab.studies.vega import INK, RED, Chart, Records

AXIS_WIDTH, AXIS_HEIGHT = 104, 230
NAME_LETTERS, TICK_LETTERS = 15, 16  # In a line of the name of an axis, and at a tick.


def parallel(search: Search) -> Chart:
    """Each trial as a line over the hyperparameters to its objectives, dark where it is good."""
    axes: list[Parameter | str] = [*search.parameters, *search.objectives]
    domains = {metric: ends_of(search, metric) for metric in search.objectives}
    ways = _ways(search, axes, domains)
    last = len(axes) - 1
    x = vega.field("axis", axis=None, scale={"domain": [0, last], "nice": False})
    y = vega.field("place", axis=None, scale={"domain": [0, 1], "nice": False})
    shade: Chart = {"domain": [0, 1], "scheme": vega.LIGHT_TO_DARK}
    good = vega.field("good", scale=shade, legend=None)
    detail = vega.field("trial", "nominal")
    styles: list[tuple[bool, dict[str, Any]]] = [
        (False, {"strokeWidth": 0.8, "strokeDash": [3, 2], "strokeOpacity": 0.65}),
        (True, {"strokeWidth": 1.5, "strokeOpacity": 0.95}),
    ]
    layers: list[Chart] = []
    for is_over, style in styles:
        some = [
            each for each in ways if each["is_over"] == is_over and each["trial"] != search.best
        ]
        line = vega.mark(
            "line", x=x, y=y, color=good, detail=detail, description=vega.TIP, style=style
        )
        layers.append(line | {"data": vega.data(some)})
    best = [each for each in ways if each["trial"] == search.best]
    red = {"strokeWidth": 2.2, "color": RED}
    layers.append(
        vega.mark("line", x=x, y=y, detail=detail, description=vega.TIP, style=red)
        | {"data": vega.data(best)}
    )
    layers += _parallel_axes(search, axes, domains, x, y)
    width = AXIS_WIDTH * max(last, 1)
    chart: Chart = {"layer": layers, "width": width, "height": AXIS_HEIGHT}
    chart["view"] = {"stroke": None}
    logs = [each.name for each in search.parameters if each.is_log]
    told = f" Logarithmic: {listed(logs)}." if logs else ""
    kinds = "Lines: trials, dark where they are good"
    kinds += ", dashed where they have not finished." if has_unfinished(search) else "."
    winner = f" Red: trial {search.best}, the best." if search.best is not None else ""
    title = f"{objectives_text(search)} by all hyperparameters"
    return vega.finished(
        chart, title, f"{kinds}{winner}{told}{beyond(search, search.objectives)}", width
    )


def _ways(
    search: Search, axes: Sequence[Parameter | str], domains: Mapping[str, tuple[float, float]]
) -> Records:
    """Return the points of each trial's line, those that matter last."""
    first, direction = search.objective, search.objectives[search.objective]
    low, high = domains[first]
    ways: Records = []
    for row in search.trials.to_dict("records"):
        if not math.isfinite(row[first]):
            continue
        value = within(row[first], domains[first], direction)[0]
        merit = (value - low) / (high - low)
        places = [
            axis.place(row[axis.key])
            if isinstance(axis, Parameter)
            else _share(row[axis], domains[axis], search.objectives[axis])
            for axis in axes
        ]
        ways += [
            {
                "trial": row["trial"],
                "axis": column,
                "place": place,
                "good": merit if direction == MAXIMIZE else 1 - merit,
                "is_over": row["status"] == "FINISHED",
                "tip": trial_tip(search, row),
            }
            for column, place in enumerate(places)
            if math.isfinite(place)
        ]
    ways.sort(key=lambda each: (each["is_over"], each["good"], each["trial"], each["axis"]))
    return ways


def _parallel_axes(
    search: Search,
    axes: Sequence[Parameter | str],
    domains: Mapping[str, tuple[float, float]],
    x: Mapping[str, Any],
    y: Mapping[str, Any],
) -> list[Chart]:
    """Draw upright axes with their ticks, and their names above them."""
    ticks: Records = []
    names = [
        textwrap.wrap(
            vega.capital(each.name if isinstance(each, Parameter) else named(each)), NAME_LETTERS
        )
        for each in axes
    ]
    most = max(map(len, names))
    # Texts of several lines grow downwards from their place, towards the axis.
    heads: Records = [
        {"axis": column, "place": 1, "low": 0, "text": [""] * (most - len(name)) + name}
        for column, name in enumerate(names)
    ]
    for column, axis in enumerate(axes):
        if isinstance(axis, Parameter):
            marks = _ticks(axis)
        else:
            low, high = domains[axis]
            marks = [((at - low) / (high - low), shown(at)) for at in round_numbers(low, high)]
        ticks += [{"axis": column, "place": place, "text": text} for place, text in marks]
    text = vega.field("text", "nominal")
    beside = {"align": "right", "dx": -5, "fontSize": 9}
    halo = beside | {"stroke": "white", "strokeWidth": 3, "strokeOpacity": 0.85}
    at = {"x": x, "y": y}
    rule = vega.mark("rule", **at, y2={"field": "low"}, style={"color": INK, "strokeWidth": 1})
    tick = vega.mark("tick", **at, style={"orient": "horizontal", "size": 6, "color": INK})
    above = {"dy": -10 - 12 * (most - 1), "baseline": "bottom", "lineHeight": 12, "fontSize": 10}
    head = vega.mark("text", **at, text=text, style=above | {"color": INK, "fontWeight": "bold"})
    return [
        rule | {"data": vega.data(heads)},
        tick | {"data": vega.data(ticks)},
        vega.mark("text", **at, text=text, style=halo) | {"data": vega.data(ticks)},
        vega.mark("text", **at, text=text, style=beside | {"color": INK})
        | {"data": vega.data(ticks)},
        head | {"data": vega.data(heads)},
    ]


def _ticks(parameter: Parameter) -> list[tuple[float, str]]:
    """Return places from 0 to 1 and labels of an axis of parallel coordinates."""
    if parameter.levels:
        labels = vega.labels(parameter.levels, parameter.key)
        return [(parameter.place(level), _short(labels[level])) for level in parameter.levels]
    values = round_numbers(parameter.low, parameter.high, parameter.is_log)
    return [(parameter.place(value), shown(value)) for value in values]


def _short(label: str) -> str:
    """Cut the middle out of a label that would reach the axis before."""
    return label if len(label) <= TICK_LETTERS else f"{label[:9]}…{label[-6:]}"


def _share(value: float, domain: tuple[float, float], direction: str) -> float:
    low, high = domain
    if not math.isfinite(value):
        return math.nan
    return (within(value, domain, direction)[0] - low) / (high - low)


def has_unfinished(search: Search) -> bool:
    """Return whether a trial has a value and has not finished."""
    begun = search.trials[search.trials[search.objective].map(math.isfinite)]
    return bool((begun["status"] != "FINISHED").any())
