"""`runs export`: models for other runtimes."""

import importlib.util
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from doors import one_line

from fmnist_lab.errors import UserError
from fmnist_lab.jobs import export
from fmnist_lab.models import portable
from fmnist_lab.runs.__main__ import app

EXTRAS = {name: each for name, each in portable.FORMATS.items() if each.extra}


@pytest.fixture
def say(capfd):
    """A function that does a command, and returns what it printed."""

    def say(*words: str, code: int = 0) -> str:
        capfd.readouterr()
        found = 0
        try:
            app(["export", *map(str, words)])
        except SystemExit as ended:
            found = int(ended.code or 0)
        said = capfd.readouterr()
        assert found == code, said.out + said.err
        if code:
            return one_line(said.err)
        assert said.err == ""
        return " ".join(said.out.split())

    return say


@pytest.mark.parametrize("name", EXTRAS)
def test_a_format_whose_extra_is_missing_names_the_command(say, name, monkeypatch):
    missing = EXTRAS[name].modules[-1]
    found = importlib.util.find_spec

    def find_spec(module: str, *rest: object) -> object:
        return None if module == missing else found("json")

    monkeypatch.setattr(portable, "find_spec", find_spec)
    said = say("any", "--format", name, code=2)
    assert said == (
        f"--format: received {name}, which needs {missing}, not installed here; "
        f"pip install 'fmnist_lab[{EXTRAS[name].extra}]'"
    )


def test_every_extra_is_one_of_the_project():
    from importlib import metadata

    extras = metadata.metadata("fmnist_lab").get_all("Provides-Extra")
    project = Path(__file__).parent.parent / "pyproject.toml"
    if project.exists():
        import tomllib

        extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    assert {each.extra for each in EXTRAS.values()} <= set(extras)


@pytest.mark.parametrize(
    ("name", "file", "reason"),
    [
        ("onnx", "a.pb", "expected a name that ends in .onnx"),
        ("onnx", "there.onnx", "there.onnx is there already"),
        ("openvino", "half.xml", "half.bin is there already"),
        ("saved_model", "folder", "folder is there already"),
    ],
)
def test_a_name_that_is_refused(tmp_path, name, file, reason):
    for each in ("there.onnx", "half.bin"):
        (tmp_path / each).touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError) as caught:
        export.check_output(tmp_path / file, name, overwrite=False)
    assert reason in str(caught.value)


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "a.onnx").mkdir()
    with pytest.raises(UserError, match="a folder, expected a file's name"):
        export.check_output(tmp_path / "a.onnx", "onnx", overwrite=True)


def installed(name: str) -> None:
    try:
        portable.check_installed(name)
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("name", portable.FORMATS)
def test_a_run_is_exported_and_gives_the_same_answers(say, trained, tmp_path, name, pixels):
    installed(name)
    output = tmp_path / "new" / f"model{portable.FORMATS[name].suffix}"
    run, store = trained.run.info.run_id, ("--store", trained.uri)
    said = say(run, "--format", name, "--output", output, *store)
    assert "agrees with Keras on the label of all 500 test images" in said
    names = portable.FORMATS[name].names(output)
    assert sorted(output.parent.iterdir()) == sorted(names)
    found = portable.load(name, output)(pixels.test_images[:500])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, trained.predictions["probabilities"], atol=1e-5)
    assert "is there already" in say(run, "--format", name, "--output", output, *store, code=2)
    say(run, "--format", name, "--output", output, "--overwrite", *store)
    assert sorted(output.parent.iterdir()) == sorted(names)


@pytest.mark.slow
def test_without_a_name_the_file_is_called_after_the_run(say, trained, tmp_path):
    with chdir(tmp_path):
        say("--best", "loss/test", "--format", "keras", "--store", trained.uri)
    assert [each.name for each in tmp_path.iterdir()] == ["h128_e2_train1000_test500_s0.keras"]


@pytest.mark.slow
@pytest.mark.parametrize("change", ["labels", "probabilities", "nan"])
def test_a_file_with_other_answers_is_not_kept(trained, backend, tmp_path, monkeypatch, change):
    from fmnist_lab import predict

    model = predict.load(trained.model, store=trained.uri).model
    load = portable.load

    def changed(*words):
        def answer(images: np.ndarray) -> np.ndarray:
            found = load(*words)(images)
            if change == "labels":
                found[3] = np.roll(found[3], 1)
            return found + {"labels": 0, "probabilities": 2e-5, "nan": np.nan}[change]

        return answer

    monkeypatch.setattr(portable, "load", changed)
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)
    with pytest.raises(UserError) as caught:
        export.export(model, "keras", tmp_path / "a.keras", images, within=1e-5)
    assert "was not kept: of 40 test images" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", portable.FORMATS)
def test_a_model_in_bfloat16_is_converted_in_float32(backend, tmp_path, name):
    installed(name)
    import keras

    from fmnist_lab.models import resnet

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = resnet((28, 28), 10, filters=(4, 8), flip_average=True)
    finally:
        keras.config.set_dtype_policy(before)
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)
    output = tmp_path / f"a{portable.FORMATS[name].suffix}"
    made = export.export(model, name, output, images, within=1e-5)
    assert made.apart.probability <= 1e-5
    if name == "keras":
        assert made.rounding is None
        return
    assert made.rounding is not None
    assert 0 < made.rounding.probability < 0.1
