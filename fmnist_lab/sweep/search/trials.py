"""The trials of a search, and the log from which they are known again after any end.

The log is a text file with one JSON object per line. A line is on disk before anything is done that
it tells of, so that a search whose processes were killed at any moment goes on where it was.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from fmnist_lab.sweep.search.space import Value
from fmnist_lab.system import durable

LOG = "trials.jsonl"
# The numbers of the jobs that train the winner begin here: this, then so many for each trial.
FINALS = 100_000
MOST_FINALS = 100


class Failure(StrEnum):
    """Whose fault a failure is.

    Attributes:
        LASTING: The trial's own, as that of a loss that is not finite: it would fail again.
        ELSEWHERE: A disk's or a store's, at which any trial would have failed.
        UNKNOWN: Nobody can say.
    """

    LASTING = "lasting"
    ELSEWHERE = "elsewhere"
    UNKNOWN = ""


def final_number(trial: int, place: int) -> int:
    """Return the job number of one of the trainings of a winner.

    Args:
        trial: The number of the trial that has won.
        place: Which training it is, from 0.

    >>> final_number(17, 4), trial_of(final_number(17, 4)), trial_of(17)
    (101704, 17, 17)
    """
    return FINALS + MOST_FINALS * trial + place


def trial_of(number: int) -> int:
    """Return the trial that a job belongs to."""
    return number if number < FINALS else (number - FINALS) // MOST_FINALS


def tags(number: int, overrides: Sequence[str], axes: Sequence[str]) -> dict[str, str]:
    """Return the tags that tell of a job's place in a search.

    Args:
        number: The job's number.
        overrides: The job's own.
        axes: The keys that are searched over.

    >>> tags(3, ["a.b=0.5", "c=x", "d=1"], ["a.b", "c"])
    {'role': 'trial', 'trial.number': '3', 'trial.values': '{"a.b": 0.5, "c": "x"}'}
    """
    texts = dict(word.lstrip("+").split("=", 1) for word in overrides if "=" in word)
    values = {axis: _value(texts[axis]) for axis in axes if axis in texts}
    return {
        "role": "trial" if number < FINALS else "final",
        "trial.number": str(trial_of(number)),
        "trial.values": json.dumps(values),
    }


def _value(text: str) -> Value:
    """Return the value that an override spells."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@dataclass
class Trial:
    """One choice of values, and how far it has been trained.

    Attributes:
        number: Its number, from 0; its job has the same.
        values: The chosen value of each key.
        attrs: What the sampler has to know of it later.
        asked: The epochs that it was last given out for.
        results: The objectives that it had after each number of epochs it was asked for.
        failure: Why it has failed, or "".
        lasting: Whether it would fail again.
    """

    number: int
    values: dict[str, Value]
    attrs: dict[str, Any] = field(default_factory=dict)
    asked: int = 0
    results: dict[int, tuple[float, ...]] = field(default_factory=dict)
    failure: str = ""
    lasting: bool = False

    @property
    def runs(self) -> bool:
        """Whether it was given out, and nothing has come back yet."""
        return not self.failure and self.asked not in self.results

    @property
    def last(self) -> tuple[float, ...] | None:
        """Its objectives after the most epochs so far."""
        return self.results[max(self.results)] if self.results else None


