"""Private copies of models: each is compiled once, and lent to every model of its architecture."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from fmnist_lab import compat
from fmnist_lab.errors import UserError

if TYPE_CHECKING:
    from fmnist_lab.training.engines.graph import GraphTrainer

# The batch size of `model.predict`: on some processors a row's last bits depend on it.
PREDICTION_BATCH = 32
# The fastest batch size that also bounds a convolution's memory.
FAST_PREDICTION_BATCH = 5000
# Replicas that stay compiled: a sweep over seeds and rates needs one, one over widths a few.
REPLICAS_KEPT = 4


def predict(
    model: keras.Model, images: np.ndarray, batch_size: int = PREDICTION_BATCH
) -> np.ndarray:
    """Return a model's probabilities in inference mode.

    With the batch size left out, the bits are those of `model.predict(images)`. A larger one is
    faster, and on some processors differs in the last bits. The function is compiled once for each
    architecture.

    Args:
        model: A built Keras model.
        images: Shape (n, ...), as the model takes them.
        batch_size: Images per call of the model.

    Returns:
        Float32 (n, classes).
    """
    replica = replica_of(model)
    copy_variables(model.variables, replica.model.variables)
    whole = len(images) // batch_size * batch_size
    parts = []
    if whole:
        batches = images[:whole].reshape(-1, batch_size, *images.shape[1:])
        parts.append(replica.predict_batches(batches))
    if whole < len(images) or not parts:
        parts.append(replica.predict(images[whole:]))
    return np.concatenate([part.numpy() for part in parts])


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """Return a TensorFlow function, compiled on its first call.

    Args:
        function: The function to be traced.
        options: The options of `tf.function`.
    """
    # Autograph parses source, and Python 3.11 fails at that when another thread parses as well
    # (github.com/python/cpython/issues/106905), for example during an import.
    return compat.without_retracing_warning(tf.function(function, autograph=False, **options))


def copy_variables(source: list[keras.Variable], target: list[keras.Variable]) -> None:
    """Copy the values of variables into as many others of the same shapes."""
    for old, new in zip(target, source, strict=True):
        # Past Keras, whose conversions take ten times as long as the copy.
        old.value.assign(new.value, read_value=False)


class Replica:
    """A private copy of an architecture, compiled once.

    Attributes:
        model: The copy, whose weights are overwritten before each use.
        trainers: The trainers of this architecture that stay compiled, the last used at the end.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = keras.models.clone_model(model)
        self.trainers: OrderedDict[Hashable, GraphTrainer] = OrderedDict()
        self._missing_in_xla: dict[int, frozenset[str]] = {}
        image = model.inputs[0]
        self.predict = compiled(
            lambda images: self.model(images, training=False),
            input_signature=[tf.TensorSpec(image.shape, image.dtype)],
        )
        self.predict_batches = compiled(
            self._predict_batches,
            input_signature=[tf.TensorSpec((None, *image.shape), image.dtype)],
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

    def missing_in_xla(self, batch_size: int) -> frozenset[str]:
        """Return the operations of the model's training step that XLA cannot compile here.

        The operations of the loss, the optimizer and the augmentation are left out. For a model
        that cannot be traced the result is empty: compiling it will say why.
        """
        if batch_size not in self._missing_in_xla:
            try:
                missing = frozenset(filter(_xla_lacks, self._operations(batch_size)))
            except Exception:
                missing = frozenset()
            self._missing_in_xla[batch_size] = missing
        return self._missing_in_xla[batch_size]

    def _operations(self, batch_size: int) -> set[str]:
        """Return the names of the operations of the model's forward pass and gradient."""

        def step(images: tf.Tensor) -> Any:
            with tf.GradientTape() as tape:
                outputs = [self.model(images, training=True), *self.model.losses]
                total = tf.add_n([tf.reduce_sum(each) for each in outputs])
            return tape.gradient(total, self.model.trainable_variables)

        image = self.model.inputs[0]
        spec = tf.TensorSpec((batch_size, *image.shape[1:]), image.dtype)
        traced = tf.function(step, autograph=False).get_concrete_function(spec)
        graph = traced.graph.as_graph_def()
        nodes = [*graph.node, *(node for each in graph.library.function for node in each.node_def)]
        # The images come in by a placeholder here, and in another way when the model is trained.
        return {node.op for node in nodes} - {"Placeholder"}


def _xla_lacks(operation: str) -> bool:
    device = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    devices = compat.kernel_devices(operation)
    # Operations that only call others have no kernel at all.
    return device in devices and f"XLA_{device}_JIT" not in devices


_replicas: OrderedDict[Hashable, Replica] = OrderedDict()


def replica_of(model: keras.Model) -> Replica:
    """Return the compiled replica of a model's architecture, made now or kept from before.

    Raises:
        UserError: The model is not built, or it cannot be rebuilt from its config.
    """
    kind = type(model).__name__
    if not getattr(model, "inputs", None):
        raise UserError(
            f"the model {kind} has no inputs: it is not built yet, or a class of its own, which "
            "could neither be compiled once nor reloaded later; make it of layers, as "
            "keras.Sequential([keras.Input(…), …]) or keras.Model(inputs, outputs)"
        )
    try:
        # The classes count too: a notebook may define another layer under the same name.
        key = (model.to_json(), *map(type, compat.all_layers(model)))
    except (NotImplementedError, TypeError) as error:
        # Keras goes on with an example in Python.
        reason = " ".join(str(error).partition("Example:")[0].split())
        raise UserError(
            f"the model {kind} cannot be rebuilt from its config, so it could neither be compiled "
            f"once nor reloaded later: {reason} Give its layers get_config() and "
            "keras.saving.register_keras_serializable()"
        ) from error
    if key not in _replicas:
        _replicas[key] = Replica(model)
    _replicas.move_to_end(key)
    while len(_replicas) > REPLICAS_KEPT:
        _replicas.popitem(last=False)
        # It is full of reference cycles, and big.
        gc.collect()
    return _replicas[key]
