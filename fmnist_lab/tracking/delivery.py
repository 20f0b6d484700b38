"""From a run's journal into the store: each event can be delivered again without doubling it.

Params and tags are set to what they are, files are replaced, and a metric is known by its name,
step, time and value, so that MLflow itself drops a second one.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from fmnist_lab.errors import UserError
from fmnist_lab.tracking.store import Store, client_of, quiet_mlflow

if TYPE_CHECKING:
    import keras

# What MLflow says when the store may do better later; SQLite's lock is among them.
PASSING = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "ABORTED", "DEADLINE_EXCEEDED")


# Kinds of events that one call can take several of, and how many values MLflow takes in a call.
VALUES = ("params", "metrics", "tags")
MOST_VALUES = {"params": 100, "metrics": 800, "tags": 100}


class Delivery:
    """Takes events to a run in the store.

    Args:
        store: The store.
        run_id: The run.
        files: Folder with the files that events speak of.
        again: Whether an earlier delivery may have come some of the way.
    """

    def __init__(self, store: Store, run_id: str, files: Path, again: bool) -> None:
        self.store = store
        self.run_id = run_id
        self.files = files
        self.again = again
        self.client = client_of(store)

    def deliver(self, event: Mapping[str, Any], model: keras.Model | None = None) -> None:
        """Take one event to the store.

        Args:
            event: What a `Run` has journalled.
            model: The model of a model event, if it is at hand.
        """
        match event["kind"]:
            case kind if kind in VALUES:
                self.deliver_values([event])
            case "file":
                self.client.log_artifact(self.run_id, str(self.files / event["name"]))
            case "dataset":
                self._dataset(event)
            case "model":
                self._model(event, model)
            case "end":
                self.client.set_terminated(self.run_id, event["status"], event["time"])

    def deliver_values(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Take events of the kinds in `VALUES` to the store, all of them in one call or none."""
        from mlflow.entities import Param, RunTag

        metrics, params, tags = [], [], []
        for event in events:
            values = event["values"].items()
            match event["kind"]:
                case "metrics":
                    metrics += _metrics(event)
                case "params":
                    params += [Param(name, value) for name, value in values]
                case "tags":
                    tags += [RunTag(name, value) for name, value in values]
        self.client.log_batch(self.run_id, metrics, params, tags)

    def _dataset(self, event: Mapping[str, Any]) -> None:
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        source = CodeDatasetSource({"source": event["source"]})
        used = Dataset(
            name=event["name"],
            # MLflow's column holds 36 characters.
            digest=event["digest"][:36],
            source_type=source._get_source_type(),
            source=source.to_json(),
            schema=event["schema"],
            profile=event["profile"],
        )
        context = InputTag("mlflow.data.context", "training")
        inputs = [DatasetInput(used, [context])]
        try:
            self.client.log_inputs(self.run_id, inputs)
        except MlflowException as error:
            if is_outage(error):
                raise
            # MLflow looks for the data set, and adds it if it is not there; another run may have
            # been quicker in between. Now it is there.
            self.client.log_inputs(self.run_id, inputs)

    def _model(self, event: Mapping[str, Any], model: keras.Model | None) -> None:
        if self.again and self._model_is_there():
            return
        if "tensorflow" not in sys.modules:
            # MLflow's flavour imports it as well, and it would have a lot to say.
            from fmnist_lab import backend

            backend.start(lean=True)
        import mlflow.keras
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model, ModelSignature
        from mlflow.types import Schema, TensorSpec

        if model is None:
            import keras

            model = keras.saving.load_model(self.files / event["file"], compile=False)
        import numpy as np

        def tensor(symbol: keras.KerasTensor) -> TensorSpec:
            return TensorSpec(np.dtype(symbol.dtype), (-1, *symbol.shape[1:]))

        run = self.client.get_run(self.run_id)
        # Step by step, because MLflow's `log_model` would file the model under its Default
        # experiment and ask the store for the history of every metric.
        logged = self.client.create_logged_model(
            run.info.experiment_id, name="model", source_run_id=self.run_id, params=run.data.params
        )
        description = Model(
            artifact_path=logged.artifact_location,
            model_uuid=logged.model_id,
            run_id=self.run_id,
            model_id=logged.model_id,
        )
        scores = event.get("metrics") or {"step": 0, "time": 0, "values": {}}
        try:
            with tempfile.TemporaryDirectory() as folder, _requirements_taken_as_given():
                files = str(Path(folder, "model"))
                mlflow.keras.save_model(
                    model,
                    files,
                    mlflow_model=description,
                    signature=ModelSignature(
                        Schema([tensor(model.inputs[0])]), Schema([tensor(model.outputs[0])])
                    ),
                    metadata={"class_names": event["class_names"]},
                    # Left to itself, MLflow loads the model in another process to find these out.
                    pip_requirements=[
                        f"{library}=={metadata.version(library)}"
                        for library in ("mlflow", "tensorflow", "keras", "numpy")
                    ],
                )
                self.client.log_model_artifacts(logged.model_id, files)
            output = LoggedModelOutput(logged.model_id, step=scores["step"])
            self.client.log_outputs(self.run_id, [output])
            self.client.log_batch(self.run_id, _metrics(scores, logged.model_id))
        except Exception:
            self.client.finalize_logged_model(logged.model_id, "FAILED")
            raise
        self.client.finalize_logged_model(logged.model_id, "READY")

    def _model_is_there(self) -> bool:
        """Whether the run has its model; what is left of an attempt is cleared away."""
        run = self.client.get_run(self.run_id)
        models = self.client.search_logged_models(
            [run.info.experiment_id], f"source_run_id = '{self.run_id}'"
        )
        if any(model.status == "READY" for model in models):
            return True
        for model in models:
            self.client.delete_logged_model(model.model_id)
            location = urlsplit(model.artifact_location)
            if location.scheme == "file":
                shutil.rmtree(Path(unquote(location.path)).parent, ignore_errors=True)
        return False


