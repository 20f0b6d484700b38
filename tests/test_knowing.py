"""Runs with held-out images keep a calibration; logged models tell how far they can be trusted."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from doors import QUICK
from scipy import special
from tracked import First, train_here

from fmnist_lab import tracking
from fmnist_lab.data import others
from fmnist_lab.errors import UserError
from fmnist_lab.evaluation import confidence, metrics
from fmnist_lab.jobs.confidence import abstention
from fmnist_lab.predict import app as predict_app
from fmnist_lab.runs import reproduce
from fmnist_lab.runs.__main__ import app

AT_END = {
    *("calibration/temperature", "calibration/ece", "calibration/ece_scaled"),
    *("conformal/coverage", "conformal/size"),
}


class Made(First):
    """A run with 500 held-out images, enough for a temperature."""

    @property
    def store(self) -> tracking.Store:
        return tracking.Store.locate(self.uri, for_writing=False)

    @property
    def run(self):
        return self.one()

    @property
    def folder_of_model(self):
        model = self.client.get_logged_model(self.run.outputs.model_outputs[0].model_id)
        return tracking.store.durable.local_path(model.artifact_location)


@pytest.fixture(scope="module")
def made(backend, real_data, tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("knowing")
    train_here(folder, *QUICK, "data.validation_fraction=0.5")
    return Made(folder, None)


def test_a_run_keeps_its_calibration_with_its_model(made):
    found, figures = made.run, made.run.data.metrics
    assert figures.keys() >= AT_END
    kept = json.loads((made.folder_of_model / "calibration.json").read_text())
    assert list(kept) == ["temperature", "threshold", "coverage", "images"]
    assert (kept["coverage"], kept["images"]) == (0.9, 500)
    assert kept["temperature"] == figures["calibration/temperature"]
    probabilities, labels = tracking.read_predictions(made.store, found.info.run_id)
    scaled = special.softmax(np.log(probabilities) / kept["temperature"], axis=1)
    ece = metrics.calibration(scaled, labels).ece
    assert figures["calibration/ece_scaled"] == pytest.approx(ece, abs=1e-6)
    assert figures["calibration/ece"] == metrics.calibration(probabilities, labels).ece
    assert 0.8 < figures["conformal/coverage"] < 0.97
    assert 1 < figures["conformal/size"] < 5


@pytest.mark.slow
def test_only_a_last_epoch_has_the_figures_of_a_finished_model(backend, real_data, tmp_path):
    """Although the longer job of a sweep goes on from the shorter one's state."""
    train_here(tmp_path, "-m", *QUICK[:2], "trainer.epochs=1,2", "data.validation_fraction=0.2")
    swept = Made(tmp_path, None)
    for epochs in (1, 2):
        run = swept.one(f"tags.job = 'train' and params.`trainer.epochs` = '{epochs}'")
        assert [step for step, _ in swept.history(run, "calibration/ece")] == [epochs]


def test_without_held_out_images_there_is_nothing_to_keep(trained):
    assert not AT_END & trained.run.data.metrics.keys()
    assert not list(trained.folder.rglob("calibration.json"))
    store = tracking.Store.locate(trained.uri, for_writing=False)
    assert tracking.read_calibration(trained.model, store) == (None, trained.run.info.run_id)
    found = abstention(store, trained.model)
    assert (found.scaling.temperature, found.scaling.images, found.answered) == (1, 0, 0.9)
    assert "calibrated" not in found.sentence()


def test_abstaining_buys_accuracy(made, tmp_path):
    found = abstention(made.store, made.model)
    kept = json.loads((made.folder_of_model / "calibration.json").read_text())
    assert found.scaling == confidence.Scaling(**kept)
    assert found.accuracy > found.accuracy_of_all == made.run.data.metrics["accuracy/test"]
    half = abstention(made.store, made.model, 0.5)
    assert half.answered == 0.5
    assert half.accuracy > found.accuracy
    assert re.search(r"the 500 test images of its run it answers 50\.0%, and \d", half.sentence())
    # A folder that was copied elsewhere has the file, and another store no run of it.
    shutil.copytree(made.folder_of_model, tmp_path / "model")
    elsewhere = tracking.Store.locate(f"sqlite:///{tmp_path}/none.db", for_writing=False)
    alone = abstention(elsewhere, str(tmp_path / "model"))
    assert (alone.scaling, alone.tested) == (found.scaling, 0)
    with pytest.raises(UserError, match=r"received 0\.5 .*, or --abstain 0\.9"):
        abstention(elsewhere, str(tmp_path / "model"), 0.5)
    with pytest.raises(UserError, match="received 90, expected the share"):
        abstention(elsewhere, str(tmp_path / "model"), 90)
    (tmp_path / "model" / "calibration.json").write_text('{"temperature": 0}')
    with pytest.raises(UserError, match=r"calibration\.json of the model .* cannot be read"):
        abstention(elsewhere, str(tmp_path / "model"))


def predict(made, *words) -> int:
    with pytest.raises(SystemExit) as ended:
        predict_app([*words, "--model", made.model, "--store", made.uri])
    return ended.value.code or 0


