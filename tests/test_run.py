"""The doors from end to end: real processes, the real data (a thousand images of it), MLflow.

A process costs seconds, most of them TensorFlow's import. One tracked run, `tracked`, therefore
serves most tests, and what fails before or after training is tried in this process.
"""

import contextlib
import json
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import QUICK, Doors, Process, one_line
from idx_files import idx_bytes
from omegaconf import OmegaConf

from fmnist_lab import config, data, evaluation, jobs, predict, run
from fmnist_lab.errors import UserError

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

    process: Process

    @cached_property
    def run(self):
        return self.one("tags.job = 'train' and attributes.run_name = 'h128 e2 s0'")

    @property
    def model(self) -> str:
        return f"runs:/{self.run.info.run_id}/model"

    @cached_property
    def predictions(self) -> dict[str, np.ndarray]:
        with np.load(self.file(self.run, "predictions.npz")) as arrays:
            return dict(arrays)


@pytest.fixture(scope="session")
def tracked(doors: Doors, tmp_path_factory) -> First:
    folder = tmp_path_factory.mktemp("tracked")
    process = doors("run", folder, *QUICK)
    assert process.code == 0, process.err
    return First(folder, process)


@pytest.fixture(scope="session")
def pixels(real_data) -> data.Dataset:
    """The real data."""
    return data.load(real_data)


# The tracked run


