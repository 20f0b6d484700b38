"""Hydra's launcher for a Slurm cluster: `hydra/launcher=slurm`, on top of submitit.

The jobs of a sweep are submitted as an array, and Slurm's queue is asked how they fare. A job that
left the queue without a result was killed: it is submitted again, a few times.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from hydra.core.utils import JobReturn
from omegaconf import OmegaConf
from pydantic import Field

from fmnist_lab.cluster import slurm_queue as queue
from fmnist_lab.cluster.worker import ClusterLauncher, Number, OptionalNumber, Task
from fmnist_lab.config import (
    Count,
    OptionalCount,
    OptionalPositive,
    OptionalText,
    Section,
    Target,
)
from fmnist_lab.errors import UserError

if TYPE_CHECKING:
    import submitit

ASK_EVERY_SECONDS = 5.0
RESULT_SECONDS = 30  # that a shared file system may take to show a result
SILENT = "Slurm does not answer; the sweep goes on when it does. Ctrl-C leaves it to itself."
LARGEST_ARRAY = 1000  # Slurm's MaxArraySize is 1001 unless a site says otherwise
# submitit knows these for every kind of cluster, others for Slurm alone.
GENERAL = ("timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")


class SlurmOptions(Section):
    """`hydra.launcher` with hydra/launcher=slurm."""

    target: Target
    cpus_per_task: Count
    threads: OptionalCount
    mem_gb: OptionalPositive
    gpus_per_node: OptionalNumber
    timeout_min: Count
    max_num_timeout: Number
    retries: Number
    array_parallelism: Count
    partition: OptionalText
    account: OptionalText
    qos: OptionalText
    constraint: OptionalText
    exclude: OptionalText
    gres: OptionalText
    setup: Annotated[list[str] | None, Field(description="a list of lines of shell, or null")]
    additional_parameters: Annotated[
        dict[str, Any], Field(description="sbatch's options and their values")
    ]


@dataclass(frozen=True)
class Attempt:
    """What a Slurm job is told to do: a job of the sweep, whose common part is in a file."""

    task: Path
    number: int
    overrides: list[str]

    def __call__(self) -> JobReturn:
        """Do the job."""
        import cloudpickle
        import submitit

        task: Task = cloudpickle.loads(self.task.read_bytes())
        return task.do(self.number, self.overrides, submitit.JobEnvironment().job_id)

    def checkpoint(self) -> Any:
        """Have the job queued again when its time is up; it goes on where it was."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Slurm(ClusterLauncher):
    """Runs each job of a sweep as a job of Slurm."""

    options_class = SlurmOptions

    def __init__(
        self, threads: int | None, retries: int, max_num_timeout: int, **options: Any
    ) -> None:
        """Take the preset's values.

        Args:
            threads: `trainer.threads` of every job that does not say so itself.
            retries: How often a job is submitted again after it was killed.
            max_num_timeout: How often a job whose time is up is queued again, to go on.
            options: submitit's own, such as `mem_gb`; null: Slurm's default.
        """
        self.threads = threads
        self.retries = retries
        self.max_num_timeout = max_num_timeout
        self.options = {
            name if name in GENERAL else f"slurm_{name}": (
                OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            )
            for name, value in options.items()
            if value is not None
        }

    @staticmethod
    def check(options: SlurmOptions) -> None:
        """Refuse what Slurm could not run, before anything is submitted.

        Raises:
            UserError: submitit or Slurm is missing, or no node is as large as what is asked for.
        """
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise UserError(
                "hydra/launcher=slurm needs submitit, which is not installed; "
                "pip install 'fmnist_lab[slurm]'"
            ) from None
        queue.check(options)

    def run_all(self, jobs: dict[int, list[str]]) -> dict[int, JobReturn]:
        """Submit jobs, and wait for what comes of them."""
        import cloudpickle

        assert self.conductor.run is not None
        self.name = f"fmnist_lab-{self.conductor.run.id[:8]}"
        if left := queue.running(self.name):
            raise UserError(
                f"hydra/launcher=slurm: jobs of this sweep still run: {', '.join(left)}; wait for "
                f"them, or end them with scancel --name={self.name}"
            )
        sweeps = Path(str(self.task.config.hydra.sweep.dir)).absolute() / "slurm"
        sweeps.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=sweeps))
        (folder / "task.pkl").write_bytes(cloudpickle.dumps(self.task))
        results: dict[int, JobReturn] = {}
        tries: Counter[int] = Counter()
        waiting: dict[int, submitit.Job[JobReturn]] = {}
        todo, told = list(jobs), set()
        try:
            while todo or waiting:
                if todo:
                    attempts = [Attempt(folder / "task.pkl", job, jobs[job]) for job in todo]
                    waiting |= zip(todo, self._submit(folder, attempts), strict=True)
                    tries.update(todo)
                time.sleep(ASK_EVERY_SECONDS)
                todo = []
                rows = queue.listed()
                if rows is None:
                    if SILENT not in told:
                        self.conductor.remark(SILENT)
                        told.add(SILENT)
                    continue
                ids = {number: job.job_id for number, job in waiting.items()}
                for reason, count in queue.obstacles(rows, ids.values()).items():
                    if reason not in told:
                        self.conductor.remark(f"Slurm keeps {count} waiting: {reason}.")
                        told.add(reason)
                for number, state in queue.ended(rows, ids).items():
                    job = waiting.pop(number)
                    result = _result(job, state)
                    if isinstance(result, JobReturn):
                        results[number] = result
                    elif state in queue.ACCIDENTS and tries[number] <= self.retries:
                        self.conductor.remark(f"Job {number} is submitted again: {result}.")
                        todo.append(number)
                    else:
                        results[number] = self.lost(number, jobs[number], f"{result}; see {folder}")
        except KeyboardInterrupt:
            print(queue.cancel([job.job_id for job in waiting.values()]), file=sys.stderr)
            raise
        if not any("failure" in (result.return_value or {}) for result in results.values()):
            shutil.rmtree(folder, ignore_errors=True)
        return results

    def _submit(self, folder: Path, attempts: list[Attempt]) -> list[submitit.Job[JobReturn]]:
        """Submit jobs as arrays.

        Raises:
            UserError: Slurm refuses them.
        """
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = submitit.AutoExecutor(
            folder / "%j", cluster="slurm", slurm_max_num_timeout=self.max_num_timeout
        )
        # Left to itself, srun gives a job one processor, whatever sbatch was granted.
        processors = [f"--cpus-per-task={self.options.get('cpus_per_task', 1)}"]
        executor.update_parameters(name=self.name, slurm_srun_args=processors, **self.options)
        jobs: list[submitit.Job[JobReturn]] = []
        try:
            for start in range(0, len(attempts), LARGEST_ARRAY):
                jobs += executor.submit_array(attempts[start : start + LARGEST_ARRAY])
        except (FailedJobError, FailedSubmissionError) as error:
            reason = " ".join((str(error) or str(error.__cause__)).split())
            raise UserError(f"hydra/launcher=slurm: Slurm refuses the jobs: {reason}") from None
        return jobs


def _result(job: submitit.Job[JobReturn], state: str) -> JobReturn | str:
    """Return what a job that is over has brought, or why it has not.

    submitit's own waits for ever where there is no accounting that knows of a job's end.
    """
    from submitit.core.utils import pickle_load

    file = job.paths.result_pickle
    deadline = time.monotonic() + (RESULT_SECONDS if state == "COMPLETED" else 1)
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    if not file.exists():
        ended = "has left the queue without a result" if state == queue.GONE else f"ended {state}"
        return f"Slurm job {job.job_id} {ended}"
    outcome, result = pickle_load(file)
    return result if outcome == "success" else str(result).strip().splitlines()[-1][-300:]
