"""The Python API: what the commands do, for a script and a notebook."""

import asyncio
import importlib
import inspect
import json
import math
import pickle
import sys
import time
from dataclasses import replace
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from doors import one_line

import fmnist_lab as lab
from fmnist_lab import tracking
from fmnist_lab.api.pictures import Pictures
from fmnist_lab.data import of_arrays
from fmnist_lab.evaluation import confidence
from fmnist_lab.runs.__main__ import app as verbs
from fmnist_lab.tracking import tables

TINY = ("data.train_limit=500", "data.test_limit=200", "trainer.epochs=2")
HEAVY = ("tensorflow", "keras", "mlflow", "pandas", "numpy", "hydra", "matplotlib")


@pytest.fixture(scope="module")
def folder(backend, real_data, tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture
def here(folder, monkeypatch) -> Path:
    """The folder whose store these tests share."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


@pytest.fixture(scope="module")
def made(folder) -> lab.Run:
    """A run, made inside a running event loop."""

    async def make() -> lab.Run:
        return lab.run(*TINY, "model.hidden_units=8", seed=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return asyncio.run(make())


@pytest.fixture(scope="module")
def swept(made, folder) -> lab.Runs:
    """A sweep with a job that fails, after another call in the same process."""
    rates = "optimizer.learning_rate=0.001,0.01,1e30"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with pytest.warns(UserWarning, match=r"1 of 3 jobs .* FAILED: the training loss of epoch"):
            return lab.sweep(*TINY, "model.hidden_units=8", rates)


def test_importing_it_is_quick(doors, tmp_path):
    code = f"""if True:
        import sys
        import fmnist_lab as lab
        assert set(lab.__all__) <= set(dir(lab))
        print([name for name in {HEAVY} if name in sys.modules])"""
    done = doors.python(tmp_path, code)
    assert (done.out, done.err) == ("[]\n", "")


@pytest.mark.parametrize("name", ["run", "runs", "sweep"])
def test_a_module_of_that_name_is_the_function_too(name):
    """Whatever was imported first: a module becomes the package's attribute."""
    module = importlib.import_module(f"fmnist_lab.{name}")
    assert getattr(lab, name) is module
    function = getattr(importlib.import_module("fmnist_lab.api"), name)
    assert inspect.signature(module) == inspect.signature(function)
    for pickler in (pickle, cloudpickle):
        assert pickle.loads(pickler.dumps(module)) is module
    with pytest.raises(AttributeError, match="has no attribute 'nope'"):
        lab.nope  # noqa: B018


@pytest.mark.parametrize(
    "words",
    [
        ("trainer.epochs=many",),
        ("model=nope",),
        ("seed=1,2",),
        ("data.train_limit=70000", "data.dir={data}"),
    ],
)
def test_an_error_has_the_sentence_of_the_command(door, real_data, words, monkeypatch):
    words = [word.format(data=real_data) for word in words]
    if "data.train_limit=70000" in words:
        from doors import one_line

        from fmnist_lab.run import main

        with pytest.raises(SystemExit):
            main(*words)
        said = one_line(door.capsys.readouterr().err)
    else:
        said = door.error(*words)
    with pytest.raises(lab.UserError) as raised:
        lab.run(*words)
    assert str(raised.value) == said
    assert door.capsys.readouterr().err == ""


def test_words_that_make_no_run_are_refused(hydra_here, capsys):
    for words in (["--version"], ["dry_run=true", *TINY]):
        with pytest.raises(lab.UserError, match="which makes no run"):
            lab.run(*words)
    with pytest.raises(lab.UserError, match=r"received -m, .* lab\.sweep"):
        lab.run("-m", "seed=1,2")
    with pytest.raises(lab.UserError, match="tracking=none: received it"):
        lab.sweep("tracking=none", "seed=1,2")
    with pytest.raises(lab.UserError, match=r"no runs: .* does not exist"):
        lab.runs()


def test_a_run_in_memory_is_that_in_the_store(made, here):
    kept = lab.runs(made.run_id[:12])[0]
    assert (kept.run_id, kept.name, kept.status) == (made.run_id, made.name, "FINISHED")
    assert made.params == {key: kept.params[key] for key in made.params}
    assert made.params["seed"] == 1
    assert made.params["model.hidden_units"] == 8
    assert kept.metrics == pytest.approx(made.metrics)
    assert made.gap == made.metrics["accuracy/train"] - made.metrics["accuracy/test"]
    assert list(kept.history.index) == list(made.history.index) == [1, 2]
    assert kept.history[made.history.columns].to_numpy() == pytest.approx(made.history.to_numpy())
    assert set(kept.figures) == set(made.figures) >= {"learning_curves", "confusion_matrix"}
    assert kept.figures["learning_curves"].png == made.figures["learning_curves"].png
    np.testing.assert_array_equal(*(run.predictions.probabilities for run in (kept, made)))
    images = lab.load_data(test_limit=5).test_images
    np.testing.assert_array_equal(kept.predict(images), made.predict(images))
    np.testing.assert_array_equal(made.predict(images), made.predictions.probabilities[:5])
    assert b"hidden_units: 8" in kept.file("config.yaml")
    assert "0.0000" not in repr(made)
    assert made.run_id in made._repr_html_()


def test_a_paused_run_has_no_predictions_of_an_earlier_epoch(here, made, monkeypatch):
    fits = []

    def fit(*arguments, real=confidence.fit):
        fits.append(real(*arguments))
        return fits[-1]

    monkeypatch.setattr(confidence, "fit", fit)
    words = ("trainer.epochs=4", "trainer.evaluate_every=2", "data.validation_fraction=0.2")
    words = (*TINY[:2], *words, "model.hidden_units=8", "seed=7")
    run = lab.run(*words, "pause_after=3")
    assert run.status == "PAUSED"
    with pytest.raises(lab.UserError, match="is PAUSED and has no predictions yet"):
        run.predictions  # noqa: B018
    assert fits == []
    run = lab.run(*words, "resume=true")
    assert [each.temperature for each in fits] == [run.metrics["calibration/temperature"]]


def test_a_model_is_served_whose_run_is_in_the_trash(here, made, monkeypatch):
    from fmnist_lab.runs import serve

    titles = []
    chosen = tracking.ChosenModel("models:/fmnist/1", "f" * 32)
    monkeypatch.setattr(tracking, "choose_model", lambda *_, **__: chosen)
    monkeypatch.setattr(serve, "load", lambda *_: None)
    monkeypatch.setattr(serve, "_serve", lambda _, title, *__: titles.append(title))
    serve.serve("models:/fmnist@champion", port=0)
    assert titles == ["models:/fmnist/1"]


def test_a_run_that_was_made_before_answers(made, here):
    again = lab.run(*TINY, "model.hidden_units=8", "resume=true", seed=1)
    assert again.run_id == made.run_id
    assert again.history.shape == made.history.shape


def test_a_sweep_is_a_frame(swept, here):
    assert [run.status for run in swept] == ["FINISHED", "FINISHED", "FAILED"]
    assert swept.varied == ["optimizer.learning_rate"]
    frame = swept.frame()
    assert frame["optimizer.learning_rate"].tolist() == [0.001, 0.01, 1e30]
    assert frame["trainer.epochs"].dtype == frame["seed"].dtype == np.int64
    assert "training diverged" in frame["failure"][2]
    assert list(swept.frame("name", "accuracy/gap")) == ["name", "accuracy/gap"]
    assert len(swept[frame["accuracy/gap"].notna()]) == len(swept[:2]) == 2
    assert swept[frame["run_id"].tolist()[::-1]].run_ids == swept.run_ids[::-1]
    assert swept[:2][[1, 0]].run_ids == swept.run_ids[1::-1]
    assert swept[:2][[False, True]].run_ids == swept.run_ids[1:2]
    assert swept[swept[1].name].run_id == swept[-2].run_id == swept.run_ids[1]
    assert lab.runs(swept.report()._repr_html_() and swept[0].run_id, swept[1].run_id).run_ids
    curves = swept.curves("accuracy/test")
    assert len(curves) == 4
    assert set(curves["optimizer.learning_rate"]) == {0.001, 0.01}
    assert "FAILED" in swept._repr_html_()
    assert repr(swept).startswith("<3 runs: ")


def test_runs_are_chosen_compared_and_reported(swept, here, tmp_path):
    slow, fast = (swept.filter(f"optimizer.learning_rate={rate}") for rate in (0.001, 0.01))
    assert (len(slow), len(fast)) == (1, 1)
    assert swept.filter(lambda run: run.accuracy > 0, status="FINISHED").run_ids == [
        *slow.run_ids,
        *fast.run_ids,
    ]
    with pytest.raises(lab.UserError, match=r"received model=cnn, which no run has"):
        swept.filter(model="cnn")
    assert {key: runs.run_ids for key, runs in swept.groups().items()} == dict(
        zip((0.001, 0.01, 1e30), ([run_id] for run_id in swept.run_ids), strict=True)
    )
    found = slow.compare(fast)
    assert "McNemar" in found.text
    assert set(found.frame()["metric"]) >= {"accuracy/test", "accuracy/gap"}
    both = swept[:2]
    probabilities, labels = both.predictions()
    assert (probabilities.shape, labels.shape) == ((2, 200, 10), (200,))
    assert both.summary()["runs"].tolist() == [1, 1]
    report = swept.report(tmp_path / "report", title="Rates")
    assert {file.name for file in report.files} >= {"results.csv", "report.html"}
    with pytest.raises(lab.UserError, match="nonsense"):
        swept.report(axes=("nonsense", "seed"))
    assert "1 run is in no mean" in report.text or "FAILED" in report.text
    assert swept.figures["by_parameter"].png.startswith(b"\x89PNG")
    assert "data:image/png" in swept.figures._repr_html_()
    with pytest.raises(KeyError, match="there are by_parameter"):
        swept.figures["nope"]


def test_what_a_database_is_asked_directly_is_what_mlflow_answers(swept, here):
    store = tracking.Store.locate(for_writing=False)
    for where in (
        "",
        "tags.job = 'train' and params.seed = '1'",
        "metrics.`accuracy/test` > 0 and attributes.status = 'FINISHED'",
        "attributes.run_name LIKE 'lr%' and tags.failure IS NULL",
    ):
        read = tables._read(store, "fmnist_lab", where)
        asked = list(tables.rows(store, "fmnist_lab", where))
        assert read == asked
        assert len(read) > 0
    with pytest.raises(lab.UserError, match=r"--where: received 'params\.a = 1 .*', which MLflow"):
        lab.runs("params.a = 1")


def test_a_model_of_ones_own(backend, real_data, hydra_here, capsys):
    """It takes images divided by 255, as in the tutorial."""
    import keras

    data = lab.load_data(train_limit=300, test_limit=100)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ],
        name="mine",
    )
    train = data.train_images / 255, data.train_labels
    arrays = train, (data.test_images / 255, data.test_labels)
    run = lab.train(model, arrays, "sgd", epochs=2, engine="graph")
    assert run.model is model
    assert run.params == {
        "model": "mine",
        "optimizer": "SGD",
        "optimizer.learning_rate": 0.01,
        "trainer.epochs": 2,
        "trainer.batch_size": 32,
        "seed": 0,
    }
    correct = run.predictions.probabilities.argmax(axis=1) == data.test_labels
    assert run.accuracy == pytest.approx(correct.mean())
    assert run.accuracy > 0.3
    kept = lab.runs("params.model = 'mine'")[0]
    image = data.test_images[0] / 255
    np.testing.assert_array_equal(kept.predict(image), run.predict(image[None])[0])
    assert kept.figures["prediction_0"].png == run.figures["prediction_0"].png
    assert math.isfinite(lab.runs(run.name)[0].gap)
    with pytest.raises(SystemExit):
        verbs(["again", "mine", "seed=1"])
    assert "which keeps no config, as it is of lab.train" in one_line(capsys.readouterr().err)