def test_the_run_is_finished_and_complete(tracked):
    info = tracked.run.info
    assert (info.status, info.run_name) == ("FINISHED", "h128 e2 s0")
    assert tracked.client.get_experiment(info.experiment_id).name == "fmnist_lab"
    assert tracked.files(tracked.run) == FIGURES | {
        *("config.yaml", "evaluation.json", "predictions.npz")
    }
    for name in FIGURES:
        picture = tracked.file(tracked.run, name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 5000
    assert "failure" not in tracked.run.data.tags


def test_every_metric_has_a_value_for_each_epoch_from_1(tracked):
    metrics = tracked.run.data.metrics
    assert set(METRICS) <= set(metrics)
    for name in metrics:
        steps = [step for step, _ in tracked.history(tracked.run, name)]
        assert steps == [1, 2], name
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["images_per_second"] > 0


def test_the_test_accuracy_is_logged_first(tracked):
    """MLflow's compare page selects the first metric by itself."""
    rows = sqlite3.connect(tracked.folder / "mlflow.db").execute(
        "select key from metrics where run_uuid = ? order by rowid", (tracked.run.info.run_id,)
    )
    assert [key for (key,) in rows][: len(METRICS)] == METRICS


def test_gaps_are_differences_that_grow_with_overfitting(tracked):
    metrics = tracked.run.data.metrics
    for name, sign in (("accuracy", 1), ("loss", -1)):
        difference = sign * (metrics[f"{name}/train"] - metrics[f"{name}/test"])
        assert metrics[f"{name}/gap"] == pytest.approx(difference, abs=1e-12)


def test_it_has_learnt(tracked):
    (_, first), (_, second) = tracked.history(tracked.run, "loss/train")
    assert second < first < np.log(10)
    assert tracked.run.data.metrics["accuracy/test"] > 0.6


def test_params_say_what_was_chosen(tracked):
    expected = {
        "model": "mlp",
        "model.hidden_units": "128",
        "optimizer": "Adam",
        "optimizer.learning_rate": "0.001",
        "trainer.epochs": "2",
        "trainer.batch_size": "32",
        "data.train_limit": "1000",
        "data.test_limit": "500",
        "seed": "0",
    }
    assert tracked.run.data.params.items() >= expected.items()


def test_tags_say_what_ran_where(tracked):
    tags = tracked.run.data.tags
    assert (tags["job"], tags["engine"]) == ("train", "native")
    assert int(tags["threads"]) >= 1
    assert {"device", "host", "version.tensorflow", "version.keras", "version.mlflow"} <= set(tags)
    assert tags["mlflow.source.name"] == "python -m fmnist_lab.run " + " ".join(QUICK)
    checkout = Path(config.conf_dir()).parent
    if (checkout / ".git").exists():
        head = subprocess.run(
            ["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        assert tags["mlflow.source.git.commit"] == head.stdout.strip()
        assert tags["git.dirty"] in ("true", "false")


def test_the_logged_config_is_the_runs_and_composes_again(tracked):
    text = tracked.file(tracked.run, "config.yaml").read_text()
    values = OmegaConf.to_container(OmegaConf.create(text))
    again = config.validate(values)
    assert again.trainer.epochs == 2
    assert again.identity() == tracked.run.data.tags["config.hash"]


def test_the_data_set_is_named_by_its_digest(tracked, real_data):
    loaded = data.load(real_data, train_limit=1000, test_limit=500)
    assert tracked.run.data.tags["data.digest"] == loaded.digest
    (used,) = tracked.run.inputs.dataset_inputs
    assert used.dataset.digest == loaded.digest[:36]
    assert used.dataset.name == "fashion-mnist"


def test_predictions_and_figures_of_merit_agree_with_the_metrics(tracked, pixels):
    rows, labels = tracked.predictions["probabilities"], tracked.predictions["labels"]
    metrics = tracked.run.data.metrics
    assert (rows.dtype, rows.shape) == (np.float32, (500, 10))
    np.testing.assert_array_equal(labels, pixels.test_labels[:500])
    assert np.mean(rows.argmax(axis=1) == labels) == pytest.approx(metrics["accuracy/test"])
    assert evaluation.cross_entropy(rows, labels) == pytest.approx(metrics["loss/test"])
    said = json.loads(tracked.file(tracked.run, "evaluation.json").read_text())
    matrix = np.array(said["confusion_matrix"])
    assert matrix.sum() == 500
    assert np.trace(matrix) / 500 == pytest.approx(metrics["accuracy/test"])
    assert matrix.sum(axis=1).tolist() == np.bincount(labels, minlength=10).tolist()
    assert len(said["classes"]) == 10
    assert "Shirt" in json.dumps(said["classes"])


def test_the_model_has_an_exact_signature_and_requirements(tracked):
    from mlflow.models import get_model_info

    with asking(tracked.uri):
        info = get_model_info(tracked.model)
    (given,), (returned,) = info.signature.inputs.inputs, info.signature.outputs.inputs
    assert (given.type, given.shape) == (np.uint8, (-1, 28, 28))
    assert (returned.type, returned.shape) == (np.float32, (-1, 10))
    assert info.metadata["class_names"] == list(data.FASHION_MNIST.class_names)
    assert "Shirt" in info.metadata["class_names"]
    (output,) = tracked.run.outputs.model_outputs
    assert output.model_id == info.model_id
    folder = tracked.folder / "mlruns/fmnist_lab/models" / info.model_id / "artifacts"
    needed = (folder / "requirements.txt").read_text().split()
    assert all(re.fullmatch(r"[\w-]+==\d\S+", line) for line in needed)
    assert {line.partition("==")[0] for line in needed} == {
        "mlflow",
        "tensorflow",
        "keras",
        "numpy",
    }
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    assert "model.keras" in files
    assert not any(name.endswith(".pkl") for name in files)  # nothing that runs code when loaded


def test_the_model_has_the_metrics_of_the_last_epoch(tracked):
    from mlflow import MlflowClient

    (output,) = tracked.run.outputs.model_outputs
    kept = MlflowClient(tracked.uri).get_logged_model(output.model_id)
    assert {each.key: each.value for each in kept.metrics} == tracked.run.data.metrics
    assert {each.step for each in kept.metrics} == {output.step} == {2}


def test_only_the_store_is_left_behind(tracked):
    assert strays(tracked.folder) == []
    left = {path.name for path in (tracked.folder / "mlruns").iterdir()}
    assert left == {"fmnist_lab", "hydra", "unfinished", ".store.lock"}
    assert list((tracked.folder / "mlruns" / "unfinished").iterdir()) == []


# What the user reads


def test_the_screen_is_readable_in_a_file(tracked):
    check_quiet(tracked.process)
    lines = tracked.process.out.splitlines()
    assert all(line == line.rstrip() for line in lines if "epoch" in line)
    assert max(map(len, lines)) < 160
    said = tracked.process.out
    for fact in ("1,000 training", "500 test images", "101,770 parameters", "seed 0", "thread"):
        assert fact in said


def test_the_screen_shows_each_epoch(tracked):
    (heading,) = (line for line in tracked.process.out.splitlines() if "test accuracy" in line)
    columns = ["epoch", "loss", "accuracy", "test accuracy", "gap", "images/s", "time left"]
    assert re.split("  +", heading.strip()) == columns
    found = re.findall(
        r"^ +(\d)/2 +(\S+) +(\S+) +(\S+) +(\S+) +[\d,]+ +[\d.]+ s$", tracked.process.out, re.M
    )
    assert [int(number) for number, *_ in found] == [1, 2]
    for place, name in enumerate(["loss/fit", "accuracy/fit", "accuracy/test", "accuracy/gap"], 1):
        logged = tracked.history(tracked.run, name)
        assert [float(row[place]) for row in found] == pytest.approx(
            [value for _, value in logged], abs=6e-5
        )


def test_the_last_screen_tells_the_gap_and_where_to_go(tracked):
    said, metrics = tracked.process.out, tracked.run.data.metrics
    for name in ("accuracy", "loss"):
        (row,) = re.findall(rf"^{name} +(\S+) +(\S+) +(\S+)$", said, re.M)
        expected = [metrics[f"{name}/{part}"] for part in ("train", "test", "gap")]
        assert [float(cell) for cell in row] == pytest.approx(expected, abs=6e-5)
    assert f"{100 * metrics['accuracy/gap']:.1f} more right" in said
    assert re.search(r"^Training took [\d.]+ s, [\d,]+ images/s", said, re.M)
    run_id = tracked.run.info.run_id
    assert f"Run 'h128 e2 s0', id {run_id}" in said
    assert f"python -m fmnist_lab.runs ui {run_id}" in said
    assert f"python -m fmnist_lab.predict --model runs:/{run_id}/model" in said
    assert "python -m fmnist_lab.run -m " in said


def suggestion(tracked: First, title: str) -> list[str]:
    """The words after `python -m` of a command that the last screen suggests."""
    (line,) = re.findall(rf"^{title} +python -m (.*)$", tracked.process.out, re.M)
    return shlex.split(line)


def test_the_suggested_prediction_works(tracked, doors):
    module, *words = suggestion(tracked, "predict")
    process = doors(module.removeprefix("fmnist_lab."), tracked.folder, *words)
    assert process.code == 0
    check_quiet(process)
    names, rows = data.FASHION_MNIST.class_names, tracked.predictions["probabilities"]
    lines = process.out.splitlines()
    assert len(lines) == 2
    for line, index in zip(lines, (0, 12), strict=True):
        best = rows[index].argmax()
        assert line.startswith(f"test image {index}")
        assert f"{names[best]} {rows[index, best]:.1%}" in line
    assert strays(tracked.folder) == []


# The same elsewhere

RELOAD = """
import json, sys
import numpy as np, mlflow, mlflow.keras
store, model, images, answer = sys.argv[1:]
mlflow.set_tracking_uri(store)
pixels = np.load(images)
keras_model = mlflow.keras.load_model(model)
np.savez(
    answer,
    keras=keras_model.predict(pixels, verbose=0),
    pyfunc=mlflow.pyfunc.load_model(model).predict(pixels),
)
print("\\nour code:", "fmnist_lab" in sys.modules)
"""


def test_a_fresh_process_gives_the_logged_predictions_to_the_last_bit(
    tracked, doors, pixels, tmp_path
):
    np.save(tmp_path / "images.npy", pixels.test_images[:500])
    process = doors.python(
        *(tmp_path, RELOAD, tracked.uri, tracked.model),
        *(str(tmp_path / "images.npy"), str(tmp_path / "answer.npz")),
    )
    assert process.code == 0, process.err
    assert process.out.endswith("\nour code: False\n")  # MLflow alone is enough
    with np.load(tmp_path / "answer.npz") as answer:
        for way in ("keras", "pyfunc"):
            assert answer[way].dtype == np.float32
            assert answer[way].tobytes() == tracked.predictions["probabilities"].tobytes()


@pytest.fixture(scope="session")
def twin(tracked, doors, tmp_path_factory):
    """The same run again, from another folder, in the store that the environment names."""
    folder = tmp_path_factory.mktemp("elsewhere")
    process = doors("run", folder, *QUICK, "name=twin", MLFLOW_TRACKING_URI=tracked.uri)
    assert process.code == 0, process.err
    return folder, tracked.one("attributes.run_name = 'twin'")


def test_the_environments_store_is_used_from_any_folder(tracked, twin):
    folder, found = twin
    assert found.info.status == "FINISHED"
    assert found.info.experiment_id == tracked.run.info.experiment_id
    assert not (folder / "mlflow.db").exists()
    assert strays(folder) == []
    assert tracked.files(found) == tracked.files(tracked.run)


def keras_model(tracked: Tracked, found):
    import mlflow.keras

    with asking(tracked.uri):
        return mlflow.keras.load_model(f"runs:/{found.info.run_id}/model")


def test_the_same_seed_gives_identical_weights_in_another_process(backend, tracked, twin):
    _, second = twin
    models = [keras_model(tracked, found) for found in (tracked.run, second)]
    assert len(models[0].weights) == 4
    for ours, theirs in zip(*(model.get_weights() for model in models), strict=True):
        assert ours.tobytes() == theirs.tobytes()
    for metric in METRICS:
        assert tracked.history(tracked.run, metric) == tracked.history(second, metric)
    assert tracked.run.data.tags["config.hash"] == second.data.tags["config.hash"]


# job=evaluate


@pytest.fixture(scope="session")
def evaluated(tracked, doors):
    process = doors("run", tracked.folder, "job=evaluate", f"model_uri={tracked.model}", *QUICK[:2])
    assert process.code == 0, process.err
    return process, tracked.one("tags.job = 'evaluate'")


def test_evaluating_a_logged_model_gives_its_metrics_again(tracked, evaluated):
    _, found = evaluated
    assert found.info.status == "FINISHED"
    for name in METRICS[:6]:
        assert found.data.metrics[name] == tracked.run.data.metrics[name], name
    with np.load(tracked.file(found, "predictions.npz")) as arrays:
        assert arrays["probabilities"].tobytes() == tracked.predictions["probabilities"].tobytes()
    of_training = {"first_image.png", "training_images.png", "learning_curves.png"}
    assert tracked.files(found) >= FIGURES - of_training | {"evaluation.json"}


def test_an_evaluation_points_at_its_model(tracked, evaluated):
    process, found = evaluated
    assert found.data.tags["evaluated_run"] == tracked.run.info.run_id
    assert found.data.tags["model_uri"] == tracked.model
    check_quiet(process)
    assert f"id {found.info.run_id}" in process.out
    assert f"runs:/{found.info.run_id}/model" not in process.out  # it has none of its own


# Where nothing is kept


@pytest.mark.slow
def test_without_tracking_nothing_is_kept(doors, tmp_path):
    process = doors("run", tmp_path, "debug=smoke")
    assert process.code == 0
    check_quiet(process)
    assert "2/2" in process.out
    assert re.search(r"^accuracy +0\.\d{4} +0\.\d{4} +[+-]0\.\d{4}$", process.out, re.M)
    assert "Nothing was kept" in process.out
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size] == []


# How runs end badly

# Its rate is sound for half of the steps, and then no weight survives it.
OWN_SCHEDULE = """
import keras

def late(learning_rate, steps):
    return keras.optimizers.schedules.PiecewiseConstantDecay([steps // 2 - 1], [0.01, 1e38])
"""


def test_a_diverging_run_stops_is_failed_and_keeps_the_epochs_before(doors, tmp_path):
    (tmp_path / "own.py").write_text(OWN_SCHEDULE)
    process = doors(
        *("run", tmp_path, *QUICK[:2], "trainer.epochs=4", "optimizer=sgd"),
        "schedule._target_=own.late",
    )
    for said in (process.error, found_failed(tmp_path).data.tags["failure"]):
        assert "epoch 3" in said
        assert "optimizer.learning_rate" in said
    store = Tracked(tmp_path)
    for name in METRICS:
        assert [step for step, _ in store.history(store.one(), name)] == [1, 2]
    assert "2/4" in process.out
    assert "3/4" not in process.out


def found_failed(folder: Path):
    found = Tracked(folder).one()
    assert found.info.status == "FAILED"
    assert found.info.end_time is not None
    return found


def interrupted(doors: Doors, folder: Path, number: signal.Signals) -> Process:
    """Send a signal to a long run after its second epoch."""
    process = doors.start("run", folder, *QUICK[:2], "trainer.epochs=9999")
    wait_for(process, " 2/9999 ")
    process.kill(number)
    process.wait(60)
    return process


def wait_for(process: Process, text: str) -> None:
    deadline = time.monotonic() + 120
    while text not in process.out:
        assert process.running, process.err
        assert time.monotonic() < deadline
        time.sleep(0.05)


def check_killed(process: Process, folder: Path, code: int) -> None:
    assert process.code == code
    assert "Traceback" not in process.err
    found = Tracked(folder).one()
    assert found.info.status == "KILLED"
    history = Tracked(folder).history(found, "accuracy/test")
    assert [step for step, _ in history] == list(range(1, len(history) + 1))
    assert len(history) >= 2


def test_sigterm_kills_a_run_properly(doors, tmp_path):
    check_killed(interrupted(doors, tmp_path, signal.SIGTERM), tmp_path, 143)


@pytest.mark.slow
def test_ctrl_c_kills_a_run_properly(doors, tmp_path):
    check_killed(interrupted(doors, tmp_path, signal.SIGINT), tmp_path, 130)


@pytest.mark.slow
def test_sigterm_after_the_last_epoch_does_not_leave_a_run_running(doors, tmp_path):
    """While the figures are drawn and the model is written."""
    process = doors.start("run", tmp_path, *QUICK[:2], "trainer.epochs=1")
    wait_for(process, "1/1 ")
    process.kill(signal.SIGTERM)
    assert process.wait() in (0, 143)
    assert Tracked(tmp_path).one().info.status in ("KILLED", "FINISHED")


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.1, 0.2])
def test_sigterm_before_the_first_epoch_is_not_lost(doors, tmp_path, moment):
    """While the first step is compiled, Python may be anywhere: in a callback of the garbage
    collector, say, which swallows what a signal's handler raises."""
    process = doors.start("run", tmp_path, *QUICK[:2], "trainer.epochs=9999")
    wait_for(process, "engine")
    time.sleep(moment)
    process.kill(signal.SIGTERM)
    assert process.wait(60) in (143, -signal.SIGTERM)
    assert process.err == ""
    if (tmp_path / "mlflow.db").exists():
        assert {each.info.status for each in Tracked(tmp_path).runs()} <= {"KILLED"}


