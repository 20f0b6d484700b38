"""What a run has come to, in a form that can be compared with another's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SPEED = "images_per_second"


def outcome(uri: str, folder: Path | None = None) -> dict:
    """All that is to be the same of the only run of a store, and its id.

    Args:
        uri: The store.
        folder: Where the run was made, to compare what lies there as well.
    """
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiments = [each.experiment_id for each in client.search_experiments()]
    (run,) = client.search_runs(experiments)
    found = outcome_of(client, run)
    return {"id": run.info.run_id, **found, "left": left_behind(folder) if folder else []}


def outcome_of(client: MlflowClient, run: Run) -> dict:
    """All that is to be the same of a training run, which has one model."""
    from fmnist_lab.models import saved
    from fmnist_lab.tracking import Store, load_model

    id = run.info.run_id
    (model,) = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{id}'")
    store = Store.locate(client.tracking_uri, for_writing=False)
    loaded, class_names = load_model(f"runs:/{id}/model", store, saved.load)
    with np.load(client.download_artifacts(id, "predictions.npz")) as arrays:
        predictions = {name: array.tobytes() for name, array in arrays.items()}
    return {
        "status": run.info.status,
        "params": run.data.params,
        "metrics": {
            name: [(p.step, p.value) for p in client.get_metric_history(id, name)]
            for name in run.data.metrics
            if name != SPEED
        },
        "speeds": [p.step for p in client.get_metric_history(id, SPEED)],
        "datasets": [each.dataset.digest for each in run.inputs.dataset_inputs],
        "model": (
            model.status,
            {m.key: (m.step, m.value) for m in model.metrics or () if m.key != SPEED},
        ),
        "class_names": class_names,
        "weights": [array.tobytes() for array in loaded.get_weights()],
        "predictions": predictions,
        "files": sorted(each.path for each in client.list_artifacts(id)),
    }


def left_behind(folder: Path) -> list[str]:
    """Every file below a folder, with ids of runs and models made equal; empty folders as well."""
    found = (
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() or not any(path.iterdir())
    )
    return sorted(re.sub("[0-9a-f]{32}", "ID", name) for name in found)
