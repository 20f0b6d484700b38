"""Runs that are put into MLflow's trash, brought back from there, and removed for good."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fmnist_lab import compat
from fmnist_lab.system import durable
from fmnist_lab.tracking import query
from fmnist_lab.tracking.client import client_of
from fmnist_lab.tracking.failures import asks
from fmnist_lab.tracking.files import is_own, models_of
from fmnist_lab.tracking.journal import is_live, journal_at
from fmnist_lab.tracking.orphans import is_going_on
from fmnist_lab.tracking.store import Store


@dataclass(frozen=True)
class Kept:
    """A run that stays where it is.

    Attributes:
        run_id: The run's id.
        name: The run's name.
        reason: Why, as the end of a sentence.
        kind: "live", "registered", "unfinished" or "shared".
    """

    run_id: str
    name: str
    reason: str
    kind: str = "shared"


@asks
def with_members(
    store: Store, named: Sequence[query.RunRef], *, deleted: bool = False, shared: bool = False
) -> tuple[list[Any], list[Any], list[Kept]]:
    """Return runs of MLflow's: those that were named, and the runs that their sweeps have.

    Args:
        store: The store.
        named: Runs and sweeps.
        deleted: Whether to look into the trash.
        shared: Whether runs that other sweeps have as well count like the others.

    Returns:
        The runs, each sweep before its members; without `shared`, the members that another sweep
        needs; and these once more, with the reason.

    Raises:
        UserError: The store cannot be asked.
    """
    client = client_of(store)
    found = {each.run_id: client.get_run(each.run_id) for each in named}
    sweeps = {each.run_id: each for each in named if each.job == "sweep"}
    needed: dict[str, Any] = {}
    kept = []
    for sweep in sweeps.values():
        members = query.search(
            client, [sweep.experiment_id], query.members_of(sweep.run_id), deleted=deleted
        )
        for run in members:
            run_id = run.info.run_id
            others = _active(client, _sweeps_of(run) - sweeps.keys())
            if run_id in found or run_id in needed:
                continue
            if shared or not others:
                found[run_id] = run
                continue
            needed[run_id] = run
            reason = f"it answers another sweep as well, {others[0]}"
            kept.append(Kept(run_id, query.name_of(run), reason))
    return list(found.values()), list(needed.values()), kept


def _active(client: Any, sweeps: Iterable[str]) -> list[str]:
    """Return the sweeps that are in the store and not in its trash, sorted."""
    wanted = sorted(sweeps)
    known = {}
    for each in wanted:
        with suppress(Exception):
            known[each] = client.get_run(each).info.lifecycle_stage
    return [each for each in wanted if known.get(each) == "active"]


def _sweeps_of(run: Any) -> set[str]:
    """Return the sweeps that a run of MLflow's answers."""
    prefix = query.SWEEP_TAG
    ids = {tag.removeprefix(prefix) for tag, value in run.data.tags.items() if value}
    return {each for each in ids if query.is_id(each)}


@asks
def in_use(store: Store, runs: Iterable[Any]) -> list[Kept]:
    """Return the runs that somebody still needs where they are, and why.

    Args:
        store: The store.
        runs: Runs of MLflow's.

    Returns:
        The runs that are in progress, that `resume=true` could go on with, or whose models are
        registered.
    """
    client = client_of(store)
    found = []
    for run in runs:
        journal = journal_at(run.data.tags.get("scratch") or "")
        here = journal is not None and journal.is_dir()
        if (journal and is_live(journal)) or is_going_on(run):
            kind, reason = "live", "it is in progress; stop it first"
        elif versions := client.search_model_versions(f"run_id = '{run.info.run_id}'"):
            first = f"{versions[0].name}, version {versions[0].version}"
            kind, reason = "registered", f"its model is registered as {first}"
        elif here:
            kind, reason = "unfinished", "it is unfinished; finish it with resume=true first"
        else:
            continue
        found.append(Kept(run.info.run_id, query.name_of(run), reason, kind))
    return found


@asks
def delete(store: Store, runs: Sequence[Any]) -> None:
    """Put runs into MLflow's trash, the members of a sweep before the sweep.

    Args:
        store: The store.
        runs: Runs of MLflow's, each sweep before its members.
    """
    client = client_of(store)
    for run in reversed(runs):
        client.delete_run(run.info.run_id)


@asks
def restore(store: Store, runs: Sequence[Any]) -> None:
    """Bring runs back from MLflow's trash.

    Args:
        store: The store.
        runs: Runs of MLflow's.
    """
    client = client_of(store)
    for run in runs:
        client.restore_run(run.info.run_id)


def size(runs: Iterable[Any], store: Store) -> int:
    """Return how many bytes the files of runs take on this machine.

    Args:
        runs: Runs of MLflow's.
        store: Their store.
    """
    client = client_of(store)
    total = 0
    for run in runs:
        places = {run.info.artifact_uri: run.info.run_id}
        places |= {each.artifact_location: each.model_id for each in models_of(client, run)}
        for uri, name in places.items():
            folder = durable.local_path(uri)
            if folder is not None and is_own(folder, name):
                total += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return total


@asks
def purge(store: Store, runs: Sequence[Any]) -> list[str]:
    """Remove runs that are in the trash for good, with their models and files.

    MLflow's own `mlflow gc` would empty the trash of experiments as well.

    Args:
        store: A database; a server removes nothing for good when a client asks.
        runs: Runs of MLflow's.

    Returns:
        The folders that were left, because they are not those that a store makes for a run: anyone
        may have written their names into the database.
    """
    client = client_of(store)
    left = []
    for run in runs:
        for model in models_of(client, run):
            client.delete_logged_model(model.model_id)
            left += _remove_files(model.artifact_location, model.model_id)
            compat.remove_for_good(client, model_id=model.model_id)
        # Its files go first: without its row nobody would find them.
        left += _remove_files(run.info.artifact_uri, run.info.run_id)
        journal = journal_at(run.data.tags.get("scratch") or "")
        if journal is not None:
            shutil.rmtree(journal, ignore_errors=True)
        compat.remove_for_good(client, run_id=run.info.run_id)
    return left


def _remove_files(uri: str, name: str) -> list[str]:
    """Remove the files below a URI, and return the folder if it has to be left."""
    folder = durable.local_path(uri)
    if folder is None:
        compat.artifacts_at(uri).delete_artifacts()
    elif not is_own(folder, name):
        return [str(folder)]
    else:
        shutil.rmtree(folder.parent, ignore_errors=True)
    return []
