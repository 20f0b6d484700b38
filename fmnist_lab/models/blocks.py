"""The parts of residual networks, as layers: convolutions, their normalisation, blocks, stages.

A part takes a Keras tensor `x` of shape (n, height, width, channels) and returns another one. Its
name begins the names of its layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers

from fmnist_lab.models.flip_average import flip_averaged
from fmnist_lab.models.io import images, probabilities

# The published networks' share of the old statistics; Keras' 0.99 lags behind a short training.
MOMENTUM = 0.9

# From (x, filters, stride, name) to a tensor with as many channels as there are filters.
Block = Callable[[Any, int, int, str], Any]


def start(image_shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Return a model's input, uint8 (n, *image_shape), and the input of its first convolution."""
    image, *head = images(image_shape, channel=True)
    x = image
    for layer in head:
        x = layer(x)
    return image, x


def stages(x: Any, filters: Sequence[int], blocks: int, block: Block) -> Any:
    """Return the output of stages of blocks, of which all but the first halve height and width.

    Args:
        x: The tensor (n, height, width, channels) that enters the first stage.
        filters: Number of filters of each stage.
        blocks: Blocks per stage.
        block: Builds one block.
    """
    for stage, width in enumerate(filters, 1):
        for number in range(1, blocks + 1):
            stride = 2 if number == 1 and stage > 1 else 1
            x = block(x, width, stride, f"stage_{stage}_block_{number}")
    return x


def residual_block(x: Any, filters: int, stride: int, name: str) -> Any:
    """Return relu(shortcut + two normalised convolutions).

    The shape is (n, height/stride, width/stride, filters). The shortcut is `x` itself, or a
    projection of it where the shape changes.
    """
    shortcut = x
    if stride != 1 or x.shape[-1] != filters:
        shortcut = convolution(x, filters, 1, stride, f"{name}_shortcut")
        shortcut = norm(shortcut, f"{name}_shortcut")
    x = convolution(x, filters, 3, stride, f"{name}_first")
    x = norm_relu(x, f"{name}_first")
    x = convolution(x, filters, 3, 1, f"{name}_second")
    x = norm(x, f"{name}_second", gamma="zeros")
    return relu(layers.Add(name=f"{name}_add")([shortcut, x]), f"{name}_second")


def wide_block(x: Any, filters: int, stride: int, name: str, dropout: float) -> Any:
    """Return shortcut + two convolutions, each after its normalisation and relu.

    The shape is (n, height/stride, width/stride, filters); `dropout` is the share that is dropped
    between the convolutions in training.
    """
    shortcut = x
    x = norm_relu(x, f"{name}_first")
    if shortcut.shape[-1] != filters:
        # From the normalised input, as the authors' code has it.
        shortcut = convolution(x, filters, 1, stride, f"{name}_shortcut")
    x = convolution(x, filters, 3, stride, f"{name}_first")
    x = norm_relu(x, f"{name}_second")
    if dropout:
        x = layers.Dropout(dropout, name=f"{name}_dropout")(x)
    x = convolution(x, filters, 3, 1, f"{name}_second")
    return layers.Add(name=f"{name}_add")([shortcut, x])


def convolution(x: Any, filters: int, size: int, stride: int, name: str) -> Any:
    """Return a convolution without bias, which the normalisation after it has.

    The initial weights are He et al.'s, as in all these papers.
    """
    return layers.Conv2D(
        filters,
        size,
        stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_convolution",
    )(x)


def norm(x: Any, name: str, gamma: str = "ones") -> Any:
    """Return `x` normalised over the batch; `gamma` names the initial value of its factor."""
    return layers.BatchNormalization(
        momentum=MOMENTUM, epsilon=1e-5, gamma_initializer=gamma, name=f"{name}_norm"
    )(x)


def relu(x: Any, name: str) -> Any:
    """Return max(x, 0)."""
    return layers.Activation("relu", name=f"{name}_relu")(x)


def norm_relu(x: Any, name: str) -> Any:
    """Return `x` normalised over the batch, then max(x, 0)."""
    return relu(norm(x, name), name)


def end(x: Any, classes: int, dropout: float) -> Any:
    """Return float32 probabilities (n, classes) from the mean of `x` over height and width."""
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    if dropout:
        x = layers.Dropout(dropout, name="dropout")(x)
    return probabilities(classes)(x)


def model(image: Any, output: Any, name: str, flip_average: bool) -> keras.Model:
    """Return the model from `image` to `output`, averaged over mirror images where asked for."""
    built = keras.Model(image, output, name=name)
    return flip_averaged(built) if flip_average else built
