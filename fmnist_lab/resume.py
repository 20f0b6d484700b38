"""Whether a config has been answered before, and what is left of a run that was interrupted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fmnist_lab import tracking
from fmnist_lab.config import Config
from fmnist_lab.errors import UserError
from fmnist_lab.scratch import Scratch, clear_half_removed, is_live, read_journal

if TYPE_CHECKING:
    from fmnist_lab.sweep import Membership


@dataclass(frozen=True)
class Answered:
    """A finished run of the same config: there is nothing left to do."""

    run_id: str
    name: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Interrupted:
    """A run of the same config that did not come to its end.

    Attributes:
        run_id: Its id; "" if its process has ended before the store knew of it.
        scratch: What it has left.
        threads: How many threads it had, as its tag says; "" if that is unknown.
        engine: Which engine it had, likewise.
    """

    run_id: str
    scratch: Scratch
    threads: str = ""
    engine: str = ""


def look_up(
    store: tracking.Store, config: Config, member: Membership | None, digest: str = ""
) -> Answered | Interrupted | None:
    """Find out how far a config has come.

    A job of a sweep always looks for a run of its own sweep and number, as its launcher may have
    started it a second time; with `resume=true`, any run of the same config counts.

    Args:
        store: Where to look.
        config: A checked config.
        member: The job's place in a sweep, if it is in one.
        digest: That of the data; a run on other data answers nothing. "": any.

    Raises:
        UserError: The run is in progress, in another process.
    """
    experiment = config.tracking.experiment or tracking.DEFAULT_EXPERIMENT
    same = f"tags.`config.hash` = '{config.identity()}' and tags.job = '{config.job.name}'"
    place = member.tags().get(tracking.member_tag(member.sweep)) if member else None
    if member is not None and place is not None and not config.resume:
        same += f" and tags.`{tracking.member_tag(member.sweep)}` = '{place}'"
    # A run that was made to be compared with another answers nothing else.
    runs = [
        run
        for run in tracking.known(store, experiment, same)
        if "reproduces" not in run.tags
        and (not digest or run.tags.get("data.digest", digest) == digest)
    ]
    clear_half_removed(store.unfinished)
    finished = next((run for run in runs if run.status == "FINISHED"), None)
    if finished is not None:
        # The store is told last that a run is finished, so it has all of it.
        for run in runs:
            folder = _scratch_of(run)
            if folder is None or not _remove(folder, delivered=run.status == "FINISHED"):
                continue
            if run.status == "RUNNING":
                tracking.end(store, run.run_id, "KILLED")
        if member is not None and place is not None:
            tracking.tag(store, finished.run_id, {tracking.member_tag(member.sweep): place})
        return Answered(finished.run_id, finished.name, finished.metrics)
    for run in runs:
        folder = _scratch_of(run)
        if folder is None:
            continue
        scratch = Scratch.reclaim(folder)
        if scratch is None:
            raise UserError(
                f"resume: run '{run.name}' ({run.run_id}) of this very config is in progress; "
                "wait for it, or stop it first"
            )
        if member is not None:
            tracking.tag(store, run.run_id, member.tags())
        return Interrupted(run.run_id, scratch, *map(run.tags.get, ("threads", "engine"), ("", "")))
    for folder in _folders(store, config) if config.resume else []:
        scratch = Scratch.reclaim(folder) if not is_live(folder) else None
        if scratch is None:
            continue
        if not any(event["kind"] == "run" for event in scratch.events()):
            # Its process has ended before the store knew of it.
            return Interrupted("", scratch)
        scratch.release()
    if member is not None:
        # A machine that was lost took the folder along; its run will not go on.
        for run in runs:
            if run.status == "RUNNING":
                tracking.end(store, run.run_id, "KILLED")
    return None


def supersede(store: tracking.Store, config: Config) -> None:
    """Clear away what earlier, interrupted runs of a config have left, now that it is answered.

    What is finished and only waits for its delivery stays.
    """
    here = (store.uri, config.tracking.experiment or tracking.DEFAULT_EXPERIMENT)
    for folder in _folders(store, config):
        runs = [event for event in read_journal(folder) if event["kind"] == "run"]
        if all((run.get("store"), run.get("experiment", here[1])) == here for run in runs):
            _remove(folder)


def _folders(store: tracking.Store, config: Config) -> list[Path]:
    """Return the scratch folders of a config's runs."""
    identity = config.identity()
    return [*store.unfinished.glob(identity), *store.unfinished.glob(f"{identity}-*")]


def _remove(folder: Path, *, delivered: bool = False) -> bool:
    """Remove a scratch folder that no process holds, if nothing in it is still to be delivered."""
    scratch = Scratch.reclaim(folder) if not is_live(folder) else None
    if scratch is None:
        return False
    events = scratch.events()
    if not delivered and events and events[-1].get("status") == "FINISHED":
        scratch.release()
        return False
    scratch.remove()
    return True


def _scratch_of(run: tracking.Known) -> Path | None:
    """Return a run's scratch folder, if it is on this machine and has not become another run's."""
    folder = Path(run.tags.get("scratch", ""))
    if not folder.name or not folder.is_dir():
        return None
    # A folder's name is that of the config, on every machine, and is used again.
    owners = [event.get("id") for event in read_journal(folder) if event["kind"] == "run"]
    return folder if not owners or owners[-1] == run.run_id else None
