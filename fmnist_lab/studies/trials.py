"""The runs of a search in; its trials, rungs, winner and finals out.

A search is told by its facts, which the tag `search.facts` of its parent run holds as JSON:
`objectives` (directions by metric), `space` (Hydra's overrides by key), `pruning`, `rungs`
(epochs), `epochs` (of a trial that is not pruned), `best`, `pareto`, `winner_command`, and perhaps
`seconds`, `workers` and `rung_seconds`. The tables are as in `frames`, with `role` ("trial" or
"final"), `trial` (its number) and `trial_values` (JSON: the values chosen, by key).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import pandas as pd

from fmnist_lab.errors import UserError
from fmnist_lab.evaluation.statistics import Interval
from fmnist_lab.studies.frames import EPOCHS, VALIDATED, column, ordered, short_names, value_of
from fmnist_lab.studies.summary import interval
from fmnist_lab.texts import counted, line, lines, whole_number

MAXIMIZE = "maximize"
MOST_LEVELS = 12  # Of a range of numbers; one with more is drawn as a scale.
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
START, END = rf"(?:start\s*=)?\s*({NUMBER})", rf"(?:end\s*=)?\s*({NUMBER})"
INTERVAL = re.compile(rf"\binterval\(\s*{START}\s*,\s*{END}\s*\)")
LOGARITHMIC = re.compile(r"\btag\([^()]*\blog\b[^()]*,")


@dataclass(frozen=True)
class Parameter:
    """A hyperparameter that was searched.

    Attributes:
        key: Its key in a config.
        name: Its name in tables and charts.
        levels: The values that were tried, in order, of one that is chosen from a list; else empty.
        low: The lower end of the interval that was searched; nan of a list.
        high: The upper end.
        is_log: Whether the interval was searched on a logarithmic scale.
    """

    key: str
    name: str
    levels: tuple[Any, ...]
    low: float
    high: float
    is_log: bool

    def place(self, value: Any) -> float:
        """Return where a value lies, from 0 to 1; nan of a value that is no number of a scale."""
        if self.levels:
            last = len(self.levels) - 1
            return self.levels.index(value) / last if last else 0.5
        if not isinstance(value, int | float):
            return math.nan
        low, high, at = (
            map(math.log, (self.low, self.high, value))
            if self.is_log
            else (self.low, self.high, value)
        )
        return (at - low) / (high - low)


class Rung(NamedTuple):
    """A number of epochs after which trials are compared.

    Attributes:
        epochs: This number.
        trials: How many trials have begun the epochs of this rung.
        paused: How many of them are paused at it.
        promoted: How many have gone on from it.
        spent: The epochs since the rung before, summed over all trials.
        seconds: The wall time that these took the workers, or nan.
        best: The best value of the first objective at it, or nan.
    """

    epochs: int
    trials: int
    paused: int
    promoted: int
    spent: int
    seconds: float
    best: float


@dataclass(frozen=True)
class Search:
    """A search, taken apart.

    Attributes:
        facts: What its parent run tells of it.
        objectives: Directions ("maximize" or "minimize") by metric.
        parameters: The hyperparameters.
        trials: One row per trial, in order: `trial`, `name`, `status`, `epochs` (done), a column
            for each objective, for the validation accuracy, and for each parameter's key, `seed`,
            `failure` and `run_id`.
        values: The first objective, one row per trial and one column per epoch; nan where a trial
            has not come.
        finals: The runs that train the winner on all training images, as in `frames`.
        rungs: One for each number of epochs at which trials are compared, one without pruning.
        best: The number of the winner, or None.
        front: The numbers of the trials that no other is better than in all objectives, by the
            first objective; of a single objective the winner alone.
    """

    facts: Mapping[str, Any]
    objectives: Mapping[str, str]
    parameters: tuple[Parameter, ...]
    trials: pd.DataFrame
    values: pd.DataFrame
    finals: pd.DataFrame
    rungs: tuple[Rung, ...]
    best: int | None
    front: tuple[int, ...]

    @property
    def objective(self) -> str:
        """The first objective."""
        return next(iter(self.objectives))

    @property
    def tested(self) -> Interval | None:
        """The finals' mean test accuracy with its 95 % interval; None if no final has finished."""
        return self.mean_of_finals("accuracy/test")

    def mean_of_finals(self, metric: str) -> Interval | None:
        """Return a metric's mean over the finished finals; None if there are none that have it."""
        if metric not in self.finals:
            return None
        over = self.finals[self.finals["status"] == "FINISHED"][metric]
        known = [float(value) for value in over if math.isfinite(value)]
        return interval(known) if known else None

    @property
    def is_pruned(self) -> bool:
        """Whether trials may be paused."""
        return len(self.rungs) > 1

    def row(self, trial: int) -> dict[Any, Any]:
        """Return the row of a trial."""
        found: dict[Any, Any] = self.trials[self.trials["trial"] == trial].iloc[0].to_dict()
        return found


