"""A study in; tables and sentences that say what was found, and what that is worth, out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fmnist_lab.studies import crossed
from fmnist_lab.studies.design import changes, has_order, heat_map_sides, most_common
from fmnist_lab.studies.frames import (
    CLEAN_GAP,
    METRICS,
    TEST_SETS,
    VALIDATED,
    cell,
    draws_of,
    metrics_of,
    ordered,
    rows_of,
    seeds_of,
    sentence,
    short_names,
    shown,
)
from fmnist_lab.studies.summary import Study, best, deciding
from fmnist_lab.texts import counted

MOST_NAMED = 3  # Of more varied parameters, only uncommon values are told.
NOT_CHOSEN = (
    "This describes the results; it is no selection. A setting picked by its test accuracy "
    "is fitted to the test set and looks better than it is: to choose one, use a validation split."
)
OTHER_IMAGES = (
    "Settings were tested on different images ({}): their accuracies cannot be compared with each "
    "other."
)

WRONG_LABELS = (
    "The accuracy gap is by the labels that were trained on, some of which are wrong; the gap on "
    "true labels is by the true ones of the same images, and tells whether a network overfits."
)


def findings(study: Study) -> list[str]:
    """Return in plain words how many runs there are, what stands out, and what that is worth."""
    counts = Counter(study.runs["status"].astype(str))
    states = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    kept = "." if not study.unused else f"; {len(study.used)} in the means."
    sentences = [f"{counted(len(study.runs), 'run')}: {states}{kept}"]
    fewest, most = int(study.summary["runs"].min()), int(study.summary["runs"].max())
    if most == 1:
        sentences.append("One seed per setting: no intervals, so differences may be chance.")
    else:
        some = " Settings with a single run have none." if fewest == 1 else ""
        sentences.append(
            "± is half the width of the 95 % interval (Student's t) of the mean over the runs of a "
            f"setting, which differ in their seed.{some}"
        )
    draws, settings = draws_of(study.used), rows_of(study.used, study.parameters).values()
    if seeds := crossed.seeds_that_cross([draws[row] for row in rows] for rows in settings):
        sentences.append(crossed.remark(seeds))
    short = short_names(study.parameters)
    tested = [short[name] for name in TEST_SETS if name in study.parameters]
    if tested:
        sentences.append(OTHER_IMAGES.format(", ".join(tested)))
    elif study.parameters:
        top, metric = best(study.summary).iloc[0], deciding(study.summary)
        its = f"Its test accuracy, which had no say in this, is {cell(top, 'accuracy/test')}."
        sentences.append(
            f"Highest mean {METRICS[metric].lower()}: {cell(top, metric)} with "
            f"{_named(study, top, study.parameters)}. {its if metric == VALIDATED else NOT_CHOSEN}"
        )
    if CLEAN_GAP in metrics_of(study.summary):
        sentences.append(WRONG_LABELS)
    return sentences + _growth(study)


def _growth(study: Study) -> list[str]:
    """Return whether the gap differs between the ends of each of the two main parameters.

    The others are at their last values: a setting chosen by its results would bias the test.
    """
    sentences = []
    gap = CLEAN_GAP if CLEAN_GAP in metrics_of(study.summary) else "accuracy/gap"
    last = study.summary.iloc[-1]
    parts = rows_of(study.used, study.parameters)
    for name in heat_map_sides(study, None):
        levels = ordered(study.summary[name])
        settings = [
            tuple(level if other == name else last[other] for other in study.parameters)
            for level in (levels[-1], levels[0])
        ]
        comparable = has_order(levels) and name not in TEST_SETS and len(set(settings)) == 2
        if not comparable or not all(setting in parts for setting in settings):
            continue
        high, low = (study.used.iloc[parts[setting]] for setting in settings)
        known = "seed" in high and high["seed"].notna().all()
        paired = known and seeds_of(high) == seeds_of(low)
        found = crossed.compare(high, low, gap, paired=paired)
        if math.isnan(found.p_value):
            continue
        short = short_names(study.parameters)[name]
        words = found.sentence(
            f"{short} {shown(levels[-1])}", f"{short} {shown(levels[0])}", METRICS[gap].lower()
        )
        rest = [other for other in study.parameters if other != name]
        sentences.append(f"With {_named(study, last, rest)}: {words}." if rest else sentence(words))
    return sentences


def _named(study: Study, row: Mapping[Any, Any], parameters: Sequence[str]) -> str:
    """Return the values of a setting; of many parameters, those that few others have."""
    short = short_names(parameters)
    if len(parameters) <= MOST_NAMED:
        return ", ".join(f"{short[name]} {shown(row[name], name)}" for name in parameters)
    common = most_common(study)
    told = changes(row, {name: common[name] for name in parameters})
    if told == "(none)":
        return f"the most common values of all {len(parameters)} parameters"
    return f"{told}, and else the most common values"


def settings_table(
    study: Study, *, folded: bool = False
) -> tuple[list[str], list[list[str]], list[str]]:
    """Return the summary as a reader sees it, in a terminal, in Markdown or in HTML.

    Args:
        study: The runs, taken apart.
        folded: Whether one column tells what differs from the most common values, in place of a
            column for each parameter.

    Returns:
        Headings, rows, and the metrics of the last columns; the number of runs stands before them.
    """
    names, metrics = short_names(study.parameters), metrics_of(study.summary)
    common = most_common(study)
    headings = ["differs in"] if folded else list(names.values())
    rows = [
        [
            *([changes(row, common)] if folded else (shown(row[name], name) for name in names)),
            str(int(row["runs"])),
            *(cell(row, metric) for metric in metrics),
        ]
        for row in study.summary.to_dict("records")
    ]
    return [*headings, "runs", *(METRICS[metric].lower() for metric in metrics)], rows, metrics


def common_values(study: Study) -> str:
    """Return a sentence that tells what a folded table's settings differ from."""
    known = {name: value for name, value in most_common(study).items() if value is not None}
    names = short_names(study.parameters)
    told = ", ".join(f"{names[name]} {shown(value)}" for name, value in known.items())
    return f"The table tells what differs from the most common values: {told}."
