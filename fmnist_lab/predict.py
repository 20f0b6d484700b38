"""The door to a trained model: `python -m fmnist_lab.predict`, or `load` from Python."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import App, Parameter

from fmnist_lab import backend, data, process, tracking
from fmnist_lab.errors import UserError, reported

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

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the probability of each class.

        Args:
            images: One image or a batch, uint8, shape (28, 28) or (n, 28, 28), 0 to 255.

        Returns:
            float32 probabilities, shape (classes,) for one image or (n, classes) for a batch.

        Raises:
            UserError: The images have another shape or hold anything but whole numbers 0 to 255.
        """
        from fmnist_lab import engines

        shape = tuple(self.model.input_shape[1:])
        try:
            images = np.asarray(images)
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(
                f"images: received what is no array ({' '.join(str(error).split())}), expected "
                f"one image {shape} or a batch (n, {', '.join(map(str, shape))})"
            ) from None
        if images.shape != shape and images.shape[1:] != shape:
            raise UserError(
                f"images: received shape {images.shape}, expected one image {shape} or a batch "
                f"(n, {', '.join(map(str, shape))})"
            )
        pixels = images.dtype.kind in "ui" or (
            images.dtype.kind == "f"
            and bool(np.isfinite(images).all())
            and bool((images == np.floor(images)).all())
        )
        if not pixels or (images.size and (images.min() < 0 or images.max() > 255)):
            raise UserError(
                "images: received numbers that are no pixels, expected whole numbers from 0 to "
                "255; the model rescales them itself, so do not divide by 255"
            )
        raw = images.astype(np.uint8)
        batch = raw[None] if images.shape == shape else raw
        probabilities = engines.predict(self.model, batch)
        return probabilities[0] if images.shape == shape else probabilities


def load(uri: str | None = None, *, store: str | None = None) -> Classifier:
    """Reload a model that a run has logged.

    Args:
        uri: runs:/RUN_ID, runs:/RUN_ID/model, models:/NAME/VERSION or a folder; None: the model
            of the newest finished run.
        store: MLflow's tracking URI; None: $MLFLOW_TRACKING_URI, or mlflow.db in this folder.

    Raises:
        UserError: There is no such model, or it is no Keras model.
    """
    place = tracking.Store.locate(store, for_writing=False)
    backend.start()
    if uri is None:
        newest = tracking.newest_run(place)
        if newest is None:
            raise UserError(
                f"no finished run with a model in {place.uri}; make one with "
                "python -m fmnist_lab.run, or name a model with --model or a store with --store"
            )
        uri = f"runs:/{newest}/model"
    elif uri.startswith("runs:/") and "/" not in uri.removeprefix("runs:/").strip("/"):
        uri = uri.rstrip("/") + "/model"
    model, class_names = tracking.load_model(uri, place)
    if class_names is None:
        classes = int(model.output_shape[-1])
        known = data.FASHION_MNIST.class_names
        class_names = known if classes == len(known) else tuple(map(str, range(classes)))
    return Classifier(model, class_names, uri)


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
    """Predict images and print each label with the model's confidence.

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
        if not files and not index:
            index = (0, 12)
        # What is wrong with the files or numbers is told before TensorFlow has started.
        pictures = [Picture(str(file), read_image(file)) for file in files]
        if index:
            pictures += _test_images(index, data_dir)
        backend.start(lean=True)
        classifier = load(model, store=store)
        if index and tuple(classifier.class_names) != data.FASHION_MNIST.class_names:
            raise UserError(
                f"--index: received {' '.join(map(str, index))}, which are test images of "
                f"Fashion-MNIST, but {classifier.uri} knows other classes: "
                f"{', '.join(classifier.class_names)}; give it image files"
            )
        for picture in pictures:
            _check_size(picture, tuple(classifier.model.input_shape[1:]))
        images = np.stack([picture.pixels for picture in pictures])
        probabilities = classifier.predict(images)
        if plot:
            _draw(plot, pictures, probabilities, classifier.class_names)
        answers = [
            _answer(picture, row, classifier.class_names, top_k)
            for picture, row in zip(pictures, probabilities, strict=True)
        ]
        if as_json:
            print(json.dumps({"model": classifier.uri, "predictions": answers}, indent=1))
        else:
            _print(answers)


@dataclass(frozen=True)
class Picture:
    """An image to be predicted.

    Attributes:
        name: How the user called it.
        pixels: uint8, shape (height, width).
        label: The true class, if it is known.
    """

    name: str
    pixels: np.ndarray
    label: int | None = None


def read_image(file: Path) -> np.ndarray:
    """Read an image file as grey levels, uint8 (height, width).

    Raises:
        UserError: The file is missing, or no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # What it remarks on a damaged file breaks into our lines.
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                grey = image.convert("L")
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; expected an image file") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UserError(
            f"{file}: cannot be read as an image ({error}); expected a PNG, JPEG or another "
            "common format"
        ) from None
    return np.asarray(grey)


def _check_size(picture: Picture, shape: tuple[int, ...]) -> None:
    if picture.pixels.shape != shape:
        height, width = picture.pixels.shape
        raise UserError(
            f"{picture.name}: received {width}x{height} pixels, expected {shape[1]}x{shape[0]}; "
            "crop and scale it first, light on dark"
        )


def _test_images(indices: Sequence[int], folder: str | None) -> list[Picture]:
    dataset = data.load(folder)
    last = len(dataset.test_images) - 1
    for index in indices:
        if not 0 <= index <= last:
            raise UserError(f"--index: received {index}, expected a test image from 0 to {last}")
    return [
        Picture(f"test image {index}", dataset.test_images[index], int(dataset.test_labels[index]))
        for index in indices
    ]


def _answer(
    picture: Picture, probabilities: np.ndarray, names: Sequence[str], top_k: int
) -> dict[str, Any]:
    ranked = np.argsort(-probabilities, kind="stable")[:top_k]
    return {
        "image": picture.name,
        "predictions": [
            {"label": names[place], "confidence": float(probabilities[place])} for place in ranked
        ],
        "truth": None if picture.label is None else names[picture.label],
    }


def _print(answers: Sequence[Mapping[str, Any]]) -> None:
    width = max(len(answer["image"]) for answer in answers)
    for answer in answers:
        guesses = "  ".join(f"{g['label']} {g['confidence']:.1%}" for g in answer["predictions"])
        truth = answer["truth"]
        right = truth == answer["predictions"][0]["label"]
        note = "" if truth is None else f"  ({'right' if right else f'wrong: {truth}'})"
        print(f"{answer['image']:<{width}}  {guesses}{note}")


def _draw(
    file: Path, pictures: Sequence[Picture], probabilities: np.ndarray, names: Sequence[str]
) -> None:
    from fmnist_lab import plots

    columns = min(3, len(pictures))
    figure = plots.prediction_grid(
        np.stack([picture.pixels for picture in pictures]),
        probabilities,
        [picture.label for picture in pictures],
        names,
        rows=-(-len(pictures) // columns),
        columns=columns,
    )
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--plot: received '{file}', which cannot be written ({error}); expected a file name "
            "ending in .png, .pdf or .svg"
        ) from None


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    process.run(main)