# What is refused, in this process

SPOILED = "neither a database nor a folder"


@pytest.fixture
def refused(hydra_here, capsys):
    """A function that runs `fmnist_lab.run` with overrides and returns its one line."""

    def refuse(*overrides: str) -> str:
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["run", *overrides])
            with pytest.raises(SystemExit) as end:
                run.main()
        out, err = capsys.readouterr()
        assert (end.value.code, out) == (2, "")
        return one_line(err)

    yield refuse
    database = hydra_here / "mlflow.db"
    assert not database.exists() or database.read_bytes() == SPOILED.encode(), "a store was made"


TINY = {
    "train_images": np.zeros((12, 28, 28), np.uint8),
    "train_labels": np.arange(12, dtype=np.uint8) % 10,
    "test_images": np.zeros((10, 28, 28), np.uint8),
    "test_labels": np.arange(10, dtype=np.uint8),
}


def data_folder(folder: Path, **arrays: np.ndarray) -> Path:
    """A folder with four IDX files under Fashion-MNIST's names."""
    folder.mkdir()
    for name, array in {**TINY, **arrays}.items():
        file = getattr(data.FASHION_MNIST, name).name
        (folder / file).write_bytes(idx_bytes(array))
    return folder


def test_a_data_folder_that_is_missing(refused, tmp_path):
    said = refused(f"data.dir={tmp_path}/nowhere")
    assert f"{tmp_path}/nowhere" in said
    assert "no such folder" in said


