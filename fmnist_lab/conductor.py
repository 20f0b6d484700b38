"""The process that a sweep was started in: plans it, watches it, sums it up, whoever runs it."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fmnist_lab import provenance, signals
from fmnist_lab.errors import UserError, reported
from fmnist_lab.overrides import explained
from fmnist_lab.sweep import OUTCOMES, Job, Membership, job_name
from fmnist_lab.sweep_plan import Plan, check, plan

if TYPE_CHECKING:
    import pandas as pd

    from fmnist_lab.tracking import Progress, SweepRun

LEAST_PAUSE_SECONDS = 1.0
MOST_OF_THE_TIME = 0.05  # that looking at the store may take
LATENESS_SECONDS = 600.0  # of the news that a job has ended


class Conductor:
    """A sweep that goes on."""

    def __init__(
        self,
        planned: Plan,
        run: SweepRun | None,
        folder: Path,
        *,
        resume: bool | None,
        here: bool,
    ) -> None:
        """Begin to watch.

        Args:
            planned: What is going to happen.
            run: The parent run, or None if nothing is kept.
            folder: Where jobs of this machine write their logs.
            resume: Whether runs from before may answer jobs; None: there is no such option.
            here: Whether all jobs are done by this process and its children.
        """
        from fmnist_lab import sweep_screen

        self.plan = planned
        self.run = run
        self.folder = folder
        self.earlier = bool(resume)
        self.resumable = resume is not None
        self.here = here
        self.began = time.time()
        self.done: dict[int, Progress] = {}
        self.screen = sweep_screen.SweepScreen(len(planned.jobs))
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="sweep", daemon=True)
        self._sigterm = signal.signal(signal.SIGTERM, signals.terminate)
        axes = "  ".join(f"{axis}={values}" for axis, values in planned.axes.items())
        jobs = f"{len(planned.jobs)} jobs: " if planned.jobs else ""
        kept = "nowhere (tracking=none)"
        if run:
            where = run.store.database or run.store.uri
            kept = f"{where}, run {run.id}{', begun before' if run.continued else ''}"
        self.screen.heading({"sweep": jobs + axes, "kept in": kept})
        sweep_screen.starting_now()
        self.screen.start()
        self._watcher.start()

    def end(self, error: BaseException | None) -> bool:
        """Sum up and close the sweep, however it has come to its end.

        Returns:
            Whether all jobs have finished.
        """
        handlers = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGINT,)}
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            self._ended.set()
            self._watcher.join()
            try:
                return self._close(error)
            except Exception as away:
                from fmnist_lab.tracking.delivery import is_outage

                self.screen.stop()
                if self.run is None or not is_outage(away):
                    raise
                self._say_away(self.run)
                return False
        finally:
            for each, handler in handlers.items():
                signal.signal(each, handler)
            signal.signal(signal.SIGTERM, self._sigterm)

    def _close(self, error: BaseException | None) -> bool:
        killed = isinstance(error, KeyboardInterrupt)
        if self.run and self.here:
            reason = "" if killed else "its worker process was lost"
            self.run.end_members("KILLED" if killed else "FAILED", reason)
        with suppress(Exception):
            self._look()
        self.screen.stop()
        return self._sum_up(error, killed)

    def _say_away(self, run: SweepRun) -> None:
        """Say what to do once a store is back that was away when the sweep ended."""
        from fmnist_lab.console import aligned

        self.screen.console.print(
            f"\nThe store {run.store.uri} is away. What the jobs have done is kept on this "
            "machine; once it is back:",
            markup=False,
            soft_wrap=True,
        )
        steps = {"send it": f"python -m fmnist_lab.runs sync --store {run.store.uri}"}
        if self.resumable:
            steps["finish it"] = provenance.command("resume=true")
        aligned(self.screen.console, steps)

    def remark(self, text: str) -> None:
        """Print a line above the live display."""
        self.screen.console.print(text, markup=False, soft_wrap=True)

    def lost(self, job: int, overrides: list[str], reason: str) -> None:
        """Record that the process which did a job is gone."""
        name, axes = job_name(overrides, list(self.plan.axes)), tuple(self.plan.axes)
        sweep = self.run.id if self.run else ""
        member = Membership(sweep, job, name or f"job {job}", axes)
        # A store that is away is not to take the other jobs along.
        with suppress(Exception):
            Job(member, self.run, self.folder).keep(round(self.began * 1000), reason)

    def _sum_up(self, error: BaseException | None, killed: bool) -> bool:
        from fmnist_lab import report, sweep_screen

        console, total = self.screen.console, len(self.plan.jobs)
        if not self.run:
            counts = Counter(job.status for job in self.done.values())
            sweep_screen.summary(console, counts, total, time.time() - self.began)
            console.print("Nothing was kept (tracking=none).")
            shutil.rmtree(self.folder, ignore_errors=True)
            return error is None and set(counts) <= {"FINISHED"}
        runs, curves = self.run.members(*report.CURVES)
        counts = Counter(runs["status"]) if len(runs) else Counter()
        finished, total = counts["FINISHED"], total or len(runs)
        complete = error is None and finished == total
        status = "KILLED" if killed else "FINISHED" if complete else "FAILED"
        reason = "" if complete else _reason(error, finished, total)
        metrics = {"sweep/finished": float(finished), "sweep/failed": float(total - finished)}
        sweep_screen.summary(console, counts, total, time.time() - self.began)
        summary = self.folder / "summary"
        try:
            metrics |= self._report(runs, curves, summary)
        except UserError as nothing:
            console.print(f"\n{nothing}", markup=False, soft_wrap=True)
        self.run.close(status, reason, metrics, summary)
        if complete:
            shutil.rmtree(self.run.store.shared / self.run.id, ignore_errors=True)
        with suppress(OSError):
            self.folder.rmdir()
        self._next_steps(finished, total)
        return complete

    def _report(self, runs: pd.DataFrame, curves: pd.DataFrame, folder: Path) -> dict[str, float]:
        """Print the settings and write all about them; return what the parent is to show.

        Raises:
            UserError: No run is finished.
        """
        from fmnist_lab import report

        table = report.terminal_table(runs)
        top = report.best(report.summarize(runs)).iloc[0]
        title, command = self.plan.name.capitalize(), provenance.command()
        report.write(runs, curves, folder, title=title, command=command)
        self.screen.console.print()
        self.screen.console.print(table)
        return {
            f"sweep/best_mean/{name.replace('/', '_')}": float(top[f"{name}/mean"])
            for name in ("accuracy/test", "accuracy/gap")
        }

    def _next_steps(self, finished: int, total: int) -> None:
        from fmnist_lab.console import aligned

        assert self.run is not None
        steps = {"see it": f"python -m fmnist_lab.runs ui {self.run.id}"}
        if finished:
            steps["report"] = f"python -m fmnist_lab.runs report {self.run.id} --output report"
        if finished < total and self.resumable:
            command = provenance.command()
            again = "" if "resume=true" in command.split() else " resume=true"
            steps["finish it"] = f"{command}{again}"
        self.screen.console.print()
        aligned(self.screen.console, steps)

    def _watch(self) -> None:
        pause = LEAST_PAUSE_SECONDS
        while not self._ended.wait(pause):
            started = time.perf_counter()
            # A server may be out of reach for a moment; the jobs are none the worse for it.
            with suppress(Exception):
                self._look()
            pause = max(LEAST_PAUSE_SECONDS, (time.perf_counter() - started) / MOST_OF_THE_TIME)

    def _look(self) -> None:
        """Print what has ended since the last time, and show what runs."""
        running = []
        for job in sorted(self._progress(), key=lambda job: job.ended):
            if job.status == "RUNNING":
                running.append(job)
                self.done.pop(job.job, None)
                continue
            # What an earlier command has left unfinished is about to be done again.
            now = not self.earlier or job.ended >= 1000 * (self.began - 1)
            counts = job.status == "FINISHED" or now
            known = self.done.get(job.job)
            if counts and (known is None or known.ended != job.ended):
                self.done[job.job] = job
                self.screen.over(len(self.done), job, self.began)
        total = sum(map(self.plan.work, range(len(self.plan.jobs))))
        work = sum(map(self.plan.work, self.done))
        for job in running:
            work += self.plan.work(job.job) * job.epoch / (job.epochs or 1)
        failed = sum(job.status != "FINISHED" for job in self.done.values())
        share = work / total if total else 0.0
        self.screen.update(running, len(self.done), failed, min(share, 1.0))

    def _progress(self) -> list[Progress]:
        if self.run:
            last = max((job.ended for job in self.done.values()), default=1000 * self.began)
            # What ended earlier may be told later, and other machines have other clocks.
            since = 0 if self.earlier else round(last - 1000 * LATENESS_SECONDS)
            return self.run.progress(since)
        from fmnist_lab.tracking import Progress

        file = self.folder / OUTCOMES
        lines = file.read_text().splitlines() if file.exists() else []
        return [Progress(**json.loads(line)) for line in lines]


def begin(config: DictConfig) -> Conductor:
    """Plan and check a sweep, open its parent run, and begin to watch; called by Hydra's callback.

    Raises:
        SystemExit: After saying why it cannot be done; Hydra would turn another exception into a
            warning, and go on.
    """
    from fmnist_lab import cluster, launcher

    with reported():
        try:
            launcher.register(config.hydra.launcher)
            planned = plan(config)
            checked = check(config, planned)
            cluster.prepare(config.hydra.launcher, checked.tracking)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explained(error, sys.argv[1:])) from None
        from fmnist_lab import tracking

        parent = None
        resume = config.get("resume")
        launched = str(config.hydra.launcher._target_).rpartition(".")[2]
        here = launched in ("BasicLauncher", "LocalCores")
        if checked.tracking.kind == "none":
            folder = Path(tempfile.mkdtemp(prefix="fmnist_lab-sweep-"))
        else:
            store = tracking.Store.locate(checked.tracking.uri)
            tags = {
                **provenance.tags(),
                "job": "sweep",
                "sweep.command": provenance.command(),
                "sweep.axes": json.dumps(list(planned.axes)),
                "sweep.jobs": str(len(planned.jobs)),
                "sweep.hash": planned.hash,
            }
            name = checked.name or planned.name
            experiment = checked.tracking.experiment
            parent = tracking.SweepRun.open(
                store, experiment, name, tags, resume=bool(resume), here=here
            )
            folder = Path(str(config.hydra.sweep.dir)).absolute() / parent.id
        return Conductor(planned, parent, folder, resume=resume, here=here)


def _reason(error: BaseException | None, finished: int, total: int) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if error is not None:
        return f"{type(error).__name__}: {error}"
    return f"{total - finished} of {total} jobs did not finish"
