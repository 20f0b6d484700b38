"""The look of a run's figures: colours, type, and axes, whatever the caller's style sheets say.

Nothing here touches pyplot or rcParams, so figures are freed like any other object and may be drawn
in any thread. `figure.savefig(path)` writes 144 dots per inch.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Affine2D

# Right and wrong, train and test. They stay apart under the common kinds of colour blindness and
# pass WCAG AA as text on white (from Paul Tol's "vibrant" scheme).
BLUE, RED = "#0077bb", "#cc3311"
PALE_BLUE, PALE_RED = "#8cc3e2", "#f3cdc3"
INK, GREY, PALE = "#222222", "#6e6e6e", "#cccccc"
TITLE, TEXT, SMALL = 9.5, 8.0, 7.0  # Type sizes, in points.
LETTER = 0.6  # Mean width of a letter as a share of its type size.
DPI = 144
# The font comes with matplotlib. A dollar sign in a class name does not start a formula.
TYPE: dict[str, Any] = {"family": "DejaVu Sans", "parse_math": False, "usetex": False}

Box = tuple[float, float, float, float]  # left, top, right, bottom
Margins = tuple[float, float, float, float]  # the same


class Picture(Figure):
    """A figure that a notebook shows; matplotlib's own need pyplot, which chooses a backend."""

    def savefig(self, fname: Any, **options: Any) -> None:
        """Write it; a PNG is packed a little less than by default, in half of the time."""
        if str(options.get("format", fname)).endswith("png"):
            options.setdefault("pil_kwargs", {"compress_level": 4})
        super().savefig(fname, **options)

    def png(self) -> bytes:
        """Return it as a PNG file."""
        content = io.BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()

    _repr_png_ = png


def picture(
    width: float, height: float, title: str, note: str = "", margins: Margins = (8, 4, 8, 4)
) -> Picture:
    """Return an empty figure with a title above and a note below its subplots.

    The margins are given, as matplotlib's layout engines measure every text twice: they took half
    of the time of a run's figures.

    Args:
        width: Width of the subplots, in points.
        height: Their height, in points.
        title: Stands above.
        note: Stands below, in small type.
        margins: Room around the subplots for their labels, in points.
    """
    left, top, right, bottom = margins
    across = max(width + left + right, 200)
    heads = textwrap.wrap(title, int(across / 6.8))
    lines = textwrap.wrap(note, int(across / 4.0))
    above, below = 8 + 14 * len(heads) + top, 10 * len(lines) + 8 + bottom
    down = above + height + below
    figure = Picture(figsize=(across / 72, down / 72), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left / across, below / down, (left + width) / across, 1 - above / down)
    bold: dict[str, Any] = {"va": "top", "weight": "bold", "size": TITLE, "color": INK}
    for place, line in enumerate(heads):
        y = 1 - (8 + 14 * place) / down
        figure.add_artist(Label(8 / across, y, line, transform=figure.transFigure, **bold, **TYPE))
    small: dict[str, Any] = {"va": "bottom", "size": SMALL, "weight": "normal", "color": GREY}
    for place, line in enumerate(reversed(lines)):
        y = (6 + 10 * place) / down
        figure.add_artist(Label(8 / across, y, line, transform=figure.transFigure, **small, **TYPE))
    return figure


def sheet(width: float, height: float, title: str, note: str = "") -> tuple[Picture, Axes]:
    """Return a figure, and axes without an axis in points, (0, 0) at the top left."""
    figure = picture(width, height, title, note)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0))
    return figure, axes


