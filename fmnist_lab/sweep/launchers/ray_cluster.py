"""Hydra's launcher for a Ray cluster that is running: `hydra/launcher=ray_cluster`.

A job is a task of Ray's. Ray itself starts a task again if its worker or node has died.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from hydra.core.utils import JobReturn
from pydantic import Field

from fmnist_lab import compat
from fmnist_lab.config import fields
from fmnist_lab.config.schema import Tracking
from fmnist_lab.errors import UserError
from fmnist_lab.sweep.launchers.base import (
    ASK_AGAIN_SECONDS,
    JobLauncher,
    JobRunner,
    JobSource,
    Number,
)
from fmnist_lab.sweep.launchers.checks import check_cluster, check_size
from fmnist_lab.system import signals

if TYPE_CHECKING:
    import ray

GIBIBYTE = 1024**3
ANSWER_SECONDS = 5.0
INTERRUPT_SECONDS = 15.0  # in which an interrupted job closes its run


class RayOptions(fields.Section):
    """`hydra.launcher` with hydra/launcher=ray_cluster."""

    target: fields.Target
    workers: fields.OptionalCount
    address: fields.Text
    num_cpus: fields.Positive
    threads: fields.OptionalCount
    num_gpus: Annotated[float, Field(ge=0, description="a number, 0 or more")]
    mem_gb: fields.OptionalPositive
    max_retries: Number
    init: Annotated[dict[str, Any], Field(description="ray.init's arguments and their values")]
    remote: Annotated[dict[str, Any], Field(description="ray.remote's arguments and their values")]

    def of_a_task(self) -> dict[str, Any]:
        """Return ray.remote's own options."""
        return {
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "memory": None if self.mem_gb is None else int(self.mem_gb * GIBIBYTE),
            "max_retries": self.max_retries,
            "scheduling_strategy": "SPREAD",
            **self.remote,
        }


class RayCluster(JobLauncher):
    """Runs each job of a sweep as a task of Ray."""

    options_class = RayOptions
    options: RayOptions

    @classmethod
    def check(cls, options: RayOptions, tracking: Tracking) -> None:
        """Connect to the cluster, and refuse a job that none of its nodes could run.

        Raises:
            UserError: Ray is missing, no cluster answers, or no node is large enough.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray would warn of a change to come that we have nothing to do with.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        check_cluster("ray_cluster", "ray", "ray", tracking)
        import ray

        try:
            _check_answer(options.address)
            ray.init(address=options.address, **options.init)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"hydra.launcher.address: received '{options.address}', where no Ray cluster "
                f"answers ({_first_line(error)}); expected the head's HOST:PORT, also as "
                "$RAY_ADDRESS; start one with ray start --head"
            ) from None
        wanted = {
            "num_cpus": options.num_cpus,
            "mem_gb": options.mem_gb or 0,
            "num_gpus": options.num_gpus,
        }
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        nodes = [
            (each.get("CPU", 0), each.get("memory", 0) / GIBIBYTE, each.get("GPU", 0))
            for each in resources
        ]
        check_size(wanted, nodes, "the Ray cluster")

    def work_off(self, source: JobSource) -> None:
        """Hand jobs to Ray, and wait for their ends."""
        import ray
        from ray.exceptions import RayError

        _have_retries_told(self.task.remark)
        remote = ray.remote(**self.options.of_a_task())(_do)
        runner = ray.put(self.runner.pickled())
        places = self.places(source, self._idle)
        given: dict[ray.ObjectRef, tuple[int, list[str]]] = {}
        try:
            # Ray would make Ctrl-C of any exception that a signal raises while it waits.
            with signals.noted() as check:
                while True:
                    while len(given) < places and (job := source.next()):
                        number, overrides = job
                        task = remote.options(name=f"job {number}")
                        given[task.remote(runner, number, overrides)] = job
                    check()
                    if not given:
                        if source.exhausted():
                            return
                        time.sleep(ASK_AGAIN_SECONDS)
                        continue
                    over, _ = ray.wait(list(given), timeout=1.0)
                    for reference in over:
                        number, overrides = given.pop(reference)
                        try:
                            result = ray.get(reference)
                        except RayError as error:
                            result = self.lost(number, overrides, _first_line(error))
                        source.over(number, result)
        except KeyboardInterrupt:
            _cancel(list(given))
            raise

    def _idle(self) -> float:
        """Return how many jobs the processors, GPUs and memory of the cluster can do now."""
        import ray

        idle, task = ray.available_resources(), self.options.of_a_task()
        wanted = {"CPU": task["num_cpus"], "GPU": task["num_gpus"], "memory": task["memory"]}
        rooms = [idle.get(name, 0.0) // each for name, each in wanted.items() if each]
        return float(min(rooms, default=1.0))


def _do(pickled: bytes, number: int, overrides: list[str]) -> JobReturn:
    import ray

    context = ray.get_runtime_context()
    if not ray.get_gpu_ids():
        # Ray leaves all GPUs in sight of a task that has been granted none.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["FMNIST_LAB_RAY_NODE"] = context.get_node_id()
    os.environ["FMNIST_LAB_RAY_TASK"] = context.get_task_id() or ""
    return JobRunner.begun(pickled).run(number, overrides, context.get_task_id() or "")


def _have_retries_told(tell: Callable[[str], None]) -> None:
    """Replace Ray's paragraphs about each lost process by a short line."""

    def shorten(lines: list[str]) -> None:
        if any("will be retried" in line for line in lines):
            tell("A job whose process or node was lost is started again.")

    compat.replace_ray_messages(shorten)


def _check_answer(address: str) -> None:
    """Raise an `OSError` if nobody listens at HOST:PORT, which Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()


def _cancel(waiting: list[ray.ObjectRef]) -> None:
    """Cancel tasks; those that run are interrupted, and close their runs."""
    import ray

    for reference in reversed(waiting):
        ray.cancel(reference)
    _, left = ray.wait(waiting, num_returns=len(waiting), timeout=INTERRUPT_SECONDS)
    told = f"{len(waiting)} jobs, queued or running, were cancelled."
    if left:
        over = len(waiting) - len(left)
        told = f"{over} jobs were cancelled; Ray ends {len(left)} that still run with this program."
    print(told, file=sys.stderr)
    ray.shutdown()


def _first_line(error: BaseException) -> str:
    return next(filter(None, (line.strip() for line in str(error).splitlines())), repr(error))
