"""Two groups of runs in; what differs between them, and whether their results really do, out.

Runs that differ among themselves are matched: one group's runs of 5 epochs are compared with the
other's of 5 epochs, those of 20 with those of 20. Single runs are tested on their predictions,
several on their metrics, in pairs where both groups have the same seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fmnist_lab.errors import UserError
from fmnist_lab.evaluation import statistics
from fmnist_lab.evaluation.statistics import LEVEL, Comparison, Interval
from fmnist_lab.studies import crossed
from fmnist_lab.studies.beyond import (
    TESTED,
    Beyond,
    Correctness,
    Predictions,
    beyond,
    of_one,
    of_several,
)
from fmnist_lab.studies.crossed import samples
from fmnist_lab.studies.differences import (
    BESIDE_THE_POINT,
    Difference,
    Side,
    differences_of,
    values_in_words,
)
from fmnist_lab.studies.frames import (
    ACCURACIES,
    METRICS,
    draws_of,
    grouped,
    seeds_of,
    sentence,
    trained_on,
)
from fmnist_lab.studies.summary import MOST_LOSS, Study, interval
from fmnist_lab.texts import counted

SAME_SETTING = (
    "A and B have the same setting: whatever differs between them is no evidence of a difference "
    "between settings."
)
UNCOMMITTED = (
    "Some runs come from a checkout with uncommitted changes, so their code may differ by more "
    "than the commits tell."
)
SINGLE = (
    "One run a side: this tells how these trained models would fare on other test images. Other "
    "seeds move the accuracy, too; whether the settings differ takes several seeds of each, as "
    '-m "seed=range(5)" gives.'
)
SEVERAL = (
    "± is half the width of the 95 % interval (Student's t) of the mean over the runs of a side, "
    "which differ in their seed."
)
CROSSED = "What one more run of each, or other test images, would do is left out for such runs."
NO_SPREAD = (
    "A single run shows no spread to judge a difference by: both sides need several seeds, as "
    '-m "seed=range(5)" gives.'
)


class Result(NamedTuple):
    """A metric of both groups; `found` is None where nothing can be tested."""

    metric: str
    a: Interval
    b: Interval
    found: Comparison | None
    beyond: Beyond | None


class Match(NamedTuple):
    """A setting that both groups have.

    Its values, numbers of runs of A and of B, whether these are pairs, and results by metric.
    """

    setting: dict[str, Any]
    runs: tuple[int, int]
    paired: bool
    results: list[Result]


@dataclass(frozen=True)
class Verdict:
    """All that is to be said of two groups.

    Attributes:
        differences: Parameters that differ between the groups, then code, libraries and so on.
        same: Kinds of the latter in which nothing differs.
        matches: The settings that were compared.
        unmatched: Settings of one group alone, of A and of B.
        sentences: The answer in plain words, then what it is worth.
    """

    differences: list[Difference]
    same: list[str]
    matches: list[Match]
    unmatched: tuple[list[dict[str, Any]], list[dict[str, Any]]]
    sentences: list[str]


def compare(a: Side, b: Side, predictions: Predictions) -> Verdict:
    """Compare two groups of runs.

    Args:
        a: The first group.
        b: The second.
        predictions: Returns what a run has predicted for the test set.

    Returns:
        What differs, and whether it matters.

    Raises:
        UserError: A run is in both groups, they were tested on different images, or no setting of
            one has a counterpart in the other.
    """
    within, left, right = matched(a, b, predictions)
    shared = [setting for setting in left if setting in right]
    unreadable: list[str] = []
    correctness = Correctness(predictions)
    matches = [
        Match(
            dict(zip(within, setting, strict=True)),
            (len(left[setting]), len(right[setting])),
            same_seeds(left[setting], right[setting]),
            _results(left[setting], right[setting], predictions, correctness, unreadable),
        )
        for setting in shared
    ]
    if correctness.fault:
        unreadable.append(f"Nothing can be told of other test images: {correctness.fault}.")
    differences, same = differences_of(a, b, within)
    lonely = [
        [dict(zip(within, setting, strict=True)) for setting in mine if setting not in other]
        for mine, other in ((left, right), (right, left))
    ]
    sentences = [*_sentences(matches, differences), *unreadable]
    every = (draws_of(side[setting]) for setting in shared for side in (left, right))
    if seeds := crossed.seeds_that_cross(every):
        sentences.append(f"{crossed.remark(seeds)} {CROSSED}")
    if any(tags.get("git.dirty") == "true" for side in (a, b) for tags in side.tags.values()):
        same = [kind for kind in same if kind != "code"]
        sentences.append(UNCOMMITTED)
    return Verdict(differences, same, matches, (lonely[0], lonely[1]), sentences)


def matched(
    a: Side, b: Side, predictions: Predictions
) -> tuple[list[str], dict[tuple[Any, ...], pd.DataFrame], dict[tuple[Any, ...], pd.DataFrame]]:
    """Return the runs of both groups by setting.

    Args:
        a: The first group.
        b: The second.
        predictions: Returns what a run has predicted for the test set.

    Returns:
        The parameters that differ inside a group; by their values, the runs of A and those of B.

    Raises:
        UserError: As `compare` does.
    """
    if both := set(a.ids) & set(b.ids):
        raise UserError(
            f"run {min(both)} is on both sides, expected different runs: a run compared with "
            "itself tells nothing"
        )
    check_test_sets(a, b, predictions)
    within = _within(a.study, b.study)
    left, right = (_settings(side.study, within) for side in (a, b))
    if not left.keys() & right.keys():
        raise UserError(_nothing_in_common(a.study, b.study, within))
    return within, left, right


def check_test_sets(a: Side, b: Side, predictions: Predictions) -> None:
    """Refuse groups that were not all tested on the same images.

    Equal digests say that they were. A digest is of the training images as well, though: where
    what they were trained on accounts for the difference, the test labels decide.

    Raises:
        UserError: They were tested on different images.
    """
    known: dict[str | None, tuple[str, list[Any]]] = {}
    for side in (a, b):
        for run in side.study.used.to_dict("records"):
            digest = side.tags[run["run_id"]].get("data.digest")
            known.setdefault(digest, (run["run_id"], trained_on(run)))
    (first, chosen), *others = known.values()
    for run_id, other in others:
        mine, its = (predictions(each)[1] for each in (first, run_id))
        if chosen == other or not np.array_equal(mine, its):
            raise UserError(
                f"runs {first} and {run_id} were tested on different images "
                f"({len(mine):,} and {len(its):,}; their data digests differ), expected "
                "the same test set: accuracies on different images cannot be compared"
            )


def _within(a: Study, b: Study) -> list[str]:
    """The parameters that differ inside a group, by which its runs are matched."""
    return list(dict.fromkeys([*a.parameters, *b.parameters]))


def _settings(study: Study, within: Sequence[str]) -> dict[tuple[Any, ...], pd.DataFrame]:
    missing = {name: pd.Series(None, study.used.index, object) for name in within}
    used = study.used.assign(**{name: missing[name] for name in within if name not in study.used})
    return grouped(used, within)


def _results(
    a: pd.DataFrame,
    b: pd.DataFrame,
    predictions: Predictions,
    correctness: Correctness,
    unreadable: list[str],
) -> list[Result]:
    """Return a result for each metric; add to `unreadable` what kept one from being tested."""
    results = []
    paired = same_seeds(a, b)
    parted = [samples(draws_of(side)) for side in (a, b)]
    # What one more run would do cannot be told of means, and runs that share a seed are too alike.
    crossing = any("" not in by for by in parted)
    several = min(len(a), len(b)) > 1 and not crossing
    correct = [correctness.of(side["run_id"].tolist()) if several else None for side in (a, b)]
    for metric in METRICS:
        if metric not in a or metric not in b:
            continue
        mine, its = (group[metric].to_numpy(float) for group in (a, b))
        if not (np.abs([*mine, *its]) < MOST_LOSS).all():
            continue
        found = further = None
        if len(a) > 1 or len(b) > 1:
            found = crossed.compare(a, b, metric, paired=paired)
            if metric in ACCURACIES and not crossing:
                further = beyond(metric, found, (a, b), (correct[0], correct[1]), paired)
        elif metric == TESTED:
            try:
                found = _mcnemar(a["run_id"].iloc[0], b["run_id"].iloc[0], predictions)
            except UserError as error:
                unreadable.append(f"{METRICS[metric]} cannot be tested: {error}.")
        first, second = parted
        results.append(Result(metric, interval(mine, first), interval(its, second), found, further))
    return results


def same_seeds(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    """Return whether runs belong together in pairs; a study has them in order of seeds.

    Args:
        a: Runs of one setting.
        b: Runs of another.
    """
    known = all("seed" in group and group["seed"].notna().all() for group in (a, b))
    return known and seeds_of(a) == seeds_of(b)


def _mcnemar(a: str, b: str, predictions: Predictions) -> Comparison:
    (mine, labels), (its, others) = predictions(a), predictions(b)
    if not np.array_equal(labels, others):
        raise UserError(f"the predictions of runs {a} and {b} are of different images")
    return statistics.mcnemar_exact(mine.argmax(axis=1) == labels, its.argmax(axis=1) == labels)


def _sentences(matches: Sequence[Match], differences: Sequence[Difference]) -> list[str]:
    fewest = min(min(match.runs) for match in matches)
    most = max(max(match.runs) for match in matches)
    worth = SINGLE if most == 1 else NO_SPREAD if fewest == 1 else SEVERAL
    sentences = []
    if all(each.name in BESIDE_THE_POINT for each in differences):
        sentences.append(SAME_SETTING)
    if len(matches) == 1:
        for metric, _, _, found, _ in matches[0].results:
            if found is not None and metric in ACCURACIES:
                sentences.append(sentence(found.sentence("A", "B", METRICS[metric].lower())))
        further = ((each.metric, each.beyond) for each in matches[0].results if each.beyond)
        sentences += of_one(further, matches[0].paired)
    else:
        measured = {result.metric for match in matches for result in match.results}
        sentences += [_tally(metric, matches) for metric in ACCURACIES if metric in measured]
        tested = [each for match in matches for each in match.results if each.metric == TESTED]
        sentences += of_several([each.beyond for each in tested])
    return [*sentences, worth]


def _tally(metric: str, matches: Sequence[Match]) -> str:
    """In how many settings there is evidence, with Bonferroni's correction for their number."""
    name = METRICS[metric].lower()
    tested = [
        result.found
        for match in matches
        for result in match.results
        if result.metric == metric and result.found and not math.isnan(result.found.p_value)
    ]
    if not tested:
        return f"No evidence of a difference in {name}: without any spread nothing can be tested."
    strict = f"p < {LEVEL} / {len(tested)}, as {counted(len(tested), 'setting')} are tested"
    sure = [found for found in tested if found.p_value < LEVEL / len(tested)]
    if not sure:
        return f"No evidence of a difference in {name} in any setting ({strict})."
    higher = sum(found.difference > 0 for found in sure)
    words = {"higher": higher, "lower": len(sure) - higher}
    told = " and ".join(f"{word} in {n}" for word, n in words.items() if n)
    return f"{name.capitalize()} of A is {told} of {len(tested)} settings ({strict})."


def _nothing_in_common(a: Study, b: Study, within: Sequence[str]) -> str:
    def described(study: Study, side: str) -> str:
        values = [f"{name}={values_in_words(study.used.get(name, [None]))}" for name in within]
        return f"{side} has {', '.join(values)}"

    return (
        "the runs of a side differ in more than their seed, and none has a counterpart on the "
        f"other side: {described(a, 'A')}; {described(b, 'B')}; name runs of one setting on each "
        f"side, for example with {within[0]}=… as well"
    )
