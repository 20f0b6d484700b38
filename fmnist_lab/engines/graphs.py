"""The engines `xla` and `graph`: a whole epoch inside one compiled TensorFlow function."""

from __future__ import annotations

import gc
import inspect
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.tensorflow.optimizer import TFOptimizer
from keras.src.optimizers.base_optimizer import BaseOptimizer
from tensorflow.python.framework.kernels import get_registered_kernels_for_op

from fmnist_lab import backend
from fmnist_lab.engines.recipe import Recipe, slices
from fmnist_lab.errors import UserError

# That of `model.predict`: on some processors a row's last bits depend on the size of its batch.
PREDICTION_BATCH = 32
# The fastest that also bounds a convolution's memory.
FAST_PREDICTION_BATCH = 5000
# Replicas that stay compiled: a sweep over seeds and rates needs one, one over widths a few.
REPLICAS_KEPT = 4
# Programs of each, which differ in what is compiled in, such as momentum or weight decay.
PROGRAMS_KEPT = 8


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


class _Replica:
    """A private copy of an architecture, compiled once and lent to every model that has it."""

    def __init__(self, model: keras.Model) -> None:
        self.model = keras.models.clone_model(model)
        self.programs: OrderedDict[Hashable, Program] = OrderedDict()
        self.lacks: dict[int, frozenset[str]] = {}
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

    def xla_lacks(self, batch_size: int) -> frozenset[str]:
        """Return the operations of a step that XLA cannot compile for this device.

        Those of the loss, the optimizer and the augmentation are left out, and all of a model that
        cannot be traced, which compiling it will say.
        """
        if batch_size not in self.lacks:
            try:
                self.lacks[batch_size] = self._xla_lacks(batch_size)
            except Exception:
                self.lacks[batch_size] = frozenset()
        return self.lacks[batch_size]

    def _xla_lacks(self, batch_size: int) -> frozenset[str]:
        def step(images: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                outputs = [self.model(images, training=True), *self.model.losses]
                total = tf.add_n([tf.reduce_sum(each) for each in outputs])
            return tape.gradient(total, self.model.trainable_variables)

        image = self.model.inputs[0]
        spec = tf.TensorSpec((batch_size, *image.shape[1:]), image.dtype)
        traced = tf.function(step, autograph=False).get_concrete_function(spec)
        definition = traced.graph.as_graph_def()
        nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
        device = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"

        def lacks(operation: str) -> bool:
            kernels = get_registered_kernels_for_op(operation).kernel
            devices = {kernel.device_type for kernel in kernels}
            # Operations that only call others have a kernel nowhere.
            return device in devices and f"XLA_{device}_JIT" not in devices

        # The images are put in one way or the other.
        return frozenset(filter(lacks, {node.op for node in nodes} - {"Placeholder"}))


class Program:
    """A replica, an optimizer and the compiled steps that join them."""

    def __init__(
        self,
        replica: _Replica,
        optimizer: keras.Optimizer,
        recipe: Recipe,
        decays: tuple[bool, ...],
    ) -> None:
        """Join them.

        Args:
            replica: The model.
            optimizer: What to make another one like.
            recipe: How to take a step, the engine decided.
            decays: Whether each of the model's trainable variables is to decay.
        """
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
        _copy(model.variables, self.model.variables)
        _copy(_state(optimizer), _state(self.optimizer))
        _swap_averages(self.model, self.optimizer)

    def store(self, model: keras.Model, optimizer: keras.Optimizer) -> None:
        """Hand the state back."""
        _swap_averages(self.model, self.optimizer)
        _copy(self.model.variables, model.variables)
        _copy(_state(self.optimizer), _state(optimizer))

    def hold(self, images: np.ndarray, labels: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the training images and labels as `run` wants them."""
        return tf.constant(images), tf.constant(labels, tf.int32)

    def compile(self, images: tf.Tensor, labels: tf.Tensor, rates: np.ndarray) -> None:
        """Compile what `run` will need, without training a step."""
        for batches in _batches(images, labels, rates, self.recipe.batch_size):
            self.steps(*batches, *_span(0, 0, 0), *_NOTHING)

    def run(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        order: np.ndarray,
        rates: np.ndarray,
        seed: int,
        report: Callable[[int], None] | None,
    ) -> tuple[float, float]:
        """Train once on the images in an order; return the sum of losses and the number correct.

        The epoch is run in slices, for a live display. The sums are carried from slice to slice,
        so that slicing changes no bit.
        """
        shuffled = tf.gather(images, order), tf.gather(labels, order)
        sums, seen = _NOTHING, 0
        for batches in _batches(*shuffled, rates, self.recipe.batch_size):
            steps, size = batches[1].shape
            for start, stop in slices(steps):
                sums = self.steps(*batches, *_span(seed, start, stop), *sums)
                # Waits for the slice, which otherwise goes on in the background.
                sums[0].numpy()
                seen += (stop - start) * size
                if report:
                    report(seen)
        return float(sums[0]), float(sums[1])

    def steps(self, *arguments: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Take some steps, compiled on the first call; see `_steps`."""
        try:
            return self._compiled(*arguments)
        except (
            tf.errors.OutOfRangeError,
            tf.errors.DataLossError,
            tf.errors.InvalidArgumentError,
            tf.errors.UnimplementedError,
        ) as error:
            reason = " ".join(str(error).split())
            if self.xla and re.search("unsupported operations|tf2xla conversion failed", reason):
                raise UserError(
                    f"engine xla cannot compile this training: {reason[:300]} …; use graph "
                    "(trainer.engine=graph)"
                ) from error
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

        def take(
            step: tf.Tensor, loss_sum: tf.Tensor, hits: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            x, y = tf.gather(images, step), tf.gather(labels, step)
            if self.recipe.augmentation is not None:
                # Of batches; the public `iterations` counts updates, which may accumulate several.
                taken = self.optimizer._iterations.value
                draw = tf.stack([seed, tf.cast(taken, tf.int32)])
                x = self.recipe.augmentation(x, draw)
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
                hits + tf.reduce_sum(tf.cast(right, tf.float32)),
            )

        # A range or a slice here would make XLA compile again for each start and stop.
        _, loss_sum, hits = tf.while_loop(
            lambda step, *_: step < stop, take, (start, loss_sum, hits)
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


_replicas: OrderedDict[Hashable, _Replica] = OrderedDict()


def _replica(model: keras.Model) -> _Replica:
    """Return the compiled replica of a model's architecture, made now or kept from before."""
    kind = type(model).__name__
    if not getattr(model, "inputs", None):
        raise UserError(
            f"the model {kind} has no inputs: it is not built yet, or a class of its own, which "
            "could neither be compiled once nor reloaded later; make it of layers, as "
            "keras.Sequential([keras.Input(…), …]) or keras.Model(inputs, outputs)"
        )
    try:
        # The classes count, too: a notebook may define a layer of the same name anew.
        key = (model.to_json(), *(type(layer) for layer in model._flatten_layers()))
    except (NotImplementedError, TypeError) as error:
        # Keras goes on with an example in Python.
        reason = " ".join(str(error).partition("Example:")[0].split())
        raise UserError(
            f"the model {kind} cannot be rebuilt from its config, so it could neither be compiled "
            f"once nor reloaded later: {reason} Give its layers get_config() and "
            "keras.saving.register_keras_serializable()"
        ) from error
    if key not in _replicas:
        _replicas[key] = _Replica(model)
    _replicas.move_to_end(key)
    while len(_replicas) > REPLICAS_KEPT:
        _replicas.popitem(last=False)
        # It is full of reference cycles, and big.
        gc.collect()
    return _replicas[key]


def program(model: keras.Model, optimizer: keras.Optimizer, recipe: Recipe) -> Program:
    """Return the compiled program of an architecture, optimizer and recipe, made once.

    Raises:
        UserError: The model or the optimizer cannot be rebuilt from its config.
    """
    replica = _replica(model)
    settings = optimizer.get_config()
    if "learning_rate" not in settings:
        raise UserError(
            f"the optimizer {type(optimizer).__name__} has no learning rate of its own, as it acts "
            "through others; give one of those (loss_scale_factor scales its losses)"
        )
    # The rate is state, and the name counts up; neither is part of the program.
    del settings["learning_rate"], settings["name"]
    decays = tuple(map(optimizer._use_weight_decay, model.trainable_variables))
    key = (
        type(optimizer),
        json.dumps(settings, sort_keys=True, default=str),
        decays,
        _key(recipe.loss_function()),
        recipe.engine,
        recipe.batch_size,
        recipe.augmentation,
    )
    if key not in replica.programs:
        replica.programs[key] = Program(replica, optimizer, recipe, decays)
    replica.programs.move_to_end(key)
    while len(replica.programs) > PROGRAMS_KEPT:
        replica.programs.popitem(last=False)
    return replica.programs[key]


PLAIN = (bool, int, float, str, type(None))


def _key(loss: keras.losses.Loss) -> Hashable:
    """Return what tells a loss from others, of which its config may leave out a part."""
    settings = loss.get_config()
    # It counts up.
    settings.pop("name", None)
    common = vars(keras.losses.Loss())
    own = [(name, _told(each)) for name, each in vars(loss).items() if name not in common]
    return type(loss), json.dumps(settings, sort_keys=True, default=str), tuple(own)


def _told(value: object) -> Hashable:
    """Return a plain value by what it is, and anything else by which one it is."""
    if isinstance(value, dict):
        return tuple((_told(key), _told(each)) for key, each in value.items())
    return value if isinstance(value, PLAIN) else _Same(value)


class _Same:
    """Something that equals nothing but itself, be it an array or a function."""

    def __init__(self, it: object) -> None:
        self.it = it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.it is self.it

    def __hash__(self) -> int:
        return id(self.it)


def xla_lacks(model: keras.Model, batch_size: int) -> frozenset[str]:
    """Return the operations of a model's steps that XLA cannot compile for this device."""
    return _replica(model).xla_lacks(batch_size)


def _state(optimizer: keras.Optimizer) -> list[keras.Variable]:
    """Return what an optimizer remembers; its rate, if a variable, is no memory of training."""
    return [variable for variable in optimizer.variables if variable.name != "learning_rate"]


class _Undistributed(TFOptimizer):
    """Updates variables directly, without TensorFlow's distribution strategies.

    They keep every graph alive that was ever traced through them, 4 MB for each architecture.
    """

    _backend_update_step = BaseOptimizer._backend_update_step
    _apply_weight_decay = BaseOptimizer._apply_weight_decay
    _overwrite_model_variables_with_average_value = (
        BaseOptimizer._overwrite_model_variables_with_average_value
    )
    _backend_increment_gradient_accumulators = (
        BaseOptimizer._backend_increment_gradient_accumulators
    )


def _like(optimizer: keras.Optimizer) -> keras.Optimizer:
    """Return another optimizer of the same settings, whose rate is fed to it step by step.

    So neither the rate nor a schedule is compiled in.

    Raises:
        UserError: It cannot be rebuilt from its config.
    """
    kind = type(optimizer)
    # What the optimizer's own class overrides comes first, and then what it overrides.
    undistributed: Any = type(kind.__name__, (kind, _Undistributed), {})
    settings = optimizer.get_config()
    if lost := _lost(optimizer, settings):
        raise UserError(
            f"the optimizer {kind.__name__} cannot be rebuilt from its config, which leaves out "
            f"{', '.join(lost)}; have its get_config() return all arguments"
        )
    return undistributed.from_config({**settings, "learning_rate": 0.0})


def _lost(optimizer: keras.Optimizer, settings: dict[str, Any]) -> list[str]:
    """Return the arguments of an optimizer that another one of the same config would not have."""
    rate = optimizer._learning_rate
    if isinstance(rate, keras.Variable):
        rate = float(rate.numpy())
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
    if not optimizer.use_ema or int(optimizer._iterations.numpy()) == 0:
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
