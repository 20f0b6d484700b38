"""Where the variance between runs comes from: seeds, data splits, and the finite test set.

A run's accuracy is a mean over test images, which are a sample as the seeds are. Which of them a
run gets right, its *correctness*, tells the two apart: what differs between the seeds on any
images, and what would average out over more of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import hypot, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fmnist_lab.evaluation.statistics import LEVEL, Comparison, Interval, mean_interval

IMAGE = "test image"
DRAWS = 10_000


@dataclass(frozen=True)
class Component:
    """A source of variance, with 95 % intervals.

    Attributes:
        factors: The factor, or the factors whose interaction it is; with that of all factors goes
            whatever else varies from value to value.
        variance: Its estimate, 0 if that were negative.
        low: Lower end of the variance's interval.
        high: Upper end.
        share: Its share of the sum of all components.
        share_low: Lower end of the share's interval.
        share_high: Upper end.
    """

    factors: tuple[str, ...]
    variance: float
    low: float
    high: float
    share: float
    share_low: float
    share_high: float


def components(
    values: NDArray[Any], factors: Sequence[str], over: str | None = None
) -> list[Component]:
    """Split the variance of values into what each factor contributes, alone and with others.

    A random-effects analysis of variance of a full grid with one value in each cell: each factor's
    levels are a sample, such as seeds, split seeds and test images. Each component is the linear
    combination of mean squares that expects it (Searle, Casella and McCulloch 1992, "Variance
    components", chapter 4). The intervals are generalized confidence intervals: quantiles of the
    same combination with each sum of squares divided by a random χ² (Weerahandi 1993, "Generalized
    confidence intervals", Journal of the American Statistical Association 88:899-905), which are
    exact for a single mean square and for ratios of two. The draws are the same each time.

    Args:
        values: A number or bool per cell, one axis per factor, at least two levels each.
        factors: The factors' names, in the order of the axes.
        over: A factor over which a result is the mean, as accuracy is over test images. Components
            that involve it count for such a mean: they are divided by the number of its levels.

    Returns:
        A component for each factor, then for each interaction.

    Raises:
        ValueError: An axis has no name or fewer than two levels, a value is not finite, or `over`
            is no factor.
    """
    cells = np.asarray(values, np.float64)
    if (
        cells.ndim != len(factors)
        or min(cells.shape, default=0) < 2
        or over not in (None, *factors)
    ):
        raise ValueError(
            f"expected an axis with two levels for each of {list(factors)}, with {over} among "
            f"them. Received: {cells.shape}"
        )
    if not np.isfinite(cells).all():
        raise ValueError("expected finite values")
    axes = range(cells.ndim)
    subsets = [each for size in axes for each in combinations(axes, size + 1)]
    squares, freedoms = np.array([_sum_of_squares(cells, each) for each in subsets]).T
    # Expected mean squares, inverted: those of all larger sets, added and subtracted in turn.
    signs = np.array(
        [
            [(-1.0) ** (len(other) - len(each)) * (set(each) <= set(other)) for other in subsets]
            for each in subsets
        ]
    )
    levels = [np.prod([cells.shape[axis] for axis in axes if axis not in each]) for each in subsets]
    weights = signs / np.array(levels, np.float64)[:, None]
    if over is not None:
        place = list(factors).index(over)
        weights[[place in each for each in subsets]] /= cells.shape[place]
    drawn = np.random.default_rng(0).chisquare(freedoms, (DRAWS, len(subsets)))
    found = np.maximum(weights @ (squares / freedoms), 0)
    spread = np.maximum(weights @ (squares / drawn).T, 0)
    ends = (LEVEL / 2, 1 - LEVEL / 2)
    low, high = np.quantile(spread, ends, axis=1)
    share_low, share_high = np.quantile(_shares(spread), ends, axis=1)
    shares = _shares(found)
    return [
        Component(tuple(factors[axis] for axis in each), *map(float, numbers))
        for each, *numbers in zip(
            subsets, found, low, high, shares, share_low, share_high, strict=True
        )
    ]


def _sum_of_squares(cells: NDArray[np.float64], subset: Sequence[int]) -> tuple[float, float]:
    """Return the sum of squares of an effect and its degrees of freedom."""
    effect = cells
    for axis in range(cells.ndim):
        mean = effect.mean(axis, keepdims=True)
        effect = effect - mean if axis in subset else mean
    freedom = np.prod([cells.shape[axis] - 1 for axis in subset])
    return float((effect**2).sum()) * cells.size / effect.size, float(freedom)


def _shares(variances: NDArray[np.float64]) -> NDArray[np.float64]:
    total = variances.sum(axis=0)
    return variances / np.where(total > 0, total, 1)


@dataclass(frozen=True)
class FiniteTestSet:
    """What the finite test set does to the results of a setting's runs.

    Attributes:
        images: Number of test images.
        share: Share of the variance between runs that the finite test set makes: what would
            vanish if there were endlessly many test images. nan if nothing varies.
        low: Lower end of its 95 % interval.
        high: Upper end.
        error: Standard error of the mean over the runs that the choice of test images makes,
            beyond what varies between runs.
    """

    images: int
    share: float
    low: float
    high: float
    error: float


def finite_test_set(
    correct: NDArray[np.bool_], results: Sequence[float] | None = None
) -> FiniteTestSet:
    """Return the part of the variance between runs that the finite test set makes.

    With a for the run and e for what a run does to one image, a run's accuracy varies by
    σ²(a) + σ²(e) / images from seed to seed; the second part is the test set's (Jordan 2023,
    "Calibrated chaos", arXiv:2304.01910, in the terms of an analysis of variance).

    Args:
        correct: bool (runs, images), whether each run's prediction of each image is right; at
            least two of both.
        results: The metric of each run, such as its accuracy gap; None: its test accuracy. Of a
            metric that has the test accuracy in it, the test set makes the same variance.
    """
    means = correct.mean(axis=1) if results is None else np.asarray(results, np.float64)
    images, noise = correct.shape[1], _residual(correct) / correct.shape[1]
    error = sqrt(_between_images(correct.mean(axis=0), _residual(correct) / len(correct)))
    between = float(np.var(means, ddof=1))
    if not between:
        return FiniteTestSet(images, np.nan, np.nan, np.nan, error)
    # The quotient of two mean squares, over F, has an exact interval.
    freedoms = (len(correct) - 1, (len(correct) - 1) * (images - 1))
    share = noise / between
    low, high = share * stats.f.ppf([LEVEL / 2, 1 - LEVEL / 2], *freedoms)
    return FiniteTestSet(
        images, min(share, 1.0), min(float(low), 1.0), min(float(high), 1.0), error
    )


def on_new_images(
    found: Comparison, a: NDArray[np.bool_], b: NDArray[np.bool_], *, paired: bool
) -> tuple[float, float]:
    """Return the 95 % interval of a difference for other test images as well as other seeds.

    The half-widths for seeds and for images are added as squares (Zou and Donner 2008,
    "Construction of confidence limits about effect measures", Statistics in Medicine
    27:1693-1702). Both settings are taken to be tested on the same images: what makes an image hard
    for both cancels.

    Args:
        found: The difference of the settings' accuracies, or of their gaps, with its interval over
            seeds.
        a: bool (runs, images), whether each run of A is right; at least two of both.
        b: The same of B, for the same images.
        paired: Whether the runs of a and b belong together in pairs.
    """
    sides = [a.astype(np.float64) - b] if paired else [a.astype(np.float64), b]
    noise = sum(_residual(side) / len(side) for side in sides)
    variance = _between_images(a.mean(axis=0) - b.mean(axis=0), noise)
    half = (found.high - found.low) / 2
    half = hypot(half, float(stats.norm.ppf(1 - LEVEL / 2)) * sqrt(variance))
    return found.difference - half, found.difference + half


def _residual(cells: NDArray[Any]) -> float:
    """Return the mean square of what a run does to one image, of cells (runs, images)."""
    squares, freedom = _sum_of_squares(cells.astype(np.float64), (0, 1))
    return squares / freedom


def _between_images(means: NDArray[np.float64], noise: float) -> float:
    """Return the variance of a mean over images that their choice makes, without the runs' noise.

    Args:
        means: float (images,), means over the runs.
        noise: The variance of each of them that the runs make.
    """
    return max(float(np.var(means, ddof=1)) - noise, 0) / len(means)


@dataclass(frozen=True)
class BiasVariance:
    """The squared error of a setting's predictions, in the parts that make it.

    Attributes:
        error: Mean squared error of one run's probabilities, with its 95 % interval over runs.
        bias: The part that the mean prediction of endlessly many runs would still make, squared.
        variance: The part that differs from run to run.
    """

    error: Interval
    bias: Interval
    variance: Interval


def bias_variance(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> BiasVariance:
    """Split the squared error of predictions into bias² and variance over training sets.

    With f for the probabilities of one run and π for the true class as zeros and a one, both of
    `classes` numbers: mean |π - f|² = mean |π - mean f|² + mean |f - mean f|². The variance is
    estimated without bias by that between the runs, and bias² by what it leaves of the error (Yang
    et al. 2020, "Rethinking bias-variance trade-off", arXiv:2002.11328, section 3). Both may be
    below 0. The intervals are of the jackknife over runs.

    Args:
        probabilities: float (runs, images, classes), at least three runs, each trained on images
            of its own.
        labels: int (images,), the true classes.

    Raises:
        ValueError: There are fewer than three runs.
    """
    runs, _, classes = probabilities.shape
    if runs < 3:
        raise ValueError(f"expected three runs or more. Received: {runs}")
    truth = np.eye(classes)[labels]
    errors = np.array([((each - truth) ** 2).sum(axis=1).mean() for each in probabilities])

    def between(chosen: Sequence[int]) -> float:
        return float(probabilities[chosen].var(axis=0, ddof=1, dtype=np.float64).sum(1).mean())

    every = list(range(runs))
    whole = between(every)
    without = np.array([between(every[:run] + every[run + 1 :]) for run in every])
    # Pseudo-values, whose mean and spread are those of the estimate.
    varying = runs * whole - (runs - 1) * without
    return BiasVariance(*map(mean_interval, (errors, errors - varying, varying)))
