"""Whom the benchmark lets train: our engines, stock and tuned `fit`, a PyTorch loop, a JAX scan.

Each contender sets itself up and returns a function that trains one epoch, to its end. All train
the same networks, with Adam at Keras' defaults, on the same arrays held in memory.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fmnist_lab import data
from fmnist_lab.errors import UserError
from fmnist_lab.training import runtime

HIDDEN_UNITS = 128
FILTERS = (32, 64)


@dataclass(frozen=True)
class Case:
    """One network at one batch size and precision, and how many other processes are busy."""

    network: str
    batch_size: int
    precision: str = "float32"
    busy: int = 0

    @property
    def title(self) -> str:
        """Return its name as a person would say it."""
        beside = f", {self.busy} busy beside" if self.busy else ""
        return f"{self.network}, batch {self.batch_size}, {self.precision}{beside}"


# From a case, the images, uint8 (n, 28, 28), and their labels, uint8 (n,).
Contender = Callable[[Case, np.ndarray, np.ndarray], Callable[[], object]]


def ours(
    case: Case, images: np.ndarray, labels: np.ndarray, engine: str = "auto"
) -> Callable[[], object]:
    """Train with `training.train`."""
    from fmnist_lab.training import engines, loop

    model, optimizer = _keras_model(case.network, case.precision)
    recipe = engines.Recipe(batch_size=case.batch_size, engine=engine)
    epochs = loop.train(model, images, labels, optimizer, epochs=10**6, recipe=recipe)
    return lambda: next(epochs)


def fit(
    case: Case, images: np.ndarray, labels: np.ndarray, **compile_options: Any
) -> Callable[[], object]:
    """Train with `keras.Model.fit`, as the tutorial does unless told otherwise."""
    model, optimizer = _keras_model(case.network, case.precision)
    _compile(model, optimizer, **compile_options)
    return lambda: model.fit(images, labels, batch_size=case.batch_size, verbose=0)


def torch_loop(case: Case, images: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    """Train with a plain PyTorch loop over tensors in memory and fused Adam."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(runtime.usable_cores())
    pixels = torch.from_numpy(images.astype(np.float32) / 255)
    targets = torch.from_numpy(labels.astype(np.int64))
    if case.network == "mlp":
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(784, HIDDEN_UNITS), nn.ReLU(), nn.Linear(HIDDEN_UNITS, 10)
        )
    else:
        pixels = pixels[:, None]
        blocks = [
            (nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
            for inputs, outputs in ((1, FILTERS[0]), FILTERS)
        ]
        model = nn.Sequential(*blocks[0], *blocks[1], nn.Flatten(), nn.Linear(FILTERS[1] * 49, 10))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def epoch() -> None:
        for batch in torch.randperm(len(pixels)).split(case.batch_size):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bfloat16"):
                loss = nn.functional.cross_entropy(model(pixels[batch]), targets[batch])
            loss.backward()
            optimizer.step()

    return epoch


def jax_scan(
    case: Case, images: np.ndarray, labels: np.ndarray, rescale_inside: bool = False
) -> Callable[[], object]:
    """Train with `jax.lax.scan` over the batches of an epoch, compiled as one program.

    The images are rescaled beforehand, as is usual, or like ours inside the step.
    """
    import jax
    import jax.numpy as jnp

    if case.precision != "float32":
        raise UserError("the JAX contender trains in float32 only")
    rng = np.random.default_rng(0)
    shaped = images.reshape(len(images), -1) if case.network == "mlp" else images[..., None]
    pixels = jnp.asarray(shaped if rescale_inside else shaped.astype(np.float32) / 255)
    targets = jnp.asarray(labels.astype(np.int32))

    def loss(weights: Any, x: Any, y: Any) -> Any:
        x = x.astype(jnp.float32) / 255 if rescale_inside else x
        logits = _jax_logits(case.network, weights, x)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(y)), y].mean()

    def step(state: Any, batch: Any) -> Any:
        weights, first, second, count = state
        value, gradient = jax.value_and_grad(loss)(weights, pixels[batch], targets[batch])
        count += 1
        rate = 0.001 * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        first = jax.tree.map(lambda m, g: m + (g - m) * 0.1, first, gradient)
        second = jax.tree.map(lambda v, g: v + (g * g - v) * 0.001, second, gradient)
        weights = jax.tree.map(
            lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-7), weights, first, second
        )
        return (weights, first, second, count), value

    weights = _jax_weights(case.network, rng)
    zeros = jax.tree.map(jnp.zeros_like, weights)
    state = (weights, zeros, zeros, jnp.zeros(()))
    scan = jax.jit(lambda state, batches: jax.lax.scan(step, state, batches))

    def epoch() -> None:
        nonlocal state
        whole = len(images) // case.batch_size * case.batch_size
        order = rng.permutation(len(images)).astype(np.int32)[:whole]
        state, losses = scan(state, jnp.asarray(order.reshape(-1, case.batch_size)))
        losses.block_until_ready()

    return epoch


