"""The model that a person names: a run's, a registered one, a folder, a file, or the best one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fmnist_lab.errors import UserError
from fmnist_lab.texts import NAME_LENGTH, line
from fmnist_lab.tracking.client import asking
from fmnist_lab.tracking.files import damage, models_of
from fmnist_lab.tracking.query import (
    PAUSED_TAG,
    RunRecord,
    RunRef,
    client_to_read,
    finished_runs,
    look_up,
    members_of,
    status_of,
)
from fmnist_lab.tracking.registry import registered
from fmnist_lab.tracking.store import Store, is_metric

EXPECTED = (
    "a run's id, its beginning or its name, runs:/RUN_ID, models:/NAME@ALIAS, "
    "models:/NAME/VERSION, a folder that MLflow wrote, or a .keras file"
)
MADE_AGAIN = "its command with resume=true makes them again"
TESTED = ("mislabelled/", "calibration/", "conformal/")
LOOKED_AT = 1000  # Finished runs whose metrics are told to a person who has named another one.


@dataclass(frozen=True)
class ChosenModel:
    """The model that a person has named.

    Attributes:
        uri: Its place, as `load_model` takes it.
        run_id: The run that has made it; "" if that is not known.
        remarks: Sentences about how it was chosen, for the person to read.
    """

    uri: str
    run_id: str = ""
    remarks: tuple[str, ...] = ()


def choose_model(store: Store, word: str | None = None, *, best: str | None = None) -> ChosenModel:
    """Return the model that a person names.

    Args:
        store: Where runs and registered models are looked up.
        word: A run's id, its beginning or its name, runs:/RUN_ID, models:/NAME@ALIAS,
            models:/NAME/VERSION, a folder that MLflow wrote, or a .keras file; None: the newest
            finished run.
        best: A metric; of the finished runs the one with the best last value is taken. A `word`
            then names the sweep whose runs these are.

    Raises:
        UserError: There is no such model, or its run has not finished it or has lost it.
    """
    if best is not None:
        return _best(store, best, word)
    if word is None:
        return _newest(store)
    if word.startswith("models:"):
        return _registered(store, word)
    if named := re.fullmatch("runs:/+([^/]+)(/+[^/].*)?/*", word):
        return ChosenModel(word if named[2] else f"runs:/{named[1]}/model", named[1])
    path = Path(word)
    with suppress(OSError):  # No file has so long a name.
        if path.is_file() or (path / "MLmodel").exists():
            return ChosenModel(word)
    if path.is_absolute() or path.suffix == ".keras" or word.startswith("."):
        found = "has no MLmodel in it" if path.is_dir() else "is not there"
        raise UserError(
            f"received the model '{line(word, NAME_LENGTH)}', which {found}; expected {EXPECTED}"
        )
    run = look_up(store, word)
    check_finished(store, run)
    return ChosenModel(f"runs:/{run.run_id}/model", run.run_id)


def run_named(store: Store, word: str) -> RunRef:
    """Return the run that a person names, by itself or by the registered model that it has made.

    Args:
        store: Where to look.
        word: A run's id, its beginning or its name, runs:/RUN_ID, models:/NAME@ALIAS or
            models:/NAME/VERSION.

    Raises:
        UserError: There is no such run or model, or nobody knows which run has made the model.
    """
    if word.startswith("models:"):
        chosen = _registered(store, word)
        if not chosen.run_id:
            raise UserError(
                f"received the model '{line(word, NAME_LENGTH)}', of which {store.uri} does not "
                "tell the run that has made it; expected a run's id or name"
            )
        word = chosen.run_id
    elif named := re.fullmatch("runs:/+([^/]+)(/.*)?", word):
        word = named[1]
    return look_up(store, word)


def maker(store: Store, chosen: ChosenModel) -> RunRef | None:
    """Return the run that has made a model; None if it is unknown, or in the trash."""
    if chosen.run_id:
        with suppress(UserError):
            return look_up(store, chosen.run_id)
    return None


def check_trains(run: RunRef) -> None:
    """Refuse a run that trains nothing.

    Raises:
        UserError: It is an evaluation, a sweep, or another tool's.
    """
    if run.job != "train":
        job = f"is a run of job={run.job}" if run.job else "was not made by fmnist_lab"
        raise UserError(
            f"received '{run.name}' ({run.run_id}), which {job}; expected a run that has trained "
            "a model"
        )


def check_finished(store: Store, run: RunRef, *, model_alone: bool = True) -> None:
    """Refuse a run that has no whole model of its own.

    Args:
        store: The store.
        run: The run.
        model_alone: Whether the run may have lost other files than its model's.

    Raises:
        UserError: It is a sweep or has trained nothing, has not finished, or has lost its files.
    """
    named = f"received '{run.name}' ({run.run_id}), which"
    if run.job == "sweep":
        raise UserError(
            f"{named} is a sweep; expected one run, or --best accuracy/validation for the best of "
            f"its runs; {store.command('runs', 'report', run.run_id)} shows them"
        )
    check_trains(run)
    with asking(store) as client:
        found = client.get_run(run.run_id)
        status, after = status_of(found), line(found.data.tags.get(PAUSED_TAG))
        models = [each for each in models_of(client, found) if each.status == "READY"]
    if status == "PAUSED":
        raise UserError(
            f"{named} is paused after epoch {after} and has no model yet; expected a finished "
            "run: its command with resume=true finishes it"
        )
    if status != "FINISHED":
        raise UserError(
            f"{named} is {status} and has no finished model; expected a finished run: its command "
            "with resume=true makes it one"
        )
    if not models:
        raise UserError(f"{named} has kept no model; expected a run that has")
    if lost := damage(store, run.run_id, model_alone=model_alone):
        raise UserError(f"{named} {lost}; {MADE_AGAIN}")


def is_better_higher(metric: str) -> bool:
    """Return which way a metric gets better: accuracies up; losses, gaps and the others down."""
    return metric.startswith("accuracy/") and "gap" not in metric


def _newest(store: Store) -> ChosenModel:
    run, passed = _first_whole(store, finished_runs(store))
    if run is None:
        raise UserError(
            f"no finished run with a model in {store.uri}; make one with python -m "
            "fmnist_lab.run, or name a model with --model or a store with --store"
        )
    return ChosenModel(f"runs:/{run.run_id}/model", run.run_id, passed)


def _best(store: Store, metric: str, word: str | None) -> ChosenModel:
    """Return the model of the finished run with the best last value of a metric."""
    client_to_read(store)
    within, experiment_ids, among = "", None, f"in {store.uri}"
    if word is not None:
        sweep = look_up(store, word)
        if sweep.job != "sweep":
            raise UserError(
                f"received '{sweep.name}' ({sweep.run_id}) and --best {metric}, expected one of "
                "the two, or a sweep of whose runs the best is meant"
            )
        within, experiment_ids = members_of(sweep.run_id), [sweep.experiment_id]
        among = f"of the sweep '{sweep.name}'"
    run: RunRecord | None = None
    passed: tuple[str, ...] = ()
    if is_metric(metric):
        way = "DESC" if is_better_higher(metric) else "ASC"
        runs = finished_runs(
            store,
            " and ".join(filter(None, [f"metrics.`{metric}` > -1e300", within])),
            order=[f"metrics.`{metric}` {way}", "attributes.start_time DESC"],
            experiment_ids=experiment_ids,
        )
        # MLflow compares nan as if it were 0, and orders it last.
        measured = (each for each in runs if math.isfinite(each.metrics.get(metric, math.nan)))
        run, passed = _first_whole(store, measured)
    if run is None:
        some = islice(finished_runs(store, within, experiment_ids=experiment_ids), LOOKED_AT)
        known = sorted({line(name) for each in some for name in each.metrics}, key=_rank)
        raise UserError(
            f"--best: received {line(metric, NAME_LENGTH)}, which no finished run {among} has "
            f"beside its model; expected one of {', '.join(known) or 'their metrics'}"
        )
    told = f"The best {metric} {among}: {run.metrics[metric]:.4f}, of '{run.name}' ({run.run_id})."
    return ChosenModel(f"runs:/{run.run_id}/model", run.run_id, (*passed, told, *_caveat(metric)))


def _first_whole(
    store: Store, runs: Iterator[RunRecord]
) -> tuple[RunRecord | None, tuple[str, ...]]:
    """Return the first run that has its model, and a sentence for each that was passed over."""
    passed: list[str] = []
    for run in runs:
        lost = damage(store, run.run_id, model_alone=True)
        if not lost:
            return run, tuple(passed)
        again = f"; {MADE_AGAIN}" if "files" in lost else ""
        passed.append(f"Passing over the run '{run.name}' ({run.run_id}), which {lost}{again}.")
    return None, ()


def _rank(metric: str) -> tuple[bool, bool, str]:
    """Return the place of a metric among those to choose by: those of validation images first."""
    return "validation" not in metric, "/" not in metric, metric


def _caveat(metric: str) -> tuple[str, ...]:
    """Return what is to be said of a choice by a metric that is not of validation images."""
    part = metric.partition("/")[2]
    # What is said of confidence is measured on the test images, but for the temperature.
    tested = metric.startswith(TESTED) and part != "temperature"
    if part in ("test", "gap", "gap_clean") or tested:
        return (
            f"This choice has looked at the test set, of which {metric} is: the test accuracy of "
            "the chosen model looks better than it is. --best accuracy/validation has not looked "
            "at it.",
        )
    if "validation" not in part:
        return (
            f"{metric} is no figure of validation images, so that the best of it need not be the "
            "best on new images.",
        )
    return ()


def _registered(store: Store, uri: str) -> ChosenModel:
    """Return a registered model; MLflow itself reads the URIs that name no alias or version."""
    named = re.fullmatch("models:/+([^/@]+)(?:@([^/@]+)|/([0-9]+))", uri)
    if named is None:
        return ChosenModel(uri)
    name, alias, version = named.groups()
    client_to_read(store)
    found = registered(store, name, alias=alias, version=version)
    if found is None:
        with asking(store) as client:
            there = [
                f"models:/{line(model.name)}@{line(each)}"
                for model in client.search_registered_models()
                for each in model.aliases
            ]
        promote = store.command("runs", "promote", "RUN")
        raise UserError(
            f"received the model '{line(uri, NAME_LENGTH)}', which is not in {store.uri}; "
            f"expected {', '.join(there) or 'a model that was promoted'}, or another one, which "
            f"{promote} makes"
        )
    return ChosenModel(f"models:/{name}/{found.version}", found.run_id)
