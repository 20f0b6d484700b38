"""`delete`, `restore` and `move`: runs removed, brought back, and taken to another store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from fmnist_lab import tracking
from fmnist_lab.errors import UserError, reported
from fmnist_lab.texts import counted, in_bytes
from fmnist_lab.tracking import moving, removal

Store = str | None
COPY = "--copy copies it and leaves it there"


def delete(
    *runs: str,
    store: Store = None,
    for_good: bool = False,
    anyway: bool = False,
) -> None:
    """Put runs into MLflow's trash, a sweep with its runs; `runs restore` brings them back.

    A run that another sweep needs as well stays. So does a run in progress, or one whose model is
    registered, and then nothing is deleted.

    Args:
        runs: Runs and sweeps: ids, beginnings of ids, or names. With --for-good they may be in the
            trash already.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        for_good: Remove them with their files and models, and free the disk; it cannot be undone.
        anyway: Delete runs whose models are registered, too.
    """
    with reported():
        place = _located(store, runs)
        if for_good and place.database is None and place.uri.startswith("http"):
            raise UserError(
                f"--for-good: received for the server {place.uri}, which removes nothing for good "
                "when a client asks; delete the runs without it, and have the server's owner run "
                "`mlflow gc`"
            )
        active, trashed = [], []
        for word in runs:
            try:
                active.append(tracking.look_up(place, word))
            except UserError:
                if not for_good:
                    raise
                trashed.append(tracking.look_up(place, word, deleted=True))
        found, _, kept = removal.with_members(place, active)
        old, _, more = removal.with_members(place, trashed, deleted=True)
        allowed = {} if anyway else {"registered": "--anyway deletes it all the same"}
        _check(place, [*found, *old], allowed)
        freed = removal.size([*found, *old], place) if for_good else 0
        removal.delete(place, found)
        if for_good:
            left = removal.purge(place, [*found, *old])
            print(f"{counted(len(found) + len(old), 'run')} removed, {in_bytes(freed)} freed.")
            for folder in left:
                print(f"The folder {folder} was left: it is none that a store makes for a run.")
        else:
            print(f"{counted(len(found), 'run')} deleted; to bring back:")
            words = [each.run_id for each in active]
            print(f"  {place.command('runs', 'restore', *words)}")
        _tell(kept + more)


def restore(*runs: str, store: Store = None) -> None:
    """Bring runs back from MLflow's trash, a sweep with its runs.

    Args:
        runs: Deleted runs and sweeps: ids, beginnings of ids, or names.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
    """
    with reported():
        place = _located(store, runs)
        named = [tracking.look_up(place, word, deleted=True) for word in runs]
        found, _, _ = removal.with_members(place, named, deleted=True, shared=True)
        removal.restore(place, found)
        print(f"{counted(len(found), 'run')} restored.")


def move(
    *runs: str,
    to: Annotated[str, Parameter(name="--to")],
    store: Store = None,
    copy: bool = False,
) -> None:
    """Move runs to another store, a sweep with its runs: metrics, files, models and all.

    Each copy is compared with its original, and only when all are the same are the originals put
    into the trash. A command that was broken off can be repeated. Runs have new ids there; the tag
    moved.from is the old one.

    Args:
        runs: Runs and sweeps: ids, beginnings of ids, or names.
        to: The tracking URI of the other store, such as sqlite:///archive/mlflow.db or a server's.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        copy: Leave the originals where they are.
    """
    with reported():
        place, target = _located(store, runs), tracking.Store.locate(to)
        if target.uri == place.uri:
            raise UserError(f"--to: received {to}, which is the store that the runs are in already")
        named = [tracking.look_up(place, word) for word in runs]
        found, shared, kept = removal.with_members(place, named)
        _check(place, found, {} if copy else dict.fromkeys(("registered", "unfinished"), COPY))
        _check(place, shared, {})
        experiments = {each.experiment_id: each.experiment for each in named}
        ids: dict[str, str] = {}
        everything = [*found, *shared]
        for number, run in enumerate(everything, 1):
            new = moving.copy(place, target, run, experiments[run.info.experiment_id], ids)
            name = tracking.name_of(run)
            print(f"{number}/{len(everything)}  {name}, {run.info.run_id[:8]} is {new}", flush=True)
        total = counted(len(everything), "run")
        print(f"{total} copied to {target.uri}; each is like its original.")
        if not copy:
            removal.delete(place, found)
            words = [each.run_id for each in named]
            print(
                "The originals are in the trash; to bring them back, or to free the disk:\n"
                f"  {place.command('runs', 'restore', *words)}\n"
                f"  {place.command('runs', 'delete', '--for-good', *words)}"
            )
            _tell(kept)


def _located(store: Store, runs: Sequence[str]) -> tracking.Store:
    if not runs:
        raise UserError("received no run, expected ids or names; runs list shows them")
    return tracking.Store.locate(store, for_writing=False)


def _check(store: tracking.Store, runs: Sequence[Any], besides: Mapping[str, str]) -> None:
    """Refuse runs that are in progress, or that may not be taken away for another reason.

    Args:
        store: The store.
        runs: Runs of MLflow's.
        besides: What can be done about a run that stays, by the kind of its reason.

    Raises:
        UserError: One of the runs stays.
    """
    for each in removal.in_use(store, runs):
        if each.kind == "live" or each.kind in besides:
            mend = f"; {besides[each.kind]}" if each.kind in besides else ""
            raise UserError(f"run '{each.name}' ({each.run_id}) stays: {each.reason}{mend}")


def _tell(kept: Sequence[removal.Kept]) -> None:
    """Say which runs stay, and why."""
    for each in kept:
        print(f"Run '{each.name}' ({each.run_id}) stays: {each.reason}.")
