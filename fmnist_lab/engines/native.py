"""The engine `native`: dense networks by a program of our own, written in C.

A step of a small dense network is a few microseconds of products and updates. TensorFlow packs the
weights anew for each product, moves them from core to core between products, and writes gradients
out only to read them again; `dense.c` does none of this. It is compiled for this processor on first
use, by the system's C compiler or that of the extra `native`, and kept.
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
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from fmnist_lab import backend
from fmnist_lab.engines.recipe import Recipe, slices
from fmnist_lab.errors import UserError

SOURCE = Path(__file__).with_name("dense.c")
# Below this many operations a step for each, threads wait for each other more than they work.
OPERATIONS_A_THREAD = 2_000_000
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
    objection = _objection(model, optimizer, recipe)
    if tf.config.list_physical_devices("GPU"):
        objection = "received a machine with a GPU, which CUDA_VISIBLE_DEVICES= would hide"
    if objection:
        raise UserError(
            f"trainer.engine=native: {objection}; expected dense layers in float32 with ReLU "
            "between them, under Adam, AdamW or SGD without clipping or averages; use "
            "trainer.engine=auto"
        )
    _library()


class Program:
    """A dense network and its optimizer, laid out for `dense.c`."""

    def __init__(self, model: keras.Model, optimizer: keras.Optimizer, recipe: Recipe) -> None:
        self.library = _library()
        self.recipe = recipe
        self.rescaling, self.dense = _stack(model)
        self.layers = [_Layer(layer, self.library) for layer in self.dense]
        self.rule = _rule(optimizer)

    def hold(self, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the images as uint8 rows (n, pixels) and the labels as int32 (n,)."""
        pixels, classes = self.layers[0].inputs, self.layers[-1].units
        if images[0:1].size not in (0, pixels) or labels.shape != (len(images),):
            raise UserError(
                f"received images {images.shape} and labels {labels.shape}, expected images of "
                f"{pixels} pixels and a label for each"
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise UserError(
                f"received labels from {labels.min()} to {labels.max()}, expected 0 to "
                f"{classes - 1}, one of the model's classes"
            )
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
            kernel.value.assign(values, read_value=False)
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
            layers=(_CLayer * len(self.layers))(*(layer.described() for layer in self.layers)),
            depth=len(self.layers),
            rule=self.rule,
            scale=self.rescaling.scale,
            offset=self.rescaling.offset,
            smoothing=self.recipe.label_smoothing,
            images=images.ctypes.data,
            labels=labels.ctypes.data,
        )
        seen = 0
        # All the full batches, then the smaller last.
        for first, steps, images_a_step in ((0, whole, size), (whole, 1, len(order) % size)):
            if not images_a_step:
                continue
            parts = order[first * size :], rates[first:], strides[first:]
            task.order, task.rates, task.strides = (part.ctypes.data for part in parts)
            task.size, task.threads = images_a_step, self._threads(images_a_step)
            for task.start, task.stop in slices(steps):
                if self.library.fmnist_lab_train(ctypes.byref(task)):
                    raise MemoryError(f"no memory for the activations of {images_a_step} images")
                seen += (task.stop - task.start) * images_a_step
                if report:
                    report(seen)
        self.iteration += len(rates)
        return task.loss, task.hits

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
                self.layers, variables[::2], variables[1::2], strict=True
            ):
                yield getattr(layer, name), kernel, bias

    def _threads(self, images: int) -> int:
        operations = sum(4 * images * layer.inputs * layer.units for layer in self.layers)
        granted = tf.config.threading.get_intra_op_parallelism_threads() or backend.usable_cores()
        return max(1, min(granted, operations // OPERATIONS_A_THREAD))


class _Layer:
    """A dense layer's weights and the optimizer's two memories of them."""

    def __init__(self, layer: keras.layers.Dense, library: ctypes.CDLL) -> None:
        self.inputs, self.units = layer.kernel.shape
        rows, columns = library.fmnist_lab_rows(), library.fmnist_lab_panel()
        self.weights, self.first, self.second = (
            _Panels(self.inputs, self.units, rows, columns) for _ in range(3)
        )

    def described(self) -> _CLayer:
        places = (each.panels.ctypes.data for each in (self.weights, self.first, self.second))
        return _CLayer(self.inputs, self.units, *places)


class _Panels:
    """A kernel and its bias below it, in panels (panels, rows, columns) padded with zeros."""

    def __init__(self, inputs: int, units: int, rows: int, columns: int) -> None:
        self.inputs, self.units = inputs, units
        panels, height = math.ceil(units / columns), math.ceil((inputs + 1) / rows) * rows
        self.panels = _aligned((panels, height, columns))

    def pack(self, kernel: np.ndarray, bias: np.ndarray) -> None:
        panels, height, columns = self.panels.shape
        table = np.zeros((height, panels * columns), np.float32)
        table[: self.inputs, : self.units] = kernel
        table[self.inputs, : self.units] = bias
        self.panels[:] = table.reshape(height, panels, columns).transpose(1, 0, 2)

    def unpack(self) -> tuple[np.ndarray, np.ndarray]:
        table = self.panels.transpose(1, 0, 2).reshape(self.panels.shape[1], -1)
        return table[: self.inputs, : self.units], table[self.inputs, : self.units]


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Return zeros, float32, that begin where a vector may."""
    size, line = 4 * math.prod(shape), 64
    memory = np.zeros(size + line, np.uint8)
    start = -memory.ctypes.data % line
    return memory[start : start + size].view(np.float32).reshape(shape)


# What `dense.c` takes, field by field.


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
        ("layers", ctypes.POINTER(_CLayer)),
        *((name, ctypes.c_int32) for name in ("depth", "size", "threads")),
        ("rule", _Rule),
        *((name, ctypes.c_float) for name in ("scale", "offset", "smoothing")),
        *((n, ctypes.c_void_p) for n in ("images", "labels", "order", "rates", "strides")),
        *((name, ctypes.c_int64) for name in ("start", "stop")),
        *((name, ctypes.c_double) for name in ("loss", "hits")),
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


def _objection(model: keras.Model, optimizer: keras.Optimizer, recipe: Recipe) -> str | None:
    """Say what of a training this engine cannot do."""
    if recipe.loss is not None or recipe.augmentation is not None:
        return f"received {'augmentation' if recipe.loss is None else 'a loss of its own'}"
    if type(optimizer) not in OPTIMIZERS:
        return f"received the optimizer {type(optimizer).__name__}"
    for option in (
        *("clipnorm", "clipvalue", "global_clipnorm", "use_ema", "amsgrad"),
        *("loss_scale_factor", "gradient_accumulation_steps", "_exclude_from_weight_decay"),
        "_exclude_from_weight_decay_pattern",
    ):
        if getattr(optimizer, option, None):
            return f"received an optimizer with {option.strip('_')}"
    # What lies beside the weights, for the vectors' sake, is 0 / epsilon.
    if getattr(optimizer, "epsilon", 1.0) < 1e-30:
        return f"received an epsilon of {optimizer.epsilon:g}"
    if type(model) is not keras.Sequential or not model.built:
        return f"received a {type(model).__name__} model"
    if str(model.inputs[0].dtype) != "uint8":
        return f"received a model of {model.inputs[0].dtype} images"
    for place, layer in enumerate(model.layers):
        expected = (keras.layers.Rescaling, keras.layers.Flatten, keras.layers.Dense)[min(place, 2)]
        if type(layer) is not expected:
            kind, number = type(layer).__name__, place + 1
            return f"received {layer.name}, a {kind}, as layer {number}, not a {expected.__name__}"
    if any(getattr(layer, "data_format", None) == "channels_first" for layer in model.layers):
        return "received a Flatten of channels_first"
    rescaling, dense = _stack(model)
    if not dense:
        return "received a model without a dense layer"
    if not all(isinstance(n, int | float) for n in (rescaling.scale, rescaling.offset)):
        return "received a Rescaling by other than two numbers"
    for layer in model.layers:
        if (layer.compute_dtype, layer.variable_dtype) != ("float32", "float32"):
            return f"received the layer {layer.name} in {layer.dtype_policy.name}"
    for layer in dense:
        softmax = layer is dense[-1]
        activation = keras.activations.softmax if softmax else keras.activations.relu
        if layer.activation is not activation:
            return f"received the layer {layer.name} with another activation"
        if not layer.use_bias or len(layer.trainable_variables) != 2:
            return f"received the layer {layer.name} without a kernel and a bias to train"
        for option in (
            *("kernel_regularizer", "bias_regularizer", "activity_regularizer"),
            *("kernel_constraint", "bias_constraint", "lora_enabled", "quantization_mode"),
        ):
            if getattr(layer, option, None):
                return f"received the layer {layer.name} with {option}"
    return None


def _stack(model: keras.Model) -> tuple[keras.layers.Rescaling, list[keras.layers.Dense]]:
    """Return the rescaling that such a model begins with and the dense layers that end it."""
    return model.layers[0], model.layers[2:]


@functools.cache
def _library() -> ctypes.CDLL:
    """Return `dense.c`, compiled for this processor now or by an earlier process.

    Raises:
        UserError: There is no compiler that works, or nothing may be run that it makes.
    """
    folder = backend.compiled_folder("native")
    if folder is not None:
        with suppress(OSError):
            return ctypes.CDLL(str(_compile(folder)))
        # What was kept may be damaged, or nothing may be written there or run from it.
        with suppress(OSError):
            for kept in folder.glob("dense-*.so"):
                kept.unlink(missing_ok=True)
            return ctypes.CDLL(str(_compile(folder)))
    try:
        with tempfile.TemporaryDirectory() as temporary:
            return ctypes.CDLL(str(_compile(Path(temporary))))
    except OSError as error:
        raise UserError(f"trainer.engine=native: {error}; use trainer.engine=auto") from None


def _compile(folder: Path) -> Path:
    """Compile `dense.c` into a folder, unless it is there; return where."""
    tune = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    flags = ["-std=gnu11", "-O3", tune, "-fno-math-errno", "-shared", "-fPIC", "-pthread"]
    source = SOURCE.read_bytes()
    key = hashlib.sha256(source + " ".join(flags).encode()).hexdigest()[:8]
    library = folder / f"dense-{key}.so"
    if library.exists():
        return library
    complaints = []
    with tempfile.TemporaryDirectory(dir=folder, prefix="dense-") as temporary:
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
