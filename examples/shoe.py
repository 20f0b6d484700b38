"""Draw a picture for `predict`: an ankle boot, light on dark, 28x28 pixels.

python examples/shoe.py
python -m fmnist_lab.predict examples/shoe.png
"""

from pathlib import Path

from PIL import Image, ImageDraw

SIDE = 28
FINER = 8  # drawing larger and then shrinking the picture softens the edges
SHAFT = [(17, 3), (26, 3), (26, 14), (17, 14)]
FOOT = [(17, 10), (26, 10), (26, 22), (2, 22), (2, 18), (9, 15)]
SOLE = [(1, 22), (27, 22), (27, 25), (1, 25)]


def draw() -> Image.Image:
    """Return the picture, in levels of grey."""
    picture = Image.new("L", (SIDE * FINER, SIDE * FINER))
    pen = ImageDraw.Draw(picture)
    for outline, grey in ((SHAFT, 190), (FOOT, 210), (SOLE, 120)):
        pen.polygon([(x * FINER, y * FINER) for x, y in outline], fill=grey)
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    draw().save(Path(__file__).with_suffix(".png"))
