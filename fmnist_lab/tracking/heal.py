"""Runs whose process is gone: marked as what they are, and delivered if they were done."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmnist_lab.scratch import Event, Scratch, abandoned, clear_half_removed, is_live, read_journal
from fmnist_lab.tracking.delivery import Delivery, is_outage, reason
from fmnist_lab.tracking.query import client_to_read
from fmnist_lab.tracking.store import Store, asking

PROCESS_TAG = "process"
# Of a sweep: whether its jobs are done by its own process and the children of that.
HERE_TAG = "sweep.here"


@dataclass(frozen=True)
class Healed:
    """A run that was found RUNNING without a process, and is KILLED now.

    Attributes:
        run_id: Its id.
        name: Its name.
        command: What to type to go on; empty if that is unknown.
    """

    run_id: str
    name: str
    command: str


def heal(store: Store) -> list[Healed]:
    """Mark RUNNING runs of this machine whose processes are gone as KILLED.

    A live run holds the lock of its scratch folder, and a sweep names its process; a run of another
    machine, or one that has neither, is left alone. So is one whose sweep goes on and sees for
    itself how its jobs end: that one knows why they did.

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
        runs = client.search_runs(experiments, running)
        sweeps = {run.info.run_id for run in runs if _looks_after_its_jobs(run)}
        for run in runs:
            tags = run.data.tags
            if tags.get("mlflow.parentRunId") in sweeps:
                continue
            if _is_left(tags.get("scratch", "")) or _has_ended(tags.get(PROCESS_TAG, "")):
                client.set_terminated(run.info.run_id, "KILLED")
                command = tags.get("mlflow.source.name", "")
                if command and "resume=true" not in command.split():
                    command += " resume=true"
                healed.append(Healed(run.info.run_id, run.info.run_name, command))
        return healed


def this_process() -> dict[str, str]:
    """Return a tag that tells this process from every other that this machine has had.

    It is for runs without a scratch folder, whose lock would tell; empty where there is no /proc.
    """
    try:
        return {PROCESS_TAG: f"{_boot()} {os.getpid()} {_started(os.getpid())}"}
    except OSError:
        return {}


def is_going_on(run: Any) -> bool:
    """Return whether a run without a scratch folder is RUNNING in a process of this machine."""
    process = run.data.tags.get(PROCESS_TAG, "")
    here = run.data.tags.get("host") == socket.gethostname()
    return run.info.status == "RUNNING" and here and bool(process) and not _has_ended(process)


def _looks_after_its_jobs(run: Any) -> bool:
    return run.data.tags.get(HERE_TAG) == "true" and is_going_on(run)


def is_delivered_later(run: Any) -> bool:
    """Return whether a run has come to its end here, and the store is the only one not to know."""
    folder = Path(run.data.tags.get("scratch", ""))
    return bool(folder.name) and _is_done(folder)


def _is_left(scratch: str) -> bool:
    """Whether a scratch folder is here, and its process is not."""
    folder = Path(scratch)
    if not scratch or not folder.is_dir() or is_live(folder):
        return False
    # What is finished only waits to be sent.
    return not _is_done(folder)


def _is_done(folder: Path) -> bool:
    last = read_journal(folder)[-1:]
    return bool(last) and last[0].get("status") == "FINISHED"


def _has_ended(process: str) -> bool:
    """Whether a process of this machine, as `this_process` has it, is no more."""
    parts = process.split()
    if len(parts) != 3:
        return False
    boot, number, started = parts
    try:
        if boot != _boot():
            return True
        return started != _started(int(number))
    except FileNotFoundError:
        return Path("/proc/self").exists()
    except (OSError, ValueError):
        return False


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _started(process: int) -> str:
    """When a process started, in ticks since the machine did: the 22nd field of proc(5)'s stat."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]


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
