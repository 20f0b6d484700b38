"""Who the benchmark lets train: our engine, stock and tuned `fit`, a PyTorch loop, a JAX scan.

Each contender sets itself up and returns a function that trains one epoch, to its end. All train
the same networks, with Adam at Keras' defaults, on the same arrays held in memory.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fmnist_lab import backend, data
from fmnist_lab.errors import UserError

EpochFunction = Callable[[], None]

HIDDEN_UNITS = 128
FILTERS = (32, 64)


def ours(
    network: str,
    batch_size: int,
    images: np.ndarray,
    labels: np.ndarray,
    precision: str,
    *,
    engine: str = "auto",
) -> EpochFunction:
    """Train with `training.train`."""
    from fmnist_lab import engines, training

    model, optimizer = _keras_model(network, precision)
    epochs: Iterator[training.Epoch] = training.train(
        model,
        images,
        labels,
        optimizer,
        epochs=10**6,
        recipe=engines.Recipe(batch_size=batch_size, engine=engine),
    )
    return lambda: _drop(next(epochs))


def fit(
    network: str,
    batch_size: int,
    images: np.ndarray,
    labels: np.ndarray,
    precision: str,
    **compile_options: Any,
) -> EpochFunction:
    """Train with `keras.Model.fit`, as the tutorial does unless told otherwise."""
    model, optimizer = _keras_model(network, precision)
    model.compile(
        optimizer=optimizer,
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        **compile_options,
    )
    return lambda: _drop(model.fit(images, labels, batch_size=batch_size, verbose=0))


def torch_loop(
    network: str, batch_size: int, images: np.ndarray, labels: np.ndarray, precision: str
) -> EpochFunction:
    """Train with a plain PyTorch loop over tensors in memory and fused Adam."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(_threads())
    pixels = torch.from_numpy(images.astype(np.float32) / 255)
    targets = torch.from_numpy(labels.astype(np.int64))
    if network == "mlp":
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(784, HIDDEN_UNITS), nn.ReLU(), nn.Linear(HIDDEN_UNITS, 10)
        )
    else:
        pixels = pixels[:, None]
        model = nn.Sequential(
            nn.Conv2d(1, FILTERS[0], 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(FILTERS[0], FILTERS[1], 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(FILTERS[1] * 49, 10),
        )
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def epoch() -> None:
        for batch in torch.randperm(len(pixels)).split(batch_size):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                loss = nn.functional.cross_entropy(model(pixels[batch]), targets[batch])
            loss.backward()
            optimizer.step()

    return epoch


def jax_scan(
    network: str,
    batch_size: int,
    images: np.ndarray,
    labels: np.ndarray,
    precision: str,
    *,
    rescale_inside: bool = False,
) -> EpochFunction:
    """Train with `jax.lax.scan` over the batches of an epoch, compiled as one program.

    The images are rescaled beforehand, as is usual, or like ours inside the step.
    """
    import jax
    import jax.numpy as jnp

    if precision != "float32":
        raise UserError("the JAX contender trains in float32 only")
    rng = np.random.default_rng(0)

    def layer(*shape: int) -> tuple[Any, Any]:
        *window, inputs, outputs = shape
        bound = math.sqrt(6 / (math.prod(window) * (inputs + outputs)))
        weights = rng.uniform(-bound, bound, shape).astype(np.float32)
        return jnp.asarray(weights), jnp.zeros(outputs)

    shaped = images.reshape(len(images), -1)
    weights: tuple[tuple[Any, Any], ...] = (layer(784, HIDDEN_UNITS), layer(HIDDEN_UNITS, 10))
    if network == "cnn":
        shaped = images[..., None]
        weights = (layer(3, 3, 1, FILTERS[0]), layer(3, 3, *FILTERS), layer(FILTERS[1] * 49, 10))
    zeros = jax.tree.map(jnp.zeros_like, weights)
    state = (weights, zeros, zeros, jnp.zeros(()))
    pixels = jnp.asarray(shaped if rescale_inside else shaped.astype(np.float32) / 255)
    targets = jnp.asarray(labels.astype(np.int32))

    def hidden(kernel: Any, bias: Any, x: Any) -> Any:
        if network == "mlp":
            return jax.nn.relu(x @ kernel + bias)
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        window = (1, 2, 2, 1)
        x = jax.nn.relu(x + bias)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")

    def loss(weights: Any, x: Any, y: Any) -> Any:
        x = x.astype(jnp.float32) / 255 if rescale_inside else x
        *before, (kernel, bias) = weights
        for weight, shift in before:
            x = hidden(weight, shift, x)
        logits = x.reshape(len(y), -1) @ kernel + bias
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

    scan = jax.jit(lambda state, batches: jax.lax.scan(step, state, batches))

    def epoch() -> None:
        nonlocal state
        whole = len(images) // batch_size * batch_size
        order = rng.permutation(len(images)).astype(np.int32)[:whole]
        state, losses = scan(state, jnp.asarray(order.reshape(-1, batch_size)))
        losses.block_until_ready()

    return epoch


def square_products(
    network: str, batch_size: int, images: np.ndarray, labels: np.ndarray, precision: str
) -> EpochFunction:
    """Do as many operations as an epoch's products have, in large square products alone."""
    import tensorflow as tf

    # Of this size, 12 of them are an epoch of the tutorial's network, to 0.2 %.
    size = 1008
    repeats = round(network_operations(len(images)) / (2 * size**3))
    square = tf.random.normal((size, size))

    @tf.function(jit_compile=True)
    def epoch(repeats: tf.Tensor) -> tf.Tensor:
        count, matrix = 0, square
        while count < repeats:
            # Each product feeds the next, so that none can be left out.
            matrix = tf.matmul(matrix, square)
            count += 1
        return matrix

    return lambda: _drop(epoch(tf.constant(repeats)).numpy())


def own_products(
    network: str, batch_size: int, images: np.ndarray, labels: np.ndarray, precision: str
) -> EpochFunction:
    """Do an epoch's two largest products of each step: forward, and the weights' gradient."""
    import tensorflow as tf

    inputs = tf.random.normal((batch_size, 784))
    errors = tf.random.normal((batch_size, HIDDEN_UNITS))
    first = tf.random.normal((784, HIDDEN_UNITS))

    @tf.function(jit_compile=True)
    def epoch(steps: tf.Tensor) -> tf.Tensor:
        count, weights = 0, first
        while count < steps:
            outputs = tf.matmul(inputs, weights)
            weights = tf.matmul(inputs, outputs + errors, transpose_a=True)
            count += 1
        return weights

    return lambda: _drop(epoch(tf.constant(len(images) // batch_size)).numpy())


CONTENDERS: dict[str, Callable[..., EpochFunction]] = {
    "fmnist_lab": ours,
    "fmnist_lab, XLA": lambda *a: ours(*a, engine="xla"),
    "fmnist_lab, graph": lambda *a: ours(*a, engine="graph"),
    "fit": fit,
    "fit, 50 steps a call": lambda *a: fit(*a, steps_per_execution=50, jit_compile=False),
    "fit, 50 steps, XLA": lambda *a: fit(*a, steps_per_execution=50, jit_compile=True),
    "fit, one call, XLA": lambda *a: fit(*a, steps_per_execution=1875, jit_compile=True),
    "PyTorch loop": torch_loop,
    "JAX scan": jax_scan,
    "JAX scan, uint8 images": lambda *a: jax_scan(*a, rescale_inside=True),
}
# As many operations as an epoch of the tutorial's network has, without all the rest.
PRODUCTS: dict[str, Callable[..., EpochFunction]] = {
    "square products alone": square_products,
    "own products alone": own_products,
}
# XLA's convolutions on a CPU take minutes an epoch, so only these are let in, and one if asked for.
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
    model, _ = _keras_model("mlp", "float32", rescale=False)
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(dataset.train_images / 255.0, dataset.train_labels, epochs=5)
    print(model.evaluate(dataset.test_images / 255.0, dataset.test_labels, verbose=2))
    print(model.predict(dataset.test_images / 255.0)[0], keras.__version__)


def logged_fit(jobs: str) -> None:
    """Train jobs with stock `fit` and log each to MLflow, as a script would; print their seconds.

    Args:
        jobs: JSON, a list of (hidden units, epochs).
    """
    import keras
    import mlflow
    import mlflow.tensorflow

    dataset = data.load()
    took = []
    for width, epochs in json.loads(jobs):
        began = time.perf_counter()
        with mlflow.start_run():
            model = keras.Sequential(
                [
                    keras.Input((28, 28)),
                    keras.layers.Flatten(),
                    keras.layers.Dense(width, activation="relu"),
                    keras.layers.Dense(10, activation="softmax"),
                ]
            )
            model.compile(
                optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"]
            )
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
    """Floating-point operations in the products of one epoch of the tutorial's network.

    Forward and weight gradient of both layers and the second layer's input gradient; the images
    need no gradient.
    """
    return 2.0 * images * (2 * 784 * HIDDEN_UNITS + 3 * HIDDEN_UNITS * 10)


def _keras_model(network: str, precision: str, rescale: bool = True) -> tuple[Any, Any]:
    import keras

    from fmnist_lab import models

    keras.utils.set_random_seed(0)
    if precision == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    if network == "cnn":
        model = models.cnn((28, 28), 10, filters=FILTERS)
    elif rescale:
        model = models.mlp((28, 28), 10, hidden_units=HIDDEN_UNITS)
    else:
        model = keras.Sequential(
            [
                keras.Input((28, 28)),
                keras.layers.Flatten(),
                keras.layers.Dense(HIDDEN_UNITS, activation="relu"),
                keras.layers.Dense(10, activation="softmax"),
            ]
        )
    keras.config.set_dtype_policy("float32")
    return model, keras.optimizers.Adam()


def _threads() -> int:
    return backend.usable_cores()


def _drop(_: object) -> None:
    """Make an expression a statement."""
