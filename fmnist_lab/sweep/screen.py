"""The screen of a sweep: one line per job, and on a terminal the jobs that run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from fmnist_lab.system.terminal import aligned, printout
from fmnist_lab.texts import counted, duration
from fmnist_lab.tracking import Progress

RUNNING_SHOWN = 12


class Column(NamedTuple):
    """A figure of each job: its metric, its heading, its width and its format."""

    metric: str
    heading: str
    width: int
    spec: str


TESTED = (
    Column("accuracy/test", "test accuracy", 15, ".4f"),
    Column("accuracy/gap", "gap", 9, "+.4f"),
)


class SweepScreen:
    """Everything that a sweep prints, in the order in which it happens.

    Attributes:
        noun: The word for a job.
        last_heading: The heading of the last column.
        name_width: The characters that names are given.
    """

    noun, last_heading = "job", "time"
    name_width = 24

    def __init__(self, jobs: int, began: float, columns: Sequence[Column] = TESTED) -> None:
        """Take the terminal, or the file, that the sweep was started with.

        Args:
            jobs: The number of jobs; 0 if nobody knows it yet.
            began: When the sweep began, in seconds since 1970; a result may be older.
            columns: The figures of each job.
        """
        self.columns = columns
        # A job of this process moves standard output elsewhere while it runs.
        self.console = printout(piped=120)
        self.jobs = jobs
        self.width = len(f"{jobs:,}") or 5
        self.began = began
        self.pace = Pace(time.monotonic())
        self.live: Live | None = None

    def heading(self, facts: Mapping[str, str]) -> None:
        """Print facts about the sweep, and the head of the table of jobs."""
        aligned(self.console, facts)
        figures = "".join(f"{column.heading:>{column.width}}" for column in self.columns)
        self.console.print(
            f"\n[dim]{self.noun:>{2 * self.width + 1}}  {'':<{self.name_width}}{figures}"
            f"{self.last_heading:>14}[/dim]"
        )

    def start(self) -> None:
        """Begin to show the jobs that run, if this is a terminal."""
        if self.console.is_terminal:
            self.live = Live(
                console=self.console,
                refresh_per_second=4,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self.live.start()

    def stop(self) -> None:
        """Remove the live part of the screen."""
        if self.live:
            self.live.stop()
            self.live = None

    def over(self, number: int, job: Progress) -> None:
        """Print a job that has ended.

        Args:
            number: How many jobs have ended, this one included; one that is done again counts once.
            job: The job.
        """
        before = 0 < job.ended < 1000 * self.began
        self.pace.job_ended |= not before
        place = f"{number:>{self.width}}/{self.jobs:<{self.width}}"
        start = f"{place}  {escape(f'{job.name:<{self.name_width}}')}"
        if job.status in ("FINISHED", "PAUSED"):
            took = "from before" if before else duration(job.seconds)
            if job.status == "PAUSED":
                took = f"paused at {job.epoch}/{job.epochs}"
            self.console.print(f"{start}{self._figures(job.metrics or {})}{took:>14}")
        else:
            reason = escape(short_reason(job.failure))
            self.console.print(f"{start} [red]{job.status}[/red]  {reason}", soft_wrap=True)

    def update(self, running: Sequence[Progress], done: int, failed: int, share: float) -> None:
        """Show the jobs that run now, and how much is done.

        Args:
            running: These jobs.
            done: How many jobs have ended.
            failed: How many of those without success.
            share: The share of all the work that is done, from 0 to 1.
        """
        if not self.live:
            return
        lines = [self._running(job) for job in running[:RUNNING_SHOWN]]
        if len(running) > RUNNING_SHOWN:
            lines.append(f"[dim]… and {len(running) - RUNNING_SHOWN} more[/dim]")
        ends = self.pace.end(time.monotonic(), share)
        self.live.update(Group(*lines, _Bar(self.noun, self.jobs, done, failed, share, ends)))

    def _running(self, job: Progress) -> str:
        epochs = f"epoch {job.epoch}/{job.epochs}" if job.epochs else "starting"
        name = escape(f"{job.name:<{self.name_width}}")
        figures = self._figures(job.metrics or {})
        return f"{'·':>{2 * self.width + 1}}  {name}{figures}{epochs:>14}"

    def _figures(self, metrics: Mapping[str, float]) -> str:
        return "".join(
            f"{format(metrics[metric], spec) if metric in metrics else '':>{width}}"
            for metric, _, width, spec in self.columns
        )


class Pace:
    """An estimate of when a sweep will be over, from its pace so far.

    The workers' start is not counted, because it takes longer than many small jobs: the estimate
    begins again when the first job has ended.

    >>> pace = Pace(now=0.0)
    >>> pace.end(now=8.0, share=0.02) is None
    True
    >>> pace.job_ended = True
    >>> pace.end(now=9.0, share=0.04), pace.end(now=13.0, share=0.2)
    (None, 33.0)
    """

    def __init__(self, now: float) -> None:
        self.since, self.share = now, 0.0
        self.job_ended = self.steady = False

    def end(self, now: float, share: float) -> float | None:
        """Return when the sweep will be over; None while it is too early to tell.

        Args:
            now: The time, in seconds of some clock.
            share: The share of all the work that is done, from 0 to 1.

        Returns:
            A time of the same clock.
        """
        if self.job_ended and not self.steady:
            self.steady, self.since, self.share = True, now, share
        spent, done = now - self.since, share - self.share
        if done <= 0.01 or spent <= (3 if self.steady else 30):
            return None
        return now + spent / done * (1 - share)


class _Bar:
    """The overall bar; its time left counts down between two looks at the store."""

    def __init__(
        self, noun: str, jobs: int, done: int, failed: int, share: float, ends: float | None
    ) -> None:
        self.noun, self.jobs, self.done = noun, jobs, done
        self.failed, self.share, self.ends = failed, share, ends

    def __rich__(self) -> Table:
        left = ""
        if self.ends is not None:
            left = f"{duration(max(self.ends - time.monotonic(), 0))} left"
        bad = f"  [red]{self.failed} failed[/red]" if self.failed else ""
        row = Table.grid(padding=(0, 2))
        row.add_row(
            f"{self.done}/{self.jobs or '?'} {self.noun}s",
            ProgressBar(total=1, completed=self.share, width=40),
            f"{100 * self.share:.0f} %  {left}{bad}",
        )
        return row


def summary(console: Console, counts: Mapping[str, int], jobs: int, seconds: float) -> None:
    """Print how many jobs came to which end.

    Args:
        console: The sweep's.
        counts: The number of jobs by status.
        jobs: The number of all jobs.
        seconds: The time that the sweep took.
    """
    states = sorted(counts, key=lambda state: (state != "FINISHED", state))
    parts = [f"{counts[state]} {state.lower()}" for state in states if counts[state]]
    missing = jobs - sum(counts.values())
    if missing > 0:
        parts.append(f"{missing} not begun")
    console.print(
        f"\n{counted(max(jobs, sum(counts.values())), 'job')} in {duration(seconds)}: "
        f"{', '.join(parts)}."
    )


def short_reason(failure: str) -> str:
    """Return the line of a failure that names it; in a traceback this is the last one."""
    lines = failure.strip().splitlines() or ["no reason was recorded"]
    line = lines[-1] if lines[0].startswith("Traceback") else lines[0]
    return line if len(line) <= 200 else f"{line[:199]}…"
