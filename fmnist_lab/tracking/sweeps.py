"""A sweep's parent run: opened or found again, watched through its members, and closed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_lab.errors import UserError
from fmnist_lab.system import durable
from fmnist_lab.texts import lines, whole_number
from fmnist_lab.tracking import orphans, query, tables
from fmnist_lab.tracking.client import client_of
from fmnist_lab.tracking.events import Status
from fmnist_lab.tracking.failures import asks, outlast_lock, translated
from fmnist_lab.tracking.files import ABOVE, settle, sync_store
from fmnist_lab.tracking.reading import read_file
from fmnist_lab.tracking.store import Store, experiment_name, surrounding_run

if TYPE_CHECKING:
    import pandas as pd


def best_mean(metric: str) -> str:
    """Return the metric of a parent run that holds the mean of the sweep's best setting."""
    return f"sweep/best_mean/{metric.replace('/', '_')}"


@dataclass(frozen=True)
class Progress:
    """How far a job has come.

    Attributes:
        job: The job's number in the sweep.
        name: The name of the job's run.
        status: The run's state.
        epoch: The last epoch that is in the store, or 0.
        epochs: How many epochs there will be, or 0 if that is not known yet.
        metrics: The last value of each metric.
        seconds: The time from start to end; 0 while the job runs.
        failure: Why the job failed, or "".
        ended: When the job ended, in milliseconds since 1970; 0 while it runs.
    """

    job: int
    name: str
    status: str
    epoch: int = 0
    epochs: int = 0
    metrics: Mapping[str, float] | None = None
    seconds: float = 0.0
    failure: str = ""
    ended: int = 0


