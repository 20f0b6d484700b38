"""`list`: which runs there are, and how they fared."""

from __future__ import annotations

import math
import sys
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fmnist_lab import tracking
from fmnist_lab.console import count, duration
from fmnist_lab.errors import UserError, reported
from fmnist_lab.runs.selection import Experiment

if TYPE_CHECKING:
    import pandas as pd

WIDE = 120  # Columns of a terminal that has room for whole ids.


def list_runs(
    *,
    where: Annotated[str, Parameter(name="--filter")] = "",
    every: Annotated[bool, Parameter(name="--all")] = False,
    store: str | None = None,
    experiment: Experiment = tracking.DEFAULT_EXPERIMENT,
    most: Annotated[int, Parameter(show_default=True)] = 30,
) -> None:
    """List sweeps and runs, the newest first: state, age, test accuracy and gap.

    Args:
        where: MLflow's filter, such as "attributes.status = 'FAILED'"; all runs that fit are then
            listed, those of sweeps as well.
        every: List the runs of each sweep below it.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        experiment: The experiment to look into.
        most: How many to list at the most.
    """
    with reported():
        place = tracking.Store.locate(store, for_writing=False)
        runs, _ = tracking.find(place, experiment, where)
        if runs.empty:
            raise UserError(
                f"no run in experiment '{experiment}' of {place.uri} fits"
                f"{f' the filter {where}' if where else ''}"
            )
        rows = runs.to_dict("records") if where else _in_order(runs, every)
        console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
        # The beginning of an id is as good as all of it, unless it has to be folded.
        length = 32 if console.width >= WIDE else 8
        table = Table("run", "name", "state", "age", "test accuracy", "gap", box=None)
        table.columns[0].no_wrap = True
        for column in table.columns[3:]:
            column.justify = "right"
        counts = _counts(runs)
        now = datetime.now(UTC)
        for row in rows[:most]:
            figures = (row.get(f"accuracy/{part}", math.nan) for part in ("test", "gap"))
            table.add_row(
                row["run_id"][:length],
                escape(row["name"]),
                row["status"] + counts.get(row["run_id"], ""),
                duration((now - row["started"]).total_seconds()),
                *("" if math.isnan(figure) else f"{figure:.4f}" for figure in figures),
            )
        console.print(table)
        if len(rows) > most:
            console.print(f"… and {len(rows) - most} older ones; --most {len(rows)} lists them all")
        if hidden := len(runs) - len(rows):
            console.print(f"The {count(hidden, 'run')} of sweeps are not shown; --all shows them.")


def _in_order(runs: pd.DataFrame, every: bool) -> list[dict[str, Any]]:
    """Return sweeps and runs of their own, and if wanted the runs of each sweep below it.

    A run that has answered several sweeps is below each of them; one whose sweep was deleted is
    listed as a run of its own.
    """
    rows = runs.to_dict("records")
    known = {row["run_id"] for row in rows if row.get("job") == "sweep"}
    listed: list[dict[str, Any]] = []
    for row in rows:
        if not known.isdisjoint(row["sweeps"]):
            continue
        listed.append(row)
        if every and row["run_id"] in known:
            members = [each for each in rows if row["run_id"] in each["sweeps"]]
            members.sort(key=lambda each: int(each["sweeps"][row["run_id"]]))
            listed += [{**each, "name": f"  {each['name']}"} for each in members]
    return listed


def _counts(runs: pd.DataFrame) -> dict[str, str]:
    """Return in what states the runs of each sweep are."""
    states: dict[str, Counter[str]] = {
        run: Counter()
        for run, job in zip(runs["run_id"], runs["job"], strict=True)
        if job == "sweep"
    }
    for sweeps, status in zip(runs["sweeps"], runs["status"], strict=True):
        for sweep in states.keys() & sweeps.keys():
            states[sweep][status] += 1
    return {
        sweep: ": " + (", ".join(f"{n} {state}" for state, n in found.most_common()) or "no runs")
        for sweep, found in states.items()
    }
