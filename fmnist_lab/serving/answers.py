"""Answers of a model to images as they come in a request: arrays of pixels, or image files.

A copy of this file is part of each logged model (`tracking.modelfiles`), so that MLflow's own
server gives the same answers without this package. It knows NumPy, Pillow, `photographs` and
`evaluation.scaling` alone.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmnist_lab import photographs
from fmnist_lab.evaluation.scaling import Scaling, scaled

MOST_IMAGES = 10_000  # in one request: the size of Fashion-MNIST's test set
MOST_FILES = 200  # of these: a photograph takes a hundred times as long to read as an array
BATCH = 500  # images per call of the model, which bounds a convolution's memory
TOP_K = 3
# What a request may ask for, by name, with the default.
PARAMS: Mapping[str, int | bool] = {"top_k": TOP_K, "show": False}


class RefusedRequest(ValueError):
    """A request that cannot be answered; the message is one sentence for who has sent it."""


@dataclass(frozen=True)
class Seen:
    """An image as the model gets it.

    Attributes:
        pixels: uint8, of the model's shape.
        photograph: What it was made from; None for an array, and where nobody asks for it.
    """

    pixels: np.ndarray
    photograph: photographs.Photograph | None = None


@dataclass(frozen=True)
class Answerer:
    """A model that answers requests.

    Attributes:
        call: From uint8 images (n, *shape) to float probabilities (n, classes).
        shape: The shape of one image: (height, width), or (height, width, 3) in colour.
        class_names: The name of each class.
        calibration: None: the model never abstains, and its own probabilities are told.
    """

    call: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, ...]
    class_names: Sequence[str]
    calibration: Scaling | None = None

    def answer(self, instances: Any, params: Mapping[str, Any] | None = None) -> list[Any]:
        """Return the answer to each image of a request, as JSON has it.

        Args:
            instances: Images: nested lists or arrays of whole numbers from 0 to 255 of the model's
                shape, and image files in base64, as a text or as {"b64": text}.
            params: `top_k`, how many labels are listed; `show`, whether the answer holds the
                image as the model sees it, and where in the photograph it was found.

        Raises:
            RefusedRequest: The instances are no such images, or the params others.
            ArithmeticError: The model's probabilities are not finite.
        """
        top_k, show = _checked(params or {})
        if not isinstance(instances, Sequence | np.ndarray) or isinstance(instances, str | bytes):
            raise RefusedRequest(
                f"received {_kind(instances)} instead of a list of images; {self._expected}"
            )
        if not 0 < len(instances) <= MOST_IMAGES:
            raise RefusedRequest(
                f"received {len(instances):,} images, expected from 1 to {MOST_IMAGES:,}"
            )
        if (files := sum(map(_is_file, instances))) > MOST_FILES:
            raise RefusedRequest(
                f"received {files:,} image files, expected at most {MOST_FILES} in one request; "
                "send the others in further requests"
            )
        seen = [self._see(each, number, show) for number, each in enumerate(instances)]
        pixels = np.stack([each.pixels for each in seen])
        rows = np.concatenate(
            [self.call(pixels[start:][:BATCH]) for start in range(0, len(pixels), BATCH)]
        )
        if not np.isfinite(rows).all():
            raise ArithmeticError("its probabilities are no numbers, as after a diverged training")
        if self.calibration:
            rows = scaled(rows, self.calibration.temperature)
        answers = [self._told(row, top_k) for row in rows]
        if show:
            for told, image in zip(answers, seen, strict=True):
                told["seen"] = _shown(image)
        return answers

    @property
    def _expected(self) -> str:
        height, width = self.shape[:2]
        one = "[red, green, blue]" if len(self.shape) == 3 else "whole number"
        return (
            f"expected for each image {height} rows of {width} pixels, each a {one} from 0 to 255, "
            "or an image file in base64"
        )

    def _told(self, row: np.ndarray, top_k: int) -> dict[str, Any]:
        """Return the answer for an image's probabilities, shape (classes,)."""
        best = np.argsort(-row, kind="stable")[:top_k]
        highest = float(row[best[0]])
        return {
            "label": self.class_names[best[0]],
            "confidence": highest,
            "abstained": highest < self.calibration.threshold if self.calibration else None,
            "top_k": [
                {"label": self.class_names[k], "confidence": float(row[k])} for k in best.tolist()
            ],
            "probabilities": dict(zip(self.class_names, row.tolist(), strict=True)),
        }

    def _see(self, instance: Any, number: int, show: bool) -> Seen:
        """Return an instance as the model gets it; the number is its place in the request."""
        if isinstance(instance, Mapping) and list(instance) == ["b64"]:
            instance = instance["b64"]
        if isinstance(instance, str):
            found = self._read(instance, number)
            # Its thumbnail takes three hundred times as much memory as the pixels.
            return Seen(found.pixels, found if show else None)
        wrong = f"image {number}: received"
        if not isinstance(instance, Sequence | np.ndarray):
            raise RefusedRequest(f"{wrong} {_kind(instance)}; {self._expected}")
        try:
            given = np.asarray(instance)
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise RefusedRequest(f"{wrong} rows of different lengths; {self._expected}") from None
        if given.shape != self.shape:
            raise RefusedRequest(f"{wrong} numbers in the shape {given.shape}; {self._expected}")
        with np.errstate(invalid="ignore"):
            pixels = given.astype(np.uint8) if given.dtype.kind in "uif" else None
        if pixels is None or not np.array_equal(pixels, given):
            raise RefusedRequest(
                f"{wrong} values that are no pixels; {self._expected} (the model rescales them "
                "itself, so do not divide by 255)"
            )
        return Seen(pixels)

    def _read(self, text: str, number: int) -> photographs.Photograph:
        """Return an image file in base64, converted."""
        # A page's own files come with their type, as a URL of data.
        head, comma, rest = text.partition(",")
        encoded = rest if comma and head.startswith("data:") else text
        try:
            content = base64.b64decode("".join(encoded.split()), validate=True)
        except (binascii.Error, ValueError):
            raise RefusedRequest(
                f"image {number}: received a text that is not base64; {self._expected}"
            ) from None
        height, width = self.shape[:2]
        try:
            return photographs.read(content, (height, width), colour=len(self.shape) == 3)
        except photographs.UnreadablePhotograph as error:
            raise RefusedRequest(f"image {number}: {error}") from None


