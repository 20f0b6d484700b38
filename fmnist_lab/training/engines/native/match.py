"""The trainings that this engine can do, told from model, optimizer and recipe."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import tensorflow as tf

from fmnist_lab import compat
from fmnist_lab.training.engines.recipe import Recipe

OPTIMIZERS = (keras.optimizers.Adam, keras.optimizers.AdamW, keras.optimizers.SGD)
# The number of a pooling window's pixel is kept in a byte.
LARGEST_POOL = 15


def suitable(model: keras.Model, optimizer: keras.Optimizer, recipe: Recipe) -> Network:
    """Return the parts of a model.

    Raises:
        Unsuitable: This engine cannot do the training.
    """
    if tf.config.list_physical_devices("GPU"):
        raise Unsuitable("received a machine with a GPU, which CUDA_VISIBLE_DEVICES= would hide")
    if recipe.loss is not None:
        raise Unsuitable("received a loss of its own")
    if recipe.augmentation is not None:
        raise Unsuitable("received augmentation")
    if type(optimizer) not in OPTIMIZERS:
        raise Unsuitable(f"received the optimizer {type(optimizer).__name__}")
    for option in (
        *("clipnorm", "clipvalue", "global_clipnorm", "use_ema", "amsgrad"),
        *("loss_scale_factor", "gradient_accumulation_steps"),
    ):
        if getattr(optimizer, option, None):
            raise Unsuitable(f"received an optimizer with {option}")
    if not all(compat.decays(optimizer, model.trainable_variables)):
        raise Unsuitable("received an optimizer with exclude_from_weight_decay")
    # The update of the zeros that fill up the panels is 0 / epsilon.
    if getattr(optimizer, "epsilon", 1.0) < 1e-30:
        raise Unsuitable(f"received an epsilon of {optimizer.epsilon:g}")
    return Network(model)


class Unsuitable(ValueError):
    """This engine cannot do a training; the message names the reason."""


@dataclass(frozen=True)
class Block:
    """A convolution, its ReLU and the pooling after them; pool 1: none.

    Height and width are those of its input, and of its output before the pooling.
    """

    layer: keras.layers.Conv2D
    height: int
    width: int
    pool: int


class Network:
    """A model as this engine sees it: a rescaling of bytes, convolutions, dense layers.

    Raises:
        Unsuitable: The model has anything else.
    """

    def __init__(self, model: keras.Model) -> None:
        _check_model(model)
        self._layers = list(model.layers)
        self._place = 0
        # A layer may have been called before, on another shape than here.
        self._shape = tuple(model.inputs[0].shape)
        self.rescaling = self._take_rescaling()
        if self._next_is(keras.layers.Reshape):
            self._take(keras.layers.Reshape)
        self.image_shape = self._shape[1:]
        self.blocks: list[Block] = []
        while self._next_is(keras.layers.Conv2D):
            self.blocks.append(self._take_block())
        self._take(keras.layers.Flatten)
        self.bf16 = bool(self.blocks) and self.rescaling.compute_dtype == "bfloat16"
        self.dense = self._take_dense()
        for layer in model.layers:
            expected = "bfloat16" if self.bf16 and layer not in self.dense else "float32"
            if (layer.compute_dtype, layer.variable_dtype) != (expected, "float32"):
                raise Unsuitable(f"received the layer {layer.name} in {layer.dtype_policy.name}")

    def _next_is(self, kind: type[keras.Layer]) -> bool:
        return self._place < len(self._layers) and type(self._layers[self._place]) is kind

    def _take(self, kind: type[keras.Layer]) -> keras.Layer:
        """Return the next layer, which must be of a kind."""
        if self._place == len(self._layers):
            raise Unsuitable(f"received a model that ends without a {kind.__name__}")
        layer = self._layers[self._place]
        self._place += 1
        if type(layer) is not kind:
            raise Unsuitable(
                f"received {layer.name} ({type(layer).__name__}) as layer {self._place}, "
                f"not {kind.__name__}"
            )
        self._shape = layer.compute_output_shape(self._shape)
        return layer

    def _take_rescaling(self) -> keras.layers.Rescaling:
        layer = self._take(keras.layers.Rescaling)
        if not all(isinstance(n, int | float) for n in (layer.scale, layer.offset)):
            raise Unsuitable("received a Rescaling by other than two numbers")
        return layer

    def _take_dense(self) -> list[keras.layers.Dense]:
        """Return the rest of the layers, which must be dense, the last one with a softmax."""
        layers = []
        while self._place < len(self._layers):
            layers.append(self._take(keras.layers.Dense))
        if not layers:
            raise Unsuitable("received a model without a dense layer")
        for layer in layers:
            softmax = layer is layers[-1]
            expected = keras.activations.softmax if softmax else keras.activations.relu
            if layer.activation is not expected:
                raise Unsuitable(f"received the layer {layer.name} with another activation")
            _check_weights(layer)
        return layers

    def _take_block(self) -> Block:
        layer = self._take(keras.layers.Conv2D)
        _, height, width, _ = self._shape
        size, other = layer.kernel_size
        if size != other or size % 2 == 0:
            raise Unsuitable(f"received the layer {layer.name} with a kernel of {size}x{other}")
        options = {"padding": "same", "strides": (1, 1), "dilation_rate": (1, 1), "groups": 1}
        for option, expected in options.items():
            if (found := getattr(layer, option)) != expected:
                raise Unsuitable(f"received the layer {layer.name} with {option}={found}")
        activation = layer.activation
        if activation is keras.activations.linear:
            activation = self._take(keras.layers.Activation).activation
        if activation is not keras.activations.relu:
            raise Unsuitable(f"received the layer {layer.name} with another activation")
        _check_weights(layer)
        pool = 1
        if self._next_is(keras.layers.MaxPooling2D):
            pooling = self._take(keras.layers.MaxPooling2D)
            pool, other = pooling.pool_size
            if pool != other or pool > LARGEST_POOL:
                raise Unsuitable(
                    f"received the layer {pooling.name} with windows of {pool}x{other}"
                )
            if tuple(pooling.strides) != (pool, pool):
                raise Unsuitable(f"received the layer {pooling.name} with windows that overlap")
            if pooling.padding != "valid":
                raise Unsuitable(f"received the layer {pooling.name} with padding=same")
        return Block(layer, height, width, pool)


def _check_model(model: keras.Model) -> None:
    """Refuse a model that is not a sequence of layers on images of bytes, channels last."""
    if type(model) is not keras.Sequential or not model.built:
        raise Unsuitable(f"received a {type(model).__name__} model")
    if str(model.inputs[0].dtype) != "uint8":
        raise Unsuitable(f"received a model of {model.inputs[0].dtype} images")
    for layer in model.layers:
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            kind = type(layer).__name__
            raise Unsuitable(f"received a {kind} of {layer.data_format}")
        if layer.activity_regularizer is not None:
            raise Unsuitable(f"received the layer {layer.name} with activity_regularizer")


def _check_weights(layer: keras.Layer) -> None:
    """Refuse a layer whose weights are more, or are to be more, than a kernel and a bias."""
    if not layer.use_bias or len(layer.trainable_variables) != 2:
        raise Unsuitable(f"received the layer {layer.name} without a kernel and a bias to train")
    for option in (
        *("kernel_regularizer", "bias_regularizer", "kernel_constraint", "bias_constraint"),
        *("lora_enabled", "quantization_mode"),
    ):
        if getattr(layer, option, None):
            raise Unsuitable(f"received the layer {layer.name} with {option}")
