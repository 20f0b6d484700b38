"""The base of all launchers here, and the one way in which their workers do a job."""

from __future__ import annotations

import importlib
import os
import pickle
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from pydantic import Field

from fmnist_lab import compat
from fmnist_lab.config.fields import Section
from fmnist_lab.config.schema import SERVERS, Tracking, check_section
from fmnist_lab.errors import UserError
from fmnist_lab.sweep.launchers import MODULES, PLUGINS, load
from fmnist_lab.system import process

if TYPE_CHECKING:
    from fmnist_lab.sweep.task import Task

Number = Annotated[int, Field(ge=0, description="a whole number, 0 or more")]

# A worker needs these variables of the environment that the sweep was started in.
PASSED_ON = ("MLFLOW_", "FMNIST_LAB_", "KERAS_", "TF_")


@dataclass(frozen=True)
class JobRunner:
    """Everything that a worker process needs to do any job of a sweep.

    Attributes:
        context: Hydra's loader of configs, and the user's callbacks.
        task: Called with a composed config.
        config: The sweep's own config.
        threads: `trainer.threads` of every job that does not set it itself, or None.
        state: Hydra's and OmegaConf's global state.
        folder: The folder that the sweep was started in.
        environment: Variables that a worker takes over.
    """

    context: HydraContext
    task: Task
    config: DictConfig
    threads: int | None
    state: Any
    folder: Path
    environment: dict[str, str]

    def pickled(self) -> bytes:
        """Return what `begun` understands in a worker process."""
        import cloudpickle

        return cast("bytes", cloudpickle.dumps(self))

    @staticmethod
    def begun(pickled: bytes) -> JobRunner:
        """Make this process one of a sweep's, in the sweep's own folder where it is shared.

        Args:
            pickled: The sweep's runner of jobs.
        """
        # Hydra executes a plugin's module again when it looks for plugins, and instances of the
        # classes that were unpickled before could not be pickled any more.
        plugins = Plugins.instance()
        runner: JobRunner = pickle.loads(pickled)
        process.ours = True
        os.environ.update(runner.environment)
        folder = runner.folder
        os.chdir(folder if folder.is_dir() else tempfile.mkdtemp(prefix="fmnist_lab-"))
        runner.state["instances"][Plugins] = plugins
        Singleton.set_state(runner.state)
        setup_globals()
        compat.pass_over_byte_order_marks()
        return runner

    def run(self, number: int, overrides: Sequence[str], job_id: str) -> JobReturn:
        """Compose a job's config and do the job.

        Args:
            number: The job's number, from 0.
            overrides: The job's own.
            job_id: The launcher's name for it.
        """
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            if self.threads is not None and config.trainer.threads is None:
                config.trainer.threads = self.threads
                config.hydra.overrides.task.append(f"trainer.threads={self.threads}")
            config.hydra.job.id = job_id
            config.hydra.job.num = number
        return run_job(
            hydra_context=self.context,
            task_function=self.task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )


