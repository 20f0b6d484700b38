"""A model and a data set of the user's own: the worked example of docs/own_model.md, and limits."""

import hashlib
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from idx_files import idx_bytes, tiny_arrays, write
from own_files import FILES
from PIL import Image
from tracked import Tracked

from fmnist_lab import data, predict
from fmnist_lab.config import naming
from fmnist_lab.data import idx
from fmnist_lab.errors import UserError
from fmnist_lab.jobs import build
from fmnist_lab.training import preflight

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
OWN_DATA = ("data=idx", "data.name=tiny", "data.class_names=[a,b,c]")


def files(**changes: np.ndarray) -> dict[str, bytes]:
    """The four files of a tiny data set, by name."""
    arrays = tiny_arrays() | changes
    return {FILES[part]: idx_bytes(array) for part, array in arrays.items()}


@pytest.fixture
def folder(hydra_here) -> Path:
    return write(hydra_here / "tiny", files())


@pytest.mark.slow
def test_the_worked_example(doors, tmp_path):
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    text = (ROOT / "docs" / "own_model.md").read_text()
    commands = re.findall(r"^python -m fmnist_lab.run (.*)$", text, re.MULTILINE)
    (both,) = [line for line in commands if "data=shapes" in line and "model=own" in line]
    subprocess.run([sys.executable, "shapes.py"], cwd=tmp_path, check=True)
    process = doors("run", tmp_path, *shlex.split(both))
    assert process.code == 0, process.err
    assert "shapes: 6,000 training, 1,000 test images, folder shapes" in process.out
    assert "--index" not in process.out  # which would show Fashion-MNIST's images
    store = Tracked(tmp_path)
    found = store.one()
    assert found.data.params["model"] == "patches.patches"
    assert found.data.params["data.name"] == "shapes"
    assert found.data.metrics["accuracy/test"] > 0.5
    rows = json.loads(store.file(found, "evaluation.json").read_text())["classes"]
    assert [row["name"] for row in rows] == ["disc", "square", "cross"]
    content = (tmp_path / "shapes" / "test-images").read_bytes()
    images = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 14, 14)
    Image.fromarray(images[0]).save(tmp_path / "one.png")
    told = doors("predict", tmp_path, "one.png")
    assert told.code == 0, told.err
    assert re.match(r"one\.png +(disc|square|cross) ", told.out)
    refused = doors("predict", tmp_path).error
    assert "Fashion-MNIST, but" in refused
    assert "disc, square, cross; give it image files" in refused


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data=idx"], "data.name: missing, expected a value; add data.name=VALUE"),
        ([*OWN_DATA], "data.dir: missing"),
        ([*OWN_DATA, "data.dir=x", "data.class_names=1"], "data.class_names: received 1"),
        ([*OWN_DATA, "data.dir=x", "data.name=a/b"], "data.name: received 'a/b'"),
        ([*OWN_DATA, "data.dir=x", "data.sha256=[ab]"], "data.sha256: received ['ab']"),
        (["model=own"], "model._target_: missing"),
        (["model=own", "model.units=3"], "+model.units=VALUE"),
    ],
)
def test_what_is_refused(door, overrides, said):
    assert said in door.error(*overrides)


def test_data_by_config_alone(door, folder):
    contents = files()
    digests = [hashlib.sha256(contents[name]).hexdigest() for name in FILES.values()]
    asked = door.config(*OWN_DATA, "data.dir=tiny", f"data.sha256=[{','.join(digests)}]")
    loaded = build.load_data(asked)
    assert (loaded.name, loaded.class_names) == ("tiny", ("a", "b", "c"))
    assert np.array_equal(loaded.train_images, tiny_arrays()["train_images"])
    assert naming.params(asked)["data.name"] == "tiny"
    counted = door.config(*OWN_DATA, "data.dir=tiny", "data.class_names=3")
    assert build.load_data(counted).class_names == ("0", "1", "2")
    pinned = door.config(*OWN_DATA, "data.dir=tiny", f"data.sha256=[{','.join(['0' * 64] * 4)}]")
    with pytest.raises(UserError, match=f"SHA-256 {digests[0]}.* expected SHA-256 0000"):
        build.load_data(pinned)


def test_another_folder_is_another_run_unless_its_content_is_verified(door):
    digests = f"data.sha256=[{','.join(['0' * 64] * 4)}]"

    def identity(*overrides: str) -> str:
        return door.config(*OWN_DATA, *overrides).identity()

    assert identity("data.dir=x") != identity("data.dir=y")
    assert identity("data.dir=x", digests) == identity("data.dir=y", digests)
    assert identity("data.dir=x") != identity("data.dir=x", digests)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_images": np.zeros(10, np.uint8)}, "an array of 10, expected images"),
        ({"test_images": np.zeros((5, 3, 4), np.uint8)}, "5 x 3 x 4, expected images of 4 x 3"),
        ({"test_labels": np.full(5, 3, np.uint8)}, "the label 3, expected 0 to 2"),
    ],
)
def test_files_that_do_not_fit(tmp_path, changes, said):
    write(tmp_path, files(**changes))
    described = idx.IdxDataset(
        "tiny",
        *(idx.IdxFile(name, None) for name in FILES.values()),
        class_names=("a", "b", "c"),
        image_shape=None,
    )
    with pytest.raises(UserError, match=said):
        data.load(tmp_path, dataset=described)


def test_arguments_of_another_model_are_explained(door, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    asked = door.config("model._target_=patches.patches")
    with pytest.raises(UserError, match=r"hidden_units.*every option but model=own"):
        asked.model.build(image_shape=(28, 28), classes=10)
    asked = door.config("model=own", "model._target_=patches.patches", "+model.size=5")
    with pytest.raises(UserError, match="must divide 28"):
        asked.model.build(image_shape=(28, 28), classes=10)


def test_layers_are_named_alike_in_every_job(door, folder, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    asked = door.config(
        *("model=own", "model._target_=patches.patches", "+model.size=1"),
        *(*OWN_DATA, "data.dir=tiny"),
    )
    dataset = build.load_data(asked)

    def job() -> str:
        preflight.check(lambda: build.built(asked, dataset), build.build_optimizer(asked, images=6))
        return build.build_model(asked, dataset).to_json()

    first = job()
    assert job() == first
    assert '"dense"' in first  # as Keras names it, not the model


def test_the_example_picture_is_what_its_script_draws():
    drawn = runpy.run_path(str(EXAMPLES / "shoe.py"))["draw"]()
    pixels = predict.read_image(EXAMPLES / "shoe.png").pixels
    assert pixels.shape == (28, 28)
    assert np.array_equal(pixels, np.asarray(drawn))
