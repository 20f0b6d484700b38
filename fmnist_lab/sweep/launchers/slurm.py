"""Hydra's launcher for a Slurm cluster: `hydra/launcher=slurm`, on top of submitit.

The jobs of a sweep are submitted as an array, those of a search one by one as processors become
free, and Slurm's queue is asked how they fare. A job that left the queue without a result was
killed: it is submitted again, a few times.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from hydra.core.utils import JobReturn
from pydantic import Field

from fmnist_lab.config import fields
from fmnist_lab.config.schema import Tracking
from fmnist_lab.errors import UserError
from fmnist_lab.sweep.launchers import slurm_queue as queue
from fmnist_lab.sweep.launchers.base import (
    JobLauncher,
    JobRunner,
    JobSource,
    Number,
)
from fmnist_lab.sweep.launchers.checks import check_cluster

if TYPE_CHECKING:
    import submitit

ASK_EVERY_SECONDS = 5.0
RESULT_SECONDS = 30  # until a shared file system shows a result
SILENT = "Slurm does not answer; the sweep goes on when it does. Ctrl-C leaves it to itself."
RUNNER = "runner.pkl"
LARGEST_ARRAY = 1000  # Slurm's MaxArraySize is 1001 unless a site says otherwise
# submitit knows these for every kind of cluster, others for Slurm alone.
GENERAL = ("timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")


class SlurmOptions(fields.Section):
    """`hydra.launcher` with hydra/launcher=slurm."""

    target: fields.Target
    workers: fields.OptionalCount
    cpus_per_task: fields.Count
    threads: fields.OptionalCount
    mem_gb: fields.OptionalPositive
    gpus_per_node: Annotated[
        int | None, Field(ge=0, description="a whole number, 0 or more, or null")
    ]
    timeout_min: fields.Count
    max_num_timeout: Number
    retries: Number
    array_parallelism: fields.Count
    partition: fields.OptionalText
    account: fields.OptionalText
    qos: fields.OptionalText
    constraint: fields.OptionalText
    exclude: fields.OptionalText
    gres: fields.OptionalText
    setup: Annotated[list[str] | None, Field(description="a list of lines of shell, or null")]
    additional_parameters: Annotated[
        dict[str, Any], Field(description="sbatch's options and their values")
    ]

    def of_submitit(self) -> dict[str, Any]:
        """Return submitit's own options; those that are null are left to Slurm."""
        ours = {"target", "workers", "threads", "retries", "max_num_timeout"}
        given = self.model_dump(exclude=ours, exclude_none=True)
        return {
            name if name in GENERAL else f"slurm_{name}": value for name, value in given.items()
        }


