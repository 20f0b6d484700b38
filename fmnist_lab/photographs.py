"""Photographs as a model of Fashion-MNIST knows its images: small, grey, light on dark.

`read` converts a picture as Xiao, Rasul and Vollgraf (2017), "Fashion-MNIST", section 2, converted
theirs (arXiv:1708.07747): trim to the object, bring the longest edge to 28 pixels by leaving out
rows and columns, sharpen along outlines with a Gaussian of radius and standard deviation 1.0, put
the object into the middle of 28x28 pixels, negate, 8-bit grey. Their pictures were thumbnails on
one light grey; here, the background is found. In the published images, the lightest pixel is 254 or
255 in every one, so that the last step here is to stretch the grey levels to 255.

The file is shipped inside logged models: it imports NumPy and Pillow alone.
"""

from __future__ import annotations

import io
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Array = NDArray[np.float32]
Box = tuple[float, float, float, float]  # left, top, right, bottom

MOST_PIXELS = 64_000_000  # That are decoded at once: 4 bytes each, at most.
DRAFT = 1024  # A larger JPEG is decoded at a half, a quarter or an eighth, no smaller than this.
COARSE = 140  # Longest edge of the picture in which the object is looked for.
THUMBNAIL = 320  # Longest edge of the small copy that is kept for a drawing.
# EPS and WMF start other programs, and some rare formats are of no use to photographs.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM"),
    *("PSD", "QOI", "SGI", "TGA", "TIFF", "WEBP"),
)
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
# What puts a picture of EXIF's orientations 2 to 8 upright.
UPRIGHT = dict(zip(range(2, 9), map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), strict=True))
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's mode L.
# What the authors trimmed: 5 % of the diagonal of the RGB cube.
PUBLISHED_CLOSENESS = 0.05 * 255 * 3**0.5


class UnreadablePhotograph(ValueError):
    """A file that is no picture, or a picture without an object; its message is one sentence."""


class NoObject(UnreadablePhotograph):
    """A picture that shows one colour, or nothing."""


@dataclass(frozen=True, eq=False)
class Photograph:
    """A picture and what a model is to see of it.

    Attributes:
        pixels: uint8 (height, width) or, in colour, (height, width, 3).
        box: left, top, right and bottom of the object, in pixels of the upright original.
        background: Its colour in plain words and its grey level, such as "pale grey (221)".
        negated: Whether light was made dark and dark light, as on a light background.
        converted: False for a file that had the model's size already, light on dark.
        size: Width and height of the upright original.
        thumbnail: uint8 (height, width, 3), the upright original, at most 320 pixels long.
    """

    pixels: NDArray[np.uint8]
    box: tuple[int, int, int, int]
    background: str
    negated: bool
    converted: bool
    size: tuple[int, int]
    thumbnail: NDArray[np.uint8]


def read(
    source: str | Path | bytes | BinaryIO, size: tuple[int, int] = (28, 28), colour: bool = False
) -> Photograph:
    """Read a picture and convert it to what a model sees.

    Args:
        source: A file's name, its bytes, or a binary stream.
        size: Height and width of the model's images.
        colour: Whether the model's images are in colour. Then nothing is negated, sharpened or
            stretched, and the object is put on its own background.

    Raises:
        UnreadablePhotograph: The file is missing, damaged, too large or no picture, or the picture
            shows one colour alone.
    """
    picture, original = _open(source)
    if picture.size == (size[1], size[0]) == original:
        as_it_is = _as_it_is(picture, colour)
        if as_it_is is not None:
            return as_it_is
    alpha = None
    if picture.mode == "RGBA":
        alpha = picture.getchannel("A")
        if np.asarray(alpha).min() > 250:
            alpha = None
        picture = _on_one_colour(picture, alpha)
    found = _find(picture, alpha)
    if original == (size[1], size[0]) and _longest(found.box) > 0.9 * max(size):
        # A negative of the data set's own images: as large as they are, and sharp already.
        found = found._replace(box=(0, 0, *original))
    pixels = _seen(picture, found, size, colour)
    scale = (original[0] / picture.width, original[1] / picture.height)
    left, top, right, bottom = (round(edge * scale[at % 2]) for at, edge in enumerate(found.box))
    return Photograph(
        pixels,
        (left, top, max(right, left + 1), max(bottom, top + 1)),
        "transparent" if alpha else _described(found.background.colour),
        found.is_light and not colour,
        True,
        original,
        np.asarray(_shrunk(picture, THUMBNAIL)),
    )


