"""What is kept with a run, and read again: its model, its files, its facts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePath
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
    import mlflow.artifacts
    import mlflow.keras

    # Keras knows our own layer, which a file may name, only once it was defined.
    import fmnist_lab.models  # noqa: F401

    use(store)
    try:
        # Asking a database that does not exist would create it.
        if store.database and not store.database.exists() and not Path(uri).exists():
            raise FileNotFoundError(f"there is no store {store.database}")
        with tempfile.TemporaryDirectory() as place:
            folder = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=place)
            description = mlflow.models.Model.load(folder)
            _check_description(description.flavors)
            model = mlflow.keras.load_model(folder)
            metadata = description.metadata or {}
    except Exception as error:
        # Whatever the parsers of YAML, zip files, HDF5 and Keras' configs make of a damaged one.
        reason = " ".join(str(error).split())
        raise UserError(
            f"the model '{uri}' cannot be loaded as a Keras model: {reason}; "
            "expected runs:/RUN_ID/model, models:/NAME/VERSION or a folder that MLflow wrote"
        ) from None
    names = metadata.get("class_names")
    return model, tuple(names) if names else None


def _check_description(flavors: Mapping[str, Any]) -> None:
    """Refuse an MLmodel file that asks for more than one Keras file beside it, read in safe mode.

    Raises:
        ValueError: It names code of its own, another kind of file, or one elsewhere.
    """
    ours = flavors.get("keras")
    if not isinstance(ours, Mapping):
        raise ValueError(f"its MLmodel describes {', '.join(map(str, flavors)) or 'nothing'}")
    loader = flavors.get("python_function", {}).get("loader_module", "mlflow.keras")
    if loader != "mlflow.keras":
        raise ValueError(f"its MLmodel has the module {loader} load it, which could do anything")
    for name, flavor in flavors.items():
        if flavor.get("code"):
            raise ValueError(f"its MLmodel brings code along, {name}.code={flavor['code']}")
    if ours.get("save_exported_model"):
        raise ValueError("its MLmodel asks for an exported graph, which has no safe mode")
    file = PurePath(str(ours.get("data", "")))
    if file.is_absolute() or ".." in file.parts:
        raise ValueError(f"its MLmodel points out of its folder, to {file}")


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
