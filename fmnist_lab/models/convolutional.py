"""Convolutions, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fmnist_lab.config.fields import Count, Flag, Share

if TYPE_CHECKING:
    import keras


def cnn(
    image_shape: tuple[int, ...],
    classes: int,
    filters: Annotated[
        Sequence[Count],
        Field(min_length=1, description="a list of whole numbers, 1 or more, one per convolution"),
    ] = (32, 64),
    dense_units: Annotated[
        int, Field(ge=0, description="a whole number; 0 for no hidden layer")
    ] = 0,
    batch_norm: Flag = False,
    dropout: Share = 0.0,
) -> keras.Model:
    """Build a small convolutional network: 3x3 convolutions, each followed by 2x2 pooling.

    Args:
        image_shape: Shape of one image, (height, width), or (height, width, 3) in colour.
        classes: Number of classes.
        filters: Filters of each convolution.
        dense_units: Units of a hidden layer between the convolutions and the softmax; 0: none.
        batch_norm: Normalise each convolution's output over the batch, before its relu.
        dropout: Share of the last layer's inputs that is dropped in training, from 0 to 1.

    Returns:
        A model from uint8 images (n, *image_shape) to float32 probabilities (n, classes).

    Raises:
        ValueError: There are more poolings than the images can be halved.
    """
    import keras
    from keras import layers

    from fmnist_lab.models.io import images, probabilities

    height, width = image_shape[:2]
    if min(height, width) < 2 ** len(filters):
        raise ValueError(
            f"`filters` must not be more than the times an image of {height}x{width} can be "
            f"halved. Received: filters={list(filters)}"
        )
    stack: list[keras.Layer] = images(image_shape, channel=True)
    for number, count in enumerate(filters, 1):
        stack.append(
            layers.Conv2D(
                count, 3, padding="same", use_bias=not batch_norm, name=f"convolution_{number}"
            )
        )
        if batch_norm:
            stack.append(layers.BatchNormalization(name=f"norm_{number}"))
        stack.append(layers.Activation("relu", name=f"relu_{number}"))
        stack.append(layers.MaxPooling2D(name=f"pool_{number}"))
    stack.append(layers.Flatten(name="flatten"))
    if dense_units:
        stack.append(layers.Dense(dense_units, activation="relu", name="hidden"))
    if dropout:
        stack.append(layers.Dropout(dropout, name="dropout"))
    return keras.Sequential([*stack, probabilities(classes)], name="cnn")
