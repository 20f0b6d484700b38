"""Runs in; which were varied in what, which of them count, and means with intervals out.

The tables are as in `frames`. Means are over the FINISHED runs of a setting. Of runs that repeat
setting and seed only one counts: a copy would make the mean seem better known than it is.
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
from fmnist_lab.evaluation.statistics import Interval
from fmnist_lab.studies.crossed import Samples, averaged, samples, widest
from fmnist_lab.studies.frames import (
    CHOICES,
    CLEAN_GAP,
    EPOCHS,
    GAP,
    METRICS,
    RARE,
    SEEDS,
    VALIDATED,
    column,
    deciding_parameters,
    draws_of,
    metrics_of,
    order_key,
    parsed,
    rows_of,
)
from fmnist_lab.texts import counted

FIRST = (EPOCHS, "model.hidden_units", *CHOICES)
MOST_LOSS = 1e100  # Sums of squares beyond it overflow.


class Unused(NamedTuple):
    """A run that is in no mean, and why."""

    run: str
    status: str
    reason: str


@dataclass(frozen=True)
class Study:
    """Runs, taken apart.

    Attributes:
        runs: All of them, parameters parsed, ordered by setting and seed.
        used: Those that the means are over.
        unused: The others.
        parameters: The varied parameters, as `varied` returns them.
        summary: One row per setting, as `summarize` returns it.
    """

    runs: pd.DataFrame
    used: pd.DataFrame
    unused: list[Unused]
    parameters: list[str]
    summary: pd.DataFrame


def varied(runs: pd.DataFrame) -> list[str]:
    """Return the parameters that differ among runs, but for seeds; epochs and widths first.

    A parameter that only some choices of its group have, with a single value, is left out: AdamW
    among other optimizers brings its `optimizer.weight_decay` along.
    """
    return _varied(parsed(runs))


def _varied(runs: pd.DataFrame) -> list[str]:
    parameters = deciding_parameters(runs)
    # A run that failed before it logged its parameters does not make them all vary.
    begun = runs[runs[parameters].notna().any(axis=1)] if parameters else runs
    values = {name: begun[name].tolist() for name in parameters}
    found = [name for name in parameters if len(set(values[name])) > 1]
    found = [name for name in found if not _comes_with_a_choice(name, values)]
    return sorted(found, key=lambda n: (FIRST.index(n) if n in FIRST else len(FIRST), n))


def _comes_with_a_choice(name: str, values: dict[str, list[Any]]) -> bool:
    choice = values.get(name.partition(".")[0])
    if choice is None or name in CHOICES:
        return False
    pairs = set(zip(choice, values[name], strict=True))
    levels = {value for _, value in pairs}
    return None in levels and len(levels) == 2 and len(pairs) == len(set(choice))


def take_apart(runs: pd.DataFrame) -> Study:
    """Separate the runs that count from those that do not, and summarize the former.

    Raises:
        UserError: No run is finished.
    """
    runs = parsed(runs)
    parameters = _varied(runs)
    keys = [*parameters, *(name for name in (*SEEDS, "name", "run_id") if name in runs)]
    rows = [[order_key(value) for value in row] for row in runs[keys].itertuples(index=False)]
    runs = runs.iloc[sorted(range(len(rows)), key=rows.__getitem__)].reset_index(drop=True)
    identity, draws = deciding_parameters(runs), draws_of(runs)
    chosen: list[int] = []
    unused: list[Unused] = []
    first: dict[tuple[Any, ...], str] = {}
    for row, run in enumerate(runs.to_dict("records")):
        reason = _lack(run)
        setting = (*(run[name] for name in identity), *draws[row])
        if not reason and run.get("seed") is not None:
            if setting in first:
                reason = f"repeats setting and seed of {first[setting]}"
            first.setdefault(setting, f"{run['name']} ({run['run_id']})")
        if reason:
            unused.append(Unused(str(run["name"]), str(run["status"]), reason))
        else:
            chosen.append(row)
    if not chosen:
        raise UserError(_nothing(unused))
    used = runs.iloc[chosen]
    return Study(runs, used, unused, parameters, _summary(used, parameters))


def _lack(run: dict[str, Any]) -> str:
    """Return why a run counts for nothing; empty if it does count."""
    if run["status"] != "FINISHED":
        if run["status"] in ("RUNNING", "SCHEDULED"):
            return "has not ended"
        if run["status"] == "PAUSED":
            return "is paused before its last epoch"
        failure = run.get("failure")
        return " ".join(failure.split())[:300] if isinstance(failure, str) else "no reason recorded"
    for metric in ("accuracy/test", "accuracy/gap"):
        value = run.get(metric, math.nan)
        if not math.isfinite(value):
            return f"has no {metric}"
        if abs(value) > 1:
            return f"has {value:g} as its {metric}, which cannot be"
    return ""


def _nothing(unused: Sequence[Unused]) -> str:
    if not unused:
        return "there are no runs to report on: expected at least one that is FINISHED"
    reasons = "; ".join(f"{run.run} {run.status}: {run.reason}" for run in unused[:3])
    more = f"; and {len(unused) - 3} more" if len(unused) > 3 else ""
    then = "Mend that and repeat the command with resume=true"
    if all(run.status == "PAUSED" for run in unused):
        then = "Repeat the command with resume=true and without pause_after"
    return (
        f"none of {counted(len(unused), 'run')} finished, so there is nothing to report: {reasons}"
        f"{more}. {then}"
    )


def summarize(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row per setting: varied parameters, number of runs, means with 95 % intervals.

    Raises:
        UserError: No run is finished.
    """
    return take_apart(runs).summary


