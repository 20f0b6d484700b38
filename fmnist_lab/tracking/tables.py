"""Runs as rows of a table, and curves of many runs."""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fmnist_lab import compat
from fmnist_lab.errors import UserError
from fmnist_lab.texts import line, lines, whole_number
from fmnist_lab.tracking.client import asking, client_of
from fmnist_lab.tracking.failures import asks, translated
from fmnist_lab.tracking.query import (
    PAGE,
    PAUSED_TAG,
    RUNS_AT_ONCE,
    SEARCH_TAG,
    SWEEP_TAG,
    RunRef,
    client_to_read,
    experiment_id_of,
    members_of,
    name_of,
    search,
    status_of,
)
from fmnist_lab.tracking.store import DEFAULT_EXPERIMENT, Store

if TYPE_CHECKING:
    import pandas as pd

# The tags that are columns of a table, and the columns' names.
TAG_COLUMNS = {
    "failure": "failure",
    "mlflow.source.git.commit": "commit",
    "git.dirty": "dirty",
    "code.changed": "code_changed",
    "data.digest": "data_digest",
    "role": "role",
    "trial.number": "trial",
    "trial.values": "trial_values",
    SEARCH_TAG: "search",
}
# The others that `row_of` looks at, beside those of sweeps.
OTHER_TAGS = ("job", PAUSED_TAG, "mlflow.runName")
OF_SWEEP = re.compile(f"{re.escape(SWEEP_TAG)}[0-9a-f]{{32}}")


@asks
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
        One row per run, see `row_of`; and what `curves` returns.

    Raises:
        UserError: The store or the experiment is not there, or MLflow refuses the filter.
    """
    import pandas as pd

    with no_collection():
        found = _read(store, experiment, where)
        if found is None:
            found = list(rows(store, experiment, where))
    measured = [row["run_id"] for row in found if curve in row]
    return pd.DataFrame(found), curves(store, measured, curve)


def rows(
    store: Store, experiment: str, where: str = "", *, page: int = PAGE
) -> Iterator[dict[str, Any]]:
    """Yield runs as rows of a table, the newest first, page by page.

    Args:
        store: Where to look.
        experiment: The experiment they are in.
        where: MLflow's filter.
        page: How many runs to ask for at once.

    Raises:
        UserError: The store or the experiment is not there, or MLflow refuses the filter.
    """
    # A generator is translated where it is read, not where it is called.
    with translated(store):
        client = client_to_read(store)
        place = experiment_id_of(client, store, experiment)
    with asking(store), _filter_explained(where):
        yield from map(row_of, search(client, [place], where, page=page))


@contextmanager
def _filter_explained(where: str) -> Iterator[None]:
    """Have a filter that MLflow refuses become a `UserError`."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if not where or error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        raise UserError(
            f"--where: received '{where}', which MLflow refuses: {error.message}"
        ) from None


def _read(store: Store, experiment: str, where: str) -> list[dict[str, Any]] | None:
    """Return what `rows` yields, read from the tables of a database; None if the store has none.

    It takes a tenth of the time.
    """
    client = client_to_read(store)
    place = experiment_id_of(client, store, experiment)
    behind = compat.store_behind(client)
    with _filter_explained(where):
        runs = compat.fitting_runs(behind, place, where)
    if runs is None:
        return None
    import sqlalchemy

    data = {run.run_uuid: SimpleNamespace(params={}, metrics={}, tags={}) for run in runs}
    some: Any = sqlalchemy.bindparam("some", expanding=True)
    # Most tags are no columns.
    names: Any = sqlalchemy.bindparam("names", [*TAG_COLUMNS, *OTHER_TAGS], expanding=True)
    columns = {
        "params": "value FROM params WHERE",
        "tags": f"value FROM tags WHERE (key IN :names OR key LIKE '{SWEEP_TAG}%') AND",
        "metrics": "CASE WHEN is_nan THEN NULL ELSE value END FROM latest_metrics WHERE",
    }
    with behind.engine.connect() as connection:
        for kind, values in columns.items():
            asked = sqlalchemy.text(f"SELECT run_uuid, key, {values} run_uuid IN :some")
            asked = asked.bindparams(*([some, names] if kind == "tags" else [some]))
            missing = math.nan if kind == "metrics" else None
            for start in range(0, len(runs), RUNS_AT_ONCE):
                part = [run.run_uuid for run in runs[start:][:RUNS_AT_ONCE]]
                for run_id, key, value in connection.execute(asked, {"some": part}).fetchall():
                    getattr(data[run_id], kind)[key] = missing if value is None else value
    return [row_of(_as_mlflow_has_it(run, data[run.run_uuid])) for run in runs]


