"""Runs whose seeds cross in; independent values of them, for intervals and tests, out.

Of a grid such as three values of `seed` with each of ten of `data.split_seed`, runs that share a
value are alike: thirty runs tell less than thirty independent ones. Independent are the means over
the runs of each value of one seed. An interval over such means leaves out what the other seeds
do to all of them alike; so the seed whose means have the widest interval is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fmnist_lab.evaluation import statistics
from fmnist_lab.evaluation.statistics import Comparison
from fmnist_lab.studies.frames import SEEDS, draws_of, listed, short_names

# By seed, the positions of the runs of each of its values; by "" each run alone, where none cross.
Samples = dict[str, list[list[int]]]


def samples(draws: Sequence[tuple[Any, ...]]) -> Samples:
    """Return the ways to part the runs of a setting into independent groups.

    Args:
        draws: What `frames.draws_of` returns of them.

    >>> samples([(0, 0, None), (0, 1, None), (1, 0, None), (1, 1, None)])
    {'seed': [[0, 1], [2, 3]], 'data.split_seed': [[0, 2], [1, 3]]}
    >>> samples([(0, 0, None), (1, 1, None)])
    {'': [[0], [1]]}
    """
    found: Samples = {}
    for number, name in enumerate(SEEDS):
        places: dict[Any, list[int]] = {}
        for place, values in enumerate(draws):
            places.setdefault(values[number], []).append(place)
        groups = list(places.values())
        if len(groups) > 1 and groups not in found.values():
            found[name] = groups
    if all(len(groups) == len(draws) for groups in found.values()):
        return {"": [[place] for place in range(len(draws))]}
    return found


def widest(by: Samples, values: NDArray[np.float64]) -> str:
    """Return the seed whose means have the widest interval; "" where no seeds cross.

    Args:
        by: What `samples` returns of the runs.
        values: float (runs,), all finite.
    """
    if len(by) == 1:
        return next(iter(by))
    known = {name: statistics.mean_interval(averaged(values, by[name])) for name in by}
    return max(known, key=lambda name: known[name].high - known[name].low)


def averaged(values: NDArray[np.float64], groups: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Return the mean of each group of runs."""
    return np.array([values[list(group)].mean() for group in groups])


def independent(
    a: pd.DataFrame, b: pd.DataFrame, metric: str, *, paired: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[str, str]]:
    """Return independent values of two settings' runs, and the seeds that they are means by.

    Args:
        a: Runs of one setting.
        b: Runs of another.
        metric: The metric, finite in all runs.
        paired: Whether the runs belong together in pairs; so do the values then.
    """
    mine, its = (runs[metric].to_numpy(float) for runs in (a, b))
    first, second = (samples(draws_of(runs)) for runs in (a, b))
    if paired:
        both = second if "" in first else first
        name = widest(both, mine - its)
        return averaged(mine, both[name]), averaged(its, both[name]), (name, name)
    names = widest(first, mine), widest(second, its)
    return averaged(mine, first[names[0]]), averaged(its, second[names[1]]), names


def compare(a: pd.DataFrame, b: pd.DataFrame, metric: str, *, paired: bool) -> Comparison:
    """Return `statistics.compare_groups` of independent values; arguments as `independent`'s."""
    mine, its, names = independent(a, b, metric, paired=paired)
    found = statistics.compare_groups(mine, its, paired=paired)
    if not any(names):
        return found
    by = f" by {short_names(names)[names[0]]}" if names[0] == names[1] else ""
    words = found.sample.replace("runs", "means" + by).replace("pair of run", "pair of mean")
    return replace(found, sample=words)


def seeds_that_cross(settings: Iterable[Sequence[tuple[Any, ...]]]) -> list[str]:
    """Return the seeds that cross within any setting, by what `frames.draws_of` returns of each."""
    found = {name for draws in settings for name in samples(draws)}
    return [name for name in SEEDS if name in found]


def remark(seeds: Sequence[str]) -> str:
    """Return what crossed seeds do to intervals, in a sentence.

    Args:
        seeds: What `seeds_that_cross` returns; at least one.
    """
    names = listed(list(short_names(seeds).values()))
    return (
        f"Runs that share a value of {names} are not independent: intervals are over the means by "
        "one of these seeds, the one that makes them widest; `runs variance SWEEP --by "
        f"{' '.join(seeds)}` tells what each does."
    )
