"""Hydra's launcher for the cores of this machine: `hydra/launcher=local_cores`.

A worker is a process that imports TensorFlow once and does one job after the other. Unlike a
process pool, all of whose work ends when one of its processes is killed, a lost worker costs its
own job alone and is replaced.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection, wait

from hydra.core.utils import JobReturn

from fmnist_lab.config.fields import OptionalCount, Section, Target
from fmnist_lab.config.schema import Tracking
from fmnist_lab.sweep.launchers.base import (
    ASK_AGAIN_SECONDS,
    JobLauncher,
    JobRunner,
    JobSource,
)
from fmnist_lab.system import process, streams

# TensorFlow cannot be forked.
SPAWN = multiprocessing.get_context("spawn")
GRACE_SECONDS = 30  # in which a worker closes its run


class LocalCoresOptions(Section):
    """`hydra.launcher` with hydra/launcher=local_cores."""

    target: Target
    workers: OptionalCount
    threads: OptionalCount


class LocalCores(JobLauncher):
    """Runs the jobs of a sweep side by side in processes of this machine."""

    options_class = LocalCoresOptions
    options: LocalCoresOptions

    @classmethod
    def check(cls, options: LocalCoresOptions, tracking: Tracking) -> None:
        """Refuse nothing: any job can be done here."""

    def work_off(self, source: JobSource) -> None:
        """Do jobs side by side, and record those whose worker is lost."""
        from fmnist_lab.training import runtime

        cores = runtime.usable_cores()
        size = self.options.workers or max(1, cores // (self.options.threads or cores))
        if source.width is not None:
            size = min(size, source.width)
        runner = self.runner.pickled()
        workers: list[_Worker] = []
        try:
            while True:
                _hand_out(source, workers, size, runner)
                over = source.exhausted()
                busy = sum(worker.job is not None for worker in workers)
                if over and not busy:
                    return
                can_ask = busy < size and not over
                for worker in _ready(workers, ASK_AGAIN_SECONDS if can_ask else None):
                    number, overrides, result = worker.end()
                    if isinstance(result, str):
                        result = self.lost(number, overrides, result)
                    source.over(number, result)
        except BaseException:
            for worker in workers:
                worker.terminate()
            raise
        finally:
            for worker in workers:
                worker.close()


class _Worker:
    """A process, the pipe to it, and the job that it is doing."""

    def __init__(self, runner: bytes) -> None:
        self.runner = runner
        self.job: tuple[int, list[str]] | None = None
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_work, args=(theirs, self.runner), daemon=True)
        with process.script_hidden():
            self.process.start()
        theirs.close()

    def begin(self, number: int, overrides: list[str]) -> None:
        """Have the process do a job, or another process if this one is lost."""
        if self.pipe.closed:
            self._start()
        self.job = number, overrides
        # If it is gone already, `end` will notice.
        with suppress(OSError):
            self.pipe.send(self.job)

    def end(self) -> tuple[int, list[str], JobReturn | str]:
        """Return the job that is over, and its result or why there is none."""
        assert self.job is not None
        (number, overrides), self.job = self.job, None
        try:
            return number, overrides, self.pipe.recv()
        except (EOFError, ConnectionError):
            self.pipe.close()
            return number, overrides, self._epitaph()

    def _epitaph(self) -> str:
        """Say how the process ended."""
        self.process.join(GRACE_SECONDS)
        code = self.process.exitcode or 0
        # A process that a signal ends has its number, negative; one that leaves in order, 128 more.
        number = -code if code < 0 else code - 128
        if number not in set(signal.Signals):
            return f"its worker process ended with exit code {code}"
        name = signal.Signals(number).name
        memory = ", perhaps because memory ran out" if name == "SIGKILL" else ""
        return f"its worker process was ended by {name}{memory}"

    def terminate(self) -> None:
        self.process.terminate()

    def close(self) -> None:
        self.pipe.close()
        self.process.join(GRACE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _hand_out(source: JobSource, workers: list[_Worker], size: int, runner: bytes) -> None:
    """Give the idle workers jobs of a source, and start more workers up to `size` for others."""
    idle = [worker for worker in workers if worker.job is None]
    while (idle or len(workers) < size) and (given := source.next()):
        if not idle:
            # It takes seconds to start one, so only when there is a job for it.
            idle = [_Worker(runner)]
            workers += idle
        idle.pop(0).begin(*given)


def _ready(workers: list[_Worker], timeout: float | None) -> list[_Worker]:
    """Wait for the end of a job, and return the workers whose jobs are over.

    Args:
        workers: All of them.
        timeout: The most seconds to wait; None: any number.
    """
    busy = {worker.pipe: worker for worker in workers if worker.job is not None}
    return [busy[pipe] for pipe in wait(list(busy), timeout) if isinstance(pipe, Connection)]


def _work(pipe: Connection, pickled: bytes) -> None:
    """Do the jobs that come through the pipe, until it is closed."""
    # Ctrl-C goes to the terminal's whole process group; the launcher passes it on, once.
    os.setpgrp()
    streams.secure()
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        runner = JobRunner.begun(pickled)
        while True:
            pipe.send(_result(runner, *pipe.recv()))
    except (EOFError, BrokenPipeError):
        return
    except KeyboardInterrupt as end:
        sys.exit(128 + getattr(end, "number", signal.SIGTERM))


def _result(runner: JobRunner, job: int, overrides: list[str]) -> JobReturn | str:
    """Do a job; return why, if it cannot even be started."""
    try:
        return runner.run(job, overrides, str(job))
    except Exception as error:
        return f"it could not be started: {type(error).__name__}: {error}"


def _follow_parent() -> None:
    """End as on SIGTERM once the sweep's own process is gone, however it went."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
