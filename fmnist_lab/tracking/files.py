"""A run's files on this machine: synced before the run is finished, and checked later.

A server syncs its own files, which this machine does not see.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from fmnist_lab.system import durable
from fmnist_lab.tracking.client import asking
from fmnist_lab.tracking.query import RUNS_AT_ONCE
from fmnist_lab.tracking.store import Store

# The tag of a run with the fingerprints of its files, by path from its artifact folder.
FILES_TAG = "files"
# The kinds of files that a run keeps, none of which is ever empty.
KINDS = (".yaml", ".json", ".npz", ".png")
# MLflow may have made so many folders above `artifacts`: mlruns/NAME/models/ID/artifacts.
ABOVE = 4


def settle(client: Any, run_id: str, names: Iterable[str]) -> None:
    """Sync all files of a run on this machine, and note their fingerprints with the run.

    Args:
        client: MLflow's client of the store.
        run_id: The run, whose files are all there.
        names: The run's files, by path from its artifact folder.

    Raises:
        OSError: The disk is full or failing, or one of the files is not there.
    """
    run = client.get_run(run_id)
    folder = durable.local_path(run.info.artifact_uri)
    if folder is None:
        return
    files = [folder / name for name in names]
    if folder.exists():
        durable.sync_tree(folder, ABOVE)
    for model in _models(client, run):
        durable.sync_tree(model, ABOVE)
        files += _files(model)
    noted = {os.path.relpath(file, folder): durable.fingerprint(file) for file in files}
    client.set_tag(run_id, FILES_TAG, json.dumps(noted, sort_keys=True))


def sync_store(store: Store) -> None:
    """Sync the end of a store's last transaction.

    SQLite syncs its database, but not the removal of its own journal, which ends a transaction; a
    power cut may bring the journal back.
    """
    if store.database is not None:
        durable.sync_folder(store.database.parent)


def damage(store: Store, run_id: str, *, thorough: bool = True, model_alone: bool = False) -> str:
    """Return what is wrong with the files of a finished run, as far as this machine sees them.

    Args:
        store: The store.
        run_id: The run.
        thorough: Whether to read all of the files, not only their sizes.
        model_alone: Whether to look at the files of its model alone.

    Returns:
        A sentence without its subject, such as "has lost files: config.yaml is empty"; "" if
        nothing is wrong.
    """
    with asking(store) as client:
        run = client.get_run(run_id)
        # Any client of the store can make a run that calls itself a training.
        if model_alone and not _ready(client, run):
            return "has no model"
        return _damage(client, run, thorough, model_alone)


def damaged(store: Store, experiment: str, run_ids: Sequence[str]) -> set[str]:
    """Return which of an experiment's finished runs have lost files, by their names and sizes.

    Args:
        store: The store.
        experiment: The experiment's name.
        run_ids: The runs.
    """
    found = set()
    with asking(store) as client:
        experiment_id = client.get_experiment_by_name(experiment).experiment_id
        for start in range(0, len(run_ids), RUNS_AT_ONCE):
            some = ", ".join(f"'{run_id}'" for run_id in run_ids[start:][:RUNS_AT_ONCE])
            runs = client.search_runs([experiment_id], f"attributes.run_id IN ({some})")
            found |= {run.info.run_id for run in runs if _damage(client, run, thorough=False)}
    return found


def _damage(client: Any, run: Any, thorough: bool, model_alone: bool = False) -> str:
    folder = _folder_here(run.info.artifact_uri)
    if folder is None:
        return ""
    expected: Mapping[str, str] = _noted(run.data.tags.get(FILES_TAG, ""), folder)
    if not expected:
        # The run is of an earlier version, which noted no fingerprints.
        files = sorted(file for file in folder.glob("*") if file.suffix in KINDS)
        for model in _models(client, run):
            files += _essential(model)
        expected = {os.path.relpath(file, folder): "" for file in files}
    if model_alone:
        expected = {name: each for name, each in expected.items() if _shown(name) != name}
    wrong = list(_wrong(folder, expected, thorough))
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return f"has lost files: {wrong[0]}{more}" if wrong else ""


def has_lost_files(artifacts: str, noted: str) -> bool:
    """Return whether files of a run are gone or have another size, as far as this machine sees it.

    Args:
        artifacts: The URI of the run's folder.
        noted: The run's tag `FILES_TAG`; "" if it has none, as a run of an earlier version.
    """
    folder = _folder_here(artifacts)
    if folder is None:
        return False
    return any(_wrong(folder, _noted(noted, folder), thorough=False))


def _folder_here(artifacts: str) -> Path | None:
    """Return a run's folder; None if the store has come from another machine without it."""
    folder = durable.local_path(artifacts)
    if folder is None or len(folder.parents) < 2 or not folder.parents[1].is_dir():
        return None
    return folder