def test_a_model_of_ones_own_sees_pixels_in_its_scale(backend, real_data, hydra_here, tmp_path):
    """In whatever scale it was trained, and with whatever axis of the single channel."""
    import keras
    import mlflow.pyfunc

    from fmnist_lab import predict
    from fmnist_lab.runs import serve

    data = lab.load_data(train_limit=300, test_limit=60, validation_fraction=0.2)
    parts = {
        f"{part}_images": getattr(data, f"{part}_images") / 255
        for part in ("train", "validation", "test")
    }
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    run = lab.train(model, replace(data, **parts), epochs=1, engine="graph", name="scaled")
    expected = run.predictions.probabilities
    store = tracking.Store.locate(for_writing=False)
    pixels = data.test_images

    def rows(answers: list) -> np.ndarray:
        return np.array([list(each["probabilities"].values()) for each in answers])

    seen = predict.load("scaled").predict_pixels(pixels)
    np.testing.assert_array_equal(seen, expected)
    np.testing.assert_array_equal(run.classifier.predict_pixels(pixels), expected)
    (folder,) = Path().glob("mlruns/fmnist_lab/models/*/artifacts")
    noted = json.loads((folder / "calibration.json").read_text())
    assert noted["temperature"] == run.metrics["calibration/temperature"]
    answerer = serve.load(store, f"runs:/{run.run_id}/model")
    calibrated, served = (
        confidence.scaled(expected, answerer.calibration.temperature),
        answerer.answer(pixels),
    )
    by_mlflow = mlflow.pyfunc.load_model(str(folder)).predict(pixels)
    for answers in (served, by_mlflow):
        np.testing.assert_allclose(rows(answers), calibrated, atol=1e-5)
    files = set(tracking.file_names(store, run.run_id))
    assert {"packages.txt", "predictions_validation.npz", "evaluation.json"} <= files
    evaluated = lab.run(
        "job=evaluate",
        f"model_uri=runs:/{run.run_id}/model",
        "data.train_limit=300",
        "data.test_limit=60",
    )
    assert evaluated.accuracy == run.accuracy

    standard = {name: 2 * images - 1 for name, images in parts.items()}
    lab.train(model, replace(data, **standard), epochs=1, engine="graph", name="standard")
    classifier = predict.load("standard")
    assert classifier.predict(standard["test_images"]).shape == (60, 10)
    with pytest.raises(lab.UserError, match="in a scale that nobody has noted"):
        classifier.predict_pixels(pixels)
    with pytest.raises(lab.UserError, match="cannot be served: it was trained with images in a"):
        serve.load(store, f"{classifier.uri}")


