"""A model as MLflow keeps it: a folder with a description, the Keras file and what it requires.

The folder is what MLflow's Keras flavour writes, made here from the Keras file that the run's
journal holds, so that no process needs Keras to deliver a model.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any, TypeVar

from fmnist_lab.evaluation.scaling import CALIBRATION, Scaling
from fmnist_lab.system import durable
from fmnist_lab.texts import NAME_LENGTH, line
from fmnist_lab.tracking import bounds
from fmnist_lab.tracking.client import check_schema, download, use
from fmnist_lab.tracking.events import Metrics, TrainedModel
from fmnist_lab.tracking.failures import read_errors, translated
from fmnist_lab.tracking.files import ABOVE, model_damage, models_of, sync_store
from fmnist_lab.tracking.store import Store

M = TypeVar("M")

REQUIRED = ("mlflow", "tensorflow", "keras", "numpy", "pillow")
# The modules whose copies MLflow runs to serve a model. They are a package of another name, so that
# they never stand in the way of an installed fmnist_lab.
SHIPPED = (
    *("photographs.__init__", "photographs.files", "photographs.objects"),
    *("evaluation.scaling", "serving.answers"),
    *("models.io", "models.flip_average", "models.saved", "tracking.pyfunc"),
)
OURS, THEIRS = "fmnist_lab", "fmnist_served"
LOADERS = ("mlflow.keras", f"{THEIRS}.tracking.pyfunc")


def log(client: Any, store: Store, run_id: str, event: TrainedModel, files: Path) -> None:
    """Log the model of a run, READY with all its files or FAILED.

    MLflow's `log_model` would file the model under its Default experiment and ask the store for
    the history of every metric.

    Args:
        client: MLflow's client of the store.
        store: The store.
        run_id: The run.
        event: The model.
        files: The folder with the Keras file.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    run = client.get_run(run_id)
    logged = client.create_logged_model(
        run.info.experiment_id, name="model", source_run_id=run_id, params=run.data.params
    )
    # Otherwise a power cut could leave the folder to a store that does not know of the model.
    sync_store(store)
    description = Model(
        artifact_path=logged.artifact_location,
        model_uuid=logged.model_id,
        run_id=run_id,
        model_id=logged.model_id,
    )
    scores = event.metrics or Metrics(0, 0, {})
    try:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), files / event.file, event, description)
            client.log_model_artifacts(logged.model_id, folder)
        if place := durable.local_path(logged.artifact_location):
            durable.sync_tree(place, ABOVE)
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=scores.step)])
        client.log_batch(run_id, metrics(scores, logged.model_id))
    except Exception:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")


def write(folder: Path, file: Path, event: TrainedModel, description: Any) -> None:
    """Write a model's folder as `mlflow.keras.save_model` does, with code of ours that serves it.

    Args:
        folder: An empty folder.
        file: The Keras file.
        event: What is known of the model.
        description: MLflow's `Model`, to be completed.
    """
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec

    from fmnist_lab.serving.answers import PARAMS

    data = folder / "data"
    data.mkdir()
    shutil.copyfile(file, data / "model.keras")
    if event.calibration is not None:
        (folder / CALIBRATION).write_text(json.dumps(event.calibration), encoding="utf-8")
    (data / "keras_module.txt").write_text("keras", encoding="utf-8")
    _write_requirements(folder)
    # With a signature of inputs, MLflow would take arrays or files, but not both.
    types = {bool: DataType.boolean, int: DataType.long}
    params = [ParamSpec(name, types[type(value)], value) for name, value in PARAMS.items()]
    description.signature = ModelSignature(params=ParamSchema(params))
    ends = {"inputs": event.inputs, "outputs": event.outputs}
    description.metadata = {
        "class_names": list(event.class_names),
        **{end: {"dtype": each[0], "shape": list(each[1])} for end, each in ends.items() if each},
    }
    if event.divisor != 1:
        description.metadata["divisor"] = event.divisor
    description.add_flavor(
        "keras",
        data="data",
        keras_version=metadata.version("keras"),
        keras_backend="tensorflow",
        save_exported_model=False,
    )
    _ship(folder / "code")
    mlflow.pyfunc.add_to_model(
        description,
        loader_module=LOADERS[1],
        data="data",
        code="code",
        conda_env="conda.yaml",
        python_env="python_env.yaml",
    )
    description.model_size_bytes = sum(each.stat().st_size for each in data.iterdir())
    description.save(str(folder / "MLmodel"))


def _write_requirements(folder: Path) -> None:
    """Say which libraries a model in a folder needs, as conda, virtualenv and pip read it."""
    import yaml

    python = platform.python_version()
    requirements = [f"{library}=={metadata.version(library)}" for library in REQUIRED]
    conda = {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", "pip", {"pip": requirements}],
    }
    virtualenv = {
        "python": python,
        "build_dependencies": ["pip", "setuptools", "wheel"],
        "dependencies": ["-r requirements.txt"],
    }
    for name, content in (("conda.yaml", conda), ("python_env.yaml", virtualenv)):
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(requirements), encoding="utf-8")


def _ship(folder: Path) -> None:
    """Copy the modules that serve a model into a folder, as a package of its own."""
    package = Path(__file__).parents[1]
    for module in SHIPPED:
        source = package.joinpath(*module.split(".")).with_suffix(".py")
        copy = folder / THEIRS / source.relative_to(package)
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = re.sub(rf"^from {OURS}\b", f"from {THEIRS}", source.read_text("utf-8"), flags=re.M)
        copy.write_text(text, encoding="utf-8")


