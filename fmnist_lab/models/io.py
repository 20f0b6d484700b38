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


def logits(model: keras.Model) -> keras.Model | None:
    """Return a model without its softmax, with weights of its own.

    Args:
        model: A model from images to probabilities (n, classes).

    Returns:
        A model from the same images to logits, float32 (n, classes); None if the probabilities do
        not come from the softmax of a last dense layer, as those of an average of two.
    """
    last = model.layers[-1]
    if not isinstance(last, layers.Dense) or last.activation is not keras.activations.softmax:
        return None
    bare = layers.Dense(last.units, use_bias=last.use_bias, dtype="float32", name="logits")
    found = keras.Model(model.inputs[0], bare(last.input), name=f"{model.name}_logits")
    bare.set_weights(last.get_weights())
    return found
