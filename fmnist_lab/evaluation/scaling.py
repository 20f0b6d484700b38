"""The temperature and the threshold that are kept with a model, and what they do to probabilities.

A copy of this file is part of each logged model (`tracking.modelfiles`): it knows NumPy alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CALIBRATION = "calibration.json"
MOST_BYTES = 100_000  # It has some hundred.
# Keras clips at 1e-7, which caps the loss of one image at 16.1 nats. The confident mistakes of an
# overfitted model go beyond that, and they are what its loss gap is made of. What is left to clip
# here is what float32 cannot tell from 0: at most 87.3 nats an image.
SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Scaling:
    """The temperature and the threshold of a model, as they are kept with it.

    Attributes:
        temperature: T; calibrated probabilities are softmax(ln p / T). Above 1 the model was too
            sure of itself.
        threshold: The model abstains where its highest calibrated probability is below it.
        coverage: The share of the images to answer that the threshold was chosen for.
        images: Number of the images that both were fitted on.
    """

    temperature: float
    threshold: float
    coverage: float
    images: int

    @classmethod
    def read(cls, folder: Path) -> Scaling | None:
        """Return what a model's folder has in its `calibration.json`; None if it has none.

        Raises:
            ValueError: The file is damaged.
        """
        file = folder / CALIBRATION
        if not file.is_file():
            return None
        try:
            with file.open("rb") as stream:
                content = stream.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                raise ValueError(f"expected no more than {MOST_BYTES:,} bytes")
            return cls.of(json.loads(content))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its {CALIBRATION} is damaged: {error}") from None

    @classmethod
    def of(cls, values: Any) -> Scaling:
        """Return what the content of a `calibration.json` says.

        Raises:
            ValueError: The content is none of ours.
        """
        wanted = [each.name for each in fields(cls)]
        if not (isinstance(values, dict) and values.keys() >= set(wanted)):
            raise ValueError(f"expected the keys {', '.join(wanted)}")
        numbers = [values[name] for name in wanted]
        if not all(type(each) in (int, float) and 0 <= each < inf for each in numbers):
            raise ValueError(f"expected numbers, 0 or more, received {numbers}")
        temperature, threshold, coverage, images = numbers
        found = cls(float(temperature), float(threshold), float(coverage), int(images))
        if not found.temperature or not 0 < found.coverage <= 1 or found.threshold > 1:
            raise ValueError(
                f"received {found}, expected a temperature and a coverage above 0, and no "
                "threshold or coverage above 1"
            )
        return found


def scaled(probabilities: NDArray[Any], temperature: float) -> NDArray[np.float32]:
    """Return calibrated probabilities, softmax(ln p / T).

    That is temperature scaling, equation 9 of Guo et al. 2017 (arXiv:1706.04599): ln p equals the
    logits but for a constant per image. The order of the classes stays, and with it the predicted
    class and the accuracy.

    Args:
        probabilities: float32 (n, classes) or (classes,).
        temperature: T, above 0.

    Raises:
        ValueError: The temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"`temperature` must be above 0. Received: temperature={temperature}")
    return softmax(log_probabilities(probabilities) / temperature).astype(np.float32)


def log_probabilities(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """Return ln p, float64, which is finite where p is 0."""
    found: NDArray[np.float64] = np.log(
        np.maximum(probabilities.astype(np.float64), SMALLEST_PROBABILITY)
    )
    return found


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return exp(logits), divided by its sum over the classes, the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return shares
