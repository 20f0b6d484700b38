"""What a store knows: the run that a word means, runs as a table, curves of many runs."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fmnist_lab.errors import UserError
from fmnist_lab.tracking.store import DEFAULT_EXPERIMENT, Store, asking, client_of

if TYPE_CHECKING:
    import pandas as pd

SWEEP_TAG = "sweep."
RUNS_AT_ONCE = 500  # In one question for curves; databases limit the length of a question.


@dataclass(frozen=True)
class Known:
    """What a store knows of a run: its tags, and the last value of each metric."""

    run_id: str
    name: str
    status: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]


def known(store: Store, experiment: str, where: str) -> list[Known]:
    """Return the runs of an experiment that fit MLflow's filter, the newest first.

    None, too, where the store or the experiment does not exist yet.
    """
    if store.database is not None and not store.database.exists():
        return []
    with asking(store) as client:
        found = client.get_experiment_by_name(experiment)
        runs = client.search_runs([found.experiment_id], where) if found else []
    return [
        Known(run.info.run_id, run.info.run_name, run.info.status, run.data.tags, run.data.metrics)
        for run in runs
    ]


def tag(store: Store, run_id: str, tags: Mapping[str, str]) -> None:
    """Tag a run that exists."""
    client = client_of(store)
    for name, value in tags.items():
        client.set_tag(run_id, name, value)


def end(store: Store, run_id: str, status: str) -> None:
    """Mark a run that exists as ended."""
    client_of(store).set_terminated(run_id, status)


def members_of(sweep: str) -> str:
    """Return MLflow's filter for the runs that a sweep's parent run, by its id, is answered by.

    Each bears a tag of the sweep's own with its job number, because a run that an earlier sweep
    has made may answer a later one, too, and MLflow knows only one parent.
    """
    return f"tags.`{member_tag(sweep)}` != ''"


def member_tag(sweep: str) -> str:
    """Return the tag that holds a run's job number in a sweep."""
    return f"{SWEEP_TAG}{sweep}"


@dataclass(frozen=True)
class Found:
    """A run that a person has named.

    Attributes:
        run_id: Its id.
        name: Its name.
        experiment: Name of the experiment it is in.
        experiment_id: Id of that experiment.
        job: What it has done: "train", "evaluate" or "sweep"; empty if another tool has made it.
    """

    run_id: str
    name: str
    experiment: str
    experiment_id: str
    job: str


def look_up(store: Store, word: str) -> Found:
    """Return the run that a word means: its id, the beginning of its id, or its name.

    Raises:
        UserError: There is no store or no such run, or there are several.
    """
    client = client_to_read(store)
    with asking(store):
        experiments = {each.experiment_id: each.name for each in client.search_experiments()}
    quote = '"' if "'" in word else "'"
    filters = [f"attributes.run_name = {quote}{word}{quote}"]
    if re.fullmatch("[0-9a-f]{1,32}", word):
        filters.append(f"attributes.run_id LIKE '{word}%'")
    found = {}
    for where in filters:
        for run in client.search_runs(list(experiments), where, max_results=10):
            found[run.info.run_id] = run
    if len(found) != 1:
        known = ", ".join(f"{id} ({run.info.run_name})" for id, run in found.items())
        problem = f"means several runs: {known}" if found else f"is no run in {store.uri}"
        raise UserError(
            f"received '{word}', which {problem}; expected a run's id, the beginning of one, or a "
            "name that only one run has; python -m fmnist_lab.runs list shows them"
        )
    ((run_id, run),) = found.items()
    place = run.info.experiment_id
    return Found(run_id, run.info.run_name, experiments[place], place, run.data.tags.get("job", ""))