@dataclass
class Trials:
    """All trials of a search, and the trainings of its winners.

    Attributes:
        all: The trials, by their numbers.
        finals: The end of each training of a winner, by job number: None while it runs, then why it
            has failed, or "".
        order: The jobs that were given out, the latest last.
        seconds: The time that was spent until the latest line of the log about a trial.
        took: The seconds of workers that trials have spent on the way to each rung.
    """

    all: list[Trial] = field(default_factory=list)
    finals: dict[int, str | None] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    seconds: float = 0.0
    took: Counter[int] = field(default_factory=Counter)

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take an event in, as `TrialLog` has written it."""
        kind, number = event["event"], int(event["number"])
        if number < FINALS:
            self.seconds = float(event["seconds"])
        if "took" in event:
            self.took[int(event["epoch"])] += event["took"]
        if kind == "trial":
            self.all.append(Trial(number, dict(event["values"]), dict(event["attrs"])))
        if kind in ("trial", "promoted"):
            self.all[number].asked = int(event["epochs"])
            self.order.append(number)
        elif kind == "result":
            trial = self.all[number]
            values = tuple(map(float, event["objectives"]))
            # It may have ended by itself before, and then stays as it is.
            trial.results |= dict.fromkeys(map(int, event["epochs"]), values)
            trial.failure = ""
        elif kind == "failed":
            trial = self.all[number]
            trial.failure = str(event["reason"])
            trial.lasting = event.get("kind") == Failure.LASTING
        elif kind == "final":
            self.finals[number] = None
            self.order.append(number)
        elif kind == "final over":
            self.finals[number] = str(event["reason"])

    def reopen(self) -> None:
        """Forget the failures that need not come again, as those of a full disk."""
        for trial in self.all:
            if not trial.lasting:
                trial.failure = ""
        # Nothing is chosen by how the winner does, so that it may be trained again.
        self.finals = {number: reason for number, reason in self.finals.items() if not reason}

    def open(self) -> list[int]:
        """Return the jobs that were given out and have not ended, in that order."""
        going = [number for number in self.order if self._is_open(number)]
        return list(dict.fromkeys(going))

    def _is_open(self, number: int) -> bool:
        return self.finals.get(number, "") is None if number >= FINALS else self.all[number].runs

    def scores(self, epochs: int, signs: Sequence[int]) -> dict[int, float]:
        """Return the first objective of all trials after so many epochs; more is better.

        Args:
            epochs: One of the rungs.
            signs: 1 for each objective that is to be large, -1 for each that is to be small.
        """
        return {number: point[0] for number, point in self.points(epochs, signs).items()}

    def points(self, epochs: int, signs: Sequence[int]) -> dict[int, tuple[float, ...]]:
        """Return all objectives of all trials after so many epochs, as `scores` does."""
        return {
            trial.number: tuple(
                sign * value for sign, value in zip(signs, trial.results[epochs], strict=True)
            )
            for trial in self.all
            if epochs in trial.results and not trial.failure
        }


def read(lines: Iterable[bytes]) -> tuple[Trials, int]:
    """Return what the lines of a log tell, and the length of those that are whole."""
    trials, whole = Trials(), 0
    for line in lines:
        # The last line may be torn, and then it tells of nothing that was done.
        if not line.endswith(b"\n"):
            break
        trials.apply(json.loads(line))
        whole += len(line)
    return trials, whole


class TrialLog:
    """The file that the trials of a search are remembered in.

    Attributes:
        trials: All that the file tells.
    """

    def __init__(self, file: Path | None) -> None:
        """Read what an earlier command has written, and go on after it.

        Args:
            file: The file, which need not exist; None: nothing is kept.
        """
        self.trials = Trials()
        self._file: IO[bytes] | None = None
        if file is None:
            return
        durable.make_folder(file.parent)
        self._file = file.open("ab+")
        self._file.seek(0)
        self.trials, whole = read(self._file)
        self._file.truncate(whole)
        self._file.seek(0, os.SEEK_END)
        durable.sync_folder(file.parent)

    def write(self, event: str, number: int, seconds: float, **facts: Any) -> None:
        """Remember an event for good.

        Args:
            event: Its kind.
            number: The number of the job that it is about.
            seconds: The time that the search has taken so far.
            facts: More about it.

        Raises:
            OSError: The disk is full or failing.
        """
        told = {"event": event, "number": number, "seconds": round(seconds, 3), **facts}
        if self._file is not None:
            self._file.write(json.dumps(told).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        self.trials.apply(told)

    def close(self) -> None:
        """Let the file go."""
        if self._file is not None:
            self._file.close()
