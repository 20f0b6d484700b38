"""Models: each a function from (input shape, classes, options) to a Keras model.

Every model takes raw uint8 images and rescales them inside, so that training and serving see the
same numbers, and ends in a softmax over the classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers


def linear(image_shape: tuple[int, ...], classes: int) -> keras.Model:
    """Build multinomial logistic regression.

    Args:
        image_shape: Shape of one image, (height, width).
        classes: Number of classes.

    Returns:
        A model from uint8 (n, height, width) to float32 probabilities (n, classes).
    """
    return mlp(image_shape, classes, hidden_units=())


def mlp(
    image_shape: tuple[int, ...],
    classes: int,
    hidden_units: int | Sequence[int] = 128,
    activation: str = "relu",
    dropout: float = 0.0,
) -> keras.Model:
    """Build a multi-layer perceptron; its defaults are the network of TensorFlow's tutorial.

    Args:
        image_shape: Shape of one image, (height, width).
        classes: Number of classes.
        hidden_units: Units of the hidden layer, or of each of several.
        activation: Name of a Keras activation.
        dropout: Share of a hidden layer's outputs that is dropped in training, from 0 to 1.

    Returns:
        A model from uint8 (n, height, width) to float32 probabilities (n, classes).
    """
    widths = [hidden_units] if isinstance(hidden_units, int) else list(hidden_units)
    stack: list[keras.Layer] = [*_images(image_shape), layers.Flatten(name="flatten")]
    for number, width in enumerate(widths, 1):
        stack.append(layers.Dense(width, activation=activation, name=f"hidden_{number}"))
        if dropout:
            stack.append(layers.Dropout(dropout, name=f"dropout_{number}"))
    return keras.Sequential([*stack, _probabilities(classes)], name="mlp" if widths else "linear")


def cnn(
    image_shape: tuple[int, ...],
    classes: int,
    filters: Sequence[int] = (32, 64),
    dense_units: int = 0,
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> keras.Model:
    """Build a small convolutional network: 3x3 convolutions, each followed by 2x2 pooling.

    Args:
        image_shape: Shape of one image, (height, width).
        classes: Number of classes.
        filters: Filters of each convolution.
        dense_units: Units of a hidden layer between the convolutions and the softmax; 0: none.
        batch_norm: Normalise each convolution's output over the batch, before its relu.
        dropout: Share of the last layer's inputs that is dropped in training, from 0 to 1.

    Returns:
        A model from uint8 (n, height, width) to float32 probabilities (n, classes).
    """
    stack: list[keras.Layer] = [
        *_images(image_shape),
        layers.Reshape((*image_shape, 1), name="channel"),
    ]
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
    return keras.Sequential([*stack, _probabilities(classes)], name="cnn")


def _images(image_shape: tuple[int, ...]) -> list[keras.Layer]:
    """Return the head of every model: raw images in, numbers from 0 to 1 out."""
    return [
        keras.Input(image_shape, dtype="uint8", name="image"),
        layers.Rescaling(1 / 255, name="rescale"),
    ]


def _probabilities(classes: int) -> keras.Layer:
    """Return the tail of every model, in float32 whatever the precision before it."""
    return layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities")
