"""The object of a picture, found by what surrounds it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fmnist_lab.photographs.files import UnreadablePhotograph

Array = NDArray[np.float32]
Box = tuple[float, float, float, float]  # left, top, right, bottom

COARSE = 140  # Longest edge of the picture in which the object is looked for.
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's mode L.
# What the authors trimmed: 5 % of the diagonal of the RGB cube.
PUBLISHED_CLOSENESS = 0.05 * 255 * 3**0.5


class NoObject(UnreadablePhotograph):
    """A picture that shows one colour, or nothing."""


class Surface(NamedTuple):
    """The background's colours, a + b x + d x² + c y + e y², with x and y from -1 to 1."""

    across: Array  # a, b and d, each of them (3,).
    down: Array  # c and e.

    @property
    def colour(self) -> Array:
        """The colour in the middle of the picture, (3,)."""
        colour: Array = self.across[0]
        return colour

    def over(self, box: Box, size: tuple[int, int], whole: tuple[int, int]) -> Array:
        """Return the colours of a part's pixels, (height, width, 3).

        Args:
            box: Where the part is in the picture.
            size: Width and height of the part in pixels, which may be fewer than the box has.
            whole: Width and height of the picture.
        """
        x, y = _axes(box, size, whole)
        colours: Array = (x @ self.across)[None] + (y[:, 1:] @ self.down)[:, None]
        return colours


class FoundObject(NamedTuple):
    """Where the object is, in pixels of the picture, and what surrounds it."""

    box: Box
    background: Surface
    noise: float  # Of the background, as a distance between colours.
    is_light: bool


def find(picture: Image.Image, alpha: Image.Image | None) -> FoundObject:
    """Find the object of a picture.

    Raises:
        UnreadablePhotograph: There is none.
    """
    whole = (0.0, 0.0, float(picture.width), float(picture.height))
    small = shrunk(picture, COARSE)
    colours = np.asarray(small, np.float32)
    background, noise = _background(colours, *_axes(whole, small.size, picture.size))
    above = colours - background.over(whole, small.size, picture.size)
    level = float(background.colour @ GREY)
    # On white, it is light; on black, dark; between, light if the object is darker.
    is_light = bool((above @ GREY).mean() < 0) if 30 < level < 225 else level > 127
    if alpha:
        shown = alpha.point(lambda level: 255 * (level > 25)).getbbox()
        if shown is None:
            raise NoObject("the picture is transparent everywhere; expected one of an object")
        return FoundObject(shown, background, noise, is_light)
    box = _box(above, noise, whole)
    if longest(box) < 0.7 * max(picture.size):
        # Once more, close to it, for the sake of its edges.
        room = 0.1 * longest(box) + 2
        left, top = (int(max(edge - room, 0)) for edge in box[:2])
        right, bottom = (int(min(box[2 + at] + room, picture.size[at])) for at in (0, 1))
        part = shrunk(picture.crop((left, top, right, bottom)), COARSE)
        around = background.over((left, top, right, bottom), part.size, picture.size)
        box = _box(np.asarray(part, np.float32) - around, noise, (left, top, right, bottom))
    return FoundObject(box, background, noise, is_light)


def longest(box: Box) -> float:
    """Return the longer edge of a box."""
    return max(box[2] - box[0], box[3] - box[1])


def shrunk(picture: Image.Image, longest: int) -> Image.Image:
    """Return a picture whose edges are no longer than that."""
    small = picture.copy()
    small.thumbnail((longest, longest), Image.Resampling.BOX, reducing_gap=None)
    return small


def _axes(box: Box, size: tuple[int, int], whole: tuple[int, int]) -> list[Array]:
    """Return 1, x, x² of a part's columns, (width, 3), and 1, y, y² of its rows, (height, 3)."""
    axes = []
    for at in (0, 1):
        pitch = (box[at + 2] - box[at]) / size[at]
        along = 2 * (box[at] + (np.arange(size[at]) + 0.5) * pitch) / whole[at] - 1
        axes.append(np.stack([along**0, along, along**2], -1).astype(np.float32))
    return axes


def squared(differences: NDArray[Any]) -> Array:
    """Return the squared lengths of differences between colours, (..., 3)."""
    lengths: Array = np.einsum("...c,...c->...", differences, differences)
    return lengths


