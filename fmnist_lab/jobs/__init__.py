"""A job from its config to its run: train a model, or evaluate one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fmnist_lab.config.schema import Config
    from fmnist_lab.jobs.membership import Membership
    from fmnist_lab.jobs.outcome import Keep


def run(
    config: Config, member: Membership | None = None, keep: Keep | None = None
) -> dict[str, float]:
    """Do the job that a config names.

    Args:
        config: A checked config.
        member: The job's place in a sweep, if it is in one.
        keep: Called with the job's `Outcome`, if the caller wants more than metrics.

    Returns:
        The last metrics of the model, by name.
    """
    # Imported here, so that to name a job's place in a sweep costs nothing.
    from fmnist_lab.jobs import evaluate, train

    return {"train": train.run, "evaluate": evaluate.run}[config.job.name](
        config, member, keep=keep
    )
