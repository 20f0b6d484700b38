"""What a worker on another machine does: one job of a sweep, as if it had been started here."""

from __future__ import annotations

import os
import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from pydantic import Field

from fmnist_lab import sweep
from fmnist_lab.config import Section

Number = Annotated[int, Field(ge=0, description="a whole number, 0 or more")]
OptionalNumber = Annotated[
    int | None, Field(ge=0, description="a whole number, 0 or more, or null")
]

# What a worker has to know of the environment that the sweep was started in.
PASSED_ON = ("MLFLOW_", "FMNIST_LAB_", "KERAS_", "TF_")


@dataclass(frozen=True)
class Task:
    """What all jobs of a sweep have in common.

    Attributes:
        context: Hydra's loader of configs and its callbacks.
        function: What is called with a composed config.
        config: The sweep's own config.
        threads: `trainer.threads` of every job that does not say so itself, or None.
        state: Hydra's and OmegaConf's global state.
        folder: The folder that the sweep was started in.
        environment: Variables that a worker takes over.
    """

    context: HydraContext
    function: TaskFunction
    config: DictConfig
    threads: int | None
    state: Any
    folder: Path
    environment: dict[str, str]

    def do(self, number: int, overrides: Sequence[str], job_id: str) -> JobReturn:
        """Compose a job's config and do the job, in the sweep's own folder where it is shared."""
        os.environ.update(self.environment)
        os.chdir(self.folder if self.folder.is_dir() else tempfile.mkdtemp(prefix="fmnist_lab-"))
        setup_globals()
        Singleton.set_state(self.state)
        load = self.context.config_loader.load_sweep_config
        config = load(self.config, list(overrides))
        if self.threads is not None and config.trainer.threads is None:
            config = load(self.config, [*overrides, f"trainer.threads={self.threads}"])
        with open_dict(config):
            config.hydra.job.id = job_id
            config.hydra.job.num = number
        return run_job(
            hydra_context=self.context,
            task_function=self.function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )


class ClusterLauncher(Launcher):
    """What the launchers of this package share.

    Attributes:
        options_class: The options of its preset.
        threads: `trainer.threads` of every job that does not say so itself, or None.
        task: What Hydra hands over.
        conductor: Who watches the sweep.
    """

    options_class: ClassVar[type[Section]]
    threads: int | None

    @staticmethod
    @abstractmethod
    def check(options: Any) -> None:
        """Refuse, before anything is begun, what the cluster could not do.

        Args:
            options: The checked `hydra.launcher`.
        """

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra hands over before `launch`."""
        self.task = Task(
            hydra_context,
            task_function,
            config,
            self.threads,
            Singleton.get_state(),
            Path.cwd(),
            {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)},
        )

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Do all jobs and return what came of each, in their order."""
        assert sweep.begun is not None
        self.conductor = sweep.begun
        setup_globals()
        Path(str(self.task.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        jobs = {
            initial_job_idx + place: list(overrides)
            for place, overrides in enumerate(job_overrides)
        }
        results = self.run_all(jobs)
        return [results[number] for number in jobs]

    @abstractmethod
    def run_all(self, jobs: dict[int, list[str]]) -> dict[int, JobReturn]:
        """Do jobs, given by number with their overrides."""

    def lost(self, number: int, overrides: list[str], reason: str) -> JobReturn:
        """Record a job whose worker is gone for good; the others of the sweep go on."""
        self.conductor.lost(number, overrides, reason)
        # Not FAILED, at which Hydra's sweeper would raise and drop whatever comes after.
        return JobReturn(
            overrides=overrides, status=JobStatus.COMPLETED, _return_value={"failure": reason}
        )
