"""Picture files of any format, opened upright, in 8 bits, and no larger than is needed."""

from __future__ import annotations

import io
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

MOST_PIXELS = 64_000_000  # That are decoded at once: 4 bytes each, at most.
DRAFT = 1024  # A larger JPEG is decoded at a half, a quarter or an eighth, no smaller than this.
# EPS and WMF start other programs, and some rare formats are of no use to photographs.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM"),
    *("PSD", "QOI", "SGI", "TGA", "TIFF", "WEBP"),
)
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
# What puts a picture of EXIF's orientations 2 to 8 upright.
UPRIGHT = dict(zip(range(2, 9), map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), strict=True))


class UnreadablePhotograph(ValueError):
    """A file that is no picture, or a picture without an object; its message is one sentence."""


def opened(source: str | Path | bytes | BinaryIO) -> tuple[Image.Image, tuple[int, int]]:
    """Return a file's first picture, upright, RGB or RGBA, perhaps smaller, and its full size.

    Raises:
        UnreadablePhotograph: The file is missing, damaged, too large or no picture.
    """
    try:
        if isinstance(source, str | Path):
            with Path(source).open("rb") as file:
                return opened(file)
        stream = io.BytesIO(source) if isinstance(source, bytes) else source
        start = stream.read(12)
        stream.seek(0)
        with Image.open(stream, formats=formats()) as image:
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
def formats() -> tuple[str, ...]:
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
