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

# A file may name our own layer, which Keras knows only once it is defined.
from fmnist_lab.models import flip_average  # noqa: F401

# Weights hardly shrink when they are packed; the rest of a model's file is small.
MOST_GROWTH, SMALL = 20, 1 << 26


def load(file: Path) -> keras.Model:
    """Load a Keras file in safe mode, in which no code of the file runs.

    Raises:
        ValueError: The file would unpack to far more than its size.
        zipfile.BadZipFile: The file is no zip file.
    """
    check(file)
    return keras.saving.load_model(file, safe_mode=True)


def compiled(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Return a model as one compiled function of TensorFlow, for answers to single images.

    Keras' `predict` sets up a loop over batches, which takes many times as long as an image.

    Args:
        model: From uint8 images to probabilities.

    Returns:
        A function from uint8 images, shape (n, ...), to probabilities, float32 (n, classes).
    """
    import tensorflow as tf

    (image,) = model.inputs
    call = tf.function(
        lambda images: model(images, training=False),
        input_signature=[tf.TensorSpec((None, *image.shape[1:]), image.dtype)],
        autograph=False,
    )
    call(np.zeros((1, *image.shape[1:]), image.dtype))
    return lambda images: call(images).numpy()


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
