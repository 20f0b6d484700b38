"""The pages that figures are drawn on: colours, type sizes, texts that fit, places in points.

A page is laid out by hand, in points of two pixels: images keep to whole multiples of their pixels,
no label runs into another, and there is no layout engine to wait for. Nothing here touches pyplot
or rcParams, so figures keep their look under the caller's style sheets.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Affine2D
from numpy.typing import NDArray

# Right and wrong, train and test. They stay apart under the common kinds of colour blindness and
# pass WCAG AA as text on white (from Paul Tol's "vibrant" scheme).
BLUE, RED = "#0077bb", "#cc3311"
PALE_BLUE, PALE_RED = "#8cc3e2", "#f3cdc3"
INK, GREY, PALE = "#222222", "#6e6e6e", "#cccccc"
FONT = "DejaVu Sans"  # Comes with matplotlib, so that figures are the same on every machine.
TITLE, TEXT, SMALL = 9.5, 8.0, 7.0  # Type sizes, in points.
DPI = 144
MARGIN = 12

Box = tuple[float, float, float, float]  # left, top, right, bottom
Point = tuple[float, float]


class Page:
    """A figure whose content is placed in points, (0, 0) at the top left under the title."""

    def __init__(self, width: float, height: float, title: str, note: str = "") -> None:
        width, height = float(np.ceil(max(width, 200))), float(np.ceil(height))
        lines = [(line, TITLE, "bold", INK) for line in wrap(title, TITLE, width, "bold")]
        lines += [(line, SMALL, "normal", GREY) for line in wrap(note, SMALL, width)]
        header = float(np.ceil(sum(1.4 * size for _, size, _, _ in lines) + 6))
        inches = (width + 2 * MARGIN) / 72, (height + header + 2 * MARGIN) / 72
        self.figure = Figure(figsize=inches, dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.axes.set(xlim=(-MARGIN, width + MARGIN), ylim=(height + MARGIN, -header - MARGIN))
        y = -header
        for line, size, weight, color in lines:
            y += 1.4 * size
            self.text(0, y - 0.4 * size, line, size, color, weight=weight)

    def text(
        self, x: float, y: float, text: str, size: float = TEXT, color: Any = INK, **style: Any
    ) -> None:
        """Write a text at a place, by default from there to the right, on its baseline."""
        # A dollar sign in a class name does not start a formula.
        style |= {"family": FONT, "parse_math": False, "usetex": False}
        label = _Label(x, y, text, size=size, color=color, transform=self.axes.transData, **style)
        self.axes.add_artist(label)

    def boxes(self, boxes: Iterable[Box], color: Any, edge: Any = "none") -> None:
        """Draw boxes, of one colour or one each."""
        rectangles(self.axes, boxes, color, edge)

    def line(self, start: Point, end: Point, color: Any) -> None:
        """Draw a thin line."""
        line = LineCollection([[start, end]], colors=color, linewidths=0.6)
        self.axes.add_collection(line, autolim=False)

    def image(self, box: Box, values: NDArray[Any], **style: Any) -> None:
        """Draw an image over all of a box."""
        left, top, right, bottom = box
        shrunk = values.shape[1] > (right - left) * DPI / 72 + 0.5
        self.axes.imshow(
            values,
            extent=(left, right, bottom, top),
            origin="upper",
            interpolation="antialiased" if shrunk else "nearest",
            aspect="auto",
            **style,
        )

    def images(self, places: Sequence[Point], size: Point, images: NDArray[np.uint8]) -> None:
        """Draw grey images, dark on white, with their top left corners at the places."""
        # Measured: an artist for every image draws three times faster than one mosaic of them all,
        # as only their own pixels are resampled, and RGB spares the way through a colour map.
        boxes = [(x, y, x + size[0], y + size[1]) for x, y in places]
        for box, image in zip(boxes, images, strict=True):
            self.image(box, np.repeat(255 - image[..., None], 3, axis=2))
        self.boxes(boxes, "none", PALE)

    def panel(self, box: Box, title: str, xlabel: str = "") -> Axes:
        """Axes for a plot; the box, in points, excludes what is written around them."""
        left, top, right, bottom = box
        to_figure = self.axes.transData - self.axes.transAxes
        (x0, y0), (x1, y1) = to_figure.transform([(left, bottom), (right, top)])
        # Under the page, so that what is written on the page is never hidden.
        axes = self.figure.add_axes((x0, y0, x1 - x0, y1 - y0), facecolor="none", zorder=-1)
        axes.tick_params(
            which="both", length=2.5, width=0.6, pad=2.5, direction="out", top=False, right=False
        )
        axes.tick_params(which="both", labelsize=SMALL, labelfontfamily=FONT)
        axes.tick_params(which="both", color=GREY, labelcolor=INK, left=True, bottom=True)
        axes.grid(visible=False)
        for side, spine in axes.spines.items():
            spine.set(visible=side in ("left", "bottom"), edgecolor=GREY, linewidth=0.6)
        self.text(left, top - 6, title, weight="bold")
        self.text((left + right) / 2, bottom + 22, xlabel, ha="center")
        return axes


def rectangles(axes: Axes, boxes: Iterable[Box], color: Any, edge: Any) -> None:
    """Draw boxes in the axes' own units, of one colour or one each."""
    corners = [[(x0, y0), (x0, y1), (x1, y1), (x1, y0)] for x0, y0, x1, y1 in boxes]
    if corners:
        patches = PolyCollection(corners, facecolors=color, edgecolors=edge, linewidths=0.6)
        axes.add_collection(patches, autolim=False)


