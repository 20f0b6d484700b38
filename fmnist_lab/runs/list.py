"""`list`: the runs of an experiment, their states and their figures."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fmnist_lab import tracking
from fmnist_lab.config import naming
from fmnist_lab.errors import UserError, reported
from fmnist_lab.runs.selection import Since, begun_since, both
from fmnist_lab.system.terminal import printout
from fmnist_lab.texts import counted

# The widths of terminals with room for a table, for whole ids, and for all columns.
TABLE, WHOLE_IDS, ALL_COLUMNS = 70, 120, 180
SHOWN = {
    "accuracy/validation": "validation accuracy",
    "accuracy/test": "test accuracy",
    "accuracy/gap": "gap",
}


def list_runs(
    *,
    where: Annotated[str, Parameter(name="--filter")] = "",
    since: Since = "",
    every: Annotated[bool, Parameter(name="--all")] = False,
    store: str | None = None,
    experiment: str | None = None,
    most: Annotated[int, Parameter(show_default=True)] = 30,
) -> None:
    """List sweeps and runs, the newest first: state, start, accuracy, gap, and what differs.

    Args:
        where: MLflow's filter, such as "attributes.status = 'FAILED'"; all runs that fit are then
            listed, the runs of sweeps as well.
        since: Only runs begun since then: 7d, 12h, 2w, or a date such as 2026-11-28.
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
        # In a pipe, each run has one line, however long.
        console = printout(piped=10_000)
        if console.width < TABLE:
            for row in shown:
                console.print(*_lines(row, summaries.get(row["run_id"]), damaged), sep="\n")
        else:
            console.print(_table(shown, summaries, damaged, console.width))
        if damaged:
            have = "has" if len(damaged) == 1 else "have"
            console.print(
                f"{counted(len(damaged), 'finished run')} {have} lost files, as after a power cut; "
                "a run's command with resume=true makes them again."
            )
        if sweeps:
            console.print(
                "The figures of a sweep are the means of its best setting: by validation accuracy "
                "where images were held out, else by test accuracy."
            )
        if any(row.get("search") for row in shown):
            console.print(
                "Those of a search are the validation accuracy of its best trial, which looks "
                "better than it is, and the means of the winner trained on all images."
            )
        if len(rows) > most:
            console.print(f"… and older ones; --most {2 * most} lists more of them")
        if sweeps and not every and not where:
            console.print("The runs of sweeps are not shown; --all shows them.")