@dataclass(frozen=True)
class SweepRun:
    """The parent run of a sweep, as any process may hold it.

    Attributes:
        store: The store of the parent run.
        experiment: The name of MLflow's experiment.
        experiment_id: The experiment's id.
        id: The parent run's id.
        continued: Whether an earlier command has opened it.
    """

    store: Store
    experiment: str
    experiment_id: str
    id: str
    continued: bool = False

    @classmethod
    def open(
        cls,
        store: Store,
        experiment: str | None,
        name: str,
        tags: Mapping[str, str],
        *,
        resume: bool,
        here: bool = False,
        check: Callable[[str, Mapping[str, str]], None] | None = None,
    ) -> SweepRun:
        """Make a parent run, or with `resume` take the newest one of the same tag `sweep.hash`.

        Args:
            store: The store.
            experiment: The name of MLflow's experiment; None: see `experiment_name`.
            name: The name of a new run.
            tags: The tags of a new run.
            resume: Whether to go on with an earlier sweep.
            here: Whether this process and its children do the jobs, so that this process learns
                how each job ends.
            check: Called with the id and the tags of an earlier sweep before anything is changed;
                raises if this command cannot go on with it.

        Raises:
            UserError: The store cannot be used, or the earlier sweep is in progress.
        """
        with translated(store, resumable=True):
            experiment_id = outlast_lock(store, lambda: store.open(experiment))
            experiment = experiment_name(store, experiment)
            client = client_of(store, current=False)
            process = {**orphans.this_process(), orphans.HERE_TAG: str(here).lower()}
            if resume:
                same = f"tags.`sweep.hash` = '{tags['sweep.hash']}'"
                newest = ["attributes.start_time DESC"]
                found = client.search_runs([experiment_id], same, order_by=newest, max_results=1)
                if found and orphans.is_going_on(found[0]):
                    raise UserError(
                        f"resume: sweep '{found[0].info.run_name}' ({found[0].info.run_id}) of "
                        "this very command is in progress; wait for it, or stop it first"
                    )
                if found and check:
                    check(found[0].info.run_id, found[0].data.tags)
                if found:
                    # The runs that its process has left RUNNING are none of this one's.
                    orphans.heal(store)
                    gone_on = (
                        {query.PAUSED_TAG: ""} if query.PAUSED_TAG in found[0].data.tags else {}
                    )

                    def go_on() -> None:
                        client.update_run(found[0].info.run_id, status="RUNNING")
                        for key, value in (process | gone_on).items():
                            client.set_tag(found[0].info.run_id, key, value)

                    outlast_lock(store, go_on)
                    return cls(store, experiment, experiment_id, found[0].info.run_id, True)
            tags = {**surrounding_run(client), **tags, **process}
            run = outlast_lock(
                store, lambda: client.create_run(experiment_id, run_name=name, tags=tags)
            )
            return cls(store, experiment, experiment_id, run.info.run_id)

    @asks
    def progress(self, since: int) -> list[Progress]:
        """Return the members that run, and those that ended at or after a time (ms since 1970)."""
        client = client_of(self.store, current=False)
        running = "attributes.status = 'RUNNING'"
        # A run that goes on keeps the time at which it was interrupted or paused.
        ended = f"attributes.status != 'RUNNING' and attributes.end_time >= {since}"
        return [
            self._progress(run, number)
            for state in (running, ended)
            for run in self._search(client, f"{query.members_of(self.id)} and {state}")
            if (number := whole_number(run.data.tags.get(query.member_tag(self.id)))) is not None
        ]

    @asks
    def keep_log(
        self,
        job: int,
        name: str,
        log: Path,
        began: int,
        failure: str,
        source: Mapping[str, str],
        params: Mapping[str, str] | None = None,
    ) -> None:
        """Keep a job's log with its run, and record a failure that came before there was a run.

        Args:
            job: The job's number.
            name: The name of a run that has to be made.
            log: The text file; gone afterwards.
            began: When the job or its sweep began, in milliseconds since 1970.
            failure: Why the job failed, or "".
            source: The tags of a run that has to be made.
            params: The params of a failed run that has none, as its worker was lost too early.
        """
        from mlflow.entities import Param

        client = client_of(self.store, current=False)
        mark = {query.member_tag(self.id): f"{job:05d}"}
        runs = self._search(client, f"tags.`{query.member_tag(self.id)}` = '{job:05d}'")
        mine = [
            run
            for run in runs
            if run.info.status == Status.FINISHED or (run.info.end_time or 0) >= began
        ]
        running = [run for run in runs if run.info.status == Status.RUNNING]
        # A worker that is no more has left them; a job is over once, on one worker.
        self._end(client, running, Status.FAILED if failure else Status.KILLED, failure)
        if failure and not (mine or running):
            tags = {**source, **mark, "job": "train", "mlflow.parentRunId": self.id}
            mine = [client.create_run(self.experiment_id, run_name=name, tags=tags)]
            self._end(client, mine, Status.FAILED, failure)
        for run in mine if failure else []:
            # The run has ended in order, perhaps without a word.
            if run.info.status not in ("FINISHED", "RUNNING") and not run.data.tags.get("failure"):
                client.set_tag(run.info.run_id, "failure", failure)
        for run in (mine or running) if failure else []:
            if params and not run.data.params:
                client.log_batch(run.info.run_id, params=[Param(*each) for each in params.items()])
        for run in (mine or running)[:1]:
            if log.exists() and log.stat().st_size:
                if run.info.start_time < began:
                    # The job has had an earlier part, whose log would be replaced.
                    with suppress(UserError):
                        earlier = read_file(self.store, run.info.run_id, log.name)
                        log.write_bytes(earlier + log.read_bytes())
                client.log_artifact(run.info.run_id, str(log))
                if place := durable.local_path(run.info.artifact_uri):
                    durable.sync_tree(place, ABOVE)
        log.unlink(missing_ok=True)

    @asks
    def end_members(self, status: str, failure: str = "") -> None:
        """Mark the members that still seem to run, after all workers have ended.

        Args:
            status: Their state from now on.
            failure: Why they have ended, or "".
        """
        client = client_of(self.store, current=False)
        running = self._search(
            client, f"{query.members_of(self.id)} and attributes.status = 'RUNNING'"
        )
        self._end(client, running, status, failure)

    @staticmethod
    def _end(client: Any, runs: Sequence[Any], status: str, failure: str) -> None:
        """End runs, but for those whose end only waits for its delivery."""
        for run in runs:
            if orphans.is_delivered_later(run):
                continue
            if failure:
                client.set_tag(run.info.run_id, "failure", failure)
            client.set_terminated(run.info.run_id, status)

    @asks
    def members(self, *metrics: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return one run per job as `find` does, with its `job_number`; and `curves`.

        Of several runs of a job, the finished one counts, or else the newest.
        """
        runs = tables.members(
            self.store, query.RunRef(self.id, "", self.experiment, self.experiment_id, "sweep")
        )
        if len(runs):
            runs = runs.iloc[(runs["status"] != "FINISHED").argsort(kind="stable")]
            runs = runs.drop_duplicates("job_number").sort_values("job_number", ignore_index=True)
        return runs, tables.curves(self.store, list(runs.get("run_id", [])), *metrics)

    @asks
    def close(self, status: str, failure: str, metrics: Mapping[str, float], folder: Path) -> None:
        """Keep a summary with the parent, and mark it.

        Args:
            status: FINISHED, FAILED, KILLED or PAUSED.
            failure: Why the sweep is not finished, or "".
            metrics: Figures of the whole sweep.
            folder: The files to be kept; gone afterwards.
        """
        client = client_of(self.store, current=False)
        for name, value in metrics.items():
            client.log_metric(self.id, name, value)
        if folder.exists():
            client.log_artifacts(self.id, str(folder))
            settle(client, self.id, [file.name for file in folder.iterdir()])
            shutil.rmtree(folder)
        if failure:
            client.set_tag(self.id, "failure", failure[:5000])
        elif self.continued:
            client.set_tag(self.id, "failure", "")
        if status == Status.PAUSED.name:
            client.set_tag(self.id, query.PAUSED_TAG, "jobs")
            status = Status.PAUSED
        client.set_terminated(self.id, status)
        sync_store(self.store)

    def _search(self, client: Any, where: str) -> list[Any]:
        return list(query.search(client, [self.experiment_id], where))

    def _progress(self, run: Any, number: int) -> Progress:
        info, data = run.info, run.data
        ended = 0 if info.status == Status.RUNNING else info.end_time or 0
        return Progress(
            job=number,
            name=query.name_of(run),
            status=query.status_of(run),
            epoch=query.last_epoch(run),
            epochs=whole_number(data.params.get("trainer.epochs")) or 0,
            metrics=data.metrics,
            seconds=(ended - info.start_time) / 1000 if ended else 0.0,
            failure=lines(data.tags.get("failure")),
            ended=ended,
        )
