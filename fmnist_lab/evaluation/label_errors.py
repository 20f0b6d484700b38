"""Confident learning: which labels are doubtful, and how many are to be expected to be wrong.

Northcutt, Jiang, Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels",
arXiv:1911.00068. `probabilities` are float (n, classes), of models that have not seen the image
(out of fold); `labels` are integers (n,), the given ones, some of which are wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """The doubts about labels.

    Attributes:
        given: float64 (n,), the probability of each given label.
        likely: int64 (n,), the most probable class of each image, and of two the lower index.
        joint: float64 (classes, classes), the estimated number of images that were given the label
            of the row and are of the class of the column.
        expected: The estimated number of wrong labels, what lies beside the diagonal of `joint`.
    """

    given: NDArray[np.float64]
    likely: NDArray[np.int64]
    joint: NDArray[np.float64]
    expected: float


def label_errors(probabilities: NDArray[Any], labels: NDArray[Any]) -> LabelErrors:
    """Estimate which and how many labels are wrong.

    Section 3.1 of the paper. The threshold of class j is the mean probability of j among the images
    that were given the label j. An image counts as one of class j if its probability of j reaches
    the threshold; of several such classes, the most probable one counts. The counts by given label
    and class (equation 1) are calibrated so that each given label has as many images as there are
    (equation 3). Where classes look alike, honest labels of one are counted as errors, too.

    Args:
        probabilities: Float (n, classes).
        labels: Integers (n,).

    Raises:
        ValueError: The arrays do not fit together.
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(
            "`probabilities` must be of shape (n, classes) and `labels` of shape (n,). Received: "
            f"{probabilities.shape} and {labels.shape}"
        )
    classes, every = probabilities.shape[1], np.arange(len(labels))
    given = probabilities[every, labels].astype(np.float64)
    images = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=given, minlength=classes)
    thresholds = np.divide(sums, images, out=np.full(classes, np.inf), where=images > 0)
    candidates = np.where(probabilities >= thresholds, probabilities, -1)
    counted, seen = candidates.argmax(axis=1), candidates.max(axis=1) >= 0
    counts = np.zeros((classes, classes))
    np.add.at(counts, (labels[seen], counted[seen]), 1)
    totals = counts.sum(axis=1, keepdims=True)
    # Of a label none of whose images is sure of its class, nothing is known to be wrong.
    shares = np.divide(counts, totals, out=np.eye(classes), where=totals > 0)
    joint = shares * images[:, None]
    expected = float(joint.sum() - joint.trace())
    return LabelErrors(given, probabilities.argmax(axis=1), joint, expected)