def _with_aliases(store: tracking.Store, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows whose names say which runs were promoted: "h128 e15 s0 (fmnist@champion)"."""
    try:
        promoted = tracking.aliases(store)
    except UserError:
        # A server may keep runs and no registered models.
        return list(rows)
    told = {run: f" ({', '.join(names)})" for run, names in promoted.items()}
    return [{**row, "name": f"{row['name']}{told.get(row['run_id'], '')}"} for row in rows]


def _table(
    rows: Sequence[dict[str, Any]],
    summaries: Mapping[str, tracking.SweepSummary],
    damaged: Container[str],
    width: int,
) -> Table:
    """Return the rows as a table.

    Where there is no room for a column of its own, the differences from the defaults stand below
    the name, unless the name says them.

    Args:
        rows: The runs.
        summaries: Their sweeps in short, by id.
        damaged: The runs that have lost files.
        width: The table's width, in characters.
    """
    shown = {
        metric: title
        for metric, title in SHOWN.items()
        if any(_figure(row, metric) for row in rows)
    }
    wide = width >= ALL_COLUMNS
    date = "%Y-%m-%d %H:%M" if width >= WHOLE_IDS else "%Y-%m-%d\n%H:%M"
    table = Table(box=None, pad_edge=False, padding=(0, 2 if width >= 100 else 1, 0, 0))
    table.add_column("run", no_wrap=True)
    told = "name" if wide else "name, and what differs from the defaults"
    table.add_column(told, overflow="fold")
    if wide:
        table.add_column("what differs from the defaults", overflow="fold")
    table.add_column("state", max_width=None if wide else 12 if width >= 100 else 9)
    table.add_column("started", no_wrap=True)
    for title in shown.values():
        table.add_column(title.replace(" ", " " if wide else "\n"), justify="right", no_wrap=True)
    for row in rows:
        summary = summaries.get(row["run_id"])
        state = _state(row["status"], summary, lost=row["run_id"] in damaged)
        name, differs, said = _name(row, summary)
        if not wide and not said:
            name = f"{name}\n{differs}"
        table.add_row(
            row["run_id"][: 32 if width >= WHOLE_IDS else 8],
            *map(Text, (name, differs) if wide else (name,)),
            state if wide else state.replace(": ", ":\n"),
            _started(row, date),
            *(_figure(row, metric) for metric in shown),
        )
    return table


def _lines(
    row: dict[str, Any], summary: tracking.SweepSummary | None, damaged: Container[str]
) -> Iterator[RenderableType]:
    """Yield what a terminal that is too narrow for the table shows of a run, line by line."""
    name, differs, said = _name(row, summary)
    state = _state(row["status"], summary, lost=row["run_id"] in damaged)
    figures = {title: _figure(row, metric) for metric, title in SHOWN.items()}
    measured = [f"{title} {figure}" for title, figure in figures.items() if figure]
    yield Text(f"{row['run_id'][:8]}  {state}")
    begun = _started(row, "%Y-%m-%d %H:%M")
    for text in (name, "" if said else differs, begun, ", ".join(measured)):
        if text:
            yield Padding(Text(text), (0, 0, 0, 2))


def _name(row: dict[str, Any], summary: tracking.SweepSummary | None) -> tuple[str, str, bool]:
    """Return the name of a run, how it differs from the defaults, and whether the name says so."""
    differing = naming.differences(_in_common(summary.sample if summary else [row]))
    name = row["name"]
    return name, naming.spoken(differing), set(naming.words(differing)) <= set(name.split())


def _state(status: str, summary: tracking.SweepSummary | None, *, lost: bool = False) -> str:
    """Return the state of a run, for a sweep with the number of its runs.

    Args:
        status: MLflow's status.
        summary: The sweep in short; None: it is a run.
        lost: Whether it has lost files.

    >>> from collections import Counter
    >>> _state("FAILED", tracking.SweepSummary(Counter(FINISHED=12, FAILED=1), False, []))
    'FAILED: 12 of 13 finished, 1 failed'
    >>> _state("FINISHED", tracking.SweepSummary(Counter(FINISHED=60), False, []))
    'FINISHED: 60 runs'
    """
    if lost:
        return f"{_state(status, summary)}, files lost"
    if summary is None:
        return status
    states = summary.states
    total = f"{states.total():,}{'+' if summary.more else ''}"
    if set(states) <= {"FINISHED"}:
        return f"{status}: {total} run{'' if states.total() == 1 else 's'}"
    done = states["FINISHED"]
    others = (f"{n:,} {state.lower()}" for state, n in states.most_common() if state != "FINISHED")
    return f"{status}: {', '.join([f'{done:,} of {total} finished', *others])}"


def _started(row: dict[str, Any], date: str) -> str:
    """Return when a run began, in this machine's time zone; "" if its time is none."""
    started = row["started"].to_pydatetime() if row["started"] == row["started"] else None
    return f"{started.astimezone():{date}}" if started else ""


def _figure(row: dict[str, Any], metric: str) -> str:
    """Return a metric of a run, or of the best setting of a sweep; "" if there is none."""
    value = row.get(tracking.best_mean(metric) if row["job"] == "sweep" else metric, math.nan)
    # A value beyond ±1 is no accuracy, whoever has logged it.
    return f"{value:.4f}" if abs(value) <= 1 else ""


def _in_common(runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the params that runs have in common; a store keeps them as texts."""
    first, *others = runs or [{}]
    return {
        name: value
        for name, value in first.items()
        if isinstance(value, str) and all(each.get(name) == value for each in others)
    }


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