def _open(source: str | Path | bytes | BinaryIO) -> tuple[Image.Image, tuple[int, int]]:
    """Return a file's first picture, upright, RGB or RGBA, perhaps smaller, and its full size."""
    try:
        if isinstance(source, str | Path):
            with Path(source).open("rb") as file:
                return _open(file)
        stream = io.BytesIO(source) if isinstance(source, bytes) else source
        start = stream.read(12)
        stream.seek(0)
        with Image.open(stream, formats=_formats()) as image:
            full = image.size
            if not image.info.get("progressive"):  # Else all of it is decoded first, anyway.
                image.draft(None, (DRAFT, DRAFT))
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            orientation = _orientation(image)
            return _upright_rgb(image, orientation), full[::-1] if orientation >= 5 else full
    except UnreadablePhotograph:
        raise
    except FileNotFoundError:
        reason = "there is no such file; expected an image file"
    except IsADirectoryError:
        reason = "this is a folder; expected an image file"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        reason = f"the picture has more than {MOST_PIXELS // 10**6} million pixels; make it smaller"
    except Exception as error:  # Pillow's decoders may raise anything for a damaged file.
        unknown = isinstance(error, UnidentifiedImageError)
        why = "its format is unknown" if unknown else " ".join(str(error).split())
        reason = f"it cannot be read as an image ({why}); expected a PNG, JPEG or the like"
        if unknown and start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS:
            reason = "this is a HEIC picture; to read it, pip install 'fmnist_lab[heic]'"
    raise UnreadablePhotograph(reason)


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Return the formats that are read here, HEIC among them if its extra is installed."""
    Image.init()
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    """Load a picture and return EXIF's orientation, 1 to 8; 1 where it makes no sense."""
    image.load()
    try:
        orientation = int(image.getexif().get(0x0112, 1))
    except Exception:  # A damaged EXIF block is no reason to refuse the picture.
        return 1
    return orientation if orientation in UPRIGHT else 1