class JobLauncher(ABC):
    """A launcher whose jobs are done by worker processes, each of which may be lost.

    Attributes:
        options_class: The options of its preset.
        options: Their values.
    """

    options_class: ClassVar[type[Section]]
    options: Any

    def __init__(self, **options: Any) -> None:
        """Take the values of `hydra.launcher`, which `prepare` has checked."""
        values: Any = OmegaConf.to_container(OmegaConf.create(options), resolve=True)
        self.options = self.options_class.model_validate({"_target_": __name__, **values})

    @classmethod
    @abstractmethod
    def check(cls, options: Any, tracking: Tracking) -> None:
        """Refuse a request that the workers could not meet, before anything is begun.

        Args:
            options: The checked `hydra.launcher`.
            tracking: The checked `tracking`.

        Raises:
            UserError: The request could not be met.
        """

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra hands over before `launch`."""
        self.task = cast("Task", task_function)
        self.runner = JobRunner(
            hydra_context,
            self.task,
            config,
            self.options.threads,
            Singleton.get_state(),
            Path.cwd(),
            {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)},
        )

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Do all jobs and return their results, in their order.

        Args:
            job_overrides: The overrides of each job.
            initial_job_idx: The number of the first.
        """
        setup_globals()
        Path(str(self.runner.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        jobs = dict(enumerate(map(list, job_overrides), initial_job_idx))
        results = self.run_all(jobs)
        return [results[number] for number in jobs]

    @abstractmethod
    def run_all(self, jobs: dict[int, list[str]]) -> dict[int, JobReturn]:
        """Do jobs, given by number with their overrides."""

    def lost(self, number: int, overrides: list[str], reason: str) -> JobReturn:
        """Record a job whose worker is gone for good; the others of the sweep go on.

        Args:
            number: The job's number.
            overrides: The job's own.
            reason: Why the worker is gone.
        """
        # If the store is away, the other jobs go on all the same.
        with suppress(Exception):
            assert self.task.sweep is not None
            self.task.sweep.job(number, overrides).keep(self.task.sweep.began, reason)
        # Not FAILED, at which Hydra's sweeper would raise and drop whatever comes after.
        return compat.job_return(overrides, {"failure": reason})


def prepare(launcher: DictConfig, tracking: Tracking) -> None:
    """Check that a launcher of this package can do its work; other launchers are left alone.

    Called before anything is written or submitted.

    Args:
        launcher: The composed `hydra.launcher`.
        tracking: The checked `tracking`.

    Raises:
        UserError: An option is wrong, an extra is missing, the store is out of the other machines'
            reach, or no machine is large enough.
    """
    package, _, name = str(launcher._target_).rpartition(".")
    if package == PLUGINS and name in MODULES:
        chosen = load(name)
        values = OmegaConf.to_container(launcher, resolve=True)
        options = check_section(chosen.options_class, values, "hydra.launcher.")
        chosen.check(options, tracking)


def check_cluster(option: str, library: str, extra: str, tracking: Tracking) -> None:
    """Refuse a sweep on other machines that lacks a tracking server or the cluster's library.

    Args:
        option: The launcher, as in hydra/launcher=OPTION.
        library: The module by which the cluster is spoken to.
        extra: The extra of this package that installs it.
        tracking: The checked `tracking`.

    Raises:
        UserError: One of them is missing.
    """
    if tracking.kind == "none":
        raise UserError(
            f"tracking: received none with hydra/launcher={option}, but what other machines find "
            "out comes back through a tracking server only; expected tracking=server"
        )
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if not uri.startswith(SERVERS):
        raise UserError(
            f"tracking.uri: received '{uri}' with hydra/launcher={option}, but jobs on other "
            "machines reach neither a database file of this machine nor its folder for the files "
            "of runs; expected a tracking server, for example tracking=server "
            "tracking.uri=http://HOST:5000"
        )
    try:
        importlib.import_module(library)
    except ImportError:
        raise UserError(
            f"hydra/launcher={option} needs {library}, which is not installed; "
            f"pip install 'fmnist_lab[{extra}]'"
        ) from None


def check_size(
    wanted: Mapping[str, float], nodes: Sequence[tuple[float, float, float]], where: str
) -> None:
    """Refuse a request that no node could meet: it would wait for a larger one for ever.

    Args:
        wanted: The options that ask for processors, GB of memory and GPUs, in this order.
        nodes: How much each node has of these.
        where: Whose nodes they are, in words.

    Raises:
        UserError: No node is large enough.
    """
    if any(all(a >= b for a, b in zip(node, wanted.values(), strict=True)) for node in nodes):
        return
    largest = ", ".join(
        f"{cpus:g} processors, {memory:.3g} GB and {gpus:g} GPUs"
        for cpus, memory, gpus in sorted(set(nodes), reverse=True)[:3]
    )
    received = ", ".join(f"{name}={value:g}" for name, value in wanted.items())
    raise UserError(
        f"hydra.launcher: received {received}, which no node of {where} has; the largest have "
        f"{largest}; expected no more than that, for example hydra.launcher.{next(iter(wanted))}="
        f"{max(nodes)[0]:g}"
    )
