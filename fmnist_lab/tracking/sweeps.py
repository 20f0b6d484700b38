"""A sweep's parent run: opened or found again, watched through its members, and closed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_lab.errors import UserError
from fmnist_lab.tracking.heal import HERE_TAG, heal, is_delivered_later, is_going_on, this_process
from fmnist_lab.tracking.query import Found, curves, member_tag, members, members_of
from fmnist_lab.tracking.store import DEFAULT_EXPERIMENT, Store, quiet_mlflow

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Progress:
    """How far a job has come.

    Attributes:
        job: Its number in the sweep.
        name: Its run's name.
        status: MLflow's: RUNNING, FINISHED, FAILED, KILLED.
        epoch: The last epoch that is in the store, or 0.
        epochs: How many there will be, or 0 if that is not known yet.
        metrics: Last values.
        seconds: From start to end; 0 while it runs.
        failure: Why it failed, or "".
        ended: When it ended, in milliseconds since 1970; 0 while it runs.
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
        store: Where it is.
        experiment: MLflow's experiment, by name.
        experiment_id: The same by id.
        id: The parent run.
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
    ) -> SweepRun:
        """Make a parent run, or with `resume` take the newest one of the same tag `sweep.hash`.

        Args:
            store: Where.
            experiment: MLflow's experiment, by name; None: ours.
            name: What a new run is called.
            tags: A new run's.
            resume: Whether to go on with an earlier one.
            here: Whether the jobs are done by this process and its children, so that it will
                learn how each ends.

        Raises:
            UserError: The store cannot be used, or that sweep is in progress.
        """
        experiment = experiment or DEFAULT_EXPERIMENT
        experiment_id = store.open(experiment)
        client = _client(store)
        process = {**this_process(), HERE_TAG: str(here).lower()}
        if resume:
            same = f"tags.`sweep.hash` = '{tags['sweep.hash']}'"
            newest = ["attributes.start_time DESC"]
            found = client.search_runs([experiment_id], same, order_by=newest, max_results=1)
            if found and is_going_on(found[0]):
                raise UserError(
                    f"resume: sweep '{found[0].info.run_name}' ({found[0].info.run_id}) of this "
                    "very command is in progress; wait for it, or stop it first"
                )
            if found:
                # What its process has left RUNNING is not what this one will look after.
                heal(store)
                client.update_run(found[0].info.run_id, status="RUNNING")
                for key, value in process.items():
                    client.set_tag(found[0].info.run_id, key, value)
                return cls(store, experiment, experiment_id, found[0].info.run_id, True)
        run = client.create_run(experiment_id, run_name=name, tags={**tags, **process})
        return cls(store, experiment, experiment_id, run.info.run_id)

    def progress(self, since: int) -> list[Progress]:
        """Return the members that run, and those that ended at or after a time (ms since 1970)."""
        client = _client(self.store)
        return [
            self._progress(run)
            for state in ("attributes.status = 'RUNNING'", f"attributes.end_time >= {since}")
            for run in self._search(client, f"{members_of(self.id)} and {state}")
        ]

    def keep_log(
        self, job: int, name: str, log: Path, began: int, failure: str, source: Mapping[str, str]
    ) -> None:
        """Keep a job's log with its run, and record a failure that came before there was a run.

        Args:
            job: Its number.
            name: What a run is called that has to be made.
            log: The text file; gone afterwards.
            began: When the job began, or its sweep, in milliseconds since 1970.
            failure: Why it failed, or "".
            source: Tags of a run that has to be made.
        """
        client = _client(self.store)
        tag = f"tags.`{member_tag(self.id)}` = '{job:05d}'"
        runs = self._search(client, tag)
        mine = [
            run
            for run in runs
            if run.info.status == "FINISHED" or (run.info.end_time or 0) >= began
        ]
        running = [run for run in runs if run.info.status == "RUNNING"]
        stale = [run for run in running if not is_delivered_later(run)]
        for run in stale:
            # Left by a worker that is no more; a job is over once, on one worker.
            if failure:
                client.set_tag(run.info.run_id, "failure", failure)
            client.set_terminated(run.info.run_id, "FAILED" if failure else "KILLED")
        if failure and not (mine or running):
            tags = {
                **source,
                "job": "train",
                "failure": failure,
                "mlflow.parentRunId": self.id,
                member_tag(self.id): f"{job:05d}",
            }
            mine = [client.create_run(self.experiment_id, run_name=name, tags=tags)]
            client.set_terminated(mine[0].info.run_id, "FAILED")
        for run in (mine or running)[:1]:
            if log.exists() and log.stat().st_size:
                client.log_artifact(run.info.run_id, str(log))
        log.unlink(missing_ok=True)

    def end_members(self, status: str, failure: str = "") -> None:
        """Mark the members that still seem to run, after all workers have ended."""
        client = _client(self.store)
        for run in self._search(client, f"{members_of(self.id)} and attributes.status = 'RUNNING'"):
            if is_delivered_later(run):
                continue
            if failure:
                client.set_tag(run.info.run_id, "failure", failure)
            client.set_terminated(run.info.run_id, status)

    def members(self, *metrics: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return one run a job, the finished one if there is, as `find` does; and `curves`.

        Of a job that several runs have tried, the newest counts. There is one more column,
        `job_number`.
        """
        runs = members(self.store, Found(self.id, "", self.experiment, self.experiment_id, "sweep"))
        if len(runs):
            runs = runs.iloc[(runs["status"] != "FINISHED").argsort(kind="stable")]
            runs = runs.drop_duplicates("job_number").sort_values("job_number", ignore_index=True)
        return runs, curves(self.store, list(runs.get("run_id", [])), *metrics)

    def close(self, status: str, failure: str, metrics: Mapping[str, float], folder: Path) -> None:
        """Keep a summary with the parent, and mark it.

        Args:
            status: FINISHED, FAILED or KILLED.
            failure: Why, if it is not finished.
            metrics: Figures of the whole sweep.
            folder: Files to be kept; gone afterwards.
        """
        client = _client(self.store)
        for name, value in metrics.items():
            client.log_metric(self.id, name, value)
        if folder.exists():
            client.log_artifacts(self.id, str(folder))
            shutil.rmtree(folder)
        if failure:
            client.set_tag(self.id, "failure", failure[:5000])
        elif self.continued:
            client.set_tag(self.id, "failure", "")
        client.set_terminated(self.id, status)

    def _search(self, client: Any, where: str) -> list[Any]:
        runs, token = [], None
        while token != "":
            page = client.search_runs(
                [self.experiment_id], where, max_results=1000, page_token=token
            )
            runs += page
            token = page.token or ""
        return runs

    def _progress(self, run: Any) -> Progress:
        info, data = run.info, run.data
        steps = [metric.step for metric in getattr(data, "_metric_objs", [])]
        ended = info.end_time or 0
        return Progress(
            job=int(data.tags[member_tag(self.id)]),
            name=info.run_name,
            status=info.status,
            epoch=max(steps, default=0),
            epochs=int(data.params.get("trainer.epochs", 0)),
            metrics=data.metrics,
            seconds=(ended - info.start_time) / 1000 if ended else 0.0,
            failure=data.tags.get("failure", ""),
            ended=ended,
        )


def _client(store: Store) -> Any:
    """Return a client that leaves MLflow's current store alone: a job may be using that."""
    return quiet_mlflow().MlflowClient(tracking_uri=store.uri)
