"""The facts and files of a run, read from the store."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_lab.errors import UserError
from fmnist_lab.system import durable
from fmnist_lab.texts import line, lines
from fmnist_lab.tracking import bounds
from fmnist_lab.tracking.client import client_of, download
from fmnist_lab.tracking.failures import asks, read_errors
from fmnist_lab.tracking.store import Store

PREDICTIONS = "predictions.npz"
VALIDATION = "predictions_validation.npz"


def origin(uri: str) -> dict[str, str]:
    """Return a tag that names the run of a model, where the model's URI tells."""
    parts = uri.removeprefix("runs:/").split("/")
    return {"evaluated_run": parts[0]} if uri.startswith("runs:/") else {}


@asks
def facts(store: Store, run_id: str) -> dict[str, dict[str, Any]]:
    """Return a run's `tags`, `params` and last `metrics`, texts without control characters."""
    data = client_of(store).get_run(run_id).data
    tags, params = (
        {line(name): lines(value) for name, value in each.items()}
        for each in (data.tags, data.params)
    )
    return {"tags": tags, "params": params, "metrics": data.metrics}


@asks
def file_names(store: Store, run_id: str) -> list[str]:
    """Return the names of the files that were kept with a run, those of its folders left out."""
    return [line(item.path) for item in client_of(store).list_artifacts(run_id) if not item.is_dir]


@asks
def trained_on(store: Store, run_id: str) -> tuple[str, tuple[int, ...]]:
    """Return the name of the data set that a run has used, and the shape of its training images.

    Args:
        store: Where the run is.
        run_id: The run's id.

    Returns:
        The name, and (images, height, width) or with channels behind; "" and () if it noted none.
    """
    for used in client_of(store).get_run(run_id).inputs.dataset_inputs:
        try:
            shape = json.loads(used.dataset.profile)["features_shape"]
            return line(used.dataset.name), tuple(int(each) for each in shape)
        except (ValueError, TypeError, KeyError, RecursionError):
            # Another tool has logged it.
            continue
    return "", ()


def read_file(store: Store, run_id: str, file: str, most: int = bounds.MOST_TEXT) -> bytes:
    """Return a file that was kept with a run.

    Args:
        store: Where the run is.
        run_id: The run's id.
        file: The file's name.
        most: How many bytes the file may have.

    Raises:
        UserError: The run has no such file, or the file is out of reach or too large.
    """
    from mlflow.exceptions import MlflowException

    problem = f"run {run_id} has no {file} to be read"
    with read_errors(store, problem, errors=(MlflowException, OSError, ValueError)):
        root = client_of(store).get_run(run_id).info.artifact_uri
        folder = durable.local_path(root)
        if folder is not None:
            # MLflow would copy the whole file, even one without an end.
            return _read_at_most(folder / file, most)
        return _fetch_at_most(f"{root}/{file}", file, most)


def _read_at_most(path: Path, most: int) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path} is {'no file' if path.exists() else 'not there'}")
    with path.open("rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes, expected no more than {most:,}"
        )
    return content


def _fetch_at_most(uri: str, file: str, most: int) -> bytes:
    import mlflow.artifacts

    listed = mlflow.artifacts.list_artifacts(artifact_uri=uri.removesuffix(f"/{file}"))
    sizes = [each.file_size or 0 for each in listed if each.path == file]
    if sizes and sizes[0] > most:
        raise ValueError(f"it has {sizes[0]:,} bytes, expected no more than {most:,}")
    with tempfile.TemporaryDirectory() as folder:
        return _read_at_most(download(uri, folder), most)


def read_predictions(
    store: Store, run_id: str, file: str = PREDICTIONS
) -> tuple[np.ndarray, np.ndarray]:
    """Return the predictions of a run's model for the test set, or for its validation images.

    Args:
        store: Where the run is.
        run_id: The run's id.
        file: `PREDICTIONS` or `VALIDATION`.

    Returns:
        Probabilities, shape (images, classes), and the true labels, shape (images,).

    Raises:
        UserError: The run has no predictions, or their file is damaged.
    """
    content = read_file(store, run_id, file, bounds.MOST_ARRAYS)
    try:
        probabilities, labels = bounds.read_arrays(content, "probabilities", "labels")
        shapes = f"{probabilities.dtype} {probabilities.shape}, {labels.dtype} {labels.shape}"
        if (
            (probabilities.dtype.kind, probabilities.ndim) != ("f", 2)
            or (labels.dtype.kind not in "iu" or labels.shape != probabilities.shape[:1])
            or 0 in probabilities.shape
        ):
            raise ValueError(
                f"its arrays are {shapes}, expected probabilities (images, classes) and labels"
            )
    except ValueError as error:
        raise UserError(f"run {run_id}: its {file} is damaged: {error}") from None
    return probabilities, labels
