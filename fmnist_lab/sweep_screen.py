"""What a person reads while a sweep goes on: a line a job, and on a terminal what is running."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from fmnist_lab.console import ToTheEnd, aligned, count, duration
from fmnist_lab.tracking import Progress

RUNNING_SHOWN = 12


class SweepScreen:
    """Everything that a sweep prints, in the order in which it happens."""

    def __init__(self, jobs: int) -> None:
        """Take hold of the terminal, or the file, that the sweep was started with.

        Args:
            jobs: How many there will be; 0 if nobody knows yet.
        """
        # A job of this process moves standard output elsewhere while it runs.
        out = sys.stdout
        self.console = ToTheEnd(file=out, highlight=False, width=None if out.isatty() else 120)
        self.jobs = jobs
        self.width = len(f"{jobs:,}") or 5
        self.live: Live | None = None

    def heading(self, facts: Mapping[str, str]) -> None:
        """Say what is about to happen."""
        aligned(self.console, facts)
        self.console.print(
            f"\n[dim]{'job':>{2 * self.width + 1}}  {'':<24}{'test accuracy':>15}{'gap':>9}"
            f"{'time':>14}[/dim]"
        )

    def start(self) -> None:
        """Begin to show what is running, if this is a terminal."""
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
        """Take away what `start` has begun."""
        if self.live:
            self.live.stop()
            self.live = None

    def over(self, number: int, job: Progress, began: float) -> None:
        """Print a job that has ended.

        Args:
            number: How many have, with this one; a job that is lost and done again counts once.
            job: The job.
            began: When the sweep began, in seconds since 1970; a result may be older.
        """
        place = f"{number:>{self.width}}/{self.jobs:<{self.width}}"
        start = f"{place}  {escape(f'{job.name:<24}')}"
        if job.status == "FINISHED":
            took = "from before" if 0 < job.ended < 1000 * began else duration(job.seconds)
            self.console.print(f"{start}{_figures(job.metrics or {})}{took:>14}")
        else:
            reason = escape(short_reason(job.failure))
            self.console.print(f"{start} [red]{job.status}[/red]  {reason}", soft_wrap=True)

    def update(self, running: Sequence[Progress], done: int, failed: int, share: float) -> None:
        """Show what runs now.

        Args:
            running: Jobs.
            done: How many have ended.
            failed: How many of them without success.
            share: Of all the work, from 0 to 1.
        """
        if not self.live:
            return
        lines = [self._running(job) for job in running[:RUNNING_SHOWN]]
        if len(running) > RUNNING_SHOWN:
            lines.append(f"[dim]… and {len(running) - RUNNING_SHOWN} more[/dim]")
        self.live.update(Group(*lines, _Bar(self.jobs, done, failed, share, time.monotonic())))

    def _running(self, job: Progress) -> str:
        epochs = f"epoch {job.epoch}/{job.epochs}" if job.epochs else "starting"
        figures = _figures(job.metrics) if job.metrics else f"{'':24}"
        return f"{'·':>{2 * self.width + 1}}  {escape(f'{job.name:<24}')}{figures}{epochs:>14}"


class _Bar:
    """The overall bar, whose time left goes on counting down between two looks at the store."""

    began = 0.0

    def __init__(self, jobs: int, done: int, failed: int, share: float, now: float) -> None:
        self.jobs, self.done, self.failed, self.share, self.now = jobs, done, failed, share, now

    def __rich__(self) -> Table:
        spent = self.now - _Bar.began
        left = ""
        if self.share > 0.01 and spent > 3:
            rest = spent / self.share * (1 - self.share) - (time.monotonic() - self.now)
            left = f"{duration(max(rest, 0))} left"
        bad = f"  [red]{self.failed} failed[/red]" if self.failed else ""
        row = Table.grid(padding=(0, 2))
        row.add_row(
            f"{self.done}/{self.jobs or '?'} jobs",
            ProgressBar(total=1, completed=self.share, width=40),
            f"{100 * self.share:.0f} %  {left}{bad}",
        )
        return row


def starting_now() -> None:
    """Note the time from which the bar's time left is reckoned."""
    _Bar.began = time.monotonic()


def summary(console: Console, counts: Mapping[str, int], jobs: int, seconds: float) -> None:
    """Print how many jobs came to which end."""
    states = sorted(counts, key=lambda state: (state != "FINISHED", state))
    parts = [f"{counts[state]} {state.lower()}" for state in states if counts[state]]
    missing = jobs - sum(counts.values())
    if missing > 0:
        parts.append(f"{missing} not begun")
    console.print(
        f"\n{count(max(jobs, sum(counts.values())), 'job')} in {duration(seconds)}: "
        f"{', '.join(parts)}."
    )


def short_reason(failure: str) -> str:
    """Return the line of a failure that says what it was: of a traceback, the last."""
    lines = failure.strip().splitlines() or ["no reason was recorded"]
    line = lines[-1] if lines[0].startswith("Traceback") else lines[0]
    return line if len(line) <= 200 else f"{line[:199]}…"


def _figures(metrics: Mapping[str, float]) -> str:
    def figure(name: str, spec: str) -> str:
        return format(metrics[name], spec) if name in metrics else ""

    return f"{figure('accuracy/test', '.4f'):>15}{figure('accuracy/gap', '+.4f'):>9}"