def facts_of(text: str) -> dict[str, Any]:
    """Return the facts of a search.

    Args:
        text: The tag of its parent run.

    Raises:
        UserError: They are no facts of a search.
    """
    try:
        facts = json.loads(text)
        objectives, space = facts["objectives"], facts["space"]
        if not objectives or not {*objectives.values()} <= {MAXIMIZE, "minimize"}:
            raise ValueError(f"its objectives are {objectives}")
        if not all(isinstance(each, str) for each in space.values()):
            raise ValueError(f"its space is {space}")
        rungs = [int(epochs) for epochs in facts.get("rungs") or []]
        epochs = int(facts["epochs"])
        if min([epochs, *rungs]) < 1 or any(low >= high for low, high in pairwise(rungs)):
            raise ValueError(f"its rungs are {rungs} of {epochs} epochs")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"the tag search.facts of the search is damaged ({line(error, 200)}): received "
            f"'{line(text, 200)}', expected what the search itself has written"
        ) from None
    facts["rungs"] = (
        rungs if rungs[-1:] == [epochs] else [*(r for r in rungs if r < epochs), epochs]
    )
    return dict(facts)


def take_apart(runs: pd.DataFrame, curves: pd.DataFrame, facts: Mapping[str, Any]) -> Search:
    """Separate the trials of a search from its finals, and work out what came of them.

    Args:
        runs: The runs of the search, with `role`, `trial` and `trial_values`.
        curves: The objectives of each epoch.
        facts: What `facts_of` returns.

    Raises:
        UserError: No trial has a value yet.
    """
    objectives: dict[str, str] = facts["objectives"]
    rows = [dict(row) for row in runs.to_dict("records")]
    curve = _curve(curves, next(iter(objectives)))
    last = {run: values.last_valid_index() for run, values in curve.iterrows()}
    trials: dict[int, dict[str, Any]] = {}
    for run in rows:
        number = whole_number(run.get("trial"))
        if run.get("role") == "final" or number is None:
            continue
        trial = _trial(run, number, facts, last.get(run["run_id"]))
        # Of several runs of a trial, such as one that was lost and begun again, the furthest.
        if number not in trials or _progress(trial) >= _progress(trials[number]):
            trials[number] = trial
    if not trials:
        raise UserError(
            f"none of the search's {counted(len(runs), 'run')} is a trial, so there is nothing to "
            "report; repeat its command with resume=true"
        )
    table = pd.DataFrame([trials[number] for number in sorted(trials)])
    if not table[list(objectives)].map(math.isfinite).all(axis="columns").any():
        raise UserError(_nothing(table, list(objectives)))
    for key in facts["space"]:
        table[key] = column(table[key])
    values = curve.reindex(table["run_id"]).set_axis(table["trial"])
    best, front = _best(table, facts)
    return Search(
        facts=facts,
        objectives=objectives,
        parameters=tuple(_parameters(table, facts["space"])),
        trials=table,
        values=values,
        finals=pd.DataFrame(_finals(rows, best)),
        rungs=tuple(_rungs(table, values, facts)),
        best=best,
        front=front,
    )


def _nothing(trials: pd.DataFrame, objectives: Sequence[str]) -> str:
    reasons = dict.fromkeys(
        f"{row['status']}: {line(row['failure'], 300) or 'no reason recorded'}"
        for row in trials.to_dict("records")
        if row["status"] not in ("RUNNING", "PAUSED")
    )
    why = "; ".join(list(reasons)[:3])
    mend = f": {why}. Mend that and repeat the command with resume=true" if why else ""
    return (
        f"none of {counted(len(trials), 'trial')} has a finite {' and '.join(objectives)} yet, so "
        f"there is nothing to report{mend}"
    )


def _finals(rows: Iterable[dict[str, Any]], best: int | None) -> list[dict[str, Any]]:
    """Return one run per final of the winner; a search that went on had other winners before."""
    found: dict[Any, dict[str, Any]] = {}
    for run in rows:
        if run.get("role") != "final" or best not in (None, whole_number(run.get("trial"))):
            continue
        job = run.get("job_number", run["run_id"])
        if job not in found or found[job]["status"] != "FINISHED":
            found[job] = run
    return [found[job] for job in sorted(found)]


def state(status: str) -> str:
    """Return the state of a run; MLflow has no PAUSED and calls it SCHEDULED."""
    return "PAUSED" if status == "SCHEDULED" else status