def _jax_weights(network: str, rng: np.random.Generator) -> Any:
    """Return the kernel and the bias of each layer, from Glorot's uniform distribution."""
    import jax.numpy as jnp

    shapes: tuple[tuple[int, ...], ...] = ((784, HIDDEN_UNITS), (HIDDEN_UNITS, 10))
    if network == "cnn":
        shapes = ((3, 3, 1, FILTERS[0]), (3, 3, *FILTERS), (FILTERS[1] * 49, 10))
    layers = []
    for shape in shapes:
        *window, inputs, outputs = shape
        bound = math.sqrt(6 / (math.prod(window) * (inputs + outputs)))
        kernel = rng.uniform(-bound, bound, shape).astype(np.float32)
        layers.append((jnp.asarray(kernel), jnp.zeros(outputs)))
    return layers


def _jax_logits(network: str, weights: Any, x: Any) -> Any:
    """Return the logits (n, 10) of images (n, 784), or for the "cnn" (n, 28, 28, 1)."""
    import jax
    import jax.numpy as jnp

    *before, (kernel, bias) = weights
    for weight, shift in before:
        if network == "mlp":
            x = jax.nn.relu(x @ weight + shift)
        else:
            axes = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=axes)
            window = (1, 2, 2, 1)
            x = jax.nn.relu(x + shift)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
    return x.reshape(len(x), -1) @ kernel + bias


