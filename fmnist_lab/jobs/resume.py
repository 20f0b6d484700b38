"""Earlier runs of a config: one that has answered it, or one that was interrupted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fmnist_lab import tracking
from fmnist_lab.config.schema import Config
from fmnist_lab.errors import UserError
from fmnist_lab.texts import line
from fmnist_lab.tracking.events import Opened, Opening
from fmnist_lab.tracking.journal import (
    TOKEN_TAG,
    Journal,
    clear_half_removed,
    folders_of,
    is_at_rest,
    is_finished,
    is_live,
    journal_at,
    owner,
    read_events,
)

if TYPE_CHECKING:
    from fmnist_lab.jobs.membership import Membership

Runs = Sequence[tracking.RunRecord]

# The tag for what `Config.native_identity` returns; runs of earlier versions have none.
NATIVE_HASH = "config.hash.native"
# The settings that affect the last bits of a result, although the config leaves them open.
SETTINGS = ("engine", "threads")
# The tag that keeps the earlier values of a setting, a JSON list, beside its present one.
BEFORE = "{}.before"
# The first versions kept all values of a setting in one tag, joined by this.
JOINED = ", then "
# The worker of a driver that was killed may live on for a moment.
WAIT_SECONDS = 60.0
ASK_AGAIN_SECONDS = 1.0


@dataclass(frozen=True)
class Interrupted:
    """A run of the same config that did not come to its end.

    Attributes:
        run_id: Its id; "" if its process ended before the store knew of it.
        scratch: The folder with its state, whose lock this process holds.
        tags: Its tags; none if the store does not know of it.
    """

    run_id: str
    scratch: Journal
    tags: Mapping[str, str] = field(default_factory=dict)

    def changed(self, now: Mapping[str, str]) -> dict[str, list[str]]:
        """Return the settings that have changed since the run was interrupted.

        Args:
            now: The value of each of `SETTINGS`.

        Returns:
            The earlier values of each, the oldest first, by name.
        """
        had = {name: values(self.tags, name) for name in SETTINGS}
        if had["engine"] == [now["engine"]] == ["native"]:
            # The bits of the native engine are the same for any number of threads.
            del had["threads"]
        return {name: each for name, each in had.items() if each[-1] not in ("", now[name])}


def values(tags: Mapping[str, str], name: str) -> list[str]:
    """Return the values that a setting has had in the course of a run.

    Args:
        tags: The run's tags, as any version has written them.
        name: One of `SETTINGS`.

    Returns:
        The values, the latest last; [""] if none is known.
    """
    try:
        earlier = [line(each) for each in json.loads(tags.get(BEFORE.format(name)) or "[]")]
    except (TypeError, ValueError):
        # Anyone may have written it.
        earlier = []
    return [*earlier, *line(tags.get(name)).split(JOINED)]


def tags_of_change(before: Mapping[str, list[str]], now: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that keep the earlier values of settings beside the present ones.

    Args:
        before: The earlier values of the settings that have changed.
        now: The present value of each.
    """
    tags = {name: now[name] for name in before}
    tags |= {BEFORE.format(name): json.dumps(earlier) for name, earlier in before.items()}
    # The run no longer has the bits that the native engine makes for any number of threads.
    return tags | ({NATIVE_HASH: ""} if "engine" in before else {})


class _InProgressError(UserError):
    """Another process holds the run that is to be gone on with.

    Attributes:
        is_own: Whether it is the sweep's own run of this very job.
    """

    def __init__(self, run: tracking.RunRecord, *, is_own: bool) -> None:
        super().__init__(
            f"resume: run '{run.name}' ({run.run_id}) of this very config is in progress; "
            "wait for it, or stop it first"
        )
        self.is_own = is_own


def look_up(
    store: tracking.Store,
    config: Config,
    member: Membership | None,
    digest: str = "",
    say: Callable[[str], object] = print,
) -> tracking.RunRecord | Interrupted | None:
    """Return the finished run that has answered a config, or the interrupted one to go on with.

    A job of a sweep always looks for a run of its own sweep and number, because its launcher may
    start it a second time. With `resume=true`, any run of the same config counts. A finished run
    that has lost files is no answer: it is continued if enough is left of it, and otherwise marked
    FAILED. If another process still holds the sweep's own run of the job, it has up to
    `WAIT_SECONDS` to come to its end.

    Args:
        store: Where to look.
        config: A checked config.
        member: The job's place in a sweep, if it is in one.
        digest: The digest of the data; a run on other data is no answer. "": any.
        say: Takes a sentence on each finished run that has lost files.

    Raises:
        UserError: The run is in progress, in another process.
    """
    until = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return _look_up(store, config, member, digest, say)
        except _InProgressError as error:
            if not error.is_own or time.monotonic() >= until:
                raise
        time.sleep(ASK_AGAIN_SECONDS)


