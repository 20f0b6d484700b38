"""What comes from outside is data: no code of a model runs, no name in it says where we write."""

import contextlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from hostile import alias_bomb

from fmnist_lab import tracking
from fmnist_lab.errors import UserError

NO_STORE = tracking.Store.locate("sqlite:////nowhere/mlflow.db", for_writing=False)


@pytest.fixture(scope="module")
def original(backend, tmp_path_factory) -> Path:
    """A good model's folder, as MLflow writes it."""
    import mlflow.keras

    from fmnist_lab import models

    folder = tmp_path_factory.mktemp("models") / "good"
    mlflow.keras.save_model(
        models.mlp((28, 28), 10, hidden_units=4), str(folder), pip_requirements=["keras"]
    )
    return folder


@pytest.fixture
def folder(original, tmp_path, monkeypatch) -> Path:
    """A copy of it; the current folder is another."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return shutil.copytree(original, tmp_path / "model")


def load(folder: Path):
    from fmnist_lab.models import saved

    return tracking.load_model(str(folder), NO_STORE, saved.load)[0]


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(folder)
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith(f"the model '{folder}' cannot be loaded as a Keras model: ")
    return said


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_good_copy_loads(folder):
    assert load(folder).predict(np.zeros((1, 28, 28), np.uint8), verbose=0).shape == (1, 10)


def leaving(trace: str):
    """Code that leaves a trace."""
    return lambda x: (open(trace, "w").close(), x)[1]  # noqa: PTH123


def test_a_models_python_lambda_does_not_run(backend, folder, tmp_path):
    import keras

    trace = tmp_path / "trace"
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.Lambda(leaving(str(trace))),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.save(folder / "data/model.keras")
    trace.unlink()
    assert "lambda" in refusal(folder).lower()
    assert not trace.exists()


def described(folder: Path, **flavors: dict) -> None:
    """Tamper with a model's description."""
    file = folder / "MLmodel"
    description = yaml.safe_load(file.read_text())
    for name, values in flavors.items():
        description["flavors"].setdefault(name, {}).update(values)
    file.write_text(yaml.safe_dump(description))


EVIL = "from pathlib import Path\nPath('trace').touch()\n"


@pytest.mark.parametrize(
    ("flavors", "reason"),
    [
        ({"python_function": {"loader_module": "evil"}}, "the module evil"),
        ({"python_function": {"code": "code"}}, "brings code along, python_function.code=code"),
        ({"keras": {"code": "code"}}, "brings code along, keras.code=code"),
        ({"keras": {"save_exported_model": True}}, "an exported graph"),
        ({"keras": {"data": "../elsewhere"}}, "points out of its folder, to ../elsewhere"),
        ({"keras": {"data": "/elsewhere"}}, "points out of its folder, to /elsewhere"),
    ],
)
def test_a_tampered_description_is_refused_and_its_code_does_not_run(folder, flavors, reason):
    (folder / "code").mkdir()
    for name in ("evil", "keras", "h5py"):
        (folder / f"code/{name}.py").write_text(EVIL)
    shutil.copytree(folder / "data", folder.parent / "elsewhere")
    described(folder, **flavors)
    assert reason in refusal(folder)
    assert everything(Path()) == []


def test_the_code_that_a_model_brings_for_mlflows_server_does_not_run_here(folder):
    for name in ("fmnist_served/tracking/pyfunc.py", "fmnist_served/__init__.py", "keras.py"):
        file = folder / "code" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(EVIL)
    described(
        folder, python_function={"loader_module": "fmnist_served.tracking.pyfunc", "code": "code"}
    )
    assert load(folder).input_shape == (None, 28, 28)
    assert everything(Path()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a",
        "flavors: 3",
        "flavors: {keras: 3}",
        "a: !!python/object/apply:os.mkdir [trace]",
        "{",
        "flavors: {python_function: 1, keras: {}}",
    ],
)
def test_a_damaged_description_is_refused(folder, text):
    (folder / "MLmodel").write_text(text)
    refusal(folder)
    assert everything(Path()) == []


def repacked(folder: Path, change) -> None:
    """Change the members of a model's file, a dictionary of contents by name."""
    file = folder / "data/model.keras"
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    "layer",
    [
        {"module": "os", "class_name": "mkdir", "config": {"path": "trace"}},
        {"module": "builtins", "class_name": "function", "config": "mkdir"},
        {"module": "subprocess", "class_name": "Popen", "config": {"args": ["mkdir", "trace"]}},
        {"module": "pathlib", "class_name": "Path", "config": {}},
        {"module": "keras.utils", "class_name": "get_file", "config": {"origin": "file:///x"}},
    ],
)
def test_a_models_config_builds_nothing_but_layers(folder, layer):
    def change(members: dict[str, bytes]) -> None:
        config = json.loads(members["config.json"])
        config["config"]["layers"][1] = {"registered_name": None, "name": "x", **layer}
        members["config.json"] = json.dumps(config).encode()

    repacked(folder, change)
    refusal(folder)
    assert everything(Path()) == []


@pytest.mark.parametrize("name", ["../../outside", "/tmp/fmnist_lab-outside", "assets/../../x"])
@pytest.mark.filterwarnings("ignore:Skipping invalid path during archive extraction:UserWarning")
def test_a_models_members_do_not_say_where_we_write(folder, name):
    before = everything(folder.parent)
    repacked(folder, lambda members: members.update({name: b"evil"}))
    with contextlib.suppress(UserError):
        load(folder)
    assert everything(folder.parent) == before
    assert not Path("/tmp/fmnist_lab-outside").exists()


def unpacking_to_much(members: dict[str, bytes]) -> None:
    members["assets/x"] = bytes(300_000_000)


def weights_unpacking_to_much(members: dict[str, bytes]) -> None:
    file = io.BytesIO()
    with h5py.File(file, "w") as weights:
        weights.create_dataset("x", (10**9,), "f4", chunks=(10**6,), compression="gzip")
    members["model.weights.h5"] = file.getvalue()


@pytest.mark.parametrize("change", [unpacking_to_much, weights_unpacking_to_much])
def test_a_model_that_unpacks_to_far_more_than_it_has_is_refused_before(
    folder, monkeypatch, change
):
    repacked(folder, change)
    assert (folder / "data/model.keras").stat().st_size < 1_000_000
    monkeypatch.setattr("keras.saving.load_model", None)
    assert "unpack to " in refusal(folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (alias_bomb(), "an alias, *a0"),
        (b"[" * 100_000, "nests deeper than 50"),
        (b"x: " + b"y" * 2_000_000, "has 2,000,003 bytes"),
    ],
)
def test_a_description_that_would_keep_us_busy_is_refused(folder, text, reason):
    (folder / "MLmodel").write_bytes(text)
    assert reason in refusal(folder)


# A job is handed to its worker in a pickle that this user's own processes write and read; on Slurm
# it is a file in the sweep's folder, as is the result. Nothing from a store is among them.
HANDED_OVER = {
    *(("base.py", word) for word in ("import pickle", "cloudpickle")),
    ("slurm.py", "import pickle"),
}
FORBIDDEN = ("import pickle", "cloudpickle", "allow_pickle=True", "safe_mode=False", '"0.0.0.0"')


def test_no_module_unpickles_or_listens_to_the_world():
    package = Path(tracking.__file__).parent.parent
    found = {
        (file.name, word)
        for file in package.rglob("*.py")
        for word in FORBIDDEN
        if word in file.read_text()
    }
    assert found <= HANDED_OVER
