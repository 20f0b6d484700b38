"""`report`: the results of a set of runs, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fmnist_lab import tracking
from fmnist_lab.errors import reported
from fmnist_lab.runs.selection import Since, begun_since, both, select
from fmnist_lab.runs.sides import predictions_of
from fmnist_lab.system import provenance
from fmnist_lab.system.terminal import printout


def report(
    *sweeps: str,
    where: Annotated[str, Parameter(name="--filter")] = "",
    since: Since = "",
    axes: Annotated[tuple[str, str] | None, Parameter(consume_multiple=True)] = None,
    output: Path | None = None,
    title: str | None = None,
    store: str | None = None,
    experiment: str | None = None,
) -> None:
    """Sum up sweeps, or any runs: one row per setting, means over the seeds with 95 % intervals.

    Args:
        sweeps: Sweeps or runs: ids, beginnings of ids, or names; left out, all that trained.
        where: MLflow's filter, such as "params.model = 'mlp' and params.seed = '0'".
        since: Only runs begun since then: 7d, 12h, 2w, or a date such as 2026-11-28.
        axes: The two varied parameters of the heat maps; left out, the two with the most values.
        output: Folder for results.csv, summary.csv, curves.csv, report.md with figures, and
            report.html.
        title: The report's title; left out, the sweeps' names.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        experiment: The experiment to look into if no sweep is named; left out, MLflow's
            $MLFLOW_EXPERIMENT_NAME or $MLFLOW_EXPERIMENT_ID, or fmnist_lab.
    """
    from fmnist_lab.studies import beyond, design, summary
    from fmnist_lab.studies import report as reports

    with reported():
        place = tracking.Store.locate(store, for_writing=False)
        selection = select(place, sweeps, experiment, both(where, begun_since(since)))
        console = printout()
        parts = summary.take_apart(selection.runs)
        design.heat_map_sides(parts, axes)
        remarks = beyond.of_study(parts, predictions_of(place))
        console.print(reports.terminal_table(selection.runs, remarks))
        if output is None:
            return
        wanted = [run for runs in summary.longest(parts).values() for run in runs]
        curves = tracking.curves(place, wanted, *reports.CURVES)
        names = ", ".join(each.name for each in selection.named)
        files = reports.write(
            selection.runs,
            curves,
            output,
            title=title or names or "Report",
            command=_command(place, selection.named),
            axes=axes,
            remarks=remarks,
        )
        console.print(f"written to {output}: {', '.join(file.name for file in files)}")


def _command(store: tracking.Store, named: list[tracking.RunRef]) -> str:
    """Return the command that made the runs, or else the command that reports on them."""
    made = [tracking.facts(store, each.run_id)["tags"].get("sweep.command") for each in named]
    return "\n".join(filter(None, made)) or provenance.command()
