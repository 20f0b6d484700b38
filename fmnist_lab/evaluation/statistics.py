"""Values of several runs in; means with intervals and tests of difference out.

All tests are SciPy's, two-sided, at the level `LEVEL`, with intervals of 1 - `LEVEL`. What does not
fit together, and anything not finite, raises a `ValueError`: a diverged run has no place in a mean.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isnan, nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from fmnist_lab import evaluation

LEVEL = 0.05

# float64 leaves differences of 1e-16 between values that are the same: (0.9 - 0.88) - 0.02.
SAME = 1e-12

Values = Sequence[float] | NDArray[Any]


@dataclass(frozen=True)
class Interval:
    """A mean and how well it is known.

    Attributes:
        mean: The arithmetic mean.
        low: Lower end of the confidence interval; nan if there is no interval.
        high: Upper end; nan if there is no interval.
        count: Number of values.
    """

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Comparison:
    """Whether a difference between A and B is more than chance.

    Attributes:
        difference: A - B.
        low: Lower end of the 95 % confidence interval of the difference; nan if untestable.
        high: Upper end; nan if untestable.
        p_value: Two-sided; nan if untestable.
        test: Name of the test.
        sample: What it was computed from, such as "5 and 5 runs".
    """

    difference: float
    low: float
    high: float
    p_value: float
    test: str
    sample: str

    @property
    def evidence(self) -> bool:
        """Whether there is evidence of a difference: p < `LEVEL`. False if untestable."""
        return self.p_value < LEVEL

    def sentence(self, name_a: str, name_b: str, metric: str) -> str:
        """Say it in plain words.

        Large p-values are no evidence of equality, so the words never claim it; the interval tells
        how large the difference may still be.

        Args:
            name_a: What A is called.
            name_b: What B is called.
            metric: What was measured.

        Returns:
            One sentence without a full stop.
        """
        basis = f"({self.test}, {self.sample})"
        none = f"no evidence of a difference in {metric} between {name_a} and {name_b}:"
        if isnan(self.p_value):
            return f"{none} {_four(self.difference)} cannot be tested {basis}"
        p = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.3f}"
        if not self.evidence:
            between = f"[{_four(self.low)}, {_four(self.high)}]"
            return f"{none} {_four(self.difference)} {between}, {p} {basis}"
        word = "higher" if self.difference > 0 else "lower"
        near, far = sorted((abs(self.low), abs(self.high)))
        if self.low < 0 < self.high:  # The exact test and McNemar's interval may just disagree.
            near = -near
        return (
            f"{metric} of {name_a} is {word} than that of {name_b} by {abs(self.difference):.4f} "
            f"[{_four(near)}, {_four(far)}], {p} {basis}"
        )


@dataclass(frozen=True)
class Superiority:
    """How likely a new run of A has a higher value than a new run of B.

    Attributes:
        probability: By the normal model.
        low: Lower end of its 95 % confidence interval.
        high: Upper end.
        share: Share of the pairs of runs in which A was higher; a tie counts half.
        pairs: Number of these pairs: of the same seed, or each run of A with each of B.
    """

    probability: float
    low: float
    high: float
    share: float
    pairs: int


def mean_interval(values: Values, confidence: float = 0.95) -> Interval:
    """Mean with Student's t interval, mean ± t(n - 1) s / √n.

    s is the standard deviation with n - 1 in its denominator (Student 1908, "The probable error
    of a mean", Biometrika 6:1-25). It covers what differs between the runs, such as their seeds;
    it says nothing of other test sets.

    Args:
        values: One a run; at least one.
        confidence: Coverage of the interval, between 0 and 1.

    Returns:
        The mean and its interval; of a single value, no interval (nan).

    Raises:
        ValueError: There is no value, or one that is not finite, or no such confidence.
    """
    array = finite(values, "values")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1. Received: {confidence}")
    mean, count = float(array.mean()), len(array)
    if count == 1:
        return Interval(mean, nan, nan, 1)
    half = _t_quantile((1 + confidence) / 2, count - 1) * float(array.std(ddof=1)) / sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def compare_groups(a: Values, b: Values, paired: bool) -> Comparison:
    """Test whether the means of two groups of runs differ.

    Unpaired: Welch's t, which does not assume equal variances (Welch 1947, "The generalization of
    'Student's' problem when several different population variances are involved", Biometrika
    34:28-35). Paired: Student's t of the differences, for groups that ran the same seeds.

    Two cases have no test, and get nan for interval and p-value: fewer than two values (pairs) in
    a group, which leave the spread unknown; and no spread at all, in either group or in the
    differences of pairs. The latter is what repeating one seed gives, and a t of 1 / 0 would turn
    it into a certainty.

    Args:
        a: Values of A, one a run.
        b: Values of B; if paired, in the order of the same pairs.
        paired: Whether a[i] and b[i] belong together.

    Returns:
        The difference of means and its test.

    Raises:
        ValueError: A group is empty or not finite, or pairs are incomplete.
    """
    a, b = _groups(a, b, paired)
    test = "paired t" if paired else "Welch's t"
    sample = f"{len(a)} pairs of runs" if paired else f"{len(a)} and {len(b)} runs"
    difference = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return Comparison(difference, nan, nan, nan, test, sample.replace("1 pairs", "1 pair"))
    if all(is_constant(group) for group in ([a - b] if paired else [a, b])):
        return Comparison(difference, nan, nan, nan, test, f"{sample} without any spread")
    with warnings.catch_warnings():
        # SciPy doubts the variance of a group whose values are all the same; it is 0.
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        result = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
    interval = result.confidence_interval(1 - LEVEL)
    low, high, p_value = float(interval.low), float(interval.high), float(result.pvalue)
    return Comparison(difference, low, high, p_value, test, sample)


def superiority(a: Values, b: Values, paired: bool) -> Superiority | None:
    """Return how likely a new run of A beats one of B: P(A > B) on a new seed.

    Bouthillier et al. 2021, "Accounting for variance in machine learning benchmarks",
    arXiv:2103.03098, propose it as the measure of an improvement that matters. For so few runs as
    are usual a normal model takes the place of their bootstrap: P = Φ(difference / deviation), with
    the noncentral t interval; for unpaired runs by Reiser and Guttman 1986, "Statistical inference
    for Pr(Y < X): the normal case", Technometrics 28:253-257.

    Args:
        a: Values of A, one a run.
        b: Values of B; if paired, in the order of the same pairs.
        paired: Whether a[i] and b[i] belong together: the same new seed is then meant for both.

    Returns:
        The probability; None where a side has one value or nothing varies.

    Raises:
        ValueError: A group is empty or not finite, or pairs are incomplete.
    """
    a, b = _groups(a, b, paired)
    sides = [a - b] if paired else [a, b]
    if min(map(len, sides)) < 2 or all(map(is_constant, sides)):
        return None
    variances = np.array([side.var(ddof=1) for side in sides])
    counts = np.array([len(side) for side in sides])
    total = float(variances.sum())
    size = total / float((variances / counts).sum())
    freedom = total**2 / float((variances**2 / (counts - 1)).sum())
    effect = float(a.mean() - b.mean()) / sqrt(total)
    low, high = (
        _noncentrality(effect * sqrt(size), freedom, share) / sqrt(size)
        for share in (1 - LEVEL / 2, LEVEL / 2)
    )
    beside = a - b if paired else (a[:, None] - b).ravel()
    share = float(((beside > 0) + (beside == 0) / 2).mean())
    likely, low, high = (float(stats.norm.cdf(each)) for each in (effect, low, high))
    return Superiority(likely, low, high, share, len(beside))


def _noncentrality(observed: float, freedom: float, share: float) -> float:
    """Return the noncentrality with which a t is below the observed one with probability `share`.

    t is (normal + noncentrality) / u, so that the extremes of u, the estimated by the true
    deviation, and of the normal bracket it. From 1,000 on, where SciPy's distribution ends, the
    probabilities are 0 or 1 in any case.
    """
    observed = min(max(observed, -1000.0), 1000.0)
    reach = observed * np.sqrt(stats.chi2.ppf([1e-4, 1 - 1e-4], freedom) / freedom)
    return float(
        optimize.brentq(
            lambda shift: stats.nct.cdf(observed, freedom, shift) - share,
            reach.min() - 5,
            reach.max() + 5,
        )
    )


def mcnemar_exact(right_a: NDArray[Any], right_b: NDArray[Any]) -> Comparison:
    """Test whether two models differ in accuracy on the same test images.

    Only images that one model gets right and the other wrong tell them apart; with no difference
    each is a toss of a fair coin. The p-value is the exact two-sided binomial one (McNemar 1947,
    "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12:153-157), and 1 if there are no such images. The interval is by squares added
    of Wilson's intervals, with their correlation: method 10 of Newcombe 1998, "Improved confidence
    intervals for the difference between binomial proportions based on paired data", Statistics in
    Medicine 17:2635-2650. The two are different approximations, so that on the verge of
    significance the interval may hold 0 where p < 0.05, or leave it out where p > 0.05.

    It generalises to other test images, for these two trained models. Whether the settings they
    were trained with differ takes several seeds of each, and `compare_groups`.

    Args:
        right_a: bool (n,), whether A's prediction of each image is right.
        right_b: bool (n,), the same of B, in the same order.

    Returns:
        The difference of accuracies and its test.

    Raises:
        ValueError: The two are not bool of one length, or empty.
    """
    a, b = np.asarray(right_a), np.asarray(right_b)
    if a.dtype != bool or b.dtype != bool or a.ndim != 1 or a.shape != b.shape or not a.size:
        raise ValueError(
            "`right_a` and `right_b` must be bool (n,) with n at least 1. Received: "
            f"{a.dtype} {a.shape} and {b.dtype} {b.shape}"
        )
    count = len(a)
    both, only_a, only_b = int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum())
    toss = only_a + only_b
    p_value = float(stats.binomtest(only_a, toss).pvalue) if toss else 1.0
    low, high = _newcombe(both, only_a, only_b, count - both - toss)
    sample = f"{count:,} test images, {only_a:,} and {only_b:,} right in one only"
    return Comparison((only_a - only_b) / count, low, high, p_value, "exact McNemar", sample)


@lru_cache(maxsize=1024)
def _t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t. SciPy takes 0.3 ms for one, and a study asks thousands of times."""
    return float(stats.t.ppf(probability, freedom))


def _newcombe(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """Newcombe's interval; see `mcnemar_exact`. φ is 0 where a margin is empty, as he has it."""
    count = both + only_a + only_b + neither
    right_a, right_b = both + only_a, both + only_b
    below_a, above_a = _wilson_arms(right_a, count)
    below_b, above_b = _wilson_arms(right_b, count)
    covariance: float = both * neither - only_a * only_b
    if covariance > 0:
        covariance = max(covariance - count / 2, 0)
    margins = right_a * (count - right_a) * right_b * (count - right_b)
    phi = covariance / sqrt(margins) if margins else 0.0
    difference = (only_a - only_b) / count
    # The squares are those of a vector sum, never negative but for rounding.
    down = max(below_a**2 - 2 * phi * below_a * above_b + above_b**2, 0)
    up = max(above_a**2 - 2 * phi * above_a * below_b + below_b**2, 0)
    return difference - sqrt(down), difference + sqrt(up)


def _wilson_arms(hits: int, count: int) -> tuple[float, float]:
    """How far Wilson's score interval reaches below and above the proportion."""
    low, high = evaluation.wilson_interval(hits, count)
    return hits / count - low, high - hits / count


def _four(value: float) -> str:
    # Rounded first, and 0 added, so that there is no -0.0000.
    return f"{round(value, 4) + 0.0:.4f}"


def _groups(a: Values, b: Values, paired: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = finite(a, "a"), finite(b, "b")
    if paired and len(a) != len(b):
        raise ValueError(f"pairs need as many `a` as `b`. Received: {len(a)} and {len(b)}")
    return a, b


def is_constant(array: NDArray[np.float64]) -> bool:
    """Return whether all values are the same but for rounding."""
    return bool(np.ptp(array) <= SAME * max(1.0, float(np.abs(array).max())))


def finite(values: Values, name: str) -> NDArray[np.float64]:
    """Return values as float64 (n,).

    Args:
        values: One a run.
        name: The argument's name, for the message.

    Raises:
        ValueError: They are not one-dimensional, not finite, or none.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(
            f"`{name}` must be one-dimensional, finite, and not empty. Received: {values!r}"
        )
    return array
