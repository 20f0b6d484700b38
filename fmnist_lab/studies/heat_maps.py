"""Heat maps of studies; see `charts`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from fmnist_lab.studies import vega
from fmnist_lab.studies.charts import HUES, MOST_PANELS, interval_note, setting
from fmnist_lab.studies.frames import (
    METRICS,
    TEST_SETS,
    grouped,
    listed,
    mean_text,
    number,
    parameters_of,
    short_names,
)
from fmnist_lab.studies.vega import BLUE, ENDS, INK, ORANGE, PURPLE, RED, TEAL, Chart, Records

# Nearly white, the hue, a dark shade of it.
SHADES = {
    BLUE: ["#f5fafc", BLUE, "#00304b"],
    RED: ["#fdf7f5", RED, "#521407"],
    TEAL: ["#f5fbfa", TEAL, "#003d36"],
    ORANGE: ["#fefaf6", ORANGE, "#5c2a0a"],
    PURPLE: ["#fbf6f9", PURPLE, "#421330"],
}
# By WCAG's luminance, where white and INK contrast with a colour alike.
IS_DARK = "luminance(scale('color', datum.mean)) < 0.213"
HALVES = "Means of {} runs, ± half their 95 % intervals (t)."
MOST_CELLS = 24  # In a row; numbers in more cells would be too many to read.
LETTER = 6.0  # Mean width of a letter in pixels; only to choose between layouts.

Sides = tuple[tuple[str, Mapping[Any, str]], tuple[str, Mapping[Any, str]]]


def heat_map(summary: pd.DataFrame, x: str, y: str, metric: str) -> Chart:
    """A metric over two parameters, its mean and the half-width of its interval in each cell.

    Settings that were tested on different images are in maps of their own. Where settings differ
    in more parameters, a cell is the mean of its settings, without an interval: the spread between
    settings is no measure of chance.

    Args:
        summary: One row per setting.
        x: The parameter across.
        y: The parameter upwards.
        metric: Such as `accuracy/gap`; accuracy is drawn in blue, gaps in red.
    """
    names = short_names(parameters_of(summary))
    tested = [name for name in TEST_SETS if name in names and name not in (x, y)]
    across, up = vega.labels(summary[x], x), vega.labels(summary[y], y)
    parts = {
        setting(dict(zip(tested, key, strict=True)), names): _cells(part, x, y, metric)
        for key, part in list(grouped(summary, tested).items())[:MOST_PANELS]
    }
    cells = [each for part in parts.values() for each in part]
    for each in cells:
        column, row = across[each["x"]], up[each["y"]]
        result = f"{METRICS[metric].lower()} {mean_text(each['mean'], each['half'])}"
        tip = f"{names[x]} {column}, {names[y]} {row}\n{result}"
        each |= {"x": column, "y": row, "tip": tip}
    domain = vega.span([each["mean"] for each in cells], 0)
    sides = (names[x], across), (names[y], up)
    maps = [_map(part, sides, metric, domain) | {"title": head} for head, part in parts.items()]
    others = [name for key, name in names.items() if key not in (x, y, *tested)]
    note = _cells_note(summary, [each["count"] for each in cells], others)
    title = f"{METRICS[metric]} by {names[x]} and {names[y]}"
    return vega.finished({"hconcat": maps}, title, note, 54 * len(across) * len(maps))


def _cells(summary: pd.DataFrame, x: str, y: str, metric: str) -> Records:
    """Return one record per cell: its place, mean, half-width, and number of settings."""
    cells = []
    for (across, up), part in grouped(summary, [x, y]).items():
        mean, low, high = (part[f"{metric}/{end}"].to_numpy(float) for end in ENDS)
        half = float(high[0] - low[0]) / 2 if len(part) == 1 else math.nan
        each = {"x": across, "y": up, "mean": float(mean.mean()), "half": half}
        cells.append(each | {"count": len(part)})
    if any(each["count"] > 1 for each in cells):
        return [each | {"half": math.nan} for each in cells]
    return cells


def _cells_note(summary: pd.DataFrame, counts: Sequence[int], others: Sequence[str]) -> str:
    least, most = min(counts), max(counts)
    if most == 1:
        return interval_note(summary["runs"], HALVES)
    if least == most:
        return f"Each cell is the mean over {most} settings of {listed(others)}."
    return (
        f"Each cell is the mean over {least} to {most} settings of {listed(others)}, not the same "
        "ones everywhere."
    )


def _map(cells: Records, sides: Sides, metric: str, domain: tuple[float, float]) -> Chart:
    """Draw cells over two parameters, of which `sides` has the names and the labels."""
    (across, columns), (up, rows) = sides
    is_written = max(len(columns), len(rows)) <= MOST_CELLS
    has_halves = any(math.isfinite(each["half"]) for each in cells)
    wide, tall = (54 if is_written else 14), (20 + 12 * has_halves if is_written else 14)
    is_upright = max(map(len, columns.values())) * LETTER > wide
    low, high = domain
    shades = {"domain": [low, low + 0.65 * (high - low), high], "range": SHADES[HUES[metric]]}
    legend = {"format": ".3f", "tickCount": 3, "gradientLength": max(len(rows) * tall, 60)}
    bare = {"ticks": False, "domain": False}
    places = {
        "x": vega.field("x", "ordinal", title=vega.capital(across))
        | {"scale": {"domain": list(columns.values())}}
        | {"axis": bare | {"labelAngle": -90 if is_upright else 0}},
        "y": vega.field("y", "ordinal", title=vega.capital(up))
        | {"scale": {"domain": list(rows.values())[::-1]}, "axis": bare},
    }
    color = vega.field("mean", title=None, scale=shades, legend=legend)
    layers = [vega.mark("rect", color=color, description=vega.TIP, style={"stroke": "white"})]
    if is_written:
        for each in cells:
            known = [number(each["mean"])] if math.isfinite(each["mean"]) else [""]
            half = [f"± {number(each['half'])}"] if math.isfinite(each["half"]) else []
            each["text"] = known + half
        ink = {"condition": {"test": IS_DARK, "value": "white"}, "value": INK}
        style = {"fontSize": 9, "lineHeight": 11, "dy": -5.5 * has_halves}
        layers.append(vega.mark("text", text=vega.field("text", "nominal"), color=ink, style=style))
    sizes = {"width": {"step": wide}, "height": {"step": tall}}
    return {"data": vega.data(cells), "encoding": places, "layer": layers, **sizes}
