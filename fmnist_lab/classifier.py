"""A reloaded model, as Python programs and the door `predict` ask it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fmnist_lab import data, tracking
from fmnist_lab.errors import UserError
from fmnist_lab.system import process
from fmnist_lab.training import runtime

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Classifier:
    """A reloaded model and the names of its classes.

    Attributes:
        model: The Keras model, from uint8 images to probabilities.
        class_names: Name of each class.
        uri: Where it was loaded from.
        divisor: What pixels, 0 to 255, are divided by to become its images; None: they cannot be.
    """

    model: keras.Model
    class_names: tuple[str, ...]
    uri: str
    divisor: float | None = 1

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image as the model takes it, such as (28, 28)."""
        return tuple(self.model.input_shape[1:])

    def predict(self, images: npt.ArrayLike) -> np.ndarray:
        """Return the probability of each class.

        Args:
            images: One image or a batch, uint8, shape (28, 28) or (n, 28, 28), 0 to 255; for a
                model of your own in the scale that it takes.

        Returns:
            float32 probabilities, shape (classes,) for one image or (n, classes) for a batch.

        Raises:
            UserError: The images have another shape or hold anything but whole numbers 0 to 255.
        """
        from fmnist_lab.training import engines

        shape = self.image_shape
        bare = shape[:2] if shape[2:] == (1,) else ()
        expected = f"expected one image {shape} or a batch (n, {', '.join(map(str, shape))})"
        try:
            given = np.asarray(images)
        except (ValueError, TypeError, OverflowError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"images: received no array ({reason}), {expected}") from None
        if bare and bare in (given.shape, given.shape[1:]):
            given = given[..., None]
        if shape not in (given.shape, given.shape[1:]):
            raise UserError(f"images: received shape {given.shape}, {expected}")
        taken = np.dtype(self.model.inputs[0].dtype)
        if taken != np.uint8 and given.dtype.kind in "uif":
            # A model of somebody's own, which takes images in a scale of its own.
            given = given.astype(taken)
            rows = engines.predict(self.model, given if given.shape[1:] == shape else given[None])
            return rows if given.shape[1:] == shape else rows[0]
        with np.errstate(invalid="ignore"):
            pixels = given.astype(np.uint8) if given.dtype.kind in "uif" else None
        if pixels is None or not np.array_equal(pixels, given):
            raise UserError(
                "images: received numbers that are no pixels, expected whole numbers from 0 to "
                "255; the model rescales them itself, so do not divide by 255"
            )
        if given.shape == shape:
            probabilities: np.ndarray = engines.predict(self.model, pixels[None])[0]
            return probabilities
        return engines.predict(self.model, pixels)

    def predict_pixels(self, pixels: npt.ArrayLike) -> np.ndarray:
        """Return the probability of each class for pictures, in whatever scale the model is.

        Args:
            pixels: uint8, shape (n, height, width), or (n, height, width, 3) in colour.

        Returns:
            float32 probabilities, shape (n, classes).

        Raises:
            UserError: The model's images cannot be made of pixels.
        """
        from fmnist_lab.models import saved

        try:
            images = saved.of_pixels(np.asarray(pixels), self.model, self.divisor)
        except ValueError as error:
            raise UserError(f"the model {self.uri} cannot see pictures: {error}") from None
        return self.predict(images)


def load(
    uri: str | None = None, *, best: str | None = None, store: str | None = None
) -> Classifier:
    """Reload a model that a run has logged. How it was chosen is told on standard error.

    Args:
        uri: A run's id, its beginning or its name, runs:/RUN_ID, models:/NAME@ALIAS,
            models:/NAME/VERSION, a folder that MLflow wrote, or a .keras file; None: the model of
            the newest finished run.
        best: A metric, such as accuracy/validation: the model of the finished run that is best by
            it, of a sweep if `uri` names one.
        store: MLflow's tracking URI; None: $MLFLOW_TRACKING_URI, or mlflow.db in this folder.

    Raises:
        UserError: There is no such model, or it is no Keras model.
    """
    with process.left_as_found():
        place = tracking.Store.locate(store, for_writing=False)
        chosen = tracking.choose_model(place, uri, best=best)
        for remark in chosen.remarks:
            print(remark, file=sys.stderr)
        runtime.start()
        from fmnist_lab.models import saved

        (model, divisor), names = tracking.load_model(chosen.uri, place, saved.load_with_divisor)
        names = names or data.names_of(int(model.output_shape[-1]))
        return Classifier(model, names, chosen.uri, divisor)
