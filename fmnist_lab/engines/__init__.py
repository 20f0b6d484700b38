"""What takes training steps: our own `native` program, or TensorFlow with or without XLA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from fmnist_lab.engines import graphs, native
from fmnist_lab.engines.graphs import FAST_PREDICTION_BATCH, PREDICTION_BATCH, predict
from fmnist_lab.engines.recipe import Recipe, SmoothedCrossentropy

__all__ = [
    "FAST_PREDICTION_BATCH",
    "PREDICTION_BATCH",
    "Program",
    "Recipe",
    "SmoothedCrossentropy",
    "choose",
    "predict",
    "program",
]


class Program(Protocol):
    """Training steps of one architecture, optimizer and recipe, ready to be taken."""

    def hold(self, images: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
        """Return the training images and labels as `run` wants them."""

    def compile(self, images: Any, labels: Any, rates: np.ndarray) -> None:
        """Compile what `run` will need, without training a step."""

    def load(self, model: keras.Model, optimizer: keras.Optimizer) -> None:
        """Take over the state of the caller's model and optimizer."""

    def run(
        self,
        images: Any,
        labels: Any,
        order: np.ndarray,
        rates: np.ndarray,
        seed: int,
        report: Callable[[int], None] | None,
    ) -> tuple[float, float]:
        """Train once on the images in an order; return the sum of losses and the number correct.

        Args:
            images: The training images, from `hold`.
            labels: Their labels, from `hold`.
            order: Which image comes when, int64 (n,).
            rates: The learning rate of each step, float32 (steps,).
            seed: Decides the augmentation.
            report: Called now and then with the number of images seen.
        """

    def store(self, model: keras.Model, optimizer: keras.Optimizer) -> None:
        """Hand the state back."""


def choose(model: keras.Model, optimizer: keras.Optimizer, recipe: Recipe) -> str:
    """Return the fastest engine for a training, or the recipe's own if that is one.

    "native" takes plain dense and convolutional networks with the usual optimizers, on a processor
    and where there is a C compiler. "graph" takes other convolutions on a processor, where those of
    XLA are an order of magnitude slower (github.com/jax-ml/jax/issues/12868), and models with an
    operation that XLA does not have. "xla" takes the rest.

    Raises:
        UserError: The recipe wants "native", which cannot do this training.
    """
    if recipe.engine == "native":
        native.check(model, optimizer, recipe)
    if recipe.engine != "auto":
        return recipe.engine
    if native.suits(model, optimizer, recipe):
        return "native"
    convolves = any("conv" in type(layer).__name__.lower() for layer in model._flatten_layers())
    if convolves and not tf.config.list_physical_devices("GPU"):
        return "graph"
    return "graph" if graphs.xla_lacks(model, recipe.batch_size) else "xla"


def program(model: keras.Model, optimizer: keras.Optimizer, recipe: Recipe) -> Program:
    """Return the program that trains a model; those of TensorFlow are compiled once and kept.

    Raises:
        UserError: The model cannot be rebuilt from its config, or `choose` objects.
    """
    recipe = replace(recipe, engine=choose(model, optimizer, recipe))
    if recipe.engine == "native":
        return native.Program(model, optimizer, recipe)
    return graphs.program(model, optimizer, recipe)
