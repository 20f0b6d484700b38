"""The compiled training loop: a whole epoch runs inside TensorFlow, not in Python.

`train` does what `keras.Model.fit` does for arrays, and to the same float tolerance, but gathers
batches, steps and sums inside one compiled function. It knows nothing of configs or tracking.
"""

from __future__ import annotations

import gc
import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MethodType

import keras
import numpy as np
import tensorflow as tf
from keras.src.optimizers.base_optimizer import BaseOptimizer

from fmnist_lab import backend, evaluation
from fmnist_lab.augmentation import Augmentation
from fmnist_lab.errors import DivergedError, UserError

# Long enough that a slice's launch costs nothing, short enough for a live display and Ctrl-C.
SLICE_SECONDS = 0.5
FIRST_SLICE = 64
# That of `model.predict`: on some processors a row's last bits depend on the size of its batch.
PREDICTION_BATCH = 32
# The fastest that also bounds a convolution's memory.
FAST_PREDICTION_BATCH = 5000
# Replicas that stay compiled: a sweep over seeds and rates needs one, one over widths a few.
REPLICAS_KEPT = 4


@dataclass(frozen=True)
class Recipe:
    """How a step is taken; with the optimizer, all that a compiled program depends on.

    Attributes:
        batch_size: Images a step.
        engine: "xla", "graph" or "auto"; see `choose_engine`.
        label_smoothing: Share of each label spread evenly over all classes (Szegedy et al. 2016,
            arXiv:1512.00567, section 7), from 0 to 1.
        loss: A Keras loss of integer labels and probabilities, instead of cross-entropy.
        augmentation: Random changes to the images of a step, or None.
    """

    batch_size: int = 32
    engine: str = "auto"
    label_smoothing: float = 0.0
    loss: keras.losses.Loss | None = None
    augmentation: Augmentation | None = None


@dataclass(frozen=True)
class Epoch:
    """What one epoch left behind.

    Attributes:
        number: The epoch, from 1.
        loss: Mean training loss over the epoch's images, each under the weights of its moment.
        accuracy: Share of the epoch's images that were classified correctly, likewise.
        validation: Scores of the model after the epoch on the validation images, if there are any.
        learning_rate: The optimizer's rate in the epoch's last step.
        images: Images seen.
        seconds: Wall time of the training steps.
        last: Whether the training is over, because a callback said so or all epochs are done.
    """

    number: int
    loss: float
    accuracy: float
    validation: evaluation.Scores | None
    learning_rate: float
    images: int
    seconds: float
    last: bool


