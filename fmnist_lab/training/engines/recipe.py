"""How a training step is taken, and how many at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from fmnist_lab.training.augmentation import Augmentation

# The training images and labels as a trainer wants them.
Held = tuple[Any, Any]
# Called now and then with the number of images seen.
Report = Callable[[int], None] | None

# Long enough that a slice's launch costs nothing, short enough for a live display and Ctrl-C.
SLICE_SECONDS = 0.5
FIRST_SLICE = 64


@dataclass(frozen=True)
class Recipe:
    """How a step is taken; with the optimizer, all that a compiled program depends on.

    Attributes:
        batch_size: Images a step.
        engine: "native", "xla", "graph" or "auto"; see `engines.choose`.
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

    def loss_function(self) -> keras.losses.Loss:
        """Return the loss that a step takes the gradient of."""
        if self.loss is not None:
            return self.loss
        if self.label_smoothing:
            return SmoothedCrossentropy(self.label_smoothing)
        return keras.losses.SparseCategoricalCrossentropy()


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


def slices(steps: int) -> Iterator[tuple[int, int]]:
    """Cut an epoch's steps into slices of about `SLICE_SECONDS` each.

    Yields:
        The first step of a slice and the one after its last, which are to be taken before the next
        slice is asked for: their time decides its length.
    """
    start, length = 0, FIRST_SLICE
    while start < steps:
        began = time.perf_counter()
        stop = min(steps, start + length)
        yield start, stop
        speed = (stop - start) / (time.perf_counter() - began)
        start, length = stop, max(1, int(speed * SLICE_SECONDS))
