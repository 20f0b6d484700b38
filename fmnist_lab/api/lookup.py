"""Runs of a store, asked for by a filter, by sweeps and by names."""

from __future__ import annotations

from fmnist_lab import tracking
from fmnist_lab.api.collection import Runs
from fmnist_lab.errors import UserError, raised
from fmnist_lab.system import process


@process.store_as_found()
def runs(
    where: str = "",
    *words: str,
    since: str = "",
    store: str | None = None,
    experiment: str | None = None,
) -> Runs:
    """Return the runs that have trained a model, the newest first, or those of a sweep.

    Args:
        where: MLflow's filter, such as "params.model = 'mlp' and metrics.`accuracy/gap` > 0.05";
            or a sweep or run: its id, the beginning of that, or its name. "" is no filter.
        words: More sweeps and runs.
        since: Only runs begun since then: "7d", "12h", or a date such as "2026-11-28".
        store: MLflow's tracking URI; None: $MLFLOW_TRACKING_URI, or mlflow.db in this folder.
        experiment: The experiment to look into if no sweep or run is named; None: MLflow's
            $MLFLOW_EXPERIMENT_NAME or $MLFLOW_EXPERIMENT_ID, or fmnist_lab.

    Returns:
        The runs; in the order of the jobs if they are those of one sweep.

    Raises:
        UserError: There is no store, no run fits, or MLflow refuses the filter.
    """
    from fmnist_lab.runs.selection import begun_since, both, select

    for each in (where, *words):
        if not isinstance(each, str):
            raise UserError(
                f"received {each!r}, expected a text: MLflow's filter, or the id or name of a run"
            )
    with raised():
        place = tracking.Store.locate(store, for_writing=False)
        named = list(words)
        if where and not _is_filter(where):
            named, where = [where, *named], ""
        found = select(place, named, experiment, both(where, begun_since(since)))
        if "job_number" in found.runs:
            return Runs(place, found.runs.sort_values("job_number"), found.named)
        return Runs(place, found.runs, found.named)


def _is_filter(words: str) -> bool:
    """Return whether words are a filter of MLflow's, rather than a run's id or name.

    >>> [_is_filter(words) for words in ("params.model = 'mlp'", "status = 'FAILED'", "h128 e5.s0")]
    [True, True, False]
    """
    kinds = ("param", "parameter", "metric", "tag", "attribute", "attr", "run", "dataset")
    first = words.lstrip().partition(".")[0].lower()
    return (first.rstrip("s") in kinds and "." in words) or words.split(" ")[0] in _ATTRIBUTES


_ATTRIBUTES = ("status", "run_id", "run_name", "start_time", "end_time", "artifact_uri", "user_id")
