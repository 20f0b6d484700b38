"""`report`: the results of a set of runs, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fmnist_lab import tracking
from fmnist_lab.errors import UserError, reported
from fmnist_lab.runs.selection import Since, begun_since, both, select
from fmnist_lab.runs.sides import predictions_of
from fmnist_lab.system import provenance
from fmnist_lab.system.terminal import printout

if TYPE_CHECKING:
    import pandas as pd


def report(
    *sweeps: str,
    where: str = "",
    since: Since = "",
    axes: Annotated[tuple[str, str] | None, Parameter(consume_multiple=True)] = None,
    output: Path | None = None,
    title: str | None = None,
    store: str | None = None,
    experiment: str | None = None,
) -> None:
    """Sum up sweeps, or any runs: one row per setting, means over the seeds with 95 % intervals.

    A search is summed up by itself: its best trials, what mattered, and how well the winner does.

    Args:
        sweeps: Sweeps, a search, or runs: ids, beginnings of ids, or names; left out, all that
            trained.
        where: MLflow's filter, such as "params.model = 'mlp' and params.seed = '0'".
        since: Only runs begun since then: 7d, 12h, 2w, or a date such as 2026-11-28.
        axes: The two varied parameters of the heat maps; left out, the two with the most values.
        output: Folder for results.csv, summary.csv, curves.csv, report.md with figures, and
            report.html; of a search, best.yaml, trials.csv and more.
        title: The report's title; left out, the sweeps' names.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        experiment: The experiment to look into if no sweep is named; left out, MLflow's
            $MLFLOW_EXPERIMENT_NAME or $MLFLOW_EXPERIMENT_ID, or fmnist_lab.
    """
    from fmnist_lab.studies import beyond, bias, design, summary
    from fmnist_lab.studies import report as reports

    with reported():
        place = tracking.Store.locate(store, for_writing=False)
        selection = select(place, sweeps, experiment, both(where, begun_since(since)))
        console = printout()
        names = ", ".join(each.name for each in selection.named)
        command = commands(place, selection.named) or provenance.command()
        if facts := facts_of(place, selection.named, axes):
            _report_search(place, selection.runs, facts, output, title or names, command)
            return
        parts = summary.take_apart(selection.runs)
        design.heat_map_sides(parts, axes)
        remarks = beyond.of_study(parts, predictions_of(place))
        console.print(reports.terminal_table(selection.runs, remarks))
        if output is None:
            return
        wanted = [run for runs in summary.longest(parts).values() for run in runs]
        curves = tracking.curves(place, wanted, *reports.CURVES)
        files = reports.write(
            selection.runs,
            curves,
            output,
            title=title or names or "Report",
            command=command,
            axes=axes,
            remarks=remarks,
            error_parts=bias.by_setting(parts, predictions_of(place)),
        )
        console.print(f"written to {output}: {', '.join(file.name for file in files)}")


def facts_of(
    store: tracking.Store, named: Sequence[tracking.RunRef], axes: Sequence[str] | None
) -> dict[str, Any] | None:
    """Return the facts of the search that was named; None if none was.

    Args:
        store: Where it is.
        named: What was named.
        axes: The parameters that were asked for as those of heat maps.

    Raises:
        UserError: It was named with others or with axes, or its facts are damaged.
    """
    from fmnist_lab.studies import search

    for each in named:
        text = tracking.facts(store, each.run_id)["tags"].get(tracking.SEARCH_TAG)
        if text and len(named) > 1:
            raise UserError(
                f"received the search {each.name} with {len(named) - 1} more, expected a search by "
                "itself; python -m fmnist_lab.runs compare compares runs"
            )
        if text and axes is not None:
            raise UserError(
                f"--axes: received {', '.join(axes)}, expected none for a search, whose report has "
                "no heat maps"
            )
        if text:
            return search.facts_of(text)
    return None


def _report_search(
    store: tracking.Store,
    runs: pd.DataFrame,
    facts: dict[str, Any],
    output: Path | None,
    title: str,
    command: str,
) -> None:
    """Print the report of a search, and write it if there is a folder for it."""
    from fmnist_lab.studies import search

    console = printout()
    curves = tracking.curves(store, list(runs["run_id"]), *search.curves_of(facts))
    for each in search.terminal(runs, curves, facts):
        console.print(each)
    if winner := facts.get("winner_command"):
        console.print("\nThe command that trains the winner on all training images:")
        console.print(f"  {winner}", markup=False, soft_wrap=True)
    if output is not None:
        files = search.write(runs, curves, facts, output, title=title, command=command)
        console.print(f"\nwritten to {output}: {', '.join(file.name for file in files)}")


def commands(store: tracking.Store, named: Sequence[tracking.RunRef]) -> str:
    """Return the commands that made the sweeps among runs, one per line; "" if there are none.

    Args:
        store: Where they are.
        named: The sweeps and runs.
    """
    made = [tracking.facts(store, each.run_id)["tags"].get("sweep.command") for each in named]
    return "\n".join(filter(None, made))
