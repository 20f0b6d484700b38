"""A model that looks twice: at an image and at its mirror image."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from fmnist_lab.models.io import images


@keras.saving.register_keras_serializable(package="fmnist_lab")
class FlipAverage(layers.Wrapper):
    """Average a model's probabilities over an image and its mirror image, when not training.

    In training it sees one of the two, as the augmentation gives it, at no extra cost.
    """

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Return the probabilities (n, classes) of images (n, height, width)."""
        seen = self.layer(inputs, training=training)
        if training:
            return seen
        mirrored = self.layer(keras.ops.flip(inputs, axis=2), training=False)
        return (seen + mirrored) / 2

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the output shape of the wrapped model."""
        return self.layer.compute_output_shape(input_shape)


def flip_averaged(model: keras.Model) -> keras.Model:
    """Return a model that trains as the given one does, and predicts as `FlipAverage` does."""
    image = images(model.input_shape[1:])[0]
    look_twice = FlipAverage(model, dtype="float32", name="flip_average")
    return keras.Model(image, look_twice(image), name=f"{model.name}_flip_average")
