"""A search in, its charts out: history, importance, hyperparameters, curves, front and finals.

See `charts`. Filled points are finished trials, hollow ones are paused; the winner is red.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from fmnist_lab.evaluation.statistics import Interval
from fmnist_lab.studies import vega
from fmnist_lab.studies.frames import VALIDATED, mean_text, number, short_names, shown
from fmnist_lab.studies.importance import Importance
from fmnist_lab.studies.search_marks import (
    beyond,
    domain_of,
    ends_of,
    marks,
    metric_axis,
    named,
    objectives_text,
    parameter_axis,
    points,
    points_note,
    spoken,
    trial_tip,
    within,
)
from fmnist_lab.studies.trials import MAXIMIZE, Search
from fmnist_lab.studies.vega import BLUE, GREY, INK, RED, Chart, Records
from fmnist_lab.texts import counted

PALE = "#b9bec4"


def history(search: Search) -> Chart:
    """The objectives of the trials in their order, and the best finished one so far."""
    panels = []
    for metric, direction in search.objectives.items():
        domain = ends_of(search, metric)
        records = points(search, metric, domain)
        x = vega.field("trial", title="Trial", axis={"tickMinStep": 1, "format": "d"})
        x["scale"] = {"nice": False, "zero": False, "padding": 8}
        y = metric_axis(metric, domain)
        over = [each for each in records if each["status"] == "FINISHED" and each["is_known"]]
        keep = max if direction == MAXIMIZE else min
        so_far = [
            {"trial": each["trial"], "value": best}
            for each, best in zip(
                over, accumulate((each["value"] for each in over), keep), strict=True
            )
        ]
        if so_far:
            so_far.append({"trial": records[-1]["trial"], "value": so_far[-1]["value"]})
        steps = vega.mark("line", x=x, y=y, style={"interpolate": "step-after", "color": GREY})
        layers = [steps | {"data": vega.data(so_far)}, *marks(search, records, x, y)]
        panels.append({"layer": layers, "width": 330, "height": 190})
    note = f"Line: the best finished trial so far. {points_note(search, search.objectives)}"
    title = f"{objectives_text(search)} of each trial"
    return vega.finished({"hconcat": panels}, title, note, 400 * len(panels))


def importance(found: Sequence[Importance]) -> Chart:
    """How much of the variance of each objective each hyperparameter explains.

    Args:
        found: What `importances` returns, as far as there are shares, by key.
    """
    panels = []
    for each in found:
        names = short_names(list(each.shares))
        records: Records = [
            {
                "name": names[key],
                "share": share,
                "text": f"{share:.2f}",
                "tip": f"{names[key]}: {share:.3f} of the variance",
            }
            for key, share in each.shares.items()
        ]
        order = [record["name"] for record in records]
        y = vega.field("name", "ordinal", title=None, scale={"domain": order})
        y["axis"] = {"ticks": False, "domain": False}
        x = vega.field("share", title=f"Share of the variation of {spoken(each.metric)}")
        x |= {"scale": {"domain": [0, 1]}, "axis": {"tickCount": 5}}
        bars = vega.mark("bar", x=x, y=y, description=vega.TIP, style={"color": BLUE, "height": 11})
        text = vega.field("text", "nominal")
        style = {"align": "left", "dx": 4, "fontSize": 10, "color": INK}
        words = vega.mark("text", x=x, y=y, text=text, style=style)
        panel = {"data": vega.data(records), "layer": [bars, words]}
        panels.append(panel | {"width": 260, "height": {"step": 22}})
    first = found[0]
    trials = counted(first.trials, "trial")
    note = f"Main effects of fANOVA over {trials} after {counted(first.epochs, 'epoch')}."
    return vega.finished(
        {"hconcat": panels}, "Importance of hyperparameters", note, 380 * len(found)
    )


def slices(search: Search) -> Chart:
    """The first objective against each hyperparameter, on the scale it was searched on."""
    metric = search.objective
    domain = ends_of(search, metric)
    records = points(search, metric, domain)
    rows = search.trials.set_index("trial")
    panels = []
    columns = {1: 1, 2: 2, 4: 2}.get(len(search.parameters), 3)
    for place, parameter in enumerate(search.parameters):
        x = parameter_axis(parameter)
        labels = vega.labels(parameter.levels, parameter.key)
        own = [
            each | {"x": labels[value] if labels else value}
            for each in records
            if (value := rows.at[each["trial"], parameter.key]) is not None or labels
        ]
        y = metric_axis(metric, domain)
        if place % columns:
            y["title"] = None
        panels.append({"layer": marks(search, own, x, y), "width": 170, "height": 150})
    chart = {"concat": panels, "columns": columns}
    title = f"{named(metric)} by hyperparameter"
    return vega.finished(chart, title, points_note(search, [metric]), 220 * columns)


def curves(search: Search) -> Chart:
    """The first objective of each trial against epoch, and the rungs."""
    metric, direction = search.objective, search.objectives[search.objective]
    domain = domain_of(search.values.stack(), direction)
    rows = {row["trial"]: row for row in search.trials.to_dict("records")}
    records: Records = []
    for trial, values in search.values.iterrows():
        row = rows[trial]
        kind = "best" if trial == search.best else "over" if row["status"] == "FINISHED" else "rest"
        records += [
            {
                "trial": trial,
                "epoch": int(epoch),
                "value": within(value, domain, direction)[0],
                "kind": kind,
                "tip": f"trial {trial}, epoch {epoch}\n{spoken(metric)} {number(value)}",
            }
            for epoch, value in values.dropna().items()
            if math.isfinite(value)
        ]
    x = vega.field("epoch", title="Epoch", axis={"tickCount": 6, "tickMinStep": 1, "format": "d"})
    x["scale"] = {"nice": False, "zero": False, "padding": 8}
    y = metric_axis(metric, domain)
    detail = vega.field("trial", "nominal")
    rungs: Records = [{"epoch": rung.epochs} for rung in search.rungs[:-1]]
    dashes = {"strokeDash": [2, 3], "color": GREY, "strokeWidth": 0.8}
    layers = [vega.mark("rule", x=x, style=dashes) | {"data": vega.data(rungs)}]
    for kind, color, width in (("rest", PALE, 1.0), ("over", BLUE, 1.2), ("best", RED, 2.2)):
        own = [each for each in records if each["kind"] == kind]
        last = {each["trial"]: each for each in own}
        line = vega.mark("line", x=x, y=y, detail=detail, style={"strokeWidth": width})
        ends = vega.mark("circle", x=x, y=y, description=vega.TIP, style={"size": 16, "opacity": 1})
        layers += [
            {"data": vega.data(part), **mark, "mark": {**mark["mark"], "color": color}}
            for part, mark in ((own, line), (list(last.values()), ends))
        ]
    note = f"Red: trial {search.best}, the best. " if search.best is not None else ""
    note += "Blue: finished trials."
    if any(each["kind"] == "rest" for each in records):
        note += " Grey: the others, as far as they came."
    if rungs:
        note += " Dashed: rungs."
    title = f"{named(metric)} of the trials against epoch"
    chart: Chart = {"layer": layers, "width": 330, "height": 220}
    edge = domain[0] if direction == MAXIMIZE else domain[1]
    if any(each["value"] == edge for each in records):
        note += f" Worse values than {edge:.3f}: at the edge."
    return vega.finished(chart, title, note, 400)


def front(search: Search) -> Chart:
    """Two objectives of each finished trial, and the front of those that none is better than."""
    (x_metric, x_way), (y_metric, _), *_ = search.objectives.items()
    x_domain, y_domain = ends_of(search, x_metric), ends_of(search, y_metric)
    records: Records = []
    for row in search.trials.to_dict("records"):
        if row["status"] == "FINISHED" and math.isfinite(row[x_metric] + row[y_metric]):
            across, is_left = within(row[x_metric], x_domain, x_way)
            up, is_below = within(row[y_metric], y_domain, search.objectives[y_metric])
            records.append(
                {
                    "x": across,
                    "y": up,
                    "is_beyond": is_left or is_below,
                    "text": str(row["trial"]),
                    "is_front": row["trial"] in search.front,
                    "tip": trial_tip(search, row),
                }
            )
    x = vega.field("x", title=named(x_metric), axis={"tickCount": 6})
    x["scale"] = {"domain": list(x_domain), "nice": False, "zero": False}
    y = metric_axis(y_metric, y_domain) | {"field": "y"}
    best = sorted((each for each in records if each["is_front"]), key=lambda each: each["x"])
    rest = [each for each in records if not each["is_front"]]
    # Between two trials of the front lies what the one that is worse in the other objective beats.
    labelled: Records = []
    for each in [*best[:1], *best[-1:], *best[1:-1]]:  # The ends tell the most.
        if all(_apart(each, other, x_domain, y_domain) for other in labelled):
            labelled.append(each)
    step = {"interpolate": "step-before" if x_way == MAXIMIZE else "step-after", "color": RED}
    dot = {"size": 34, "opacity": 1}
    text = vega.field("text", "nominal")
    layers = [
        vega.mark("line", x=x, y=y, style=step) | {"data": vega.data(best)},
        vega.mark("circle", x=x, y=y, description=vega.TIP, style=dot | {"color": PALE})
        | {"data": vega.data(rest)},
        vega.mark("circle", x=x, y=y, description=vega.TIP, style=dot | {"color": RED})
        | {"data": vega.data(best)},
        vega.mark("text", x=x, y=y, text=text, style={"dx": 9, "dy": 6, "fontSize": 9})
        | {"data": vega.data(labelled)},
    ]
    note = "Red: the Pareto front, with numbers of trials. Grey: the other finished trials."
    title = f"{named(x_metric)} and {spoken(y_metric)}"
    chart: Chart = {"layer": layers, "width": 330, "height": 240}
    return vega.finished(chart, title, note + beyond(search, [x_metric, y_metric]), 400)


def _apart(
    one: Mapping[str, Any],
    other: Mapping[str, Any],
    x_domain: tuple[float, float],
    y_domain: tuple[float, float],
) -> bool:
    """Return whether two points are so far apart that their labels do not meet."""
    (left, right), (low, high) = x_domain, y_domain
    across = abs(one["x"] - other["x"]) / (right - left) * 330
    up = abs(one["y"] - other["y"]) / (high - low) * 240
    return bool(across > 16 or up > 11)


def finals(search: Search, test: Interval) -> Chart:
    """The winner's test accuracy in each of its finals, beside its validation accuracy.

    Args:
        search: The search.
        test: The mean of the finals and its interval.
    """
    over = [row for row in search.finals.to_dict("records") if row["status"] == "FINISHED"]
    labels = list(vega.unique([f"final, seed {shown(row.get('seed'))}" for row in over]))
    dots: Records = [
        {"row": label, "value": row["accuracy/test"], "tip": f"{row['name']}\n{told}"}
        for label, row in zip(labels, over, strict=True)
        if (told := f"test accuracy {number(row['accuracy/test'])}")
    ]
    own: Records = []
    validated = math.nan if search.best is None else search.row(search.best)[VALIDATED]
    if math.isfinite(validated):
        label = f"search, trial {search.best}"
        tip = f"{label}\nvalidation accuracy {number(validated)}"
        own.append({"row": label, "value": validated, "tip": tip})
        labels.insert(0, label)
    scale = vega.scale([vars(test), *dots, *own], [*vega.ENDS, "value"])
    x, mean, low = (
        vega.field(name, title="Accuracy", scale=scale, axis={"tickCount": 5})
        for name in ("value", "mean", "low")
    )
    axis = {"ticks": False, "domain": False, "labelOverlap": "greedy"}
    y = vega.field("row", "ordinal", title=None, scale={"domain": labels}, axis=axis)
    filled = {"size": 40, "opacity": 1, "color": BLUE}
    hollow = {"size": 40, "opacity": 1, "color": RED, "filled": False, "strokeWidth": 1.6}
    layers = [
        vega.mark("circle", x=x, y=y, description=vega.TIP, style=filled)
        | {"data": vega.data(dots)},
        vega.mark("point", x=x, y=y, description=vega.TIP, style=hollow) | {"data": vega.data(own)},
    ]
    note = "Filled: test accuracy."
    if test.count > 1:
        band = {"opacity": 0.14, "color": BLUE}
        layers[:0] = [
            vega.mark("rect", x=low, x2={"field": "high"}, style=band)
            | {"data": vega.data([vars(test)])},
            vega.mark("rule", x=mean, style={"color": BLUE}) | {"data": vega.data([vars(test)])},
        ]
        told = mean_text(test.mean, test.high - test.mean)
        note += f" Line and band: the mean of {test.count} with its 95 % interval (t), {told}."
    if own:
        note += " Hollow: the validation accuracy in the search."
    chart: Chart = {"layer": layers, "width": 300, "height": {"step": 18}}
    return vega.finished(chart, "The winner, retrained on all training images", note, 400)
