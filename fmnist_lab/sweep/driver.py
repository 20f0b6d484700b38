"""The driver of a sweep: it plans the jobs, watches them and sums them up."""

from __future__ import annotations

import json
import math
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from fmnist_lab import tracking
from fmnist_lab.config import flags
from fmnist_lab.errors import UserError, ended_by
from fmnist_lab.sweep import screen
from fmnist_lab.sweep.job import OUTCOMES, Sweep
from fmnist_lab.sweep.opening import checked_plan, opened
from fmnist_lab.sweep.plan import Plan
from fmnist_lab.sweep.search.control import Search
from fmnist_lab.system import provenance, signals
from fmnist_lab.system.terminal import aligned
from fmnist_lab.texts import counted

if TYPE_CHECKING:
    import pandas as pd

    from fmnist_lab.sweep.task import Task
    from fmnist_lab.tracking import Progress, SweepRun

LEAST_PAUSE_SECONDS = 1.0
MOST_OF_THE_TIME = 0.05  # spent on looking at the store
LATENESS_SECONDS = 600.0  # until the store knows that a job has ended


@contextmanager
def driving(config: DictConfig, task: Task) -> Iterator[None]:
    """Begin a sweep, let the caller do its jobs, and end the sweep whatever happens.

    Args:
        config: The composed sweep.
        task: The function that Hydra calls with each job's config; it learns of the sweep here.

    Raises:
        UserError: The sweep cannot be done.
        SystemExit: 1 if a job has failed.
    """
    driver = begin(config)
    task.sweep, task.remark = driver.sweep, driver.remark
    task.search = driver.search.source if driver.search else None
    try:
        yield
    except BaseException as error:
        driver.end(error)
        raise
    if not driver.end(None):
        raise SystemExit(1)


