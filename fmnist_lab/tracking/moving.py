"""Runs copied into another store and compared there, value by value and file by file.

A copy that was broken off can be repeated: each run of the other store bears the id of its original
as a tag, and what is there already is not doubled.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import yaml

from fmnist_lab.errors import UserError
from fmnist_lab.system import durable
from fmnist_lab.tracking import bounds, query
from fmnist_lab.tracking.client import asking, download
from fmnist_lab.tracking.files import FILES_TAG, is_own, models_of, settle, sync_store
from fmnist_lab.tracking.orphans import PROCESS_TAG
from fmnist_lab.tracking.store import Store

MOVED_TAG = "moved.from"  # the id of the original
# What is true of the original alone: the fingerprints of its files, where it came from itself, its
# process, its journal.
OWN_TAGS = (FILES_TAG, MOVED_TAG, PROCESS_TAG, "scratch")
MOST_METRICS, MOST_PARAMS = 800, 100  # in one call
PARENT_TAG = "mlflow.parentRunId"
DESCRIPTION = "MLmodel"
# The lines of a model's description that say whose it is and where.
WHOSE = ("run_id", "model_id", "model_uuid", "artifact_path")


def copy(source: Store, target: Store, run: Any, experiment: str, ids: dict[str, str]) -> str:
    """Copy a run with its metrics, files and models, and compare the copy with the original.

    Args:
        source: The store of the run.
        target: The store that takes the copy; it is made if it is not there.
        run: The run, MLflow's, which has ended. Its sweep was copied before.
        experiment: The name of the run's experiment, which the copy belongs to as well.
        ids: The ids of the copies by those of their originals; takes this one.

    Returns:
        The id of the copy.

    Raises:
        UserError: A store cannot be used, or the copy differs from its original.
    """
    place = target.open(experiment)
    with asking(target) as client:
        new = _begin(client, place, run)
    ids[run.info.run_id] = new
    _copy_values(source, target, run, ids)
    with _files_of(source, run) as files, asking(target) as client:
        if any(files.iterdir()):
            client.log_artifacts(new, str(files))
    for model in _models(source, run.info.run_id):
        _copy_model(source, target, model, new)
    if difference := _difference(source, target, run, ids):
        raise UserError(
            f"run '{query.name_of(run)}' ({run.info.run_id}) was copied to {target.uri}, but "
            f"{difference}; nothing was removed, and the same command copies it again"
        )
    with asking(target) as client:
        copied = client.get_run(new).info
        here = durable.local_path(copied.artifact_uri)
        names = _digests(here) if here and here.is_dir() else ()
        settle(client, new, names)
        client.set_terminated(new, run.info.status, run.info.end_time)
        sync_store(target)
    return new


def _begin(client: Any, experiment_id: str, run: Any) -> str:
    """Return the id of a run's copy, which an earlier command may have begun."""
    ours = f"tags.`{MOVED_TAG}` = '{run.info.run_id}'"
    for found in query.search(client, [experiment_id], ours, page=1):
        return str(found.info.run_id)
    tags = {MOVED_TAG: run.info.run_id}
    made = client.create_run(experiment_id, run.info.start_time, tags, run.info.run_name)
    return str(made.info.run_id)


def _copy_values(source: Store, target: Store, run: Any, ids: Mapping[str, str]) -> None:
    """Copy params, tags, the history of each metric, and what the run says of its data."""
    from mlflow.entities import Metric, Param, RunTag

    new = ids[run.info.run_id]
    points = [
        Metric(point.key, point.value, point.timestamp, point.step)
        for history in _histories(source, run).values()
        for point in history
    ]
    params = [Param(name, value) for name, value in run.data.params.items()]
    tags = [RunTag(name, value) for name, value in _tags(run, ids).items()]
    with asking(target) as client:
        for start in range(0, len(params), MOST_PARAMS):
            client.log_batch(new, params=params[start:][:MOST_PARAMS])
        for start in range(0, len(tags), MOST_PARAMS):
            client.log_batch(new, tags=tags[start:][:MOST_PARAMS])
        for start in range(0, len(points), MOST_METRICS):
            client.log_batch(new, metrics=points[start:][:MOST_METRICS])
        if run.inputs.dataset_inputs:
            client.log_inputs(new, run.inputs.dataset_inputs)


