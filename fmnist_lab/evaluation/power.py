"""How many seeds a comparison takes: the power of the tests of `statistics.compare_groups`.

Two questions are answered, each for the 95 % interval that `statistics.compare_groups` gives of a
difference. *Show*: the difference is there; how likely does the interval leave out 0, so that the
test is significant? *Exclude*: there is none; how likely does the interval lie within ± the
difference, so that the two settings are equivalent as far as that matters?
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, stats

from fmnist_lab.evaluation.statistics import LEVEL, Values, finite, is_constant

MOST_SEEDS = 100_000
# With so uncertain a variance (upper by lower end of its interval), so is any number of seeds.
VAGUE = 10.0


@dataclass(frozen=True)
class Spread:
    """How much the difference between a run of A and a run of B varies from seed to seed.

    Attributes:
        deviation: Its standard deviation.
        low: Lower end of the 95 % confidence interval of the deviation.
        high: Upper end.
        freedom: Degrees of freedom of the deviation.
        per_seed: Degrees of freedom that the test gains with each further seed on each side: 1 for
            the paired t-test, 1 (one side alone varies) to 2 (both vary alike) for Welch's.
        test: Name of the test.
    """

    deviation: float
    low: float
    high: float
    freedom: float
    per_seed: float
    test: str

    @property
    def vague(self) -> bool:
        """Whether too few seeds have run: the variance's interval spans more than `VAGUE`."""
        return (self.high / self.low) ** 2 > VAGUE


@dataclass(frozen=True)
class Seeds:
    """How many seeds a side are needed, None for more than `MOST_SEEDS`.

    Attributes:
        count: With the deviation that the runs have shown.
        low: With the lower end of its interval.
        high: With the upper end.
    """

    count: int | None
    low: int | None
    high: int | None


def spread(a: Values, b: Values | None = None, *, paired: bool = False) -> Spread:
    """Return how much the difference between a run of A and one of B varies.

    The interval is that of a variance by χ² (Welch's with Satterthwaite's degrees of freedom).

    Args:
        a: Values of A, one a run; at least two.
        b: Values of B; None: a setting that has not run, and is taken to vary as A does.
        paired: Whether a[i] and b[i] belong together.

    Raises:
        ValueError: A side has fewer than two runs, a value is not finite, pairs are incomplete, or
            nothing varies.
    """
    sides = [finite(a, "a")] if b is None else [finite(a, "a"), finite(b, "b")]
    if paired:
        if len(sides) != 2 or len(sides[0]) != len(sides[1]):
            raise ValueError(f"pairs need as many `a` as `b`. Received: {[*map(len, sides)]}")
        sides = [sides[0] - sides[1]]
    fewest = min(map(len, sides))
    if fewest < 2:
        raise ValueError(f"a spread takes two runs a side. Received: {fewest}")
    if all(map(is_constant, sides)):
        raise ValueError("the runs show no spread: all values are the same")
    variances = np.array([side.var(ddof=1) for side in sides])
    if b is None:
        variances = np.repeat(variances, 2)
    # Welch and Satterthwaite: the sum of two variances has about as many degrees of freedom.
    each = np.array([len(side) - 1 for side in sides])
    total = float(variances.sum())
    freedom = (
        float(each[0]) if b is None or paired else total**2 / float((variances**2 / each).sum())
    )
    per_seed = 1.0 if paired else total**2 / float((variances**2).sum())
    low, high = (
        sqrt(total * freedom / float(stats.chi2.ppf(share, freedom)))
        for share in (1 - LEVEL / 2, LEVEL / 2)
    )
    return Spread(sqrt(total), low, high, freedom, per_seed, "paired t" if paired else "Welch's t")


def power(difference: float, known: Spread, seeds: int, *, exclude: bool = False) -> float:
    """Return the probability that so many seeds show a difference, or exclude it.

    To show it is the power of the two-sided t-test, by the noncentral t distribution (Cohen 1988,
    "Statistical power analysis for the behavioral sciences", chapter 2; for Welch's test with the
    degrees of freedom at the true variances). To exclude it is the power of two one-sided tests at
    half of `LEVEL` each, where there is no difference (Schuirmann 1987, "A comparison of the two
    one-sided tests procedure and the power approach", Journal of Pharmacokinetics and
    Biopharmaceutics 15:657-680), integrated over the distribution of the standard deviation.

    Args:
        difference: True difference to be shown, or the margin to be excluded; not 0.
        known: How much the difference between two runs varies.
        seeds: Number of seeds on each side; at least 2.
        exclude: Whether the difference is to be excluded.
    """
    freedom = (seeds - 1) * known.per_seed
    shift = abs(difference) * sqrt(seeds) / known.deviation
    critical = float(stats.t.ppf(1 - LEVEL / 2, freedom))
    if exclude:
        return _equivalence(shift, critical, freedom)
    above = float(stats.nct.sf(critical, freedom, shift))
    # SciPy has nan for the wrong side of 0 where there is less than 1e-15.
    return above + float(np.nan_to_num(stats.nct.cdf(-critical, freedom, shift)))


def _equivalence(shift: float, critical: float, freedom: float) -> float:
    """Integrate P(|estimate| < shift - critical u) over u, the estimated by the true error."""
    scale = sqrt(freedom)
    # Outside, the density of u is nothing to double precision; beyond `shift / critical`, so is
    # the probability.
    low, high = (float(stats.chi.ppf(share, freedom)) / scale for share in (1e-12, 1 - 1e-12))
    high = min(high, shift / critical)
    if high <= low:
        return 0.0

    def probability(u: NDArray[np.float64]) -> NDArray[np.float64]:
        within = 2 * stats.norm.cdf(shift - critical * u) - 1
        return np.asarray(within * stats.chi.pdf(u * scale, freedom) * scale)

    # The integrand is smooth, so that a hundred nodes give five digits at least.
    return float(integrate.fixed_quad(probability, low, high, n=100)[0])


def seeds_needed(
    difference: float, known: Spread, wanted: float, *, exclude: bool = False
) -> Seeds:
    """Return how many seeds on each side have the wanted power.

    The deviation that the runs have shown is uncertain, and so is the answer: its interval is the
    answer for both ends of the deviation's.

    Args:
        difference: True difference to be shown, or the margin to be excluded; not 0.
        known: How much the difference between two runs varies.
        wanted: The power, between 0 and 1.
        exclude: Whether the difference is to be excluded.

    Raises:
        ValueError: The difference is 0 or not finite, or there is no such power.
    """
    if not (np.isfinite(difference) and difference) or not 0 < wanted < 1:
        raise ValueError(
            "expected a difference other than 0 and a power between 0 and 1. Received: "
            f"{difference} and {wanted}"
        )
    found = (
        _fewest(abs(difference) / deviation, known.per_seed, wanted, exclude)
        for deviation in (known.deviation, known.low, known.high)
    )
    return Seeds(*found)


@lru_cache(maxsize=1024)
def _fewest(effect: float, per_seed: float, wanted: float, exclude: bool) -> int | None:
    """Return the fewest seeds with the wanted power, which grows with their number."""
    unit = Spread(1.0, 1.0, 1.0, 1.0, per_seed, "")

    def enough(seeds: int) -> bool:
        return power(effect, unit, seeds, exclude=exclude) >= wanted

    if enough(2):
        return 2
    low, high = 2, 4
    while not enough(high):
        low, high = high, 2 * high
        if low >= MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high if high <= MOST_SEEDS else None
