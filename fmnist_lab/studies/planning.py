"""Runs in; how many seeds would show a difference or exclude it, and how long they take, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fmnist_lab.errors import UserError
from fmnist_lab.evaluation import power, statistics
from fmnist_lab.evaluation.power import MOST_SEEDS, Seeds, Spread
from fmnist_lab.evaluation.statistics import Comparison
from fmnist_lab.studies import crossed
from fmnist_lab.studies.beyond import Predictions
from fmnist_lab.studies.comparison import matched, same_seeds
from fmnist_lab.studies.differences import Side
from fmnist_lab.studies.frames import ACCURACIES, draws_of, grouped
from fmnist_lab.studies.summary import MOST_LOSS
from fmnist_lab.texts import counted, duration

POWERS = (0.8, 0.95)
# Seeds that tell a variance to a factor of 10, by the interval of χ².
ENOUGH = 8
CROSSED = (
    "A number of seeds then counts values of that seed, each with as many runs as it has here; "
    "more of them do not average out what the other seeds do."
)


class Answer(NamedTuple):
    """How many seeds a side, and how many seconds all of them take; nan if not known."""

    exclude: bool
    power: float
    seeds: Seeds
    seconds: float


class Row(NamedTuple):
    """How many seeds a metric of a setting takes.

    `found` is the difference that the runs have shown, None if there is one side.
    """

    setting: dict[str, Any]
    metric: str
    difference: float
    found: Comparison | None
    spread: Spread
    answers: list[Answer]


class Plan(NamedTuple):
    """All that is to be said: the rows, seconds of a run of each side, runs at a time, words."""

    rows: list[Row]
    seconds: dict[str, float]
    at_once: float
    sentences: list[str]


def plan(
    sides: Sequence[Side], difference: float | None, predictions: Predictions, here: str
) -> Plan:
    """Return how many seeds a comparison takes.

    Args:
        sides: A and B; or A alone, whose spread an unknown B is taken to have.
        difference: What is to be shown or excluded; None: what A and B differ by.
        predictions: Returns what a run has predicted for the test set.
        here: The name of this machine.

    Raises:
        UserError: A and B cannot be compared, or nothing can be told of any metric.
    """
    frames = [side.study.used for side in sides]
    if len(sides) == 2:
        within, left, right = matched(sides[0], sides[1], predictions)
        cases = {key: (runs, right[key]) for key, runs in left.items() if key in right}
    else:
        within = sides[0].study.parameters
        cases = {key: (runs, runs) for key, runs in grouped(frames[0], within).items()}
    at_once = _at_once(pd.concat(frames))
    faults: list[str] = []
    rows = [
        row
        for key, (a, b) in cases.items()
        for row in _rows(
            dict(zip(within, key, strict=True)),
            a,
            b if len(sides) == 2 else None,
            difference,
            at_once,
            faults,
        )
    ]
    if not rows:
        raise UserError(faults[0])
    seconds = {name: _seconds(frame) for name, frame in zip("AB", frames, strict=False)}
    hosts = {tags.get("host", "") for side in sides for tags in side.tags.values()} - {"", here}
    sentences = _sentences(rows, seconds, at_once, sorted(hosts))
    every = (draws_of(side) for pair in cases.values() for side in pair)
    if seeds := crossed.seeds_that_cross(every):
        sentences += [crossed.remark(seeds), CROSSED]
    return Plan(rows, seconds, at_once, sentences)


def _rows(
    setting: dict[str, Any],
    a: pd.DataFrame,
    b: pd.DataFrame | None,
    difference: float | None,
    at_once: float,
    faults: list[str],
) -> list[Row]:
    """Return a row for each metric of which something can be told; add to `faults` why not."""
    paired = b is not None and same_seeds(a, b)
    rows = []
    for metric in ACCURACIES:
        if metric not in a or (b is not None and metric not in b):
            continue
        other = a if b is None else b
        if not (np.abs(np.concatenate([a[metric], other[metric]])) < MOST_LOSS).all():
            continue
        mine, second, _ = crossed.independent(a, other, metric, paired=paired)
        its = None if b is None else second
        found = None if b is None else crossed.compare(a, b, metric, paired=paired)
        # One value is the mean over several runs where seeds cross.
        runs = ((a, mine), (other, second))
        seconds = sum(_seconds(side) * len(side) / len(each) for side, each in runs) / at_once
        wanted = abs(found.difference) if found and difference is None else difference
        if fault := _fault(mine, its, wanted or 0, paired):
            faults.append(fault)
            continue
        known = power.spread(mine, its, paired=paired)
        answers = [
            _answer(wanted or 0, known, share, seconds, exclude=exclude)
            for exclude in (False, True)
            for share in POWERS
        ]
        rows.append(Row(setting, metric, wanted or 0, found, known, answers))
    return rows


def _answer(wanted: float, known: Spread, share: float, seconds: float, *, exclude: bool) -> Answer:
    seeds = power.seeds_needed(wanted, known, share, exclude=exclude)
    return Answer(exclude, share, seeds, (seeds.count or np.nan) * seconds)


def _fault(mine: Any, its: Any, wanted: float, paired: bool) -> str:
    """Return why nothing can be told; empty if something can."""
    runs = [len(each) for each in (mine, its) if each is not None]
    if min(runs) < 2:
        return (
            f"received {' and '.join(counted(each, 'run') for each in runs)} of a setting, which "
            'show no spread; expected several seeds a side, as -m "seed=range(8)" gives'
        )
    sides = [mine - its] if paired else [mine] if its is None else [mine, its]
    if all(map(statistics.is_constant, sides)):
        return "the runs show no spread, as all have the same results: expected different seeds"
    if not wanted:
        return "A and B do not differ: name the difference that matters with --difference 0.002"
    return ""


def _times(runs: pd.DataFrame) -> pd.DataFrame:
    """Return when the runs started and ended, by their start, of those of which that is known."""
    names = ["started", "ended"]
    if not {*names} <= {*runs}:
        return pd.DataFrame({name: pd.to_datetime([], utc=True) for name in names})
    known = runs[names].apply(pd.to_datetime, utc=True)
    return known.dropna().sort_values("started")


def _seconds(runs: pd.DataFrame) -> float:
    """Return the usual duration of a run; nan if the store has none."""
    known = _times(runs)
    # The median, as a run that was resumed has waited in between.
    return float((known["ended"] - known["started"]).dt.total_seconds().median())


def _at_once(runs: pd.DataFrame) -> float:
    """Return how many of the runs went on at a time, on average; 1 if that is not known."""
    known = _times(runs)
    if known.empty:
        return 1.0
    total = (known["ended"] - known["started"]).dt.total_seconds().sum()
    # A stretch of time ends where the next run begins after all earlier ones have ended.
    last = known["ended"].cummax()
    idle = (known["started"] - last.shift()).dt.total_seconds().clip(lower=0).sum()
    busy = (last.max() - known["started"].min()).total_seconds() - idle
    return max(float(total / busy), 1.0) if busy > 0 else 1.0


def _sentences(
    rows: Sequence[Row], seconds: Mapping[str, float], at_once: float, hosts: Sequence[str]
) -> list[str]:
    sentences = [
        "To show a difference that is there, its 95 % interval has to leave out 0; to exclude one "
        "that is not, it has to lie within ± the difference. In brackets: for the 95 % interval of "
        "the deviation, the standard deviation of the difference between a run of A and one of B."
    ]
    known = [row.spread for row in rows]
    vague = [each for each in known if each.vague]
    if vague:
        worst = max(vague, key=lambda each: each.high / each.low)
        sentences.append(
            "These are too few seeds to tell the variance: the deviation may be anything from "
            f"{worst.low:.4f} to {worst.high:.4f}, so take the numbers of seeds for orders of "
            f"magnitude. Run {ENOUGH} seeds a side and ask again."
        )
    if not any(row.found for row in rows):
        sentences.append(
            "The other setting is taken to vary as this one does, with other seeds (Welch's t). "
            "The same seeds on both sides may need fewer: ask with two sides once both have run."
        )
    elif any(row.found and row.difference == abs(row.found.difference) for row in rows):
        sentences.append(
            "The difference itself is only known to its interval; --difference names the smallest "
            "that matters to you."
        )
    times = [f"{duration(each)} in {name}" for name, each in seconds.items() if not np.isnan(each)]
    if times:
        where = f" on {', '.join(hosts)}, which is not this machine" if hosts else ""
        beside = f", {at_once:.1f} runs at a time" if at_once >= 1.05 else ""
        sentences.append(
            f"Times are of all seeds of both sides, as these runs took{where}: a run "
            f"{' and '.join(times)}{beside}."
        )
    return sentences


def seeds_text(seeds: Seeds) -> str:
    """Return a number of seeds with its interval.

    >>> seeds_text(Seeds(20, 11, None))
    '20 (11 to > 100,000)'
    """
    count, low, high = (
        f"> {MOST_SEEDS:,}" if each is None else f"{each:,}"
        for each in (seeds.count, seeds.low, seeds.high)
    )
    return count if low == high else f"{count} ({low} to {high})"
