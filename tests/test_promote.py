"""`runs promote`, model cards, and the model that a word means, in stores without any training."""

import threading
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from doors import one_line
from promoted import IMAGES, LABELS, NAMES, Models

from fmnist_lab import tracking
from fmnist_lab.errors import UserError
from fmnist_lab.runs.__main__ import app
from fmnist_lab.studies import card, promotion


def run(*words: str) -> int:
    """Do what a command line says, and return the exit code."""
    try:
        app(list(words))
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Models:
    return Models(tmp_path_factory.mktemp("promoted"))


@pytest.fixture
def say(made, capsys):
    def call(*words: str, code: int = 0) -> str:
        found = run(*words, "--store", made.store.uri)
        said = capsys.readouterr()
        assert found == code, said.out + said.err
        return one_line(said.err) if code else " ".join(said.out.split())

    return call


def test_the_first_model_is_promoted_with_its_card(say, made):
    first = made.run("first", 300)
    said = say("promote", "first", "--name", "a")
    assert "a@champion is version 1, 'first'; before: there was none" in said
    assert made.champion("a") == first
    text = (made.files(first) / card.FILE).read_text()
    assert "test accuracy | 0.7500 |" in text
    version = made.client.get_model_version_by_alias("a", "champion")
    assert version.description == made.client.get_registered_model("a").description == text
    assert "/models/m-" in version.source
    assert "first (a@champion)" in say("list")


def test_a_worse_model_is_refused_and_the_alias_stays(say, made):
    good = made.run("good", 350)
    made.run("bad", 250)
    say("promote", "good", "--name", "b")
    said = say("promote", "bad", "--name", "b", code=2)
    assert "'bad' was not promoted, as it is not shown to be better" in said
    assert "test accuracy of the candidate is lower than that of the champion by 0.2500" in said
    assert "b@champion stays version 1; --anyway promotes it" in said
    assert (made.champion("b"), made.versions("b")) == (good, [1])
    assert "b@champion is version 2, 'bad'" in say("promote", "bad", "--name", "b", "--anyway")
    assert "promoted to b@champion anyway" in made.client.get_registered_model("b").description


@pytest.mark.slow
def test_a_version_that_is_there_is_used_again(say, made):
    made.run("j 1", 200)
    made.run("j 2", 350)
    for name in ("j 1", "j 2"):
        say("promote", name, "--name", "j")
    say("promote", "j 1", "--name", "j", "--anyway")
    assert made.versions("j") == [1, 2]
    assert "is j@champion already, version 1" in say("promote", "j 1", "--name", "j")
    models = made.client.search_logged_models(
        [made.place], f"source_run_id = '{made.champion('j')}'"
    )
    assert models[0].tags == {"mlflow.modelVersions": '[{"name": "j", "version": "1"}]'}


def test_no_evidence_is_not_better(say, made):
    first = made.run("one", 300)
    made.run("hardly", 303)
    say("promote", "one", "--name", "c")
    said = say("promote", "hardly", "--name", "c", code=2)
    assert "no evidence of a difference" in said
    assert made.champion("c") == first


def test_models_are_compared_on_validation_images_that_both_held_out(say, made):
    """The test images would decide otherwise."""
    made.run("held 1", 320, validation=300)
    better = made.run("held 2", 300, validation=350)
    say("promote", "held 1", "--name", "d")
    said = say("promote", "held 2", "--name", "d")
    assert "What decides: validation accuracy of the candidate is higher" in said
    assert "400 validation images" in said
    assert "has looked at the test set" not in said
    assert made.champion("d") == better


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"validation": 350, "digest": "two"}, "not held out the same validation images"),
        ({}, "one of the runs has no predictions of validation images"),
    ],
)
def test_else_on_the_test_images_which_is_said(say, made, other, reason):
    name = f"e{len(other)}"
    made.run(f"{name} 1", 300, validation=300)
    params = {"data.train_limit": 10 * len(other)}
    better = made.run(f"{name} 2", 350, params=params, **other)
    say("promote", f"{name} 1", "--name", name)
    said = say("promote", f"{name} 2", "--name", name)
    assert reason in said
    assert "this choice has looked at the test set" in said
    assert made.champion(name) == better