def test_predict_abstains_by_calibrated_confidences(made, capsys):
    own, _ = tracking.read_predictions(made.store, made.run.info.run_id)
    rule = abstention(made.store, made.model, 0.6)
    assert predict(made, "--index", *map(str, range(20)), "--abstain", "0.6", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["abstaining"]["answered"] == 0.6
    assert told["abstaining"]["accuracy"] == rule.accuracy
    sure = rule.calibrated(own[:20]).max(axis=1)
    assert [each["predictions"][0]["confidence"] for each in told["predictions"]] == pytest.approx(
        sure, abs=1e-6
    )
    abstained = [each["abstained"] for each in told["predictions"]]
    assert abstained == (sure < rule.scaling.threshold).tolist()
    assert {True, False} == set(abstained)
    assert predict(made, "--index", "0", "--abstain") == 0
    kept = abstention(made.store, made.model).sentence()
    assert capsys.readouterr().out.splitlines()[-1] == kept
    assert predict(made, "--index", "0", "--abstain", "1.5") == 2
    assert "--abstain: received 1.5, expected the share" in capsys.readouterr().err


GOOD = {"temperature": 1.5, "threshold": 0.4, "coverage": 0.9, "images": 10}
BAD = ({"temperature": 0}, {"coverage": 2}, {"threshold": "0"})


@pytest.mark.parametrize("values", [[], {"temperature": 1}, *({**GOOD, **each} for each in BAD)])
def test_a_damaged_calibration_is_refused(values):
    assert confidence.Scaling.of(GOOD) == confidence.Scaling(**GOOD)
    with pytest.raises(ValueError, match=r"expected|received"):
        confidence.Scaling.of(values)


def say(made, *words) -> None:
    with pytest.raises(SystemExit) as ended:
        app(["confidence", *words, "--store", made.uri])
    assert not ended.value.code


def test_a_verb_tells_how_far_a_model_can_be_trusted(made, capsys, tmp_path):
    run = made.run.info.run_id
    say(made, run, "--json")
    (found,) = json.loads(capsys.readouterr().out)
    assert found["run_id"] == run
    for name in ("accuracy/test", "calibration/temperature", "calibration/ece_scaled"):
        assert found[name] == pytest.approx(made.run.data.metrics[name], abs=1e-6), name
    assert found["conformal_splits/coverage"] == pytest.approx(0.9, abs=0.03)  # of 20 splits of 500
    assert found["conformal_splits/coverage_low"] < found["conformal_splits/coverage_high"]
    for name in ("digits", "noise", "upside_down"):
        assert 0 <= found[f"auroc_softmax/{name}"] != found[f"auroc_energy/{name}"] <= 1
    say(made, "--output", str(tmp_path / "out"))
    written = pd.read_csv(tmp_path / "out" / "confidence.csv")
    assert written["run_id"].tolist() == [run]
    assert written["seed"].tolist() == [0]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        *("confidence.csv", "reliability.png", "risk_coverage.png")
    }
    told = " ".join(capsys.readouterr().out.split())
    assert re.search(r"all runs: of 1 run, the temperature halves the ECE in \d and leaves", told)


def test_logits_are_those_of_the_probabilities(backend):
    from fmnist_lab.models import convolutional, flip_average, io

    model = convolutional.cnn((28, 28), 10, filters=[2])
    bare = io.logits(model)
    images = others.noise((28, 28), 3)
    logits = bare(images).numpy()
    assert special.softmax(logits, axis=1) == pytest.approx(model(images).numpy(), abs=1e-6)
    assert np.ptp(logits.sum(axis=1)) > 0
    assert io.logits(flip_average.flip_averaged(model)) is None


def test_other_pictures_have_the_form_of_the_models():
    digits = others.digits((28, 28, 3))
    assert (digits.shape, digits.dtype, digits.max()) == ((1797, 28, 28, 3), np.uint8, 255)
    assert digits[:, 0].mean() < digits[:, 14].mean()  # light on dark
    image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    assert others.upside_down(image).tolist() == [[[5, 4, 3], [2, 1, 0]]]


def test_a_run_of_an_earlier_version_is_not_blamed_for_what_it_lacks(made, monkeypatch):
    run, compared = made.run.info.run_id, []
    facts = tracking.facts(made.store, run)
    earlier = {k: v for k, v in facts["metrics"].items() if k not in AT_END}
    answers = iter([{**facts, "metrics": earlier}, facts])
    monkeypatch.setattr(tracking, "facts", lambda *_: next(answers))
    monkeypatch.setattr(
        reproduce, "_metric_differs", lambda _, name, *__: compared.append(name) or []
    )
    assert reproduce.compare(made.store, run, run) == []
    assert "loss/validation" in compared
    assert not AT_END & set(compared)


def test_a_threshold_of_few_images_is_not_called_calibrated():
    from fmnist_lab.jobs.confidence import Abstention

    said = Abstention(confidence.Scaling(1.0, 0.3, 0.9, 10)).sentence()
    assert said.endswith("below 30.0% (chosen by 10 held-out images, too few to calibrate it).")
    said = Abstention(confidence.Scaling(1.2, 0.3, 0.9, 6000)).sentence()
    assert said.endswith("below 30.0% (calibrated, temperature 1.20).")
