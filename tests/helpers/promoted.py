"""A store with runs whose models were never trained, for what chooses and promotes models."""

import json
from pathlib import Path

import numpy as np

from fmnist_lab import tracking
from fmnist_lab.tracking import Store

IMAGES = 400
LABELS = np.arange(IMAGES) % 10
NAMES = [f"class {number}" for number in range(10)]


class Models:
    """A store, and the runs that were made in it."""

    def __init__(self, folder: Path) -> None:
        from mlflow import MlflowClient

        self.store = Store.locate(f"sqlite:///{folder}/mlflow.db")
        self.place = self.store.open(tracking.DEFAULT_EXPERIMENT)
        self.client = MlflowClient(self.store.uri)

    def run(
        self,
        name: str,
        right: int = 300,
        *,
        validation: int | None = None,
        digest: str = "one",
        status: str = "FINISHED",
        params: dict | None = None,
        model: bool = True,
        job: str = "train",
        **tags: str,
    ) -> str:
        """Keep a run that gets the first test images right, and the first validation images."""
        from mlflow.entities import Metric, Param

        tags = {"job": job, "data.digest": digest, **tags}
        made = self.client.create_run(self.place, run_name=name, tags=tags).info
        metrics = {"accuracy/test": right / IMAGES, "accuracy/gap": 0.02, "loss/test": 1 / right}
        folder = Path(made.artifact_uri.removeprefix("file://"))
        folder.mkdir(parents=True)
        _predict(folder / tracking.PREDICTIONS, right)
        if validation is not None:
            metrics["accuracy/validation"] = validation / IMAGES
            _predict(folder / tracking.VALIDATION, validation)
        scores = {"classes": [{"name": each} for each in NAMES]}
        (folder / "evaluation.json").write_text(json.dumps(scores))
        params = {"model": "mlp", "trainer.epochs": 5, "seed": 0, **(params or {})}
        self.client.log_batch(
            made.run_id,
            [Metric(key, value, 0, 1) for key, value in metrics.items()],
            [Param(key, str(value)) for key, value in params.items()],
        )
        if model:
            self._log_model(made.run_id)
        self.client.set_terminated(made.run_id, status)
        return made.run_id

    def _log_model(self, run: str) -> None:
        made = self.client.create_logged_model(self.place, name="model", source_run_id=run)
        folder = Path(made.artifact_location.removeprefix("file://"))
        folder.mkdir(parents=True)
        Path(folder, "MLmodel").write_text("flavors: {}\n")
        self.client.finalize_logged_model(made.model_id, "READY")

    def champion(self, name: str = "fmnist", alias: str = "champion") -> str:
        """The run that is promoted, or "" if none is."""
        found = tracking.registered(self.store, name, alias=alias)
        return found.run_id if found else ""

    def versions(self, name: str = "fmnist") -> list[int]:
        found = self.client.search_model_versions(f"name='{name}'")
        return sorted(int(each.version) for each in found)

    def files(self, run: str) -> Path:
        return Path(self.client.get_run(run).info.artifact_uri.removeprefix("file://"))


def _predict(file: Path, right: int) -> None:
    predicted = (LABELS + (np.arange(IMAGES) >= right)) % 10
    np.savez(file, probabilities=np.eye(10, dtype="float32")[predicted], labels=LABELS)
