"""`runs compare` against a real MLflow, whose runs have the results that a test needs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hostile import archive
from scipy import stats

from fmnist_lab import tracking
from fmnist_lab.evaluation import power, variance
from fmnist_lab.evaluation.statistics import Superiority
from fmnist_lab.runs.__main__ import app
from fmnist_lab.studies import beyond
from fmnist_lab.studies.beyond import Beyond
from fmnist_lab.tracking import Store

IMAGES = 400
LABELS = np.arange(IMAGES) % 10
PICKLED = archive(probabilities=np.array([{}], object), labels=LABELS)
CODE = {"mlflow.source.git.commit": "a" * 40, "version.keras": "3.15", "threads": "2"}
MLP = {"model": "mlp", "model.hidden_units": 128, "trainer.epochs": 5}
LINEAR = {"model": "linear", "trainer.epochs": 5}


class Made:
    """A store with runs of two models and several seeds, and two sweeps over epochs."""

    def __init__(self, folder):
        from mlflow import MlflowClient

        self.folder = folder
        self.store = Store.locate(f"sqlite:///{folder}/mlflow.db")
        self.place = self.store.open(tracking.DEFAULT_EXPERIMENT)
        self.client = MlflowClient(self.store.uri)
        self.linear = [self.run(f"linear s{s}", LINEAR, s, 300 + 3 * (s % 2)) for s in range(3)]
        self.mlp = [self.run(f"h128 s{s}", MLP, s, 350 + 2 * s) for s in range(3)]
        self.sweeps = [self.sweep("plain", 0, 0.10), self.sweep("dropout", 0.3, 0.05)]

    def sweep(self, name, dropout, gap):
        sweep = self.run(name, {}, 0, 0, job="sweep")
        for epochs in (1, 20):
            for seed in range(3):
                self.run(
                    f"{name} e{epochs} s{seed}",
                    {"model": "mlp", "trainer.epochs": epochs, "model.dropout": dropout},
                    seed,
                    320 + epochs + seed,
                    # Longer trained, the gap differs by far more than between seeds.
                    gap=(gap if epochs > 1 else 0.01) + 0.001 * (seed + (gap > 0.07) * seed**2),
                    **{tracking.member_tag(sweep): str(seed)},
                )
        return sweep

    def run(self, name, params, seed, right, *, gap=0.02, digest="one", status="FINISHED", **tags):
        """Keep a run that gets the first `right` images right, and the others wrong."""
        tags = {"job": "train", "data.digest": digest, **CODE, **tags}
        run = self.client.create_run(self.place, run_name=name, tags=tags).info.run_id
        for key, value in {**params, "seed": seed}.items():
            self.client.log_param(run, key, value)
        self.client.log_metric(run, "accuracy/test", right / IMAGES)
        self.client.log_metric(run, "accuracy/gap", gap)
        self.keep(run, right)
        self.client.set_terminated(run, status)
        return run

    def keep(self, run, right, labels=LABELS):
        file = Path(self.folder, "predictions.npz")
        predicted = (labels + (np.arange(len(labels)) >= right)) % 10
        np.savez(file, probabilities=np.eye(10)[predicted], labels=labels)
        self.client.log_artifact(run, str(file))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("compared"))


@pytest.fixture
def say(made, capsys):
    def call(*words, code=0, verb="compare"):
        with pytest.raises(SystemExit) as ended:
            app([verb, *words, "--store", made.store.uri])
        said = capsys.readouterr()
        assert (ended.value.code or 0) == code, said.out + said.err
        return said.err if code else said.out

    return call


@pytest.fixture
def found(say):
    def call(*words, verb="compare"):
        return json.loads(say(*words, "--json", verb=verb))

    return call


def flat(said):
    return " ".join(said.split())


def test_two_seeds_of_one_setting_are_no_evidence(say):
    said = flat(say("linear s0", "linear s1"))
    assert "seed 0 1" in said
    assert "A and B have the same setting" in said
    assert "No evidence of a difference in test accuracy between A and B: -0.0075" in said
    assert "several seeds of each" in said


def test_single_runs_are_compared_by_their_predictions(say, found, made):
    said = flat(say(made.linear[0], made.mlp[0][:12]))
    assert "model linear mlp" in said
    assert "model.hidden_units - 128" in said
    assert "The same on both sides: code, libraries, threads, data." in said
    # 50 images right in B alone: twice 0.5 ** 50.
    assert "Test accuracy of A is lower than that of B by 0.1250" in said
    assert "p < 0.001 (exact McNemar, 400 test images, 0 and 50 right in one only)" in said
    (test,) = (each for each in found("linear s0", "h128 s0")["results"] if each["found"])
    assert test["metric"] == "accuracy/test"
    assert test["found"]["p_value"] == pytest.approx(2 * 0.5**50)
    assert test["found"]["low"] < -0.125 < test["found"]["high"] < 0


def test_groups_with_the_same_seeds_are_compared_in_pairs(found, made):
    told = found("model=linear", "model=mlp model.hidden_units=128")
    assert told["a"] == made.linear
    test = told["results"][0]["found"]
    assert test["test"] == "paired t"
    expected = stats.ttest_rel([300, 303, 300], [350, 352, 354])
    assert test["p_value"] == pytest.approx(expected.pvalue)
    assert test["evidence"]


def test_groups_with_other_seeds_are_compared_by_welch(found, made):
    told = found("--a", *made.linear, "--b", *made.mlp[:2])
    test = told["results"][0]["found"]
    assert test["test"] == "Welch's t"
    expected = stats.ttest_ind([300, 303, 300], [350, 352], equal_var=False)
    assert test["p_value"] == pytest.approx(expected.pvalue)
    assert {"kind": "config", "name": "seed", "a": "0, 1, 2", "b": "0, 1"} in told["differences"]


def test_several_runs_are_also_judged_for_new_seeds_and_new_images(say, found, made):
    test, gap = found("model=linear", "model=mlp model.hidden_units=128")["results"]
    wins, images = test["beyond"]["superiority"], test["beyond"]["images"]
    assert wins["probability"] < 1e-9 < wins["high"] < 0.01
    assert (wins["share"], wins["pairs"]) == (0, 3)
    # All images beyond the first 354 are missed by all runs; 297 are right in all.
    assert images["a"]["images"] == 400
    assert images["low"] < test["found"]["low"]
    assert images["high"] > test["found"]["high"]
    right = np.arange(IMAGES) < np.array([[300], [303], [300]])
    noise = np.var(right - right.mean(axis=1, keepdims=True) - right.mean(axis=0), ddof=0)
    noise *= IMAGES * 3 / ((IMAGES - 1) * 2)  # Residual mean square.
    share = noise / IMAGES / np.var(right.mean(axis=1), ddof=1)
    assert images["a"]["share"] == pytest.approx(share)
    assert gap["beyond"] is None  # It has no spread.
    said = flat(say("model=linear", "model=mlp model.hidden_units=128"))
    assert "With a new seed for both, A beats B in test accuracy with probability 0.00 [" in said
    assert "A was higher in 0 of 3 pairs of runs" in said
    assert f"is {images['low']:+.4f} to {images['high']:+.4f} for test accuracy." in said


def test_several_settings_are_judged_with_the_ends_of_their_intervals():
    wins = [Superiority(0.8, 0.3, 0.95, 1, 3), Superiority(0.6, 0.2, 0.9, 1, 3)]
    said = beyond.of_several([*(Beyond(each, None) for each in wins), None])
    assert said == [
        "With new seeds, the probability that A beats B in test accuracy is 0.60 to 0.80 in 2 of 3 "
        "settings; their 95 % intervals reach from 0.20 to 0.95."
    ]


def test_a_run_without_predictions_leaves_new_images_open(say, found, made):
    run = made.run("blind", LINEAR, 7, 310)
    place = made.client.get_run(run).info.artifact_uri.removeprefix("file://")
    Path(place, "predictions.npz").unlink()
    sides = ["--a", *made.linear, run, "--b", *made.mlp]
    (test, _) = found(*sides)["results"]
    assert test["beyond"]["images"] is None
    assert test["beyond"]["superiority"]["pairs"] == 12
    assert f"Nothing can be told of other test images: run {run} has no" in flat(say(*sides))
    made.client.delete_run(run)


def test_power_is_told_of_two_sides_and_of_one(say, found):
    sides = ["model=linear", "model=mlp model.hidden_units=128"]
    linear, mlp = np.array([300, 303, 300]) / IMAGES, np.array([350, 352, 354]) / IMAGES
    told = found(*sides, "--difference", "0.005", verb="power")
    (row,) = told["rows"]  # The gap has no spread.
    expected = power.seeds_needed(0.005, power.spread(linear, mlp, paired=True), 0.8)
    assert row["answers"][0]["seeds"] == vars(expected)
    assert row["found"]["difference"] == pytest.approx(linear.mean() - mlp.mean())
    alone = found(sides[0], "--difference", "0.005", verb="power")["rows"][0]
    expected = power.seeds_needed(0.005, power.spread(linear), 0.95, exclude=True)
    assert alone["answers"][3]["seeds"] == vars(expected)
    said = flat(say(sides[0], "--difference", "0.005", verb="power"))
    assert f"exclude 0.0050 80 % {alone['answers'][2]['seeds']['count']} (" in said
    assert "too few seeds to tell the variance" in said


def test_variance_is_split_into_seed_and_images(say, found, made):
    right = np.arange(IMAGES) < np.array([[300], [303], [300]])
    expected = variance.components(right, ("seed", variance.IMAGE), over=variance.IMAGE)
    told = found(made.linear[0], *made.linear[1:], verb="variance")
    shares = [each["share"] for each in told["components"]["accuracy/test"]]
    assert shares == pytest.approx([each.share for each in expected])
    said = flat(say("model=linear", verb="variance"))
    assert f"test image {100 * shares[1]:.0f} % [" in said
    assert "differ in model" in say("linear s0", "h128 s0", code=2, verb="variance")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["linear s0", "linear s1"], "received 1 run and 1 run of a setting, which show no spread"),
        (
            ["model=linear"],
            "received one side, which differs from nothing; expected two, or --diff",
        ),
        (["model=linear", "--difference", "0"], "--difference: received 0, expected"),
        (["model=linear", "--difference", "2"], "--difference: received 2, expected"),
        ([], "received nothing; expected two sides: power A B"),
        (["linear s0", "linear s0"], "is on both sides"),
    ],
)
def test_what_power_cannot_tell_is_one_line(say, words, told):
    said = say(*words, code=2, verb="power")
    assert said.startswith("error: ")
    assert told in said
    assert said.count("\n") == 1


def test_sweeps_are_compared_setting_by_setting(say, found):
    told = found("plain", "dropout")
    assert [each["setting"] for each in told["results"][::2]] == [
        {"trainer.epochs": 1},
        {"trainer.epochs": 20},
    ]
    assert [each["name"] for each in told["differences"]] == ["model.dropout"]
    assert told["verdict"][:2] == [
        "No evidence of a difference in test accuracy: without any spread nothing can be tested.",
        "Accuracy gap of A is higher in 1 of 2 settings (p < 0.05 / 2, as 2 settings are tested).",
    ]
    assert "accuracy gap" in say("plain", "dropout")


def test_a_setting_narrows_a_sweep_and_what_has_no_counterpart_is_told(say, found, made):
    told = found("--a", made.sweeps[0], "trainer.epochs=20", "--b", made.sweeps[1])
    assert told["unmatched"] == {"a": [], "b": [{"trainer.epochs": 1}]}
    assert len(told["a"]) == 3
    said = say("--a", made.sweeps[0], "trainer.epochs=20", "--b", made.sweeps[1])
    assert "of B alone: epochs 1" in said


def test_one_run_against_several_says_what_is_missing(say):
    said = flat(say("linear s0", "model=mlp model.hidden_units=128"))
    assert "cannot be tested" in said
    assert "both sides need several seeds" in said


def test_uncommitted_changes_leave_it_open_whether_the_code_is_the_same(say, made):
    run = made.run("dirty", LINEAR, 9, 300, **{"git.dirty": "true"})
    said = flat(say("linear s0", "dirty"))
    assert "A and B have the same setting" in said
    assert "The same on both sides: libraries, threads, data." in said
    assert "a checkout with uncommitted changes" in said
    made.client.delete_run(run)


def test_code_and_libraries_that_differ_are_told(say, made):
    run = made.run("later", LINEAR, 9, 300, **{"version.keras": "3.16", "threads": "1"})
    said = flat(say("linear s0", "later"))
    assert "keras 3.15 3.16" in said
    assert "threads 2 1" in said
    assert "The same on both sides: code, data." in said
    assert "A and B have the same setting" not in said
    made.client.delete_run(run)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["linear s0"], "received linear s0; expected two sides"),
        ([], "received nothing; expected two sides"),
        (["linear s0", "--b", "linear s1"], "received linear s0 beside --a or --b"),
        (["nobody", "linear s0"], "received 'nobody', which is no run in"),
        (["linear s0", "linear s0"], "is on both sides, expected different runs"),
        (["model=linear", "model=cnn"], "received model=cnn, which no run has; there are linear"),
        (["modle=linear", "model=mlp"], "received modle=linear, expected one of model, "),
        (["plain", "model=linear"], "none has a counterpart on the other side: A has"),
    ],
)
def test_what_cannot_be_compared_is_one_line(say, words, told):
    said = say(*words, code=2)
    assert said.startswith("error: ")
    assert told in said
    assert said.count("\n") == 1


def test_booleans_and_defaults_that_runs_do_not_store_name_a_side(say, found, made):
    drawn = {"data.random_labels": True, "model.batch_norm": True, "augmentation.flip": True}
    plain = {"model.batch_norm": False}
    runs = {
        name: [made.run(f"{name} s{s}", LINEAR | params, s, 200 + s) for s in range(2)]
        for name, params in (("drawn", drawn), ("plain", plain))
    }
    named = [*runs["drawn"], *runs["plain"]]
    for setting in ("data.random_labels", "model.batch_norm", "augmentation.flip"):
        on, off = ([f"{setting}={value}", *named] for value in ("true", "false"))
        told = found("--a", *on, "--b", *off)
        assert [sorted(told[side]) for side in "ab"] == [sorted(each) for each in runs.values()]
    for setting, there in (
        ("data.noise_seed=4", "0"),
        ("data.noisy_validation=true", "false"),
        ("augmentation.shift=2", "0"),
        ("data.split_seed=0", "none"),
        ("model.batch_norm=maybe", "false, true"),
    ):
        said = say("--a", setting, *named, "--b", "linear s0", code=2)
        assert f"received {setting}, which no run has; there are {there}\n" in flat(said) + "\n"
        value = there.partition(",")[0]
        right = f"{setting.partition('=')[0]}={value}"
        assert found("--a", right, *runs["plain"], "--b", "linear s0")["a"]
    said = say("--a", "augmentation.filp=false", *named, "--b", "linear s0", code=2)
    assert "received augmentation.filp=false, expected one of augmentation.flip, " in said
    for run in named:
        made.client.delete_run(run)


def test_a_run_without_a_result_is_refused(say, made):
    running = made.run("running", LINEAR, 7, 300, status="RUNNING")
    assert "running RUNNING: has not ended" in say("linear s0", "running", code=2)
    made.client.delete_run(running)


@pytest.mark.parametrize(
    "content", [None, b"", b"PK", PICKLED], ids=["none", "empty", "cut", "code"]
)
def test_without_predictions_the_metrics_are_compared_and_that_is_said(say, made, content):
    run = made.run("bare", LINEAR, 7, 200)
    place = made.client.get_run(run).info.artifact_uri.removeprefix("file://")
    file = Path(place, "predictions.npz")
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    said = flat(say("linear s0", "bare"))
    assert re.search(r"test accuracy +0\.7500 +0\.5000 +\+0\.2500", said)
    assert f"Test accuracy cannot be tested: run {run}" in said
    made.client.delete_run(run)


def test_runs_without_a_result_are_left_out_and_said_to_be(say, made):
    broken = [
        made.run(f"broken s{s}", LINEAR, s, 0, status="FAILED", failure="out of memory")
        for s in range(10, 17)
    ]
    said = flat(say("model=linear", "model=mlp model.hidden_units=128"))
    assert "A 3 runs: linear s0, linear s1, linear s2" in said
    assert "left out: broken s10 FAILED out of memory" in said
    assert "left out: 2 more" in said
    for run in broken:
        made.client.delete_run(run)


def test_other_test_images_are_refused_other_training_images_are_not(say, made):
    limited = {**LINEAR, "data.train_limit": 1000}
    runs = [
        made.run("other data", LINEAR, 0, 300, digest="two"),
        made.run("fewer to train", limited, 0, 300, digest="three"),
        made.run("fewer to test", {**limited, "data.test_limit": 100}, 0, 80, digest="four"),
    ]
    made.keep(runs[2], 80, LABELS[:100])
    assert "were tested on different images" in say("linear s0", "other data", code=2)
    assert "(400 and 100; their" in say("linear s0", "fewer to test", code=2)
    assert "data.train_limit - 1000" in flat(say("linear s0", "fewer to train"))
    for run in runs:
        made.client.delete_run(run)


def test_what_was_held_out_is_compared_first(say, made):
    runs = {
        side: [made.run(f"{side} s{s}", {"model": side}, s, right + s) for s in range(3)]
        for side, right in (("small", 300), ("large", 320))
    }
    for side, held_out in (("small", 0.71), ("large", 0.77)):
        for seed, run in enumerate(runs[side]):
            made.client.log_metric(run, "accuracy/validation", held_out + seed * held_out / 500)
    said = say("--a", *runs["small"], "--b", *runs["large"])
    rows = [line.split("  ")[0].strip() for line in said.splitlines()]
    assert rows.index("validation accuracy") + 1 == rows.index("test accuracy")
    assert "Validation accuracy of A is lower than that of B by 0.06" in flat(said)
    # Only one side has it: nothing is said of it.
    assert "alidation accuracy" not in say("--a", *runs["small"], "--b", "model=linear")
    for run in (*runs["small"], *runs["large"]):
        made.client.delete_run(run)


def test_a_run_may_have_a_name_like_a_setting(say, made):
    runs = [
        made.run(f"train_limit={limit} s0", {**LINEAR, "data.train_limit": limit}, 0, 300)
        for limit in (1000, 2000)
    ]
    said = flat(say("train_limit=1000 s0", "train_limit=2000 s0"))
    assert "data.train_limit 1000 2000" in said
    for run in runs:
        made.client.delete_run(run)


@pytest.mark.slow
def test_trained_models_on_the_whole_data_set(doors, tmp_path):
    """Two seeds of one setting are no evidence, a linear model against the tutorial's is."""
    for words in (["model=linear", "seed=0"], ["model=linear", "seed=1"], ["seed=0"]):
        assert doors("run", tmp_path, *words, "trainer.epochs=3").code == 0
    seeds = doors("runs", tmp_path, "compare", "linear e3 s0", "linear e3 s1")
    assert "A and B have the same setting" in seeds.out, seeds.err
    models = flat(doors("runs", tmp_path, "compare", "linear e3 s0", "h128 e3 s0").out)
    assert "Test accuracy of A is lower than that of B by 0.0" in models
    assert "p < 0.001 (exact McNemar, 10,000 test images, " in models
