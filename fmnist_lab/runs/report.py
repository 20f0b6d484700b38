"""`report`: the results of a set of runs, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from cyclopts import Parameter

from fmnist_lab import tracking
from fmnist_lab.errors import UserError, reported
from fmnist_lab.runs.selection import Since, begun_since, both, select
from fmnist_lab.runs.sides import predictions_of
from fmnist_lab.system import provenance
from fmnist_lab.system.terminal import printout

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType


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
        sweeps: Sweeps, a search, or runs: ids, beginnings of ids, names, or models:/NAME@ALIAS;
            left out, all that trained.
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
    with reported():
        place = tracking.Store.locate(store, for_writing=False)
        selection = select(place, sweeps, experiment, both(where, begun_since(since)))
        names = ", ".join(each.name for each in selection.named)
        command = commands(place, selection.named) or provenance.command()
        found = sum_up(place, selection.runs, selection.named, axes)
        console = printout()
        for each in found.told:
            console.print(each)
        if found.winner:
            console.print("\nThe command that trains the winner on all training images:")
            console.print(f"  {found.winner}", markup=False, soft_wrap=True)
        if output is not None:
            files = found.write(output, title or names or "Report", command)
            gap = "" if found.winner is None else "\n"
            console.print(f"{gap}written to {output}: {', '.join(file.name for file in files)}")


class SummedUp(NamedTuple):
    """The report of runs, for the terminal and for a folder.

    Attributes:
        told: Tables and sentences for the terminal.
        write: Writes the report into a folder, with a title and a command; returns the files.
        winner: Of a search, the command that trains the winner, "" if there is none; None of other
            runs.
    """

    told: Sequence[RenderableType]
    write: Callable[[Path, str, str], Sequence[Path]]
    winner: str | None = None


def sum_up(
    store: tracking.Store,
    runs: pd.DataFrame,
    named: Sequence[tracking.RunRef],
    axes: Sequence[str] | None,
) -> SummedUp:
    """Sum up the runs of a search, or any others.

    Args:
        store: Where they are.
        runs: A table of them, as `tracking.find` returns it.
        named: The sweeps and runs that were asked for.
        axes: The two parameters of the heat maps; None: those with the most values.

    Raises:
        UserError: No run is finished, an axis was not varied, or a search was named with others.
    """
    from fmnist_lab.studies import beyond, bias, design, search, summary
    from fmnist_lab.studies import report as reports

    if facts := facts_of(store, named, axes):
        curves = tracking.curves(store, list(runs["run_id"]), *search.curves_of(facts))

        def write_search(folder: Path, title: str, command: str) -> Sequence[Path]:
            return search.write(runs, curves, facts, folder, title=title, command=command)

        told = search.terminal(runs, curves, facts)
        return SummedUp(told, write_search, facts.get("winner_command") or "")
    study = summary.take_apart(runs)
    design.heat_map_sides(study, axes)
    predictions = predictions_of(store)
    remarks = beyond.of_study(study, predictions)

    def write(folder: Path, title: str, command: str) -> Sequence[Path]:
        wanted = [run for some in summary.longest(study).values() for run in some]
        return reports.write(
            runs,
            tracking.curves(store, wanted, *reports.CURVES),
            folder,
            title=title,
            command=command,
            axes=axes,
            remarks=remarks,
            error_parts=bias.by_setting(study, predictions),
        )

    return SummedUp([reports.terminal_table(runs, remarks)], write)


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


def commands(store: tracking.Store, named: Sequence[tracking.RunRef]) -> str:
    """Return the commands that made the sweeps among runs, one per line; "" if there are none.

    Args:
        store: Where they are.
        named: The sweeps and runs.
    """
    made = [tracking.facts(store, each.run_id)["tags"].get("sweep.command") for each in named]
    return "\n".join(filter(None, made))
