"""The door to a trained model: `python -m fmnist_lab.predict`, or `load` from Python."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from cyclopts import App, Parameter

from fmnist_lab import data, tracking
from fmnist_lab.errors import FULL_DISK, UserError, reported
from fmnist_lab.system import process
from fmnist_lab.training import runtime

if TYPE_CHECKING:
    import keras

app = App(
    name="python -m fmnist_lab.predict",
    help="Predict test images by index, or image files, with a model that a run has logged.",
    version_flags=(),
)


@dataclass(frozen=True)
class Classifier:
    """A reloaded model and the names of its classes.

    Attributes:
        model: The Keras model, from uint8 images to probabilities.
        class_names: Name of each class.
        uri: Where it was loaded from.
    """

    model: keras.Model
    class_names: tuple[str, ...]
    uri: str

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image, such as (28, 28)."""
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
        expected = f"expected one image {shape} or a batch (n, {', '.join(map(str, shape))})"
        try:
            given = np.asarray(images)
        except (ValueError, TypeError, OverflowError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"images: received no array ({reason}), {expected}") from None
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


def load(uri: str | None = None, *, store: str | None = None) -> Classifier:
    """Reload a model that a run has logged.

    Args:
        uri: runs:/RUN_ID, runs:/RUN_ID/model, models:/NAME/VERSION or a folder; None: the model
            of the newest finished run.
        store: MLflow's tracking URI; None: $MLFLOW_TRACKING_URI, or mlflow.db in this folder.

    Raises:
        UserError: There is no such model, or it is no Keras model.
    """
    with process.left_as_found():
        place = tracking.Store.locate(store, for_writing=False)
        runtime.start()
        if uri is None:
            uri = f"runs:/{_newest_run(place)}/model"
        elif re.fullmatch("runs:/+[^/]+/*", uri):
            uri = uri.rstrip("/") + "/model"
        from fmnist_lab.models import saved

        model, names = tracking.load_model(uri, place, saved.load)
        if names is None:
            classes, names = int(model.output_shape[-1]), data.FASHION_MNIST.class_names
            if classes != len(names):
                names = tuple(map(str, range(classes)))
        return Classifier(model, names, uri)


def _newest_run(store: tracking.Store) -> str:
    """Return the id of the newest finished run whose model is whole.

    Raises:
        UserError: There is none.
    """
    for run in tracking.finished_runs(store):
        lost = tracking.damage(store, run.run_id, model_alone=True)
        if not lost:
            return run.run_id
        print(
            f"Passing over the newer run '{run.name}' ({run.run_id}), which {lost}; its command "
            "with resume=true makes them again.",
            file=sys.stderr,
        )
    raise UserError(
        f"no finished run with a model in {store.uri}; make one with python -m fmnist_lab.run, or "
        "name a model with --model or a store with --store"
    )


@app.default
def predict(
    *files: Path,
    index: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")] = (),
    model: str | None = None,
    store: str | None = None,
    top_k: int = 1,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    plot: Path | None = None,
    data_dir: str | None = None,
) -> None:
    """Predict images, and print each label with the model's confidence.

    Args:
        files: Image files of the model's size (28x28 pixels for Fashion-MNIST), light on dark.
        index: Test images by number, from 0; several may follow. With no file either, 0 and 12.
        model: runs:/RUN_ID, models:/NAME/VERSION or a folder; left out, the newest finished run's.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        top_k: How many labels to print for an image.
        as_json: Print one JSON document.
        plot: Draw the images beside their probabilities into this file (.png, .pdf, .svg).
        data_dir: Folder with the data set's files, for test images.
    """
    with reported():
        if top_k < 1:
            raise UserError(f"--top-k: received {top_k}, expected a whole number, 1 or more")
        index = index if files or index else (0, 12)
        # Errors in the files and numbers are told before TensorFlow has started.
        pictures = [read_image(file) for file in files] + _test_images(index, data_dir)
        classifier = load(model, store=store)
        if index:
            _check_takes_test_images(classifier, index)
        elif classifier.image_shape[2:] == (3,):
            pictures = [read_image(file, colour=True) for file in files]
        for picture in pictures:
            picture.check_size(classifier.image_shape)
        probabilities = classifier.predict([picture.pixels for picture in pictures])
        if plot:
            _draw(plot, pictures, probabilities, classifier.class_names)
        answers = [
            _answer(picture, row, classifier.class_names, top_k)
            for picture, row in zip(pictures, probabilities, strict=True)
        ]
        if as_json:
            print(json.dumps({"model": classifier.uri, "predictions": answers}, indent=1))
            return
        _print(answers)
        if model is None:
            print(f"These are the predictions of the newest run's model: {classifier.uri}")


