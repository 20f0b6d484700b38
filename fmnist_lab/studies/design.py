"""The design of a study: which parameters cross, and what each setting changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from fmnist_lab.errors import UserError
from fmnist_lab.studies.frames import EPOCHS, TEST_SETS, short_names, shown
from fmnist_lab.studies.summary import Study

# Settings with more varied parameters than this are told by their differences.
MOST_COLUMNS = 6
# A grid with more holes than this, or longer, is no heat map.
LEAST_FILLED, LONGEST_SIDE = 0.5, 40


def heat_map_sides(study: Study, wanted: Sequence[str] | None) -> list[str]:
    """Return the two parameters of the heat maps, or one, or none, if no two cross.

    Args:
        study: The runs, taken apart.
        wanted: The two to take; None: those that cross and have the most values.

    Raises:
        UserError: One of those wanted was not varied.
    """
    if wanted is not None:
        if len(set(wanted)) != 2 or not set(wanted) <= set(study.parameters):
            raise UserError(
                f"axes: received {', '.join(wanted)}; expected two of the varied parameters: "
                f"{', '.join(study.parameters) or 'none was varied'}"
            )
        return list(wanted)
    levels = {name: len(set(study.summary[name])) for name in study.parameters}
    most = sorted(levels, key=lambda name: (name in TEST_SETS, -levels[name]))
    # The pair of the most values each, not of the largest product.
    pairs = sorted(heat_map_pairs(study), key=lambda pair: sorted(map(most.index, pair)))
    return list(pairs[0]) if pairs else most[:1]


def heat_map_pairs(study: Study) -> list[tuple[str, str]]:
    """Return the pairs of varied parameters of which most combinations were run."""
    levels = {name: len(set(study.summary[name])) for name in study.parameters}
    pairs = []
    for x, y in combinations(study.parameters, 2):
        filled = len(set(zip(study.summary[x], study.summary[y], strict=True)))
        side = max(levels[x], levels[y])
        if filled > LEAST_FILLED * levels[x] * levels[y] and side <= LONGEST_SIDE:
            pairs.append((x, y))
    return pairs


def one_at_a_time(study: Study) -> dict[str, Any] | None:
    """Return the most common values, if each setting differs from them in one parameter at most.

    None where settings differ in more, or where only one or two parameters were varied.
    """
    if len(study.parameters) < 3:
        return None
    rows, common = study.summary[study.parameters], most_common(study)
    # Parameters that always change together, such as early stopping and the images it needs, are
    # one change.
    changed = {tuple(value != common[name] for value in rows[name]) for name in common}
    return common if max(map(sum, zip(*changed, strict=True))) <= 1 else None


def is_mixed(study: Study) -> bool:
    """Return whether settings differ in so much that only the differences can be told of each."""
    return len(study.parameters) > MOST_COLUMNS and len(study.summary) <= LONGEST_SIDE


def most_common(study: Study) -> dict[str, Any]:
    """Return the value of each varied parameter that most settings have."""
    rows = study.summary[study.parameters]
    return {name: Counter(rows[name]).most_common(1)[0][0] for name in rows}


def changes(row: Mapping[Any, Any], common: Mapping[str, Any]) -> str:
    """Return how a setting differs from the most common values: "dropout 0.5", or "(none)".

    Args:
        row: The setting's values by parameter.
        common: The most common value of each parameter that is to be told.
    """
    names = short_names(list(common))

    def is_told(name: str) -> bool:
        # A CNN has no hidden units; that it is one says so.
        choice = name.partition(".")[0]
        other_choice = choice != name and choice in common and row[choice] != common[choice]
        return row[name] != common[name] and not (row[name] is None and other_choice)

    told = [f"{names[name]} {shown(row[name], name)}" for name in common if is_told(name)]
    return ", ".join(told) or "(none)"


def as_changes(frame: pd.DataFrame, common: Mapping[str, Any]) -> pd.DataFrame:
    """Return a frame with a column `change` instead of its parameters.

    Args:
        frame: One row per setting, perhaps without some of the parameters.
        common: The most common value of each parameter.
    """
    known = {name: value for name, value in common.items() if name in frame}
    rest = frame.drop(columns=list(known))
    rest.insert(0, "change", [changes(row, known) for row in frame.to_dict("records")])
    return rest


def groups(study: Study, sides: Sequence[str]) -> list[str]:
    """Return the varied parameters but for the epochs, those of the heat maps first."""
    group = [name for name in study.parameters if name != EPOCHS]
    return sorted(group, key=lambda name: name not in sides)


def roles(summary: pd.DataFrame, sides: Sequence[str]) -> tuple[str, str | None]:
    """Return the parameter that gives colours, and the one, with an order, that gives paths."""
    if len(sides) == 2:
        for path, color in (sides, sides[::-1]):
            if has_order(summary[path]):
                return color, path
    return sides[0], None


def has_order(levels: Iterable[Any]) -> bool:
    """Return whether values have an order: numbers and layers do, texts and None do not."""
    return not any(isinstance(level, str | None) for level in levels)