def train(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    optimizer: keras.Optimizer,
    *,
    epochs: int,
    recipe: Recipe = Recipe(),
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
    once an epoch: a smaller last batch is kept, as in `fit`.

    With `use_ema`, `model` holds the averaged weights whenever it is not training, and the
    optimizer the raw ones in the place of the averages.

    Args:
        model: A built Keras model from images to probabilities (n, classes).
        images: The training images, shape (n, ...), of the model's input dtype.
        labels: Their classes, shape (n,), integers.
        optimizer: Any Keras optimizer, with a constant rate or a schedule.
        epochs: The last epoch's number.
        recipe: How a step is taken.
        seed: Decides the order of the images and their augmentation.
        validation: Images and labels to score the model on after each epoch.
        callbacks: Keras callbacks that act on epochs. Their logs hold loss, accuracy,
            learning_rate and, with validation data, val_loss and val_accuracy.
        first_epoch: The epoch to begin with, to continue what an earlier call has left.
        on_begin: Called when the callbacks have begun; what they are to remember of earlier epochs
            can be put into them then.
        on_progress: Called now and then with (epoch, images seen in it).

    Yields:
        Each finished epoch, after its callbacks; fewer than `epochs` if one of them stops.

    Raises:
        DivergedError: The loss of an epoch is not finite.
        UserError: The model cannot be rebuilt from its config, or `check_callbacks` objects.
    """
    program = _program(model, optimizer, recipe)
    check_callbacks(callbacks, validation is not None)
    listeners = _Listeners(callbacks, model, optimizer, epochs)
    pixels, classes = tf.constant(images), tf.constant(labels, tf.int32)
    with listeners:
        if on_begin:
            on_begin()
        for number in range(first_epoch, epochs + 1):
            listeners.begin(number)
            order = np.random.default_rng([seed, number]).permutation(len(images))
            rates = _rates(optimizer, math.ceil(len(images) / recipe.batch_size))
            program.load(model, optimizer)
            report = (lambda seen, n=number: on_progress(n, seen)) if on_progress else None
            started = time.perf_counter()
            shuffled = tf.gather(pixels, order), tf.gather(classes, order)
            loss_sum, hits = program.run(*shuffled, rates, seed, report)
            seconds = time.perf_counter() - started
            program.store(model, optimizer)
            if not math.isfinite(loss_sum):
                raise DivergedError(
                    f"the training loss of epoch {number} is {loss_sum}: training diverged; try a "
                    "smaller optimizer.learning_rate, or optimizer.clipnorm=1"
                )
            scores = None
            if validation is not None:
                scores = evaluation.scores(predict(model, validation[0]), validation[1])
            epoch = Epoch(
                number=number,
                loss=loss_sum / len(images),
                accuracy=hits / len(images),
                validation=scores,
                learning_rate=float(rates[-1]),
                images=len(images),
                seconds=seconds,
                last=False,
            )
            stop = listeners.end(epoch)
            if stop:
                # Before the last epoch is handed out, so that it finds restored weights in place.
                listeners.finish()
            yield replace(epoch, last=stop)
            if stop:
                break


def compile_ahead(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    optimizer: keras.Optimizer,
    recipe: Recipe,
) -> None:
    """Compile what `train` with the same arguments will need, without training a step.

    Compiling happens outside Python's lock, so other threads can get their work done meanwhile.
    """
    program = _program(model, optimizer, recipe)
    rates = _rates(optimizer, math.ceil(len(images) / recipe.batch_size))
    pixels, classes = tf.constant(images), tf.constant(labels, tf.int32)
    for batches in _batches(pixels, classes, rates, recipe.batch_size):
        program.steps(*batches, *_span(0, 0, 0), *_NOTHING)


def check_callbacks(callbacks: Sequence[keras.callbacks.Callback], validated: bool) -> None:
    """Refuse callbacks that `train` could not serve.

    Args:
        callbacks: Keras callbacks.
        validated: Whether there are validation images.

    Raises:
        UserError: One acts on batches, or watches validation figures that there are none of.
    """
    base = keras.callbacks.Callback
    hooks = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")
    for callback in callbacks:
        name = type(callback).__name__
        used = [hook for hook in hooks if getattr(type(callback), hook) is not getattr(base, hook)]
        # ModelCheckpoint and BackupAndRestore define the hook, and do nothing in it when told so.
        if used and getattr(callback, "save_freq", None) != "epoch":
            raise UserError(
                f"callback {name} acts on batches ({', '.join(used)}), but a whole epoch runs as "
                "one compiled program; use one that acts on epochs"
            )
        monitor = str(getattr(callback, "monitor", ""))
        if monitor.startswith("val_") and not validated:
            raise UserError(
                f"callback {name} watches {monitor}, but no images are held out to measure it on, "
                "and nothing is chosen on the test set; add for example "
                "data.validation_fraction=0.1"
            )


def predict(
    model: keras.Model, images: np.ndarray, batch_size: int = PREDICTION_BATCH
) -> np.ndarray:
    """Return a model's probabilities, float32 (n, classes), in inference mode.

    With the batch size left out, the bits are those of `model.predict(images)`; a larger one is
    faster, and on some processors differs in the last bits. Compiled once for an architecture.
    """
    replica = _replica(model)
    replica.load(model)
    whole = len(images) // batch_size * batch_size
    parts = []
    if whole:
        batches = images[:whole].reshape(-1, batch_size, *images.shape[1:])
        parts.append(replica.predict_batches(batches))
    if whole < len(images) or not parts:
        parts.append(replica.predict(images[whole:]))
    return np.concatenate([part.numpy() for part in parts])


def choose_engine(model: keras.Model) -> str:
    """Return the faster engine: "graph" for convolutions on a CPU, "xla" otherwise.

    XLA's convolutions on a CPU are an order of magnitude slower than the plain graph's
    (github.com/jax-ml/jax/issues/12868).
    """
    convolves = any("conv" in type(layer).__name__.lower() for layer in model._flatten_layers())
    return "graph" if convolves and not tf.config.list_physical_devices("GPU") else "xla"


class SmoothedCrossentropy(keras.losses.Loss):
    """Cross-entropy of integer labels whose mass is partly spread over all classes."""

    def __init__(self, label_smoothing: float) -> None:
        super().__init__(name="smoothed_crossentropy")
        self.label_smoothing = label_smoothing

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Return the loss of each image, (n,), from labels (n,) and probabilities (n, classes)."""
        return keras.losses.categorical_crossentropy(
            tf.one_hot(tf.cast(y_true, tf.int32), y_pred.shape[-1]),
            y_pred,
            label_smoothing=self.label_smoothing,
        )

    def get_config(self) -> dict[str, float]:
        """Return the arguments to build it again."""
        return {"label_smoothing": self.label_smoothing}


class _Listeners:
    """Keras callbacks around a loop that knows only epochs."""

    def __init__(
        self,
        callbacks: Sequence[keras.callbacks.Callback],
        model: keras.Model,
        optimizer: keras.Optimizer,
        epochs: int,
    ) -> None:
        self.callbacks = callbacks
        self.model = model
        self.optimizer = optimizer
        self.epochs = epochs
        self.finished = False

    def __enter__(self) -> None:
        self.model.stop_training = False
        if self.callbacks:
            # Where callbacks such as ReduceLROnPlateau look for it.
            self.model.optimizer = self.optimizer
        for callback in self.callbacks:
            callback.set_params({"epochs": self.epochs, "verbose": 0})
            callback.set_model(self.model)
            callback.on_train_begin()

    def __exit__(self, *_: object) -> None:
        self.finish()
        if self.callbacks:
            self.model.optimizer = None

    def begin(self, number: int) -> None:
        for callback in self.callbacks:
            callback.on_epoch_begin(number - 1)

    def end(self, epoch: Epoch) -> bool:
        logs = {
            "loss": epoch.loss,
            "accuracy": epoch.accuracy,
            "learning_rate": epoch.learning_rate,
        }
        if epoch.validation:
            logs |= {"val_loss": epoch.validation.loss, "val_accuracy": epoch.validation.accuracy}
        for callback in self.callbacks:
            callback.on_epoch_end(epoch.number - 1, logs)
        return self.model.stop_training or epoch.number == self.epochs

    def finish(self) -> None:
        if not self.finished:
            self.finished = True
            for callback in self.callbacks:
                callback.on_train_end()


class _Replica:
    """A private copy of an architecture, compiled once and lent to every model that has it."""

    def __init__(self, model: keras.Model) -> None:
        self.model = keras.models.clone_model(model)
        self.programs: dict[Hashable, _Program] = {}
        self.predict = tf.function(
            lambda images: self.model(images, training=False),
            input_signature=[tf.TensorSpec(model.inputs[0].shape, model.inputs[0].dtype)],
            autograph=False,
        )
        self.predict_batches = tf.function(
            self._predict_batches,
            input_signature=[tf.TensorSpec((None, *model.inputs[0].shape), model.inputs[0].dtype)],
            autograph=False,
        )

    def _predict_batches(self, batches: tf.Tensor) -> tf.Tensor:
        """Return probabilities (n * size, classes) of images (n, size, ...), batch by batch."""
        output = self.model.outputs[0]
        rows = tf.map_fn(
            lambda images: self.model(images, training=False),
            batches,
            fn_output_signature=tf.TensorSpec(output.shape, output.dtype),
        )
        return tf.reshape(rows, (-1, *output.shape[1:]))

    def load(self, model: keras.Model) -> None:
        _copy(model.variables, self.model.variables)


class _Program:
    """A replica, an optimizer and the compiled steps that join them."""

    def __init__(self, replica: _Replica, optimizer: keras.Optimizer, recipe: Recipe) -> None:
        self.model = replica.model
        self.recipe = recipe
        # The rate is fed step by step, so that neither it nor a schedule is compiled in.
        settings = {**optimizer.get_config(), "learning_rate": 0.0}
        self.optimizer = type(optimizer).from_config(settings)
        _undistribute(self.optimizer)
        self.optimizer.build(self.model.trainable_variables)
        self.loss = _loss(recipe)
        self.xla = _engine(self.model, recipe) == "xla"
        self._compile()

    def load(self, model: keras.Model, optimizer: keras.Optimizer) -> None:
        """Take over the state of the caller's model and optimizer."""
        optimizer.build(model.trainable_variables)
        _swap_averages(model, optimizer)
        _copy(model.variables, self.model.variables)
        _copy(_state(optimizer), _state(self.optimizer))

    def store(self, model: keras.Model, optimizer: keras.Optimizer) -> None:
        """Hand the state back."""
        _copy(self.model.variables, model.variables)
        _copy(_state(self.optimizer), _state(optimizer))
        _swap_averages(model, optimizer)

    def run(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        rates: np.ndarray,
        seed: int,
        report: Callable[[int], None] | None,
    ) -> tuple[float, float]:
        """Train once on images in their order; return the sum of losses and the number correct.

        The epoch is run in slices, for a live display. The sums are carried from slice to slice,
        so that slicing changes no bit.
        """
        sums, seen, length = _NOTHING, 0, FIRST_SLICE
        for batches in _batches(images, labels, rates, self.recipe.batch_size):
            steps, size = batches[1].shape
            done = 0
            while done < steps:
                started = time.perf_counter()
                stop = min(steps, done + length)
                sums = self.steps(*batches, *_span(seed, done, stop), *sums)
                # Waits for the slice, which otherwise goes on in the background.
                sums[0].numpy()
                speed = (stop - done) / (time.perf_counter() - started)
                length = max(1, int(speed * SLICE_SECONDS))
                seen += (stop - done) * size
                done = stop
                if report:
                    report(seen)
        return float(sums[0]), float(sums[1])

    def steps(self, *arguments: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Take some steps, compiled on the first call; see `_steps`."""
        try:
            return self._compiled(*arguments)
        except (tf.errors.OutOfRangeError, tf.errors.DataLossError, tf.errors.InvalidArgumentError):
            # A program that XLA kept may be cut short, by a kill or a full disk, and would now fail
            # for ever. It is read before the first step, so nothing has been trained yet.
            if not (self.xla and backend.forget_compiled_programs()):
                raise
            self._compile()
            return self._compiled(*arguments)

    def _compile(self) -> None:
        # Autograph parses source, and Python 3.11 fails at that when another thread parses as well
        # (github.com/python/cpython/issues/106905): an import that goes on meanwhile, say.
        self._compiled = tf.function(self._steps, jit_compile=self.xla, autograph=False)

    @backend.brief_origins()
    def _steps(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        rates: tf.Tensor,
        seed: tf.Tensor,
        start: tf.Tensor,
        stop: tf.Tensor,
        loss_sum: tf.Tensor,
        hits: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        size = labels.shape[1]

        def taken(
            step: tf.Tensor, loss_sum: tf.Tensor, hits: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            x, y = tf.gather(images, step), tf.gather(labels, step)
            if self.recipe.augmentation is not None:
                draw = tf.stack([seed, tf.cast(self.optimizer.iterations.value, tf.int32)])
                x = self.recipe.augmentation(x, draw)
            self.optimizer.learning_rate.assign(tf.gather(rates, step))
            with tf.GradientTape() as tape:
                probabilities = self.model(x, training=True)
                loss = tf.add_n([self.loss(y, probabilities), *self.model.losses])
            variables = self.model.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            right = tf.equal(tf.argmax(probabilities, axis=-1, output_type=tf.int32), y)
            return (
                step + 1,
                loss_sum + size * loss,
                hits + tf.reduce_sum(tf.cast(right, tf.float32)),
            )

        # A range or a slice here would make XLA compile again for each start and stop.
        _, loss_sum, hits = tf.while_loop(
            lambda step, *_: step < stop, taken, (start, loss_sum, hits)
        )
        return loss_sum, hits


# The sums of an epoch's losses and hits before its first step.
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


def _rates(optimizer: keras.Optimizer, steps: int) -> np.ndarray:
    """Return the learning rate of each of the next steps, float32 (steps,)."""
    schedule = optimizer._learning_rate
    if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        return np.full(steps, float(optimizer.learning_rate), np.float32)
    first = int(optimizer.iterations.numpy())

    @partial(tf.function, autograph=False)
    def evaluate(positions: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(
            lambda position: tf.cast(schedule(position), tf.float32),
            positions,
            fn_output_signature=tf.float32,
        )

    return evaluate(tf.range(first, first + steps)).numpy()


def _loss(recipe: Recipe) -> keras.losses.Loss:
    if recipe.loss is not None:
        return recipe.loss
    if recipe.label_smoothing:
        return SmoothedCrossentropy(recipe.label_smoothing)
    return keras.losses.SparseCategoricalCrossentropy()


def _engine(model: keras.Model, recipe: Recipe) -> str:
    return choose_engine(model) if recipe.engine == "auto" else recipe.engine


_replicas: OrderedDict[Hashable, _Replica] = OrderedDict()


def _replica(model: keras.Model) -> _Replica:
    """Return the compiled replica of a model's architecture, made now or kept from before."""
    try:
        # The classes count, too: a notebook may define a layer of the same name anew.
        key = (model.to_json(), *(type(layer) for layer in model._flatten_layers()))
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
        # It is full of reference cycles, and big.
        gc.collect()
    return _replicas[key]


def _program(model: keras.Model, optimizer: keras.Optimizer, recipe: Recipe) -> _Program:
    """Return the compiled program of an architecture, optimizer and recipe."""
    replica = _replica(model)
    settings = optimizer.get_config()
    # The rate is state, and the name counts up; neither is part of the program.
    del settings["learning_rate"], settings["name"]
    loss = _loss(recipe)
    key = (
        type(optimizer),
        json.dumps(settings, sort_keys=True, default=str),
        type(loss),
        json.dumps(loss.get_config(), sort_keys=True, default=str),
        _engine(model, recipe),
        recipe.batch_size,
        recipe.augmentation,
    )
    if key not in replica.programs:
        replica.programs[key] = _Program(replica, optimizer, recipe)
    return replica.programs[key]


def _state(optimizer: keras.Optimizer) -> list[keras.Variable]:
    """Return what an optimizer remembers; its rate, if a variable, is no memory of training."""
    return [variable for variable in optimizer.variables if variable.name != "learning_rate"]


def _undistribute(optimizer: keras.Optimizer) -> None:
    """Have an optimizer update variables directly, without TensorFlow's distribution strategies.

    They keep every graph alive that was ever traced through them, 4 MB for each architecture.
    """
    base = BaseOptimizer
    for method in (
        base._backend_update_step,
        base._apply_weight_decay,
        base._overwrite_model_variables_with_average_value,
        base._backend_increment_gradient_accumulators,
    ):
        setattr(optimizer, method.__name__, MethodType(method, optimizer))


def _swap_averages(model: keras.Model, optimizer: keras.Optimizer) -> None:
    """Exchange the model's weights and the optimizer's averages of them, once there are any.

    Done before and after each epoch, it keeps the averages in the model in between.
    """
    if not optimizer.use_ema or int(optimizer.iterations.numpy()) == 0:
        return
    averages = optimizer._model_variables_moving_average
    for weight, average in zip(model.trainable_variables, averages, strict=True):
        raw = weight.numpy()
        weight.assign(average)
        average.assign(raw)


def _copy(source: list[keras.Variable], target: list[keras.Variable]) -> None:
    for old, new in zip(target, source, strict=True):
        # Past Keras, whose conversions take ten times as long as the copy.
        old.value.assign(new.value, read_value=False)