@dataclass(frozen=True)
class Attempt:
    """The work of one Slurm job: a job of the sweep, and the file with the runner of all jobs."""

    runner: Path
    number: int
    overrides: list[str]

    def __call__(self) -> JobReturn:
        """Do the job."""
        import submitit

        runner = JobRunner.begun(self.runner.read_bytes())
        return runner.run(self.number, self.overrides, submitit.JobEnvironment().job_id)

    def checkpoint(self) -> Any:
        """Have the job queued again when its time is up; it goes on where it was."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Slurm(JobLauncher):
    """Runs each job of a sweep as a job of Slurm."""

    options_class = SlurmOptions
    options: SlurmOptions

    @classmethod
    def check(cls, options: SlurmOptions, tracking: Tracking) -> None:
        """Refuse a job that Slurm could not run, before anything is submitted."""
        check_cluster("slurm", "submitit", "slurm", tracking)
        queue.check(options)

    def work_off(self, source: JobSource) -> None:
        """Submit jobs, wait for their ends, and submit those again that were killed."""
        folder = self._open_folder()
        places = self.places(source, lambda: queue.idle(self.options))
        overrides: dict[int, list[str]] = {}  # of the jobs that are not over
        tries: Counter[int] = Counter()
        waiting: dict[int, submitit.Job[JobReturn]] = {}
        again: list[int] = []
        told: set[str] = set()
        failed = False
        try:
            while True:
                while len(overrides) < places and (given := source.next()):
                    overrides[given[0]] = given[1]
                    again.append(given[0])
                if again:
                    attempts = [Attempt(folder / RUNNER, job, overrides[job]) for job in again]
                    waiting |= zip(again, self._submit(folder, attempts), strict=True)
                    tries.update(again)
                    again = []
                elif not waiting and source.exhausted():
                    break
                time.sleep(ASK_EVERY_SECONDS)
                for number, state, result in self._over(waiting, told):
                    if not isinstance(result, JobReturn):
                        if state in queue.ACCIDENTS and tries[number] <= self.options.retries:
                            self.task.remark(f"Job {number} is submitted again: {result}.")
                            again.append(number)
                            continue
                        result = self.lost(number, overrides[number], f"{result}; see {folder}")
                    failed |= "failure" in (result.return_value or {})
                    del overrides[number], tries[number]
                    source.over(number, result)
        except KeyboardInterrupt:
            print(queue.cancel(self.name), file=sys.stderr)
            raise
        if not failed:
            shutil.rmtree(folder, ignore_errors=True)

    def _open_folder(self) -> Path:
        """Return a new folder for the files of submitit, with the runner of all jobs in it.

        Raises:
            UserError: Slurm still runs jobs of this sweep.
        """
        assert self.task.sweep is not None
        assert self.task.sweep.run is not None
        self.name = f"fmnist_lab-{self.task.sweep.run.id[:8]}"
        if left := queue.running(self.name):
            raise UserError(
                f"hydra/launcher=slurm: jobs of this sweep still run: {', '.join(left)}; wait for "
                f"them, or end them with scancel --name={self.name}"
            )
        sweeps = Path(str(self.runner.config.hydra.sweep.dir)).absolute() / "slurm"
        sweeps.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=sweeps))
        (folder / RUNNER).write_bytes(self.runner.pickled())
        return folder

    def _over(
        self, waiting: dict[int, submitit.Job[JobReturn]], told: set[str]
    ) -> Iterator[tuple[int, str, JobReturn | str]]:
        """Remove the jobs that are over from those that are waited for.

        Args:
            waiting: The jobs by number.
            told: The reasons for waiting that the user has been told already.

        Yields:
            A job's number, its state in the queue, and its result or why there is none.
        """
        rows = queue.listed()
        ids = {number: job.job_id for number, job in waiting.items()}
        remarks = {SILENT: SILENT}
        if rows is not None:
            remarks = {
                reason: f"Slurm keeps {count} waiting: {reason}."
                for reason, count in queue.obstacles(rows, ids.values()).items()
            }
        for reason, remark in remarks.items():
            if reason not in told:
                self.task.remark(remark)
                told.add(reason)
        for number, state in queue.ended(rows, ids).items() if rows is not None else ():
            yield number, state, _result(waiting.pop(number), state)

    def _submit(self, folder: Path, attempts: list[Attempt]) -> list[submitit.Job[JobReturn]]:
        """Submit jobs as arrays.

        Raises:
            UserError: Slurm refuses them.
        """
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = submitit.AutoExecutor(
            folder / "%j", cluster="slurm", slurm_max_num_timeout=self.options.max_num_timeout
        )
        # Left to itself, srun gives a job one processor, whatever sbatch was granted.
        processors = [f"--cpus-per-task={self.options.cpus_per_task}"]
        executor.update_parameters(
            name=self.name, slurm_srun_args=processors, **self.options.of_submitit()
        )
        jobs: list[submitit.Job[JobReturn]] = []
        try:
            for start in range(0, len(attempts), LARGEST_ARRAY):
                jobs += executor.submit_array(attempts[start : start + LARGEST_ARRAY])
        except (FailedJobError, FailedSubmissionError) as error:
            reason = " ".join((str(error) or str(error.__cause__)).split())
            raise UserError(f"hydra/launcher=slurm: Slurm refuses the jobs: {reason}") from None
        return jobs


def _result(job: submitit.Job[JobReturn], state: str) -> JobReturn | str:
    """Return the result of a job that is over, or the reason why there is none.

    submitit's own function waits for ever if no accounting knows of the job's end.
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