def test_a_data_folder_without_a_file(refused, tmp_path):
    folder = data_folder(tmp_path / "mine")
    (folder / "t10k-labels-idx1-ubyte").unlink()
    said = refused(f"data.dir={folder}")
    assert "t10k-labels-idx1-ubyte" in said
    assert "train-images" not in said.split("expected")[0]


def test_a_data_folder_with_a_truncated_file(refused, tmp_path, real_data):
    import gzip

    folder = tmp_path / "mine"
    folder.mkdir()
    for file in data.FASHION_MNIST.files:
        (folder / file.name).symlink_to(real_data / file.name)
    broken = folder / "train-labels-idx1-ubyte"
    packed = gzip.compress(broken.read_bytes(), 1)
    broken.unlink()
    broken.with_name(f"{broken.name}.gz").write_bytes(packed[: len(packed) // 2])
    said = refused(f"data.dir={folder}")
    assert f"{broken}.gz" in said


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({}, "train-images-idx3-ubyte"),  # right in form, but other images
        ({"train_labels": np.full(12, 12, np.uint8)}, "train-labels-idx1-ubyte"),
        ({"test_images": np.zeros((10, 32, 32), np.uint8)}, "t10k-images-idx3-ubyte"),
        ({"test_labels": np.zeros(7, np.uint8)}, "t10k-"),
    ],
    ids=["other content", "label of 12", "other size", "fewer labels"],
)
def test_a_data_folder_with_other_content(refused, tmp_path, arrays, named):
    folder = data_folder(tmp_path / "mine", **arrays)
    said = refused(f"data.dir={folder}")
    assert named in said
    assert str(folder) in said
    assert "received" in said
    assert "expected" in said


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.train_limit=60001"],
        ["data.test_limit=10001"],
        ["data.train_limit=10", "data.validation_fraction=0.99"],
    ],
)
def test_more_images_than_there_are(refused, real_data, overrides):
    assert overrides[-1].partition("=")[0] in refused(*overrides)


@pytest.mark.parametrize(
    ("uri", "spoiled"),
    [
        ("sqlite:////proc/x.db", None),
        ("sqlite:///mlflow.db", "mlflow.db"),
        ("sqlite:///mlflow.db", "mlruns"),
        ("sqlite:///file/mlflow.db", "file"),
        ("/tmp/folder", None),
    ],
)
def test_a_store_that_cannot_be_written(refused, hydra_here, real_data, uri, spoiled):
    if spoiled:
        # Hydra would stumble over a file `mlruns` before us; see the test below.
        (hydra_here / spoiled).write_text(SPOILED)
    said = refused(f"tracking.uri={uri}", "hydra.run.dir=hydra", *QUICK)
    assert uri.rpartition("/")[2] in said
    assert "tracking" in said


def test_a_file_in_the_way_of_mlruns(refused, hydra_here):
    (hydra_here / "mlruns").write_text("")
    assert "mlruns" in refused(*QUICK)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("runs:/0123456789abcdef0123456789abcdef/model", "0123456789abcdef0123456789abcdef"),
        ("models:/nobody/1", "nobody"),
        ("/nowhere/model", "/nowhere/model"),
        ("runs:/", "runs:/"),
        ("s3://bucket/model", "s3://bucket/model"),
        ("nonsense://x", "nonsense://x"),
    ],
)
def test_a_model_that_does_not_exist(refused, backend, tracked, uri, reason):
    said = refused("job=evaluate", f"model_uri={uri}", f"tracking.uri={tracked.uri}", *QUICK)
    assert reason in said
    assert "expected runs:/RUN_ID/model" in said


