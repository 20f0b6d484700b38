"""Draw pictures of clothes as people have them, and a contact sheet of what a model sees of them.

    python examples/photographs.py photographs
    python -m fmnist_lab.predict photographs --plot predictions.png

The pictures differ in shape, background, format, rotation and size; `contact_sheet.png`, beside the
folder, shows each with the box that was found, and what the model sees.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from fmnist_lab import photographs

Colour = tuple[int, int, int]
WHITE, BLACK, SHOP = (255, 255, 255), (0, 0, 0), (253, 253, 253)

# Outlines on a square of 100 x 100; `+` parts are drawn in the colour, `-` parts in a darker one.
SHAPES: dict[str, list[tuple[str, list[tuple[int, int]]]]] = {
    "t-shirt": [
        (
            "+",
            [
                (36, 8),
                (44, 13),
                (56, 13),
                (64, 8),
                (92, 24),
                (83, 43),
                (72, 38),
                (72, 92),
                (28, 92),
                (28, 38),
                (17, 43),
                (8, 24),
            ],
        ),
        ("-", [(40, 10), (50, 20), (60, 10), (57, 12), (50, 15), (43, 12)]),
    ],
    "pullover": [
        (
            "+",
            [
                (38, 8),
                (62, 8),
                (78, 16),
                (92, 84),
                (80, 88),
                (72, 44),
                (73, 92),
                (27, 92),
                (28, 44),
                (20, 88),
                (8, 84),
                (22, 16),
            ],
        ),
        ("-", [(27, 86), (73, 86), (73, 92), (27, 92)]),
        ("-", [(40, 8), (60, 8), (56, 14), (44, 14)]),
    ],
    "trouser": [
        (
            "+",
            [
                (32, 4),
                (68, 4),
                (72, 40),
                (70, 96),
                (56, 96),
                (50, 40),
                (44, 96),
                (30, 96),
                (28, 40),
            ],
        ),
        ("-", [(32, 4), (68, 4), (68, 9), (32, 9)]),
    ],
    "dress": [
        (
            "+",
            [
                (38, 4),
                (44, 18),
                (56, 18),
                (62, 4),
                (68, 6),
                (64, 40),
                (80, 96),
                (20, 96),
                (36, 40),
                (32, 6),
            ],
        ),
        ("-", [(36, 38), (64, 38), (65, 43), (35, 43)]),
    ],
    "sandal": [
        (
            "+",
            [
                (3, 74),
                (30, 70),
                (60, 62),
                (96, 44),
                (97, 72),
                (90, 72),
                (88, 58),
                (62, 74),
                (30, 80),
                (3, 80),
            ],
        ),
        ("+", [(18, 72), (30, 52), (36, 52), (26, 73)]),
        ("+", [(78, 52), (74, 28), (80, 26), (86, 48)]),
    ],
    "sneaker": [
        ("+", [(4, 58), (26, 52), (48, 36), (62, 34), (70, 42), (92, 36), (97, 66), (4, 68)]),
        ("-", [(3, 66), (97, 64), (97, 74), (3, 74)]),
        ("-", [(40, 44), (46, 40), (56, 54), (50, 57)]),
        ("-", [(50, 38), (56, 36), (65, 50), (59, 53)]),
    ],
    "ankle boot": [
        (
            "+",
            [(56, 6), (92, 6), (94, 82), (66, 82), (60, 76), (8, 80), (6, 66), (34, 56), (58, 44)],
        ),
        ("-", [(6, 78), (60, 76), (66, 82), (94, 82), (94, 94), (76, 94), (74, 86), (6, 86)]),
    ],
    "bag": [
        ("+", [(10, 40), (90, 40), (95, 90), (5, 90)]),
        ("-", [(10, 40), (90, 40), (84, 60), (16, 60)]),
        ("+", [(30, 40), (36, 14), (64, 14), (70, 40), (64, 40), (60, 20), (40, 20), (36, 40)]),
    ],
}


class Picture(NamedTuple):
    """What one file shows.

    Attributes:
        name: The file's name; its suffix says the format.
        shape: One of SHAPES.
        colour: Of the object.
        ground: The background: a colour, two colours of a gradient from top to bottom, or the name
            of something less even.
        size: Width and height of the file.
        place: left, top, width and height of the object as shares of the upright picture; None:
            in the middle, nearly filling it.
        more: What else is done to it; see `scene` and `write`.
    """

    name: str
    shape: str
    colour: Colour
    ground: Any = SHOP
    size: tuple[int, int] = (480, 640)
    place: tuple[float, float, float, float] | None = None
    more: Sequence[str] = ()


PICTURES = (
    Picture("shop.jpg", "t-shirt", (40, 70, 140), size=(762, 1000)),
    Picture("thumbnail.png", "dress", (190, 30, 60), size=(51, 73)),
    Picture("smallest.png", "sneaker", (60, 60, 60), WHITE, (20, 20), (0, 0, 1, 1)),
    Picture("largest.jpg", "ankle boot", (90, 50, 30), size=(6000, 4000)),
    Picture(
        "camera.png", "bag", (150, 40, 40), (225, 222, 215), (6000, 4000), (0.6, 0.5, 0.3, 0.4)
    ),
    Picture("white_on_white.jpg", "t-shirt", (244, 244, 242), more=("shaded",)),
    Picture("black_on_black.png", "trouser", (26, 26, 30), (4, 4, 5)),
    Picture("white_on_black.webp", "sneaker", (235, 235, 235), BLACK, (640, 480)),
    Picture("pale_grey.jpg", "pullover", (120, 150, 90), (214, 214, 214)),
    Picture("white_on_pale_grey.jpg", "sneaker", (250, 250, 250), (205, 205, 205), (640, 480)),
    Picture("as_light_as_ground.png", "dress", (200, 90, 90), (125, 125, 125)),
    Picture("gradient.jpg", "trouser", (40, 40, 50), ((250, 250, 250), (150, 150, 160))),
    Picture("vignette.jpg", "bag", (30, 60, 60), "vignette", (800, 600)),
    Picture("noise.jpg", "ankle boot", (50, 40, 40), "noise", (800, 800)),
    Picture("blue_ground.jpg", "dress", (240, 220, 120), (40, 90, 170)),
    Picture("transparent.png", "sandal", (120, 70, 30), "transparent", (500, 400)),
    Picture("white_transparent.webp", "t-shirt", (255, 255, 255), "transparent", (400, 400)),
    Picture("palette.gif", "pullover", (200, 120, 40), WHITE, (300, 300), more=("animated",)),
    Picture("palette.png", "bag", (20, 20, 20), "transparent", (256, 256), more=("palette",)),
    Picture("sixteen_bit.png", "ankle boot", (70, 70, 70), (240, 240, 240), more=("16 bit",)),
    Picture("sixteen_bit.tif", "trouser", (90, 90, 90), (30, 30, 30), more=("16 bit",)),
    Picture("print.jpg", "dress", (30, 110, 90), WHITE, more=("CMYK",)),
    Picture("one_bit.bmp", "sandal", BLACK, WHITE, (200, 200), more=("1 bit",)),
    Picture("telephone.jpg", "ankle boot", (60, 40, 30), (228, 226, 222), more=("EXIF 6",)),
    Picture("telephone_back.jpg", "sneaker", (180, 30, 30), (228, 226, 222), more=("EXIF 8",)),
    Picture("upside_down.png", "t-shirt", (70, 40, 110), more=("EXIF 3",)),
    Picture("mirrored.jpg", "sneaker", (20, 60, 40), size=(640, 480), more=("EXIF 2",)),
    Picture("corner.jpg", "sandal", (60, 50, 40), SHOP, (900, 900), (0.02, 0.7, 0.25, 0.25)),
    Picture("cut_off.jpg", "trouser", (30, 40, 80), SHOP, (300, 500), (0, -0.1, 1, 1.2)),
    Picture(
        "shadow.jpg", "ankle boot", (40, 30, 30), (246, 245, 243), (700, 700), more=("shadow",)
    ),
    Picture("dust.jpg", "bag", (60, 60, 90), more=("dust",)),
    Picture("striped.jpg", "t-shirt", (200, 40, 40), (238, 238, 238), more=("striped",)),
    Picture("wide.jpg", "sneaker", (90, 90, 120), SHOP, (2000, 120), (0.4, 0.05, 0.055, 0.9)),
    Picture("tilted.jpg", "bag", (100, 80, 60), SHOP, (600, 600), more=("tilted",)),
    Picture("few_colours.jpg", "pullover", (40, 40, 60), (232, 232, 236), more=("poor JPEG",)),
    Picture("ready.png", "sneaker", (255, 255, 255), BLACK, (28, 28), (0, 0, 1, 1), ("grey",)),
)


def draw(picture: Picture) -> Image.Image:
    """Return a picture as it is to be seen, RGBA where its background is transparent."""
    size = upright_size(picture)
    canvas = ground(picture.ground, size)
    mask, dark = object_masks(picture, size)
    if "shadow" in picture.more:
        soft = ImageChops.offset(mask, size[0] // 25, size[1] // 40)
        soft = soft.filter(ImageFilter.GaussianBlur(size[0] / 40)).point(lambda level: level // 12)
        canvas.paste(BLACK, mask=soft)
    body = Image.new("RGB", size, picture.colour)
    if "shaded" in picture.more:
        body.paste((228, 228, 226), mask=dark.filter(ImageFilter.GaussianBlur(size[0] / 60)))
    if "striped" in picture.more:
        pen = ImageDraw.Draw(body)
        for y in range(0, size[1], size[1] // 12):
            pen.rectangle((0, y, size[0], y + size[1] // 24), fill=(245, 245, 240))
    body.paste(tuple(int(0.55 * level) for level in picture.colour), mask=dark)
    if "shaded" in picture.more:
        body.paste((222, 222, 220), mask=dark)
    if canvas.mode == "RGBA":
        body.putalpha(mask)
        return body
    canvas.paste(body, mask=mask)
    if "dust" in picture.more:
        pen = ImageDraw.Draw(canvas)
        for x, y in ((0.05, 0.05), (0.93, 0.1), (0.9, 0.96)):
            at = (int(x * size[0]), int(y * size[1]))
            pen.rectangle((*at, at[0] + 3, at[1] + 3), fill=(90, 90, 90))
    return canvas


def upright_size(picture: Picture) -> tuple[int, int]:
    """Return a picture's width and height as it is to be seen."""
    turned = {"EXIF 6", "EXIF 8"} & set(picture.more)
    return (picture.size[1], picture.size[0]) if turned else picture.size


