"""The engines that take training steps: our own `native`, and TensorFlow with or without XLA."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import keras
import numpy as np
import tensorflow as tf

from fmnist_lab import compat
from fmnist_lab.training.engines import graph, native
from fmnist_lab.training.engines.recipe import Held, Recipe, Report, SmoothedCrossentropy
from fmnist_lab.training.engines.replica import (
    FAST_PREDICTION_BATCH,
    PREDICTION_BATCH,
    predict,
    replica_of,
)

__all__ = [
    "FAST_PREDICTION_BATCH",
    "PREDICTION_BATCH",
    "Recipe",
    "SmoothedCrossentropy",
    "Trainer",
    "choose",
    "predict",
    "trainer",
]


class Trainer(Protocol):
    """Training steps of one architecture, optimizer and recipe, ready to be taken."""

    def hold(self, images: np.ndarray, labels: np.ndarray) -> Held:
        """Return the training images (n, ...) and labels (n,) as `run` wants them."""

    def compile(self, held: Held, rates: np.ndarray) -> None:
        """Compile what `run` will need, without training a step."""

    def load(self, model: keras.Model, optimizer: keras.Optimizer) -> None:
        """Take over the state of the caller's model and optimizer."""

    def run(
        self, held: Held, order: np.ndarray, rates: np.ndarray, seed: int, report: Report
    ) -> tuple[float, float]:
        """Train once on the images in an order; return the sum of losses and the number correct.

        Args:
            held: The training images and labels, from `hold`.
            order: The indices of the images, in the order of the epoch, int64 (n,).
            rates: The learning rate of each step, float32 (steps,).
            seed: Decides the augmentation.
            report: Called now and then with the number of images seen.
        """

    def store(self, model: keras.Model, optimizer: keras.Optimizer) -> None:
        """Hand the state back."""


def choose(model: keras.Model, optimizer: keras.Optimizer, recipe: Recipe) -> str:
    """Return the fastest engine for a training, or the one that the recipe names.

    "native" takes plain dense and convolutional networks with the usual optimizers, on a processor
    and where there is a C compiler. "graph" takes other convolutions on a processor, where those of
    XLA are an order of magnitude slower (github.com/jax-ml/jax/issues/12868), and models with an
    operation that XLA does not have. "xla" takes the rest.

    Args:
        model: A built Keras model.
        optimizer: Any Keras optimizer.
        recipe: How to take a step.

    Raises:
        UserError: The recipe names "native", which cannot do this training.
    """
    if recipe.engine == "native":
        native.check(model, optimizer, recipe)
    if recipe.engine != "auto":
        return recipe.engine
    if native.suits(model, optimizer, recipe):
        return "native"
    convolves = any("conv" in type(layer).__name__.lower() for layer in compat.all_layers(model))
    if convolves and not tf.config.list_physical_devices("GPU"):
        return "graph"
    return "graph" if replica_of(model).missing_in_xla(recipe.batch_size) else "xla"


def trainer(model: keras.Model, optimizer: keras.Optimizer, recipe: Recipe) -> Trainer:
    """Return the trainer of a model; those of TensorFlow are compiled once and kept.

    Args:
        model: A built Keras model.
        optimizer: Any Keras optimizer.
        recipe: How to take a step.

    Raises:
        UserError: The model cannot be rebuilt from its config, or `choose` objects.
    """
    recipe = replace(recipe, engine=choose(model, optimizer, recipe))
    if recipe.engine == "native":
        return native.NativeTrainer(model, optimizer, recipe)
    return graph.trainer(model, optimizer, recipe)