def test_evaluating_in_a_folder_without_runs_makes_no_store(refused, backend, hydra_here):
    refused("job=evaluate", "model_uri=runs:/abc/model", "tracking=none", *QUICK)
    assert not (hydra_here / "mlflow.db").exists()


def saved(model, folder: Path) -> Path:
    import mlflow.keras

    mlflow.keras.save_model(model, str(folder), pip_requirements=["keras"])
    return folder


def dense(shape: tuple[int, ...], classes: int, activation: str | None = "softmax"):
    import keras

    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(classes, activation=activation),
        ]
    )


@pytest.mark.parametrize(
    ("shape", "classes", "activation", "reason"),
    [
        ((32, 32), 10, "softmax", "(28, 28)"),
        ((28, 28), 3, "softmax", "10 classes"),
        ((28, 28), 10, None, "softmax"),
    ],
    ids=["image size", "classes", "no softmax"],
)
def test_a_model_that_is_no_classifier_of_these_images(
    refused, backend, tmp_path, shape, classes, activation, reason
):
    folder = saved(dense(shape, classes, activation), tmp_path / "model")
    said = refused("job=evaluate", f"model_uri={folder}", *QUICK)
    assert str(folder) in said
    assert reason in said


def empty(folder: Path) -> None:
    folder.mkdir()


def with_broken_weights(folder: Path) -> None:
    saved(dense((28, 28), 10), folder)
    (folder / "data/model.keras").write_bytes(b"no zip archive")


def with_another_flavour(folder: Path) -> None:
    import mlflow.pyfunc

    class Nothing(mlflow.pyfunc.PythonModel):
        def predict(self, context: Any, model_input: list[str]) -> list[str]:
            return model_input

    mlflow.pyfunc.save_model(str(folder), python_model=Nothing(), pip_requirements=["numpy"])


def with_code_in_it(folder: Path) -> None:
    import keras

    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.Lambda(lambda x: x / 255),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    saved(model, folder)


@pytest.mark.parametrize(
    "make", [empty, with_broken_weights, with_another_flavour, with_code_in_it]
)
def test_a_folder_without_a_keras_model(refused, backend, tmp_path, make):
    make(tmp_path / "model")
    said = refused("job=evaluate", f"model_uri={tmp_path}/model", *QUICK)
    assert f"'{tmp_path}/model'" in said
    assert "cannot be loaded as a Keras model" in said


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("optimizer._target_=keras.optimizers.Nope", "keras.optimizers.Nope"),
        ("optimizer._target_=nowhere.Nope", "nowhere.Nope"),
        ("optimizer._target_=os.getcwd", "os.getcwd"),
        ("optimizer._target_=builtins.dict", "dict"),
        ("+optimizer.nope=1", "optimizer.nope"),
        ("model._target_=keras.layers.Dense", "keras.layers.Dense"),
        ("model._target_=keras.optimizers.Adam", "keras.optimizers.Adam"),
    ],
)
def test_what_only_keras_can_refuse(refused, backend, real_data, override, reason):
    assert reason in refused(override, *QUICK)


@pytest.mark.parametrize("units", ["100000000", "[100000,100000]"])
def test_a_model_that_no_memory_holds(refused, backend, real_data, units):
    """Refused by its size: trying would end in a trace from C++, or in Linux' killing it."""
    said = refused(f"model.hidden_units={units}", *QUICK)
    assert re.search(
        r"^model: received \d+(,\d{3}){3} parameters, which take \d[\d.,]* [GT]B", said
    )
    assert "Adam" in said


def test_an_argument_that_another_optimizer_does_not_take(refused, backend, real_data):
    said = refused("optimizer._target_=keras.optimizers.Lion", "+optimizer.rho=1", *QUICK)
    assert "rho" in said


# The predict door, in this process


