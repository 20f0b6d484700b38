"""The base of all launchers here, and the one way in which their workers do a job."""

from __future__ import annotations

import math
import os
import pickle
import tempfile
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, cast

from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from pydantic import Field

from fmnist_lab import compat
from fmnist_lab.config.fields import Section
from fmnist_lab.config.schema import Tracking, check_section
from fmnist_lab.sweep.launchers import MODULES, PLUGINS, load
from fmnist_lab.system import process

if TYPE_CHECKING:
    from fmnist_lab.sweep.task import Task

Number = Annotated[int, Field(ge=0, description="a whole number, 0 or more")]

# A worker needs these variables of the environment that the sweep was started in.
PASSED_ON = ("MLFLOW_", "FMNIST_LAB_", "KERAS_", "TF_")
# A source that has nothing at the moment is asked again after so long, or when a job has ended.
ASK_AGAIN_SECONDS = 0.5


class JobSource(Protocol):
    """Jobs that become known while others run; asked by one thread, the launcher's.

    Attributes:
        width: The most jobs that can be useful at once; None: any number.
    """

    width: int | None

    def next(self) -> tuple[int, list[str]] | None:
        """Return a job to be done now, by its number and its overrides.

        The number of a job that is over may be given out again, with other overrides.

        Returns:
            None if there is nothing to do at the moment.
        """

    def over(self, number: int, result: JobReturn) -> None:
        """Take the result of a job, once for each job that was given out.

        Args:
            number: The job's number.
            result: Its `return_value` is the dict that the job has returned, or has the reason as
                `failure`.
        """

    def exhausted(self) -> bool:
        """Return whether `next` will give nothing more unless a job ends that runs now."""


class JobList:
    """A source of jobs that are all known from the start.

    Attributes:
        results: The results of the jobs that are over, by number.

    Args:
        jobs: The overrides of each job, by number.
    """

    def __init__(self, jobs: Mapping[int, list[str]]) -> None:
        self.width: int | None = len(jobs)
        self.results: dict[int, JobReturn] = {}
        self._left = deque(jobs.items())

    def next(self) -> tuple[int, list[str]] | None:
        """Return the next job, in the order of the list."""
        return self._left.popleft() if self._left else None

    def over(self, number: int, result: JobReturn) -> None:
        """Keep a result."""
        self.results[number] = result

    def exhausted(self) -> bool:
        """Return whether all jobs were given out."""
        return not self._left


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

    def compose(self, number: int, overrides: Sequence[str], job_id: str) -> DictConfig:
        """Compose a job's config, with Hydra's part.

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
        return config

    def run(self, number: int, overrides: Sequence[str], job_id: str) -> JobReturn:
        """Compose a job's config and do the job.

        Args:
            number: The job's number, from 0.
            overrides: The job's own.
            job_id: The launcher's name for it.
        """
        return run_job(
            hydra_context=self.context,
            task_function=self.task,
            config=self.compose(number, overrides, job_id),
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
        jobs = dict(enumerate(map(list, job_overrides), initial_job_idx))
        source = JobList(jobs)
        self.stream(source)
        return [source.results[number] for number in jobs]

    def stream(self, source: JobSource) -> None:
        """Do jobs as a source gives them out, until it is exhausted and none runs any more.

        Args:
            source: Asked for a job whenever there is a place for one, and told of each end.
        """
        setup_globals()
        Path(str(self.runner.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        self.work_off(source)

    @abstractmethod
    def work_off(self, source: JobSource) -> None:
        """Do what `stream` says, by the workers of this launcher."""

    def places(self, source: JobSource, idle: Callable[[], float]) -> float:
        """Return how many jobs to have queued or running on a cluster at once.

        A cluster's own queue gets the whole of a list, whose order nothing can change any more. Of
        other sources it gets no more than it can run, because a source that is asked later knows
        more.

        Args:
            source: The jobs.
            idle: Returns how many jobs the idle processors of the cluster can do.
        """
        if self.options.workers:
            return float(self.options.workers)
        if isinstance(source, JobList):
            return math.inf
        return max(1.0, min(idle(), math.inf if source.width is None else source.width))

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
            job, params = self.task.sweep.job(number, overrides), dict[str, str]()
            with suppress(Exception):
                params = self.task.params_of(self.runner.compose(number, overrides, str(number)))
            job.keep(self.task.sweep.began, reason, params=params)
        # Not FAILED, at which Hydra's sweeper would raise and drop whatever comes after.
        return compat.job_return(overrides, {"failure": reason, "lost": True})


def stream(launcher: Launcher, source: JobSource) -> None:
    """Have a launcher of any kind do jobs as a source gives them out.

    Args:
        launcher: Hydra's, which was set up.
        source: The jobs.
    """
    own = getattr(launcher, "stream", None)
    if own is None:
        stream_one_by_one(launcher, source)
    else:
        own(source)


def stream_one_by_one(launcher: Launcher, source: JobSource) -> None:
    """Have a launcher that takes only lists do the jobs of a source, in lists of one.

    Args:
        launcher: Hydra's, which was set up.
        source: The jobs.
    """
    while True:
        given = source.next()
        if given is not None:
            number, overrides = given
            (result,) = launcher.launch([overrides], initial_job_idx=number)
            source.over(number, _without_exception(result))
        elif source.exhausted():
            return
        else:
            time.sleep(ASK_AGAIN_SECONDS)


def _without_exception(result: JobReturn) -> JobReturn:
    """Return a job's result; an exception, which Hydra would raise again, becomes a failure."""
    if result.status is JobStatus.COMPLETED:
        return result
    try:
        reason = f"it ended {result.status.name}: {result.return_value}"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    return compat.job_return(list(result.overrides or ()), {"failure": reason})


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