def _is_file(instance: Any) -> bool:
    """Return whether an instance is an image file rather than pixels."""
    return isinstance(instance, str) or (isinstance(instance, Mapping) and "b64" in instance)


def _checked(params: Mapping[str, Any]) -> tuple[int, bool]:
    if not isinstance(params, Mapping):
        raise RefusedRequest(f"params: received {_kind(params)}, expected an object")
    if unknown := [name for name in params if name not in PARAMS]:
        raise RefusedRequest(
            f"params: received {str(unknown[0])[:50]!r}, expected {' or '.join(PARAMS)}"
        )
    top_k, show = (params.get(name, default) for name, default in PARAMS.items())
    if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or top_k < 1:
        raise RefusedRequest(
            f"top_k: received {_quoted(top_k)}, expected a whole number, 1 or more"
        )
    if not isinstance(show, bool | np.bool_):
        raise RefusedRequest(f"show: received {_quoted(show)}, expected true or false")
    return int(top_k), bool(show)


def _quoted(value: Any) -> str:
    """Return the beginning of a value; half a character, which has no UTF-8, as its escape."""
    return (repr(value) if isinstance(value, str) else str(value))[:50]


def _kind(value: Any) -> str:
    """Return what JSON calls a value."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float | np.number):
        return "a number"
    if isinstance(value, Sequence | np.ndarray):
        return "a text" if isinstance(value, str) else "a list"
    return "an object"


def _shown(image: Seen) -> dict[str, Any]:
    """Return what a person wants to see of an image that the model has seen."""
    told: dict[str, Any] = {"pixels": image.pixels.tolist()}
    if (photograph := image.photograph) is not None:
        told |= {
            "converted": photograph.converted,
            "negated": photograph.negated,
            "background": photograph.background,
            "size": [int(edge) for edge in photograph.size],
            "box": [int(edge) for edge in photograph.box],
            "thumbnail": _data_url(photograph.thumbnail),
        }
    return told


def _data_url(pixels: np.ndarray) -> str:
    """Return a picture, uint8 (height, width, 3), as a PNG file in a URL."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
