"""Runs whose process is gone: marked as what they are, and delivered if they were done."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from fmnist_lab.scratch import Scratch, abandoned, is_live, read_journal
from fmnist_lab.tracking.delivery import Delivery, is_outage, reason
from fmnist_lab.tracking.store import Store, client_of


@dataclass(frozen=True)
class Healed:
    """A run that was found RUNNING without a process, and is KILLED now."""

    run_id: str
    name: str
    scratch: Path


def heal(store: Store) -> list[Healed]:
    """Mark RUNNING runs of this machine whose processes are gone as KILLED.

    A live run holds the lock of its scratch folder; a run of another machine, or one without a
    folder here, is left alone.

    Args:
        store: An open store.

    Returns:
        The runs.
    """
    client = client_of(store)
    experiments = [each.experiment_id for each in client.search_experiments()]
    running = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
    healed = []
    for run in client.search_runs(experiments, running):
        scratch = Path(run.data.tags.get("scratch", ""))
        if scratch.name and scratch.is_dir() and not is_live(scratch):
            client.set_terminated(run.info.run_id, "KILLED")
            healed.append(Healed(run.info.run_id, run.info.run_name, scratch))
    return healed


@dataclass(frozen=True)
class Sent:
    """What became of an abandoned scratch folder.

    Attributes:
        run_id: The run.
        events: How many events the store took.
        status: The run's state, or "" if it did not come to an end and can be resumed.
        problem: Why the store did not take the rest; "" if it did.
    """

    run_id: str
    events: int
    status: str
    problem: str


def sync(store: Store) -> list[Sent]:
    """Deliver what unfinished folders hold for a store; those of finished runs are then removed.

    Args:
        store: An open store.
    """
    results = []
    for folder in abandoned(store.unfinished):
        events = read_journal(folder)
        known = [event for event in events if event["kind"] == "run"]
        if not known or known[-1]["store"] != store.uri:
            continue
        scratch = Scratch.reclaim(folder)
        if scratch is None:
            continue
        run_id, status = known[-1]["id"], ""
        if events[-1]["kind"] == "end":
            status = events[-1]["status"]
        delivery = Delivery(store, run_id, scratch.files, again=True)
        taken, problem = 0, ""
        for event in events:
            if event["kind"] == "file" and not (scratch.files / event["name"]).exists():
                continue
            try:
                delivery.deliver(event)
            except Exception as error:
                problem = reason(error)
                if is_outage(error):
                    break
                continue
            taken += 1
        if status == "FINISHED" and not problem:
            scratch.remove()
        else:
            scratch.release()
        results.append(Sent(run_id, taken, status, problem))
    return results