def _look_up(
    store: tracking.Store,
    config: Config,
    member: Membership | None,
    digest: str,
    say: Callable[[str], object],
) -> tracking.RunRecord | Interrupted | None:
    experiment = tracking.experiment_name(store, config.tracking.experiment)
    clear_half_removed(store.unfinished)
    runs = _runs(store, experiment, config, member, digest)
    finished = _whole(store, config, runs, say)
    if finished is not None:
        _clear(store, [run for run in runs if not _waits_for_its_search(run, member)])
        if member is not None:
            tag = tracking.member_tag(member.sweep)
            tracking.tag(store, finished.run_id, {tag: member.tags()[tag], **member.more})
        return finished
    found = _reclaimed(store, config, runs, member)
    if found is None and config.resume:
        found = _unknown(store, experiment, config)
    if found is None and member is not None:
        # A machine that was lost took the folder along; its run will not go on. A paused run of
        # another sweep may wait on another machine.
        _end(store, [run for run in runs if run.status == "RUNNING" or _is_of(run, member)])
    return found


def _runs(
    store: tracking.Store, experiment: str, config: Config, member: Membership | None, digest: str
) -> list[tracking.RunRecord]:
    """Return the runs that may answer a config, or be continued for it.

    A sweep's own runs of the job come first, then the newest.
    """

    def known(where: str) -> list[tracking.RunRecord]:
        return [
            run
            for run in tracking.known(store, experiment, f"{where} and tags.job = '{job}'")
            # A run that was made to be compared with another is no answer to anything else.
            if "reproduces" not in run.tags
            and (not digest or run.tags.get("data.digest", digest) == digest)
        ]

    job = config.job.name
    same = f"tags.`config.hash` = '{config.identity()}'"
    if member is not None and not config.resume:
        tag = tracking.member_tag(member.sweep)
        same += f" and tags.`{tag}` = '{member.tags()[tag]}'"
    runs = known(same)
    if config.resume and not any(run.status == "FINISHED" for run in runs):
        # The native engine makes the same bits whatever `trainer.threads` is.
        native = f"tags.`{NATIVE_HASH}` = '{config.native_identity()}' and tags.engine = 'native'"
        runs += known(f"{native} and attributes.status = 'FINISHED'")
    return runs if member is None else sorted(runs, key=lambda run: not _is_of(run, member))


def _is_of(run: tracking.RunRecord, member: Membership) -> bool:
    """Return whether a run is one of a sweep's own runs of a job."""
    tag = tracking.member_tag(member.sweep)
    return run.tags.get(tag) == member.tags()[tag]


def _whole(
    store: tracking.Store, config: Config, runs: Runs, say: Callable[[str], object]
) -> tracking.RunRecord | None:
    """Return the newest finished run that has all its files, and deal with those that have not.

    A run of the native engine with another number of threads has another identity. It answers the
    config, but cannot be continued with this number.
    """
    for run in runs:
        if run.status != "FINISHED":
            continue
        lost = tracking.damage(store, run.run_id)
        if not lost:
            return run
        then = "is finished again from what was kept of it"
        if _scratch_of(run, config) is None:
            tracking.disown(store, run.run_id, lost)
            then = "is marked FAILED, and trained again as a new run"
        say(f"Run '{run.name}' ({run.run_id}) {lost}. It {then}.")
    return None


def _clear(store: tracking.Store, runs: Runs) -> None:
    """Remove the folders of runs whose config is answered, and end those that seem to run."""
    for run in runs:
        folder = _scratch_of(run)
        # The store is told last that a run is finished, so it has all of it.
        if folder is not None and _remove(folder, delivered=run.status == "FINISHED"):
            _end(store, [run])


def _waits_for_its_search(run: tracking.RunRecord, member: Membership | None) -> bool:
    """Return whether a run is a paused trial of another search, which may promote it later."""
    is_own = member is not None and _is_of(run, member)
    return run.status == "PAUSED" and run.tags.get("role") == "trial" and not is_own


def _end(store: tracking.Store, runs: Runs) -> None:
    """Mark runs as KILLED that the store believes to be running, or paused, and nothing is left."""
    for run in runs:
        if run.status in ("RUNNING", "PAUSED"):
            tracking.end(store, run.run_id, "KILLED")


