"""A sweep: one parent run, a child for each job, on whatever launcher Hydra has been given."""

from __future__ import annotations

from dataclasses import dataclass

from fmnist_lab import tracking


@dataclass(frozen=True)
class Membership:
    """What a job is in its sweep.

    Attributes:
        sweep: Id of the parent run; "" if nothing is kept.
        job: The job's number, from 0.
        name: What differs from the other jobs, in the fewest characters: "h512 e20 s3".
        axes: The keys that the sweep varies.
    """

    sweep: str
    job: int
    name: str
    axes: tuple[str, ...] = ()

    def tags(self) -> dict[str, str]:
        """Return the tags by which the job's run is found."""
        if not self.sweep:
            return {}
        return {
            tracking.member_tag(self.sweep): f"{self.job:05d}",
            "mlflow.parentRunId": self.sweep,
        }
