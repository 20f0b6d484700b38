"""The engines `xla` and `graph`: a whole epoch inside one compiled TensorFlow function."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Hashable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fmnist_lab import compat
from fmnist_lab.errors import UserError
from fmnist_lab.training import runtime
from fmnist_lab.training.engines.recipe import Held, Recipe, Report, slices
from fmnist_lab.training.engines.replica import Replica, compiled, copy_variables, replica_of

# Trainers of each replica, which differ in what is compiled in, such as momentum or weight decay.
TRAINERS_KEPT = 8
PLAIN = (bool, int, float, str, type(None))


class GraphTrainer:
    """A replica, an optimizer and the compiled steps that join them.

    Args:
        replica: The model.
        optimizer: The optimizer whose class and settings this trainer copies.
        recipe: How to take a step, with the engine decided.
        decays: Whether weight decay applies to each of the model's trainable variables.
    """

    def __init__(
        self,
        replica: Replica,
        optimizer: keras.Optimizer,
        recipe: Recipe,
        decays: tuple[bool, ...],
    ) -> None:
        self.model = replica.model
        self.recipe = recipe
        self.optimizer = _like(optimizer)
        variables = self.model.trainable_variables
        if not all(decays):
            self.optimizer.exclude_from_weight_decay(
                [each for each, decay in zip(variables, decays, strict=True) if not decay]
            )
        self.optimizer.build(variables)
        self.loss = recipe.loss_function()
        self.xla = recipe.engine == "xla"
        self._compile()

    def load(self, model: keras.Model, optimizer: keras.Optimizer) -> None:
        """Take over the state of the caller's model and optimizer, which stay as they are."""
        optimizer.build(model.trainable_variables)
        copy_variables(model.variables, self.model.variables)
        copy_variables(_state(optimizer), _state(self.optimizer))
        _swap_averages(self.model, self.optimizer)

    def store(self, model: keras.Model, optimizer: keras.Optimizer) -> None:
        """Hand the state back."""
        _swap_averages(self.model, self.optimizer)
        copy_variables(self.model.variables, model.variables)
        copy_variables(_state(self.optimizer), _state(optimizer))

    def hold(self, images: np.ndarray, labels: np.ndarray) -> Held:
        """Return the training images, and the labels as int32 (n,), as `run` wants them."""
        return tf.constant(images), tf.constant(labels, tf.int32)

    def compile(self, held: Held, rates: np.ndarray) -> None:
        """Compile what `run` will need, without training a step."""
        for batches in _batches(*held, rates, self.recipe.batch_size):
            self.steps(*batches, *_span(0, 0, 0), *_NOTHING)

    def run(
        self, held: Held, order: np.ndarray, rates: np.ndarray, seed: int, report: Report
    ) -> tuple[float, float]:
        """Train once on the images in an order; see `engines.Trainer`.

        The epoch is run in slices, for a live display. The sums are carried from slice to slice,
        so that slicing changes no bit.
        """
        images, labels = (tf.gather(each, order) for each in held)
        sums, seen = _NOTHING, 0
        for batches in _batches(images, labels, rates, self.recipe.batch_size):
            steps, size = batches[1].shape
            for start, stop in slices(steps):
                sums = self.steps(*batches, *_span(seed, start, stop), *sums)
                # Waits for the slice, which otherwise goes on in the background.
                sums[0].numpy()
                seen += (stop - start) * size
                if report:
                    report(seen)
        return float(sums[0]), float(sums[1])

    def steps(self, *arguments: tf.Tensor) -> Any:
        """Take some steps, compiled on the first call; see `_steps`.

        Raises:
            UserError: XLA lacks an operation of this training.
        """
        try:
            return self._compiled(*arguments)
        except (
            tf.errors.OutOfRangeError,
            tf.errors.DataLossError,
            tf.errors.InternalError,
            tf.errors.InvalidArgumentError,
            tf.errors.UnimplementedError,
        ) as error:
            reason = " ".join(str(error).split())
            if self.xla and re.search("unsupported operations|tf2xla conversion failed", reason):
                raise UserError(
                    f"engine xla cannot compile this training: {reason[:300]} …; use graph "
                    "(trainer.engine=graph)"
                ) from error
            # A program that XLA kept may be cut short by a kill or a full disk, or torn by a power
            # cut, and would fail in every later process. It is read before the first step, so
            # nothing has been trained yet.
            if not (self.xla and runtime.forget_compiled_programs()):
                raise
            self._compile()
            return self._compiled(*arguments)

    def _compile(self) -> None:
        self._compiled = compiled(self._steps, jit_compile=self.xla)

    @compat.brief_origins()
    def _steps(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        rates: tf.Tensor,
        seed: tf.Tensor,
        start: tf.Tensor,
        stop: tf.Tensor,
        loss_sum: tf.Tensor,
        correct: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Take the steps from `start` to `stop`, and add to the sums.

        Args:
            images: Shape (steps, size, ...).
            labels: Int32 (steps, size).
            rates: Learning rates, float32 (steps,).
            seed: Decides the augmentation, int32 ().
            start: The first step, int32 ().
            stop: The step after the last, int32 ().
            loss_sum: The sum of the losses so far, float32 ().
            correct: The number of images that were classified correctly so far, float32 ().

        Returns:
            The two sums.
        """
        size = labels.shape[1]

        def take_step(
            step: tf.Tensor, loss_sum: tf.Tensor, correct: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            x, y = tf.gather(images, step), tf.gather(labels, step)
            if self.recipe.augmentation is not None:
                batch = tf.cast(compat.batch_counter(self.optimizer).value, tf.int32)
                x = self.recipe.augmentation(x, tf.stack([seed, batch]))
            self.optimizer.learning_rate.assign(tf.gather(rates, step))
            with tf.GradientTape() as tape:
                probabilities = self.model(x, training=True)
                added = [tf.reduce_sum(each) for each in self.model.losses]
                loss = tf.add_n([self.loss(y, probabilities), *added])
                scaled = self.optimizer.scale_loss(loss)
            variables = self.model.trainable_variables
            self.optimizer.apply(tape.gradient(scaled, variables), variables)
            right = tf.equal(tf.argmax(probabilities, axis=-1, output_type=tf.int32), y)
            return (
                step + 1,
                loss_sum + size * loss,
                correct + tf.reduce_sum(tf.cast(right, tf.float32)),
            )

        # A range or a slice here would make XLA compile again for each start and stop.
        _, loss_sum, correct = tf.while_loop(
            lambda step, *_: step < stop, take_step, (start, loss_sum, correct)
        )
        return loss_sum, correct


# The sums of an epoch's losses and correct answers before its first step.
_NOTHING = (tf.constant(0.0), tf.constant(0.0))


def _batches(
    images: tf.Tensor, labels: tf.Tensor, rates: np.ndarray, batch_size: int
) -> list[tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    """Cut an epoch into batches, in order: all the full ones, then the smaller last.

    Batches lie in one piece because gathering scattered images inside the compiled loop took a
    quarter of its time.

    Returns:
        One or two groups of images (steps, size, ...), labels (steps, size) and rates (steps,).
    """
    steps, rest = divmod(len(images), batch_size)
    whole = steps * batch_size
    groups = []
    if steps:
        groups.append((images[:whole], labels[:whole], rates[:steps], (steps, batch_size)))
    if rest:
        groups.append((images[whole:], labels[whole:], rates[steps:], (1, rest)))
    return [
        (tf.reshape(x, (*shape, *x.shape[1:])), tf.reshape(y, shape), tf.constant(rate))
        for x, y, rate, shape in groups
    ]


def _span(seed: int, start: int, stop: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return seed and bounds as tensors: Python numbers would each be compiled for."""
    return tf.constant(np.uint32(seed).astype(np.int32)), tf.constant(start), tf.constant(stop)


def trainer(model: keras.Model, optimizer: keras.Optimizer, recipe: Recipe) -> GraphTrainer:
    """Return the compiled trainer of an architecture, optimizer and recipe, made once.

    Args:
        model: A built Keras model.
        optimizer: Any Keras optimizer.
        recipe: How to take a step, with the engine decided.

    Raises:
        UserError: The model or the optimizer cannot be rebuilt from its config.
    """
    replica = replica_of(model)
    settings = optimizer.get_config()
    if "learning_rate" not in settings:
        raise UserError(
            f"the optimizer {type(optimizer).__name__} has no learning rate of its own, as it acts "
            "through others; give one of those (loss_scale_factor scales its losses)"
        )
    # The rate is state, and the name counts up; neither is compiled in.
    del settings["learning_rate"], settings["name"]
    decays = compat.decays(optimizer, model.trainable_variables)
    key = (
        type(optimizer),
        json.dumps(settings, sort_keys=True, default=str),
        decays,
        _loss_key(recipe.loss_function()),
        recipe.engine,
        recipe.batch_size,
        recipe.augmentation,
    )
    if key not in replica.trainers:
        replica.trainers[key] = GraphTrainer(replica, optimizer, recipe, decays)
    replica.trainers.move_to_end(key)
    while len(replica.trainers) > TRAINERS_KEPT:
        replica.trainers.popitem(last=False)
    return replica.trainers[key]


def _loss_key(loss: keras.losses.Loss) -> Hashable:
    """Return a key that equal losses share, although a loss's config may leave out some of it."""
    settings = {**loss.get_config(), "name": None}
    common = vars(keras.losses.Loss())
    own = {name: value for name, value in vars(loss).items() if name not in common}
    return type(loss), json.dumps(settings, sort_keys=True, default=str), _identity(own)


def _identity(value: Any) -> Hashable:
    """Return a plain value itself, and for an array or a function its address.

    The trainer of a key holds its loss, so that no other object gets the address.
    """
    if isinstance(value, dict):
        return tuple((name, _identity(each)) for name, each in value.items())
    return value if isinstance(value, PLAIN) else ("address", id(value))


def _state(optimizer: keras.Optimizer) -> list[keras.Variable]:
    """Return an optimizer's variables but for its rate, which is no memory of the training."""
    return [variable for variable in optimizer.variables if variable.name != "learning_rate"]


def _like(optimizer: keras.Optimizer) -> keras.Optimizer:
    """Return another optimizer of the same settings, whose rate is fed to it step by step.

    So neither the rate nor a schedule is compiled in.

    Raises:
        UserError: It cannot be rebuilt from its config.
    """
    settings = optimizer.get_config()
    if lost := _lost(optimizer, settings):
        raise UserError(
            f"the optimizer {type(optimizer).__name__} cannot be rebuilt from its config, which "
            f"leaves out {', '.join(lost)}; have its get_config() return all arguments"
        )
    kind: Any = compat.undistributed(type(optimizer))
    return kind.from_config({**settings, "learning_rate": 0.0})


def _lost(optimizer: keras.Optimizer, settings: dict[str, Any]) -> list[str]:
    """Return the arguments of an optimizer that another one of the same config would not have."""
    rate = compat.schedule_of(optimizer) or float(optimizer.learning_rate)
    other = type(optimizer).from_config({**settings, "learning_rate": rate})
    return [
        name
        for name in inspect.signature(type(optimizer).__init__).parameters
        if name not in ("name", "learning_rate")
        and isinstance(value := vars(optimizer).get(name), PLAIN)
        and vars(other).get(name) != value
    ]


def _swap_averages(model: keras.Model, optimizer: keras.Optimizer) -> None:
    """Exchange the model's weights and the optimizer's averages of them, once there are any.

    Done before and after each epoch, it keeps the averages in the model in between.
    """
    if not optimizer.use_ema or int(compat.batch_counter(optimizer).numpy()) == 0:
        return
    for weight, average in zip(model.trainable_variables, compat.averages(optimizer), strict=True):
        raw = weight.numpy()
        weight.assign(average)
        average.assign(raw)
