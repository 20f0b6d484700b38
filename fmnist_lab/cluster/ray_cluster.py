"""Hydra's launcher for a Ray cluster that is running: `hydra/launcher=ray_cluster`.

A job is a task of Ray's. Ray itself starts a task again whose worker or node has died.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from hydra.core.utils import JobReturn
from pydantic import Field

from fmnist_lab.cluster.worker import ClusterLauncher, Number, Task
from fmnist_lab.config import OptionalCount, OptionalPositive, Positive, Section, Target, Text
from fmnist_lab.errors import UserError

if TYPE_CHECKING:
    import ray

GIBIBYTE = 1024**3
ANSWER_SECONDS = 5.0
INTERRUPT_SECONDS = 15.0  # for what runs to leave its run in the right state


class RayOptions(Section):
    """`hydra.launcher` with hydra/launcher=ray_cluster."""

    target: Target
    address: Text
    num_cpus: Positive
    threads: OptionalCount
    num_gpus: Annotated[float, Field(ge=0, description="a number, 0 or more")]
    mem_gb: OptionalPositive
    max_retries: Number
    init: Annotated[dict[str, Any], Field(description="ray.init's arguments and their values")]
    remote: Annotated[dict[str, Any], Field(description="ray.remote's arguments and their values")]


class RayCluster(ClusterLauncher):
    """Runs each job of a sweep as a task of Ray."""

    options_class = RayOptions

    def __init__(
        self,
        threads: int | None,
        address: str,
        num_cpus: float,
        num_gpus: float,
        mem_gb: float | None,
        max_retries: int,
        init: Mapping[str, Any],
        remote: Mapping[str, Any],
    ) -> None:
        """Take the preset's values.

        Args:
            threads: `trainer.threads` of every job that does not say so itself.
            address: Where the cluster's head answers; connected to by `check`.
            num_cpus: Processors that a job is granted.
            num_gpus: GPUs that a job is granted.
            mem_gb: Memory that a job is granted; None: not reckoned with.
            max_retries: How often Ray starts a job again whose worker or node has died.
            init: More of `ray.init`'s own arguments; used by `check`.
            remote: More of `ray.remote`'s own arguments.
        """
        self.threads = threads
        self.options = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "memory": None if mem_gb is None else int(mem_gb * GIBIBYTE),
            "max_retries": max_retries,
            "scheduling_strategy": "SPREAD",
            **remote,
        }

    @staticmethod
    def check(options: RayOptions) -> None:
        """Connect to the cluster, and refuse what none of its nodes could run.

        Raises:
            UserError: Ray is missing, no cluster answers, or no node is as large as what is asked.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray would warn of a change to come that we have nothing to do with.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError:
            raise UserError(
                "hydra/launcher=ray_cluster needs Ray, which is not installed; "
                "pip install 'fmnist_lab[ray]'"
            ) from None
        try:
            _check_answer(options.address)
            ray.init(address=options.address, **options.init)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"hydra.launcher.address: received '{options.address}', where no Ray cluster "
                f"answers ({_first_line(error)}); expected the head's HOST:PORT, also as "
                "$RAY_ADDRESS; start one with ray start --head"
            ) from None
        _check_size(options, [node["Resources"] for node in ray.nodes() if node["Alive"]])

    def run_all(self, jobs: dict[int, list[str]]) -> dict[int, JobReturn]:
        """Hand jobs to Ray, and wait for what comes of them."""
        import ray
        from ray.exceptions import RayError

        _have_retries_told(self.conductor.remark)
        remote = ray.remote(**self.options)(_do)
        task = ray.put(self.task)
        numbers = {
            remote.options(name=f"job {number}").remote(task, number, overrides): number
            for number, overrides in jobs.items()
        }
        waiting = list(numbers)
        results: dict[int, JobReturn] = {}
        try:
            while waiting:
                # A wait without an end would not let Ctrl-C through.
                over, waiting = ray.wait(waiting, timeout=1.0)
                for reference in over:
                    number = numbers[reference]
                    try:
                        results[number] = ray.get(reference)
                    except RayError as error:
                        results[number] = self.lost(number, jobs[number], _first_line(error))
        except KeyboardInterrupt:
            _cancel(waiting)
            raise
        return results


def _do(task: Task, number: int, overrides: list[str]) -> JobReturn:
    import ray

    context = ray.get_runtime_context()
    if not ray.get_gpu_ids():
        # Ray leaves all GPUs in sight of a task that has been granted none.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["FMNIST_LAB_RAY_NODE"] = context.get_node_id()
    os.environ["FMNIST_LAB_RAY_TASK"] = context.get_task_id() or ""
    return task.do(number, overrides, context.get_task_id() or "")


def _have_retries_told(tell: Callable[[str], None]) -> None:
    """Have Ray's paragraphs about each lost process said in a short line.

    If Ray names this differently one day, its own appear.
    """
    from ray._private import worker

    def handle(data: dict[str, Any], ignore_prefix: bool) -> None:
        if any("will be retried" in line for line in data["lines"]):
            tell("A job whose process or node was lost is started again.")

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = handle


def _check_answer(address: str) -> None:
    """Raise an `OSError` if nobody listens at HOST:PORT, which Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()


def _check_size(options: RayOptions, nodes: list[dict[str, float]]) -> None:
    """Refuse a request that no node could meet: Ray would wait for ever for a larger one."""
    wanted = {
        "CPU": options.num_cpus,
        "GPU": options.num_gpus,
        "memory": (options.mem_gb or 0) * GIBIBYTE,
    }
    if any(all(node.get(name, 0) >= value for name, value in wanted.items()) for node in nodes):
        return
    largest = {name: max(node.get(name, 0) for node in nodes) for name in wanted}
    raise UserError(
        f"hydra.launcher: received num_cpus={options.num_cpus:g}, num_gpus={options.num_gpus:g}, "
        f"mem_gb={options.mem_gb or 0:g}, which no node of the Ray cluster has; they have up to "
        f"{largest['CPU']:g} processors, {largest['GPU']:g} GPUs and "
        f"{largest['memory'] / GIBIBYTE:.3g} GB; expected no more than one of them, for example "
        f"hydra.launcher.num_cpus={largest['CPU']:g}"
    )


def _cancel(waiting: list[ray.ObjectRef]) -> None:
    """Cancel tasks; those that run are interrupted, and close their runs."""
    import ray

    for reference in reversed(waiting):
        ray.cancel(reference)
    _, left = ray.wait(waiting, num_returns=len(waiting), timeout=INTERRUPT_SECONDS)
    if left:
        print(
            f"{len(waiting) - len(left)} jobs were cancelled; Ray ends {len(left)} that still run "
            "with this program.",
            file=sys.stderr,
        )
    else:
        print(f"{len(waiting)} jobs, queued or running, were cancelled.", file=sys.stderr)
    ray.shutdown()


def _first_line(error: BaseException) -> str:
    return next(filter(None, (line.strip() for line in str(error).splitlines())), repr(error))
