"""Questions to a store: runs as records, and the run that a word means."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from fmnist_lab import compat
from fmnist_lab.errors import UserError
from fmnist_lab.texts import NAME_LENGTH, line
from fmnist_lab.tracking.client import asking, client_of
from fmnist_lab.tracking.events import Status
from fmnist_lab.tracking.failures import asks
from fmnist_lab.tracking.store import Store, check_active

SWEEP_TAG = "sweep."
SEARCH_TAG = "search.facts"  # of the parent run of a search
FOLDER_TAG = "search.folder"  # the folder of its log, on the machine that has begun it
# The tag with the last epoch of a run that is paused; it is emptied when the run goes on.
PAUSED_TAG = "paused.after"
TRAINED = "tags.job = 'train'"
RUNS_AT_ONCE = 500  # in one question for curves; databases limit the length of a question
PAGE = 1000


@dataclass(frozen=True)
class RunRecord:
    """A run as a store has it: its tags, the last value of each metric, and the last epoch."""

    run_id: str
    name: str
    status: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    epoch: int = 0


@dataclass(frozen=True)
class RunRef:
    """A run that a person has named.

    Attributes:
        run_id: The run's id.
        name: The run's name.
        experiment: The name of the run's experiment.
        experiment_id: The id of that experiment.
        job: "train", "evaluate" or "sweep"; empty if another tool has made the run.
    """

    run_id: str
    name: str
    experiment: str
    experiment_id: str
    job: str


def search(
    client: Any,
    experiment_ids: Sequence[str],
    where: str = "",
    *,
    order: Sequence[str] = (),
    page: int = PAGE,
    deleted: bool = False,
) -> Iterator[Any]:
    """Yield MLflow's runs, the newest first, and ask for the next page only when it is needed.

    Args:
        client: MLflow's client of a store.
        experiment_ids: The experiments to look into.
        where: MLflow's filter.
        order: MLflow's order, such as "attributes.start_time ASC".
        page: How many runs to ask for at once.
        deleted: Whether to look for the runs in MLflow's trash, and not for the others.
    """
    from mlflow.entities import ViewType

    which = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
    token = None
    while token != "":
        found = client.search_runs(list(experiment_ids), where, which, page, list(order), token)
        yield from found
        token = found.token or ""


def known(store: Store, experiment: str, where: str) -> list[RunRecord]:
    """Return the runs of an experiment that fit MLflow's filter, the newest first.

    Args:
        store: The store, which need not exist yet.
        experiment: The experiment's name, which need not exist either.
        where: MLflow's filter.
    """
    if not store.is_there():
        return []
    with asking(store) as client:
        found = client.get_experiment_by_name(experiment)
        return (
            [_record(run) for run in search(client, [found.experiment_id], where)] if found else []
        )


def finished_runs(
    store: Store,
    where: str = "",
    *,
    order: Sequence[str] = (),
    experiment_ids: Sequence[str] | None = None,
) -> Iterator[RunRecord]:
    """Yield finished training runs, the newest first.

    Args:
        store: The store, which need not exist yet.
        where: MLflow's filter, which they have to fit as well.
        order: MLflow's order, if it is another.
        experiment_ids: The experiments to look into; None: all.
    """
    if not store.is_there():
        return
    with asking(store) as client:
        if experiment_ids is None:
            experiment_ids = [each.experiment_id for each in client.search_experiments()]
        fits = " and ".join(filter(None, ["attributes.status = 'FINISHED'", TRAINED, where]))
        yield from map(_record, search(client, experiment_ids, fits, order=order, page=20))


def _record(run: Any) -> RunRecord:
    # A database may hold a tag without a value.
    tags = {name: value or "" for name, value in run.data.tags.items()}
    return RunRecord(
        run.info.run_id,
        name_of(run),
        status_of(run),
        tags,
        run.data.metrics,
        last_epoch(run),
    )


def status_of(run: Any) -> str:
    """Return the state of a run of MLflow's under our names: PAUSED is one of ours."""
    if run.info.status == Status.PAUSED and run.data.tags.get(PAUSED_TAG):
        return Status.PAUSED.name
    return str(run.info.status)


def last_epoch(run: Any) -> int:
    """Return the last epoch of which a run of MLflow's has a metric, or 0."""
    return max((metric.step for metric in compat.latest_metrics(run.data)), default=0)


def name_of(run: Any) -> str:
    """Return the name of a run of MLflow's, fit to be shown."""
    return line(run.info.run_name, NAME_LENGTH)


