"""A search in; sentences and tables that say what was found, and what that is worth, out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fmnist_lab.studies.frames import VALIDATED, listed, mean_text, number, percent, shown
from fmnist_lab.studies.importance import Importance
from fmnist_lab.studies.search_marks import spoken
from fmnist_lab.studies.trials import MAXIMIZE, Parameter, Search
from fmnist_lab.studies.writing import Table
from fmnist_lab.texts import counted, duration, line

EDGE = 0.02  # Of an interval, nearer than which to its end a value is at its end.
MOST_TOLD, LEAST_TOLD = 3, 0.01  # Hyperparameters whose importance is told, and its least share.
BEST_SHOWN = 10


def findings(search: Search, importances: Sequence[Importance]) -> list[str]:
    """Return in plain words how many trials there are, what they took, and what they found.

    Args:
        search: The search, taken apart.
        importances: Of its hyperparameters.
    """
    return [
        _counts(search),
        _cost(search),
        *(_best(search) if len(search.objectives) == 1 else _front(search)),
        *_importance(search, importances),
        *_finals(search),
    ]


def _counts(search: Search) -> str:
    counts = Counter(search.trials["status"])
    order = ["FINISHED", "PAUSED", *sorted(set(counts) - {"FINISHED", "PAUSED"})]
    states = ", ".join(f"{counts[each]} {each}" for each in order if counts[each])
    wanted = search.facts.get("n_trials")
    planned = ""
    if isinstance(wanted, int) and wanted > len(search.trials):
        planned = f" of {wanted:,} that were asked for"
    paused = ""
    if counts["PAUSED"]:
        paused = (
            " The search paused trials that others at the same epoch outdid; each is kept with its "
            "exact checkpoint."
        )
    return f"{counted(len(search.trials), 'trial')}{planned}: {states}.{paused}"


def _cost(search: Search) -> str:
    spent = int(search.trials["epochs"].sum())
    whole = int((search.trials["epochs"] > 0).sum()) * search.rungs[-1].epochs
    told = f"The trials took {counted(spent, 'epoch')}"
    if search.is_pruned and whole:
        share = percent(spent / whole)
        told += f", {share} of the {whole:,} that they would have taken without pruning"
    seconds, workers = search.facts.get("seconds"), search.facts.get("workers")
    if isinstance(seconds, int | float) and seconds > 0:
        told += f"; the search took {duration(seconds)}"
        told += f" on {counted(workers, 'worker')}" if isinstance(workers, int) else ""
    return f"{told}."


def brief(value: Any, name: str = "") -> str:
    """Return a value as people read it: a number with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else shown(value, name)


def values_text(search: Search, trial: int) -> str:
    """Return the values of a trial in words: "learning rate 0.003, dropout 0.1"."""
    row = search.row(trial)
    return ", ".join(f"{each.name} {brief(row[each.key], each.key)}" for each in search.parameters)


def _best(search: Search) -> list[str]:
    metric, direction = search.objective, search.objectives[search.objective]
    if search.best is None:
        return [f"No trial has finished yet, so there is no best {spoken(metric)}."]
    value = number(search.row(search.best)[metric])
    over = int((search.trials["status"] == "FINISHED").sum())
    word = "highest" if direction == MAXIMIZE else "lowest"
    told = [
        f"{word.capitalize()} {spoken(metric)}: {value} in trial {search.best}, with "
        f"{values_text(search, search.best)}."
    ]
    if over > 1:
        told[0] += f" As the {word} of {over} finished trials it looks better than it is."
    edges = [each for each in search.parameters if _edge(each, search)]
    if edges:
        where = listed([f"{each.name} ({_edge(each, search)} end)" for each in edges])
        told.append(
            f"The best trial lies at an end of what was searched: {where}. Better values may lie "
            "beyond."
        )
    return told


def _edge(parameter: Parameter, search: Search) -> str:
    """Return which end of its interval the winner's value is at, or ""."""
    if parameter.levels or search.best is None:
        return ""
    place = parameter.place(search.row(search.best)[parameter.key])
    return "lower" if place < EDGE else "upper" if place > 1 - EDGE else ""


def _front(search: Search) -> list[str]:
    if not search.front:
        return ["No trial has finished yet, so there is no Pareto front."]
    ends = []
    for metric, direction in search.objectives.items():
        known = {trial: search.row(trial)[metric] for trial in search.front}
        best = (max if direction == MAXIMIZE else min)(known, key=known.__getitem__)
        word = "highest" if direction == MAXIMIZE else "lowest"
        ends.append(f"trial {best} has the {word} {spoken(metric)} ({number(known[best])})")
    others = len(search.trials[search.trials["status"] == "FINISHED"]) - len(search.front)
    told = [
        f"{counted(len(search.front), 'trial')} of {others + len(search.front)} finished ones make "
        "up the Pareto front: no other is at least as good in all objectives and better in one. "
        f"Of these, {listed(ends)}."
    ]
    if search.best is not None:
        told.append(f"Chosen: trial {search.best}, with {values_text(search, search.best)}.")
    return told


