"""Vega-Lite specifications of charts: their look, their parts, and how they are drawn.

`svg` draws a chart, with a text for the pointer at each of its marks; `png` draws that again as
pixels. Specifications are plain dictionaries, as https://vega.github.io/vega-lite/docs/ describes
them: to build them with Altair would take as long as to draw them.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import vl_convert

from fmnist_lab.studies.frames import ordered, shown

BLUE, RED, TEAL, GREY, INK = "#0077bb", "#cc3311", "#009988", "#6e6e6e", "#222222"
ORANGE, PURPLE = "#ee7733", "#aa3377"
# Paul Tol's "vibrant" scheme, which stays apart under the common kinds of colour blindness.
DISTINCT = [BLUE, RED, TEAL, ORANGE, "#33bbee", "#ee3377", GREY]
LIGHT_TO_DARK = {"name": "viridis", "extent": [0.78, 0.05]}  # Its yellow end is lost on white.
LONGEST_LABEL = 40
LEAST_SPAN = 0.01  # Of a scale, else noise between settings would look like something.
ENDS = ("mean", "low", "high")
LARGEST_PNG = 250_000
MOST_GROUPS = 12  # Labels and colours; more of them say nothing any more.
MOST_TICKS = 7  # Of a logarithmic axis with many levels; their labels are no longer than that:
LONGEST_TICK = 5
LOOK = {
    # Of one width; vl-convert brings the first along.
    "font": "Liberation Sans, Arial, Helvetica, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "grid": False,
        "domainColor": GREY,
        "tickColor": GREY,
        "labelColor": INK,
        "titleColor": INK,
        "titleFontWeight": "normal",
        "labelLimit": 260,
        "maxExtent": 300,
    },
    "title": {"color": INK, "anchor": "start", "fontSize": 10},
    "legend": {
        "titleFontWeight": "normal",
        "titleColor": GREY,
        "labelColor": INK,
        "labelLimit": 260,
    },
    "header": {"title": None, "labelFontWeight": "bold", "labelAnchor": "start", "labelLimit": 180},
}

Chart = dict[str, Any]
Records = list[dict[str, Any]]

# Expressions for the labels of an axis: all digits that a number has, without trailing zeros.
NUMBER = "format(datum.value, '.12~r')"
TINY_NUMBER = "format(datum.value, '.12~g')"


def svg(chart: Chart, name: str = "chart") -> str:
    """Return a chart as an SVG; the same chart gives the same text.

    Args:
        chart: The specification.
        name: Letters and digits that tell it from the other charts of a page.
    """
    text: str = vl_convert.vegalite_to_svg(chart)
    # Vega counts the gradients of a process.
    for place, gradient in enumerate(re.findall(r'id="(gradient_\d+)"', text)):
        text = text.replace(f'id="{gradient}"', f'id="{name}-{place}"')
        text = text.replace(f"url(#{gradient})", f"url(#{name}-{place})")
    return text


def png(drawn: str) -> bytes:
    """Return what `svg` has drawn as a PNG of 144 pixels per inch.

    Many lines that cross have thousands of shades: a picture of more than `LARGEST_PNG` bytes gets
    256 of them, which no eye tells from all.
    """
    pixels: bytes = vl_convert.svg_to_png(drawn, scale=2)
    if len(pixels) <= LARGEST_PNG:
        return pixels
    from PIL import Image

    small = io.BytesIO()
    Image.open(io.BytesIO(pixels)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        small, "PNG", optimize=True, dpi=(144, 144)
    )
    return small.getvalue()


def finished(chart: Chart, title: str, note: str, width: float) -> Chart:
    """Give a chart its title, its note in lines that fit, and its look."""
    letters = int(max(width, 320) / 5)
    head = {
        "text": textwrap.wrap(title, int(0.72 * letters)),
        "subtitle": textwrap.wrap(note, letters),
        "frame": "bounds",
        "fontSize": 13,
        "subtitleFontSize": 10,
        "subtitleColor": GREY,
        "offset": 10,
    }
    return chart | {"title": head, "config": LOOK, "background": "white", "padding": 12}


def mark(kind: str, *, style: Mapping[str, Any] | None = None, **encoding: Any) -> Chart:
    """Return a layer of marks; only those with a text are known to a pointer."""
    aria = {} if "description" in encoding else {"aria": False}
    return {"mark": {"type": kind, **aria, **(style or {})}, "encoding": encoding}


def field(name: str, kind: str = "quantitative", **more: Any) -> dict[str, Any]:
    """Return the encoding of a channel by a column of the data."""
    return {"field": name, "type": kind, **more}


TIP = field("tip", "nominal")


def data(records: Records) -> dict[str, Any]:
    """Return records as data of a chart; nan, which JSON lacks, as null."""
    return {
        "values": [
            {
                name: None if isinstance(value, float) and math.isnan(value) else value
                for name, value in record.items()
            }
            for record in records
        ]
    }


def labels(values: Iterable[Any], name: str) -> dict[Any, str]:
    """Return the distinct values of a parameter in order, each with a label of its own."""
    levels = ordered(values)
    return dict(zip(levels, unique([_cut(shown(each, name)) for each in levels]), strict=True))


def _cut(label: str) -> str:
    """Return a label with its middle left out if it is long: ends tell long names apart."""
    return label if len(label) <= LONGEST_LABEL else f"{label[:25]}…{label[-14:]}"


def unique(labels: Sequence[str]) -> Iterator[str]:
    """Number the labels that repeat another, as cut ones may: two values never share a place."""
    seen: dict[str, int] = {}
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        yield label if seen[label] == 1 else f"{label} ({seen[label]})"


def color(name: str, levels: Mapping[Any, str]) -> dict[str, Any]:
    """Return a colour for each level: light to dark where they have an order, else distinct."""
    names, is_text = list(levels.values()), has_text(levels)
    colors: dict[str, Any] = {"domain": names, "scheme": LIGHT_TO_DARK}
    if is_text and len(levels) <= len(DISTINCT):
        colors = {"domain": names, "range": DISTINCT[: len(names)]}
    many, told = len(names) > MOST_GROUPS, names
    if many:
        # A few numbers tell how it goes from light to dark.
        told = [names[place * (len(names) - 1) // 4] for place in range(5)]
    # Numbers upwards, as more of anything tends to lie further up.
    legend: Chart = {
        "title": name,
        "values": told if is_text else told[::-1],
        "symbolType": "circle",
    }
    legend |= {"symbolOpacity": 1, "symbolStrokeWidth": 0}
    return field("level", "ordinal", scale=colors, legend=None if many and is_text else legend)


def scale(
    records: Iterable[Mapping[str, Any]], ends: Sequence[str] = ENDS, *, from_zero: bool = False
) -> dict[str, Any]:
    """Return a scale that all means and intervals fit in."""
    seen = [each[end] for each in records for end in ends if end in each]
    low, high = span([*seen, *([0] * from_zero)])
    if from_zero and not any(value < 0 for value in seen):
        low = 0.0
    return {"domain": [low, high], "nice": False, "zero": False}


def span(values: Iterable[float], pad: float = 0.06) -> tuple[float, float]:
    """Return the lowest and highest finite value, apart by `LEAST_SPAN` at least, and padded."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    lack = max(LEAST_SPAN - (high - low), 0) / 2
    margin = pad * (high - low + 2 * lack)
    return low - lack - margin, high + lack + margin


def has_text(levels: Iterable[Any]) -> bool:
    """Return whether any value of a parameter is a text."""
    return any(isinstance(level, str) for level in levels)


def capital(name: str) -> str:
    """Return a name with a capital, as the title of an axis."""
    return f"{name[:1].upper()}{name[1:]}"


def logarithmic_ticks(levels: Sequence[float]) -> dict[str, Any]:
    """Return the ticks of a logarithmic axis: the levels, as far as their labels have room.

    Args:
        levels: The settings' values, increasing and above 0.
    """
    if len(levels) <= MOST_TICKS:
        return {"values": list(levels)}
    if any(len(f"{level:.12g}") > LONGEST_TICK for level in levels):
        return {"tickCount": 5}
    step = (levels[-1] / levels[0]) ** (1 / MOST_TICKS)
    kept = [levels[0]]
    for level in levels[1:-1]:
        if kept[-1] * step <= level <= levels[-1] / step:
            kept.append(level)
    return {"values": [*kept, levels[-1]]}
