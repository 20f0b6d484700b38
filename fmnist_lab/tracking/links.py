"""Links into MLflow's UI that show what was asked for.

A fresh browser shows an experiment in a view for language models, with nothing of ours in it, so
every link names the view. MLflow also folds children away behind their parent; a search for the
tag of a sweep's runs shows them, and among them the runs that an earlier sweep has made.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import urlencode

from fmnist_lab.errors import UserError
from fmnist_lab.tracking import query, tables
from fmnist_lab.tracking.store import Store

VIEW = {"workflowType": "machine_learning"}
CHARTS = {
    "orderByKey": "metrics.`accuracy/test`",
    "orderByAsc": "false",
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "modelVersionFilter": "All Runs",
    "datasetsFilter": "W10=",
    "compareRunsMode": "CHART",
}
# As many colours as can be told apart.
COMPARED = 10


def links(store: Store, experiment: str, word: str | None = None) -> dict[str, str]:
    """Return links without the server's address: paths by their titles, the wanted ones first.

    Args:
        store: Where the runs are.
        experiment: The experiment to link if no run is named.
        word: A run or sweep as `look_up` understands it.

    Raises:
        UserError: There is no such run or experiment.
    """
    if not word:
        client = query.client_to_read(store)
        return {"all runs": _runs(query.experiment_id_of(client, store, experiment))}
    found = query.look_up(store, word)
    place = found.experiment_id
    itself = f"/#/experiments/{place}/runs/{found.run_id}?{urlencode(VIEW)}"
    if found.job != "sweep":
        return {
            f"run {found.name}": itself,
            "its pictures": _picture(place, found.run_id),
            "all runs": _runs(place),
        }
    runs = tables.members(store, found)
    if runs.empty:
        raise UserError(f"sweep {found.name} ({found.run_id}) has no runs yet")
    finished = runs[runs["status"] == "FINISHED"]["run_id"].tolist()
    shown = {
        "charts of its runs": _runs(place, searchFilter=query.members_of(found.run_id), **CHARTS)
    }
    if len(finished) > 2:
        some = _spread(finished, COMPARED)
        shown[f"{len(some)} of them compared"] = compared(place, some)
    if len(finished) > 1:
        for which, run_id in (("first", finished[0]), ("last", finished[-1])):
            shown[f"pictures of the {which}"] = _picture(place, run_id)
        # MLflow 3.17 has its list of pictures at the end of the page, and leaves no room for it
        # beside three runs.
        shown["both, with pictures at the end"] = compared(place, [finished[0], finished[-1]])
    return {**shown, f"sweep {found.name.removeprefix('sweep ')}": itself, "all runs": _runs(place)}


def compared(experiment_id: str, run_ids: Sequence[str]) -> str:
    """Return the path of the page that compares runs, their pictures side by side."""
    query = {"runs": json.dumps(list(run_ids)), "experiments": json.dumps([experiment_id])}
    return f"/#/compare-runs?{urlencode({**query, **VIEW})}"


def _spread(runs: Sequence[str], most: int) -> list[str]:
    """Return some runs from the first to the last, because the first may all be of one setting."""
    count = min(most, len(runs))
    return [runs[place * (len(runs) - 1) // (count - 1)] for place in range(count)]


def _picture(experiment_id: str, run_id: str) -> str:
    """Return the path of the page that shows a picture of a run, with the others beside it.

    The picture is one that both trainings and evaluations have.
    """
    page = f"/#/experiments/{experiment_id}/runs/{run_id}/artifacts/confusion_matrix.png"
    return f"{page}?{urlencode(VIEW)}"


def _runs(experiment_id: str, **query: str) -> str:
    return f"/#/experiments/{experiment_id}/runs?{urlencode({**VIEW, **query})}"
