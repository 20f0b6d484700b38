"""The engine `native`: small networks by a program of our own, written in C.

A step of a small dense network takes a few microseconds of products and updates. TensorFlow packs
the weights again for each product, moves them from core to core between products, and writes
gradients out only to read them back. It takes a whole batch through one layer of a convolutional
network after another, so that all activations go to memory and back. The program in the folder `c`
does none of this.

`match` says which trainings this engine can do, `layout` lays networks out for the program, `build`
compiles it for this processor on first use and keeps it, and `threads` finds the best number of
threads.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from fmnist_lab import compat
from fmnist_lab.errors import UserError
from fmnist_lab.training import runtime
from fmnist_lab.training.engines.native import build, layout, match
from fmnist_lab.training.engines.native.threads import ThreadTuner
from fmnist_lab.training.engines.recipe import Held, Recipe, Report

# With less work than so many operations per step, a thread waits more than it works.
OPERATIONS_PER_THREAD = 2_000_000


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
        network = match.suitable(model, optimizer, recipe)
    except match.Unsuitable as objection:
        raise UserError(
            f"trainer.engine=native: {objection}; expected dense layers in float32 with ReLU "
            "between them, perhaps after convolutions with ReLU and max-pooling, under Adam, "
            "AdamW or SGD without clipping or averages; use trainer.engine=auto"
        ) from None
    if not build.library().fmnist_lab_has_bf16() and network.bf16:
        raise UserError(
            "trainer.engine=native: received bfloat16, expected a processor that multiplies it "
            "(AVX512-BF16) and a compiler that knows of it; use trainer.engine=auto"
        )


class NativeTrainer:
    """A network and its optimizer, laid out for `network.c`."""

    def __init__(self, model: keras.Model, optimizer: keras.Optimizer, recipe: Recipe) -> None:
        self.library = build.library()
        self.recipe = recipe
        self.network = match.Network(model)
        rows, columns = self.library.fmnist_lab_rows(), self.library.fmnist_lab_panel()
        lanes = self.library.fmnist_lab_lanes()
        self.pixels = math.prod(self.network.image_shape)
        channels = self.network.image_shape[-1]
        self.convolutions: list[layout.PackedConvolution] = []
        for block in self.network.blocks:
            # Bytes enter the first as floats.
            bf16 = self.network.bf16 and bool(self.convolutions)
            packed = layout.PackedConvolution(block, channels, lanes, columns, bf16)
            self.convolutions.append(packed)
            channels = packed.stored
        # The last convolution's outputs have, for each pixel, its filters and zeros up to `stored`.
        filters, stored = (self.convolutions[-1].units, channels) if self.convolutions else (1, 1)
        self.layers: list[layout.PackedDense] = []
        for layer in self.network.dense:
            self.layers.append(layout.PackedDense(layer, filters, stored, rows, columns))
            filters = stored = 1
        self.optimizer_fields = layout.optimizer_fields(optimizer)
        self.threads = ThreadTuner(self._threads(recipe.batch_size))

    def hold(self, images: np.ndarray, labels: np.ndarray) -> Held:
        """Return the images as uint8 rows (n, pixels) and the labels as int32 (n,).

        Raises:
            ValueError: They do not fit the network or each other.
        """
        if len(images) != len(labels):
            raise ValueError(
                f"received {len(images)} images and {len(labels)} labels, expected as many of both"
            )
        rows = np.ascontiguousarray(images, np.uint8).reshape(len(images), -1)
        if rows.shape[1] != self.pixels:
            raise ValueError(
                f"received images of {rows.shape[1]} numbers, expected the model's {self.pixels}"
            )
        narrow = np.ascontiguousarray(labels, np.int32)
        if (changed := narrow != labels).any():
            raise self._unknown_label(np.asarray(labels)[changed][0])
        return rows, narrow

    def compile(self, held: Held, rates: np.ndarray) -> None:
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
        self, held: Held, order: np.ndarray, rates: np.ndarray, seed: int, report: Report
    ) -> tuple[float, float]:
        """Train once on the images in an order; return the sum of losses and the number correct.

        The results are the same to the last bit for any number of threads.

        Raises:
            ValueError: The order names an image that is not there, a label is not a class, images
                and labels are not those of `hold`, or there is not one rate per step. The caller's
                model has not changed.
            MemoryError: There is no memory for a batch's activations.
        """
        order = np.ascontiguousarray(order, np.int64)
        rates = np.ascontiguousarray(rates, np.float32)
        size = self.recipe.batch_size
        whole = len(order) // size
        if len(rates) != math.ceil(len(order) / size):
            raise ValueError(
                f"received {len(rates)} learning rates, expected "
                f"{math.ceil(len(order) / size)}, one per step of {size} images"
            )
        step_sizes = layout.step_sizes(self.optimizer, rates, self.iteration)
        images, labels = held
        task = self._task(images, labels)
        task.order, task.rates, task.step_sizes = (
            a.ctypes.data for a in (order, rates, step_sizes)
        )
        task.batch_size, task.steps, task.stop = size, whole, whole
        while task.start < whole:
            task.seconds, task.threads = self.threads.next()
            steps = self._take_steps(task, labels, order)
            self.threads.took(steps, task.seconds)
            task.start += steps
            if report:
                report(task.start * size)
        if whole * size < len(order):
            # The smaller last batch, as the first of what lies there.
            parts = order[whole * size :], rates[whole:], step_sizes[whole:]
            task.order, task.rates, task.step_sizes = (part.ctypes.data for part in parts)
            task.batch_size, task.seconds = len(order) % size, 0.0
            task.start, task.stop, task.steps = 0, 1, 1
            task.threads = min(self.threads.size, self._threads(task.batch_size))
            self._take_steps(task, labels, order)
            if report:
                report(len(order))
        self.iteration += len(rates)
        return task.loss, task.correct

    def _task(self, images: np.ndarray, labels: np.ndarray) -> layout.Task:
        """Return a task with the network and the images, without steps."""
        fits = images.dtype == np.uint8 and labels.dtype == np.int32 and images.ndim == 2
        if not (fits and images.flags.c_contiguous and labels.flags.c_contiguous):
            raise ValueError(
                f"received images {images.shape} of {images.dtype} and labels of {labels.dtype}, "
                "expected those that `hold` returned"
            )
        return layout.Task(
            conv_layers=(layout.ConvLayer * len(self.convolutions))(
                *(each.described() for each in self.convolutions)
            ),
            dense_layers=(layout.DenseLayer * len(self.layers))(
                *(layer.described() for layer in self.layers)
            ),
            conv_count=len(self.convolutions),
            dense_count=len(self.layers),
            optimizer=self.optimizer_fields,
            scale=self.network.rescaling.scale,
            offset=self.network.rescaling.offset,
            smoothing=self.recipe.label_smoothing,
            image_count=min(len(images), len(labels)),
            pixels=images.shape[1],
            images=images.ctypes.data,
            labels=labels.ctypes.data,
        )

    def _take_steps(self, task: layout.Task, labels: np.ndarray, order: np.ndarray) -> int:
        steps: int = self.library.fmnist_lab_train(ctypes.byref(task))
        if steps >= 0:
            return steps
        if steps == layout.NO_MEMORY:
            raise MemoryError(f"no memory for the activations of {task.batch_size} images")
        if steps == layout.BAD_ORDER:
            outside = order[(order < 0) | (order >= task.image_count)]
            raise ValueError(
                f"received an order that names image {outside[0]}, "
                f"expected images from 0 to {task.image_count - 1}"
            )
        if steps == layout.BAD_LABEL:
            outside = labels[(labels < 0) | (labels >= self.layers[-1].units)]
            raise self._unknown_label(outside[0])
        raise ValueError(
            f"received batches of {task.batch_size} images, {task.pixels} numbers each, and layers "
            "that do not fit them, expected each layer to take what the one before it leaves"
        )

    def _unknown_label(self, label: int) -> ValueError:
        classes = self.layers[-1].units
        return ValueError(f"received the label {label}, expected classes from 0 to {classes - 1}")

    def _places(
        self, model: keras.Model, optimizer: keras.Optimizer
    ) -> Iterator[tuple[layout.Panels, keras.Variable, keras.Variable]]:
        """Yield each layer's weights and the optimizer's state of them, ours and Keras'."""
        if self.optimizer_fields.kind == layout.ADAM:
            states = compat.adam_moments(optimizer)
        else:
            states = [] if self.optimizer_fields.kind == layout.SGD else [optimizer.momentums]
        for variables, name in zip(
            [model.trainable_variables, *states],
            ("weights", "momentum", "velocity"),
            strict=False,
        ):
            for layer, kernel, bias in zip(
                (*self.convolutions, *self.layers), variables[::2], variables[1::2], strict=True
            ):
                yield getattr(layer, name), kernel, bias

    def _threads(self, images: int) -> int:
        """Return how many threads a step of so many images may have work for."""
        each = sum(layer.operations for layer in (*self.convolutions, *self.layers))
        granted = tf.config.threading.get_intra_op_parallelism_threads() or runtime.usable_cores()
        most = self.library.fmnist_lab_most_threads(images, len(self.convolutions))
        return max(1, int(min(granted, most, images * each // OPERATIONS_PER_THREAD)))
