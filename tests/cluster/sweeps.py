"""A sweep on a tracking server, and what it has left there."""

from __future__ import annotations

from collections import Counter

from mlflow import MlflowClient
from mlflow.entities import Run

LIMITS = ("data.train_limit=1000", "data.test_limit=500")
TWELVE = ("trainer.epochs=1,2,3", "model.hidden_units=16,32", "seed=0,1", *LIMITS)
# Long enough to be asked about in the middle on any machine, as the native engine is not; and each
# job another setting.
LONG = (
    "seed=range(3)",
    "trainer.epochs=200",
    "trainer.engine=xla",
    "data.train_limit=3000",
    "data.test_limit=500",
    "checkpoint.every=1",
)

TWO = ("trainer.epochs=3", "model.hidden_units=16", "seed=0,1", *LIMITS)  # of `TWELVE`
# Have the launcher do each job of a sweep in two parts, as a search does.
IN_TWO_PARTS = """
import sys
from fmnist_lab import run
from fmnist_lab.sweep.launchers.base import JobLauncher

class InTwoParts:
    width = None

    def __init__(self, jobs):
        self.jobs, self.epochs, self.results = dict(jobs), {}, {}
        self.ready = [(number, [*words, "pause_after=1"]) for number, words in jobs]

    def next(self):
        return self.ready.pop(0) if self.ready else None

    def over(self, number, result):
        if number in self.epochs:
            self.results[number] = result
        else:
            self.epochs[number] = result.return_value["epoch"]
            self.ready.append((number, self.jobs[number]))

    def exhausted(self):
        return not self.ready

def launch(launcher, job_overrides, initial_job_idx):
    source = InTwoParts(list(enumerate(map(list, job_overrides), initial_job_idx)))
    launcher.stream(source)
    assert set(source.epochs.values()) == {1.0}, source.epochs
    assert {each.return_value["epoch"] for each in source.results.values()} == {3.0}
    return [source.results[number] for number in source.jobs]

JobLauncher.launch = launch
sys.argv[0] = "run"
run.main()
"""
# Random values depend on nothing but a trial's number, whatever the others have come to.
SEARCH = (
    "hydra/sweeper=optuna",
    "hydra.sweeper.sampler=random",
    "hydra.sweeper.n_trials=6",
    "hydra.sweeper.finals=1",
    "optimizer.learning_rate=tag(log,interval(1e-4,1e-1))",
    "model.hidden_units=int(interval(16,64))",
    "data.validation_fraction=0.2",
    "trainer.epochs=3",
    *LIMITS,
)


class Swept:
    """The one sweep of an experiment."""

    def __init__(self, client: MlflowClient, experiment: str) -> None:
        self.client = client
        found = client.get_experiment_by_name(experiment)
        runs = list(client.search_runs([found.experiment_id])) if found else []
        parents = [run for run in runs if run.data.tags["job"] == "sweep"]
        self.parent = parents[0] if parents else None
        self.children = sorted(
            (run for run in runs if run.data.tags["job"] != "sweep"), key=self.number
        )
        assert len(parents) <= 1

    def number(self, child: Run) -> int:
        assert self.parent
        assert child.data.tags["mlflow.parentRunId"] == self.parent.info.run_id
        return int(child.data.tags[f"sweep.{self.parent.info.run_id}"])

    def states(self) -> list[tuple[int, str]]:
        return [(self.number(child), child.info.status) for child in self.children]

    def kinds(self) -> set[tuple[str, str]]:
        """Return the roles in a search, each with the states in which there are runs of it."""
        return {(child.data.tags["role"], child.info.status) for child in self.children}

    def trials(self) -> dict[int, str]:
        """Return the values of each trial of a search."""
        return {
            int(child.data.tags["trial.number"]): child.data.tags["trial.values"]
            for child in self.children
            if child.data.tags["role"] == "trial"
        }

    def tags(self, name: str) -> Counter[str]:
        return Counter(child.data.tags.get(name, "") for child in self.children)

    def figures(self) -> dict[str, dict[str, float]]:
        """Return all metrics of each child but its speed, by its configuration."""
        return {
            child.data.tags["config.hash"]: {
                name: value
                for name, value in child.data.metrics.items()
                if name != "images_per_second"
            }
            for child in self.children
        }

    def training(self, after: int = 1) -> list[Run]:
        """Return the children that run and have so many epochs in the store."""
        return [
            child
            for child in self.children
            if child.info.status == "RUNNING"
            and len(self.client.get_metric_history(child.info.run_id, "loss/fit")) >= after
        ]
