"""`heal`: runs that look alive but are not."""

from __future__ import annotations

from fmnist_lab import tracking
from fmnist_lab.errors import reported


def heal(*, store: str | None = None) -> None:
    """Mark runs without a process as KILLED, and print the commands that go on with them.

    A run's process holds a lock on this machine for as long as it lives, whatever ends it. Runs of
    other machines are left alone. Every new run heals the runs before it as well.

    Args:
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
    """
    with reported():
        place = tracking.Store.locate(store, for_writing=False)
        healed = tracking.heal(place)
        for run in healed:
            print(f"Run '{run.name}', id {run.run_id}, had lost its process; it is KILLED now.")
            if run.command:
                print(f"To go on with it:\n  {run.command}")
            else:
                print("To go on with it, repeat the command that made it, with resume=true.")
        if not healed:
            print("Nothing to heal: no run of this machine is RUNNING without its process.")
