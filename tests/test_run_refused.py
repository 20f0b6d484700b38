"""Runs that are refused before they begin, with one line; all in this process."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doors import QUICK, one_line
from idx_files import idx_bytes
from tracked import First

from fmnist_lab import data, run

# Whichever test is the first here, it does not fetch the data itself.
pytestmark = pytest.mark.usefixtures("real_data")


@pytest.fixture(scope="module")
def tracked(trained) -> First:
    """A run that was made in this process, which is all that is needed here."""
    return trained


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


@pytest.mark.slow
def test_a_server_out_of_reach_is_one_line(doors, tmp_path):
    process = doors("run", tmp_path, *QUICK, "tracking.uri=http://127.0.0.1:9")
    assert "http://127.0.0.1:9" in process.error
    assert "1/2" not in process.out  # found out before training, not after