@pytest.mark.parametrize(
    ("pixel", "labels", "told"),
    [
        (np.nan, np.arange(10), "received images with nan or infinite pixels"),
        (0.0, np.eye(10), "labels.argmax(axis=1) makes them so"),
    ],
)
def test_arrays_that_cannot_be_trained_on_are_refused(pixel, labels, told):
    images = np.full((10, 4, 4), pixel)
    with pytest.raises(lab.UserError) as caught:
        of_arrays(images, labels, images, labels)
    assert told in str(caught.value)


def test_classes_of_arrays_have_numbers_or_the_names_that_are_given():
    images, labels = np.zeros((10, 2, 2)), np.arange(10)
    arrays = images, labels, images, labels
    assert of_arrays(*arrays).class_names == tuple("0123456789")
    assert of_arrays(*arrays, class_names=list("abcdefghij")).class_names == tuple("abcdefghij")
    for names in ("abc", "aabcdefghi"):
        with pytest.raises(lab.UserError, match=r"class_names: received .*, expected 10 names"):
            of_arrays(*arrays, class_names=list(names))


def test_reading_leaves_mlflows_store_as_it_was(made, here, monkeypatch):
    import mlflow

    theirs = f"sqlite:///{here}/theirs.db"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(theirs)
    try:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        found = lab.runs(made.run_id)
        assert mlflow.get_tracking_uri() == theirs
        for read in (
            lambda: found.curves(),
            lambda: found.predictions(),
            lambda: found.report(),
            lambda: found.side(),
            lambda: found[0].history,
            lambda: found[0].predictions,
            lambda: found[0].figures["confusion_matrix"].png,
            lambda: found[0].model,
        ):
            read()
            assert mlflow.get_tracking_uri() == theirs
    finally:
        mlflow.set_tracking_uri(before)