def _as_mlflow_has_it(row: Any, data: Any) -> Any:
    """Return a run of a database in the form of MLflow's own."""
    info = SimpleNamespace(
        run_id=row.run_uuid,
        run_name=row.name or data.tags.get("mlflow.runName"),
        status=row.status,
        start_time=row.start_time,
        end_time=row.end_time,
    )
    return SimpleNamespace(info=info, data=data)


def row_of(run: Any) -> dict[str, Any]:
    """Return a run of MLflow's as a row of a table; texts have no control characters.

    Returns:
        `run_id`, `name`, `status`, `started` and `ended` (UTC), `job` ("" if another tool has made
        the run), `sweeps` (job numbers by the ids of the sweeps that the run answers), those of
        `TAG_COLUMNS` where there are any, then params and last metrics under their own names. No
        logged name takes the place of one of ours, and no metric that of a param.
    """
    info, tags = run.info, run.data.tags
    sweeps = {
        tag.removeprefix(SWEEP_TAG): whole_number(number)
        for tag, number in tags.items()
        if OF_SWEEP.fullmatch(tag)
    }
    facts = {
        "run_id": info.run_id,
        "name": name_of(run),
        "status": status_of(run),
        "started": _time(info.start_time),
        "ended": _time(info.end_time),
        "job": line(tags.get("job")),
        "sweeps": {sweep: number for sweep, number in sweeps.items() if number is not None},
        **{column: lines(tags[tag]) for tag, column in TAG_COLUMNS.items() if tag in tags},
    }
    params = {line(name): line(value) for name, value in run.data.params.items() if "/" not in name}
    metrics = {line(name): value for name, value in run.data.metrics.items()}
    taken = {*facts, *TAG_COLUMNS.values(), "job_number", ""}
    logged = {**params, **metrics, **params}
    return facts | {name: value for name, value in logged.items() if name not in taken}


def _time(milliseconds: int | None) -> Any:
    """Return a time of MLflow's; NaT if there is none, or none that a calendar has."""
    import pandas as pd

    try:
        # By way of a datetime, which has no years that a table of pandas would wrap.
        moment = datetime.fromtimestamp((milliseconds or 0) / 1000, UTC)
        return pd.NaT if milliseconds is None else pd.Timestamp(moment).as_unit("ns")
    except (ValueError, OverflowError, OSError):
        return pd.NaT


@asks
def curves(store: Store, run_ids: Sequence[str], *metrics: str) -> pd.DataFrame:
    """Return metrics of many runs for every epoch, in few questions.

    Args:
        store: Where the runs are.
        run_ids: The runs.
        metrics: The metrics' names.

    Returns:
        One row per metric, run and epoch, in that order: `run_id`, `epoch`, `metric`, `value`. Of
        an epoch that was logged twice, as by a run that was resumed, the later value.
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


def _histories(client: Any, run_ids: Sequence[str], metric: str) -> Iterator[tuple[str, Any]]:
    """Yield every value of a metric with the id of its run."""
    # A client asks for one run at a time, which takes a minute for thousands; the store behind it
    # answers for many at once, if it is a database.
    ask = getattr(compat.store_behind(client), "get_metric_history_bulk", None)
    if ask is not None:
        for point in ask(run_ids, metric, max_results=2**31 - 1):
            yield point.run_id, point
        return
    for run_id in run_ids:
        for point in client.get_metric_history(run_id, metric):
            yield run_id, point


def members(store: Store, sweep: RunRef) -> pd.DataFrame:
    """Return the runs that answer a sweep, in the order of its jobs, as `find` does."""
    runs, _ = find(store, sweep.experiment, members_of(sweep.run_id))
    return numbered(runs, sweep.run_id).sort_values("job_number", ignore_index=True)


def numbered(runs: pd.DataFrame, sweep: str) -> pd.DataFrame:
    """Return those of a table's runs that have a job number in a sweep, with it as `job_number`."""
    sweeps = list(runs.get("sweeps", []))
    runs = runs[[sweep in each for each in sweeps]]
    return runs.assign(job_number=[each[sweep] for each in sweeps if sweep in each])


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python's garbage collector from walking through everything that a store returns.

    For thousands of runs that takes more than half of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
