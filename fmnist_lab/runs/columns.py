"""The columns of `runs list`: what a row has in each, and which are needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fmnist_lab import tracking
from fmnist_lab.config import naming
from fmnist_lab.config.nearest import nearest
from fmnist_lab.errors import UserError
from fmnist_lab.texts import duration

# Facts that every row has, beside its parameters and metrics.
FACTS = ("run", "name", "differs", "state", "started", "duration")
# Columns of a table of runs that a list has under another name, or that no line can show.
INTERNAL = ("run_id", "status", "ended", "sweeps", "trial_values", "search")
SHOWN = {
    "accuracy/validation": "validation accuracy",
    "accuracy/test": "test accuracy",
    "accuracy/gap": "gap",
}
EXAMPLE = "--columns name,optimizer,accuracy/gap"


@dataclass(frozen=True)
class Listed:
    """A run or a sweep in a list.

    Attributes:
        row: The run, as `tracking.rows` yields it.
        summary: The sweep in short; None: it is a run.
        lost: True if it has lost files.
    """

    row: dict[str, Any]
    summary: tracking.SweepSummary | None
    lost: bool

    @property
    def name(self) -> str:
        """The name, with those that it was promoted to."""
        return str(self.row["name"])

    @property
    def params(self) -> dict[str, str]:
        """The parameters, of a sweep those that its runs have in common."""
        first, *others = self.summary.sample or [{}] if self.summary else [self.row]
        return {
            name: value
            for name, value in first.items()
            if isinstance(value, str) and all(each.get(name) == value for each in others)
        }

    @property
    def differs(self) -> str:
        """How it differs from the defaults."""
        return naming.spoken(naming.differences(self.params))

    @property
    def is_told_by_name(self) -> bool:
        """True if the name says how it differs."""
        return set(naming.words(naming.differences(self.params))) <= set(self.name.split())

    @property
    def state(self) -> str:
        """The state, of a sweep with the number of its runs."""
        state = of_sweep(self.row["status"], self.summary) if self.summary else self.row["status"]
        return f"{state}, files lost" if self.lost else str(state)

    def started(self, date: str = "%Y-%m-%d %H:%M") -> str:
        """Return when it began, in this machine's time zone; "" if its time is none."""
        started = self.row["started"]
        return f"{started.to_pydatetime().astimezone():{date}}" if started == started else ""

    def figure(self, metric: str) -> str:
        """Return a metric, of a sweep that of its best setting; "" if there is none."""
        is_sweep = self.row["job"] == "sweep"
        value = self.row.get(metric, math.nan)
        if is_sweep:
            value = self.row.get(tracking.best_mean(metric), value)
        if not isinstance(value, int | float) or math.isnan(value):
            return ""
        if metric.startswith("accuracy/"):
            # A value beyond ±1 is no accuracy, whoever has logged it.
            return f"{value:.4f}" if abs(value) <= 1 else ""
        return f"{value:.4f}" if metric.startswith("loss/") else f"{value:.4g}"

    def is_figure(self, column: str) -> bool:
        """Return whether a column is a metric of it."""
        best = tracking.best_mean(column)
        return any(isinstance(self.row.get(name), int | float) for name in (column, best))

    @property
    def columns(self) -> set[str]:
        """The names of the columns in which it has something."""
        names = {name for name, value in self.row.items() if value != ""}
        # Those of a sweep are called sweep/best_mean/accuracy_test.
        best = {name for name in names if name.startswith(tracking.best_mean(""))}
        means = {name.removeprefix(tracking.best_mean("")).replace("_", "/", 1) for name in best}
        return {*FACTS, *(names - best), *means, *self.params} - {*INTERNAL}

    def value(self, column: str) -> str:
        """Return what it has in a column; "" if that is nothing."""
        if column == "run":
            return str(self.row["run_id"])
        if column == "started":
            return self.started()
        if column == "duration":
            took = (self.row["ended"] - self.row["started"]).total_seconds()
            return "" if math.isnan(took) else duration(took)
        if column in FACTS:
            return str(getattr(self, column))
        if self.is_figure(column):
            return self.figure(column)
        found = self.row.get(column, self.params.get(column))
        # A failure may have several lines.
        return "" if found is None else " ".join(str(found).split())


def of_sweep(status: str, summary: tracking.SweepSummary) -> str:
    """Return the state of a sweep, with the number of its runs.

    Args:
        status: MLflow's status.
        summary: The sweep in short.

    >>> from collections import Counter
    >>> of_sweep("FAILED", tracking.SweepSummary(Counter(FINISHED=12, FAILED=1), False, []))
    'FAILED: 12 of 13 finished, 1 failed'
    >>> of_sweep("FINISHED", tracking.SweepSummary(Counter(FINISHED=60), False, []))
    'FINISHED: 60 runs'
    """
    states = summary.states
    total = f"{states.total():,}{'+' if summary.more else ''}"
    if set(states) <= {"FINISHED"}:
        return f"{status}: {total} run{'' if states.total() == 1 else 's'}"
    done = states["FINISHED"]
    others = (f"{n:,} {state.lower()}" for state, n in states.most_common() if state != "FINISHED")
    return f"{status}: {', '.join([f'{done:,} of {total} finished', *others])}"


def is_needed(values: Sequence[str]) -> bool:
    """Return whether a column says something: it is not empty, and not the same in all rows.

    >>> [is_needed(each) for each in (["a", "b"], ["a", ""], ["a", "a"], ["", ""], ["a"])]
    [True, True, False, False, True]
    """
    return any(values) and (len(values) == 1 or len(set(values)) > 1)


def in_common(listed: Sequence[Listed]) -> str:
    """Return in a sentence what all rows have in columns that are left out for that; or ""."""
    columns = {"state": "", **{metric: f"{title} " for metric, title in SHOWN.items()}}
    told = []
    for column, title in columns.items():
        values = [each.value(column) for each in listed]
        if any(values) and not is_needed(values):
            told.append(f"{title}{values[0]}")
    return f"The same in all rows: {', '.join(told)}." if told else ""


def asked_for(words: str, listed: Iterable[Listed]) -> list[str]:
    """Return the columns that a command line asks for.

    Args:
        words: Their names, separated by commas.
        listed: The rows.

    Raises:
        UserError: A name is empty, or no row has such a column.
    """
    rows = list(listed)
    known = set().union(*(each.columns for each in rows))
    # The table's own titles mean the same.
    metrics = {title: metric for metric, title in SHOWN.items()}
    given = [name.strip() for name in words.split(",")]
    names = list(dict.fromkeys(metrics.get(name, name) for name in given))
    for name in names:
        if not name:
            raise UserError(
                f"--columns: received '{words}', expected names separated by commas, such as "
                f"{EXAMPLE}"
            )
        if name not in known:
            near = nearest(name, sorted(known))
            hint = f"did you mean {near}?" if near else f"there are {', '.join(sorted(known))}"
            raise UserError(
                f"--columns: received {name}, which none of the listed runs has; {hint}"
            )
    return names