def is_there(client: Any, run_id: str) -> bool:
    """Return whether a run has its model; remove what an interrupted delivery has left.

    Args:
        client: MLflow's client of the store.
        run_id: The run.
    """
    there = False
    for model in models_of(client, client.get_run(run_id)):
        place = durable.local_path(model.artifact_location)
        if model.status == "READY" and not there and not (place and model_damage(place)):
            there = True
            continue
        client.delete_logged_model(model.model_id)
        if place:
            shutil.rmtree(place.parent, ignore_errors=True)
    return there


def metrics(event: Metrics, model_id: str | None = None) -> list[Any]:
    """Return an event's metrics as MLflow has them, of the run or of its model."""
    from mlflow.entities import Metric

    return [
        Metric(name, value, event.time, event.step, model_id=model_id)
        for name, value in event.values.items()
    ]


def load_model(
    uri: str, store: Store, load: Callable[[Path], M]
) -> tuple[M, tuple[str, ...] | None]:
    """Fetch a logged Keras model and load it.

    Nothing of MLflow's loads the file, so the description brings no code to life, but a model
    whose description asks for that is refused.

    Args:
        uri: runs:/RUN_ID/model, models:/NAME/VERSION, a folder or a .keras file.
        store: The store that the first two refer to.
        load: Loads a Keras file that anyone may have written, such as `models.saved.load`.

    Returns:
        The model, and the names of its classes if they were logged with it.

    Raises:
        UserError: There is no such model, or it is no Keras model.
    """
    import mlflow.models

    use(store)
    if uri.startswith(("runs:", "models:")):
        with translated(store):
            check_schema(store)
    # The parsers of YAML, zip files, HDF5 and Keras configs raise anything on a damaged file.
    with read_errors(
        store,
        f"the model '{line(uri, NAME_LENGTH)}' cannot be loaded as a Keras model",
        expected="; expected runs:/RUN_ID/model, models:/NAME/VERSION, a folder that MLflow wrote, "
        "or a .keras file",
    ):
        # A question to a database that does not exist would create it.
        if store.database and not store.database.exists() and not Path(uri).exists():
            raise FileNotFoundError(f"there is no store {store.database}")
        if Path(uri).is_file():
            return load(Path(uri)), None
        with tempfile.TemporaryDirectory() as place:
            folder = download(uri, place)
            if torn := model_damage(folder):
                raise ValueError(
                    f"{torn}, as after a power cut; if a run has made it, the run's command with "
                    "resume=true makes it again"
                )
            bounds.check_yaml((folder / "MLmodel").read_bytes())
            description = mlflow.models.Model.load(folder)
            model = load(folder / _keras_file(description.flavors))
    known = description.metadata
    names = known.get("class_names") if isinstance(known, Mapping) else None
    return model, tuple(map(line, names)) if isinstance(names, list) and names else None


def read_calibration(uri: str, store: Store) -> tuple[Scaling | None, str]:
    """Return the temperature and the threshold that are kept with a model, and the model's run.

    Args:
        uri: As for `load_model`.
        store: The store that the URI refers to.

    Returns:
        Both, or None if the model has none, as one that was trained without held-out images; and
        the id of the run that made it, "" if its description names none.

    Raises:
        UserError: The model is not there, or its file is damaged.
    """
    import yaml

    use(store)
    problem = f"the {CALIBRATION} of the model '{line(uri, NAME_LENGTH)}' cannot be read"
    with tempfile.TemporaryDirectory() as place, read_errors(store, problem):
        folder = download(uri, place)
        if not folder.is_dir():
            return None, ""
        bounds.check_yaml(text := (folder / "MLmodel").read_bytes())
        run_id = str((yaml.safe_load(text) or {}).get("run_id") or "")
        file = folder / CALIBRATION
        if not file.is_file():
            return None, run_id
        if file.stat().st_size > bounds.MOST_TEXT:
            raise ValueError(f"it has {file.stat().st_size:,} bytes")
        return Scaling.of(json.loads(file.read_text(encoding="utf-8"))), run_id


def _keras_file(flavors: Mapping[str, Any]) -> PurePath:
    """Return the path of a model's Keras file, as its description says.

    Raises:
        ValueError: The description names code of its own, another kind of file, or a file
            elsewhere.
    """
    ours = flavors.get("keras")
    if not isinstance(ours, Mapping):
        raise ValueError(f"its MLmodel describes {', '.join(map(str, flavors)) or 'nothing'}")
    loader = flavors.get("python_function", {}).get("loader_module", "mlflow.keras")
    if loader not in LOADERS:
        raise ValueError(f"its MLmodel has the module {loader} load it, which could do anything")
    for name, flavor in flavors.items():
        # Our own code is there for MLflow's server; here, none of it runs.
        shipped = name == "python_function" and loader == LOADERS[1]
        if flavor.get("code") and not shipped:
            raise ValueError(f"its MLmodel brings code along, {name}.code={flavor['code']}")
    if ours.get("save_exported_model"):
        raise ValueError("its MLmodel asks for an exported graph, which has no safe mode")
    file = PurePath(str(ours.get("data", "")))
    if file.is_absolute() or ".." in file.parts:
        raise ValueError(f"its MLmodel points out of its folder, to {file}")
    return file / "model.keras"