def exists(store: Store, run_id: str) -> bool:
    """Return whether a store knows a run, even a deleted one."""
    if not store.is_there():
        return False
    with asking(store) as client:
        from mlflow.exceptions import MlflowException

        try:
            client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
    return True


@asks
def tag(store: Store, run_id: str, tags: Mapping[str, str]) -> None:
    """Tag a run that exists."""
    client = client_of(store)
    for name, value in tags.items():
        client.set_tag(run_id, name, value)


@asks
def end(store: Store, run_id: str, status: str) -> None:
    """Mark a run that exists as ended."""
    client_of(store).set_terminated(run_id, status)


def members_of(sweep: str) -> str:
    """Return MLflow's filter for the runs that answer a sweep, by the id of its parent run.

    Each has a tag of the sweep's own with its job number, because a run of an earlier sweep may
    answer a later one as well, and MLflow knows only one parent.
    """
    return f"tags.`{member_tag(sweep)}` != ''"


def is_id(text: str) -> bool:
    """Return whether a text is what MLflow gives to a run as its id."""
    return bool(re.fullmatch("[0-9a-f]{32}", text))


def member_tag(sweep: str) -> str:
    """Return the tag that holds a run's job number in a sweep."""
    return f"{SWEEP_TAG}{sweep}"


@asks
def look_up(store: Store, word: str, *, deleted: bool = False) -> RunRef:
    """Return the run that a word means.

    Args:
        store: Where to look.
        word: A run's id, the beginning of its id, or its name.
        deleted: Whether to look into MLflow's trash.

    Raises:
        UserError: There is no store or no such run, or there are several.
    """
    client = client_to_read(store)
    experiments = {each.experiment_id: each.name for each in client.search_experiments()}
    quote = '"' if "'" in word else "'"
    filters = [f"attributes.run_name = {quote}{word}{quote}"]
    if quote in word:
        # MLflow's filters know no way to write a name with both kinds; "_" stands for any letter.
        filters = [f"attributes.run_name LIKE '{word.replace(chr(39), '_')}'"]
    if re.fullmatch("[0-9a-f]{1,32}", word):
        filters.append(f"attributes.run_id LIKE '{word}%'")
    found = {
        run.info.run_id: run
        for where in filters
        for run in islice(search(client, list(experiments), where, page=10, deleted=deleted), 10)
        if run.info.run_name == word or run.info.run_id.startswith(word)
    }
    if len(found) != 1:
        known = ", ".join(f"{id} ({name_of(run)})" for id, run in found.items())
        place = f"the trash of {store.uri}" if deleted else store.uri
        problem = f"means several runs: {known}" if found else f"is no run in {place}"
        mend = "" if deleted else f"; {store.command('runs', 'list', '--all')} shows them"
        trashed = None
        if not (found or deleted):
            with suppress(UserError):
                trashed = look_up(store, word, deleted=True)
        # The beginning of an id in the trash may be a mistyped name.
        if trashed and word in (trashed.run_id, trashed.name):
            problem = f"is in the trash of {store.uri}"
            mend = f"; {store.command('runs', 'restore', trashed.run_id)} brings it back"
        raise UserError(
            f"received '{line(word, NAME_LENGTH)}', which {problem}; expected a run's id, the "
            f"beginning of one, or a name that only one run has{mend}"
        )
    ((run_id, run),) = found.items()
    place = run.info.experiment_id
    job = line(run.data.tags.get("job"))
    return RunRef(run_id, name_of(run), experiments[place], place, job)


def client_to_read(store: Store) -> Any:
    """Return a client of a store, if there are any runs to look at.

    Raises:
        UserError: The store does not exist yet.
    """
    if not store.is_there():
        raise UserError(
            f"no runs: {store.database} does not exist; make a run with python -m fmnist_lab.run, "
            "go to the folder you made one in, or name a store with --store"
        )
    return client_of(store)


def experiment_id_of(client: Any, store: Store, experiment: str) -> str:
    """Return the id of an experiment by its name.

    Args:
        client: MLflow's client of the store.
        store: The store.
        experiment: The name.

    Raises:
        UserError: There is none, or the store does not answer or let us in.
    """
    with asking(store):
        found = client.get_experiment_by_name(experiment)
    if found is None:
        raise UserError(
            f"experiment '{experiment}' is not in {store.uri}; name one with --experiment"
        )
    check_active(store, found)
    return str(found.experiment_id)
