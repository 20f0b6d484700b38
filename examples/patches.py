"""Your own model in one file: the same dense layer is applied to each patch of the image.

Run in this folder:

    python -m fmnist_lab.run model=own model._target_=patches.patches +model.units=64
"""

from __future__ import annotations

import keras
from keras import layers


def patches(
    image_shape: tuple[int, ...], classes: int, size: int = 7, units: int = 64
) -> keras.Model:
    """Build a network that applies the same weights to each patch, then combines all patches.

    Args:
        image_shape: Shape of one image, (height, width); both are multiples of `size`.
        classes: Number of classes.
        size: Height and width of a patch, in pixels.
        units: Units of the dense layer for each patch, and of the dense layer for all patches.

    Returns:
        A model from uint8 (n, height, width) to float32 probabilities (n, classes).

    Raises:
        ValueError: The patches do not fill the image.
    """
    rows, columns = image_shape[0] // size, image_shape[1] // size
    if (rows * size, columns * size) != tuple(image_shape):
        raise ValueError(f"`size` must divide {image_shape[0]} and {image_shape[1]}. Got: {size}")
    return keras.Sequential(
        [
            keras.Input(image_shape, dtype="uint8"),
            layers.Rescaling(1 / 255),
            layers.Reshape((rows, size, columns, size)),
            layers.Permute((1, 3, 2, 4)),
            layers.Reshape((rows * columns, size * size)),
            layers.Dense(units, activation="relu"),
            layers.Flatten(),
            layers.Dense(units, activation="relu"),
            layers.Dense(classes, activation="softmax", dtype="float32"),
        ],
        name="patches",
    )
