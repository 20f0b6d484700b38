"""`list`: which runs there are, and how they fared."""

from __future__ import annotations

import math
import sys
from datetime import UTC, datetime
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from fmnist_lab import tracking
from fmnist_lab.console import duration
from fmnist_lab.errors import reported
from fmnist_lab.runs import selection


def list_runs(
    *,
    where: Annotated[str, Parameter(name="--filter")] = "",
    store: str | None = None,
    experiment: str = tracking.DEFAULT_EXPERIMENT,
    most: int = 30,
) -> None:
    """List runs, the newest first: state, age, test accuracy and gap.

    Args:
        where: MLflow's filter, such as "attributes.status = 'FAILED'".
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        experiment: The experiment to look into.
        most: How many to list at the most.
    """
    with reported():
        runs, _ = selection.find(store, experiment, where)
        table = Table("run", "name", "state", "age", "accuracy/test", "accuracy/gap", box=None)
        for column in table.columns[3:]:
            column.justify = "right"
        now = datetime.now(UTC)
        for run in runs.head(most).to_dict("records"):
            figures = (f"{run.get(f'accuracy/{part}', math.nan):.4f}" for part in ("test", "gap"))
            age = duration((now - run["started"]).total_seconds())
            table.add_row(run["run_id"], run["name"], run["status"], age, *figures)
        console = Console(width=None if sys.stdout.isatty() else 120)
        console.print(table)
        if len(runs) > most:
            console.print(f"… and {len(runs) - most} older ones; --most {len(runs)} lists them all")