def _curve(curves: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a metric with a row per run and a column per epoch, in order."""
    known = curves[(curves["metric"] == metric) & curves["value"].notna()]
    return known.pivot(index="run_id", columns="epoch", values="value").sort_index(axis="columns")


def _trial(
    run: Mapping[str, Any], number: int, facts: Mapping[str, Any], last: Any
) -> dict[str, Any]:
    """Return the row of a trial.

    Args:
        run: Its run.
        number: Its number.
        facts: The search's.
        last: The last epoch of its curve; None if it has none.
    """
    try:
        chosen = dict(json.loads(run.get("trial_values") or "{}"))
    except (ValueError, TypeError, RecursionError):
        chosen = {}  # Another tool has changed the tag; params tell the values as well.
    status = state(str(run["status"]))
    if last is None:
        known = value_of(run.get(EPOCHS)) if status == "FINISHED" else 0
        last = known if isinstance(known, int) else facts["epochs"]
    failure = run.get("failure")
    return {
        "trial": number,
        "name": str(run["name"]),
        "status": status,
        "epochs": int(last),
        **{
            metric: float(run.get(metric, math.nan)) for metric in (*facts["objectives"], VALIDATED)
        },
        **{key: value_of(chosen.get(key, run.get(key))) for key in facts["space"]},
        "seed": value_of(run.get("seed")),
        "failure": lines(failure) if isinstance(failure, str) else "",
        "run_id": run["run_id"],
    }


def _progress(trial: Mapping[str, Any]) -> tuple[bool, int]:
    return trial["status"] == "FINISHED", trial["epochs"]


def _parameters(trials: pd.DataFrame, space: Mapping[str, str]) -> Iterable[Parameter]:
    names = short_names(list(space))
    for key, text in space.items():
        tried = [value for value in trials[key] if value is not None]
        bounds = INTERVAL.search(text)
        if bounds and all(isinstance(value, int | float) for value in tried):
            # A value may lie beyond the interval by a rounding.
            low, high = min([float(bounds[1]), *tried]), max([float(bounds[2]), *tried])
            is_log = low > 0 and LOGARITHMIC.search(text) is not None
            if low < high:
                yield Parameter(key, names[key], (), low, high, is_log)
                continue
        levels = tuple(ordered(trials[key]))
        if len(levels) > MOST_LEVELS and all(isinstance(each, int | float) for each in levels):
            is_log = levels[0] > 0 and LOGARITHMIC.search(text) is not None
            yield Parameter(key, names[key], (), levels[0], levels[-1], is_log)
        else:
            yield Parameter(key, names[key], levels, math.nan, math.nan, False)


def _best(trials: pd.DataFrame, facts: Mapping[str, Any]) -> tuple[int | None, tuple[int, ...]]:
    """Return the winner, if there is one, and the Pareto front.

    The search's own choice counts; one that is still going on has made none.
    """
    objectives = facts["objectives"]
    finished = trials[trials["status"] == "FINISHED"].dropna(subset=list(objectives))
    known = set(finished["trial"])
    front = [number for number in facts.get("pareto") or [] if number in known]
    best = facts.get("best") if facts.get("best") in known else None
    signs = [-1 if direction == MAXIMIZE else 1 for direction in objectives.values()]
    costs = {
        int(row["trial"]): [
            sign * row[metric] for sign, metric in zip(signs, objectives, strict=True)
        ]
        for row in finished.to_dict("records")
    }
    if len(objectives) == 1:
        if best is None and costs:
            best = min(costs, key=lambda number: (costs[number], number))
        return best, () if best is None else (best,)
    if not front:
        front = [number for number, cost in costs.items() if not _is_beaten(cost, costs.values())]
    return best, tuple(sorted(front, key=lambda number: costs[number]))


def _is_beaten(cost: Sequence[float], others: Iterable[Sequence[float]]) -> bool:
    """Return whether another is no worse in any objective and better in one; less is better."""
    return any(
        other != cost and all(its <= mine for its, mine in zip(other, cost, strict=True))
        for other in others
    )


def _rungs(trials: pd.DataFrame, values: pd.DataFrame, facts: Mapping[str, Any]) -> Iterable[Rung]:
    direction = next(iter(facts["objectives"].values()))
    done, seconds = trials["epochs"], facts.get("rung_seconds") or []
    is_paused = trials["status"] == "PAUSED"
    before = 0
    for place, epochs in enumerate(facts["rungs"]):
        at = values[epochs].dropna() if epochs in values else pd.Series(dtype=float)
        yield Rung(
            epochs=epochs,
            trials=int((done > before).sum()),
            paused=int((is_paused & (done == epochs)).sum()),
            promoted=int((done > epochs).sum()),
            spent=int((done.clip(before, epochs) - before).sum()),
            seconds=float(seconds[place]) if place < len(seconds) else math.nan,
            best=float(at.max() if direction == MAXIMIZE else at.min()),
        )
        before = epochs