@pytest.fixture
def ask(backend, tracked, capsys, monkeypatch):
    """A function that runs `fmnist_lab.predict` in the tracked run's folder."""
    monkeypatch.chdir(tracked.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def ask(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code: Any = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["predict", *words])
            try:
                predict.main()
            except SystemExit as end:
                code = end.code
        out, err = capsys.readouterr()
        return code or 0, out, err

    return ask


@pytest.fixture
def answer(ask):
    """The same, with --json, read."""

    def answer(*words: str) -> list[dict]:
        code, out, err = ask("--json", *words)
        assert (code, err) == (0, "")
        return json.loads(out)["predictions"]

    return answer


@pytest.fixture
def refuse(ask):
    """The same, for words that are refused."""

    def refuse(*words: str) -> str:
        code, out, err = ask(*words)
        assert (code, out) == (2, "")
        return one_line(err)

    return refuse


def image_file(path: Path, pixels: np.ndarray, **options: Any) -> str:
    from PIL import Image

    Image.fromarray(pixels).save(path, **options)
    return str(path)


def test_predictions_by_index_are_the_logged_ones(answer, tracked, pixels):
    names = pixels.class_names
    for index, said in zip(
        (0, 12, 499), answer("--index", "0", "12", "499", "--top-k", "3"), strict=True
    ):
        logged = tracked.predictions["probabilities"][index]
        best = np.argsort(-logged)[:3]
        assert [each["label"] for each in said["predictions"]] == [names[place] for place in best]
        assert [each["confidence"] for each in said["predictions"]] == pytest.approx(
            logged[best].tolist(), rel=1e-6
        )
        assert said["truth"] == names[pixels.test_labels[index]]
        assert said["image"] == f"test image {index}"


def test_image_files_are_predicted_as_their_pixels(answer, pixels, tmp_path):
    grey = image_file(tmp_path / "a.png", pixels.test_images[12])
    colour = image_file(tmp_path / "b.png", np.stack([pixels.test_images[12]] * 3, axis=-1))
    by_index, from_grey, from_colour = (
        *answer("--index", "12"),
        *answer(grey),
        *answer(colour),
    )
    assert from_grey["predictions"] == by_index["predictions"] == from_colour["predictions"]
    assert (from_grey["image"], from_grey["truth"]) == (grey, None)


def test_files_and_indices_together_are_answered_in_order(answer, pixels, tmp_path):
    file = image_file(tmp_path / "a.png", pixels.test_images[3])
    said = answer(file, "--index", "3", "1")
    assert [each["image"] for each in said] == [file, "test image 3", "test image 1"]
    assert said[0]["predictions"][0]["label"] == said[1]["predictions"][0]["label"]


def test_by_default_two_images_of_the_newest_run_are_predicted(answer, ask, tracked, twin):
    assert [each["image"] for each in answer()] == ["test image 0", "test image 12"]
    _, newest = twin
    found = json.loads(ask("--json")[1])["model"]
    assert found == f"runs:/{newest.info.run_id}/model"


def test_a_run_may_be_named_with_or_without_model(ask, tracked):
    run_id = tracked.run.info.run_id
    for uri in (f"runs:/{run_id}", f"runs:/{run_id}/model"):
        code, out, _ = ask("--model", uri, "--index", "5")
        assert code == 0
        assert out.startswith("test image 5  ")


def test_the_words_say_what_is_right_and_what_was_expected(ask, tracked, pixels):
    labels = pixels.test_labels[:500]
    guesses = tracked.predictions["probabilities"].argmax(axis=1)
    right, wrong = np.flatnonzero(guesses == labels)[0], np.flatnonzero(guesses != labels)[0]
    _, out, _ = ask("--model", tracked.model, "--index", str(right), str(wrong))
    first, second = out.splitlines()
    assert first.endswith("(right)")
    assert second.endswith(f"(wrong: {pixels.class_names[labels[wrong]]})")


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_predictions_are_drawn(ask, tmp_path, suffix):
    file = tmp_path / f"p.{suffix}"
    code, _, err = ask("--index", "0", "1", "2", "3", "--plot", str(file))
    assert (code, err) == (0, "")
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    assert file.read_bytes().startswith(starts[suffix])


@pytest.mark.parametrize("plot", ["nowhere/p.png", "p.docx"])
def test_a_drawing_that_cannot_be_written(ask, tmp_path, plot):
    code, _, err = ask("--index", "0", "--plot", str(tmp_path / plot))
    assert code == 2
    assert plot in one_line(err)


@pytest.mark.parametrize("index", ["10000", "-1"])
def test_an_index_out_of_range(refuse, index):
    said = refuse("--index", index)
    assert f"received {index}" in said
    assert "from 0 to 9999" in said


def test_a_picture_of_another_size(refuse, tmp_path):
    file = image_file(tmp_path / "a.png", np.zeros((30, 32), np.uint8))
    said = refuse(file)
    assert f"{file}: received 32x30 pixels, expected 28x28" in said


def test_a_file_that_is_no_picture(refuse, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    assert "cannot be read as an image" in refuse(str(tmp_path / "a.png"))


def test_a_picture_that_breaks_off(refuse, tmp_path, pixels):
    file = Path(image_file(tmp_path / "a.png", pixels.test_images[0]))
    file.write_bytes(file.read_bytes()[:200])
    assert "cannot be read as an image" in refuse(str(file))


def test_a_picture_that_is_not_there(refuse, tmp_path):
    assert "no such file" in refuse(str(tmp_path / "a.png"))


def test_a_folder_instead_of_a_picture(refuse, tmp_path):
    assert str(tmp_path) in refuse(str(tmp_path))


@pytest.mark.parametrize("uri", ["runs:/" + "0" * 32, "models:/nobody/1", "/nowhere", "nonsense"])
def test_an_unknown_model(refuse, uri):
    assert uri in refuse("--index", "0", "--model", uri)


def test_no_labels_at_all(refuse):
    assert "--top-k: received 0" in refuse("--top-k", "0")


def test_more_labels_than_there_are(answer):
    (said,) = answer("--index", "0", "--top-k", "99")
    assert len(said["predictions"]) == 10
    assert sum(each["confidence"] for each in said["predictions"]) == pytest.approx(1, abs=1e-5)


def test_a_word_that_is_no_number(ask):
    code, out, err = ask("--index", "zero")
    assert code != 0
    assert "zero" in out + err
    assert "Traceback" not in out + err


def test_a_folder_without_runs(refuse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "python -m fmnist_lab.run" in refuse()
    assert list(tmp_path.iterdir()) == []


# From Python


@pytest.fixture
def classifier(backend, tracked) -> predict.Classifier:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return predict.load(tracked.model, store=tracked.uri)


def test_a_batch_gives_the_logged_predictions(classifier, tracked, pixels):
    rows = classifier.predict(pixels.test_images[:500])
    assert rows.tobytes() == tracked.predictions["probabilities"].tobytes()
    assert classifier.class_names == pixels.class_names


def test_one_image_gives_one_row(classifier, tracked, pixels):
    row = classifier.predict(pixels.test_images[7])
    assert (row.shape, row.dtype) == ((10,), np.float32)
    np.testing.assert_allclose(row, tracked.predictions["probabilities"][7], rtol=1e-5)
    np.testing.assert_array_equal(classifier.predict(pixels.test_images[7:8]), row[None])


@pytest.mark.parametrize("convert", [np.int64, np.float32, np.ndarray.tolist])
def test_whole_numbers_of_any_type_are_pixels(classifier, pixels, convert):
    image = pixels.test_images[7]
    given = convert(image) if convert is np.ndarray.tolist else image.astype(convert)
    np.testing.assert_array_equal(classifier.predict(given), classifier.predict(image))


def test_no_images_give_no_rows(classifier):
    assert classifier.predict(np.zeros((0, 28, 28), np.uint8)).shape == (0, 10)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (np.zeros((27, 28), np.uint8), "(27, 28)"),
        (np.zeros((2, 28, 28, 1), np.uint8), "(2, 28, 28, 1)"),
        (np.zeros(784, np.uint8), "(784,)"),
        (np.full((28, 28), 0.5), "do not divide by 255"),
        (np.full((28, 28), 256), "0 to 255"),
        (np.full((28, 28), -1), "0 to 255"),
        (np.full((28, 28), np.nan), "0 to 255"),
        (np.full((28, 28), "a"), "0 to 255"),
        (np.full((28, 28), None), "0 to 255"),
    ],
    ids=["shape", "channel", "flat", "rescaled", "large", "negative", "nan", "text", "nothing"],
)
def test_what_are_no_images_is_refused(classifier, images, reason):
    with pytest.raises(UserError) as caught:
        classifier.predict(images)
    assert reason in str(caught.value)


# More of the same, in processes of their own


@pytest.mark.slow
def test_eight_processes_at_once_in_an_empty_folder(doors, tmp_path):
    processes = [
        doors.start("run", tmp_path, *QUICK[:2], "trainer.epochs=1", f"seed={seed}")
        for seed in range(8)
    ]
    assert [process.code for process in processes] == [0] * 8, [each.err for each in processes]
    for process in processes:
        check_quiet(process)
    found = Tracked(tmp_path).runs()
    assert {each.info.status for each in found} == {"FINISHED"}
    assert sorted(each.data.params["seed"] for each in found) == [str(n) for n in range(8)]
    assert {each.info.experiment_id for each in found} == {found[0].info.experiment_id}
    assert all(Tracked(tmp_path).files(each) >= FIGURES for each in found)
    assert strays(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "optimizer", "name"),
    [
        (["optimizer._target_=keras.optimizers.Lion"], "Lion", "h128 e1 s0"),
        (["model=linear", "optimizer=sgd"], "SGD", "linear e1 s0"),
        (["model.hidden_units=[32,16]", "model.dropout=0.2"], "Adam", "h32-16 e1 s0"),
        (["data.validation_fraction=0.2", "trainer.engine=graph"], "Adam", "h128 e1 s0"),
    ],
)
def test_other_choices_run_as_well(doors, tmp_path, overrides, optimizer, name):
    process = doors("run", tmp_path, *QUICK[:2], "trainer.epochs=1", *overrides)
    assert process.code == 0, process.err
    check_quiet(process)
    found = Tracked(tmp_path).one()
    assert (found.info.status, found.info.run_name) == ("FINISHED", name)
    assert found.data.params["optimizer"] == optimizer
    validated = "data.validation_fraction=0.2" in overrides
    assert ("accuracy/validation" in found.data.metrics) == validated


