"""The space of a search: Hydra's override syntax, read as distributions."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from fmnist_lab.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# More digits of a chosen number make no difference to a result, but long names and commands.
DIGITS = 4
SYNTAX = (
    "interval(0,0.5), int(interval(1,8)), tag(log,interval(1e-4,1e-1)), range(1,5) or choice(a,b)"
)

Value = float | int | str


@dataclass(frozen=True)
class Axis:
    """A key that is searched over.

    Attributes:
        key: The key, as an override has it, perhaps with a "+" before it.
        text: Its values, as the user wrote them.
        choices: The values of a list, as texts for an override; none of a range or an interval.
        low: The least value of a range or an interval.
        high: The largest one, which belongs to it.
        step: The difference between two values of a range; 0 of an interval.
        log: Whether it is searched by ratios, not differences.
    """

    key: str
    text: str
    choices: tuple[str, ...] = ()
    low: float | int = 0
    high: float | int = 0
    step: float | int = 0
    log: bool = False

    @property
    def name(self) -> str:
        """The key without a plus."""
        return self.key.lstrip("+")

    @property
    def points(self) -> list[Value] | None:
        """All values, or None if there is no end of them."""
        if self.choices:
            return list(self.choices)
        step = self.step or (1 if self._is_whole else 0)
        if not step:
            return None
        count = round((self.high - self.low) / step) + 1
        return [self.rounded(self.low + place * step) for place in range(count)]

    @property
    def probes(self) -> list[Value]:
        """The values that show whether all others are possible."""
        return list(self.choices) or [self.low, self.high]

    @property
    def _is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def distribution(self) -> BaseDistribution:
        """Return the axis in Optuna's terms."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self._is_whole:
            step = int(self.step) or 1
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=step)
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step or None)

    def rounded(self, value: Any) -> Value:
        """Return a chosen value with as many digits as mean something, within the bounds."""
        if self.choices:
            return str(value)
        if self._is_whole:
            return int(value)
        if self.step:
            # A sum of steps, without the last digits of a sum of floating-point numbers.
            return float(f"{value:.12g}")
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Space:
    """All keys that are searched over, and the overrides that every trial has.

    Attributes:
        axes: The keys and their values.
        fixed: The other overrides, by their keys.
    """

    axes: tuple[Axis, ...]
    fixed: dict[str, str]

    def overrides(self, values: Mapping[str, Value], more: Sequence[str] = ()) -> list[str]:
        """Return the overrides of a trial.

        Args:
            values: The chosen value of each key.
            more: Overrides that come last, and take the place of others of the same key.
        """
        taken = {word.partition("=")[0] for word in more}
        chosen = {axis.key: spelled(values[axis.name]) for axis in self.axes}
        words = [f"{key}={text}" for key, text in (self.fixed | chosen).items()]
        return [*(word for word in words if word.partition("=")[0] not in taken), *more]

    def probes(self) -> list[list[str]]:
        """Return the overrides of trials that together show whether all others are possible."""
        first = {axis.name: axis.probes[0] for axis in self.axes}
        others = [first | {axis.name: value} for axis in self.axes for value in axis.probes[1:]]
        return [self.overrides(values) for values in (first, *others)]

    def size(self) -> int | None:
        """Return the number of different trials, or None if there is no end of them."""
        counts = [len(axis.points) for axis in self.axes if axis.points is not None]
        return math.prod(counts) if len(counts) == len(self.axes) else None

    def grid(self, seed: int) -> list[dict[str, Value]]:
        """Return all trials of a space that has an end, in an order that depends on the seed."""
        names = [axis.name for axis in self.axes]
        lists = [axis.points or [] for axis in self.axes]
        found = [dict(zip(names, values, strict=True)) for values in itertools.product(*lists)]
        random.Random(seed).shuffle(found)
        return found


def parse(overrides: Sequence[Override]) -> Space:
    """Return the space that a command line describes.

    Args:
        overrides: The parsed overrides; of two for one key the later one counts.

    Raises:
        UserError: Nothing is searched, or an interval is empty.
    """
    fixed, axes = dict[str, str](), dict[str, Axis]()
    for override in overrides:
        key = override.get_key_element()
        fixed.pop(key, None)
        axes.pop(key, None)
        if override.is_sweep_override():
            axes[key] = _axis(key, override)
        else:
            fixed[key] = override.get_value_element_as_str()
    if not axes:
        raise UserError(
            "-m: nothing is searched, expected at least one key with several values, for example "
            '-m "optimizer.learning_rate=tag(log,interval(1e-4,1e-1))" '
            '"model.hidden_units=int(interval(32,512))"'
        )
    return Space(tuple(axes.values()), fixed)


def spelled(value: Value) -> str:
    """Return a value as an override takes it."""
    return value if isinstance(value, str) else repr(value)


def _axis(key: str, override: Override) -> Axis:
    """Return the axis that an override describes."""
    written = str(override.input_line).partition("=")[2]
    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        low, high, log = value.start or 0, value.end or 0, "log" in value.tags
        if low >= high or (log and low <= 0):
            above = " above 0" if log else ""
            raise UserError(
                f"{key}: received {written}, expected two numbers{above}, the smaller one first; "
                f"for example {SYNTAX}"
            )
        return Axis(key, written, low=low, high=high, log=log)
    if isinstance(value, RangeSweep | ChoiceSweep):
        # A resumed search has to have its values in the same order.
        value.shuffle = False
    if isinstance(value, RangeSweep) and len(points := sorted(value.range())) > 1:
        step = points[1] - points[0] if isinstance(points[0], int) else abs(value.step)
        return Axis(key, written, low=points[0], high=points[-1], step=step)
    texts = tuple(dict.fromkeys(override.sweep_string_iterator()))
    if not texts:
        raise UserError(f"{key}: received {written}, which is no value at all; expected {SYNTAX}")
    return Axis(key, written, choices=texts)