@contextmanager
def _requirements_taken_as_given() -> Iterator[None]:
    """Keep MLflow from comparing a model's requirements with what is installed.

    They are what is installed, and it lists all packages there are for it, which takes 0.6 s. If it
    names this differently one day, only that time is lost. For one thread at a time, as the writing
    thread is.
    """
    try:
        from mlflow.utils import environment

        check = environment.warn_dependency_requirement_mismatches
    except (ImportError, AttributeError):
        yield
        return
    environment.warn_dependency_requirement_mismatches = lambda *_, **__: None
    try:
        yield
    finally:
        environment.warn_dependency_requirement_mismatches = check


def _metrics(event: Mapping[str, Any], model_id: str | None = None) -> list[Any]:
    """Return an event's metrics as MLflow has them, of the run or of its model."""
    from mlflow.entities import Metric

    return [
        Metric(name, value, event["time"], event["step"], model_id=model_id)
        for name, value in event["values"].items()
    ]


def batch(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the first events as far as one call can take them, or else the first alone."""
    room, taken = dict(MOST_VALUES), list[Mapping[str, Any]]()
    for event in events:
        kind = event["kind"]
        if kind in VALUES:
            room[kind] -= len(event["values"])
        if kind not in VALUES or room[kind] < 0:
            return taken or [event]
        taken.append(event)
    return taken


def is_outage(error: BaseException) -> bool:
    """Return whether an error means that the store may take the same event later."""
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        text = str(error)
        # So MLflow's client puts whatever happens between it and a server.
        away = "API request to" in text and "failed with exception" in text
        # A server, or a proxy before it, that is in trouble itself.
        trouble = getattr(error, "get_http_status_code", lambda: 0)() in (502, 503, 504)
        return away or trouble or error.error_code in PASSING or "database is locked" in text
    return isinstance(error, (requests.RequestException, ConnectionError, TimeoutError))


def describe(images: Any) -> dict[str, str]:
    """Return shape and type of images as MLflow's dataset page shows them."""
    shape = list(images.shape)
    schema = {
        "mlflow_tensorspec": {
            "features": json.dumps(
                [{"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1, *shape[1:]]}}]
            ),
            "targets": None,
        }
    }
    profile = {"features_shape": shape, "features_size": images.size}
    return {"schema": json.dumps(schema), "profile": json.dumps(profile)}


def reason(error: BaseException) -> str:
    """Return an error as one line."""
    return " ".join(str(error).split()) or type(error).__name__


def reopen(store: Store, run_id: str) -> None:
    """Have a run of the store go on.

    Raises:
        UserError: The store does not know it.
    """
    quiet_mlflow()
    from mlflow.exceptions import MlflowException

    try:
        client_of(store).update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if is_outage(error):
            raise
        raise UserError(f"run {run_id} cannot go on: {reason(error)}") from None
