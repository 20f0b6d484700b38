"""Orphans: runs that are RUNNING in the store and have no process any more."""

from __future__ import annotations

import functools
import os
import re
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmnist_lab.tracking.client import asking
from fmnist_lab.tracking.failures import asks
from fmnist_lab.tracking.journal import (
    clear_half_removed,
    is_at_rest,
    is_live,
    journal_at,
    read_events,
)
from fmnist_lab.tracking.query import client_to_read, name_of
from fmnist_lab.tracking.store import Store

OURS = ["python", "-m", "fmnist_lab.run"]
PROCESS_TAG = "process"
# The tag of a sweep that says whether its own process and that one's children do its jobs.
HERE_TAG = "sweep.here"


@dataclass(frozen=True)
class Healed:
    """A run that was RUNNING without a process, and is KILLED now.

    Attributes:
        run_id: The run's id.
        name: The run's name.
        command: The command that goes on with it; empty if that is unknown.
    """

    run_id: str
    name: str
    command: str


@functools.cache
def heal_once(store: Store) -> None:
    """Heal what other processes have left; the jobs of one sweep need not each ask."""
    heal(store)


@asks
def heal(store: Store) -> list[Healed]:
    """Mark RUNNING runs of this machine whose processes are gone as KILLED.

    A live run holds the lock of its journal, and a sweep names its process. A run of another
    machine is left alone, and so is a run with neither. A sweep that goes on and sees how its jobs
    end looks after them itself, because it knows why they ended.

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
            if _is_left(tags.get("scratch") or "") or _has_ended(tags.get(PROCESS_TAG) or ""):
                client.set_terminated(run.info.run_id, "KILLED")
                command = command_again(store, tags.get("mlflow.source.name") or "")
                healed.append(Healed(run.info.run_id, name_of(run), command))
        return healed


def command_again(store: Store, command: str) -> str:
    """Return the command line that goes on with a run of a store; "" if that is unknown.

    A person is going to paste it, and anyone may have written the tag. So the text has to be a
    command line of ours, spelled as we spell it, with nothing else for a shell to do.

    Args:
        store: Where the run is; the command names it unless the program finds it anyway.
        command: The command line that made the run, as the run's tag says.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    if words[:3] != OURS or shlex.join(words) != command or not command.isprintable():
        return ""
    if not store.is_found_here() and not any("tracking.uri=" in word for word in words):
        # Hydra takes most of a URI as it is.
        plain = re.fullmatch(r"[\w/:.%+@-]+", store.uri, re.ASCII)
        words.append(f"tracking.uri={store.uri if plain else repr(store.uri)}")
    return shlex.join([*words, *(["resume=true"] if "resume=true" not in words else [])])


def this_process() -> dict[str, str]:
    """Return a tag that tells this process from every other that this machine has had.

    Runs without a journal have it, because they have no lock; it is empty where there is no /proc.
    """
    try:
        return {PROCESS_TAG: f"{_boot()} {os.getpid()} {_started(os.getpid())}"}
    except OSError:
        return {}


def is_going_on(run: Any) -> bool:
    """Return whether a run without a journal is RUNNING in a process of this machine."""
    process = run.data.tags.get(PROCESS_TAG) or ""
    here = run.data.tags.get("host") == socket.gethostname()
    return run.info.status == "RUNNING" and here and bool(process) and not _has_ended(process)


def _looks_after_its_jobs(run: Any) -> bool:
    return run.data.tags.get(HERE_TAG) == "true" and is_going_on(run)


def is_delivered_later(run: Any) -> bool:
    """Return whether a run is finished or paused here, and only the store does not know yet."""
    folder = journal_at(run.data.tags.get("scratch") or "")
    return folder is not None and is_at_rest(read_events(folder))


def _is_left(scratch: str) -> bool:
    """Return whether a journal is here without its process; a run at rest only waits."""
    folder = journal_at(scratch)
    return folder is not None and not is_live(folder) and not is_at_rest(read_events(folder))


def _has_ended(process: str) -> bool:
    """Return whether a process of this machine, as `this_process` names it, has ended."""
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
    except (OSError, ValueError, OverflowError):
        return False


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()


def _started(process: int) -> str:
    """Return when a process started, in ticks since the machine did: field 22 of proc(5)'s stat."""
    return (
        Path(f"/proc/{process}/stat")
        .read_text(errors="replace", encoding="utf-8")
        .rpartition(")")[2]
        .split()[19]
    )