def image_size(shape: tuple[int, ...], side: int) -> Point:
    """Width and height in points of an image whose longer side is to be `side` or little less."""
    pixels, longest = side * DPI // 72, max(shape)
    factor = pixels // longest if longest <= pixels else pixels / longest
    return shape[1] * factor * 72 / DPI, shape[0] * factor * 72 / DPI


def grid(
    count: int, columns: int, width: float, height: float, gap: float
) -> tuple[list[Point], Point]:
    """Top left corners of cells, row by row and on whole pixels, and the extent of them all."""
    columns = max(min(columns, count), 1)
    across, down = float(np.ceil(width + gap)), float(np.ceil(height + gap))
    cells = [(index % columns * across, index // columns * down) for index in range(count)]
    return cells, (columns * across - gap, max(-(-count // columns) * down - gap, 0))


def spread(
    places: NDArray[np.float64], least: float, low: float, high: float
) -> NDArray[np.float64]:
    """Move ascending places apart to at least `least`, evenly both ways, within low and high."""
    steps = least * np.arange(len(places))
    up = np.maximum.accumulate(places - steps) + steps
    down = np.minimum.accumulate((places - steps)[::-1])[::-1] + steps
    moved = (up + down) / 2
    moved -= max(moved[-1] - high, 0)
    return moved + max(low - moved[0], 0)


def width_of(text: str, size: float, weight: str = "normal") -> float:
    """Return the width of a text in points, kerning left out."""
    # Letter by letter: kerning makes the real text a little narrower, and every letter is measured
    # once, where measuring texts took a third of the time of a figure.
    return size * sum(_advance(letter, weight) for letter in text)


def widest(names: Iterable[str], size: float) -> float:
    """Return the width of the widest text, 0 if there is none."""
    return max((width_of(name, size) for name in names), default=0.0)


def cut(text: str, size: float, room: float, weight: str = "normal") -> str:
    """Return a text as it fits the room, cut with an ellipsis if need be."""
    short = text
    while text and width_of(short, size, weight) > room:
        text = text[:-1]
        short = text.rstrip() + "…"
    return short


def wrap(text: str, size: float, room: float, weight: str = "normal") -> list[str]:
    """Return a text in lines that fit the room."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and width_of(longer, size, weight) <= room:
            lines[-1] = longer
        else:
            lines.append(cut(word, size, room, weight))
    return lines


class _Label(Text):
    """A line of text whose letters are drawn as outlines, each made once for all figures.

    A run's figures have three hundred texts. Matplotlib lays out and renders each anew, which took
    half of the time of them all.
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
        pixels = renderer.points_to_pixels(size)
        turned = Affine2D().scale(pixels).rotate_deg(self.get_rotation())
        left, low = self._anchor(width_of(text, 1, weight), turned)
        upright = self.get_rotation() % 180 == 0
        # A baseline between two rows of pixels would blur every letter on it.
        turned.translate(x - left, round(y - low) if upright else y - low)
        context = renderer.new_gc()
        context.set_foreground(self.get_color())
        context.set_linewidth(0)
        renderer.draw_path(context, _outline(text, weight), turned, context.get_rgb())
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
    font = FontProperties(family=FONT, weight=weight)
    vertices, codes = text_to_path.get_text_path(font, letter)
    return Path(np.asarray(vertices).reshape(-1, 2) / text_to_path.FONT_SCALE, codes)


@lru_cache(maxsize=1)
def _heights() -> tuple[float, float]:
    """Return how far a line reaches above and below its baseline, at a type size of 1."""
    font = FontProperties(family=FONT, size=1)
    _, height, descent = text_to_path.get_text_width_height_descent("lp", font, False)
    return height - descent, descent


@lru_cache(maxsize=4096)
def _advance(letter: str, weight: str) -> float:
    font = FontProperties(family=FONT, size=1, weight=weight)
    return float(text_to_path.get_text_width_height_descent(letter, font, False)[0])