def _summary(used: pd.DataFrame, parameters: Sequence[str]) -> pd.DataFrame:
    settings = rows_of(used, parameters)
    columns = {
        name: column(setting[place] for setting in settings)
        for place, name in enumerate(parameters)
    }
    columns["runs"] = pd.Series([len(rows) for rows in settings.values()])
    draws = draws_of(used)
    parted = [samples([draws[row] for row in rows]) for rows in settings.values()]
    for metric in METRICS:
        if metric in RARE and not (metric in used and used[metric].notna().any()):
            continue
        values = used.get(metric, pd.Series(math.nan, used.index)).to_numpy(float)
        known = [
            interval(values[rows], by) for rows, by in zip(settings.values(), parted, strict=True)
        ]
        for end in ("mean", "low", "high"):
            columns[f"{metric}/{end}"] = pd.Series([getattr(one, end) for one in known])
    return pd.DataFrame(columns)


def interval(values: Any, by: Samples | None = None) -> Interval:
    """Return mean and 95 % interval of a metric over runs; nan where a run lacks it.

    Args:
        values: A number per run.
        by: What `crossed.samples` returns of the runs; None: they are independent.
    """
    values = np.asarray(values, np.float64)
    if not (np.abs(values) < MOST_LOSS).all():
        return Interval(math.nan, math.nan, math.nan, len(values))
    if by is not None:
        values = averaged(values, by[widest(by, values)])
    return statistics.mean_interval(values)


def best(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the settings with the highest mean accuracy; several if they tie.

    The accuracy is that on held-out images if all settings have it. Else it is that on the test
    set, to describe a study with, not to choose a model by: reports say so.
    """
    accuracy = summary[f"{deciding(summary)}/mean"]
    return summary[accuracy == accuracy.max()]


def deciding(summary: pd.DataFrame) -> str:
    """Return the metric that the best setting is told by."""
    everywhere = VALIDATED in metrics_of(summary) and summary[f"{VALIDATED}/mean"].notna().all()
    return VALIDATED if everywhere else "accuracy/test"


def longest(study: Study) -> dict[tuple[Any, ...], list[str]]:
    """Return the ids of the runs with the most epochs, of each setting apart from the epochs.

    The curves of a report are of these runs, so no others need to be read from a store.

    Returns:
        Ids by the values of the varied parameters but for the epochs.
    """
    ids = study.used["run_id"].tolist()
    epochs = study.used.get(EPOCHS, pd.Series(0, study.used.index)).tolist()
    found = {}
    for key, rows in rows_of(study.used, _but_epochs(study)).items():
        most = max((epochs[row] for row in rows), key=order_key)
        found[key] = [ids[row] for row in rows if epochs[row] == most]
    return found


def mean_curves(study: Study, curves: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a metric of each setting at each epoch.

    The points are means over the curves of the setting's runs with the most epochs, up to the last
    epoch that all of them have; where there are no curves, the results of settings that differ in
    their epochs.

    Args:
        study: The runs, taken apart.
        curves: As in `frames`.
        metric: Its name.

    Returns:
        One row per setting and epoch: varied parameters but for the epochs, `epoch`, `runs`,
        `mean`, `low` and `high`. Empty if nothing has more than one epoch.
    """
    columns = [*_but_epochs(study), "epoch", "runs", "mean", "low", "high"]
    rows: list[list[Any]] = []
    if len(curves):
        known = curves[(curves["metric"] == metric) & curves["value"].notna()]
        if metric == CLEAN_GAP and len(known):
            # Only runs with wrong labels have it; the labels of the others are all true.
            is_clean = ~curves["run_id"].isin(set(known["run_id"]))
            known = pd.concat([known, curves[(curves["metric"] == GAP) & is_clean]])
        traces = known.pivot(index="run_id", columns="epoch", values="value")
        draws = dict(zip(study.used["run_id"], draws_of(study.used), strict=True))
        for setting, wanted in longest(study).items():
            found = traces.loc[[run for run in wanted if run in traces.index]]
            together = found.dropna(axis=1) if len(found) else found.iloc[:, :0]
            by = samples([draws[run] for run in found.index])
            for epoch, values in zip(together, together.to_numpy(float).T, strict=True):
                at = interval(values, by)
                rows.append([*setting, int(epoch), len(values), at.mean, at.low, at.high])
    elif EPOCHS in study.parameters and metric in metrics_of(study.summary):
        ends = [f"{metric}/{end}" for end in ("mean", "low", "high")]
        rows = study.summary[[*columns[:-5], EPOCHS, "runs", *ends]].to_numpy(object).tolist()
    points = pd.DataFrame(
        {name: column(row[place] for row in rows) for place, name in enumerate(columns)}
    )
    return points if points["epoch"].nunique() > 1 else points.iloc[:0]


def _but_epochs(study: Study) -> list[str]:
    return [name for name in study.parameters if name != EPOCHS]
