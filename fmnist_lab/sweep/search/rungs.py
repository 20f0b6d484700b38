"""Successive halving without waiting: which trials go on to a larger number of epochs.

The rule is that of ASHA (Li et al. 2020, arXiv:1810.05934): a trial is promoted as soon as it is
among the best 1/reduction of those that have reached its rung so far. A trial that is not may be
promoted later, when others have turned out to be worse.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Mapping, Sequence

MOST_TRIED = 500  # to find out how many go on of more trials than that


def rungs(first: int, reduction: int, epochs: int) -> tuple[int, ...]:
    """Return the numbers of epochs after which trials are compared; the last is all of them.

    Args:
        first: Epochs of the first rung.
        reduction: The factor from one rung to the next.
        epochs: Epochs of a trial that is never paused.

    >>> rungs(1, 3, 9), rungs(1, 3, 10), rungs(1, 3, 20), rungs(5, 3, 4)
    ((1, 3, 9), (1, 3, 10), (1, 3, 9, 20), (4,))
    """
    found, rung = [], first
    # A rung that is nearer to the end than to the next rung would save next to nothing.
    while rung * math.sqrt(reduction) <= epochs:
        found.append(rung)
        rung *= reduction
    return (*found, epochs)


def places(entered: int, pruning: str, reduction: int) -> int:
    """Return how many of the trials that have reached a rung may go on.

    Args:
        entered: The number of trials that have reached it.
        pruning: "asha": one of `reduction`; "median": the better half, and the one in the middle.
        reduction: The factor between two rungs.

    >>> places(7, "asha", 3), places(7, "median", 3), places(2, "asha", 3)
    (2, 4, 0)
    """
    return (entered + 1) // 2 if pruning == "median" else entered // reduction


def promotable(scores: Mapping[int, float], promoted: Collection[int], count: int) -> int | None:
    """Return the best trial of a rung that may go on now, or None.

    Args:
        scores: What each trial has reached there, by its number; more is better.
        promoted: The trials that have gone on already.
        count: How many may go on.

    >>> promotable({0: 0.7, 1: 0.9, 2: 0.8}, promoted={1}, count=2)
    2
    >>> promotable({0: 0.7, 1: 0.9, 2: 0.8}, promoted={1}, count=1) is None
    True
    """
    best = ranked(scores)[:count]
    return next((number for number in best if number not in promoted), None)


def ranked(scores: Mapping[int, float]) -> list[int]:
    """Return trials by their scores, the best first, and the earlier one of two that are equal."""
    return sorted(scores, key=lambda number: (-scores[number], number))


def entrants(count: int, steps: Sequence[int], pruning: str, reduction: int) -> list[int]:
    """Return how many of so many trials are likely to be trained up to each rung.

    The trials are tried in an order that has nothing to do with their scores. If later trials are
    better, as those of a sampler that learns, more of them go on.

    Args:
        count: The number of trials.
        steps: The rungs.
        pruning: As in `places`.
        reduction: The factor between two rungs.

    >>> entrants(60, (1, 3, 9), "asha", 3), entrants(60, (9,), "none", 3)
    ([60, 23, 12], [60])
    """
    if count > MOST_TRIED:
        shares = entrants(MOST_TRIED, steps, pruning, reduction)
        return [round(each * count / MOST_TRIED) for each in shares]
    scores = list(range(count))
    random.Random(0).shuffle(scores)
    found: list[dict[int, float]] = [{} for _ in steps]
    for number, score in enumerate(scores):
        found[0][number] = score
        for lower, higher in itertools.pairwise(found):
            free = places(len(lower), pruning, reduction)
            while (best := promotable(lower, higher, free)) is not None:
                higher[best] = lower[best]
    # The best of few trials is trained to the end, even if no rung has a place for it.
    return [max(len(each), min(count, 1)) for each in found]


def pareto(points: Mapping[int, Sequence[float]]) -> list[int]:
    """Return the trials that no other trial beats in one objective without losing in another.

    Args:
        points: The objectives of each trial, by its number; more is better.

    >>> pareto({0: (0.9, -0.1), 1: (0.8, -0.2), 2: (0.85, -0.05)})
    [0, 2]
    """

    def beaten(mine: Sequence[float], other: Sequence[float]) -> bool:
        return mine != other and all(a <= b for a, b in zip(mine, other, strict=True))

    front = [
        number
        for number, mine in points.items()
        if not any(beaten(mine, other) for other in points.values())
    ]
    return sorted(front, key=lambda number: (-points[number][0], number))