class SweepDriver:
    """A sweep in progress, watched by the process that the user has started."""

    def __init__(
        self,
        planned: Plan,
        sweep: Sweep,
        *,
        name: str,
        resume: bool | None,
        here: bool,
        note: str = "",
        search: Search | None = None,
    ) -> None:
        """Begin to watch.

        Args:
            planned: The plan of all jobs.
            sweep: The facts that each job is told of its sweep.
            name: The sweep's name.
            resume: True if earlier runs may answer jobs; None: there is no such option.
            here: True if this process and its children do all jobs.
            note: A sentence for the user before the first job begins, or "".
            search: Chooses the jobs and sums them up; None of a sweep of known jobs.
        """
        self.plan = planned
        self.sweep = sweep
        self.run = sweep.run
        self.folder = sweep.folder
        self.name = name
        self.earlier = bool(resume)
        self.resumable = resume is not None
        self.here = here
        self.began = sweep.began / 1000
        self.done: dict[int, Progress] = {}
        self.search = search
        self.screen = search.screen if search else screen.SweepScreen(len(planned.jobs), self.began)
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="sweep", daemon=True)
        self._signals = ExitStack()
        self._signals.enter_context(signals.handled(signals.terminate))
        axes = "  ".join(f"{axis}={values}" for axis, values in planned.axes.items())
        jobs = f"{len(planned.jobs)} jobs: " if planned.jobs else ""
        kept = "nowhere (tracking=none)"
        if self.run:
            where = self.run.store.place
            kept = f"{where}, run {self.run.id}{', begun before' if self.run.continued else ''}"
        facts = search.heading if search else {"sweep": jobs + axes}
        facts |= {"kept in": kept}
        self.screen.heading(facts | ({"note": note} if note else {}))
        self.screen.start()
        self._watcher.start()

    def end(self, error: BaseException | None) -> bool:
        """Sum up and close the sweep, however it has come to its end.

        Args:
            error: The exception that has ended it, or None.

        Returns:
            True if all jobs have finished, or are paused.
        """
        with self._signals, signals.ignored():
            self._ended.set()
            self._watcher.join()
            try:
                if self.run and self.here:
                    status, reason = "FAILED", "its worker process was lost"
                    if isinstance(error, KeyboardInterrupt):
                        status, reason = "KILLED", ended_by(error)
                    self.run.end_members(status, reason)
                with suppress(Exception):
                    self._look()
                self.screen.stop()
                return self._sum_up(error)
            except Exception as away:
                from fmnist_lab.tracking.failures import is_outage

                self.screen.stop()
                if self.run is None or not is_outage(away):
                    raise
                self._say_away(self.run)
                return False

    def _say_away(self, run: SweepRun) -> None:
        """Print the commands for the time when the store is back, which is away at the end."""
        self.screen.console.print(
            f"\nThe store {run.store.uri} is away. The jobs' results are kept on this "
            "machine; once the store is back:",
            markup=False,
            soft_wrap=True,
        )
        steps = {"send it": run.store.command("runs", "sync")}
        if self.resumable:
            steps["finish it"] = provenance.command("resume=true")
        aligned(self.screen.console, steps)

    def remark(self, text: str) -> None:
        """Print a line above the live display."""
        self.screen.console.print(text, markup=False, soft_wrap=True)

    def _sum_up(self, error: BaseException | None) -> bool:
        from fmnist_lab.studies import report

        console, total = self.screen.console, len(self.plan.jobs)
        if self.search:
            return self._sum_up_search(self.search, error)
        if not self.run:
            counts = Counter(job.status for job in self.done.values())
            screen.summary(console, counts, total, time.time() - self.began)
            console.print("Nothing was kept (tracking=none).")
            shutil.rmtree(self.folder, ignore_errors=True)
            return error is None and set(counts) <= {"FINISHED"}
        runs, curves = self.run.members(*report.CURVES)
        counts = Counter(runs["status"]) if len(runs) else Counter()
        finished, paused, total = counts["FINISHED"], counts["PAUSED"], total or len(runs)
        status, reason = _outcome(error, finished, paused, total)
        failed = total - finished - paused
        metrics = {"sweep/finished": float(finished), "sweep/failed": float(failed)}
        screen.summary(console, counts, total, time.time() - self.began)
        summary = self.folder / "summary"
        try:
            metrics |= self._report(runs, curves, summary)
        except UserError as nothing:
            console.print(f"\n{nothing}", markup=False, soft_wrap=True)
        if changed := list(runs.get("code_changed", ())).count("true"):
            self.remark(
                f"\n{counted(changed, 'job')} began after the code had changed; the tag "
                "code.changed marks their runs."
            )
        self.run.close(status, reason, metrics, summary)
        if status == "FINISHED":
            shutil.rmtree(self.run.store.shared / self.run.id, ignore_errors=True)
        with suppress(OSError):
            self.folder.rmdir()
        self._next_steps(finished, total)
        return status in ("FINISHED", "PAUSED")

    def _sum_up_search(self, search: Search, error: BaseException | None) -> bool:
        """Sum up a search, which may do without some of its trials."""
        status, reason = _outcome(error, 1, 0, 1)
        if error is None and (reason := search.outcome()):
            status = "FAILED"
        if reason:
            self.remark(f"\nThe search is {status}: {reason}.")
        if self.run:
            runs, curves = self.run.members(*search.curves)
            summary, counts = self.folder / "summary", search.counts
            metrics = {f"sweep/{state}": float(counts[state]) for state in ("finished", "failed")}
            try:
                metrics |= search.report(runs, curves, summary, self.name)
            except UserError as nothing:
                self.remark(f"\n{nothing}")
            tracking.tag(
                self.run.store, self.run.id, {tracking.SEARCH_TAG: json.dumps(search.facts())}
            )
            self.run.close(status, reason, metrics, summary)
        else:
            search.tell()
            self.screen.console.print("Nothing was kept (tracking=none).")
            shutil.rmtree(self.folder, ignore_errors=True)
        search.log.close()
        steps = search.next_steps()
        if self.run:
            store, run = self.run.store, self.run.id
            steps["see it"] = store.command("runs", "ui", run)
            steps["report"] = store.command("runs", "report", run, "--output", "report")
            if status != "FINISHED" and self.resumable:
                steps["go on"] = provenance.command("resume=true")
        if steps:
            self.screen.console.print()
            aligned(self.screen.console, steps)
        return status == "FINISHED"

    def _report(self, runs: pd.DataFrame, curves: pd.DataFrame, folder: Path) -> dict[str, float]:
        """Print the settings, write the report, and return the parent run's metrics.

        Args:
            runs: One row per job.
            curves: The metrics of each epoch.
            folder: Takes the files of the report.

        Raises:
            UserError: No run is finished.
        """
        from fmnist_lab.studies import beyond, report

        assert self.run is not None
        predictions = partial(tracking.read_predictions, self.run.store)
        remarks = beyond.of_study(report.take_apart(runs), predictions)
        table = report.terminal_table(runs, remarks)
        top = report.best(report.summarize(runs)).iloc[0]
        title, command = f"{self.name[:1].upper()}{self.name[1:]}", provenance.command()
        report.write(runs, curves, folder, title=title, command=command, remarks=remarks)
        self.screen.console.print()
        self.screen.console.print(table)
        means = {metric: top.get(f"{metric}/mean", math.nan) for metric in report.CURVES}
        return {
            tracking.best_mean(metric): float(mean)
            for metric, mean in means.items()
            if math.isfinite(mean)
        }

    def _next_steps(self, finished: int, total: int) -> None:
        assert self.run is not None
        store, sweep = self.run.store, self.run.id
        steps = {"see it": store.command("runs", "ui", sweep)}
        if finished:
            steps["report"] = store.command("runs", "report", sweep, "--output", "report")
        if finished < total and self.resumable:
            steps["finish it"] = provenance.command("resume=true", without="pause_after")
        self.screen.console.print()
        aligned(self.screen.console, steps)

    def _watch(self) -> None:
        pause = LEAST_PAUSE_SECONDS
        while not self._ended.wait(pause):
            started = time.perf_counter()
            # A server may be out of reach for a moment; the jobs go on.
            with suppress(Exception):
                self._look()
            pause = max(LEAST_PAUSE_SECONDS, (time.perf_counter() - started) / MOST_OF_THE_TIME)

    def _look(self) -> None:
        """Print the jobs that have ended since the last look, and show those that run."""
        running = []
        for job in sorted(self._progress(), key=lambda job: job.ended):
            if job.status == "RUNNING":
                running.append(job)
                self.done.pop(job.job, None)
                continue
            if self.search:
                continue  # It hears of each end itself.
            # A job that an earlier command has left unfinished is about to be done again.
            now = not self.earlier or job.ended >= 1000 * (self.began - 1)
            counts = job.status == "FINISHED" or now
            known = self.done.get(job.job)
            if counts and (known is None or known.ended != job.ended):
                self.done[job.job] = job
                self.screen.over(len(self.done), job)
        if self.search:
            over, bad = self.search.over, self.search.counts["failed"]
            self.screen.update(running, over, bad, self.search.share())
            return
        total = sum(map(self.plan.work, range(len(self.plan.jobs))))
        work = sum(map(self.plan.work, self.done))
        for job in running:
            work += self.plan.work(job.job) * job.epoch / (job.epochs or 1)
        failed = sum(job.status not in ("FINISHED", "PAUSED") for job in self.done.values())
        share = work / total if total else 0.0
        self.screen.update(running, len(self.done), failed, min(share, 1.0))

    def _progress(self) -> list[Progress]:
        if self.run and self.search:
            # It hears of each end itself, and asks only for what runs.
            return self.run.progress(round(1000 * time.time()))
        if self.run:
            last = max((job.ended for job in self.done.values()), default=1000 * self.began)
            # The store may hear of an earlier end later, and other machines have other clocks.
            since = 0 if self.earlier else round(last - 1000 * LATENESS_SECONDS)
            return self.run.progress(since)
        file = self.folder / OUTCOMES
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return [tracking.Progress(**json.loads(line)) for line in lines]