def test_not_every_epoch_need_be_evaluated(doors, tmp_path):
    process = doors("run", tmp_path, *QUICK[:2], "trainer.epochs=5", "trainer.evaluate_every=2")
    assert process.code == 0, process.err
    store = Tracked(tmp_path)
    for name, epochs in (("accuracy/test", [2, 4, 5]), ("accuracy/fit", [1, 2, 3, 4, 5])):
        assert [step for step, _ in store.history(store.one(), name)] == epochs
    gaps = [line for line in process.out.splitlines() if re.match(r" +\d/5 .*[+-]0\.", line)]
    assert [line.split()[0] for line in gaps] == ["2/5", "4/5", "5/5"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["data.train_limit=1", "data.test_limit=1", "trainer.epochs=1"],
        ["data.train_limit=40", "data.test_limit=13", "trainer.batch_size=1000"],
        ["debug=overfit", "data.test_limit=20"],
    ],
    ids=["one image", "one batch", "by heart"],
)
def test_few_images_are_enough_for_every_figure(doors, tmp_path, overrides):
    process = doors("run", tmp_path, *overrides)
    assert process.code == 0, process.err
    check_quiet(process)
    found = Tracked(tmp_path).one()
    assert found.info.status == "FINISHED"
    assert Tracked(tmp_path).files(found) >= FIGURES - {"prediction_12.png"}


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "warmup"])
def test_a_schedule_makes_no_noise(doors, tmp_path, schedule):
    process = doors(
        *("run", tmp_path, *QUICK[:2], "trainer.epochs=8", f"schedule={schedule}", "tracking=none")
    )
    assert process.code == 0
    check_quiet(process)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["[red]x", "a[/b]", "ü & 'x'"])
def test_a_run_may_have_any_name(doors, tmp_path, name):
    folder = tmp_path / "fol[d]er"
    folder.mkdir()
    quoted = "name='" + name.replace("'", "\\'") + "'"
    process = doors("run", folder, *QUICK[:2], "trainer.epochs=1", quoted)
    assert process.code == 0, process.err
    assert f"Run '{name}', id " in process.out
    assert f"{folder}/mlflow.db" in process.out
    assert Tracked(folder).one().info.run_name == name


@pytest.mark.slow
def test_hydras_change_of_folder_does_not_move_the_store(doors, tmp_path):
    process = doors("run", tmp_path, *QUICK[:2], "trainer.epochs=1", "hydra.job.chdir=true")
    assert process.code == 0, process.err
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("mlflow.db")] == [
        "mlflow.db"
    ]


@pytest.mark.slow
def test_the_suggested_sweep_works(tracked, doors, tmp_path):
    module, *words = suggestion(tracked, "sweep")
    process = doors(module.removeprefix("fmnist_lab."), tmp_path, *words, *QUICK[:2])
    assert process.code == 0, process.err
    assert process.err == ""
    assert "retracing" not in process.out
    found = Tracked(tmp_path).runs()
    assert {each.info.status for each in found} == {"FINISHED"}
    # A parent and its children.
    assert len({each.info.run_name for each in found}) == len(found) == 1 + 9
    assert strays(tmp_path) == []


@pytest.mark.slow
def test_a_run_outlives_the_reader_of_its_lines(doors, tmp_path):
    piped = """
import subprocess, sys
words = [sys.executable, "-m", "fmnist_lab.run", *sys.argv[1:]]
process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
process.stdout.readline()
process.stdout.close()
print(process.stderr.read(), process.wait())
"""
    process = doors.python(tmp_path, piped, *QUICK)
    assert process.out == " 0\n"
    (only,) = Tracked(tmp_path).runs()
    assert only.info.status == "FINISHED"
    process = doors.python(tmp_path, piped, "--help")
    assert process.out == " 0\n"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folder", "registered"])
