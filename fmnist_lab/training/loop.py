"""The training loop: a whole epoch runs inside a compiled program, not in Python.

`train` does what `keras.Model.fit` does for arrays, and to the same float tolerance, but has an
engine gather batches, take steps and sum up. It knows nothing of configs or tracking.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fmnist_lab import compat, evaluation
from fmnist_lab.errors import DivergedError, UserError
from fmnist_lab.training import engines
from fmnist_lab.training.callbacks import CallbackRunner, check
from fmnist_lab.training.checkpoint import Chosen
from fmnist_lab.training.engines import Recipe, predict
from fmnist_lab.training.engines.replica import compiled

RECIPE = Recipe()


@dataclass(frozen=True)
class Epoch:
    """The results of one epoch.

    Attributes:
        number: The epoch, from 1.
        loss: Mean training loss over the epoch's images, each under the weights of its moment.
        accuracy: Share of the epoch's images classified correctly, under the same weights.
        validation: Scores of the model after the epoch on the validation images, if there are any.
        learning_rate: The optimizer's rate in the epoch's last step.
        images: Images seen.
        seconds: Wall time of the training steps.
        last: Whether the training is over, because a callback said so or all epochs are done.
        chosen: The epoch whose weights the model has after the last one, if a callback has put
            others than the last epoch's in place; `validation` scores the last epoch's own.
        logs: The figures above under Keras' names, and those that callbacks added or replaced.
    """

    number: int
    loss: float
    accuracy: float
    validation: evaluation.Scores | None
    learning_rate: float
    images: int
    seconds: float
    last: bool
    chosen: Chosen | None = None
    logs: Mapping[str, Any] = field(default_factory=dict)


def train(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    optimizer: keras.Optimizer,
    *,
    epochs: int,
    recipe: Recipe = RECIPE,
    seed: int = 0,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    first_epoch: int = 1,
    on_begin: Callable[[], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Epoch]:
    """Train a model, one epoch for each step of the iterator.

    After each epoch, `model` and `optimizer` hold the whole state, to be evaluated, saved or
    continued from. The order of the images depends on (seed, epoch) alone, and every image counts
    once per epoch: a smaller last batch is kept, as in `fit`.

    With `use_ema`, `model` holds the averaged weights, and the optimizer holds the raw ones in the
    place of the averages. An epoch that is broken off leaves both as the epoch before has left
    them. Leaving the iterator early ends the training for the callbacks too, which may then put
    other weights in place, as EarlyStopping with restore_best_weights does.

    Args:
        model: A built Sequential or functional Keras model from images to probabilities (n,
            classes).
        images: The training images, shape (n, ...), as the model takes them; an axis of one channel
            may be there or not, and the type may be any that has the same values.
        labels: Their classes, shape (n,) or (n, 1), whole numbers from 0 to classes - 1.
        optimizer: Any Keras optimizer, with a constant rate or a schedule.
        epochs: The last epoch's number.
        recipe: How a step is taken.
        seed: Decides the order of the images and their augmentation.
        validation: Images and labels to score the model on after each epoch.
        callbacks: Keras callbacks that act on epochs. Their logs hold loss, accuracy,
            learning_rate and, with validation data, val_loss and val_accuracy; what they add is
            in the epoch's `logs`.
        first_epoch: The epoch to begin with, to continue what an earlier call has left.
        on_begin: Called when the callbacks have begun; it can put into them what they are to
            remember of earlier epochs.
        on_progress: Called now and then with (epoch, images seen in it).

    Yields:
        Each finished epoch, after its callbacks; fewer than `epochs` if one of them stops.

    Raises:
        DivergedError: The loss of an epoch is not finite.
        UserError: Images and labels do not fit the model or each other, model or optimizer cannot
            be rebuilt from their configs, or `callbacks.check` objects.
    """
    trainer = engines.trainer(model, optimizer, recipe)
    check(callbacks, optimizer, validation is not None)
    images, labels = _examples(model, images, labels, "training")
    if validation is not None:
        validation = _examples(model, *validation, "validation")
    steps = math.ceil(len(images) / recipe.batch_size)
    runner = CallbackRunner(callbacks, model, optimizer, epochs, steps)
    held = trainer.hold(images, labels)
    rates_of = _Rates(optimizer, steps)
    with runner:
        if on_begin:
            on_begin()
        for number in range(first_epoch, epochs + 1):
            runner.begin(number)
            order = np.random.default_rng([seed, number]).permutation(len(images))
            rates = rates_of.next_epoch()
            trainer.load(model, optimizer)
            report = partial(on_progress, number) if on_progress else None
            started = time.perf_counter()
            loss_sum, correct = trainer.run(held, order, rates, seed, report)
            seconds = time.perf_counter() - started
            trainer.store(model, optimizer)
            if not math.isfinite(loss_sum):
                raise DivergedError(
                    f"the training loss of epoch {number} is {loss_sum}: training diverged; try a "
                    "smaller optimizer.learning_rate, or optimizer.clipnorm=1"
                )
            epoch = Epoch(
                number=number,
                loss=loss_sum / len(images),
                accuracy=correct / len(images),
                validation=_validate(model, validation, runner) if validation else None,
                learning_rate=float(rates[-1]),
                images=len(images),
                seconds=seconds,
                last=False,
            )
            stop, logs = runner.end(epoch)
            if stop:
                # Before the last epoch is handed out, so that it finds restored weights in place.
                runner.finish()
            yield replace(epoch, last=stop, chosen=runner.chosen, logs=logs)
            if stop:
                break


def _validate(
    model: keras.Model, validation: tuple[np.ndarray, np.ndarray], runner: CallbackRunner
) -> evaluation.Scores:
    images, labels = validation
    runner.begin_validation()
    scores = evaluation.scores(predict(model, images), labels)
    runner.end_validation(scores)
    return scores


def compile_ahead(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    optimizer: keras.Optimizer,
    recipe: Recipe,
) -> None:
    """Compile what `train` with the same arguments will need, without training a step.

    Compiling happens outside Python's lock, so other threads can do their work meanwhile.

    Args:
        model: The model that will be trained.
        images: The training images, shape (n, ...).
        labels: Their classes, shape (n,) or (n, 1).
        optimizer: The optimizer that will train it.
        recipe: How a step is taken.
    """
    trainer = engines.trainer(model, optimizer, recipe)
    images, labels = _examples(model, images, labels, "training")
    rates = np.zeros(math.ceil(len(images) / recipe.batch_size), np.float32)
    trainer.compile(trainer.hold(images, labels), rates)


def _examples(
    model: keras.Model, images: np.ndarray, labels: np.ndarray, which: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return images as a model takes them, and labels as int64 (n,).

    Args:
        model: The model.
        images: Shape (n, ...).
        labels: Shape (n,) or (n, 1).
        which: Names them in messages, such as "training".

    Raises:
        UserError: They do not fit the model or each other.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    shape, dtype = tuple(model.input_shape[1:]), np.dtype(model.inputs[0].dtype)
    # As in `fit`, a single channel may have an axis or none.
    if images.ndim == len(shape) and shape[-1:] == (1,):
        images = images[..., None]
    elif images.ndim == len(shape) + 2 and images.shape[-1] == 1:
        images = images[..., 0]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if not len(images) or labels.shape != (len(images),):
        raise UserError(
            f"received {len(images)} {which} images and labels of shape {labels.shape}, expected "
            "one label for each image, and at least one image"
        )
    fits = images.ndim == len(shape) + 1 and all(
        wanted in (None, given) for wanted, given in zip(shape, images.shape[1:], strict=True)
    )
    if not fits:
        raise UserError(
            f"received {which} images of shape {images.shape[1:]}, expected {shape}, which the "
            "model takes"
        )
    pixels = _converted(images, dtype)
    if pixels is None:
        received = (
            f"received {which} images of type {images.dtype} with values from {images.min():g} to "
            f"{images.max():g}"
        )
        if dtype == np.uint8:
            raise UserError(
                f"{received}, expected whole numbers from 0 to 255; the model takes uint8 and "
                "rescales it itself, so do not divide by 255"
            )
        raise UserError(
            f"{received}, expected {dtype}, which the model takes and which has no such values"
        )
    classes = _converted(labels, np.dtype(np.int64))
    count = model.output_shape[-1]
    if classes is None or classes.min() < 0 or classes.max() >= count:
        raise UserError(
            f"received {which} labels from {labels.min()} to {labels.max()} of type "
            f"{labels.dtype}, expected integers from 0 to {count - 1}, the model's classes"
        )
    return pixels, classes


def _converted(array: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """Return an array as another type, or None if that type lacks one of its values."""
    if array.dtype == dtype:
        return array
    with np.errstate(invalid="ignore"):
        converted = array.astype(dtype)
    rounded = np.can_cast(array.dtype, dtype, "same_kind") and dtype.kind not in "iu"
    return converted if rounded or np.array_equal(converted, array) else None


class _Rates:
    """The learning rates of steps to come, from what the optimizer has by then."""

    def __init__(self, optimizer: keras.Optimizer, steps: int) -> None:
        self.optimizer = optimizer
        self.steps = steps
        self.schedule: Any = None

    def next_epoch(self) -> np.ndarray:
        """Return the rate of each of the next steps, float32 (steps,)."""
        schedule = compat.schedule_of(self.optimizer)
        if schedule is None:
            return np.full(self.steps, float(self.optimizer.learning_rate), np.float32)
        if schedule is not self.schedule:
            # All at once: one by one takes 20 ms for 1,875 steps, a quarter of a fast epoch.
            self.schedule = schedule
            self.evaluate = compiled(
                lambda steps: tf.vectorized_map(lambda n: tf.cast(schedule(n), tf.float32), steps)
            )
        first = compat.batch_counter(self.optimizer).numpy()
        rates: np.ndarray = self.evaluate(tf.range(first, first + self.steps)).numpy()
        return rates
