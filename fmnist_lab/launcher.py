"""Hydra's launcher for the cores of this machine: `hydra/launcher=local_cores`.

A worker is a process that imports TensorFlow once and does one job after the other. Unlike a
process pool, whose work all ends when one of its processes is killed, a lost worker costs its own
job alone and is replaced.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType

from hydra import version
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from fmnist_lab import backend, sweep
from fmnist_lab.errors import UserError

# TensorFlow cannot be forked.
SPAWN = multiprocessing.get_context("spawn")
GRACE_SECONDS = 30  # for a worker to leave its run in the right state


@dataclass(frozen=True)
class Task:
    """What all jobs have in common; sent to each worker once."""

    context: HydraContext
    function: TaskFunction
    config: DictConfig
    threads: int | None
    version_base: str


class LocalCores(Launcher):
    """Runs the jobs of a sweep side by side in processes of this machine."""

    def __init__(self, workers: int | None = None, threads: int | None = None) -> None:
        """Settle the number of workers.

        Args:
            workers: How many jobs run at once; None: one for each `threads` cores.
            threads: What `trainer.threads` is in every job that does not say so itself.
        """
        cores = backend.usable_cores()
        self.workers = workers or max(1, cores // (threads or cores))
        self.threads = threads

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra hands over before `launch`."""
        self.context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Do all jobs, in their order, and return what came of each."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        base = str(version.getbase())
        task = Task(self.context, self.task_function, self.config, self.threads, base)
        jobs = {
            initial_job_idx + place: list(overrides)
            for place, overrides in enumerate(job_overrides)
        }
        results = _run_all(task, jobs, min(self.workers, len(jobs)))
        return [results[job] for job in jobs]


def _run_all(task: Task, jobs: dict[int, list[str]], size: int) -> dict[int, JobReturn]:
    todo = deque(jobs.items())
    results: dict[int, JobReturn] = {}
    workers = [_Worker(task) for _ in range(size)]
    try:
        while len(results) < len(jobs):
            for worker in workers:
                if worker.job is None and todo:
                    worker.begin(*todo.popleft())
            busy = {worker.pipe: worker for worker in workers if worker.job is not None}
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                job = worker.job
                assert job is not None
                try:
                    results[job] = worker.end()
                except EOFError:
                    reason = worker.epitaph()
                    if sweep.begun:
                        sweep.begun.lost(job, jobs[job], reason)
                    results[job] = _lost(jobs[job], reason)
                    workers.remove(worker)
                    if todo:
                        workers.append(_Worker(task))
    except BaseException:
        for worker in workers:
            worker.process.terminate()
        raise
    finally:
        for worker in workers:
            worker.close()
    return results


class _Worker:
    """A process, the pipe to it, and the job it is doing."""

    def __init__(self, task: Task) -> None:
        self.pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_work, args=(theirs, task), daemon=True)
        self.process.start()
        theirs.close()
        self.job: int | None = None

    def begin(self, job: int, overrides: list[str]) -> None:
        self.job = job
        # If it is gone already, `end` will notice.
        with suppress(OSError):
            self.pipe.send((job, overrides))

    def end(self) -> JobReturn:
        result = self.pipe.recv()
        self.job = None
        if isinstance(result, BaseException):
            raise result
        return result

    def epitaph(self) -> str:
        """Say how the process ended."""
        self.process.join(GRACE_SECONDS)
        code = self.process.exitcode or 0
        if code >= 0:
            return f"its worker process ended with exit code {code}"
        name = signal.Signals(-code).name
        memory = ", perhaps because memory ran out" if name == "SIGKILL" else ""
        return f"its worker process was ended by {name}{memory}"

    def close(self) -> None:
        self.pipe.close()
        self.process.join(GRACE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _work(pipe: Connection, task: Task) -> None:
    """Do the jobs that come through the pipe, until it is closed."""
    # Ctrl-C goes to the terminal's whole process group; the launcher passes it on, once.
    os.setpgrp()
    threading.Thread(target=_follow_parent, daemon=True).start()
    version.setbase(task.version_base)
    setup_globals()
    configure_log(task.config.hydra.hydra_logging, task.config.hydra.verbose)
    try:
        while True:
            job, overrides = pipe.recv()
            pipe.send(_do(task, job, overrides))
    except (EOFError, BrokenPipeError):
        return
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)


def _do(task: Task, job: int, overrides: list[str]) -> JobReturn | Exception:
    try:
        config = task.context.config_loader.load_sweep_config(task.config, overrides)
        with open_dict(config):
            if task.threads is not None and config.trainer.threads is None:
                config.trainer.threads = task.threads
                config.hydra.overrides.task.append(f"trainer.threads={task.threads}")
            config.hydra.job.id = job
            config.hydra.job.num = job
        return run_job(
            hydra_context=task.context,
            task_function=task.function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
    except Exception as error:
        # Exceptions of several arguments do not survive the pipe.
        return UserError(f"job {job} could not be started: {type(error).__name__}: {error}")


def _follow_parent() -> None:
    """End as on SIGTERM once the sweep's own process is gone, however it went."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _lost(overrides: list[str], reason: str) -> JobReturn:
    # Not FAILED, which would have the sweeper raise and drop whatever comes after.
    return JobReturn(
        overrides=overrides, status=JobStatus.COMPLETED, _return_value={"failure": reason}
    )


# Hydra takes plugins from this package only; a folder of that name beside ours would be looked
# through, and so imported, whenever anything at all is composed.
LocalCores.__module__ = "hydra_plugins.fmnist_lab"


def register(launcher: DictConfig) -> None:
    """Make our launcher known to Hydra, and check its options if it is the one that was chosen.

    Raises:
        UserError: One of them is no number of processes or threads.
    """
    package, _, module = LocalCores.__module__.rpartition(".")
    try:
        importlib.import_module(package)
    except ImportError:
        sys.modules[package] = ModuleType(package)
    sys.modules[f"{package}.{module}"] = sys.modules[__name__]
    Plugins.instance().register(LocalCores)
    if launcher._target_ != f"{LocalCores.__module__}.{LocalCores.__name__}":
        return
    for name in ("workers", "threads"):
        value = launcher.get(name)
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(
                f"hydra.launcher.{name}: received {value}, expected a whole number, 1 or more, "
                "or null"
            )
