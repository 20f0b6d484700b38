"""A run from end to end: its process, its screen, and everything that it leaves in the store.

A process costs seconds, most of them TensorFlow's import. One tracked run, `tracked`, therefore
serves most tests.
"""

import json
import re
import sqlite3
import subprocess
from pathlib import Path

import numpy as np
import pytest
from doors import QUICK
from omegaconf import OmegaConf
from tracked import FIGURES, METRICS, NAME, Tracked, asking, check_quiet, strays, suggestion

from fmnist_lab import config, data, evaluation

# The tracked run


def test_the_run_is_finished_and_complete(tracked):
    info = tracked.run.info
    assert (info.status, info.run_name) == ("FINISHED", NAME)
    assert tracked.client.get_experiment(info.experiment_id).name == "fmnist_lab"
    # A checkout that is being worked on keeps its changes as well.
    assert tracked.files(tracked.run) - {"code.diff"} == FIGURES | {
        *("config.yaml", "evaluation.json", "predictions.npz", "packages.txt")
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
    assert info.metadata["inputs"] == {"dtype": "uint8", "shape": [-1, 28, 28]}
    assert info.metadata["outputs"] == {"dtype": "float32", "shape": [-1, 10]}
    assert "top_k" in {each["name"] for each in info.signature.params.to_dict()}
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
        "pillow",
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
    assert left == {"fmnist_lab", "unfinished", ".store.lock"}
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
    # Of so few images, the gap may be chance.
    assert f"no evidence of overfitting: the gap is {metrics['accuracy/gap']:+.4f}, with" in said
    assert re.search(r"^Training took [\d.]+ s, [\d,]+ images/s", said, re.M)
    run_id = tracked.run.info.run_id
    assert f"Run '{NAME}', id {run_id}" in said
    assert f"python -m fmnist_lab.runs ui {run_id}" in said
    assert f"python -m fmnist_lab.predict --model runs:/{run_id}/model" in said
    assert "python -m fmnist_lab.run -m " in said


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
    pyfunc=[
        list(each["probabilities"].values())
        for each in mlflow.pyfunc.load_model(model).predict(pixels)
    ],
)
print("\\nour code:", "fmnist_lab" in sys.modules)
"""


@pytest.mark.slow
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
        logged = tracked.predictions["probabilities"]
        assert answer["keras"].dtype == np.float32
        assert answer["keras"].tobytes() == logged.tobytes()
        # Larger batches may differ in the last bits.
        np.testing.assert_allclose(answer["pyfunc"], logged, atol=1e-6)


@pytest.fixture(scope="session")
def twin(tracked, doors, tmp_path_factory):
    """The same run again, from another folder, in the store that the environment names."""
    folder = tmp_path_factory.mktemp("elsewhere")
    process = doors("run", folder, *QUICK, "name=twin", MLFLOW_TRACKING_URI=tracked.uri)
    assert process.code == 0, process.err
    return folder, tracked.one("attributes.run_name = 'twin'")


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_same_seed_gives_identical_weights_in_another_process(backend, tracked, twin):
    _, second = twin
    models = [keras_model(tracked, found) for found in (tracked.run, second)]
    assert len(models[0].weights) == 4
    for ours, theirs in zip(*(model.get_weights() for model in models), strict=True):
        assert ours.tobytes() == theirs.tobytes()
    for metric in METRICS:
        assert tracked.history(tracked.run, metric) == tracked.history(second, metric)
    assert tracked.run.data.tags["config.hash"] == second.data.tags["config.hash"]


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
