"""`power`: how many seeds would show a difference, or exclude it, and how long they take."""

from __future__ import annotations

import json
import math
import socket
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from fmnist_lab import tracking
from fmnist_lab.errors import UserError, reported
from fmnist_lab.runs.sides import Words, plain, predictions_of, show_sides, side_of, words_of
from fmnist_lab.system.terminal import printout

if TYPE_CHECKING:
    from fmnist_lab.studies.planning import Plan


def power(
    *sides: str,
    a: Words = (),
    b: Words = (),
    difference: float | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    store: str | None = None,
    experiment: str | None = None,
) -> None:
    """Say how many seeds would show a difference, or exclude it, and how long they take.

    The answer is for the tests of `compare`, at 80 and 95 % power, from the variance that the runs
    have shown. Sides are named as for `compare`; one side is enough with --difference.

    Args:
        sides: The two sides, A and B, or A alone.
        a: Runs, sweeps or key=value that make up A; key=value narrows the runs named beside it.
        b: The same for B.
        difference: The difference to be shown or excluded, such as 0.002; left out, what A and B
            differ by.
        as_json: Print JSON.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        experiment: The experiment to look into where a side names no run; left out, MLflow's
            $MLFLOW_EXPERIMENT_NAME or $MLFLOW_EXPERIMENT_ID, or fmnist_lab.
    """
    with reported():
        named = words_of(sides, a, b, "power", one=True)
        _check(difference, len(named))
        place = tracking.Store.locate(store, for_writing=False)

        from fmnist_lab.studies import planning

        known = [side_of(place, words, experiment) for words in named]
        plan = planning.plan(known, difference, predictions_of(place), socket.gethostname())
        if as_json:
            ids = {name: side.ids for name, side in zip("ab", known, strict=False)}
            print(json.dumps({**ids, **plain(plan)}, indent=2, allow_nan=False))
            return
        console = printout()
        show_sides(console, known)
        console.print()
        console.print(_table(plan))
        for sentence in plan.sentences:
            console.print()
            console.print(Text(sentence))


def _check(difference: float | None, sides: int) -> None:
    if difference is None and sides == 1:
        raise UserError(
            "received one side, which differs from nothing; expected two, or --difference with the "
            "difference to be shown or excluded: power A --difference 0.002"
        )
    if difference is not None and not 0 < difference < 1:
        raise UserError(
            f"--difference: received {difference:g}, expected a difference of accuracies above 0 "
            "and below 1, such as 0.002"
        )


def _table(plan: Plan) -> Table:
    from fmnist_lab.studies import frames
    from fmnist_lab.studies.planning import seeds_text

    short = frames.short_names(list(plan.rows[0].setting))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in (*short.values(), "metric", "to", "power", "seeds a side", "time"):
        table.add_column(Text(heading), no_wrap=True)
    before: list[str] = []
    for row in plan.rows:
        setting = [frames.shown(value) for value in row.setting.values()]
        told = [""] * len(setting) if setting == before else setting
        before, known = setting, row.spread
        about = [
            frames.METRICS[row.metric].lower(),
            f"deviation {known.deviation:.4f}",
            f"({known.low:.4f} to {known.high:.4f})",
            "",
        ]
        verb = ""
        for name, answer in zip(about, row.answers, strict=True):
            question = f"{'exclude' if answer.exclude else 'show'} {row.difference:.4f}"
            cells = [name, "" if question == verb else question, f"{100 * answer.power:.0f} %"]
            table.add_row(
                *map(Text, [*told, *cells, seeds_text(answer.seeds), _roughly(answer.seconds)])
            )
            told, verb = [""] * len(told), question
    return table


def _roughly(seconds: float) -> str:
    """Return a duration to its minute, or hour or day if it is long; "" for nan."""
    if math.isnan(seconds):
        return ""
    for least, size, unit in ((48 * 3600, 86400, "days"), (100 * 60, 3600, "h"), (100, 60, "min")):
        if seconds >= least:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
