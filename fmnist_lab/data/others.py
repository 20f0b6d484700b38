"""Pictures that are no clothes, or not as a camera sees them, in the form of a model's images."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Images = NDArray[np.uint8]


def digits(shape: tuple[int, ...]) -> Images:
    """Return the handwritten digits that scikit-learn brings along, enlarged.

    They are 8x8 pixels of 17 grey levels, light on dark as the clothes are: the test images of
    "Optical Recognition of Handwritten Digits", Alpaydin & Kaynak 1998, UCI.

    Args:
        shape: Shape of one image, (height, width) or (height, width, 3).

    Returns:
        uint8 (1797, *shape).
    """
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    height, width = shape[:2]
    grey = (load_digits().images * (255 / 16)).round().astype(np.uint8)
    large = [
        np.asarray(Image.fromarray(each).resize((width, height), Image.Resampling.BILINEAR))
        for each in grey
    ]
    return _in_shape(np.stack(large), shape)


def noise(shape: tuple[int, ...], count: int = 2000, seed: int = 0) -> Images:
    """Return images whose pixels are drawn evenly from 0 to 255, each by itself.

    Args:
        shape: Shape of one image.
        count: Number of images.
        seed: Decides the pixels.
    """
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def upside_down(images: Images) -> Images:
    """Return images (n, height, width, ...), each turned by half a turn."""
    return np.ascontiguousarray(images[:, ::-1, ::-1])


def _in_shape(images: Images, shape: tuple[int, ...]) -> Images:
    """Return grey images (n, height, width) with as many channels as a shape has."""
    if len(shape) == 2:
        return images
    return np.repeat(images[..., None], shape[2], axis=-1)
