"""`list`: the runs of an experiment, their states and their figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fmnist_lab import tracking
from fmnist_lab.errors import UserError, reported
from fmnist_lab.runs.columns import SHOWN, Listed, asked_for, in_common, is_needed
from fmnist_lab.runs.selection import Since, begun_since, both
from fmnist_lab.system.terminal import printout
from fmnist_lab.texts import counted

# The widths of terminals with room for a table, for whole ids, and for all columns.
TABLE, WHOLE_IDS, ALL_COLUMNS = 70, 120, 180


def list_runs(
    *,
    where: str = "",
    since: Since = "",
    columns: str | None = None,
    every: Annotated[bool, Parameter(name="--all")] = False,
    store: str | None = None,
    experiment: str | None = None,
    most: Annotated[int, Parameter(show_default=True)] = 30,
) -> None:
    """List sweeps and runs, the newest first: state, start, accuracy, gap, and what differs.

    A state or figure that is missing, or the same in all rows, is left out.

    Args:
        where: MLflow's filter, such as "attributes.status = 'FAILED'"; all runs that fit are then
            listed, the runs of sweeps as well.
        since: Only runs begun since then: 7d, 12h, 2w, or a date such as 2026-11-28.
        columns: The columns to show, separated by commas: run, name, differs (from the defaults),
            state, started, duration, parameters such as optimizer, metrics such as loss/test.
        every: List the runs of each sweep below it.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        experiment: The experiment to look into; left out, MLflow's $MLFLOW_EXPERIMENT_NAME or
            $MLFLOW_EXPERIMENT_ID, or fmnist_lab.
        most: The largest number of rows.
    """
    with reported():
        fits = both(where, begun_since(since))
        place = tracking.Store.locate(store, for_writing=False)
        experiment = tracking.experiment_name(place, experiment)
        if where:
            found = tracking.rows(place, experiment, fits, page=most + 1)
        else:
            found = _in_order(place, experiment, fits, every, most + 1)
        rows = list(islice(found, most + 1))
        if not rows:
            raise UserError(
                f"no run in experiment '{experiment}' of {place.uri} fits"
                f"{f' the filter {fits}' if fits else ''}"
            )
        shown = _with_aliases(place, rows[:most])
        sweeps = [row["run_id"] for row in shown if row["job"] == "sweep"]
        summaries = tracking.sweep_summaries(place, experiment, sweeps) if sweeps else {}
        finished = [row["run_id"] for row in shown if row["status"] == "FINISHED"]
        damaged = tracking.damaged(place, experiment, finished)
        listed = [
            Listed(row, summaries.get(row["run_id"]), row["run_id"] in damaged) for row in shown
        ]
        hints = []
        if len(rows) > most:
            hints.append(f"… and older ones; --most {2 * most} lists more of them")
        if sweeps and not every and not where:
            hints.append("The runs of sweeps are not shown; --all shows them.")
        _print(listed, [] if columns is None else asked_for(columns, listed), hints)


def _print(listed: Sequence[Listed], asked: Sequence[str], hints: Sequence[str]) -> None:
    """Print the rows, and what one has to know to read them.

    Args:
        listed: The rows.
        asked: The names of the columns that were asked for, if any.
        hints: How to see more, in sentences.
    """
    # In a pipe, each run has one line, however long.
    console = printout(piped=10_000)
    if console.width < TABLE:
        for each in listed:
            console.print(*_lines(each, asked), sep="\n")
    elif asked:
        console.print(_asked_table(listed, asked, console.width))
    else:
        console.print(_table(listed, console.width))
        if same := in_common(listed):
            console.print(same)
    if damaged := sum(each.lost for each in listed):
        have = "has" if damaged == 1 else "have"
        console.print(
            f"{counted(damaged, 'finished run')} {have} lost files, as after a power cut; "
            "a run's command with resume=true makes them again."
        )
    has_figures = not asked or any(each.is_figure(column) for each in listed for column in asked)
    if has_figures and any(each.summary for each in listed):
        console.print(
            "The figures of a sweep are the means of its best setting: by validation accuracy "
            "where images were held out, else by test accuracy."
        )
    if has_figures and any(each.row.get("search") for each in listed):
        console.print(
            "Those of a search are the validation accuracy of its best trial, which looks "
            "better than it is, and the means of the winner trained on all images."
        )
    for hint in hints:
        console.print(hint)


def _with_aliases(store: tracking.Store, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows whose names say which runs were promoted: "h128 e15 s0 (fmnist@champion)"."""
    try:
        promoted = tracking.aliases(store)
    except UserError:
        # A server may keep runs and no registered models.
        return list(rows)
    told = {run: f" ({', '.join(names)})" for run, names in promoted.items()}
    return [{**row, "name": f"{row['name']}{told.get(row['run_id'], '')}"} for row in rows]


