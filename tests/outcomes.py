"""What a run has come to, in a form that can be compared with another's."""

import re
from pathlib import Path

import numpy as np

SPEED = "images_per_second"


def outcome(uri: str, folder: Path | None = None) -> dict:
    """All that is to be the same of the only run of a store, and its id.

    Args:
        uri: The store.
        folder: Where the run was made, to compare what lies there as well.
    """
    from mlflow import MlflowClient

    from fmnist_lab.tracking import Store, load_model

    client = MlflowClient(uri)
    experiments = [each.experiment_id for each in client.search_experiments()]
    (run,) = client.search_runs(experiments)
    id = run.info.run_id
    (model,) = client.search_logged_models([run.info.experiment_id])
    loaded, class_names = load_model(f"runs:/{id}/model", Store.locate(uri, for_writing=False))
    with np.load(client.download_artifacts(id, "predictions.npz")) as arrays:
        predictions = {name: array.tobytes() for name, array in arrays.items()}
    return {
        "id": id,
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
        "left": left_behind(folder) if folder else [],
    }


def left_behind(folder: Path) -> list[str]:
    """Every file below a folder, with ids of runs and models made equal; empty folders as well."""
    found = (
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() or not any(path.iterdir())
    )
    return sorted(re.sub("[0-9a-f]{32}", "ID", name) for name in found)