def _wrong(folder: Path, expected: Mapping[str, str], thorough: bool) -> Iterator[str]:
    for name, fingerprint in expected.items():
        if problem := durable.damage(folder / name, fingerprint, thorough=thorough):
            yield f"{_shown(name)} {problem}"


def disown(store: Store, run_id: str, lost: str) -> None:
    """Mark a finished run and its models as FAILED, because the run has lost files.

    Args:
        store: The store.
        run_id: The run.
        lost: What `damage` says of it.
    """
    with asking(store) as client:
        run = client.get_run(run_id)
        for model in _ready(client, run):
            client.finalize_logged_model(model.model_id, "FAILED")
        client.set_tag(run_id, "failure", lost)
        client.set_terminated(run_id, "FAILED", run.info.end_time)


def model_damage(folder: Path) -> str:
    """Return which file of a model's folder a power cut has damaged; "" if none."""
    for file in _essential(folder):
        if problem := durable.damage(file):
            return f"its file {file.relative_to(folder)} {problem}"
    return ""


def _essential(model: Path) -> list[Path]:
    """Return the files that a model cannot do without."""
    return [model / "MLmodel", *sorted(model.glob("data/*.keras"))]


def _noted(tag: str, folder: Path) -> dict[str, str]:
    """Return the fingerprints that a tag notes of a run's files, but for files elsewhere."""
    try:
        noted = dict(json.loads(tag or "{}"))
    except (TypeError, ValueError, RecursionError):
        return {}
    inside = os.path.normpath(folder.parents[1])
    return {
        name: str(fingerprint)
        for name, fingerprint in noted.items()
        if PurePath(os.path.normpath(folder / name)).is_relative_to(inside)
    }


def _models(client: Any, run: Any) -> list[Path]:
    """Return the folders of a run's models that the store calls READY."""
    folders = (durable.local_path(model.artifact_location) for model in _ready(client, run))
    return [folder for folder in folders if folder is not None and folder.is_dir()]


def is_own(folder: Path, name: str) -> bool:
    """Return whether a folder is one that a store makes for the files of a run or of a model.

    Args:
        folder: The folder, which anyone may have written into the database.
        name: The id of the run or the model.
    """
    return (folder.parent.name, folder.name) == (name, "artifacts") and not folder.is_symlink()


def models_of(client: Any, run: Any) -> list[Any]:
    """Return the models of a run, as MLflow has them.

    Args:
        client: MLflow's client of the store.
        run: MLflow's run.
    """
    ours = f"source_run_id = '{run.info.run_id}'"
    return list(client.search_logged_models([run.info.experiment_id], ours))


def _ready(client: Any, run: Any) -> list[Any]:
    return [model for model in models_of(client, run) if model.status == "READY"]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _shown(name: str) -> str:
    """Return a noted path as a person knows it: a model's folder is beside the run's."""
    inside = name.rpartition("/artifacts/")[2]
    return name if inside == name else f"model/{inside}"