def plain(axes: Axes, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Give axes two thin spines, small ticks and no grid."""
    style: dict[str, Any] = {"length": 2.5, "width": 0.6, "pad": 2.5, "direction": "out"}
    style |= {"labelsize": SMALL, "labelfontfamily": TYPE["family"], "labelcolor": INK}
    axes.tick_params(
        which="both", color=GREY, top=False, right=False, left=True, bottom=True, **style
    )
    axes.set_facecolor("none")
    axes.grid(visible=False)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), edgecolor=GREY, linewidth=0.6)
    text: dict[str, Any] = {"color": INK, **TYPE}
    axes.set_title(title, loc="left", size=TEXT, weight="bold", pad=6, **text)
    axes.set_xlabel(xlabel, size=TEXT, weight="normal", labelpad=3, **text)
    axes.set_ylabel(ylabel, size=TEXT, weight="normal", labelpad=3, **text)


def write(
    axes: Axes, x: float, y: float, text: str, size: float = TEXT, color: Any = INK, **more: Any
) -> None:
    """Write a text at a place of the axes, by default from there to the right."""
    style = {"transform": axes.transData, "size": size, "color": color} | TYPE | more
    axes.add_artist(Label(x, y, text, **style))


def boxes(
    axes: Axes, places: Iterable[Box], color: Any, edge: Any = "none", width: float = 0.6
) -> None:
    """Draw boxes in the axes' own units, of one colour or one each; the edge's width in points."""
    corners = [[(x0, y0), (x0, y1), (x1, y1), (x1, y0)] for x0, y0, x1, y1 in places]
    patches = PolyCollection(corners, facecolors=color, edgecolors=edge, linewidths=width)
    axes.add_collection(patches, autolim=False)


def shortened(text: str, letters: float) -> str:
    """Return a text as it is, or its beginning with an ellipsis if it has more letters."""
    most = max(int(letters), 1)
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def letters(width: float, size: float = TEXT) -> float:
    """Return how many letters of a type size there are in a width in points, on average."""
    return width / (LETTER * size)


class Label(Text):
    """A line of text whose letters are drawn as outlines, each made once for all figures.

    A run's figures have three hundred texts; matplotlib lays out and renders each of them afresh,
    which takes half of the time of all figures.
    """

    def draw(self, renderer: RendererBase) -> None:
        """Draw it into pixels; anything but pixels, and a text on a box, is left to matplotlib."""
        text, weight = self.get_text(), str(self.get_fontweight())
        if not text or not self.get_visible():
            return
        if not isinstance(renderer, RendererAgg) or self.get_bbox_patch() or "\n" in text:
            super().draw(renderer)
            return
        x, y = self.get_transform().transform(self.get_unitless_position())
        size = float(self.get_fontsize())
        pixels = size * renderer.dpi / 72
        turned = Affine2D().scale(pixels).rotate_deg(self.get_rotation())
        left, low = self._anchor(sum(_advance(letter, weight) for letter in text), turned)
        upright = self.get_rotation() % 180 == 0
        # A baseline between two rows of pixels would blur every letter on it.
        turned.translate(x - left, round(y - low) if upright else y - low)
        context = renderer.new_gc()
        context.set_foreground(self.get_color())
        context.set_linewidth(0)
        untyped: Any = renderer
        untyped.draw_path(context, _outline(text, weight), turned, context.get_rgb())
        context.restore()

    def _anchor(self, width: float, turned: Affine2D) -> tuple[float, float]:
        """Return the point of the turned text, in pixels, that lies on its place.

        As matplotlib has it: of the turned text's bounds, or of the text before it is turned.
        """
        ascent, descent = _heights()
        corners = np.array([(0, -descent), (width, -descent), (width, ascent), (0, ascent)])
        anchored = self.get_rotation_mode() == "anchor"
        if not anchored:
            corners = turned.transform(corners)
        (left, low), (right, high) = corners.min(axis=0), corners.max(axis=0)
        baseline = 0.0 if anchored or self.get_rotation() % 360 == 0 else low
        x = {"left": left, "center": (left + right) / 2, "right": right}
        y = {
            "bottom": low,
            "top": high,
            "center": (low + high) / 2,
            "baseline": baseline,
            "center_baseline": (baseline + high) / 2,
        }
        point = x[self.get_horizontalalignment()], y[self.get_verticalalignment()]
        return tuple(turned.transform(point)) if anchored else point


@lru_cache(maxsize=4096)
def _outline(text: str, weight: str) -> Path:
    """Return a line's letters from (0, 0) to the right, at a type size of 1."""
    paths, x = [], 0.0
    for letter in text:
        outline = _letter(letter, weight)
        paths.append(Path(np.add(outline.vertices, (x, 0)), outline.codes))
        x += _advance(letter, weight)
    return Path.make_compound_path(*paths)


@lru_cache(maxsize=4096)
def _letter(letter: str, weight: str) -> Path:
    font = FontProperties(family=TYPE["family"], weight=weight)
    vertices, codes = text_to_path.get_text_path(font, letter)
    return Path(np.asarray(vertices).reshape(-1, 2) / text_to_path.FONT_SCALE, codes)


@lru_cache(maxsize=1)
def _heights() -> tuple[float, float]:
    """Return how far a line reaches above and below its baseline, at a type size of 1."""
    font = FontProperties(family=TYPE["family"], size=1)
    _, height, descent = text_to_path.get_text_width_height_descent("lp", font, False)
    return height - descent, descent


@lru_cache(maxsize=4096)
def _advance(letter: str, weight: str) -> float:
    font = FontProperties(family=TYPE["family"], size=1, weight=weight)
    return float(text_to_path.get_text_width_height_descent(letter, font, False)[0])