@pytest.mark.slow
def test_what_cannot_be_compared_is_refused(say, made):
    first = made.run("f 1", 300)
    other = made.run("f 2", 350, digest="two")  # Of the same params, but other images.
    say("promote", "f 1", "--name", "f")
    np.savez(
        made.files(other) / tracking.PREDICTIONS,
        probabilities=np.eye(10, dtype="float32")[LABELS[:100]],
        labels=LABELS[:100],
    )
    said = say("promote", "f 2", "--name", "f", code=2)
    assert "cannot be compared with f@champion" in said
    assert "tested on different images" in said
    assert made.champion("f") == first
    say("promote", "f 2", "--name", "f", "--anyway")
    assert made.champion("f") == other


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"status": "FAILED"}, "is FAILED and has no finished model"),
        ({"status": "SCHEDULED", "paused.after": "3"}, "is paused after epoch 3"),
        ({"job": "evaluate"}, "is a run of job=evaluate"),
        ({"job": "sweep"}, "is a sweep; expected one run"),
        ({"model": False}, "has kept no model"),
        ({"files": '{"gone.json": "1 0"}'}, "has lost files: gone.json is missing"),
    ],
    ids=["failed", "paused", "evaluated", "sweep", "no model", "damaged"],
)
def test_what_is_no_whole_model_is_not_promoted(say, made, options, reason):
    refused = made.run(reason, **options)
    assert reason in say("promote", refused, "--name", "g", code=2)
    assert made.champion("g") == ""


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "received no run"),
        (["first", "--alias", "v1"], "--alias: received 'v1'"),
        (["first", "--alias", "a b"], "--alias: received 'a b'"),
        (["first", "--name", "a/b"], "--name: received 'a/b'"),
        (["nobody"], "received 'nobody', which is no run"),
    ],
)
def test_words_that_are_refused(say, words, reason):
    assert reason in say("promote", *words, code=2)


def test_two_promotions_at_once_leave_the_better_one(made, capsys, monkeypatch):
    """Each is better than the champion; the second must be compared with the first."""
    for name, right in (("h 1", 200), ("h best", 350), ("h second", 280)):
        made.run(name, right)
    codes: dict[str, int] = {}

    def promote(name: str) -> None:
        codes[name] = run("promote", name, "--name", "h", "--store", made.store.uri)

    promote("h 1")
    judge, inside, second = promotion.judge, threading.Event(), []

    def judged(candidate, *rest):
        if candidate.study.used["name"].iloc[0] == "h best" and not second:
            second.append(threading.Thread(target=promote, args=["h second"]))
            second[0].start()
            inside.wait(0.5)  # Without a lock, the other one is done by then.
        return judge(candidate, *rest)

    monkeypatch.setattr(promotion, "judge", judged)
    promote("h best")
    second[0].join(60)
    assert codes == {"h 1": 0, "h best": 0, "h second": 2}
    assert made.champion("h") == tracking.look_up(made.store, "h best").run_id
    assert "'h second' was not promoted" in capsys.readouterr().err


@pytest.mark.slow
def test_a_server_is_asked_again_before_its_alias_is_moved(say, made, monkeypatch):
    """It has no lock, so another promotion may come in between."""
    for name, right in (("i 1", 200), ("i 2", 280), ("i best", 350)):
        made.run(name, right)
    monkeypatch.setattr(tracking, "promoting", lambda _: nullcontext())
    say("promote", "i 1", "--name", "i")
    judge = promotion.judge

    def judged(*words):
        monkeypatch.setattr(promotion, "judge", judge)
        say("promote", "i best", "--name", "i")
        return judge(*words)

    monkeypatch.setattr(promotion, "judge", judged)
    said = say("promote", "i 2", "--name", "i", code=2)
    assert "another promotion has pointed i@champion at version 2 in the meantime" in said
    assert made.champion("i") == tracking.look_up(made.store, "i best").run_id


# Which model


@pytest.fixture(scope="module")
def choices(tmp_path_factory) -> Models:
    made = Models(tmp_path_factory.mktemp("choices"))
    sweep = made.run("sweep", job="sweep", model=False)
    member = {tracking.member_tag(sweep): "0"}
    made.run("low", 200, validation=320, **member)
    made.run("high", 390, validation=310, **member)
    made.run("alone", 300, validation=390)
    made.run("newest", 250)
    made.run("going on", 399, status="RUNNING", model=False)
    model = tracking.register(made.store, tracking.look_up(made.store, "low").run_id, "fmnist")
    tracking.set_alias(made.store, model, "champion", "a card")
    return made


@pytest.mark.parametrize(
    ("word", "best", "name"),
    [
        (None, None, "newest"),
        ("high", None, "high"),
        (None, "accuracy/validation", "alone"),
        (None, "accuracy/test", "high"),
        (None, "loss/test", "high"),
        ("sweep", "accuracy/validation", "low"),
        ("models:/fmnist@champion", None, "low"),
        ("models:/fmnist/1", None, "low"),
    ],
)
def test_a_word_means_a_model(choices, word, best, name):
    chosen = tracking.choose_model(choices.store, word, best=best)
    assert chosen.run_id == tracking.look_up(choices.store, name).run_id
    expected = "models:/fmnist/1" if "models" in str(word) else f"runs:/{chosen.run_id}/model"
    assert chosen.uri == expected
    looked = [each for each in chosen.remarks if "has looked at the test set" in each]
    assert len(looked) == (best in ("accuracy/test", "loss/test"))


@pytest.mark.parametrize("word", ["models:/fmnist@champion", "models:/fmnist/1", "runs:/{}/model"])
def test_a_run_is_named_by_its_model(choices, word):
    low = tracking.look_up(choices.store, "low")
    assert tracking.run_named(choices.store, word.format(low.run_id)) == low


