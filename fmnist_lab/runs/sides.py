"""The two sides of a comparison, as a command line names them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import is_dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.markup import escape

from fmnist_lab import tracking
from fmnist_lab.errors import UserError
from fmnist_lab.runs.selection import select
from fmnist_lab.texts import counted

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from fmnist_lab.studies.differences import Side

MOST_LEFT_OUT = 5  # Runs that are named, of those that have no result or repeat another.
Words = Annotated[tuple[str, ...], Parameter(consume_multiple=True)]


def words_of(
    sides: Sequence[str], a: Sequence[str], b: Sequence[str], verb: str, *, one: bool = False
) -> list[list[str]]:
    """Return the words of each side.

    Args:
        sides: Sides of one argument each.
        a: The words of A behind --a, if any are.
        b: The words of B behind --b.
        verb: The verb that asks, for the message.
        one: Whether A alone is enough.

    Raises:
        UserError: There are not two sides.
    """
    if sides and (a or b):
        raise UserError(
            f"received {', '.join(sides)} beside --a or --b; expected two sides without these, or "
            "all runs behind them"
        )
    named = [list(each) for each in (a, b)] if a or b else [[side] for side in sides]
    if one and len(named) == 2 and not named[1]:
        named.pop()
    if len(named) not in ((1, 2) if one else (2,)) or not all(named):
        given = ", ".join(word for words in named for word in words) or "nothing"
        alone = f", or {verb} A --difference 0.002" if verb == "power" else ""
        raise UserError(
            f"received {given}; expected two sides: {verb} A B, or {verb} --a RUN… --b RUN…{alone}"
        )
    return [parted(words) for words in named]


def parted(words: Sequence[str]) -> list[str]:
    """Return words with settings split at their spaces; a run's name may hold spaces."""
    return [
        part
        for word in words
        for part in (word.split() if any(map(_is_setting, word.split())) else [word])
    ]


def _is_setting(word: str) -> bool:
    """Return whether a word is a `key=value`; a run's name may hold a = as well."""
    from fmnist_lab.studies import frames

    key, found, _ = word.partition("=")
    return bool(found) and (frames.is_parameter(key) or key in frames.SEEDS)


def side_of(store: tracking.Store, words: Sequence[str], experiment: str | None) -> Side:
    """Return the runs that a side's words mean.

    Args:
        store: Where to look.
        words: Runs, sweeps, and settings that narrow them.
        experiment: Where to look if no run is named.

    Raises:
        UserError: A word means nothing, or none of the runs is finished.
    """
    settings = [word for word in words if _is_setting(word)]
    named = [word for word in words if not _is_setting(word)]
    try:
        runs = select(store, named, experiment).runs
    except UserError:
        mistyped = [word for word in named if "=" in word and " " not in word]
        if mistyped:
            # Neither a run nor a setting; the runs there are know which settings there are.
            having(
                select(store, [w for w in named if w not in mistyped], experiment).runs,
                *mistyped[:1],
            )
        raise
    for setting in settings:
        runs = having(runs, setting)
    return side_from(store, runs)


def side_from(store: tracking.Store, runs: pd.DataFrame) -> Side:
    """Return runs as a side.

    Args:
        store: Where they are.
        runs: A table of them, as `tracking.find` returns it.

    Raises:
        UserError: None of the runs is finished.
    """
    from fmnist_lab.studies import differences, summary

    taken = summary.take_apart(runs)
    tags = {run: tracking.facts(store, run)["tags"] for run in taken.used["run_id"]}
    return differences.Side(taken, tags)


def having(runs: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Return the runs that have `key=value`.

    Args:
        runs: A table of runs, as `tracking.find` returns it.
        setting: The key and the value.

    Raises:
        UserError: None has.
    """
    from fmnist_lab.studies import frames

    key, _, value = setting.partition("=")
    unset = _unset(key)
    if not (key in runs or unset) or not (frames.is_parameter(key) or key in frames.SEEDS):
        known = sorted(name for name in runs if frames.is_parameter(name))
        raise UserError(f"received {setting}, expected one of {', '.join(known)}, seed")
    values = frames.parsed(runs)[key].tolist() if key in runs else [None] * len(runs)
    wanted = frames.value_of(None if value in ("none", "null") else value)
    if unset:
        absent = wanted if wanted in unset else unset[0]
        values = [absent if each is None else each for each in values]
    # A value as messages and tables show it names its runs as well: `true` those with True.
    kept = runs[[each == wanted or frames.shown(each) == value for each in values]]
    if kept.empty:
        there = ", ".join(map(frames.shown, frames.ordered(values)))
        raise UserError(f"received {setting}, which no run has; there are {there}")
    return kept


def _unset(key: str) -> tuple[Any, ...]:
    """Return the values of a key that runs do not store, in the form of `frames.value_of`.

    The first is the default. Empty for a key that each run stores if its parts have it.
    """
    from fmnist_lab.config.identity import YOUNGER
    from fmnist_lab.config.schema import Augmentation
    from fmnist_lab.studies import frames

    group, _, name = key.partition(".")
    if group == "data" and name in YOUNGER:
        return (frames.value_of(YOUNGER[name]), None)
    if group == "augmentation" and name in Augmentation.model_fields:
        off = ("False", 0) if Augmentation.model_fields[name].annotation is bool else (0, "False")
        return (*off, None)
    return ()


def predictions_of(store: tracking.Store) -> Any:
    """Return a function that reads a run's predictions, by its id."""
    return lru_cache(maxsize=2)(partial(tracking.read_predictions, store))


def show_sides(console: Console, sides: Sequence[Side], names: Sequence[str] = "AB") -> None:
    """Print the runs of each side, and those that count for nothing.

    Args:
        console: Where to.
        sides: One side or two.
        names: What they are called.
    """
    for name, side in zip(names, sides, strict=False):
        console.print(f"{name}  {escape(_described(side))}", soft_wrap=True)
        for run in side.study.unused[:MOST_LEFT_OUT]:
            console.print(f"   left out: {escape('  '.join(run))}", soft_wrap=True)
        if (more := len(side.study.unused) - MOST_LEFT_OUT) > 0:
            console.print(f"   left out: {more} more")


def _described(side: Side) -> str:
    runs = side.study.used
    if len(runs) == 1:
        return f"{runs['name'].iloc[0]}  {runs['run_id'].iloc[0]}"
    names = runs["name"].tolist()
    told = ", ".join(names if len(names) <= 6 else [*names[:3], "…", names[-1]])
    return f"{counted(len(runs), 'run')}: {told}"


def plain(value: Any) -> Any:
    """Return records as dictionaries; nan, which JSON does not have, as null."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if is_dataclass(value):
        return plain(vars(value))
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value