def _upright_rgb(image: Image.Image, orientation: int) -> Image.Image:
    """Return a loaded picture as 8-bit RGB or RGBA, upright, its longest edge about DRAFT."""
    if image.mode.startswith("I;"):
        image = image.convert("I")
    factor = max(1, min(max(image.size) // DRAFT, min(image.size) // 28))
    if factor > 1 and image.mode not in ("1", "P", "PA"):
        image, factor = image.reduce(factor), 1
    if image.mode in ("I", "F"):
        image = _eight_bit(image)
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if factor > 1:
        image = image.reduce(factor)
    return image.transpose(UPRIGHT[orientation]) if orientation > 1 else image


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return grey levels of 16 or 32 bits or fractions as levels of 8 bits."""
    levels = np.nan_to_num(np.asarray(image, np.float32))
    highest = levels.max()
    full = 255 if 1 < highest <= 255 else 1 if highest <= 1 and image.mode == "F" else 65535
    return Image.fromarray(np.clip(levels * (255 / full), 0, 255).astype(np.uint8))


def _as_it_is(picture: Image.Image, colour: bool) -> Photograph | None:
    """Return a picture of the model's size as it is, or None for a grey one that is dark on light.

    Corners and border must be more dark than light together. All 70,000 images of Fashion-MNIST
    pass (the least, by 1.32 of 2), and none of their negatives does.
    """
    rgb = picture.convert("RGB")
    grey = np.asarray(rgb.convert("L"))
    corners, border = grey[[0, 0, -1, -1], [0, -1, 0, -1]], _border(grey)
    if not colour and np.mean(corners < 128) + np.mean(border < 128) < 1:
        return None
    level, whole = np.full(3, np.median(border), np.float32), (0, 0, *picture.size)
    seen, small = (np.asarray(each) for each in (rgb if colour else grey, rgb))
    return Photograph(seen, whole, _described(level), False, False, picture.size, small)


def _on_one_colour(picture: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """Return a picture with its transparent parts white, or black where white would hide it all."""
    if alpha is None:
        return picture.convert("RGB")
    weights = np.asarray(alpha, np.float32)
    grey = np.asarray(picture.convert("RGB"), np.float32) @ GREY
    mean = float((grey * weights).sum() / max(weights.sum(), 1))
    under = Image.new("RGBA", picture.size, "black" if mean > 245 else "white")
    return Image.alpha_composite(under, picture).convert("RGB")


class _Surface(NamedTuple):
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


class _Found(NamedTuple):
    """Where the object is, in pixels of the picture, and what surrounds it."""

    box: Box
    background: _Surface
    noise: float  # Of the background, as a distance between colours.
    is_light: bool


def _find(picture: Image.Image, alpha: Image.Image | None) -> _Found:
    """Find the object of a picture.

    Raises:
        UnreadablePhotograph: There is none.
    """
    whole = (0.0, 0.0, float(picture.width), float(picture.height))
    small = _shrunk(picture, COARSE)
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
        return _Found(shown, background, noise, is_light)
    box = _box(above, noise, whole)
    if _longest(box) < 0.7 * max(picture.size):
        # Once more, close to it, for the sake of its edges.
        room = 0.1 * _longest(box) + 2
        left, top = (int(max(edge - room, 0)) for edge in box[:2])
        right, bottom = (int(min(box[2 + at] + room, picture.size[at])) for at in (0, 1))
        part = _shrunk(picture.crop((left, top, right, bottom)), COARSE)
        around = background.over((left, top, right, bottom), part.size, picture.size)
        box = _box(np.asarray(part, np.float32) - around, noise, (left, top, right, bottom))
    return _Found(box, background, noise, is_light)


def _longest(box: Box) -> float:
    return max(box[2] - box[0], box[3] - box[1])


def _shrunk(picture: Image.Image, longest: int) -> Image.Image:
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


def _squared(differences: NDArray[Any]) -> Array:
    """Return the squared lengths of differences between colours, (..., 3)."""
    lengths: Array = np.einsum("...c,...c->...", differences, differences)
    return lengths


def _border(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the pixels of the border, (n[, k])."""
    width = max(1, round(0.02 * min(pixels.shape[:2])))
    inside = np.zeros(pixels.shape[:2], bool)
    inside[width:-width, width:-width] = True
    return pixels[~inside]


def _background(colours: Array, x: Array, y: Array) -> tuple[_Surface, float]:
    """Fit a smooth surface to the colours of the border, and return it and the noise around it.

    Starts from the colour, of the corners' and the border's median, that most of the border has,
    and takes in more of the border while the surface fits. The surface is flat or sloping, and
    curved only where that takes in much more.
    """
    border = _border(colours)
    places = _border(np.indices(colours.shape[:2]).transpose(1, 2, 0))
    basis = np.hstack([x[places[:, 1]], y[places[:, 0], 1:]])[:, [0, 1, 3, 2, 4]]
    starts = np.vstack([colours[[0, 0, -1, -1], [0, -1, 0, -1]], np.median(border, 0)[None]])
    near = [_squared(border - start) < 30**2 for start in starts]
    best: tuple[float, NDArray[Any], float] = (-1.0, np.empty(0), 0.0)
    for terms in (3, 5):
        taken, used = max(near, key=np.sum), basis[:, :terms]
        for _ in range(6):
            # Ridge regression: a slope needs evidence from more than a few pixels.
            square = used[taken].T @ used[taken] + np.diag([1e-3] + [1.0] * (terms - 1))
            surface = np.linalg.solve(square, used[taken].T @ border[taken])
            off = _squared(border - used @ surface)
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
    return _Surface(whole[[0, 1, 3]], whole[[2, 4]]), noise


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
    off = _squared(above)
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


def _seen(
    picture: Image.Image, found: _Found, size: tuple[int, int], colour: bool
) -> NDArray[np.uint8]:
    """Return the pixels that a model sees, uint8 size or (*size, 3)."""
    left, top, right, bottom = found.box
    scale = min(size[1] / (right - left), size[0] / (bottom - top))
    wide = min(max(1, round((right - left) * scale)), size[1])
    high = min(max(1, round((bottom - top) * scale)), size[0])
    # The authors left out rows and columns of thumbnails, whose pixels were means already.
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    colours = np.asarray(picture.resize((wide, high), how, box=found.box), np.float32)
    surface = found.background.over(found.box, (wide, high), picture.size)
    # In the middle; an odd pixel is left over on the left and above, as in the published images.
    y, x = (size[0] - high + 1) // 2, (size[1] - wide + 1) // 2
    where = slice(y, y + high), slice(x, x + wide)
    if colour:
        canvas = np.empty((*size, 3), np.float32)
        canvas[:] = surface.mean((0, 1))
        canvas[where] = colours
        return np.clip(canvas, 0, 255).round().astype(np.uint8)
    off = _squared(colours - surface) ** 0.5
    there = off > max(3 * found.noise, 1)
    if not there.any():
        raise NoObject("the picture shows noise and no object; expected one of clothing")
    # Lighter parts of an object on grey count like darker ones: its outline is what matters.
    grey = np.abs((colours - surface) @ GREY)
    # An object of another colour may be as light as its background.
    levels: Array = (grey if grey[there].sum() > 0.15 * off[there].sum() else off) * there
    canvas = np.zeros(size, np.float32)
    canvas[where] = levels if scale == 1 else _sharpened(levels)
    canvas *= 255 / max(float(canvas.max()), 1e-3)
    return canvas.round().astype(np.uint8)


def _sharpened(levels: Array) -> Array:
    """Sharpen outlines: a 3x3 Gaussian of standard deviation 1.0, as ImageMagick's sharpening."""
    weights = np.exp(-0.5 * np.array([[2, 1, 2], [1, 0, 1], [2, 1, 2]], np.float32))
    weights[1, 1] = 0
    padded = np.pad(levels, 1, mode="edge")
    high, wide = levels.shape
    shifts = [padded[y : y + high, x : x + wide] for y in range(3) for x in range(3)]
    around = np.tensordot(weights.ravel(), np.stack(shifts), 1) / weights.sum()
    edges = np.max(shifts, 0) - np.min(shifts, 0)
    strength = 0.66 * edges / max(float(edges.max()), 1e-3)
    sharp: Array = np.maximum(levels + strength * (levels - around), 0)
    return sharp


def _described(background: Array) -> str:
    """Return a colour, (3,), in plain words and with its grey level."""
    colour = np.clip(background, 0, 255)
    level = round(float(colour @ GREY))
    if np.ptp(colour) > 40:
        name = ("red", "green", "blue")[int(colour.argmax())]
        name = "yellow" if colour[:2].min() > colour[2] + 40 else name
        word = f"{'pale ' if level > 200 else 'dark ' if level < 60 else ''}{name}"
    else:
        steps = {245: "white", 190: "pale grey", 100: "grey", 25: "dark grey", 0: "black"}
        word = next(name for least, name in steps.items() if level >= least)
    return f"{word} ({level})"