def test_what_cannot_be_trained_is_told(backend, hydra_here):
    import keras

    model = keras.Sequential(
        [keras.Input((2, 2)), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")]
    )
    images, labels = np.zeros((4, 2, 2), np.float32), np.array([0, 1, 2, 0])
    data = (images, labels), (images, labels)
    for wrong, said in (
        ({"epochs": 0}, "epochs: received 0, expected a whole number, 1 or more"),
        ({"optimizer": "nope"}, "optimizer: received 'nope', expected a Keras optimizer"),
        ({"engine": "nope"}, "engine: received 'nope', expected one of auto, native, xla"),
        ({"data": [1, 2]}, "data: received list, expected what load_data returns"),
        ({"data": ((images, labels[:3]), data[1])}, "with one label for each"),
        ({"data": ((images, labels / 2), data[1])}, "expected whole numbers from 0"),
    ):
        with pytest.raises(lab.UserError, match=said):
            lab.train(model, **{"data": data, "keep": False, **wrong})
    assert list(Path().iterdir()) == []


SCRIPT = """
import fmnist_lab as lab

SMALL = ("data.train_limit=500", "data.test_limit=200", "trainer.epochs=1")
sweep = lab.sweep(*SMALL, "seed=0,1", "hydra/launcher=local_cores")
print("found", sweep.frame()["status"].tolist(), sweep.predictions().probabilities.shape)
"""


@pytest.mark.slow
def test_a_script_needs_no_guard_for_its_workers(doors, tmp_path):
    """Python's own way to spawn a process would execute the script in each worker."""
    (tmp_path / "study.py").write_text(SCRIPT)
    from doors import Process

    process = Process(tmp_path, "study.py")
    doors.started.append(process)
    assert process.code == 0, process.err
    assert "found ['FINISHED', 'FINISHED'] (2, 200, 10)" in process.out
    assert process.out.count("found") == 1


@pytest.mark.slow
def test_ten_thousand_runs_are_a_frame_within_seconds(backend, hydra_here):
    from fmnist_lab.benchmark import store as benchmark
    from fmnist_lab.benchmark.simulation import multiply

    place = tracking.Store.locate()
    place.open(None)
    tags = {"job": "sweep", "sweep.jobs": "10000"}
    sweep = tracking.SweepRun.open(place, "fmnist_lab", "many", tags, resume=False)
    member = {tracking.member_tag(sweep.id): "00000", "mlflow.parentRunId": sweep.id}
    original = benchmark.job(place, "fmnist_lab", benchmark._config(), "original", member)
    tens = list(range(1, 11))
    multiply(
        place,
        original,
        sweep.id,
        {
            "model.hidden_units": [32 * each for each in tens],
            "optimizer.learning_rate": [1e-4 * each for each in tens],
            "model.dropout": [each / 20 for each in tens],
            "seed": tens,
        },
    )
    began, used = time.perf_counter(), time.process_time()
    frame = lab.runs().frame()
    seconds, used = time.perf_counter() - began, time.process_time() - used
    assert len(frame) == 10_001
    assert frame["model.hidden_units"].nunique() == 10
    # Processor time, as other work may go on beside.
    assert used < 5, f"{seconds:.1f} s, {used:.1f} s of a processor"
    print(f"{seconds:.1f} s, {used:.1f} s of a processor", file=sys.stderr)


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda: lab.run(["trainer.epochs=3"]), "expected words of the command line"),
        (lambda: lab.run(3), "received 3, expected words of the command line"),
        (lambda: lab.sweep(3), "expected words of the command line"),
        (lambda: lab.runs(5), "received 5, expected a text: MLflow's filter"),
        (lambda: lab.train("mlp", None), "model: received str, expected a Keras model"),
        (lambda: Pictures({"a": bytes})["a"].save("a.pdf"), "ends in .png"),
        (lambda: Pictures({"a": bytes})["a"].save("no/a.png"), "cannot be written"),
    ],
)
def test_a_plain_mistake_is_one_sentence(mistake, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(lab.UserError) as caught:
        mistake()
    assert said in str(caught.value)
