"""Models that take an image as a row of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fmnist_lab.config.fields import Count, Flag, Share

if TYPE_CHECKING:
    import keras

Activation = Literal[
    "relu",
    "celu",
    "elu",
    "exponential",
    "gelu",
    "hard_sigmoid",
    "hard_silu",
    "leaky_relu",
    "linear",
    "log_sigmoid",
    "mish",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softsign",
    "swish",
    "tanh",
]
Widths = Annotated[
    Count | Annotated[Sequence[Count], Field(min_length=1)],
    Field(description="a whole number, 1 or more, or a list of them, one per layer"),
]


def linear(image_shape: tuple[int, ...], classes: int) -> keras.Model:
    """Build multinomial logistic regression.

    Args:
        image_shape: Shape of one image, (height, width), or (height, width, 3) in colour.
        classes: Number of classes.

    Returns:
        A model from uint8 images (n, *image_shape) to float32 probabilities (n, classes).
    """
    return mlp(image_shape, classes, hidden_units=())


def mlp(
    image_shape: tuple[int, ...],
    classes: int,
    hidden_units: Widths = 128,
    activation: Activation = "relu",
    batch_norm: Flag = False,
    dropout: Share = 0.0,
) -> keras.Model:
    """Build a multi-layer perceptron; its defaults are the network of TensorFlow's tutorial.

    Args:
        image_shape: Shape of one image, (height, width), or (height, width, 3) in colour.
        classes: Number of classes.
        hidden_units: Units of the hidden layer, or of each of several.
        activation: Name of a Keras activation.
        batch_norm: Normalise each hidden layer over the batch, before its activation (Ioffe and
            Szegedy 2015, arXiv:1502.03167).
        dropout: Share of a hidden layer's outputs that is dropped in training, from 0 to 1.

    Returns:
        A model from uint8 images (n, *image_shape) to float32 probabilities (n, classes).
    """
    import keras
    from keras import layers

    from fmnist_lab.models.io import images, probabilities

    widths = [hidden_units] if isinstance(hidden_units, int) else list(hidden_units)
    stack: list[keras.Layer] = [*images(image_shape), layers.Flatten(name="flatten")]
    for number, width in enumerate(widths, 1):
        if batch_norm:
            stack += [
                layers.Dense(width, use_bias=False, name=f"hidden_{number}"),
                layers.BatchNormalization(name=f"norm_{number}"),
                layers.Activation(activation, name=f"activation_{number}"),
            ]
        else:
            stack.append(layers.Dense(width, activation=activation, name=f"hidden_{number}"))
        if dropout:
            stack.append(layers.Dropout(dropout, name=f"dropout_{number}"))
    return keras.Sequential([*stack, probabilities(classes)], name="mlp" if widths else "linear")


def deep_mlp(
    image_shape: tuple[int, ...],
    classes: int,
    width: Count = 128,
    depth: Count = 2,
    activation: Activation = "relu",
    batch_norm: Flag = False,
    dropout: Share = 0.0,
) -> keras.Model:
    """Build a multi-layer perceptron whose hidden layers are all alike.

    Args:
        image_shape: Shape of one image, (height, width), or (height, width, 3) in colour.
        classes: Number of classes.
        width: Units of each hidden layer.
        depth: Number of hidden layers.
        activation: Name of a Keras activation.
        batch_norm: Normalise each hidden layer over the batch, before its activation.
        dropout: Share of a hidden layer's outputs that is dropped in training, from 0 to 1.

    Returns:
        A model from uint8 images (n, *image_shape) to float32 probabilities (n, classes).
    """
    return mlp(image_shape, classes, [width] * depth, activation, batch_norm, dropout)
