"""Residual networks: convolutions whose output is added to their input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from fmnist_lab.models.ends import images, probabilities
from fmnist_lab.models.flips import flip_averaged

# The published networks' share of the old statistics; Keras' 0.99 lags behind a short training.
MOMENTUM = 0.9


def resnet(
    image_shape: tuple[int, ...],
    classes: int,
    filters: Sequence[int] = (16, 32, 64, 128),
    blocks: int = 1,
    dropout: float = 0.0,
    flip_average: bool = False,
) -> keras.Model:
    """Build a residual network that a processor trains in minutes.

    The blocks are those of He et al. 2015, arXiv:1512.03385, section 3.3, with projections where
    the shape changes. The last normalisation of a block starts at 0, so that the block starts as
    its shortcut (Goyal et al. 2017, arXiv:1706.02677, section 5.1).

    The first convolution's output is pooled before it is normalised, which comes to nearly the
    same and leaves a quarter of the numbers to go through.

    Args:
        image_shape: Shape of one image, (height, width).
        classes: Number of classes.
        filters: Filters of the first convolution, then of each stage; each halves height and
            width but for the first stage.
        blocks: Residual blocks in a stage, of two 3x3 convolutions each.
        dropout: Share of the last layer's inputs that is dropped in training, from 0 to 1.
        flip_average: When not training, average over the image and its mirror image.

    Returns:
        A model from uint8 (n, height, width) to float32 probabilities (n, classes).
    """
    image, x = _start(image_shape)
    x = _convolution(x, filters[0], 3, 1, "stem")
    x = layers.MaxPooling2D(name="stem_pool")(x)
    x = _relu(_norm(x, "stem"), "stem")
    for stage, width in enumerate(filters[1:], 1):
        for block in range(1, blocks + 1):
            stride = 2 if block == 1 and stage > 1 else 1
            x = _block(x, width, stride, f"stage_{stage}_block_{block}")
    model = keras.Model(image, _end(x, classes, dropout), name="resnet")
    return flip_averaged(model) if flip_average else model


def wide_resnet(
    image_shape: tuple[int, ...],
    classes: int,
    depth: int = 28,
    width: int = 10,
    dropout: float = 0.0,
    flip_average: bool = False,
) -> keras.Model:
    """Build WRN-depth-width of Zagoruyko and Komodakis 2016, arXiv:1605.07146, table 1.

    Its blocks normalise and activate before each convolution (He et al. 2016, arXiv:1603.05027).

    Args:
        image_shape: Shape of one image, (height, width).
        classes: Number of classes.
        depth: Number of convolutions, the three projections too; 6n + 4 for n blocks a stage.
        width: How many times 16, 32 and 64 filters the three stages have.
        dropout: Share dropped between the two convolutions of a block in training, from 0 to 1.
        flip_average: When not training, average over the image and its mirror image.

    Returns:
        A model from uint8 (n, height, width) to float32 probabilities (n, classes).

    Raises:
        ValueError: There is no network of such a depth.
    """
    blocks, rest = divmod(depth - 4, 6)
    if blocks < 1 or rest:
        raise ValueError(f"`depth` must be 10, 16, 22, 28 or another 6n + 4. Received: {depth}")
    image, x = _start(image_shape)
    x = _convolution(x, 16, 3, 1, "stem")
    for stage, filters in enumerate((16 * width, 32 * width, 64 * width), 1):
        for block in range(1, blocks + 1):
            stride = 2 if block == 1 and stage > 1 else 1
            name = f"stage_{stage}_block_{block}"
            x = _wide_block(x, filters, stride, dropout, name)
    x = _relu(_norm(x, "last"), "last")
    model = keras.Model(image, _end(x, classes, dropout=0.0), name="wide_resnet")
    return flip_averaged(model) if flip_average else model


def _start(image_shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Return a model's input, and what its first convolution takes."""
    image, *head = images(image_shape, channel=True)
    x = image
    for layer in head:
        x = layer(x)
    return image, x


def _end(x: Any, classes: int, dropout: float) -> Any:
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    if dropout:
        x = layers.Dropout(dropout, name="dropout")(x)
    return probabilities(classes)(x)


def _block(x: Any, filters: int, stride: int, name: str) -> Any:
    shortcut = x
    if stride != 1 or x.shape[-1] != filters:
        shortcut = _convolution(x, filters, 1, stride, f"{name}_shortcut")
        shortcut = _norm(shortcut, f"{name}_shortcut")
    x = _convolution(x, filters, 3, stride, f"{name}_first")
    x = _relu(_norm(x, f"{name}_first"), f"{name}_first")
    x = _convolution(x, filters, 3, 1, f"{name}_second")
    x = _norm(x, f"{name}_second", gamma="zeros")
    x = layers.Add(name=f"{name}_add")([shortcut, x])
    return _relu(x, f"{name}_second")


def _wide_block(x: Any, filters: int, stride: int, dropout: float, name: str) -> Any:
    shortcut = x
    x = _relu(_norm(x, f"{name}_first"), f"{name}_first")
    if shortcut.shape[-1] != filters:
        # From what was normalised, as the authors' code has it.
        shortcut = _convolution(x, filters, 1, stride, f"{name}_shortcut")
    x = _convolution(x, filters, 3, stride, f"{name}_first")
    x = _relu(_norm(x, f"{name}_second"), f"{name}_second")
    if dropout:
        x = layers.Dropout(dropout, name=f"{name}_dropout")(x)
    x = _convolution(x, filters, 3, 1, f"{name}_second")
    return layers.Add(name=f"{name}_add")([shortcut, x])


def _convolution(x: Any, filters: int, size: int, stride: int, name: str) -> Any:
    # The normalisation after it has the bias. He et al.'s initial weights, as in all these papers.
    return layers.Conv2D(
        filters,
        size,
        stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_convolution",
    )(x)


def _norm(x: Any, name: str, gamma: str = "ones") -> Any:
    return layers.BatchNormalization(
        momentum=MOMENTUM, epsilon=1e-5, gamma_initializer=gamma, name=f"{name}_norm"
    )(x)


def _relu(x: Any, name: str) -> Any:
    return layers.Activation("relu", name=f"{name}_relu")(x)