def ground(kind: Any, size: tuple[int, int]) -> Image.Image:
    """Return a background without anything on it."""
    if kind == "transparent":
        return Image.new("RGBA", size)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : size[1] * 1j, -1 : 1 : size[0] * 1j]
    if kind == "vignette":
        levels = (245 - 45 * (x**2 + y**2))[..., None].repeat(3, 2)
    elif kind == "noise":
        levels = rng.normal(222, 7, (size[1], size[0], 3))
    elif isinstance(kind[0], tuple):
        share = ((y + 1) / 2)[..., None]
        levels = (1 - share) * np.array(kind[0]) + share * np.array(kind[1])
    else:
        return Image.new("RGB", size, kind)
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


def object_masks(picture: Picture, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """Return the object's mask and that of its darker parts, with soft edges."""
    left, top, width, height = picture.place or (0.08, 0.08, 0.84, 0.84)
    if picture.place is None:
        side = min(width * size[0], height * size[1])
        width, height = side / size[0], side / size[1]
        left, top = 0.5 - width / 2, 0.5 - height / 2
    finer = 4 if max(size) < 1500 else 1
    whole, dark = (Image.new("L", (size[0] * finer, size[1] * finer)) for _ in range(2))
    for kind, outline in SHAPES[picture.shape]:
        points = [
            ((left + x * width / 100) * whole.width, (top + y * height / 100) * whole.height)
            for x, y in outline
        ]
        ImageDraw.Draw(whole).polygon(points, fill=255)
        if kind == "-":
            ImageDraw.Draw(dark).polygon(points, fill=255)
    if "tilted" in picture.more:
        whole, dark = (mask.rotate(15, Image.Resampling.BICUBIC) for mask in (whole, dark))
    return whole.resize(size, Image.Resampling.BOX), dark.resize(size, Image.Resampling.BOX)


def write(picture: Picture, folder: Path) -> Path:
    """Draw a picture and write its file."""
    image, options = draw(picture), {}
    to_file: dict[str, Callable[[Image.Image], Image.Image]] = {
        "EXIF 2": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "EXIF 3": lambda image: image.transpose(Image.Transpose.ROTATE_180),
        "EXIF 6": lambda image: image.transpose(Image.Transpose.ROTATE_90),
        "EXIF 8": lambda image: image.transpose(Image.Transpose.ROTATE_270),
        "palette": lambda image: image.quantize(64),
        "CMYK": lambda image: image.convert("CMYK"),
        "1 bit": lambda image: image.convert("1"),
        "grey": lambda image: image.convert("L"),
        "16 bit": lambda image: Image.fromarray(np.asarray(image.convert("L")) * np.uint16(257)),
    }
    for word in picture.more:
        image = to_file.get(word, lambda image: image)(image)
        if word.startswith("EXIF"):
            exif = Image.Exif()
            exif[0x0112] = int(word[-1])
            options["exif"] = exif
        elif word == "animated":
            others = [Image.new("RGB", image.size, (0, 80, 200))] * 2
            options |= {"save_all": True, "append_images": others, "duration": 200}
        elif word == "poor JPEG":
            options["quality"] = 15
    file = folder / picture.name
    image.save(file, **options)
    return file


def contact_sheet(files: Sequence[Path], columns: int = 6) -> Image.Image:
    """Return the pictures with the boxes that were found, each beside what the model sees."""
    side, line = 150, 26
    rows = -(-len(files) // columns)
    sheet = Image.new("RGB", (columns * (2 * side + 20), rows * (side + line + 14)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for at, file in enumerate(files):
        x, y = (at % columns) * (2 * side + 20) + 5, (at // columns) * (side + line + 14) + 5
        found = photographs.read(file)
        small = Image.fromarray(found.thumbnail)
        scale = side / max(small.size)
        small = small.resize(
            (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
        )
        sheet.paste((170, 200, 230), (x, y, x + side, y + side))
        sheet.paste(small, (x, y))
        scale = side / max(found.size)
        box = [round(edge * scale) for edge in found.box]
        pen.rectangle((x + box[0], y + box[1], x + box[2] - 1, y + box[3] - 1), outline="red")
        seen = Image.fromarray(found.pixels).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(seen, (x + side + 3, y))
        text = f"{file.name}, {found.size[0]}x{found.size[1]}\n{found.background}"
        text += ", as it is" if not found.converted else ", negated" if found.negated else ""
        pen.multiline_text((x, y + side + 2), text, "black", font, spacing=1)
    return sheet


def main(folder: Path = Path("photographs")) -> None:
    """Write the pictures into a folder, and the contact sheet beside it."""
    folder.mkdir(exist_ok=True)
    files = [write(picture, folder) for picture in PICTURES]
    contact_sheet(files).save(folder.with_name("contact_sheet.png"))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