def test_verbs_take_a_registered_model_for_its_run(made, say):
    made.run("registered", 310)
    made.run("other", 250)
    say("promote", "registered", "--name", "verbs")
    word = "models:/verbs@champion"
    assert "0.7750" in say("report", word)
    assert "registered" in say("compare", word, "other")
    # Runs of this store were never trained, and have no config.
    for verb, *words in (("again", "seed=1"), ("reproduce",), ("confidence",)):
        assert "'registered'" in say(verb, word, *words, code=2)


def test_a_registered_model_without_its_run_is_refused(choices):
    choices.client.create_registered_model("lonely")
    choices.client.create_model_version("lonely", "file:///nowhere")
    with pytest.raises(UserError, match="does not tell the run that has made it"):
        tracking.run_named(choices.store, "models:/lonely/1")


@pytest.mark.parametrize(
    ("word", "best", "said"),
    [
        (None, "accuracy/valid", "expected one of accuracy/validation, accuracy/gap, accuracy/"),
        (None, "no`metric", "received no`metric, which no finished run"),
        ("low", "accuracy/test", "expected one of the two, or a sweep"),
        ("sweep", None, "is a sweep; expected one run, or --best accuracy/validation"),
        ("going on", None, "is RUNNING and has no finished model"),
        ("models:/fmnist@nobody", None, "expected models:/fmnist@champion, or another one"),
        ("models:/fmnist/7", None, "expected models:/fmnist@champion, or another one"),
        ("missing.keras", None, "'missing.keras', which is not there; expected a run's id"),
        ("/tmp", None, "has no MLmodel in it"),
        ("nonsense", None, "'nonsense', which is no run in"),
        ("x" * 300, None, "which is no run in"),
    ],
)
def test_a_word_that_means_no_model(choices, word, best, said):
    with pytest.raises(UserError) as caught:
        tracking.choose_model(choices.store, word, best=best)
    assert said in str(caught.value)


def test_a_folder_and_a_file_are_models(choices, tmp_path):
    (tmp_path / "MLmodel").write_text("")
    (tmp_path / "a.keras").write_text("")
    for path in (tmp_path, tmp_path / "a.keras"):
        assert tracking.choose_model(choices.store, str(path)).uri == str(path)


# Model cards


def described(**changes) -> card.Described:
    probabilities = np.eye(10, dtype="float32")[(LABELS + (np.arange(IMAGES) >= 380)) % 10]
    given = {
        "name": "h128 e5",
        "run_id": "f" * 32,
        "tags": {},
        "params": {},
        "metrics": {},
        "data_name": "",
        "training_images": None,
        "test": (probabilities, LABELS),
        "validation": None,
        "class_names": NAMES,
        "image_shape": (),
        "reproduce": "python -m fmnist_lab.runs reproduce ffff",
    }
    return card.Described(**given | changes)


def test_a_card_has_the_numbers_of_the_run():
    text = card.write(
        described(
            metrics={"accuracy/gap": 0.03, "accuracy/train": 0.98, "calibration/temperature": 1.5},
            training_images=1000,
            params={"data.label_noise": "0.2", "model.hidden_units": "128"},
        )
    )
    assert "| test accuracy | 0.9500 | 0.9240 to 0.9674 |" in text  # Wilson's, of 380 of 400.
    assert "| accuracy gap, training minus test | 0.0300 | 0.0" in text
    assert "| temperature, fitted on the validation images | 1.5000 |" in text
    assert "- class 0, taken for class 1: 2 of 40 test images (5.0%)" in text
    assert "20.0% of the training labels were made wrong" in text
    assert "`model.hidden_units=128`" in text


def test_a_card_leaves_out_what_a_run_does_not_have():
    text = card.write(described())
    for word in ("None", "nan", "gap", "temperature", "digest", "Config", "near duplicates"):
        assert word not in text.replace("for a gap Newcombe's", ""), word
    assert "\n\n\n" not in text
    assert ": \n" not in text


def test_texts_of_a_run_stay_texts_in_its_card():
    text = card.write(described(name="<script>`x`\n# a | b", tags={"engine": "a`b\n- c"}))
    assert text.startswith("# \\<script\\>\\`x\\` \\# a \\| b\n")
    assert "- engine: `a'b - c`" in text


def test_a_card_tells_what_the_audit_found_in_fashion_mnist():
    audited = card.AUDITED["fashion-mnist"]
    page = Path(__file__).parent.parent / "docs" / "audit.md"
    if page.exists():
        told = " ".join(page.read_text().split())
        assert f"a training image | 16 | {audited.near_training} |" in told
        assert f"{audited.suspect_training} training labels" in told
        assert f"{audited.suspect_test} test labels" in told
    labels = np.arange(audited.test_images) % 10
    whole = described(data_name="fashion-mnist", test=(np.eye(10, dtype="float32")[labels], labels))
    assert "82 of the 10,000 test images are near duplicates" in card.write(whole)
    assert "near duplicates" not in card.write(described(data_name="fashion-mnist"))
