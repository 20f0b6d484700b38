"""`report`: what a set of runs says, with intervals."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from fmnist_lab import provenance, tracking
from fmnist_lab.errors import reported
from fmnist_lab.runs.selection import Experiment, select


def report(
    *sweeps: str,
    where: Annotated[str, Parameter(name="--filter")] = "",
    axes: Annotated[tuple[str, str] | None, Parameter(consume_multiple=True)] = None,
    output: Path | None = None,
    title: str | None = None,
    store: str | None = None,
    experiment: Experiment = tracking.DEFAULT_EXPERIMENT,
) -> None:
    """Sum up sweeps, or any runs: a row a setting, means over the seeds with 95 % intervals.

    Args:
        sweeps: Sweeps or runs: ids, beginnings of ids, or names; left out, all that trained.
        where: MLflow's filter, such as "params.model = 'mlp' and params.seed = '0'".
        axes: The two varied parameters of the heat maps; left out, those with the most values.
        output: Folder for results.csv, summary.csv, curves.csv, report.md with figures, and
            report.html.
        title: What the report is called; left out, the sweeps' names.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        experiment: The experiment to look into if no sweep is named.
    """
    from fmnist_lab import report as reports
    from fmnist_lab import study

    with reported():
        place = tracking.Store.locate(store, for_writing=False)
        selection = select(place, sweeps, experiment, where)
        console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
        parts = study.take_apart(selection.runs)
        study.heat_map_sides(parts, axes)
        console.print(reports.terminal_table(selection.runs))
        if output is None:
            return
        wanted = [run for runs in study.longest(parts).values() for run in runs]
        curves = tracking.curves(place, wanted, *reports.CURVES)
        names = ", ".join(each.name for each in selection.named)
        files = reports.write(
            selection.runs,
            curves,
            output,
            title=title or names or "Report",
            command=_command(place, selection.named),
            axes=axes,
        )
        console.print(f"written to {output}: {', '.join(file.name for file in files)}")


def _command(store: tracking.Store, named: list[tracking.Found]) -> str:
    """Return the command that made the runs, if it is known; else the one that reports on them."""
    made = [tracking.facts(store, each.run_id)["tags"].get("sweep.command") for each in named]
    return "\n".join(filter(None, made)) or provenance.command()
