"""Runs whose process is gone: marked as what they are, and delivered if they were done."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from fmnist_lab.scratch import Event, Scratch, abandoned, clear_half_removed, is_live, read_journal
from fmnist_lab.tracking.delivery import Delivery, is_outage, reason
from fmnist_lab.tracking.query import client_to_read
from fmnist_lab.tracking.store import Store, asking


@dataclass(frozen=True)
class Healed:
    """A run that was found RUNNING without a process, and is KILLED now.

    Attributes:
        run_id: Its id.
        name: Its name.
        scratch: Where it has left what it needs to go on.
        command: What to type to go on; empty if that is unknown.
    """

    run_id: str
    name: str
    scratch: Path
    command: str


def heal(store: Store) -> list[Healed]:
    """Mark RUNNING runs of this machine whose processes are gone as KILLED.

    A live run holds the lock of its scratch folder; a run of another machine, or one without a
    folder here, is left alone.

    Args:
        store: A store that exists.

    Returns:
        The runs.

    Raises:
        UserError: There is no such store, or it cannot be reached.
    """
    clear_half_removed(store.unfinished)
    client_to_read(store)
    with asking(store) as client:
        experiments = [each.experiment_id for each in client.search_experiments()]
        running = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
        healed = []
        for run in client.search_runs(experiments, running):
            tags = run.data.tags
            scratch = Path(tags.get("scratch", ""))
            if scratch.name and scratch.is_dir() and not is_live(scratch):
                client.set_terminated(run.info.run_id, "KILLED")
                command = tags.get("mlflow.source.name", "")
                if command and "resume=true" not in command.split():
                    command += " resume=true"
                healed.append(Healed(run.info.run_id, run.info.run_name, scratch, command))
        return healed


@dataclass(frozen=True)
class Sent:
    """What became of an abandoned scratch folder.

    Attributes:
        run_id: The run.
        name: Its name.
        events: How many events the store took.
        status: The run's state, or "" if it did not come to an end and can be resumed.
        problem: Why the store did not take the rest; "" if it did.
    """

    run_id: str
    name: str
    events: int
    status: str
    problem: str


def awaited(root: Path) -> list[str]:
    """Return the stores that unfinished folders of no live process hold something for."""
    found: dict[str, None] = {}
    for folder in abandoned(root):
        found.update({run["store"]: None for run in _opened(read_journal(folder))[-1:]})
    return list(found)


def sync(store: Store, root: Path | None = None) -> list[Sent]:
    """Deliver what unfinished folders hold for a store; those of finished runs are then removed.

    Args:
        store: A store that exists.
        root: Where the folders are; None: where the store's runs keep them.

    Raises:
        UserError: There is no such store.
    """
    client_to_read(store)
    root = store.unfinished if root is None else root
    clear_half_removed(root)
    results = []
    for folder in abandoned(root):
        events = read_journal(folder)
        opened = _opened(events)
        if not opened or opened[-1]["store"] != store.uri:
            continue
        scratch = Scratch.reclaim(folder)
        if scratch is None:
            continue
        run_id, status = opened[-1]["id"], ""
        if events[-1]["kind"] == "end":
            status = events[-1]["status"]
        taken, problem = _send(events, Delivery(store, run_id, scratch.files, again=True))
        if status == "FINISHED" and not problem:
            scratch.remove()
        else:
            scratch.release()
        results.append(Sent(run_id, opened[-1].get("name", ""), taken, status, problem))
    return results


def _opened(events: list[Event]) -> list[Event]:
    """Return the events that say which run a journal is of; there is one for each process."""
    return [event for event in events if event["kind"] == "run"]


def _send(events: list[Event], delivery: Delivery) -> tuple[int, str]:
    """Deliver a journal; return how many events were taken, and why the rest was not."""
    taken, problem = 0, ""
    for event in events:
        if event["kind"] == "run":
            continue
        if event["kind"] == "file" and not (delivery.files / event["name"]).exists():
            continue
        try:
            delivery.deliver(event)
        except Exception as error:
            problem = reason(error)
            if is_outage(error):
                break
        else:
            taken += 1
    return taken, problem
