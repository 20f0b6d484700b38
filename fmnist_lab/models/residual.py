"""Residual networks: convolutions whose output is added to their input."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fmnist_lab.config.fields import Count, Flag, Share

if TYPE_CHECKING:
    import keras


def resnet(
    image_shape: tuple[int, ...],
    classes: int,
    filters: Annotated[
        Sequence[Count],
        Field(
            min_length=2,
            description="a list of whole numbers, 1 or more: the first convolution's, each stage's",
        ),
    ] = (16, 32, 64, 128),
    blocks: Count = 1,
    dropout: Share = 0.0,
    flip_average: Flag = False,
) -> keras.Model:
    """Build a residual network that a processor trains in minutes.

    The blocks are those of He et al. 2015, arXiv:1512.03385, section 3.3, with projections where
    the shape changes. The last normalisation of a block starts at 0, so that the block starts as
    its shortcut (Goyal et al. 2017, arXiv:1706.02677, section 5.1).

    The first convolution's output is pooled before it is normalised, which gives nearly the same
    numbers and leaves a quarter of them for the later layers.

    Args:
        image_shape: Shape of one image, (height, width), or (height, width, 3) in colour.
        classes: Number of classes.
        filters: Filters of the first convolution, then of each stage; every stage but the first
            halves height and width.
        blocks: Residual blocks per stage, of two 3x3 convolutions each.
        dropout: Share of the last layer's inputs that is dropped in training, from 0 to 1.
        flip_average: When not training, average over the image and its mirror image.

    Returns:
        A model from uint8 images (n, *image_shape) to float32 probabilities (n, classes).
    """
    from keras import layers

    from fmnist_lab.models import blocks as parts

    image, x = parts.start(image_shape)
    x = parts.convolution(x, filters[0], 3, 1, "stem")
    x = layers.MaxPooling2D(name="stem_pool")(x)
    x = parts.norm_relu(x, "stem")
    x = parts.stages(x, filters[1:], blocks, parts.residual_block)
    return parts.model(image, parts.end(x, classes, dropout), "resnet", flip_average)


def wide_resnet(
    image_shape: tuple[int, ...],
    classes: int,
    depth: Annotated[
        int, Field(ge=10, description="a whole number, 10, 16, 22 or another 6n + 4")
    ] = 28,
    width: Count = 10,
    dropout: Share = 0.0,
    flip_average: Flag = False,
) -> keras.Model:
    """Build WRN-depth-width of Zagoruyko and Komodakis 2016, arXiv:1605.07146, table 1.

    Its blocks normalise and activate before each convolution (He et al. 2016, arXiv:1603.05027).

    Args:
        image_shape: Shape of one image, (height, width), or (height, width, 3) in colour.
        classes: Number of classes.
        depth: Number of convolutions, the three projections too; 6n + 4 for n blocks per stage.
        width: How many times 16, 32 and 64 filters the three stages have.
        dropout: Share dropped between the two convolutions of a block in training, from 0 to 1.
        flip_average: When not training, average over the image and its mirror image.

    Returns:
        A model from uint8 images (n, *image_shape) to float32 probabilities (n, classes).

    Raises:
        ValueError: There is no network of such a depth.
    """
    from fmnist_lab.models import blocks as parts

    blocks, rest = divmod(depth - 4, 6)
    if blocks < 1 or rest:
        raise ValueError(f"`depth` must be 10, 16, 22, 28 or another 6n + 4. Received: {depth}")
    image, x = parts.start(image_shape)
    x = parts.convolution(x, 16, 3, 1, "stem")
    filters = (16 * width, 32 * width, 64 * width)
    x = parts.stages(x, filters, blocks, partial(parts.wide_block, dropout=dropout))
    x = parts.norm_relu(x, "last")
    return parts.model(image, parts.end(x, classes, dropout=0.0), "wide_resnet", flip_average)