def _importance(search: Search, importances: Sequence[Importance]) -> list[str]:
    told = []
    for each in importances:
        metric = spoken(each.metric)
        if not each.shares:
            told.append(f"No importance of hyperparameters for {metric}: {each.reason}.")
            continue
        names = {parameter.key: parameter.name for parameter in search.parameters}
        first = [
            f"{names[key]} {percent(share)}"
            for key, share in list(each.shares.items())[:MOST_TOLD]
            if share >= LEAST_TOLD
        ]
        rest = ""
        if search.is_pruned:
            rest = (
                " Trials that went further were picked by their results and hardly differ in what "
                "matters."
            )
        told.append(
            f"For {metric} after {counted(each.epochs, 'epoch')} these hyperparameters mattered "
            f"most: {listed(first)} (main effects of fANOVA over "
            f"{counted(each.trials, 'trial')}).{rest}"
        )
    return told


def _finals(search: Search) -> list[str]:
    finals, tested = search.finals, search.tested
    if tested is None:
        if search.best is None:
            return []
        if len(finals):
            states = ", ".join(f"{n} {state}" for state, n in Counter(finals["status"]).items())
            return [f"No final has finished ({states}), so there is no test figure yet."]
        return ["The winner has not been retrained, so there is no test figure."]
    many = f"{tested.count} times" if tested.count > 1 else "once"
    told = (
        f"Trained {many} on all training images, with fresh seeds, the winner has a test accuracy "
        f"of {mean_text(tested.mean, tested.high - tested.mean)}"
    )
    told += (
        " (± half the 95 % interval of the mean over the seeds, Student's t)"
        if tested.count > 1
        else ""
    )
    missing = len(finals) - tested.count
    lost = f" {counted(missing, 'final')} did not finish." if missing else ""
    validated = math.nan if search.best is None else search.row(search.best)[VALIDATED]
    if not math.isfinite(validated):
        return [f"{told}.{lost}"]
    less = validated - tested.mean
    side = "below" if less > 0 else "above"
    return [
        f"{told}. That is {number(abs(less))} {side} its validation accuracy in the search, "
        f"{number(validated)}; the test images had no say in the search.{lost}"
    ]


def ranked(search: Search) -> list[dict[Any, Any]]:
    """Return the rows of the trials, the best first; those that have come further come first.

    The trials of a Pareto front come before all others.
    """
    sign = -1 if search.objectives[search.objective] == MAXIMIZE else 1

    def place(row: Mapping[Any, Any]) -> tuple[Any, ...]:
        value = row[search.objective]
        cost = sign * value if math.isfinite(value) else math.inf
        is_over = row["status"] == "FINISHED"
        return row["trial"] not in search.front, not is_over, -row["epochs"], cost, row["trial"]

    return sorted(search.trials.to_dict("records"), key=place)


def trials_table(search: Search, rows: Sequence[Mapping[Any, Any]], title: str) -> Table:
    """Return trials as a reader sees them, a column for each hyperparameter."""
    headings = ["trial", "state", "epochs", *(spoken(each) for each in search.objectives)]
    headings += [each.name for each in search.parameters]
    cells = [
        [
            *(str(row["trial"]), row["status"], str(row["epochs"])),
            *(mean_text(row[metric]) for metric in search.objectives),
            *(brief(row[each.key], each.key) for each in search.parameters),
        ]
        for row in rows
    ]
    return Table(title, headings, cells, is_right=True)


def rungs_table(search: Search) -> Table:
    """Return how many trials came to each rung, and what each rung cost."""
    has_seconds = any(math.isfinite(rung.seconds) for rung in search.rungs)
    headings = ["epochs", "trials", "paused", "promoted", "epochs spent"]
    headings += ["time of workers"] * has_seconds + [f"best {spoken(search.objective)}"]
    cells = [
        [
            *map(str, (rung.epochs, rung.trials, rung.paused)),
            str(rung.promoted) if rung is not search.rungs[-1] else "",
            f"{rung.spent:,}",
            *([duration(rung.seconds)] * has_seconds),
            mean_text(rung.best),
        ]
        for rung in search.rungs
    ]
    return Table("Rungs", headings, cells, is_right=True)


def finals_table(search: Search) -> Table:
    """Return the finals with their test figures."""
    metrics = [
        each for each in ("accuracy/test", "accuracy/gap", "loss/test") if each in search.finals
    ]
    headings = ["run", "state", "seed", *(spoken(metric) for metric in metrics)]
    cells = [
        [
            *(str(row["name"]), str(row["status"]), shown(row.get("seed"))),
            *(mean_text(row[metric]) for metric in metrics),
        ]
        for row in search.finals.to_dict("records")
    ]
    return Table("The winner, retrained", headings, cells)


def failures_table(search: Search) -> Table | None:
    """Return the trials that failed, with their reasons; None if none did."""
    rows = [
        [str(row["trial"]), row["status"], line(row["failure"], 300) or "no reason recorded"]
        for row in search.trials.to_dict("records")
        if row["status"] in ("FAILED", "KILLED")
    ]
    return Table("Trials that failed", ("trial", "state", "reason"), rows) if rows else None
