"""How far a model's confidence can be trusted, and what can be done with it.

Confidence is the probability of the predicted class. `probabilities` and `labels` are as in
`metrics`; so are the errors for arrays that do not fit together. Whatever is fitted (a temperature,
a threshold) is fitted on images that the model was not trained on, and tried on others.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist_lab.evaluation import metrics
from fmnist_lab.evaluation.scaling import Scaling as Scaling
from fmnist_lab.evaluation.scaling import log_probabilities, softmax
from fmnist_lab.evaluation.scaling import scaled as scaled

# The share of the images that an abstaining model answers, and that a conformal set holds the true
# class of, unless another is asked for.
COVERAGE = 0.9
# Temperatures beyond these are those of a model that is always right, or knows nothing.
COLDEST, HOTTEST = 0.05, 20.0
# With as many, the temperature of a simulated model with a network's confidences has a standard
# error of 0.07.
FEWEST_IMAGES = 500


@dataclass(frozen=True)
class Known:
    """A figure and the range that chance gives it.

    Attributes:
        value: The figure.
        low: Lower end of the 95 % range.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def fit(
    probabilities: NDArray[Any], labels: NDArray[Any], coverage: float = COVERAGE
) -> Scaling | None:
    """Fit a model's temperature and threshold on images that it was not trained on.

    The temperature is 1 if the images are fewer than `FEWEST_IMAGES`, or all answered correctly:
    then it would be chance.

    Args:
        probabilities: float32 (n, classes).
        labels: uint8 (n,).
        coverage: The share of the images to answer, above 0 and at most 1.

    Returns:
        Both; None if the probabilities are not finite, as of a diverged model.
    """
    temperature = fit_temperature(probabilities, labels)
    if np.isnan(temperature):
        return None
    if len(labels) < FEWEST_IMAGES or metrics.accuracy(probabilities, labels) == 1:
        temperature = 1.0
    sure = scaled(probabilities, temperature).max(axis=1)
    return Scaling(temperature, threshold_of(sure, coverage), coverage, len(labels))