def _tags(run: Any, ids: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a run's copy: ids of runs that were copied become those of their copies.

    A run whose sweep was not copied becomes a run of its own.
    """
    found = {}
    for name, value in run.data.tags.items():
        sweep = name.removeprefix(query.SWEEP_TAG)
        if name in OWN_TAGS or (name == PARENT_TAG and value not in ids):
            continue
        if sweep != name and query.is_id(sweep):
            if sweep in ids:
                found[query.member_tag(ids[sweep])] = value
        else:
            found[name] = ids.get(value, value)
    return found


def _histories(store: Store, run: Any) -> dict[str, list[Any]]:
    """Return the points of each metric of a run."""
    with asking(store) as client:
        return {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}


def _files_of(store: Store, run: Any) -> AbstractContextManager[Path]:
    """Return a context with a folder that holds the files of a run."""
    may_lack = FILES_TAG not in run.data.tags
    return _files(store, run.info.artifact_uri, run.info.run_id, may_lack=may_lack)


def _files_of_model(store: Store, model: Any) -> AbstractContextManager[Path]:
    """Return a context with a folder that holds the files of a model."""
    return _files(store, model.artifact_location, model.model_id)


@contextmanager
def _files(store: Store, uri: str, name: str, *, may_lack: bool = False) -> Iterator[Path]:
    """Yield a folder with the files of a run or of a model: their own, or one with copies.

    Args:
        store: The store.
        uri: Where the store says that they are.
        name: The id of the run or the model.
        may_lack: Whether there need not be any, as of a run that has kept no files.

    Raises:
        UserError: They are not there, or in a folder that is not the run's or the model's own.
    """
    here = durable.local_path(uri)
    if here is None:
        with tempfile.TemporaryDirectory() as folder:
            with asking(store):
                place = download(uri, folder)
            yield place
    elif here.is_dir() and is_own(here, name):
        yield here
    elif here.exists() or not may_lack:
        problem = "is no folder of its own" if here.exists() else "is not here"
        raise UserError(f"the files of {name} cannot be copied: {here} {problem}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def _models(store: Store, run_id: str) -> list[Any]:
    """Return the READY models of a run."""
    with asking(store) as client:
        found = models_of(client, client.get_run(run_id))
    return [model for model in found if model.status == "READY"]


def _copy_model(source: Store, target: Store, model: Any, new: str) -> None:
    """Copy a model of a run, unless its copy is READY; what was broken off is removed."""
    from mlflow.entities import LoggedModelOutput, Metric

    with asking(target) as client:
        run = client.get_run(new)
        for found in models_of(client, run):
            if found.tags.get(MOVED_TAG) != model.model_id:
                continue
            if found.status == "READY":
                return
            client.delete_logged_model(found.model_id)
        made = client.create_logged_model(
            run.info.experiment_id,
            model.name,
            source_run_id=new,
            tags={MOVED_TAG: model.model_id},
            params=model.params,
            model_type=model.model_type,
        )
    with _files_of_model(source, model) as files, tempfile.TemporaryDirectory() as own:
        folder = Path(own) / "model"
        shutil.copytree(files, folder)
        described = _description(folder)
        described |= {
            name: value
            for name, value in {
                "run_id": new,
                "model_id": made.model_id,
                "model_uuid": made.model_id,
                "artifact_path": made.artifact_location,
            }.items()
            if name in described
        }
        text = yaml.safe_dump(described, sort_keys=False)
        (folder / DESCRIPTION).write_text(text, encoding="utf-8")
        with asking(target) as client:
            client.log_model_artifacts(made.model_id, str(folder))
            steps = [point.step for point in model.metrics or []]
            client.log_outputs(new, [LoggedModelOutput(made.model_id, max(steps, default=0))])
            client.log_batch(
                new,
                [
                    Metric(each.key, each.value, each.timestamp, each.step, model_id=made.model_id)
                    for each in model.metrics or []
                ],
            )
            client.finalize_logged_model(made.model_id, "READY")


def _description(folder: Path) -> dict[str, Any]:
    """Return what a model's MLmodel says, as plain values."""
    file = folder / DESCRIPTION
    if not file.is_file():
        return {}
    text = file.read_bytes()
    bounds.check_yaml(text)
    return dict(yaml.safe_load(text) or {})


def _digests(folder: Path) -> dict[str, str]:
    """Return size and hash of each file below a folder, by its path from there."""
    return {
        file.relative_to(folder).as_posix(): durable.fingerprint(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _difference(source: Store, target: Store, run: Any, ids: Mapping[str, str]) -> str:
    """Return in what a copy differs from its original, as the end of a sentence; "" in nothing."""
    with asking(target) as client:
        copied = client.get_run(ids[run.info.run_id])
    if copied.data.params != run.data.params:
        return "its params differ"
    if not _tags(run, ids).items() <= copied.data.tags.items():
        return "its tags differ"
    old, new = _histories(source, run), _histories(target, copied)
    if {name: _points(each) for name, each in old.items()} != {
        name: _points(each) for name, each in new.items()
    }:
        return "its metrics differ"
    used = [each.dataset.digest for each in run.inputs.dataset_inputs]
    if used != [each.dataset.digest for each in copied.inputs.dataset_inputs]:
        return "its data set differs"
    with _files_of(source, run) as before, _files_of(target, copied) as after:
        if wrong := _other_file(before, after):
            return f"its file {wrong} differs"
    copies = {each.tags.get(MOVED_TAG): each for each in _models(target, copied.info.run_id)}
    for model in _models(source, run.info.run_id):
        if model.model_id not in copies:
            return "its model is missing"
        copy_of = _files_of_model(target, copies[model.model_id])
        with _files_of_model(source, model) as before, copy_of as after:
            if wrong := _other_file(before, after):
                return f"its model's file {wrong} differs"
    return ""


def _points(history: Sequence[Any]) -> list[tuple[int, int, str]]:
    """Return the points of a metric, without those that a store has twice; NaN equals itself."""
    return sorted({(point.step, point.timestamp, repr(point.value)) for point in history})


def _other_file(original: Path, copied: Path) -> str:
    """Return the first file of a folder that another folder has not got; "" if there is none."""
    before, after = (_digests(folder) for folder in (original, copied))
    differing = {name for name, digest in before.items() if after.get(name) != digest}
    if DESCRIPTION in differing:
        pair = [_description(folder) for folder in (original, copied)]
        if len({yaml.safe_dump(dict(each) | dict.fromkeys(WHOSE, "")) for each in pair}) == 1:
            differing.remove(DESCRIPTION)
    return min(differing, default="")
