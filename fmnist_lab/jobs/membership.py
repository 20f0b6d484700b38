"""A job's place in a sweep, and the tags by which its run is found there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fmnist_lab.config import naming
from fmnist_lab.system import provenance

if TYPE_CHECKING:
    from fmnist_lab.tracking import SweepRun


@dataclass(frozen=True)
class Membership:
    """The place of a job in its sweep.

    Attributes:
        sweep: Id of the parent run; "" if nothing is kept.
        job: The job's number, from 0.
        name: The differences from the other jobs, in the fewest characters: "h512 e20 s3".
        axes: The keys that the sweep varies.
        command: The command that makes this job alone.
        more: Other tags of the job's run.
        most_parameters: How many parameters its model may have; None: any number.
    """

    sweep: str
    job: int
    name: str
    axes: tuple[str, ...] = ()
    command: str = ""
    more: Mapping[str, str] = field(default_factory=dict)
    most_parameters: int | None = None

    @classmethod
    def of(
        cls,
        run: SweepRun | None,
        job: int,
        overrides: Sequence[str],
        axes: tuple[str, ...],
        flags: Sequence[str] = (),
    ) -> Membership:
        """Return the place of a job in its sweep.

        Args:
            run: The parent run, or None if nothing is kept.
            job: The job's number.
            overrides: The job's own overrides, "key=value" each.
            axes: The keys that the sweep varies.
            flags: The flags of the command line that say where configs are.
        """
        # The trainings of a search's winner differ in their seeds, which the search does not vary.
        name = naming.job_name(overrides, [*axes, "seed"]) or f"job {job}"
        # A pause is a step on the way to the job's result, which the command makes in one go; and a
        # search goes on with its own runs alone, which is no matter of the command's.
        aside = ("pause_after=", "resume=")
        lasting = [word for word in overrides if not word.lstrip("+").startswith(aside)]
        command = provenance.run_command([*flags, *lasting])
        return cls(run.id if run else "", job, name, axes, command)

    def tags(self) -> dict[str, str]:
        """Return the tags by which the job's run is found, and the command that makes it."""
        from fmnist_lab import tracking

        if not self.sweep:
            return {}
        return {
            tracking.member_tag(self.sweep): f"{self.job:05d}",
            "mlflow.parentRunId": self.sweep,
            **({"mlflow.source.name": self.command} if self.command else {}),
            **self.more,
        }