def fit_temperature(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the temperature at which the cross-entropy of softmax(ln p / T) is least.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599, section 4.2; ln p
    equals the logits but for a constant per image, which the softmax drops. With β = 1/T, q =
    softmax(β ln p) and l = ln p, the slope in β is E[Σ_k q_k l_k - l_label], and the cross-entropy
    is convex in β. Its zero is found by halving a bracket: SciPy's optimizers take longer to import
    than this takes.

    Args:
        probabilities: float32 (n, classes).
        labels: uint8 (n,).

    Returns:
        T from `COLDEST` to `HOTTEST`, to five digits; nan if a probability is nan.
    """
    metrics.accuracy(probabilities, labels)  # refuses arrays that do not fit together
    logs = log_probabilities(probabilities)
    if np.isnan(logs).any():
        return float("nan")
    own = logs[np.arange(len(labels)), labels].mean()
    low, high = np.log(COLDEST), np.log(HOTTEST)
    for _ in range(20):
        middle = (low + high) / 2
        shares = softmax(logs * np.exp(-middle))
        slope = np.einsum("nk,nk->n", shares, logs).mean() - own
        # A slope above 0 in β asks for a higher temperature.
        low, high = (middle, high) if slope > 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def ece_interval(
    probabilities: NDArray[Any],
    labels: NDArray[Any],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Known:
    """Return the expected calibration error and its bootstrap interval over the images.

    The error is a sum of absolute values, which chance can only raise: resampled images have a
    higher one, on average, than the images themselves, as these have a higher one than all images
    there could be. So the interval is the reversed one, from 2 ece - q97.5 to 2 ece - q2.5 (Davison
    & Hinkley 1997, "Bootstrap Methods and their Application", section 5.2), cut off at 0. Of a
    nearly calibrated model it holds the true error far more often than the plain one, which lies
    above it.

    Args:
        probabilities: float32 (n, classes).
        labels: uint8 (n,).
        draws: How often the images are resampled.
        seed: Decides the resampling.

    Returns:
        The error by `metrics.calibration`, and the interval.
    """
    value = metrics.calibration(probabilities, labels).ece
    surplus, bins = _surplus(probabilities, labels)
    generator = np.random.default_rng(seed)
    count = len(labels)
    drawn = np.empty(draws)
    for draw in range(draws):
        some = generator.integers(0, count, count)
        drawn[draw] = np.abs(np.bincount(bins[some], surplus[some])).sum() / count
    least, most = np.quantile(drawn, (0.025, 0.975))
    return Known(value, max(2 * value - float(most), 0.0), max(2 * value - float(least), 0.0))


def ece_floor(probabilities: NDArray[Any], *, draws: int = 1000, seed: int = 0) -> Known:
    """Return the calibration error that a perfectly calibrated model would show by chance.

    Each answer is right with the probability that the model gives it, so the model is calibrated,
    and what is left is the error of finitely many images. An ECE within the range cannot be told
    from that of a calibrated model.

    Args:
        probabilities: float32 (n, classes); only the confidences count.
        draws: How often the answers are drawn.
        seed: Decides the draws.

    Returns:
        The mean of the error, and the range of 95 % of the draws.
    """
    sure = probabilities.max(axis=1).astype(np.float64)
    bins = _bins(sure)
    generator = np.random.default_rng(seed)
    drawn = np.empty(draws)
    for draw in range(draws):
        right = generator.random(len(sure)) < sure
        drawn[draw] = np.abs(np.bincount(bins, sure - right)).sum() / len(sure)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Known(float(drawn.mean()), float(low), float(high))


def threshold_of(sure: NDArray[Any], coverage: float) -> float:
    """Return the highest threshold that a share of the images, or more, reaches.

    Args:
        sure: Their confidences (n,).
        coverage: The share, above 0 and at most 1.

    Raises:
        ValueError: There is no image, or the coverage is no such share.
    """
    if not (0 < coverage <= 1 and len(sure)):
        raise ValueError(
            "`coverage` must be above 0 and at most 1, and there must be a confidence. Received: "
            f"coverage={coverage}, {len(sure)} confidences"
        )
    answered = int(np.ceil(coverage * len(sure) - 1e-9))
    return float(np.sort(sure)[len(sure) - answered])


def selected(
    probabilities: NDArray[Any], labels: NDArray[Any], threshold: float
) -> tuple[float, float]:
    """Return the share of the images that a model answers, and its accuracy on these.

    Args:
        probabilities: float32 (n, classes), calibrated if the threshold is.
        labels: uint8 (n,).
        threshold: The model abstains where its confidence is below it.

    Returns:
        Coverage and accuracy; the latter is nan where nothing is answered.
    """
    answered = probabilities.max(axis=1) >= threshold
    right = probabilities.argmax(axis=1) == labels
    return float(answered.mean()), float(right[answered].mean()) if answered.any() else np.nan


def risk_coverage(
    probabilities: NDArray[Any], labels: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the curve of risk against coverage, of a model that answers its surest images.

    El-Yaniv & Wiener 2010, "On the Foundations of Noise-free Selective Classification", JMLR
    11:1605-1641.

    Args:
        probabilities: float32 (n, classes).
        labels: uint8 (n,).

    Returns:
        Coverage (n,), from 1/n to 1, and the share of wrong answers at each. Images of equal
        confidence are answered in the order in which they come.
    """
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    wrong = (probabilities.argmax(axis=1) != labels)[order]
    answered = np.arange(1, len(labels) + 1)
    return answered / len(labels), np.cumsum(wrong) / answered


def auroc(known: NDArray[Any], other: NDArray[Any]) -> float:
    """Return how well a score tells known images from others: P(known > other) + P(equal) / 2.

    That is the area under the ROC curve (Hanley & McNeil 1982, Radiology 143:29-36).

    Args:
        known: Scores (n,), meant to be the higher ones.
        other: Scores (m,).

    Returns:
        1: each known image has a higher score than each other; 0.5: no better than chance.
    """
    others = np.sort(other)
    below = np.searchsorted(others, known, "left") + np.searchsorted(others, known, "right")
    return float(below.mean() / 2 / len(others))


def energy(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return ln Σ exp(logits), the negative energy, which is higher for known images.

    Liu et al. 2020, "Energy-based Out-of-distribution Detection", arXiv:2010.03759, at a
    temperature of 1. Probabilities do not have it: ln p is the logits but for this very number.

    Args:
        logits: float32 (n, classes).

    Returns:
        float64 (n,).
    """
    most: NDArray[np.float64] = logits.max(axis=1).astype(np.float64)
    found: NDArray[np.float64] = most + np.log(np.exp(logits - most[:, None]).sum(axis=1))
    return found


def of_logits(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return the probabilities (n, classes) of logits, which float32 would round to 1."""
    return softmax(logits.astype(np.float64))


def _bins(sure: NDArray[Any], bins: int = 15) -> NDArray[np.int64]:
    """Return the bin of each confidence, as `metrics.calibration` has them."""
    edges = np.linspace(0.0, 1.0, bins + 1)[1:-1]
    return np.searchsorted(edges, sure.astype(np.float64), side="left").astype(np.int64)


def _surplus(
    probabilities: NDArray[Any], labels: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return each image's confidence minus 1 if its answer is right, and its bin."""
    sure = probabilities.max(axis=1).astype(np.float64)
    return sure - (probabilities.argmax(axis=1) == labels), _bins(sure)
