"""What is kept with a run, and read again: its model, its files, its facts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_lab.errors import UserError
from fmnist_lab.tracking.store import Store, client_of, use

if TYPE_CHECKING:
    import keras


def load_model(uri: str, store: Store) -> tuple[keras.Model, tuple[str, ...] | None]:
    """Reload a logged Keras model in Keras' safe mode, which runs no code from the file.

    Args:
        uri: runs:/RUN_ID/model, models:/NAME/VERSION or a folder.
        store: The store that the first two refer to.

    Returns:
        The model, and the names of its classes if they were logged with it.

    Raises:
        UserError: There is no such model, or it is no Keras model.
    """
    import mlflow.keras
    from mlflow.exceptions import MlflowException

    # Keras knows our own layer, which a file may name, only once it was defined.
    import fmnist_lab.models  # noqa: F401

    use(store)
    try:
        # Asking a database that does not exist would create it.
        if store.database and not store.database.exists() and not Path(uri).exists():
            raise FileNotFoundError(f"there is no store {store.database}")
        model = mlflow.keras.load_model(uri)
        # `get_model_info` would ask the store, which a folder may have been copied from.
        metadata = mlflow.models.Model.load(uri).metadata or {}
    except (MlflowException, ImportError, OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the model '{uri}' cannot be loaded as a Keras model: {reason}; "
            "expected runs:/RUN_ID/model, models:/NAME/VERSION or a folder that MLflow wrote"
        ) from None
    names = metadata.get("class_names")
    return model, tuple(names) if names else None


def origin(uri: str) -> dict[str, str]:
    """Return a tag that names the run a model came from, where its URI tells."""
    parts = uri.removeprefix("runs:/").split("/")
    return {"evaluated_run": parts[0]} if uri.startswith("runs:/") else {}


def facts(store: Store, run_id: str) -> dict[str, dict[str, Any]]:
    """Return a run's `tags`, `params` and last `metrics`."""
    data = client_of(store).get_run(run_id).data
    return {"tags": data.tags, "params": data.params, "metrics": data.metrics}


def read_file(store: Store, run_id: str, file: str) -> bytes:
    """Return a file that was kept with a run.

    Raises:
        UserError: The run has no such file, or it is out of reach.
    """
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    use(store)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=file, dst_path=folder
            )
            return Path(path).read_bytes()
        except (MlflowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"run {run_id} has no {file} to be read: {reason}") from None
