"""Conformal prediction: sets of classes that hold the true one with a chosen probability.

The promise holds for every model and needs only that the images that the sets are made by and those
that they are made for are drawn alike (Vovk, Gammerman & Shafer 2005, "Algorithmic Learning in a
Random World"; split form: Papadopoulos et al. 2002). It is a promise on average over images, not
for each class, and none for pictures of another kind.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Score = Literal["lac", "aps"]


@dataclass(frozen=True, eq=False)
class Splits:
    """How the sets did in each of several splits into images to calibrate and images to try.

    Attributes:
        coverage: float64 (splits,), share of the sets that held the true class.
        size: float64 (splits,), mean number of classes in a set.
    """

    coverage: NDArray[np.float64]
    size: NDArray[np.float64]


def scores(
    probabilities: NDArray[Any], score: Score = "lac", *, seed: int = 0
) -> NDArray[np.float64]:
    """Return how strange each class would be as the answer to each image.

    - "lac": 1 - p_k. It gives the smallest sets on average (Sadinle, Lei & Wasserman 2019, JASA
      114:223-234).
    - "aps": the sum of all probabilities above p_k, and a random part of p_k itself. Its sets grow
      with the difficulty of an image (Romano, Sesia & Candès 2020, arXiv:2006.02544).

    Args:
        probabilities: float32 (n, classes).
        score: Which of the two.
        seed: Decides the random parts.

    Returns:
        float64 (n, classes).
    """
    p = probabilities.astype(np.float64)
    if score == "lac":
        return 1 - p
    order = np.argsort(-p, axis=1, kind="stable")
    above = np.take_along_axis(p, order, axis=1)
    above = np.cumsum(above, axis=1) - above
    found = np.empty_like(p)
    np.put_along_axis(found, order, above, axis=1)
    return found + np.random.default_rng(seed).random((len(p), 1)) * p


def quantile(own: NDArray[Any], coverage: float) -> float:
    """Return the score up to which a class enters a set.

    Args:
        own: The scores of the true classes of the n images to calibrate by, (n,).
        coverage: The probability that a set holds the true class, between 0 and 1.

    Returns:
        The ⌈(n + 1) coverage⌉-th smallest score; infinity, which lets all classes in, if there are
        too few images for that.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"`coverage` must be between 0 and 1. Received: coverage={coverage}")
    rank = int(np.ceil((len(own) + 1) * coverage - 1e-9))
    return float(np.sort(own)[rank - 1]) if rank <= len(own) else float("inf")


def sets(found: NDArray[Any], most: float) -> NDArray[np.bool_]:
    """Return the sets as bool (n, classes): scores (n, classes) up to what `quantile` returns."""
    return found <= most


def measure(members: NDArray[np.bool_], labels: NDArray[Any]) -> tuple[float, float]:
    """Return the share of sets that hold the true class, and the mean number of classes in a set.

    Args:
        members: bool (n, classes), as `sets` returns them.
        labels: uint8 (n,).
    """
    held = members[np.arange(len(labels)), labels]
    return float(held.mean()), float(members.sum(axis=1).mean())


def split(
    probabilities: NDArray[Any],
    labels: NDArray[Any],
    coverage: float,
    score: Score = "lac",
    *,
    splits: int = 20,
    seed: int = 0,
) -> Splits:
    """Calibrate sets on one random half of the images and try them on the other, several times.

    Args:
        probabilities: float32 (n, classes), of images that the model was not trained on.
        labels: uint8 (n,).
        coverage: The probability that a set is to hold the true class.
        score: See `scores`.
        splits: How often the images are halved.
        seed: Decides the halves.
    """
    found = scores(probabilities, score, seed=seed)
    own = found[np.arange(len(labels)), labels]
    generator, half = np.random.default_rng(seed), len(labels) // 2
    results = []
    for _ in range(splits):
        order = generator.permutation(len(labels))
        known, new = order[:half], order[half:]
        results.append(measure(sets(found[new], quantile(own[known], coverage)), labels[new]))
    covered, sizes = np.array(results).T
    return Splits(covered, sizes)
