"""The compiled training loop: a whole epoch runs inside TensorFlow, not in Python.

`train` does what `keras.Model.fit` does for arrays, and to the same float tolerance, but gathers
batches, steps and sums inside one compiled function. It knows nothing of configs or tracking.
"""

from __future__ import annotations

import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from fmnist_lab.errors import UserError

# Long enough that a slice's launch costs nothing, short enough for a live display and Ctrl-C.
SLICE_SECONDS = 0.5
FIRST_SLICE = 64
# The fastest that also bounds a convolution's memory. Rows come out the same in any batch.
PREDICTION_BATCH = 1000
# Replicas that stay compiled: a sweep over seeds and rates needs one, one over widths a few.
REPLICAS_KEPT = 4


class DivergedError(UserError):
    """The loss became nan or infinite."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch left behind.

    Attributes:
        number: The epoch, from 1.
        loss: Mean training loss over the epoch's images, each under the weights of its moment.
        accuracy: Share of the epoch's images that were classified correctly, likewise.
        images: Images seen.
        seconds: Wall time of the training steps.
    """

    number: int
    loss: float
    accuracy: float
    images: int
    seconds: float


def train(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    optimizer: keras.Optimizer,
    epochs: int,
    batch_size: int = 32,
    seed: int = 0,
    engine: str = "auto",
    loss: keras.losses.Loss | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Epoch]:
    """Train a model, one epoch for each step of the iterator.

    After each epoch, `model` and `optimizer` hold the current state, to be evaluated, saved or
    continued from. The order of the images depends on (seed, epoch) alone, and every image counts
    once an epoch: a smaller last batch is kept, as in `fit`.

    Args:
        model: A built Keras model from images to probabilities (n, classes).
        images: The training images, shape (n, ...), of the model's input dtype.
        labels: Their classes, shape (n,), integers.
        optimizer: Any Keras optimizer. If it is already built for `model`, it goes on from there.
        epochs: The last epoch's number.
        batch_size: Images a step.
        seed: Decides the order of the images.
        engine: "xla", "graph" or "auto"; see `choose_engine`.
        loss: Defaults to sparse categorical cross-entropy.
        on_progress: Called now and then with (epoch, images seen in it).

    Yields:
        Each finished epoch.

    Raises:
        DivergedError: The loss of an epoch is not finite.
        UserError: The model cannot be rebuilt from its config.
    """
    program = _program(model, optimizer, loss, choose_engine(model) if engine == "auto" else engine)
    pixels, classes = tf.constant(images), tf.constant(labels, tf.int32)
    for number in range(1, epochs + 1):
        order = np.random.default_rng([seed, number]).permutation(len(images)).astype(np.int32)
        program.load(model, optimizer)
        started = time.perf_counter()
        report = (lambda seen, n=number: on_progress(n, seen)) if on_progress else None
        loss_sum, correct = program.run(pixels, classes, order, batch_size, report)
        seconds = time.perf_counter() - started
        program.store(model, optimizer)
        if not math.isfinite(loss_sum):
            raise DivergedError(
                f"the training loss of epoch {number} is {loss_sum}: training diverged; try a "
                "smaller optimizer.learning_rate, or optimizer.clipnorm=1"
            )
        yield Epoch(number, loss_sum / len(images), correct / len(images), len(images), seconds)


def compile_ahead(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    optimizer: keras.Optimizer,
    batch_size: int = 32,
    engine: str = "auto",
    loss: keras.losses.Loss | None = None,
) -> None:
    """Compile what `train` with the same arguments will need, without training a step.

    Compiling happens outside Python's lock, so other threads can get their work done meanwhile.
    """
    program = _program(model, optimizer, loss, engine)
    pixels, classes = tf.constant(images), tf.constant(labels, tf.int32)
    for batches in _batches(np.zeros(len(images), np.int32), batch_size):
        program.steps(pixels, classes, batches, *_span(0, 0), *_NOTHING)


