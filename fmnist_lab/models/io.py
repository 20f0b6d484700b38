"""The two ends of every model: raw images in, probabilities out."""

from __future__ import annotations

import keras
from keras import layers


def images(image_shape: tuple[int, ...], *, channel: bool = False) -> list[keras.Layer]:
    """Return the head of every model: raw images in, numbers from 0 to 1 out.

    Args:
        image_shape: Shape of one image, (height, width), or (height, width, 3) in colour.
        channel: Add the dimension of channels that convolutions need, where there is none.

    Returns:
        Layers from uint8 images to floats of the same shape or, with a channel, of shape (n,
        height, width, channels).
    """
    head = [
        keras.Input(image_shape, dtype="uint8", name="image"),
        layers.Rescaling(1 / 255, name="rescale"),
    ]
    if channel and len(image_shape) == 2:
        head.append(layers.Reshape((*image_shape, 1), name="channel"))
    return head


def probabilities(classes: int) -> keras.Layer:
    """Return the tail of every model, in float32 whatever the precision before it."""
    return layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities")