def square_products(case: Case, images: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    """Do as many operations as an epoch's products have, in large square products alone."""
    import tensorflow as tf

    # Of this size, 12 of them are an epoch of the tutorial's network, to 0.2 %.
    size = 1008
    repeats = round(network_operations(len(images)) / (2 * size**3))
    square = tf.random.normal((size, size))
    # Each product feeds the next, so that none can be left out.
    return _repeated(lambda matrix: tf.matmul(matrix, square), square, repeats)


def own_products(case: Case, images: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    """Do an epoch's two largest products of each step: forward, and the weights' gradient."""
    import tensorflow as tf

    inputs = tf.random.normal((case.batch_size, 784))
    errors = tf.random.normal((case.batch_size, HIDDEN_UNITS))

    def products(weights: tf.Tensor) -> tf.Tensor:
        outputs = tf.matmul(inputs, weights)
        return tf.matmul(inputs, outputs + errors, transpose_a=True)

    first = tf.random.normal((784, HIDDEN_UNITS))
    return _repeated(products, first, len(images) // case.batch_size)


def _repeated(function: Callable[[Any], Any], value: Any, times: int) -> Callable[[], object]:
    """Return a call of a function on its own result, so many times, compiled by XLA."""
    import tensorflow as tf

    def loop(value: tf.Tensor, times: tf.Tensor) -> tf.Tensor:
        condition, body = lambda n, _: n < times, lambda n, each: (n + 1, function(each))
        return tf.while_loop(condition, body, (0, value))[1]

    compiled = tf.function(loop, jit_compile=True)
    return lambda: compiled(value, tf.constant(times)).numpy()


CONTENDERS: dict[str, Contender] = {
    "fmnist_lab": ours,
    "fmnist_lab, XLA": partial(ours, engine="xla"),
    "fmnist_lab, graph": partial(ours, engine="graph"),
    "fit": fit,
    "fit, 50 steps a call": partial(fit, steps_per_execution=50, jit_compile=False),
    "fit, 50 steps, XLA": partial(fit, steps_per_execution=50, jit_compile=True),
    "fit, one call, XLA": partial(fit, steps_per_execution=1875, jit_compile=True),
    "PyTorch loop": torch_loop,
    "JAX scan": jax_scan,
    "JAX scan, uint8 images": partial(jax_scan, rescale_inside=True),
}
# As many operations as an epoch of the tutorial's network has, without all the rest.
PRODUCTS: dict[str, Contender] = {
    "square products alone": square_products,
    "own products alone": own_products,
}
# XLA's convolutions on a CPU take minutes per epoch, so only these race, and one if asked for.
WITH_CONVOLUTIONS = (
    "fmnist_lab",
    "fmnist_lab, graph",
    "fit",
    "fit, 50 steps a call",
    "PyTorch loop",
)
SLOW_WITH_CONVOLUTIONS = "JAX scan"


def tutorial() -> None:
    """Do what the tutorial does, as a plain script without tracking: train, evaluate, predict."""
    import keras

    dataset = data.load()
    model = _tutorials_model(HIDDEN_UNITS)
    _compile(model, "adam")
    model.fit(dataset.train_images / 255.0, dataset.train_labels, epochs=5)
    print(model.evaluate(dataset.test_images / 255.0, dataset.test_labels, verbose=2))
    print(model.predict(dataset.test_images / 255.0)[0], keras.__version__)


def logged_fit(jobs: str) -> None:
    """Train jobs with stock `fit` and log each to MLflow, as a script would; print their seconds.

    Args:
        jobs: JSON, a list of (hidden units, epochs).
    """
    import mlflow
    import mlflow.tensorflow

    dataset = data.load()
    took = []
    for width, epochs in json.loads(jobs):
        began = time.perf_counter()
        with mlflow.start_run():
            model = _tutorials_model(width)
            _compile(model, "adam")
            history = model.fit(
                *(dataset.train_images / 255.0, dataset.train_labels),
                validation_data=(dataset.test_images / 255.0, dataset.test_labels),
                epochs=epochs,
                verbose=0,
            )
            mlflow.log_params({"hidden_units": width, "epochs": epochs})
            for step in range(epochs):
                values = {name: each[step] for name, each in history.history.items()}
                mlflow.log_metrics(values, step=step)
            mlflow.tensorflow.log_model(model, name="model")
        took.append(time.perf_counter() - began)
    print(json.dumps(took))


def network_operations(images: int) -> float:
    """Return the floating-point operations in the products of an epoch of the tutorial's network.

    They are the forward product and the weight gradient of both layers, and the second layer's
    input gradient; the images need no gradient.
    """
    return 2.0 * images * (2 * 784 * HIDDEN_UNITS + 3 * HIDDEN_UNITS * 10)


def _keras_model(network: str, precision: str) -> tuple[Any, Any]:
    import keras

    from fmnist_lab import models

    keras.utils.set_random_seed(0)
    if precision == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    if network == "cnn":
        model = models.cnn((28, 28), 10, filters=FILTERS)
    else:
        model = models.mlp((28, 28), 10, hidden_units=HIDDEN_UNITS)
    keras.config.set_dtype_policy("float32")
    return model, keras.optimizers.Adam()


def _tutorials_model(width: int) -> Any:
    """Return the tutorial's network, which takes floats from 0 to 1."""
    import keras

    return keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.Dense(width, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


def _compile(model: Any, optimizer: Any, **options: Any) -> None:
    loss = "sparse_categorical_crossentropy"
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"], **options)
