"""`compare`: what differs between two runs, or groups of runs, and whether it matters."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from fmnist_lab import tracking
from fmnist_lab.errors import reported
from fmnist_lab.runs.sides import Words, plain, predictions_of, show_sides, side_of, words_of
from fmnist_lab.system.terminal import printout

if TYPE_CHECKING:
    from rich.console import Console

    from fmnist_lab.studies.comparison import Result, Verdict
    from fmnist_lab.studies.differences import Side


def compare(
    *sides: str,
    a: Words = (),
    b: Words = (),
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    store: str | None = None,
    experiment: str | None = None,
) -> None:
    """Say what differs between two runs, or groups of runs, and whether it is more than chance.

    Single runs are compared by their predictions (McNemar's exact test), several by their metrics
    (Welch's t, or in pairs where both sides have the same seeds).

    A side is a run, a sweep, or a setting such as "model=linear trainer.epochs=5", which means all
    finished runs that have it.

    Args:
        sides: The two sides, A and B.
        a: Runs, sweeps or key=value that make up A; key=value narrows the runs named beside it.
        b: The same for B.
        as_json: Print JSON.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        experiment: The experiment to look into where a side names no run; left out, MLflow's
            $MLFLOW_EXPERIMENT_NAME or $MLFLOW_EXPERIMENT_ID, or fmnist_lab.
    """
    with reported():
        named = words_of(sides, a, b, "compare")
        place = tracking.Store.locate(store, for_writing=False)

        from fmnist_lab.studies import comparison

        first, second = (side_of(place, words, experiment) for words in named)
        verdict = comparison.compare(first, second, predictions_of(place))
        if as_json:
            print(json.dumps(_as_record((first, second), verdict), indent=2, allow_nan=False))
        else:
            show(printout(), (first, second), verdict)


def show(
    console: Console, sides: Sequence[Side], verdict: Verdict, names: Sequence[str] = "AB"
) -> None:
    """Print what differs between two groups of runs, and whether it matters.

    Args:
        console: Where to.
        sides: The two groups.
        verdict: What `comparison.compare` says of them.
        names: What they are called above the tables, which call them A and B.
    """
    show_sides(console, sides, names)
    console.print()
    if verdict.differences:
        console.print(_differences(verdict))
    if verdict.same:
        console.print(f"The same on both sides: {', '.join(verdict.same)}.")
    console.print()
    console.print(_results(verdict))
    for name, lonely in zip("AB", verdict.unmatched, strict=True):
        if lonely:
            console.print(f"of {name} alone: {'; '.join(map(_setting, lonely))}", soft_wrap=True)
    for sentence in verdict.sentences:
        console.print()
        console.print(Text(sentence))


def _differences(verdict: Verdict) -> Table:
    table = Table("what differs", "A", "B", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for each in verdict.differences:
        table.add_row(*map(Text, each[1:]))
    return table


def _results(verdict: Verdict) -> Table:
    from fmnist_lab.studies import frames

    within = list(verdict.matches[0].setting)
    short = frames.short_names(within)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    headings = [*short.values(), *(["runs"] if within else []), "A", "B"]
    for heading in [*headings, "A - B", "95 % interval", "p"]:
        # In a narrow terminal only means fold, with their ± in a line of its own.
        table.add_column(Text(heading), justify="right", no_wrap=heading not in ("A", "B"))
    metrics = frames.ACCURACIES if within else frames.METRICS
    for metric in metrics:
        title = frames.METRICS[metric].lower()
        for match in verdict.matches:
            for result in match.results:
                if result.metric != metric:
                    continue
                means = (
                    frames.mean_text(side.mean, side.high - side.mean)
                    for side in (result.a, result.b)
                )
                setting = [frames.shown(value) for value in match.setting.values()]
                runs = ["{}+{}".format(*match.runs)] if within else []
                table.add_row(title, *setting, *runs, *means, *_difference(result))
                title = ""
    return table


def _difference(result: Result) -> tuple[str, str, str]:
    found = result.found
    # Rounded first, and 0 added, so that there is no -0.0000.
    difference = f"{round(result.a.mean - result.b.mean, 4) + 0.0:+.4f}"
    if found is None or math.isnan(found.p_value):
        return difference, "", ""
    p = "< 0.001" if found.p_value < 0.001 else f"{found.p_value:.3f}"
    return difference, f"{found.low:+.4f} to {found.high:+.4f}", p


def _setting(values: dict[str, Any]) -> str:
    from fmnist_lab.studies import frames

    short = frames.short_names(list(values))
    return ", ".join(f"{short[name]} {frames.shown(value)}" for name, value in values.items())


def _as_record(sides: Sequence[Side], verdict: Verdict) -> dict[str, Any]:
    """Everything in plain values."""
    return {
        **{name: side.ids for name, side in zip("ab", sides, strict=True)},
        "differences": [each._asdict() for each in verdict.differences],
        "same": verdict.same,
        "results": [
            {
                "setting": match.setting,
                "metric": result.metric,
                "a": plain(result.a),
                "b": plain(result.b),
                "found": result.found
                and {**plain(result.found), "evidence": result.found.evidence},
                "beyond": plain(result.beyond),
            }
            for match in verdict.matches
            for result in match.results
        ],
        "unmatched": dict(zip("ab", verdict.unmatched, strict=True)),
        "verdict": verdict.sentences,
    }
