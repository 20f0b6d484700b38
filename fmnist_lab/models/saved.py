"""A Keras file that anyone may have written, checked and loaded."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import keras
import numpy as np
import yaml

# A file may name our own layer, which Keras knows only once it is defined.
from fmnist_lab.models import flip_average  # noqa: F401

# Weights hardly shrink when they are packed; the rest of a model's file is small.
MOST_GROWTH, SMALL = 20, 1 << 26
NO_PIXELS = (
    "it was trained with images in a scale that nobody has noted, neither 0 to 255 nor 0 to 1, so "
    "it takes no pixels or photographs; train it with one of these scales, or put the rescaling "
    "into the model"
)


def load(file: Path) -> keras.Model:
    """Load a Keras file in safe mode, in which no code of the file runs.

    Raises:
        ValueError: The file would unpack to far more than its size.
        zipfile.BadZipFile: The file is no zip file.
    """
    check(file)
    return keras.saving.load_model(file, safe_mode=True)


def load_with_divisor(file: Path) -> tuple[keras.Model, float | None]:
    """Load the Keras file of a logged model, with what its folder notes for `of_pixels`."""
    return load(file), divisor_of(file.parent.parent)


def divisor_of(folder: Path) -> float | None:
    """Return what a model's folder notes for `of_pixels`; 1 if it is no such folder.

    Raises:
        ValueError: Its description is damaged.
    """
    file = folder / "MLmodel"
    noted = yaml.safe_load(file.read_bytes()) if file.is_file() else None
    metadata = noted.get("metadata") if isinstance(noted, dict) else None
    found = metadata.get("divisor", 1) if isinstance(metadata, dict) else 1
    if found is not None and not (isinstance(found, int | float) and 0 < found < math.inf):
        raise ValueError(
            f"its MLmodel has the divisor {str(found)[:50]}, expected a number above 0"
        )
    return found


def image_shape(model: keras.Model) -> tuple[int, ...]:
    """Return the shape of pixels for a model: (height, width), or (height, width, 3) in colour."""
    shape = tuple(model.input_shape[1:])
    return shape[:2] if shape[2:] == (1,) else shape


def of_pixels(pixels: np.ndarray, model: keras.Model, divisor: float | None) -> np.ndarray:
    """Return images in the scale and the shape that a model takes.

    Args:
        pixels: uint8, shape (n, *image_shape(model)).
        model: The model.
        divisor: What pixels are divided by, as it is noted with the model; None: they cannot be
            made into its images so.

    Raises:
        ValueError: They cannot.
    """
    if divisor is None:
        raise ValueError(NO_PIXELS)
    image = model.inputs[0]
    pixels = pixels.reshape(len(pixels), *image.shape[1:])
    if divisor == 1:
        return pixels
    # A table has the same bits as the division of each, and takes an eighth of the memory.
    scaled: np.ndarray = (np.arange(256) / divisor).astype(image.dtype)[pixels]
    return scaled


def compiled(model: keras.Model, divisor: float | None = 1) -> Callable[[np.ndarray], np.ndarray]:
    """Return a model as one compiled function of TensorFlow, for answers to single images.

    Keras' `predict` sets up a loop over batches, which takes many times as long as an image.

    Args:
        model: From images to probabilities.
        divisor: As for `of_pixels`.

    Returns:
        A function from uint8 images, shape (n, *image_shape(model)), to probabilities, float32
        (n, classes).

    Raises:
        ValueError: The model's images cannot be made of pixels.
    """
    import tensorflow as tf

    (image,) = model.inputs
    call = tf.function(
        lambda images: model(images, training=False),
        input_signature=[tf.TensorSpec((None, *image.shape[1:]), image.dtype)],
        autograph=False,
    )

    def answer(pixels: np.ndarray) -> np.ndarray:
        probabilities: np.ndarray = call(
            of_pixels(pixels, model, divisor).astype(image.dtype, copy=False)
        ).numpy()
        return probabilities

    answer(np.zeros((1, *image_shape(model)), np.uint8))
    return answer


def check(path: Path) -> None:
    """Refuse a Keras file that would unpack to far more than its size.

    A few kilobytes of zip or HDF5 can promise gigabytes.

    Raises:
        ValueError: The file would.
        zipfile.BadZipFile: The file is no zip file.
    """
    import h5py

    size = path.stat().st_size
    most = MOST_GROWTH * size + SMALL

    def limit(needed: int, what: str) -> None:
        if needed > most:
            raise ValueError(
                f"{what} of {path.name} unpack to {needed:,} bytes, which its {size:,} bytes can "
                f"hardly hold, expected no more than {most:,}"
            )

    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        limit(sum(member.file_size for member in members), "the members")
        for member in members:
            if member.filename.endswith(".h5"):
                with archive.open(member) as stream, h5py.File(_seekable(stream), "r") as weights:
                    limit(_weights_size(weights), "the weights")


def _seekable(stream: Any) -> BinaryIO:
    return stream if stream.seekable() else io.BytesIO(stream.read())


def _weights_size(weights: Any) -> int:
    """Return how many bytes the data sets of an HDF5 file take in memory."""
    import h5py

    sizes: list[int] = []

    def note(_: str, found: Any) -> None:
        if isinstance(found, h5py.Dataset):
            sizes.append(math.prod(found.shape or ()) * found.dtype.itemsize)

    weights.visititems(note)
    return sum(sizes)
