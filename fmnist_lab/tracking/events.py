"""The events that a run writes, as dataclasses and as the lines of its journal.

Each line of a journal is a JSON object with the event's `kind` and its fields. The format is the
one that earlier versions wrote: a field that a line lacks takes its default, and a line that is
torn or unknown is skipped.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any


def now() -> int:
    """Return the milliseconds since 1970, MLflow's unit of time."""
    return int(time.time() * 1000)


class Status(StrEnum):
    """The state of a run, under MLflow's names.

    MLflow knows no paused runs; its interface shows a SCHEDULED run as one that waits.
    """

    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"
    PAUSED = "SCHEDULED"


@dataclass(frozen=True)
class Opening:
    """A run is about to be made in the store, with a token as its tag."""

    token: str = ""


@dataclass(frozen=True)
class Opened:
    """A run is in the store."""

    id: str
    name: str = ""
    store: str = ""
    experiment: str | None = None


@dataclass(frozen=True)
class Params:
    """The parameters of a run."""

    values: dict[str, str]


@dataclass(frozen=True)
class Tags:
    """Facts about a run."""

    values: dict[str, str]


@dataclass(frozen=True)
class Metrics:
    """Figures of one epoch, at a time in milliseconds since 1970."""

    step: int
    time: int
    values: dict[str, float]


@dataclass(frozen=True)
class DatasetUsed:
    """The data that a run has used, as MLflow describes a data set."""

    name: str
    digest: str
    source: str
    schema: str
    profile: str


@dataclass(frozen=True)
class Artifact:
    """A file of a run, by its name in the journal's folder of files."""

    name: str


@dataclass(frozen=True)
class TrainedModel:
    """The model of a run, as a Keras file among the run's files.

    Attributes:
        file: The file's name.
        class_names: The names of its classes.
        metrics: The figures that were logged last.
        inputs: Type and shape of a batch of inputs, such as ("uint8", (-1, 28, 28)); None in the
            journals of earlier versions.
        outputs: The same of its outputs.
        calibration: The content of its file `calibration.json`, which `evaluation.confidence`
            describes; None if it has no such file.
        divisor: What pixels are divided by to become its inputs; None: they cannot be.
    """

    file: str
    class_names: Sequence[str]
    metrics: Metrics | None = None
    inputs: tuple[str, Sequence[int]] | None = None
    outputs: tuple[str, Sequence[int]] | None = None
    calibration: dict[str, float] | None = None
    divisor: float | None = 1


@dataclass(frozen=True)
class End:
    """The end of a run, at a time in milliseconds since 1970."""

    status: Status
    time: int = 0


Values = Params | Metrics | Tags
Event = Opening | Opened | Values | DatasetUsed | Artifact | TrainedModel | End
KINDS: dict[str, type[Event]] = {
    "opening": Opening,
    "run": Opened,
    "params": Params,
    "tags": Tags,
    "metrics": Metrics,
    "dataset": DatasetUsed,
    "file": Artifact,
    "model": TrainedModel,
    "end": End,
}
NAMES = {cls: kind for kind, cls in KINDS.items()}


def encode(event: Event) -> str:
    """Return an event as a line of a journal.

    >>> encode(Params({"seed": "1"}))
    '{"kind": "params", "values": {"seed": "1"}}'
    """
    return json.dumps({"kind": NAMES[type(event)], **dataclasses.asdict(event)})


def decode(line: str) -> Event | None:
    """Return the event of a journal's line; None if the line is torn or of no known kind.

    >>> decode('{"kind": "end", "status": "FINISHED", "time": 3}')
    End(status=<Status.FINISHED: 'FINISHED'>, time=3)
    >>> decode('{"kind": "end", "sta')
    """
    try:
        return _event(json.loads(line))
    except (ValueError, TypeError, KeyError):
        return None


def _event(values: dict[str, Any]) -> Event:
    cls = KINDS[values["kind"]]
    found = {each.name: values[each.name] for each in fields(cls) if each.name in values}
    if cls is End:
        found["status"] = Status(found["status"])
    elif cls is TrainedModel:
        # Earlier versions noted the metrics as an event, and no metrics as an empty object.
        noted = found.get("metrics")
        found["metrics"] = _event({"kind": "metrics", **noted}) if noted else None
    return cls(**found)
