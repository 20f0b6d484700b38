"""One job of a sweep in the process that does it: its place, its log, its end."""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fmnist_lab.errors import DivergedError, TooLargeError, UserError, ended_by
from fmnist_lab.sweep.search import trials
from fmnist_lab.system import provenance

if TYPE_CHECKING:
    from fmnist_lab.jobs.membership import Membership
    from fmnist_lab.tracking import SweepRun

OUTCOMES = "outcomes.jsonl"
CHANGED_TAG = "code.changed"  # of a job that began after the code had changed


@dataclass(frozen=True)
class Sweep:
    """The facts that every job knows of its sweep, in whichever process it is done.

    Attributes:
        run: The parent run, or None if nothing is kept.
        folder: Where jobs write their logs until these are kept with the runs.
        axes: The swept keys.
        flags: The flags of the command line that say where configs are.
        began: When the sweep began, in milliseconds since 1970.
        is_search: Whether the jobs are the trials of a search, and the trainings of its winner.
        most_parameters: How many parameters a job's model may have; None: any number.
        code: The version of the code that the sweep began with, see `provenance.code_version`.
    """

    run: SweepRun | None
    folder: Path
    axes: tuple[str, ...]
    flags: tuple[str, ...]
    began: int
    is_search: bool = False
    most_parameters: int | None = None
    code: str = ""

    def job(self, number: int, overrides: Sequence[str]) -> Job:
        """Return a job of the sweep.

        Args:
            number: The job's number, from 0.
            overrides: The job's own.
        """
        from fmnist_lab.jobs.membership import Membership

        folder = self.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            # Another machine than the one that the sweep was started on.
            folder = Path(tempfile.mkdtemp(prefix="fmnist_lab-"))
        member = Membership.of(self.run, number, overrides, self.axes, self.flags)
        if self.is_search:
            tags = trials.tags(number, overrides, self.axes)
            member = replace(member, more=tags, most_parameters=self.most_parameters)
        if self.code not in ("", provenance.code_version()):
            member = replace(member, more={**member.more, CHANGED_TAG: "true"})
        return Job(member, self.run, folder)


@dataclass(frozen=True)
class Job:
    """A job that is about to be done.

    Attributes:
        member: Its place in its sweep.
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

    def attempt(
        self,
        do: Callable[[], dict[str, float]],
        params: Callable[[], Mapping[str, str]] = dict,
    ) -> dict[str, Any]:
        """Do the job; its output goes to its log, and its failure does not leave this function.

        Args:
            do: The work, which returns the job's metrics.
            params: Returns the params of the job's run.

        Returns:
            The metrics, or the `failure` in a few words and its `kind`, one of `trials.Failure`.
        """
        began = round(time.time() * 1000)
        failure, kind, metrics = "", "", {}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with _printing_to(self.log):
            if CHANGED_TAG in self.member.more:
                print("The code has changed since this job's sweep began.\n")
            try:
                metrics = do()
            except UserError as error:
                failure, kind = str(error), _kind(error)
                print(f"error: {error}", file=sys.stderr)
            except Exception as error:
                failure = f"{type(error).__name__}: {' '.join(str(error).split())}"
                kind = _kind(error)
                traceback.print_exc()
            except KeyboardInterrupt as end:
                print(ended_by(end), file=sys.stderr)
                # Hydra would take an error of the store for the job's, and begin the next job.
                with suppress(Exception):
                    self.keep(began, "")
                raise
        # If the store is away, the log stays where it is, and the sweep goes on.
        with suppress(Exception):
            self.keep(began, failure, metrics, params() if failure else None)
        return {"failure": failure, "kind": kind} if failure else dict(metrics)

    def keep(
        self,
        began: int,
        failure: str,
        metrics: dict[str, float] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> None:
        """Keep the log with the job's run, and make a run of a failure that came before it.

        Args:
            began: When the job began, or its sweep, in milliseconds since 1970.
            failure: Why it failed, or "".
            metrics: The job's results, if there are any.
            params: The params of a run that has come to none of its own.
        """
        if self.run:
            name, source = self.member.name, {**provenance.tags(), **self.member.tags()}
            self.run.keep_log(self.member.job, name, self.log, began, failure, source, params)
            with suppress(OSError):
                self.log.parent.rmdir()
            return
        from fmnist_lab.tracking import Progress

        status = "FAILED" if failure else "FINISHED" if metrics else "KILLED"
        ended = round(time.time() * 1000)
        outcome = Progress(
            self.member.job,
            self.member.name,
            status,
            metrics=metrics,
            seconds=(ended - began) / 1000,
            failure=failure,
            ended=ended,
        )
        # One short write to the end of a file does not mix with the writes of other processes.
        with (self.folder / OUTCOMES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")


def _kind(error: Exception) -> str:
    """Return whose fault a failure is: the config's, that of a disk or a store, or unknown."""
    from fmnist_lab.tracking import failures

    if isinstance(error, DivergedError | TooLargeError):
        return trials.Failure.LASTING
    return trials.Failure.ELSEWHERE if failures.kind(error) else trials.Failure.UNKNOWN


class _Log(io.TextIOWrapper):
    """A job's log. Its disk may be full, which does not fail the job."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class _Routed:
    """Standard output or error, which goes to a job's log while there is one.

    It is put in place once, because libraries' log handlers keep the stream that they first see.
    """

    def __init__(self, usual: TextIO) -> None:
        self.usual = self.now = usual

    def __getattr__(self, name: str) -> Any:
        return getattr(self.now, name)


@contextmanager
def _printing_to(file: Path) -> Iterator[None]:
    """Send this process' standard output and error to a file, for a while."""
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), _Routed):
            setattr(sys, name, _Routed(getattr(sys, name)))
    streams: list[Any] = [sys.stdout, sys.stderr]
    with _Log(file.open("ab"), encoding="utf-8", line_buffering=True) as log:
        for stream in streams:
            stream.now = log
        try:
            yield
        finally:
            for stream in streams:
                stream.now = stream.usual