def begin(config: DictConfig) -> SweepDriver:
    """Plan and check a sweep, open its parent run, and begin to watch.

    Args:
        config: The composed sweep; its folder is another one where this one cannot be written.

    Raises:
        UserError: The sweep cannot be done.
    """
    began = round(1000 * time.time())
    planned, checked, search = checked_plan(config)
    name = checked[0].config.name or (search.name if search else planned.name(checked))
    launcher = str(config.hydra.launcher._target_).rpartition(".")[2]
    here = launcher in ("BasicLauncher", "LocalCores")
    parent, folder, code, note = opened(config, planned, checked, search, name=name, here=here)
    places = tuple(flags.given(sys.argv[1:]))
    sweep = Sweep(parent, folder, tuple(planned.axes), places, began, code=code)
    if search:
        search.begin(parent, folder, began / 1000)
        most = search.options.max_parameters
        sweep = replace(sweep, is_search=True, most_parameters=most)
    resume = config.get("resume")
    return SweepDriver(
        planned, sweep, name=name, resume=resume, here=here, note=note, search=search
    )


def _outcome(
    error: BaseException | None, finished: int, paused: int, total: int
) -> tuple[str, str]:
    """Return the parent run's status, and the reason why it is neither FINISHED nor PAUSED."""
    if isinstance(error, KeyboardInterrupt):
        return "KILLED", ended_by(error)
    if error is not None:
        return "FAILED", f"{type(error).__name__}: {error}"
    if finished + paused < total:
        return "FAILED", f"{total - finished - paused} of {total} jobs did not finish"
    return "PAUSED" if paused else "FINISHED", ""
