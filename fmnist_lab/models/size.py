"""The size of a model of ours, worked out from its options: nothing is built, Keras stays away.

The test of this module compares every figure with what Keras counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple


class Size(NamedTuple):
    """The size of a model.

    Attributes:
        parameters: Its weights, those of the normalisations and their statistics included.
        products: The multiplications of one image's way through the model, those of dense layers
            and convolutions alone.
    """

    parameters: int
    products: int


class _Count:
    """Counts layers, one after another, of which it knows the shape of the output."""

    def __init__(self, image_shape: Sequence[int]) -> None:
        height, width, *channels = image_shape
        self.height, self.width, self.channels = height, width, channels[0] if channels else 1
        self.parameters = self.products = 0

    def dense(self, units: int, bias: bool = True) -> None:
        inputs = self.height * self.width * self.channels
        self.parameters += inputs * units + bias * units
        self.products += inputs * units
        self.height, self.width, self.channels = 1, 1, units

    def norm(self) -> None:
        self.parameters += 4 * self.channels

    def convolution(self, filters: int, size: int = 3, stride: int = 1, bias: bool = False) -> None:
        weights = size * size * self.channels * filters
        self.height, self.width = -(-self.height // stride), -(-self.width // stride)
        self.parameters += weights + bias * filters
        self.products += weights * self.height * self.width
        self.channels = filters

    def pool(self) -> None:
        self.height, self.width = self.height // 2, self.width // 2

    def beside(self, filters: int, stride: int, norm: bool) -> None:
        """Count a shortcut by a convolution of 1x1; the way goes on from before it."""
        before = self.height, self.width, self.channels
        self.convolution(filters, 1, stride)
        if norm:
            self.norm()
        self.height, self.width, self.channels = before

    def end(self, classes: int) -> Size:
        self.dense(classes)
        return Size(self.parameters, self.products)


def size(
    model: str, options: dict[str, Any], image_shape: Sequence[int], classes: int
) -> Size | None:
    """Return the size of a model; None for one that is not ours, or that cannot be built.

    Args:
        model: The name of its function, such as "mlp".
        options: The function's options; one that is missing has its default.
        image_shape: Shape of one image, (height, width), or (height, width, 3) in colour.
        classes: Number of classes.
    """
    counting = COUNTED.get(model)
    if counting is None:
        return None
    try:
        return counting(_Count(image_shape), classes, **options)
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def _mlp(
    count: _Count, classes: int, hidden_units: Any = 128, batch_norm: bool = False, **_: Any
) -> Size:
    for units in [hidden_units] if isinstance(hidden_units, int) else hidden_units:
        count.dense(units, bias=not batch_norm)
        if batch_norm:
            count.norm()
    return count.end(classes)


def _deep_mlp(count: _Count, classes: int, width: int = 128, depth: int = 2, **rest: Any) -> Size:
    return _mlp(count, classes, [width] * depth, **rest)


def _cnn(
    count: _Count,
    classes: int,
    filters: Iterable[int] = (32, 64),
    dense_units: int = 0,
    batch_norm: bool = False,
    **_: Any,
) -> Size:
    for number in filters:
        count.convolution(number, bias=not batch_norm)
        if batch_norm:
            count.norm()
        count.pool()
    if dense_units:
        count.dense(dense_units)
    return count.end(classes)


def _resnet(
    count: _Count,
    classes: int,
    filters: Sequence[int] = (16, 32, 64, 128),
    blocks: int = 1,
    **_: Any,
) -> Size:
    count.convolution(filters[0])
    count.pool()
    count.norm()
    for stage, width in enumerate(filters[1:]):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            if stride != 1 or count.channels != width:
                count.beside(width, stride, norm=True)
            count.convolution(width, stride=stride)
            count.norm()
            count.convolution(width)
            count.norm()
    count.height = count.width = 1
    return count.end(classes)


def _wide_resnet(count: _Count, classes: int, depth: int = 28, width: int = 10, **_: Any) -> Size:
    count.convolution(16)
    for stage, filters in enumerate((16 * width, 32 * width, 64 * width)):
        for block in range((depth - 4) // 6):
            stride = 2 if stage and not block else 1
            count.norm()
            if count.channels != filters:
                count.beside(filters, stride, norm=False)
            count.convolution(filters, stride=stride)
            count.norm()
            count.convolution(filters)
    count.norm()
    count.height = count.width = 1
    return count.end(classes)


COUNTED: dict[str, Callable[..., Size]] = {
    "linear": lambda count, classes, **_: count.end(classes),
    "mlp": _mlp,
    "deep_mlp": _deep_mlp,
    "cnn": _cnn,
    "resnet": _resnet,
    "wide_resnet": _wide_resnet,
}
