"""`report`: what a set of runs says, with intervals."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from fmnist_lab import provenance, tracking
from fmnist_lab.errors import reported
from fmnist_lab.runs import selection


def report(
    *,
    where: Annotated[str, Parameter(name="--filter")] = "",
    output: Path | None = None,
    title: str = "Report",
    store: str | None = None,
    experiment: str = tracking.DEFAULT_EXPERIMENT,
) -> None:
    """Sum up training runs: a row a setting, means over the seeds with 95 % intervals.

    Args:
        where: MLflow's filter, such as "params.model = 'mlp' and params.trainer.epochs = '5'".
        output: Folder for results.csv, summary.csv, report.md with figures, and report.html.
        title: What the report is called.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        experiment: The experiment to look into.
    """
    from fmnist_lab import report as reports

    with reported():
        training = " and ".join(filter(None, [where, "tags.job = 'train'"]))
        runs, curves = selection.find(store, experiment, training, curve="accuracy/gap")
        console = Console(width=None if sys.stdout.isatty() else 140)
        console.print(reports.terminal_table(runs))
        if output:
            command = provenance.command()
            for file in reports.write(runs, curves, output, title=title, command=command):
                console.print(f"written: {file}", highlight=False, soft_wrap=True)
