"""How networks and optimizers are laid out for the program in C; see `c/common.h`."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator

import keras
import numpy as np

from fmnist_lab.training.engines.native.match import Block

SGD, MOMENTUM, NESTEROV, ADAM = range(4)
# `fmnist_lab_train` returns these instead of a number of steps.
NO_MEMORY, BAD_SIZES, BAD_ORDER, BAD_LABEL = range(-1, -5, -1)


class PackedLayer:
    """A layer's weights and the optimizer's two states of them, each in panels.

    Attributes:
        operations: About how many floating-point operations a step takes per image.
    """

    operations: int

    def __init__(
        self, places: np.ndarray, bias: int, height: int, units: int, columns: int
    ) -> None:
        self.weights, self.momentum, self.velocity = (
            Panels(places, bias, height, units, columns) for _ in range(3)
        )

    def buffers(self) -> Iterator[int]:
        """Yield how many floats each of the three has, then the address of each."""
        yield self.weights.panels.size
        for each in (self.weights, self.momentum, self.velocity):
            yield each.panels.ctypes.data


class PackedDense(PackedLayer):
    """A dense layer.

    Args:
        layer: The layer, with a kernel (inputs, units) and a bias (units,).
        filters: The inputs come in groups of so many, the filters of a pixel; 1 for other inputs.
        stored: Each group is stored as so many inputs; those after the filters are zeros.
        rows: The number of rows per panel is a multiple of this.
        columns: Columns per panel.
    """

    def __init__(
        self, layer: keras.layers.Dense, filters: int, stored: int, rows: int, columns: int
    ) -> None:
        real, self.units = layer.kernel.shape
        self.inputs = real // filters * stored
        places = np.arange(self.inputs).reshape(-1, stored)[:, :filters].ravel()
        height = math.ceil((self.inputs + 1) / rows) * rows
        super().__init__(places, self.inputs, height, self.units, columns)
        self.operations = 4 * self.inputs * self.units

    def described(self) -> DenseLayer:
        """Return the structure that the program in C reads."""
        return DenseLayer(self.inputs, self.units, *self.buffers())


class PackedConvolution(PackedLayer):
    """A convolution with its ReLU and pooling.

    Args:
        block: The layers.
        channels: Channels per stored pixel of its input; the last ones may be zeros.
        lanes: Floats per vector; its outputs are stored as whole vectors of channels.
        columns: Columns per panel.
        bf16: Its products are of bfloat16.
    """

    def __init__(self, block: Block, channels: int, lanes: int, columns: int, bf16: bool) -> None:
        self.block, self.channels, self.bf16 = block, channels, bf16
        self.size, _, real, self.units = block.layer.kernel.shape
        self.stored = math.ceil(self.units / lanes) * lanes
        taps = self.size**2
        places = np.arange(taps * channels).reshape(taps, channels)[:, :real].ravel()
        super().__init__(places, taps * channels, taps * channels + 1, self.units, columns)
        self.operations = 6 * block.height * block.width * taps * channels * self.stored

    def described(self) -> ConvLayer:
        """Return the structure that the program in C reads."""
        return ConvLayer(
            *(self.size, self.channels, self.units),
            *(self.block.height, self.block.width, self.block.pool, self.bf16),
            *self.buffers(),
        )


class Panels:
    """A kernel and its bias in panels (panels, height, columns), float32; all else is zero.

    Args:
        places: The row of a panel for each row of the kernel, (inputs,).
        bias: The row of the bias.
        height: Rows per panel.
        units: Columns of the kernel, spread over the panels.
        columns: Columns per panel.
    """

    def __init__(
        self, places: np.ndarray, bias: int, height: int, units: int, columns: int
    ) -> None:
        self.places, self.bias, self.units = places, bias, units
        self.panels = _aligned((math.ceil(units / columns), height, columns))

    def pack(self, kernel: np.ndarray, bias: np.ndarray) -> None:
        """Take the values of a kernel (..., units) and a bias (units,)."""
        panels, height, columns = self.panels.shape
        table = np.zeros((height, panels * columns), np.float32)
        table[self.places, : self.units] = kernel.reshape(-1, self.units)
        table[self.bias, : self.units] = bias
        self.panels[:] = table.reshape(height, panels, columns).transpose(1, 0, 2)

    def unpack(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the kernel as (inputs, units) and the bias (units,)."""
        table = self.panels.transpose(1, 0, 2).reshape(self.panels.shape[1], -1)
        return table[self.places, : self.units], table[self.bias, : self.units]


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Return zeros, float32, that begin at a multiple of 64 bytes, as vectors must."""
    size, line = 4 * math.prod(shape), 64
    memory = np.zeros(size + line, np.uint8)
    start = -memory.ctypes.data % line
    floats: np.ndarray = memory[start : start + size].view(np.float32).reshape(shape)
    return floats


# The structures of `c/common.h`, field by field.


class ConvLayer(ctypes.Structure):
    """A `struct conv_layer`."""

    _fields_ = [
        *((n, ctypes.c_int32) for n in ("size", "channels", "units", "height", "width", "pool")),
        ("bf16", ctypes.c_int32),
        ("floats", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("weights", "momentum", "velocity")),
    ]


class DenseLayer(ctypes.Structure):
    """A `struct dense_layer`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("inputs", "units")),
        ("floats", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("weights", "momentum", "velocity")),
    ]