def border_of(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the pixels of the border, (n[, k])."""
    width = max(1, round(0.02 * min(pixels.shape[:2])))
    inside = np.zeros(pixels.shape[:2], bool)
    inside[width:-width, width:-width] = True
    return pixels[~inside]


def _background(colours: Array, x: Array, y: Array) -> tuple[Surface, float]:
    """Fit a smooth surface to the colours of the border, and return it and the noise around it.

    Starts from the colour, of the corners' and the border's median, that most of the border has,
    and takes in more of the border while the surface fits. The surface is flat or sloping, and
    curved only where that takes in much more.
    """
    border = border_of(colours)
    places = border_of(np.indices(colours.shape[:2]).transpose(1, 2, 0))
    basis = np.hstack([x[places[:, 1]], y[places[:, 0], 1:]])[:, [0, 1, 3, 2, 4]]
    starts = np.vstack([colours[[0, 0, -1, -1], [0, -1, 0, -1]], np.median(border, 0)[None]])
    near = [squared(border - start) < 30**2 for start in starts]
    best: tuple[float, NDArray[Any], float] = (-1.0, np.empty(0), 0.0)
    for terms in (3, 5):
        taken, used = max(near, key=np.sum), basis[:, :terms]
        for _ in range(6):
            # Ridge regression: a slope needs evidence from more than a few pixels.
            square = used[taken].T @ used[taken] + np.diag([1e-3] + [1.0] * (terms - 1))
            surface = np.linalg.solve(square, used[taken].T @ border[taken])
            off = squared(border - used @ surface)
            before, taken = taken, off <= max(25.0**2, float(off.min()))
            if np.array_equal(before, taken):
                break
        if taken.mean() > best[0] + 0.1:
            best = (float(taken.mean()), surface, float(1.5 * np.median(off[taken]) ** 0.5))
        if best[0] > 0.9:
            break
    _, surface, noise = best
    whole = np.zeros((5, 3), np.float32)
    whole[: len(surface)] = surface
    return Surface(whole[[0, 1, 3]], whole[[2, 4]]), noise


def _box(above: Array, noise: float, box: Box) -> Box:
    """Return the box of what differs from the background.

    The threshold is the published one where the object stands out well, and less for white on
    white or black on black.

    Args:
        above: (height, width, 3), the colours of a part of the picture less the background's.
        noise: Of the background.
        box: Where the part is in the picture.

    Raises:
        UnreadablePhotograph: Nothing differs.
    """
    off = squared(above)
    lowest = max(6.0, 4 * noise)
    mask = off > lowest**2
    if mask.any():
        usual = float(np.median(off[mask])) ** 0.5
        mask = off > np.clip(usual / 3, lowest, max(PUBLISHED_CLOSENESS, lowest)) ** 2
    mask = _without_specks(mask)
    if not mask.any():
        raise NoObject("the picture shows one colour and no object; expected one of clothing")
    edges = []
    for at in (0, 1):
        (there,) = np.nonzero(mask.any(at))
        pitch = (box[at + 2] - box[at]) / mask.shape[1 - at]
        edges.append((box[at] + there[0] * pitch, box[at] + (there[-1] + 1) * pitch))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


def _without_specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask without its small pieces: dust, a hair, noise.

    Pieces are told apart on a grid of some 24x24 cells; those with less than 2 % of the pixels of
    the largest go.
    """
    cell = -(-max(mask.shape) // 24)
    if cell < 3:
        return mask
    high, wide = (-(-side // cell) for side in mask.shape)
    room = ((0, cell * high - mask.shape[0]), (0, cell * wide - mask.shape[1]))
    counts = np.pad(mask, room).reshape(high, cell, wide, cell).sum((1, 3))
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(counts), strict=True)}
    pieces = []
    while left:
        ends, piece = [left.pop()], []
        while ends:
            y, x = ends.pop()
            piece.append((y, x))
            beside = {(y + down, x + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & left
            left -= beside
            ends += beside
        pieces.append((sum(int(counts[each]) for each in piece), piece))
    keep = np.zeros_like(counts, bool)
    for pixels, piece in pieces:
        if pixels >= 0.02 * max(pieces)[0]:
            keep[tuple(zip(*piece, strict=True))] = True
    large = keep.repeat(cell, 0).repeat(cell, 1)[: mask.shape[0], : mask.shape[1]]
    kept: NDArray[np.bool_] = mask & large
    return kept