@dataclass(frozen=True)
class Picture:
    """An image to be predicted.

    Attributes:
        name: The user's name for it.
        pixels: uint8, shape (height, width) or (height, width, 3).
        label: The true class, if it is known.
    """

    name: str
    pixels: np.ndarray
    label: int | None = None

    def check_size(self, shape: tuple[int, ...]) -> None:
        """Refuse an image of another size than the model takes.

        Raises:
            UserError: The image is of another size than the shape.
        """
        if self.pixels.shape != shape:
            height, width = self.pixels.shape[:2]
            raise UserError(
                f"{self.name}: received {width}x{height} pixels, expected {shape[1]}x{shape[0]}; "
                "crop and scale it first, light on dark"
            )


def read_image(file: Path, *, colour: bool = False) -> Picture:
    """Read an image file as grey levels, uint8 (height, width).

    Args:
        file: A file in a common format.
        colour: Read it as red, green and blue instead, uint8 (height, width, 3).

    Raises:
        UserError: The file is missing, or no image.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # Pillow's remarks on a damaged file would break into our lines.
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                return Picture(str(file), np.asarray(image.convert("RGB" if colour else "L")))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; expected an image file") from None
    except Exception as error:
        # Pillow's decoders may raise anything for a damaged file, or one of gigabytes of pixels.
        raise UserError(
            f"{file}: cannot be read as an image ({error}); expected a PNG, JPEG or another "
            "common format"
        ) from None


def _test_images(indices: Sequence[int], folder: str | None) -> list[Picture]:
    """Return test images of Fashion-MNIST by their numbers."""
    if not indices:
        return []
    dataset = data.load(folder)
    images, labels = dataset.test_images, dataset.test_labels
    for index in indices:
        if not 0 <= index < len(images):
            raise UserError(
                f"--index: received {index}, expected a test image from 0 to {len(images) - 1}"
            )
    return [Picture(f"test image {each}", images[each], int(labels[each])) for each in indices]


def _check_takes_test_images(classifier: Classifier, indices: Sequence[int]) -> None:
    """Refuse a model that was trained for other images than those of Fashion-MNIST."""
    if classifier.class_names != data.FASHION_MNIST.class_names:
        problem = f"knows other classes: {', '.join(classifier.class_names)}"
    elif classifier.image_shape[2:] == (3,):
        problem = "takes images in colour"
    else:
        return
    raise UserError(
        f"--index: received {' '.join(map(str, indices))}, which are grey test images of "
        f"Fashion-MNIST, but {classifier.uri} {problem}; give it image files"
    )


def _answer(
    picture: Picture, probabilities: np.ndarray, names: Sequence[str], top_k: int
) -> dict[str, Any]:
    """Return the most probable labels of an image, as `--json` prints them."""
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    return {
        "image": picture.name,
        "predictions": [{"label": names[k], "confidence": float(probabilities[k])} for k in best],
        "truth": None if picture.label is None else names[picture.label],
    }


def _print(answers: Sequence[Mapping[str, Any]]) -> None:
    """Print one line per image."""
    width = max(len(answer["image"]) for answer in answers)
    for answer in answers:
        guesses = "  ".join(f"{g['label']} {g['confidence']:.1%}" for g in answer["predictions"])
        truth = answer["truth"]
        right = truth == answer["predictions"][0]["label"]
        note = "" if truth is None else "  (right)" if right else f"  (wrong: {truth})"
        print(f"{answer['image']:<{width}}  {guesses}{note}")


def _draw(
    file: Path, pictures: Sequence[Picture], probabilities: np.ndarray, names: Sequence[str]
) -> None:
    """Draw images beside their probabilities, shape (images, classes), into a file."""
    from fmnist_lab import figures

    columns = min(3, len(pictures))
    images = np.stack([picture.pixels for picture in pictures])
    labels = [picture.label for picture in pictures]
    rows = -(-len(pictures) // columns)
    figure = figures.prediction_grid(images, probabilities, labels, names, rows, columns)
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in FULL_DISK:
            raise
        raise UserError(
            f"--plot: received '{file}', which cannot be written ({error}); expected a file name "
            "ending in .png, .pdf or .svg"
        ) from None


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    process.run(main)
