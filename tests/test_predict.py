"""`fmnist_lab.predict`, as a command line in this process and from Python."""

import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doors import QUICK, one_line
from tracked import First, train_here

from fmnist_lab import predict
from fmnist_lab.errors import UserError
from fmnist_lab.tracking import Store, choose_model


@pytest.fixture(scope="module")
def tracked(trained) -> First:
    """A run that was made in this process, which is all that is needed here."""
    return trained


@pytest.fixture(scope="module")
def twin(tracked):
    """The same run again, in the same store."""
    train_here(tracked.folder, *QUICK, "name=twin")
    return tracked.folder, tracked.one("attributes.run_name = 'twin'")


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


def test_a_run_without_a_model_is_passed_over(tmp_path):
    """Any client of a store can make one that calls itself a training."""
    from mlflow import MlflowClient

    store = Store.locate(f"sqlite:///{tmp_path}/mlflow.db")
    experiment, client = store.open(None), MlflowClient(store.uri)
    run = client.create_run(experiment, tags={"job": "train"}, run_name="x").info.run_id
    client.set_terminated(run, "FINISHED")
    with pytest.raises(UserError, match="no finished run with a model in "):
        choose_model(store)
    with pytest.raises(UserError, match="has kept no model"):
        choose_model(store, "x")


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


@pytest.fixture
def folder(tmp_path, pixels):
    """Test images 0 to 2, enlarged, as JPEG files on white."""
    from PIL import Image

    (tmp_path / "clothes").mkdir()
    for index in range(3):
        image = Image.fromarray(255 - pixels.test_images[index])
        image.resize((280, 280)).save(tmp_path / "clothes" / f"{index}.jpg")
    return tmp_path / "clothes"


def test_photographs_are_found_converted_and_told(answer, ask, folder, tracked, pixels):
    files = [str(file) for file in sorted(folder.iterdir())]
    said = answer(str(folder))
    assert [each["image"] for each in said] == files
    assert answer(str(folder / "*.jpg"), files[2]) == said == answer(*files)
    guesses = tracked.predictions["probabilities"][:3].argmax(axis=1)
    agreed = [each["predictions"][0]["label"] for each in said]
    assert agreed == [pixels.class_names[guess] for guess in guesses]
    for each in said:
        assert (each["converted"], each["negated"], each["size"]) == (True, True, [280, 280])
        assert each["background"] == "white (255)"
    assert "(on white (255), negated)" in ask(files[0])[1]


def test_an_unreadable_picture_among_many_is_told_and_the_others_are_predicted(ask, folder):
    (folder / "1.jpg").write_bytes((folder / "1.jpg").read_bytes()[:300])
    code, out, err = ask("--csv", "--top-k", "2", str(folder))
    assert code == 1
    assert f"{folder / '1.jpg'}: it cannot be read as an image" in one_line(err)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["image"] for row in rows] == [str(folder / "0.jpg"), str(folder / "2.jpg")]
    assert all(float(row["confidence"]) >= float(row["confidence_2"]) for row in rows)
    code, out, _ = ask("--json", str(folder))
    assert (code, len(json.loads(out)["unreadable"])) == (1, 1)


def test_nothing_but_unreadable_pictures(ask, folder):
    for file in folder.iterdir():
        file.write_bytes(b"no picture")
    code, out, err = ask(str(folder))
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 3


def test_batches_answer_as_one(answer, folder, monkeypatch):
    whole = answer(str(folder), "--index", "3")
    monkeypatch.setattr(predict, "BATCH", 2)
    for one, other in zip(answer(str(folder), "--index", "3"), whole, strict=True):
        for guess, same in zip(one["predictions"], other["predictions"], strict=True):
            assert guess["label"] == same["label"]
            assert guess["confidence"] == pytest.approx(same["confidence"], rel=1e-5)


def test_photographs_are_drawn_with_test_images(ask, folder, tmp_path):
    from PIL import Image

    file = tmp_path / "p.png"
    code, _, err = ask(str(folder), "--index", "0", "--plot", str(file))
    assert (code, err) == (0, "")
    assert (np.asarray(Image.open(file).convert("RGB")) == (204, 51, 17)).all(-1).sum() > 100


def test_a_pattern_or_a_folder_without_pictures(refuse, tmp_path):
    assert "a pattern that no file matches" in refuse(str(tmp_path / "*.png"))
    assert "a folder without pictures" in refuse(str(tmp_path))


def test_noise_is_no_object(refuse, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    assert "no object" in refuse(image_file(tmp_path / "a.png", noise))


def test_one_picture_that_is_missing_stops_no_other(ask, folder, tmp_path):
    code, out, err = ask(str(folder), str(tmp_path / "missing.png"))
    assert code == 1
    assert "missing.png: there is no such file" in err
    assert out


@pytest.mark.parametrize(
    ("name", "said"),
    [(".", "ends in .png, .pdf, .svg"), ("x", "ends in"), ("no/x.png", "no folder")],
)
def test_a_drawing_that_cannot_be_written_is_told_at_once(
    refuse, tmp_path, name, said, monkeypatch
):
    monkeypatch.setattr(predict, "load", lambda *_, **__: pytest.fail("has begun"))
    assert said in refuse("--index", "0", "--plot", str(tmp_path / name))


def test_a_file_whose_name_is_no_text_is_drawn(ask, tmp_path, pixels):
    name = os.fsdecode(b"bad\xff.png")
    image_file(tmp_path / name, pixels.test_images[0].repeat(4, 0).repeat(4, 1))
    code, _, err = ask(str(tmp_path), "--plot", str(tmp_path / "p.pdf"))
    assert (code, err) == (0, "")


def test_a_picture_without_an_object(refuse, tmp_path):
    file = image_file(tmp_path / "a.png", np.zeros((30, 32), np.uint8))
    assert f"{file}: the picture shows one colour and no object" in refuse(file)


def test_a_file_that_is_no_picture(refuse, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    assert "cannot be read as an image" in refuse(str(tmp_path / "a.png"))


def test_a_picture_that_breaks_off(refuse, tmp_path, pixels):
    file = Path(image_file(tmp_path / "a.png", pixels.test_images[0]))
    file.write_bytes(file.read_bytes()[:200])
    assert "cannot be read as an image" in refuse(str(file))


def test_a_picture_that_is_not_there(refuse, tmp_path):
    assert "no such file" in refuse(str(tmp_path / "a.png"))


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