class Optimizer(ctypes.Structure):
    """A `struct optimizer`."""

    _fields_ = [
        ("kind", ctypes.c_int32),
        *((n, ctypes.c_float) for n in ("momentum", "one_minus_beta_1", "one_minus_beta_2")),
        *((name, ctypes.c_float) for name in ("epsilon", "weight_decay")),
    ]


class Task(ctypes.Structure):
    """A `struct task`."""

    _fields_ = [
        ("conv_layers", ctypes.POINTER(ConvLayer)),
        ("dense_layers", ctypes.POINTER(DenseLayer)),
        *(
            (name, ctypes.c_int32)
            for name in ("conv_count", "dense_count", "batch_size", "threads")
        ),
        ("optimizer", Optimizer),
        *((name, ctypes.c_float) for name in ("scale", "offset", "smoothing")),
        *((name, ctypes.c_int64) for name in ("image_count", "steps", "pixels")),
        *((n, ctypes.c_void_p) for n in ("images", "labels", "order", "rates", "step_sizes")),
        *((name, ctypes.c_int64) for name in ("start", "stop")),
        *((name, ctypes.c_double) for name in ("loss", "correct", "seconds")),
    ]


def optimizer_fields(optimizer: keras.Optimizer) -> Optimizer:
    """Return an optimizer's kind and options, save for its learning rate."""
    decay = optimizer.weight_decay or 0.0
    if isinstance(optimizer, keras.optimizers.SGD):
        kind = SGD
        if optimizer.momentum:
            kind = NESTEROV if optimizer.nesterov else MOMENTUM
        return Optimizer(kind, momentum=optimizer.momentum, weight_decay=decay)
    return Optimizer(
        ADAM,
        one_minus_beta_1=1 - optimizer.beta_1,
        one_minus_beta_2=1 - optimizer.beta_2,
        epsilon=optimizer.epsilon,
        weight_decay=decay,
    )


def step_sizes(optimizer: keras.Optimizer, rates: np.ndarray, iteration: int) -> np.ndarray:
    """Return the learning rates times Adam's bias correction, float32 (steps,).

    Kingma and Ba 2015, arXiv:1412.6980, the end of section 2; in float32, as Keras does it.

    Args:
        optimizer: Adam or AdamW, or SGD, which has no such correction.
        rates: The learning rates, float32 (steps,).
        iteration: The number of steps that the optimizer has taken before.
    """
    if isinstance(optimizer, keras.optimizers.SGD):
        return rates
    steps = np.arange(iteration + 1, iteration + 1 + len(rates)).astype(np.float32)
    first = np.float32(optimizer.beta_1) ** steps
    second = np.float32(optimizer.beta_2) ** steps
    sizes: np.ndarray = (rates * np.sqrt(1 - second) / (1 - first)).astype(np.float32)
    return sizes