def _table(listed: Sequence[Listed], width: int) -> Table:
    """Return the rows as a table, without the columns that say nothing.

    Where there is no room for a column of its own, the differences from the defaults stand below
    the name, unless the name says them.

    Args:
        listed: The rows.
        width: The table's width, in characters.
    """

    def needed(column: str) -> bool:
        return is_needed([each.value(column) for each in listed])

    metrics = {metric: title for metric, title in SHOWN.items() if needed(metric)}
    wide, has_state = width >= ALL_COLUMNS, needed("state")
    apart = wide and any(each.differs for each in listed)
    date = "%Y-%m-%d %H:%M" if width >= WHOLE_IDS else "%Y-%m-%d\n%H:%M"
    table = _empty(width)
    table.add_column("run", no_wrap=True)
    told = "name" if wide else "name, and what differs from the defaults"
    table.add_column(told, overflow="fold")
    if apart:
        table.add_column("what differs from the defaults", overflow="fold")
    if has_state:
        table.add_column("state", max_width=None if wide else 12 if width >= 100 else 9)
    table.add_column("started", no_wrap=True)
    for title in metrics.values():
        table.add_column(title.replace(" ", " " if wide else "\n"), justify="right", no_wrap=True)
    for each in listed:
        below = "" if wide or each.is_told_by_name else f"\n{each.differs}"
        table.add_row(
            each.row["run_id"][: 32 if width >= WHOLE_IDS else 8],
            Text(f"{each.name}{below}"),
            *([Text(each.differs)] if apart else []),
            *([each.state if wide else each.state.replace(": ", ":\n")] if has_state else []),
            each.started(date),
            *(each.figure(metric) for metric in metrics),
        )
    return table


def _asked_table(listed: Sequence[Listed], asked: Sequence[str], width: int) -> Table:
    """Return the rows as a table of the columns that were asked for.

    Args:
        listed: The rows.
        asked: The names of the columns.
        width: The table's width, in characters.
    """
    table = _empty(width)
    for column in asked:
        is_number = column == "duration" or any(each.is_figure(column) for each in listed)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for each in listed:
        values = {column: each.value(column) for column in asked}
        if "run" in values and width < WHOLE_IDS:
            values["run"] = values["run"][:8]
        table.add_row(*map(Text, values.values()))
    return table


def _empty(width: int) -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2 if width >= 100 else 1, 0, 0))


def _lines(each: Listed, asked: Sequence[str]) -> Iterator[RenderableType]:
    """Yield what a terminal that is too narrow for the table shows of a run, line by line.

    Args:
        each: The run.
        asked: The names of the columns that were asked for, if any.
    """
    if asked:
        first, *others = (f"{column} {each.value(column)}" for column in asked)
        yield Text(first)
    else:
        figures = {title: each.figure(metric) for metric, title in SHOWN.items()}
        measured = [f"{title} {figure}" for title, figure in figures.items() if figure]
        yield Text(f"{each.row['run_id'][:8]}  {each.state}")
        differs = "" if each.is_told_by_name else each.differs
        others = [each.name, differs, each.started(), ", ".join(measured)]
    for text in filter(None, others):
        yield Padding(Text(text), (0, 0, 0, 2))


def _in_order(
    store: tracking.Store, experiment: str, fits: str, every: bool, most: int
) -> Iterator[dict[str, Any]]:
    """Yield sweeps and runs of their own, and if wanted the runs of each sweep below it.

    A run that has answered several sweeps is below each of them. A run whose sweep was deleted is
    listed as a run of its own.
    """
    for row in tracking.own_rows(store, experiment, fits, most):
        yield row
        if every and row["job"] == "sweep":
            for each in tracking.member_rows(store, experiment, row["run_id"], fits):
                yield {**each, "name": f"  {each['name']}"}
