"""The engine `native`: small networks by a program of our own, written in C.

A step of a small dense network is a few microseconds of products and updates. TensorFlow packs the
weights anew for each product, moves them from core to core between products, and writes gradients
out only to read them again. Of a convolutional network it takes a whole batch through one layer
after another, so that all activations go to memory and back. The program in the folder `c` does
none of this. It is compiled for this processor on first use, by the system's C compiler or that of
the extra `native`, and kept.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from fmnist_lab import backend
from fmnist_lab.engines.recipe import Recipe
from fmnist_lab.engines.team import Team
from fmnist_lab.errors import UserError

SOURCES = Path(__file__).with_name("c")
SOURCE = SOURCES / "network.c"
# Below this many operations a step for each, threads wait for each other more than they work.
OPERATIONS_A_THREAD = 2_000_000
# Which pixel of a window was its maximum is kept in a byte.
LARGEST_POOL = 15
SGD, MOMENTUM, NESTEROV, ADAM = range(4)
OPTIMIZERS = (keras.optimizers.Adam, keras.optimizers.AdamW, keras.optimizers.SGD)


def suits(model: keras.Model, optimizer: keras.Optimizer, recipe: Recipe) -> bool:
    """Return whether this engine can do a training, on this machine."""
    try:
        check(model, optimizer, recipe)
    except UserError:
        return False
    return True


def check(model: keras.Model, optimizer: keras.Optimizer, recipe: Recipe) -> None:
    """Refuse a training that this engine cannot do.

    Raises:
        UserError: It cannot, or there is no C compiler.
    """
    try:
        network = _suitable(model, optimizer, recipe)
    except _Unsuitable as objection:
        raise UserError(
            f"trainer.engine=native: {objection}; expected dense layers in float32 with ReLU "
            "between them, perhaps after convolutions with ReLU and max-pooling, under Adam, "
            "AdamW or SGD without clipping or averages; use trainer.engine=auto"
        ) from None
    if not _library().fmnist_lab_brief() and network.brief:
        raise UserError(
            "trainer.engine=native: received bfloat16, expected a processor that multiplies it "
            "(AVX512-BF16) and a compiler that knows of it; use trainer.engine=auto"
        )


class Program:
    """A network and its optimizer, laid out for `network.c`."""

    def __init__(self, model: keras.Model, optimizer: keras.Optimizer, recipe: Recipe) -> None:
        self.library = _library()
        self.recipe = recipe
        self.network = _Network(model)
        rows, columns = self.library.fmnist_lab_rows(), self.library.fmnist_lab_panel()
        lanes = self.library.fmnist_lab_lanes()
        channels = self.network.image_shape[-1]
        self.convolutions: list[_Convolution] = []
        for block in self.network.blocks:
            # Bytes enter the first as floats.
            brief = self.network.brief and bool(self.convolutions)
            self.convolutions.append(_Convolution(block, channels, lanes, columns, brief))
            channels = self.convolutions[-1].stored
        # Of what convolutions leave, each pixel's filters are stored as so many channels.
        filters, stored = (self.convolutions[-1].units, channels) if self.convolutions else (1, 1)
        self.layers: list[_Dense] = []
        for layer in self.network.dense:
            self.layers.append(_Dense(layer, filters, stored, rows, columns))
            filters = stored = 1
        self.rule = _rule(optimizer)
        self.team = Team(self._threads(recipe.batch_size))

    def hold(self, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the images as uint8 rows (n, pixels) and the labels as int32 (n,).

        That they fit the model has been checked: the program in C would read beyond them.
        """
        rows = np.ascontiguousarray(images, np.uint8).reshape(len(images), -1)
        return rows, np.ascontiguousarray(labels, np.int32)

    def compile(self, images: np.ndarray, labels: np.ndarray, rates: np.ndarray) -> None:
        """Do nothing: the library is compiled already."""

    def load(self, model: keras.Model, optimizer: keras.Optimizer) -> None:
        """Take over the state of the caller's model and optimizer."""
        optimizer.build(model.trainable_variables)
        self.optimizer = optimizer
        self.iteration = int(optimizer.iterations.numpy())
        for panels, kernel, bias in self._places(model, optimizer):
            panels.pack(kernel.value.numpy(), bias.value.numpy())

    def store(self, model: keras.Model, optimizer: keras.Optimizer) -> None:
        """Hand the state back."""
        for panels, kernel, bias in self._places(model, optimizer):
            values, last = panels.unpack()
            # Past Keras, whose conversions take longer than the copy.
            kernel.value.assign(values.reshape(kernel.shape), read_value=False)
            bias.value.assign(last, read_value=False)
        optimizer.iterations.assign(self.iteration)

    def run(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        order: np.ndarray,
        rates: np.ndarray,
        seed: int,
        report: Callable[[int], None] | None,
    ) -> tuple[float, float]:
        """Train once on the images in an order; return the sum of losses and the number correct.

        The results are the same to the last bit for any number of threads.
        """
        order = np.ascontiguousarray(order, np.int64)
        size = self.recipe.batch_size
        whole = len(order) // size
        strides = _strides(self.optimizer, rates, self.iteration)
        task = _Task(
            convolutions=(_CConvolution * len(self.convolutions))(
                *(each.described() for each in self.convolutions)
            ),
            layers=(_CLayer * len(self.layers))(*(layer.described() for layer in self.layers)),
            fronts=len(self.convolutions),
            depth=len(self.layers),
            rule=self.rule,
            scale=self.network.rescaling.scale,
            offset=self.network.rescaling.offset,
            smoothing=self.recipe.label_smoothing,
            images=images.ctypes.data,
            labels=labels.ctypes.data,
        )
        task.order, task.rates, task.strides = (a.ctypes.data for a in (order, rates, strides))
        task.size, task.stop = size, whole
        while task.start < whole:
            task.seconds, task.threads = self.team.next()
            steps = self._take_steps(task)
            self.team.took(steps, task.seconds)
            task.start += steps
            if report:
                report(task.start * size)
        if whole * size < len(order):
            # The smaller last batch, as the first of what lies there.
            parts = order[whole * size :], rates[whole:], strides[whole:]
            task.order, task.rates, task.strides = (part.ctypes.data for part in parts)
            task.start, task.stop, task.size, task.seconds = 0, 1, len(order) % size, 0.0
            task.threads = min(self.team.size, self._threads(task.size))
            self._take_steps(task)
            if report:
                report(len(order))
        self.iteration += len(rates)
        return task.loss, task.hits

    def _take_steps(self, task: _Task) -> int:
        steps: int = self.library.fmnist_lab_train(ctypes.byref(task))
        if steps < 0:
            raise MemoryError(f"no memory for the activations of {task.size} images")
        return steps

    def _places(
        self, model: keras.Model, optimizer: keras.Optimizer
    ) -> Iterator[tuple[_Panels, keras.Variable, keras.Variable]]:
        """Yield each layer's weights and the optimizer's memories of them, ours and Keras'."""
        if self.rule.kind == ADAM:
            memories = [optimizer._momentums, optimizer._velocities]
        else:
            memories = [] if self.rule.kind == SGD else [optimizer.momentums]
        for variables, name in zip(
            [model.trainable_variables, *memories], ("weights", "first", "second"), strict=False
        ):
            for layer, kernel, bias in zip(
                (*self.convolutions, *self.layers), variables[::2], variables[1::2], strict=True
            ):
                yield getattr(layer, name), kernel, bias

    def _threads(self, images: int) -> int:
        """Return how many threads a step of so many images may have work for."""
        each = sum(layer.operations for layer in (*self.convolutions, *self.layers))
        granted = tf.config.threading.get_intra_op_parallelism_threads() or backend.usable_cores()
        most = self.library.fmnist_lab_most_threads(images, len(self.convolutions))
        return max(1, min(granted, most, images * each // OPERATIONS_A_THREAD))


class _Memories:
    """A layer's weights and the optimizer's two memories of them, each in panels.

    Attributes:
        operations: About how many a step has for each image.
    """

    operations: int

    def __init__(
        self, places: np.ndarray, bias: int, height: int, units: int, columns: int
    ) -> None:
        self.weights, self.first, self.second = (
            _Panels(places, bias, height, units, columns) for _ in range(3)
        )

    def addresses(self) -> Iterator[int]:
        """Yield where the three begin."""
        return (each.panels.ctypes.data for each in (self.weights, self.first, self.second))


class _Dense(_Memories):
    """A dense layer; of its inputs, every `filters` are stored as `stored`, the rest zeros."""

    def __init__(
        self, layer: keras.layers.Dense, filters: int, stored: int, rows: int, columns: int
    ) -> None:
        real, self.units = layer.kernel.shape
        self.inputs = real // filters * stored
        places = np.arange(self.inputs).reshape(-1, stored)[:, :filters].ravel()
        height = math.ceil((self.inputs + 1) / rows) * rows
        super().__init__(places, self.inputs, height, self.units, columns)
        self.operations = 4 * self.inputs * self.units

    def described(self) -> _CLayer:
        return _CLayer(self.inputs, self.units, *self.addresses())


class _Convolution(_Memories):
    """A convolution with what follows it; its outputs are stored as whole vectors of channels."""

    def __init__(self, block: _Block, channels: int, lanes: int, columns: int, brief: bool) -> None:
        self.block, self.channels, self.brief = block, channels, brief
        self.size, _, real, self.units = block.layer.kernel.shape
        self.stored = math.ceil(self.units / lanes) * lanes
        taps = self.size**2
        places = np.arange(taps * channels).reshape(taps, channels)[:, :real].ravel()
        super().__init__(places, taps * channels, taps * channels + 1, self.units, columns)
        self.operations = 6 * block.height * block.width * taps * channels * self.stored

    def described(self) -> _CConvolution:
        return _CConvolution(
            *(self.size, self.channels, self.units),
            *(self.block.height, self.block.width, self.block.pool, self.brief),
            *self.addresses(),
        )


class _Panels:
    """A kernel's rows and its bias in panels (panels, height, columns), all else zeros."""

    def __init__(
        self, places: np.ndarray, bias: int, height: int, units: int, columns: int
    ) -> None:
        self.places, self.bias, self.units = places, bias, units
        self.panels = _aligned((math.ceil(units / columns), height, columns))

    def pack(self, kernel: np.ndarray, bias: np.ndarray) -> None:
        panels, height, columns = self.panels.shape
        table = np.zeros((height, panels * columns), np.float32)
        table[self.places, : self.units] = kernel.reshape(-1, self.units)
        table[self.bias, : self.units] = bias
        self.panels[:] = table.reshape(height, panels, columns).transpose(1, 0, 2)

    def unpack(self) -> tuple[np.ndarray, np.ndarray]:
        table = self.panels.transpose(1, 0, 2).reshape(self.panels.shape[1], -1)
        return table[self.places, : self.units], table[self.bias, : self.units]


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Return zeros, float32, that begin where a vector may."""
    size, line = 4 * math.prod(shape), 64
    memory = np.zeros(size + line, np.uint8)
    start = -memory.ctypes.data % line
    return memory[start : start + size].view(np.float32).reshape(shape)


# What `network.c` takes, field by field.


class _CConvolution(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_int32) for n in ("size", "channels", "units", "height", "width", "pool")),
        ("brief", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("weights", "first", "second")),
    ]


class _CLayer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("inputs", "units")),
        *((name, ctypes.c_void_p) for name in ("weights", "first", "second")),
    ]


class _Rule(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("first", "second", "epsilon", "decay")),
    ]


class _Task(ctypes.Structure):
    _fields_ = [
        ("convolutions", ctypes.POINTER(_CConvolution)),
        ("layers", ctypes.POINTER(_CLayer)),
        *((name, ctypes.c_int32) for name in ("fronts", "depth", "size", "threads")),
        ("rule", _Rule),
        *((name, ctypes.c_float) for name in ("scale", "offset", "smoothing")),
        *((n, ctypes.c_void_p) for n in ("images", "labels", "order", "rates", "strides")),
        *((name, ctypes.c_int64) for name in ("start", "stop")),
        *((name, ctypes.c_double) for name in ("loss", "hits", "seconds")),
    ]


def _rule(optimizer: keras.Optimizer) -> _Rule:
    decay = optimizer.weight_decay or 0.0
    if isinstance(optimizer, keras.optimizers.SGD):
        kind = SGD
        if optimizer.momentum:
            kind = NESTEROV if optimizer.nesterov else MOMENTUM
        return _Rule(kind, first=optimizer.momentum, decay=decay)
    return _Rule(
        ADAM, 1 - optimizer.beta_1, 1 - optimizer.beta_2, epsilon=optimizer.epsilon, decay=decay
    )


def _strides(optimizer: keras.Optimizer, rates: np.ndarray, iteration: int) -> np.ndarray:
    """Return the rates, float32 (steps,), with Adam's correction for its memories' first zeros.

    Kingma and Ba 2015, arXiv:1412.6980, the end of section 2; in float32, as Keras does it.
    """
    if isinstance(optimizer, keras.optimizers.SGD):
        return rates
    steps = np.arange(iteration + 1, iteration + 1 + len(rates)).astype(np.float32)
    first = np.float32(optimizer.beta_1) ** steps
    second = np.float32(optimizer.beta_2) ** steps
    return (rates * np.sqrt(1 - second) / (1 - first)).astype(np.float32)


def _suitable(model: keras.Model, optimizer: keras.Optimizer, recipe: Recipe) -> _Network:
    """Return what a model is made of.

    Raises:
        _Unsuitable: This engine cannot do the training.
    """
    if tf.config.list_physical_devices("GPU"):
        raise _Unsuitable("received a machine with a GPU, which CUDA_VISIBLE_DEVICES= would hide")
    if recipe.loss is not None:
        raise _Unsuitable("received a loss of its own")
    if recipe.augmentation is not None:
        raise _Unsuitable("received augmentation")
    if type(optimizer) not in OPTIMIZERS:
        raise _Unsuitable(f"received the optimizer {type(optimizer).__name__}")
    for option in (
        *("clipnorm", "clipvalue", "global_clipnorm", "use_ema", "amsgrad"),
        *("loss_scale_factor", "gradient_accumulation_steps", "_exclude_from_weight_decay"),
        "_exclude_from_weight_decay_pattern",
    ):
        if getattr(optimizer, option, None):
            raise _Unsuitable(f"received an optimizer with {option.strip('_')}")
    # What lies beside the weights, for the vectors' sake, is 0 / epsilon.
    if getattr(optimizer, "epsilon", 1.0) < 1e-30:
        raise _Unsuitable(f"received an epsilon of {optimizer.epsilon:g}")
    return _Network(model)


class _Unsuitable(ValueError):
    """A training is not one that this engine can do; says what of it."""


@dataclass(frozen=True)
class _Block:
    """A convolution, its ReLU and the pooling after them; pool 1: none.

    Height and width are those of its input, and of its output before the pooling.
    """

    layer: keras.layers.Conv2D
    height: int
    width: int
    pool: int


class _Network:
    """What this engine sees in a model: bytes made numbers, blocks of convolutions, dense layers.

    Raises:
        _Unsuitable: There is anything else in it.
    """

    def __init__(self, model: keras.Model) -> None:
        if type(model) is not keras.Sequential or not model.built:
            raise _Unsuitable(f"received a {type(model).__name__} model")
        if str(model.inputs[0].dtype) != "uint8":
            raise _Unsuitable(f"received a model of {model.inputs[0].dtype} images")
        for layer in model.layers:
            if getattr(layer, "data_format", "channels_last") != "channels_last":
                kind = type(layer).__name__
                raise _Unsuitable(f"received a {kind} of {layer.data_format}")
            if layer.activity_regularizer is not None:
                raise _Unsuitable(f"received the layer {layer.name} with activity_regularizer")
        self._layers = list(model.layers)
        self._place = 0
        # A layer may have been called before, on another shape than here.
        self._shape = tuple(model.inputs[0].shape)
        self.rescaling = self._take(keras.layers.Rescaling)
        if not all(
            isinstance(n, int | float) for n in (self.rescaling.scale, self.rescaling.offset)
        ):
            raise _Unsuitable("received a Rescaling by other than two numbers")
        if self._next_is(keras.layers.Reshape):
            self._take(keras.layers.Reshape)
        self.image_shape = self._shape[1:]
        self.blocks: list[_Block] = []
        while self._next_is(keras.layers.Conv2D):
            self.blocks.append(self._take_block())
        self._take(keras.layers.Flatten)
        self.brief = bool(self.blocks) and self.rescaling.compute_dtype == "bfloat16"
        self.dense: list[keras.layers.Dense] = []
        while self._place < len(self._layers):
            self.dense.append(self._take(keras.layers.Dense))
        if not self.dense:
            raise _Unsuitable("received a model without a dense layer")
        for layer in self.dense:
            softmax = layer is self.dense[-1]
            expected = keras.activations.softmax if softmax else keras.activations.relu
            if layer.activation is not expected:
                raise _Unsuitable(f"received the layer {layer.name} with another activation")
            _check_weights(layer)
        for layer in model.layers:
            expected = "bfloat16" if self.brief and layer not in self.dense else "float32"
            if (layer.compute_dtype, layer.variable_dtype) != (expected, "float32"):
                raise _Unsuitable(f"received the layer {layer.name} in {layer.dtype_policy.name}")

    def _next_is(self, kind: type[keras.Layer]) -> bool:
        return self._place < len(self._layers) and type(self._layers[self._place]) is kind

    def _take(self, kind: type[keras.Layer]) -> keras.Layer:
        """Return the next layer, which must be of a kind."""
        if self._place == len(self._layers):
            raise _Unsuitable(f"received a model that ends without a {kind.__name__}")
        layer = self._layers[self._place]
        self._place += 1
        if type(layer) is not kind:
            raise _Unsuitable(
                f"received {layer.name} ({type(layer).__name__}) as layer {self._place}, "
                f"not {kind.__name__}"
            )
        self._shape = layer.compute_output_shape(self._shape)
        return layer

    def _take_block(self) -> _Block:
        layer = self._take(keras.layers.Conv2D)
        _, height, width, _ = self._shape
        size, other = layer.kernel_size
        if size != other or size % 2 == 0:
            raise _Unsuitable(f"received the layer {layer.name} with a kernel of {size}x{other}")
        options = {"padding": "same", "strides": (1, 1), "dilation_rate": (1, 1), "groups": 1}
        for option, expected in options.items():
            if (found := getattr(layer, option)) != expected:
                raise _Unsuitable(f"received the layer {layer.name} with {option}={found}")
        activation = layer.activation
        if activation is keras.activations.linear:
            activation = self._take(keras.layers.Activation).activation
        if activation is not keras.activations.relu:
            raise _Unsuitable(f"received the layer {layer.name} with another activation")
        _check_weights(layer)
        pool = 1
        if self._next_is(keras.layers.MaxPooling2D):
            pooling = self._take(keras.layers.MaxPooling2D)
            pool, other = pooling.pool_size
            if pool != other or pool > LARGEST_POOL:
                raise _Unsuitable(
                    f"received the layer {pooling.name} with windows of {pool}x{other}"
                )
            if tuple(pooling.strides) != (pool, pool):
                raise _Unsuitable(f"received the layer {pooling.name} with windows that overlap")
            if pooling.padding != "valid":
                raise _Unsuitable(f"received the layer {pooling.name} with padding=same")
        return _Block(layer, height, width, pool)


def _check_weights(layer: keras.Layer) -> None:
    """Refuse a layer whose weights are more, or are to be more, than a kernel and a bias."""
    if not layer.use_bias or len(layer.trainable_variables) != 2:
        raise _Unsuitable(f"received the layer {layer.name} without a kernel and a bias to train")
    for option in (
        *("kernel_regularizer", "bias_regularizer", "kernel_constraint", "bias_constraint"),
        *("lora_enabled", "quantization_mode"),
    ):
        if getattr(layer, option, None):
            raise _Unsuitable(f"received the layer {layer.name} with {option}")


@functools.cache
def _library() -> ctypes.CDLL:
    """Return `network.c`, compiled for this processor now or by an earlier process.

    Raises:
        UserError: There is no compiler that works, or nothing may be run that it makes.
    """
    folder = backend.compiled_folder("native")
    if folder is not None:
        with suppress(OSError):
            return ctypes.CDLL(str(_compile(folder)))
        # What was kept may be damaged, or nothing may be written there or run from it.
        with suppress(OSError):
            for kept in folder.glob("network-*.so"):
                kept.unlink(missing_ok=True)
            return ctypes.CDLL(str(_compile(folder)))
    try:
        with tempfile.TemporaryDirectory() as temporary:
            return ctypes.CDLL(str(_compile(Path(temporary))))
    except OSError as error:
        raise UserError(f"trainer.engine=native: {error}; use trainer.engine=auto") from None


def _compile(folder: Path) -> Path:
    """Compile `network.c` into a folder, unless it is there; return where."""
    tune = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    flags = ["-std=gnu11", "-O3", tune, "-fno-math-errno", "-shared", "-fPIC", "-pthread"]
    source = b"".join(file.read_bytes() for file in sorted(SOURCES.glob("*.[ch]")))
    key = hashlib.sha256(source + " ".join(flags).encode()).hexdigest()[:8]
    library = folder / f"network-{key}.so"
    if library.exists():
        return library
    complaints = []
    with tempfile.TemporaryDirectory(dir=folder, prefix="network-") as temporary:
        made = Path(temporary) / library.name
        for compiler in _compilers():
            complaint = _complaint([*compiler, *flags, "-o", str(made), str(SOURCE), "-lm"])
            if complaint is None:
                # Two processes may compile at once; whichever is last is no worse.
                made.replace(library)
                return library
            complaints.append(f"{shlex.join(compiler)} cannot compile {SOURCE.name}: {complaint}")
    problem = complaints[0] if complaints else "there is no C compiler"
    raise UserError(
        f"trainer.engine=native: {problem}; install one, such as Debian's packages gcc and "
        "libc6-dev, or pip install 'fmnist_lab[native]'; or use trainer.engine=auto"
    )


def _compilers() -> Iterator[list[str]]:
    """Yield the commands of the C compilers that are here, the user's own first."""
    chosen = os.environ.get("CC", "").split()
    if chosen and shutil.which(chosen[0]):
        yield chosen
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            yield [name]
    if importlib.util.find_spec("ziglang"):
        yield [sys.executable, "-m", "ziglang", "cc"]


def _complaint(command: list[str]) -> str | None:
    """Run a compiler; return what it says if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return " ".join(done.stderr.split())[:300] if done.returncode else None
