"""The beginning of a sweep: its plan is checked, its parent run opened and its folder found."""

from __future__ import annotations

import errno
import json
import re
import shlex
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hydra.core.plugins import Plugins
from omegaconf import DictConfig, read_write

from fmnist_lab import tracking
from fmnist_lab.config.overrides import quoted
from fmnist_lab.errors import UserError
from fmnist_lab.sweep.launchers import base
from fmnist_lab.sweep.plan import Checked, Identities, Plan, check, identities, plan
from fmnist_lab.sweep.search.control import Search
from fmnist_lab.sweep.search.trials import LOG
from fmnist_lab.system import cache, provenance
from fmnist_lab.texts import line

if TYPE_CHECKING:
    from fmnist_lab.tracking import SweepRun


CODE_TAG = "code.version"  # of a sweep: that of the code which it was begun with


def checked_plan(config: DictConfig) -> tuple[Plan, list[Checked], Search | None]:
    """Take a sweep apart, and check its jobs and its launcher; nothing is begun.

    Args:
        config: The composed sweep.

    Returns:
        Its plan, the jobs that were checked, and the search that it is, if it is one.

    Raises:
        UserError: The sweep cannot be done.
    """
    for part in ("launcher", "sweeper"):
        if not config.hydra[part]:
            raise UserError(f"hydra.{part}: received null, expected hydra/{part}=basic")
    search = Search.of(config)
    planned = search.plan if search else plan(config)
    checked = check(config, search.probes if search else planned)
    if search:
        search.check(checked)
    base.prepare(config.hydra.launcher, checked[0].config.tracking)
    for part in ("launcher", "sweeper"):
        target = config.hydra[part]._target_
        if target not in Plugins.instance().class_name_to_class:
            raise UserError(
                f"hydra.{part}._target_: received {target}, expected a plugin of Hydra that is "
                f"installed; for example hydra/{part}=basic"
            )
    return planned, checked, search


class OpenedSweep(NamedTuple):
    """The place of a sweep's results.

    Attributes:
        parent: Its parent run; None if nothing is kept.
        folder: Takes its files.
        code: The version of the code that it was begun with.
        note: A sentence for the user before the first job begins, or "".
    """

    parent: SweepRun | None
    folder: Path
    code: str
    note: str = ""


def opened(
    config: DictConfig,
    planned: Plan,
    checked: list[Checked],
    search: Search | None,
    *,
    name: str,
    here: bool,
) -> OpenedSweep:
    """Open the parent run of a sweep.

    Args:
        config: The composed sweep; its folder is another one where this one cannot be written.
        planned: Its plan.
        checked: The jobs that were checked.
        search: The search that it is, if it is one.
        name: The sweep's name.
        here: True if this process and its children do all jobs.

    Raises:
        UserError: The store cannot be used, or the search's log is missing.
    """
    tracked, code = checked[0].config.tracking, provenance.code_version()
    if tracked.kind == "none":
        folder = Path(tempfile.mkdtemp(prefix="fmnist_lab-sweep-"))
        _have_a_folder(config, folder)
        return OpenedSweep(None, folder, code)
    store = tracking.Store.locate(tracked.uri)
    _have_a_folder(config, store.unfinished.with_name("hydra"))
    tags = _tags(planned, search, code)
    resume = config.get("resume")
    # Done while there is no parent run yet, which a signal would leave open.
    known = resume is False and search is None
    hashes = identities(config, planned, checked) if known else []
    place = Path(str(config.hydra.sweep.dir)).absolute()
    experiment = tracking.experiment_name(store, tracked.experiment)

    def check_log(run_id: str, earlier: Mapping[str, str]) -> None:
        if tracking.known(store, experiment, tracking.members_of(run_id)):
            _check_log(place / run_id, earlier)

    parent = tracking.SweepRun.open(
        store,
        tracked.experiment,
        name,
        tags,
        resume=bool(resume),
        here=here,
        check=check_log if search else None,
    )
    note = finished_before(parent, hashes, len(planned.jobs)) if hashes else ""
    folder = place / parent.id
    if parent.continued:
        code = tracking.facts(store, parent.id)["tags"].get(CODE_TAG, code)
    if search:
        found_at = {tracking.FOLDER_TAG: str(folder), "host": tags["host"]}
        tracking.tag(store, parent.id, found_at)
    return OpenedSweep(parent, folder, code, note)


def _tags(planned: Plan, search: Search | None, code: str) -> dict[str, str]:
    """Return the tags of a sweep's parent run."""
    return {
        **provenance.tags(),
        "job": "sweep",
        "sweep.command": provenance.command(),
        "sweep.axes": json.dumps(list(planned.axes)),
        "sweep.jobs": str(search.total if search else len(planned.jobs)),
        "sweep.hash": planned.hash,
        CODE_TAG: code,
        **(search.tags() if search else {}),
    }


def _check_log(folder: Path, tags: Mapping[str, str]) -> None:
    """Refuse to go on with a search without the log of its trials.

    Args:
        folder: Where this command looks for the log.
        tags: Those of the search's parent run.

    Raises:
        UserError: The log is not there, or is empty.
    """
    if (file := folder / LOG).exists() and file.stat().st_size:
        return
    was, host = line(tags.get(tracking.FOLDER_TAG)), line(tags.get("host"))
    where = f"expected it in {was or 'mlruns/hydra below the folder that it was begun in'}"
    again = "repeat the command there"
    if host not in ("", socket.gethostname()):
        where += f" on {host}"
    elif was == str(folder):
        again = "put it back"
    elif was:
        above = str(Path(was).parent)
        plain = re.fullmatch(r"[\w./-]+", above)
        again = f"add {shlex.quote(f'hydra.sweep.dir={above if plain else quoted(above)}')}"
    raise UserError(
        f"resume: the log of the trials of this search is not in {folder}, {where}; {again}, or "
        "leave out resume=true to begin another search"
    )


def finished_before(parent: SweepRun, hashes: Identities, jobs: int) -> str:
    """Return a sentence on the jobs that have finished before; "" if none has.

    Args:
        parent: The sweep's parent run.
        hashes: The identities of the jobs.
        jobs: The number of jobs.
    """
    try:
        found, all_asked = tracking.finished(parent.store, parent.experiment_id, hashes)
    except Exception:
        return ""  # The sweep can do without it.
    count = sum(not found.isdisjoint(each) for each in hashes)
    if not count:
        return ""
    least = "" if all_asked and len(hashes) == jobs else "at least "
    have = "has" if count == 1 else "have"
    return (
        f"{least}{count:,} of these {jobs:,} jobs {have} finished before: resume=true takes over "
        "their results instead of training them again"
    )


def _have_a_folder(config: DictConfig, other: Path) -> None:
    """Have Hydra keep a sweep's files in another folder if the working folder is read-only."""
    usual = Path(str(config.hydra.sweep.dir))
    if usual.is_absolute():
        return
    try:
        cache.make(usual)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        with read_write(config.hydra):
            config.hydra.sweep.dir = str(other)
            # Each job's config is composed again, with these overrides.
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(str(other))}")
