"""Intervals of shares of images, and of differences between two."""

from math import sqrt
from statistics import NormalDist

# The two-sided 95 % quantile of the normal distribution, 1.96.
Z_95 = NormalDist().inv_cdf(0.975)


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927, JASA 22:209-212).

    SciPy's `binomtest` gives the same, but takes half a second to import at the end of each run.

    Args:
        hits: Number of successes, 0 to `count`.
        count: Number of trials, at least 1.

    Returns:
        Lower and upper end, both between 0 and 1.
    """
    share, spread = hits / count, Z_95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = sqrt(spread * share * (1 - share) + spread**2 / 4) / (1 + spread)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def gap_interval(train_hits: int, train: int, test_hits: int, test: int) -> tuple[float, float]:
    """95 % interval of an accuracy gap, as far as the numbers of images make it uncertain.

    Both sets of images are finite, so a difference between two shares is partly luck even for a
    model that has learnt nothing. Method 10 of Newcombe 1998, "Interval estimation for the
    difference between independent proportions", Statistics in Medicine 17:873-890. It says nothing
    of how the gap differs between seeds.

    Args:
        train_hits: Training images that are classified correctly.
        train: Training images in all, at least 1.
        test_hits: Test images that are classified correctly.
        test: Test images in all, at least 1.

    Returns:
        Lower and upper end of train_hits / train - test_hits / test.
    """
    share, other = train_hits / train, test_hits / test
    low, high = wilson_interval(train_hits, train)
    other_low, other_high = wilson_interval(test_hits, test)
    down = sqrt((share - low) ** 2 + (other_high - other) ** 2)
    up = sqrt((high - share) ** 2 + (other - other_low) ** 2)
    return share - other - down, share - other + up