def predict(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Return a model's probabilities, float32 (n, classes), in inference mode.

    The bits are those of `model.predict(images)`; compiled once for an architecture.
    """
    replica = _replica(model)
    replica.load(model)
    batches = range(0, len(images), PREDICTION_BATCH)
    parts = [replica.predict(images[start : start + PREDICTION_BATCH]) for start in batches]
    return np.concatenate([part.numpy() for part in parts])


def choose_engine(model: keras.Model) -> str:
    """Return the faster engine: "graph" for convolutions on a CPU, "xla" otherwise.

    XLA's convolutions on a CPU are an order of magnitude slower than the plain graph's
    (github.com/jax-ml/jax/issues/12868).
    """
    convolves = any("conv" in type(layer).__name__.lower() for layer in model._flatten_layers())
    return "graph" if convolves and not tf.config.list_physical_devices("GPU") else "xla"


class _Replica:
    """A private copy of an architecture, compiled once and lent to every model that has it."""

    def __init__(self, model: keras.Model) -> None:
        self.model = keras.models.clone_model(model)
        self.programs: dict[str, _Program] = {}
        self.predict = tf.function(
            lambda images: self.model(images, training=False),
            input_signature=[tf.TensorSpec(model.inputs[0].shape, model.inputs[0].dtype)],
            autograph=False,
        )

    def load(self, model: keras.Model) -> None:
        _copy(model.variables, self.model.variables)


class _Program:
    """A replica, an optimizer and the compiled steps that join them."""

    def __init__(
        self,
        replica: _Replica,
        optimizer: keras.Optimizer,
        loss: keras.losses.Loss,
        engine: str,
    ) -> None:
        self.model = replica.model
        self.optimizer = type(optimizer).from_config(optimizer.get_config())
        self.optimizer.build(self.model.trainable_variables)
        self.loss = loss
        self.steps = tf.function(self._steps, jit_compile=engine == "xla")

    def load(self, model: keras.Model, optimizer: keras.Optimizer) -> None:
        """Take over the state of the caller's model and optimizer."""
        optimizer.build(model.trainable_variables)
        _copy(model.variables, self.model.variables)
        _copy(optimizer.variables, self.optimizer.variables)

    def store(self, model: keras.Model, optimizer: keras.Optimizer) -> None:
        """Hand the state back."""
        _copy(self.model.variables, model.variables)
        _copy(self.optimizer.variables, optimizer.variables)

    def run(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        order: np.ndarray,
        batch_size: int,
        report: Callable[[int], None] | None = None,
    ) -> tuple[float, float]:
        """Run one epoch in slices; return the sum of losses and the number correct.

        The sums are carried from slice to slice, so that slicing changes no bit.
        """
        sums, seen, length = _NOTHING, 0, FIRST_SLICE
        for batches in _batches(order, batch_size):
            steps, size = batches.shape
            done = 0
            while done < steps:
                started = time.perf_counter()
                stop = min(steps, done + length)
                sums = self.steps(images, labels, batches, *_span(done, stop), *sums)
                # Waits for the slice, which otherwise goes on in the background.
                sums[0].numpy()
                rate = (stop - done) / (time.perf_counter() - started)
                length = max(1, int(rate * SLICE_SECONDS))
                seen += (stop - done) * size
                done = stop
                if report:
                    report(seen)
        return float(sums[0]), float(sums[1])

    def _steps(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        batches: tf.Tensor,
        start: tf.Tensor,
        stop: tf.Tensor,
        loss_sum: tf.Tensor,
        correct: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        size, step = batches.shape[1], start
        # A range or a slice here would make XLA compile again for each start and stop.
        while step < stop:
            batch = tf.gather(batches, step)
            x, y = tf.gather(images, batch), tf.gather(labels, batch)
            with tf.GradientTape() as tape:
                probabilities = self.model(x, training=True)
                loss = tf.add_n([self.loss(y, probabilities), *self.model.losses])
            variables = self.model.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            hits = tf.equal(tf.argmax(probabilities, axis=-1, output_type=tf.int32), y)
            loss_sum += size * loss
            correct += tf.reduce_sum(tf.cast(hits, tf.float32))
            step += 1
        return loss_sum, correct


# The sums of an epoch's losses and hits before its first step.
_NOTHING = (np.float32(0), np.float32(0))


def _batches(order: np.ndarray, batch_size: int) -> list[tf.Tensor]:
    """Return an epoch's batches as int32 (steps, size): the full ones, then the smaller last."""
    whole = len(order) // batch_size * batch_size
    groups = [order[:whole].reshape(-1, batch_size), order[whole:].reshape(1, -1)]
    return [tf.constant(group) for group in groups if group.size]


def _span(start: int, stop: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return bounds as tensors: as Python numbers, each pair would be compiled for."""
    return tf.constant(start), tf.constant(stop)


_replicas: OrderedDict[str, _Replica] = OrderedDict()


def _replica(model: keras.Model) -> _Replica:
    """Return the compiled replica of a model's architecture, made now or kept from before."""
    try:
        key = model.to_json()
    except (NotImplementedError, TypeError) as error:
        raise UserError(
            f"the model {type(model).__name__} cannot be rebuilt from its config, so it could "
            f"neither be compiled once nor reloaded later: {error}; build it from Keras layers, "
            "or give it get_config() and keras.saving.register_keras_serializable()"
        ) from error
    if key not in _replicas:
        _replicas[key] = _Replica(model)
    _replicas.move_to_end(key)
    while len(_replicas) > REPLICAS_KEPT:
        _replicas.popitem(last=False)
    return _replicas[key]


def _program(
    model: keras.Model,
    optimizer: keras.Optimizer,
    loss: keras.losses.Loss | None,
    engine: str,
) -> _Program:
    """Return the compiled program of an architecture, optimizer, loss and engine."""
    replica = _replica(model)
    settings = optimizer.get_config()
    # The rate is state, and the name counts up; neither is part of the program.
    del settings["learning_rate"], settings["name"]
    loss = loss or keras.losses.SparseCategoricalCrossentropy()
    key = json.dumps(
        [type(optimizer).__name__, settings, type(loss).__name__, loss.get_config(), engine],
        sort_keys=True,
        default=str,
    )
    if key not in replica.programs:
        replica.programs[key] = _Program(replica, optimizer, loss, engine)
    return replica.programs[key]


def _copy(source: list[keras.Variable], target: list[keras.Variable]) -> None:
    for old, new in zip(target, source, strict=True):
        old.assign(new)