def _reclaimed(
    store: tracking.Store, config: Config, runs: Runs, member: Membership | None
) -> Interrupted | None:
    """Take over the newest run of a config whose folder is on this machine.

    Raises:
        UserError: The run is in progress, in another process.
    """
    for run in runs:
        folder = _scratch_of(run, config)
        if folder is None:
            continue
        scratch = Journal.reclaim(folder)
        if scratch is None:
            raise _InProgressError(run, is_own=member is not None and _is_of(run, member))
        if member is not None:
            tracking.tag(store, run.run_id, member.tags())
        return Interrupted(run.run_id, scratch, run.tags)
    return None


def _unknown(store: tracking.Store, experiment: str, config: Config) -> Interrupted | None:
    """Take over a folder of a config whose run the store has never known, or has forgotten."""
    for folder in folders_of(store.unfinished, config.identity()):
        scratch = _reclaim_if_idle(folder)
        if scratch is None:
            continue
        if not _is_known(store, experiment, owner(scratch.events())):
            return Interrupted("", scratch)
        scratch.release()
    return None


def supersede(store: tracking.Store, config: Config, member: Membership | None = None) -> None:
    """Remove what earlier, interrupted runs of a config have left, now that it is answered.

    The folder of a finished run that only waits for its delivery stays, and so does that of a trial
    which another search has paused.

    Args:
        store: The store of the run that has answered the config.
        config: A checked config.
        member: The place of that run in a sweep, if it is in one.
    """
    # The run that has answered the config is over, and kept whatever happens to the others.
    with suppress(UserError):
        here = tracking.experiment_name(store, config.tracking.experiment)
        for folder in folders_of(store.unfinished, config.identity()):
            events = read_events(folder)
            runs = [event for event in events if isinstance(event, Opened)]
            if not all(store.is_at(run.store) and run.experiment in (here, None) for run in runs):
                continue
            if runs and is_at_rest(events) and not is_finished(events):
                _remove_paused(store, here, folder, runs[-1].id, member)
            else:
                _remove(folder)


def _remove_paused(
    store: tracking.Store, experiment: str, folder: Path, run_id: str, member: Membership | None
) -> None:
    """Remove the scratch folder of a paused run, unless its search may go on with it."""
    known = tracking.known(store, experiment, f"attributes.run_id = '{run_id}'")
    if any(_waits_for_its_search(run, member) for run in known):
        return
    scratch = _reclaim_if_idle(folder)
    if scratch is None:
        return
    try:
        # A run without its state will not go on. A store that is away by now keeps its state.
        tracking.end(store, run_id, "KILLED")
    except UserError:
        scratch.release()
        raise
    scratch.remove()


def _reclaim_if_idle(folder: Path) -> Journal | None:
    """Take over a folder that no process holds."""
    return None if is_live(folder) else Journal.reclaim(folder)


def _remove(folder: Path, *, delivered: bool = False) -> bool:
    """Remove a scratch folder that no process holds, if nothing in it is still to be delivered."""
    scratch = _reclaim_if_idle(folder)
    if scratch is None:
        return False
    if not delivered and is_finished(scratch.events()):
        scratch.release()
        return False
    scratch.remove()
    return True


def _scratch_of(run: tracking.RunRecord, config: Config | None = None) -> Path | None:
    """Return a run's scratch folder, if it is on this machine and has not become another run's.

    Args:
        run: The run.
        config: The only config that the run may have; None: any.
    """
    folder = journal_at(run.tags.get("scratch", ""))
    if folder is None or (config and run.tags.get("config.hash") != config.identity()):
        return None
    # A folder is named after the config, on every machine, and its name is used again.
    known = owner(read_events(folder))
    if isinstance(known, Opened):
        return folder if known.id == run.run_id else None
    # A power cut may leave nothing but the name of a folder that was being removed.
    return folder if known is None or known.token == run.tags.get(TOKEN_TAG) else None


def _is_known(store: tracking.Store, experiment: str, known: Opened | Opening | None) -> bool:
    """Return whether a store has the run of a journal, whose `owner` is given."""
    if isinstance(known, Opening):
        return bool(tracking.known(store, experiment, f"tags.`{TOKEN_TAG}` = '{known.token}'"))
    if known is None:
        return False
    if not store.is_at(known.store or store.uri) or known.experiment not in (experiment, None):
        return True
    return tracking.exists(store, known.id)