def find(
    store: Store, experiment: str = DEFAULT_EXPERIMENT, where: str = "", *, curve: str = ""
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return runs as a table, the newest first.

    Args:
        store: Where to look.
        experiment: The experiment they are in.
        where: MLflow's filter, for example "params.model = 'mlp'".
        curve: A metric to return for every epoch as well.

    Returns:
        A row a run: `run_id`, `name`, `status`, `started` and `ended` (UTC), `job` ("" if another
        tool has made it), `sweeps` (job numbers by the ids of the sweeps it is in), `failure`,
        `commit` and `dirty` where there are any, then params and last metrics under their own
        names; and what `curves` returns.

    Raises:
        UserError: The store or the experiment is not there, or MLflow refuses the filter.
    """
    import pandas as pd

    client = client_to_read(store)
    place = experiment_id_of(client, store, experiment)
    with no_collection():
        rows = [_row(run) for run in _search(client, place, where)]
    measured = [row["run_id"] for row in rows if curve in row]
    return pd.DataFrame(rows), curves(store, measured, curve)


def curves(store: Store, run_ids: Sequence[str], *metrics: str) -> pd.DataFrame:
    """Return metrics of many runs for every epoch, in few questions.

    Returns:
        A row a metric, run and epoch, in that order: `run_id`, `epoch`, `metric`, `value`. Of an
        epoch that was logged twice, as by a run that was resumed, the later value.
    """
    import pandas as pd

    client = client_of(store)
    with no_collection():
        points = [
            (place, metric, run_id, point.step, point.timestamp, point.value)
            for place, metric in enumerate(metrics)
            for start in range(0, len(run_ids), RUNS_AT_ONCE)
            for run_id, point in _histories(client, run_ids[start:][:RUNS_AT_ONCE], metric)
        ]
    columns = ["place", "metric", "run_id", "epoch", "time", "value"]
    found = pd.DataFrame(points, columns=columns)
    found = found.sort_values(["place", "run_id", "epoch", "time"], kind="stable")
    found = found.drop_duplicates(["metric", "run_id", "epoch"], keep="last", ignore_index=True)
    return found[["run_id", "epoch", "metric", "value"]]


def members(store: Store, sweep: Found) -> pd.DataFrame:
    """Return the runs that answer a sweep, in the order of its jobs, as `find` does."""
    runs, _ = find(store, sweep.experiment, members_of(sweep.run_id))
    if runs.empty:
        return runs
    numbers = [int(sweeps[sweep.run_id]) for sweeps in runs["sweeps"]]
    return runs.assign(job_number=numbers).sort_values("job_number", ignore_index=True)


def _row(run: Any) -> dict[str, Any]:
    """What is told of a run in tables."""
    import pandas as pd

    info, tags = run.info, run.data.tags
    ended = None if info.end_time is None else pd.Timestamp(info.end_time, unit="ms", tz="UTC")
    columns = {"failure": "failure", "mlflow.source.git.commit": "commit", "git.dirty": "dirty"}
    return {
        "run_id": info.run_id,
        "name": info.run_name,
        "status": info.status,
        "started": pd.Timestamp(info.start_time, unit="ms", tz="UTC"),
        "ended": ended,
        "job": tags.get("job", ""),
        "sweeps": {
            tag.removeprefix(SWEEP_TAG): number
            for tag, number in tags.items()
            if re.fullmatch(f"{re.escape(SWEEP_TAG)}[0-9a-f]{{32}}", tag)
        },
        **{column: tags[tag] for tag, column in columns.items() if tag in tags},
        **run.data.params,
        **run.data.metrics,
    }


def _search(client: Any, experiment_id: str, where: str) -> Iterator[Any]:
    """Yield runs, the newest first.

    Raises:
        UserError: MLflow refuses the filter.
    """
    from mlflow.exceptions import MlflowException

    token = None
    while token != "":
        try:
            page = client.search_runs([experiment_id], where, max_results=1000, page_token=token)
        except MlflowException as error:
            raise UserError(
                f"--filter: received '{where}', which MLflow refuses: {error.message}"
            ) from None
        yield from page
        token = page.token or ""


def _histories(client: Any, run_ids: Sequence[str], metric: str) -> Iterator[tuple[str, Any]]:
    """Yield every value of a metric with the id of its run."""
    # A client asks for one run at a time, which takes a minute for thousands; the store behind it
    # answers for many at once, if it is a database.
    behind = getattr(getattr(client, "_tracking_client", None), "store", None)
    ask = getattr(behind, "get_metric_history_bulk", None)
    if ask is not None:
        for point in ask(run_ids, metric, max_results=2**31 - 1):
            yield point.run_id, point
        return
    for run_id in run_ids:
        for point in client.get_metric_history(run_id, metric):
            yield run_id, point


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python's collector from walking through all that a store returns, again and again.

    For thousands of runs it takes more than half of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def client_to_read(store: Store) -> Any:
    """Return a client of a store, if there are any runs to look at."""
    if store.database is not None and not store.database.exists():
        raise UserError(
            f"no runs: {store.database} does not exist; make a run with python -m fmnist_lab.run, "
            "go to the folder you made one in, or name a store with --store"
        )
    return client_of(store)


def experiment_id_of(client: Any, store: Store, experiment: str) -> str:
    """Return the id of an experiment by its name.

    Raises:
        UserError: There is none, or the store does not answer or let us in.
    """
    with asking(store):
        known = client.get_experiment_by_name(experiment)
    if known is None:
        raise UserError(
            f"experiment '{experiment}' is not in {store.uri}; name one with --experiment"
        )
    return known.experiment_id


def newest_run(store: Store) -> str | None:
    """Return the id of the newest finished training run, in any experiment, or None."""
    if store.database is not None and not store.database.exists():
        return None
    with asking(store) as client:
        runs = client.search_runs(
            [experiment.experiment_id for experiment in client.search_experiments()],
            "attributes.status = 'FINISHED' and tags.job = 'train'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
    return runs[0].info.run_id if runs else None
