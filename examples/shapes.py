"""Your own data set in four IDX files: discs, squares and crosses, 14x14 pixels.

Run in this folder:

    python shapes.py
    python -m fmnist_lab.run --config-dir conf data=shapes
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SIDE = 14
NAMES = ("disc", "square", "cross")


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw shapes of random kind, size and place on a noisy background.

    Args:
        count: Number of images.
        seed: Seed of the random numbers.

    Returns:
        Images, uint8 (count, SIDE, SIDE), and labels, uint8 (count,), indices into NAMES.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(NAMES), size=count, dtype=np.uint8)
    y, x = np.mgrid[:SIDE, :SIDE]
    images = rng.integers(0, 120, (count, SIDE, SIDE), np.uint8)
    for image, label in zip(images, labels, strict=True):
        radius = rng.integers(2, 5)
        down, right = (abs(axis - rng.integers(radius, SIDE - radius)) for axis in (y, x))
        inside = (
            down**2 + right**2 <= radius**2,
            np.maximum(down, right) <= radius,
            (np.minimum(down, right) == 0) & (np.maximum(down, right) <= radius),
        )[label]
        image[inside] += 100
    return images, labels


def write_idx(file: Path, array: np.ndarray) -> None:
    """Write an IDX file: the type code, the number of dimensions, the sizes and the bytes.

    Args:
        file: Path of the file.
        array: uint8, of any shape.
    """
    sizes = np.array(array.shape, ">u4").tobytes()
    file.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def main(folder: Path = Path("shapes")) -> None:
    """Write 6,000 training and 1,000 test images into a folder."""
    folder.mkdir(exist_ok=True)
    for part, count, seed in (("train", 6000, 0), ("test", 1000, 1)):
        images, labels = draw(count, seed)
        write_idx(folder / f"{part}-images", images)
        write_idx(folder / f"{part}-labels", labels)


if __name__ == "__main__":
    main()
