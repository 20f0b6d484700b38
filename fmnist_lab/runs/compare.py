"""`compare`: what differs between two runs, or groups of runs, and whether it matters."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fmnist_lab import tracking
from fmnist_lab.errors import UserError, reported
from fmnist_lab.runs.selection import select
from fmnist_lab.system.terminal import printout
from fmnist_lab.texts import counted

if TYPE_CHECKING:
    import pandas as pd

    from fmnist_lab.studies.comparison import Result, Side, Verdict

MOST_LEFT_OUT = 5  # Runs that are named, of those that have no result or repeat another.
Words = Annotated[tuple[str, ...], Parameter(consume_multiple=True)]


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
        named = _two(sides, a, b)
        place = tracking.Store.locate(store, for_writing=False)

        from fmnist_lab.studies import comparison

        first, second = (_side(place, words, experiment) for words in named)
        verdict = comparison.compare(first, second, _predictions(place))
        if as_json:
            print(json.dumps(_plain((first, second), verdict), indent=2, allow_nan=False))
        else:
            _show((first, second), verdict)


def _two(sides: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[list[str]]:
    """Return the words of each side.

    A run's name may hold spaces, a setting is split at them.

    Raises:
        UserError: There are not two sides.
    """
    if sides and (a or b):
        raise UserError(
            f"received {', '.join(sides)} beside --a or --b; expected two sides without these, or "
            "all runs behind them"
        )
    named = [list(each) for each in (a, b)] if a or b else [[side] for side in sides]
    if len(named) != 2 or not all(named):
        given = ", ".join(word for words in named for word in words) or "nothing"
        raise UserError(
            f"received {given}; expected two sides: compare A B, or compare --a RUN… --b RUN…"
        )
    return [
        [
            part
            for word in words
            for part in (word.split() if any(map(_is_setting, word.split())) else [word])
        ]
        for words in named
    ]


def _is_setting(word: str) -> bool:
    """Return whether a word is a `key=value`; a run's name may hold a = as well."""
    from fmnist_lab.studies import frames

    key, found, _ = word.partition("=")
    return bool(found) and (frames.is_parameter(key) or key in frames.SEEDS)


def _side(store: tracking.Store, words: Sequence[str], experiment: str | None) -> Side:
    from fmnist_lab.studies import comparison, summary

    settings = [word for word in words if _is_setting(word)]
    named = [word for word in words if not _is_setting(word)]
    try:
        runs = select(store, named, experiment).runs
    except UserError:
        mistyped = [word for word in named if "=" in word and " " not in word]
        if mistyped:
            # Neither a run nor a setting; the runs there are know which settings there are.
            _having(
                select(store, [w for w in named if w not in mistyped], experiment).runs,
                *mistyped[:1],
            )
        raise
    for setting in settings:
        runs = _having(runs, setting)
    taken = summary.take_apart(runs)
    tags = {run: tracking.facts(store, run)["tags"] for run in taken.used["run_id"]}
    return comparison.Side(taken, tags)


def _having(runs: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Return the runs that have `key=value`.

    Raises:
        UserError: None has.
    """
    from fmnist_lab.studies import frames

    key, _, value = setting.partition("=")
    if key not in runs or not (frames.is_parameter(key) or key in frames.SEEDS):
        known = sorted(name for name in runs if frames.is_parameter(name))
        raise UserError(f"received {setting}, expected one of {', '.join(known)}, seed")
    values = frames.parsed(runs)[key].tolist()
    wanted = frames.value_of(None if value in ("none", "null") else value)
    kept = runs[[each == wanted for each in values]]
    if kept.empty:
        there = ", ".join(map(frames.shown, frames.ordered(values)))
        raise UserError(f"received {setting}, which no run has; there are {there}")
    return kept


def _predictions(store: tracking.Store) -> Any:
    return lru_cache(maxsize=2)(partial(tracking.read_predictions, store))


def _show(sides: Sequence[Side], verdict: Verdict) -> None:
    console = printout()
    for name, side in zip("AB", sides, strict=True):
        console.print(f"{name}  {escape(_described(side))}", soft_wrap=True)
        for run in side.study.unused[:MOST_LEFT_OUT]:
            console.print(f"   left out: {escape('  '.join(run))}", soft_wrap=True)
        if (more := len(side.study.unused) - MOST_LEFT_OUT) > 0:
            console.print(f"   left out: {more} more")
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


def _described(side: Side) -> str:
    runs = side.study.used
    if len(runs) == 1:
        return f"{runs['name'].iloc[0]}  {runs['run_id'].iloc[0]}"
    names = runs["name"].tolist()
    told = ", ".join(names if len(names) <= 6 else [*names[:3], "…", names[-1]])
    return f"{counted(len(runs), 'run')}: {told}"


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


def _plain(sides: Sequence[Side], verdict: Verdict) -> dict[str, Any]:
    """Everything in plain values; nan, which JSON does not have, as null."""
    return {
        **{name: side.ids for name, side in zip("ab", sides, strict=True)},
        "differences": [each._asdict() for each in verdict.differences],
        "same": verdict.same,
        "results": [
            {
                "setting": match.setting,
                "metric": result.metric,
                **{side: _numbers(getattr(result, side)) for side in ("a", "b")},
                "found": {**_numbers(result.found), "evidence": result.found.evidence}
                if result.found
                else None,
            }
            for match in verdict.matches
            for result in match.results
        ],
        "unmatched": dict(zip("ab", verdict.unmatched, strict=True)),
        "verdict": verdict.sentences,
    }


def _numbers(record: Any) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in vars(record).items()
    }
