"""The two ends of every model: raw images in, probabilities out."""

from __future__ import annotations

import keras
from keras import layers


def images(image_shape: tuple[int, ...], *, channel: bool = False) -> list[keras.Layer]:
    """Return the head of every model: raw images in, numbers from 0 to 1 out.

    Args:
        image_shape: Shape of one image, (height, width).
        channel: Add the dimension of channels that convolutions need.

    Returns:
        Layers from uint8 (n, height, width) to floats (n, height, width) or, with a channel,
        (n, height, width, 1).
    """
    head = [
        keras.Input(image_shape, dtype="uint8", name="image"),
        layers.Rescaling(1 / 255, name="rescale"),
    ]
    return [*head, layers.Reshape((*image_shape, 1), name="channel")] if channel else head


def probabilities(classes: int) -> keras.Layer:
    """Return the tail of every model, in float32 whatever the precision before it."""
    return layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities")
