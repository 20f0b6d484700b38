"""Paired axes of a sweep: `zip(…)` on a command line, and the jobs that come of it.

Axes with ordinary lists multiply. Those whose values stand in a `zip(…)` go together: the first
job has the first value of each, the second job the second value of each, and so on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep, Sweep
from omegaconf import DictConfig

from fmnist_lab import compat
from fmnist_lab.errors import UserError


@dataclass
class Paired(ChoiceSweep):
    """The values of an axis that goes together with others."""


def add_zip() -> None:
    """Teach Hydra's parser of overrides the function `zip(1,5,20)`."""
    compat.add_override_function("zip", _zip)


def _paired(values: Sequence[Any]) -> Paired:
    """Return the values of an axis, which one range or list may hold; `groups` checks them."""
    (only,) = values if len(values) == 1 else (None,)
    if isinstance(only, RangeSweep):
        return Paired(list=list(only.range()))
    if isinstance(only, ChoiceSweep):
        return Paired(list=only.list)
    return Paired(list=list(values))


# Hydra would check the values by their annotations, if there were any.
_zip = lambda *values: _paired(values)  # noqa: E731


def groups(overrides: Sequence[Override]) -> list[list[str]]:
    """Return the keys of a command line, those together that advance together.

    Args:
        overrides: The words, parsed. Of two with the same key, the later one counts.

    Returns:
        Groups of keys in the order of their first key. An ordinary key is a group by itself.

    Raises:
        UserError: A zip(…) is empty or nested, alone, or of another length than the others.
    """
    found: dict[str, list[str]] = {}
    paired: dict[str, list[Override]] = {}
    for key, override in {each.get_key_element(): each for each in overrides}.items():
        values = override.value()
        if isinstance(values, Paired):
            _check_values(key, override, values)
            name = f"zip {sorted(values.tags)}"
            paired.setdefault(name, []).append(override)
            found.setdefault(name, []).append(key)
        else:
            if isinstance(values, Sweep) and "zip(" in str(override.input_line):
                raise UserError(_nested(key, override))
            found[key] = [key]
    for together in paired.values():
        _check_lengths(together)
    return list(found.values())


def jobs(overrides: Sequence[Override]) -> list[list[str]]:
    """Return the overrides of each job of a sweep; the last axis changes fastest.

    Args:
        overrides: The words, parsed.

    Raises:
        UserError: Axes do not go together as `groups` wants it.
        HydraException: A sweep has no list of values, as `interval(0,1)`.
    """
    together = groups(overrides)
    words = {
        each.get_key_element(): [word for (word,) in compat.basic_jobs([each])]
        for each in overrides
    }
    place = {key: number for number, keys in enumerate(together) for key in keys}
    counts = [range(len(words[first])) for first, *_ in together]
    return [
        [words[key][chosen[place[key]]] for key in words] for chosen in itertools.product(*counts)
    ]


def check_sweeper(config: DictConfig) -> None:
    """Refuse paired axes for a sweeper that would take them for ordinary ones.

    Args:
        config: The composed sweep.

    Raises:
        UserError: The sweeper is another than Hydra's basic one, and there is a zip(…).
    """
    sweeper = config.hydra.sweeper or {}
    if str(sweeper.get("_target_")).endswith(".BasicSweeper"):
        return
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    words = [*params, *config.hydra.overrides.task]
    for override in OverridesParser.create().parse_overrides(words):
        if isinstance(override.value(), Paired):
            key = override.get_key_element()
            raise UserError(
                f"{key}: received {_written(override)}, but only hydra/sweeper=basic lets axes "
                "advance together; expected hydra/sweeper=basic, or each key without the zip(…)"
            )


def _check_values(key: str, override: Override, values: Paired) -> None:
    if not values.list:
        raise UserError(f"{key}: received zip(), expected its values, such as {key}=zip(1,5,20)")
    if values.shuffle or any(isinstance(each, Sweep) for each in values.list):
        raise UserError(_nested(key, override))


def _nested(key: str, override: Override) -> str:
    return (
        f"{key}: received {_written(override)}, expected zip(…) around plain values, or around "
        f"one range or list, such as {key}=zip(1,5,20) or {key}=zip(range(3))"
    )


def _check_lengths(together: Sequence[Override]) -> None:
    keys = [each.get_key_element() for each in together]
    lists = [each.value().list for each in together]  # type: ignore[union-attr]
    if len(together) == 1:
        (only,) = together
        values = ",".join(only.sweep_string_iterator())
        raise UserError(
            f"{keys[0]}: received {_written(only)}, but no other key has a zip(…) that it could go "
            f"together with; expected two or more, or an ordinary list: {keys[0]}={values}"
        )
    if len(set(map(len, lists))) > 1:
        received = ", ".join(
            f"{key} with {len(values)}" for key, values in zip(keys, lists, strict=True)
        )
        raise UserError(
            f"zip: received {received} values, expected as many for each key, because the first "
            "values go together, and the second ones, and so on"
        )


def _written(override: Override) -> str:
    return str(override.input_line).partition("=")[2]
