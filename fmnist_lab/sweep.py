"""A sweep: one parent run and a child for each job, on whatever launcher Hydra has been given.

`Callback` is what Hydra calls: in the process that was started to plan the sweep (`conductor` then
watches it), and in whichever process does a job, which knows no more than the callback's pickled
attributes and the store.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from hydra.experimental.callback import Callback as HydraCallback
from omegaconf import DictConfig

from fmnist_lab import provenance
from fmnist_lab.errors import UserError

if TYPE_CHECKING:
    from fmnist_lab.conductor import Conductor
    from fmnist_lab.tracking import SweepRun

# Axes that everybody knows by a letter or two; others bear their names.
SHORT = {
    "trainer.epochs": "e",
    "trainer.batch_size": "b",
    "model.hidden_units": "h",
    "model.dropout": "drop",
    "optimizer.learning_rate": "lr",
    "seed": "s",
}
FIRST = ("model", "model.hidden_units")
OUTCOMES = "outcomes.jsonl"


@dataclass(frozen=True)
class Membership:
    """What a job is in its sweep.

    Attributes:
        sweep: Id of the parent run; "" if nothing is kept.
        job: The job's number, from 0.
        name: What differs from the other jobs, in the fewest characters: "h512 e20 s3".
        axes: The keys that the sweep varies.
    """

    sweep: str
    job: int
    name: str
    axes: tuple[str, ...] = ()

    def tags(self) -> dict[str, str]:
        """Return the tags by which the job's run is found."""
        from fmnist_lab import tracking

        if not self.sweep:
            return {}
        return {
            tracking.member_tag(self.sweep): f"{self.job:05d}",
            "mlflow.parentRunId": self.sweep,
        }


@dataclass(frozen=True)
class Job:
    """A job about to be done, as the process knows it that does it.

    Attributes:
        member: What it is in its sweep.
        run: The parent run, or None if nothing is kept.
        folder: Where its log is written until it is kept with the run.
    """

    member: Membership
    run: SweepRun | None
    folder: Path

    @property
    def log(self) -> Path:
        """The file that takes what the job prints."""
        return self.folder / f"{self.member.job:05d}" / "log.txt"

    def attempt(self, do: Callable[[Membership], dict[str, float]]) -> dict[str, Any]:
        """Do the job; what it prints goes to its log, and no failure of it leaves this function.

        Returns:
            What the job returns, or its `failure` in a few words.
        """
        began = round(time.time() * 1000)
        failure, metrics = "", {}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with _printing_to(self.log):
            try:
                metrics = do(self.member)
            except UserError as error:
                failure = str(error)
                print(f"error: {error}", file=sys.stderr)
            except Exception as error:
                failure = f"{type(error).__name__}: {' '.join(str(error).split())}"
                traceback.print_exc()
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                self.keep(began, "")
                raise
        # The log stays where it is if the store is away; that is not to end the sweep.
        with suppress(Exception):
            self.keep(began, failure, metrics)
        return {"failure": failure} if failure else dict(metrics)

    def keep(self, began: int, failure: str, metrics: dict[str, float] | None = None) -> None:
        """Keep the log with the job's run, and a failure that came before there was a run."""
        if self.run:
            name, source = self.member.name, provenance.tags()
            self.run.keep_log(self.member.job, name, self.log, began, failure, source)
            with suppress(OSError):
                self.log.parent.rmdir()
            return
        outcome = {
            "job": self.member.job,
            "name": self.member.name,
            "status": "FAILED" if failure else "FINISHED",
            "seconds": time.time() - began / 1000,
            "ended": round(1000 * time.time()),
            "failure": failure,
            "metrics": metrics or {},
        }
        if not metrics and not failure:
            outcome["status"] = "KILLED"
        # One short write to the end of a file is not mixed up with another process' own.
        with (self.folder / OUTCOMES).open("a") as file:
            file.write(json.dumps(outcome) + "\n")


current: Job | None = None
begun: Conductor | None = None  # in the process that a sweep was started in


@contextmanager
def conducted() -> Iterator[None]:
    """Close the sweep that has been begun within, if one has, whatever happens to it.

    Raises:
        SystemExit: 1 if a job has failed.
    """
    global begun
    try:
        yield
    except BaseException as error:
        if begun:
            begun.end(error)
        raise
    else:
        if begun and not begun.end(None):
            raise SystemExit(1)
    finally:
        begun = None


class Callback(HydraCallback):
    """What Hydra calls at the start of a sweep, and at the start of each of its jobs.

    Attributes:
        run: The parent run, or None if nothing is kept.
        axes: The swept keys.
        folder: Where logs are written.
    """

    def __init__(self) -> None:
        self.run: SweepRun | None = None
        self.axes: tuple[str, ...] = ()
        self.folder = ""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Check what can be checked, open the parent run and begin to watch."""
        from fmnist_lab import conductor

        global begun
        begun = conductor.begin(config)
        self.run, self.axes, self.folder = begun.run, tuple(begun.plan.axes), str(begun.folder)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Note which job this process is about to do."""
        global current
        current = None
        if not self.folder:
            return
        folder = Path(self.folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            # Another machine than the one that the sweep was started on.
            folder = Path(tempfile.mkdtemp(prefix="fmnist_lab-"))
        number, overrides = int(config.hydra.job.num), list(config.hydra.overrides.task)
        name = job_name(overrides, self.axes) or f"job {number}"
        member = Membership(self.run.id if self.run else "", number, name, self.axes)
        current = Job(member, self.run, folder)


def job_name(overrides: Sequence[str], axes: Sequence[str]) -> str:
    """Return what differs between jobs, such as "h512 e20 s3".

    Args:
        overrides: The job's own, "key=value" each.
        axes: The keys that differ; the seed comes last, the model first, others as they are.
    """
    values = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    order = sorted(
        (axis for axis in axes if axis in values),
        key=lambda axis: (axis == "seed", FIRST.index(axis) if axis in FIRST else len(FIRST)),
    )
    return " ".join(_short(axis, values[axis].strip("'\"")) for axis in order)


def _short(axis: str, value: str) -> str:
    if value.startswith("["):
        value = "-".join(part.strip() for part in value.strip("[]").split(","))
    if axis in SHORT and value[:1].isdigit():
        return SHORT[axis] + value
    if "." not in axis:
        return value if not value[:1].isdigit() else f"{axis}{value}"
    if axis.endswith("._target_"):
        return value.rpartition(".")[2]
    return f"{axis.rpartition('.')[2]}={value}"


class _Routed(io.TextIOBase):
    """Standard output or error, going to a job's log while there is one.

    Put in place once and for all, because libraries' log handlers keep the stream they first see.
    """

    log: TextIO | None = None

    def __init__(self, usual: TextIO) -> None:
        self.usual = usual

    def write(self, text: str) -> int:
        return (self.log or self.usual).write(text)

    def flush(self) -> None:
        (self.log or self.usual).flush()

    def isatty(self) -> bool:
        return self.log is None and self.usual.isatty()

    def fileno(self) -> int:
        return self.usual.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8" if self.log else self.usual.encoding


@contextmanager
def _printing_to(file: Path) -> Iterator[None]:
    """Send this process' standard output and error to a file, for a while."""
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), _Routed):
            setattr(sys, name, _Routed(getattr(sys, name)))
    streams = [each for each in (sys.stdout, sys.stderr) if isinstance(each, _Routed)]
    with file.open("a", encoding="utf-8", buffering=1) as log:
        for stream in streams:
            stream.log = log
        try:
            yield
        finally:
            for stream in streams:
                stream.log = None
