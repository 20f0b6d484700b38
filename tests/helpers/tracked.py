"""Runs that were made in a folder, read back from its store."""

import contextlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from doors import Process

NAME = "h128 e2 train1000 test500 s0"  # of a run with QUICK

FIGURES = {
    *("first_image.png", "training_images.png", "prediction_0.png", "prediction_12.png"),
    *("predictions.png", "learning_curves.png", "confusion_matrix.png", "calibration.png"),
    "confident_mistakes.png",
}
METRICS = [
    *("accuracy/test", "accuracy/train", "accuracy/gap"),
    *("loss/test", "loss/train", "loss/gap", "accuracy/fit", "loss/fit"),
]


@dataclass
class Tracked:
    """A folder in which runs were made."""

    folder: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    @cached_property
    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def runs(self, where: str = "") -> list:
        """All runs of all experiments, the newest first."""
        experiments = [each.experiment_id for each in self.client.search_experiments()]
        return self.client.search_runs(experiments, where, order_by=["attributes.start_time DESC"])

    def one(self, where: str = ""):
        (found,) = self.runs(where)
        return found

    def history(self, run, metric: str) -> list[tuple[int, float]]:
        points = self.client.get_metric_history(run.info.run_id, metric)
        return [(point.step, point.value) for point in points]

    def files(self, run) -> set[str]:
        return {item.path for item in self.client.list_artifacts(run.info.run_id)}

    def file(self, run, name: str) -> Path:
        return Path(self.client.download_artifacts(run.info.run_id, name))


@contextlib.contextmanager
def asking(uri: str) -> Iterator[None]:
    """Make a store MLflow's current one, for calls that cannot be told another."""
    import mlflow

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)  # put back afterwards, as MLflow sets it
        mlflow.set_tracking_uri(uri)
        yield


def strays(folder: Path) -> list[str]:
    """What lies in a folder beside the store."""
    return sorted(
        path.name for path in folder.iterdir() if path.name not in ("mlflow.db", "mlruns")
    )


def check_quiet(process: Process) -> None:
    """Check that a process said nothing that is not meant for the user."""
    assert process.err == ""
    for noise in (
        "WARNING",
        "INFO",
        "alembic",
        "oneDNN",
        "cuda",
        "\x1b",
        "Traceback",
        "sqlalchemy",
    ):
        assert noise not in process.out
    assert not re.search(r"\[?\d{4}[-/]\d\d[-/]\d\d", process.out)  # a log line's date


@dataclass
class First(Tracked):
    """The run that most tests look at."""

    process: Process | None

    @cached_property
    def run(self):
        return self.one(f"tags.job = 'train' and attributes.run_name = '{NAME}'")

    @property
    def model(self) -> str:
        return f"runs:/{self.run.info.run_id}/model"

    @cached_property
    def predictions(self) -> dict[str, np.ndarray]:
        with np.load(self.file(self.run, "predictions.npz")) as arrays:
            return dict(arrays)


def suggestion(tracked: First, title: str) -> list[str]:
    """The words after `python -m` of a command that the last screen suggests."""
    (line,) = re.findall(rf"^{title} +python -m (.*)$", tracked.process.out, re.M)
    return shlex.split(line)


def train_here(folder: Path, *words: str) -> None:
    """Make a run in this process, in a folder."""
    from fmnist_lab import run

    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run.main(*words)