def test_a_model_may_be_named_in_other_ways(tracked, doors, tmp_path, form):
    """By its folder, with no store at all; or by its name in MLflow's registry."""
    folder = next((tracked.folder / "mlruns/fmnist_lab/models").iterdir()) / "artifacts"
    if form == "folder":
        uri, store = str(folder), ["tracking=none"]
    else:
        tracked.client.create_registered_model("mine")
        version = tracked.client.create_model_version("mine", str(folder))
        uri, store = f"models:/mine/{version.version}", [f"tracking.uri={tracked.uri}"]
    process = doors("run", tmp_path, "job=evaluate", f"model_uri={uri}", *QUICK[:2], *store)
    assert process.code == 0, process.err
    check_quiet(process)
    accuracy = tracked.run.data.metrics["accuracy/test"]
    assert re.search(rf"^accuracy +\S+ +{accuracy:.4f} ", process.out, re.M)


@pytest.mark.slow
def test_a_server_out_of_reach_is_one_line(doors, tmp_path):
    process = doors("run", tmp_path, *QUICK, "tracking.uri=http://127.0.0.1:9")
    assert "http://127.0.0.1:9" in process.error
    assert "1/2" not in process.out  # found out before training, not after


@pytest.mark.slow
def test_a_new_users_home_makes_no_noise(doors, tmp_path, real_data):
    """No matplotlib cache, no Keras folder, no compiled programs, and none of it writable."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o555)
    folder = tmp_path / "work"
    folder.mkdir()
    process = doors(
        *("run", folder, *QUICK, f"data.dir={real_data}"),
        HOME=str(home),
        KERAS_HOME=str(home / ".keras"),
        FMNIST_LAB_CACHE=str(home / "cache"),
        MPLCONFIGDIR=str(tmp_path / "matplotlib"),
    )
    assert process.code == 0, process.err
    check_quiet(process)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "kept"), [("xla", "*.pb"), ("native", "*.so")])
def test_a_cache_of_compiled_programs_that_broke_is_no_obstacle(
    doors, tmp_path, real_data, engine, kept
):
    """As when a process was killed while it wrote there."""
    cache = tmp_path / "cache"
    words = ["run", tmp_path, *QUICK, "tracking=none", f"data.dir={real_data}"]
    words.append(f"trainer.engine={engine}")
    assert doors(*words, FMNIST_LAB_CACHE=str(cache)).code == 0
    programs = list((cache / engine).rglob(kept))
    assert programs
    for program in programs:
        program.write_bytes(program.read_bytes()[:100])
    process = doors(*words, FMNIST_LAB_CACHE=str(cache))
    assert process.code == 0, process.err
    check_quiet(process)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The package installed from its wheel into a folder."""
    place = tmp_path_factory.mktemp("wheel")
    source = Path(config.__file__).parents[1]
    if not (source / "pyproject.toml").exists():
        pytest.skip("the tests do not run from a checkout")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    isolation = [] if shutil.which("hatchling") is None else ["--no-build-isolation"]
    build = [*pip, "wheel", "--quiet", "--no-deps", *isolation, "-w", place, source]
    subprocess.run(build, check=True, capture_output=True)
    (file,) = place.glob("*.whl")
    install = [*pip, "install", "--quiet", "--no-deps", "--target", place / "site", file]
    subprocess.run(install, check=True, capture_output=True)
    return place / "site"


@pytest.mark.slow
def test_a_wheel_brings_its_configs_along(wheel, doors, tmp_path):
    where = "import fmnist_lab, fmnist_lab.config as c; print(fmnist_lab.__file__, c.conf_dir())"
    process = doors.python(tmp_path, where, PYTHONPATH=str(wheel))
    assert process.out.split() == [
        str(wheel / "fmnist_lab/__init__.py"),
        str(wheel / "fmnist_lab/conf"),
    ]
    source = Path(config.__file__).parents[1] / "conf"
    packed = {path.relative_to(wheel / "fmnist_lab/conf") for path in wheel.rglob("*.yaml")}
    assert packed == {path.relative_to(source) for path in source.rglob("*.yaml")}


@pytest.mark.slow
def test_a_wheel_runs_and_knows_no_commit(wheel, doors, tmp_path):
    process = doors("run", tmp_path, *QUICK, PYTHONPATH=str(wheel))
    assert process.code == 0, process.err
    check_quiet(process)
    found = Tracked(tmp_path).one()
    assert found.info.status == "FINISHED"
    assert "mlflow.source.git.commit" not in found.data.tags
    # The source of the native engine is in it, too.
    assert found.data.tags["engine"] == "native"


def test_jobs_are_what_the_configs_offer():
    assert sorted(jobs.JOBS) == config.options("job")


def test_several_callbacks_watch_a_training(doors, tmp_path):
    words = ("callbacks=[early_stopping,reduce_on_plateau]", "data.validation_fraction=0.2")
    small = ("data.train_limit=1000", "data.test_limit=500", "trainer.epochs=2")
    process = doors("run", tmp_path, *words, *small, "trainer.threads=1")
    assert (process.code, process.err) == (0, "")
    assert ", 1 thread\n" in process.out
    found = Tracked(tmp_path).one().data
    assert found.params["callbacks"] == "early_stopping, reduce_on_plateau"
    assert found.tags["threads"] == "1"


def test_what_fails_while_training_is_not_said_of_the_words(doors, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import keras\n\n\n"
        "class Failing(keras.callbacks.Callback):\n"
        "    def on_epoch_end(self, epoch, logs=None):\n"
        "        raise ValueError('my own mistake')\n"
    )
    words = ("callbacks=[early_stopping]", "+callbacks.mine._target_=mine.Failing")
    small = ("data.train_limit=1000", "data.test_limit=500", "data.validation_fraction=0.2")
    process = doors("run", tmp_path, *words, *small, "tracking=none")
    assert process.code == 1
    assert process.err.endswith("ValueError: my own mistake\n")
    assert "callbacks: received" not in process.err
