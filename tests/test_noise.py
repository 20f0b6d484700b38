"""Labels made wrong on purpose, and which images a run takes: the data, the config, the hashes."""

import hashlib
import math
import shlex
from functools import cache
from pathlib import Path

import hydra
import numpy as np
import pandas as pd
import pytest
from composing import composed
from idx_files import describe, idx_bytes, tiny_arrays, write
from tracked import Tracked, train_here

from fmnist_lab import config, data
from fmnist_lab.config import naming
from fmnist_lab.data import Noise
from fmnist_lab.data.idx import IdxDataset
from fmnist_lab.errors import UserError
from fmnist_lab.jobs import build, outputs
from fmnist_lab.studies import comparison, findings, summary

TRAIN, TEST = 400, 60
# The symmetric table of three classes, but class 0 turns into class 2 alone and class 1 stays.
UNEVEN = ((0.0, 0.0, 1.0), (0.0, 0.0, 0.0), (0.5, 0.5, 0.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four files of tiny images, each of which carries its index in its first two pixels."""
    arrays = tiny_arrays(TRAIN, TEST)
    for part in ("train", "test"):
        images = arrays[f"{part}_images"]
        index = np.arange(len(images))
        images[:, 0, 0], images[:, 0, 1] = index // 256, index % 256
    files = describe({name: idx_bytes(array) for name, array in arrays.items()})[1]
    return write(tmp_path_factory.mktemp("idx"), files)


@pytest.fixture(scope="module", autouse=True)
def _composer():
    with hydra.initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        yield


def idx_config(folder: Path, words: str = "") -> config.Config:
    files = " ".join(
        f"data.{name}={name}-idx"
        for name in ("train_images", "train_labels", "test_images", "test_labels")
    )
    base = f"data=idx data.name=tiny data.dir={folder} data.class_names=3 {files}"
    return composed(f"{base} {words}")


def loaded(folder: Path, **options) -> data.Dataset:
    return data.load(folder, dataset=description(folder), **options)


@cache
def description(folder: Path) -> IdxDataset:
    return build._description(idx_config(folder).data)


def index_of(images: np.ndarray) -> list[int]:
    return [int(image[0, 0]) * 256 + int(image[0, 1]) for image in images]


def refusal(folder: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        loaded(folder, **options)
    return str(caught.value)


# Noise


@pytest.mark.parametrize("table", [None, UNEVEN])
@pytest.mark.parametrize("share", [0.0025, 0.25, 0.6])
def test_exactly_the_share_is_changed_and_no_label_to_its_own_class(folder, share, table):
    clean = loaded(folder)
    noisy = loaded(folder, noise=Noise(share, seed=4, table=table))
    changed = noisy.train_labels != clean.train_labels
    assert changed.sum() == noisy.wrong_labels == round(share * TRAIN)
    assert noisy.train_labels.dtype == np.uint8
    assert noisy.train_labels.max() <= 2
    np.testing.assert_array_equal(noisy.clean_train_labels, clean.train_labels)
    np.testing.assert_array_equal(noisy.train_images, clean.train_images)
    np.testing.assert_array_equal(noisy.test_labels, clean.test_labels)
    np.testing.assert_array_equal(noisy.test_images, clean.test_images)
    assert noisy.digest != clean.digest
    if table is UNEVEN:
        assert 1 not in clean.train_labels[changed]
        assert set(noisy.train_labels[changed & (clean.train_labels == 0)]) <= {2}


def test_a_table_is_followed_in_its_proportions():
    labels = np.zeros(60_000, np.uint8)
    noise = Noise(1.0, table=((0, 0.7, 0.3), (0, 0, 0), (0, 0, 0)))
    counts = np.bincount(noise.applied(labels, np.arange(60_000), 60_000, 3), minlength=3)
    assert counts[0] == 0
    assert abs(counts[1] / 60_000 - 0.7) < 0.01


def test_the_bits_are_those_of_the_seed_on_every_machine():
    """As they were first made; a release of NumPy that moves them has to be told apart."""
    labels = (np.arange(1000) % 10).astype(np.uint8)
    index = np.arange(1000)
    made = {
        name: hashlib.sha256(noise.applied(labels, index, 1000, 10).tobytes()).hexdigest()[:16]
        for name, noise in {
            "0.2": Noise(0.2),
            "0.2 again": Noise(0.2),
            "seed 1": Noise(0.2, seed=1),
            "random": Noise(random=True),
        }.items()
    }
    assert made == {
        "0.2": "d1e8acc65a0f0fd8",
        "0.2 again": "d1e8acc65a0f0fd8",
        "seed 1": "fb0492672dbb3635",
        "random": "c9424efba5a0f6ea",
    }


def test_more_noise_keeps_the_noise_that_was_there_on_whichever_images_are_left(folder):
    few, many = (loaded(folder, noise=Noise(share)) for share in (0.2, 0.5))
    wrong = few.train_labels != few.clean_train_labels
    np.testing.assert_array_equal(few.train_labels[wrong], many.train_labels[wrong])
    # An image's wrong label depends on its place in the whole set.
    some = loaded(folder, noise=Noise(1.0), exclude=[0, 7], train_limit=100, split_seed=2)
    everything = loaded(folder, noise=Noise(1.0))
    at = index_of(some.train_images)
    np.testing.assert_array_equal(some.train_labels, everything.train_labels[at])


def test_random_labels_know_nothing_of_the_images(folder):
    drawn = loaded(folder, noise=Noise(random=True))
    counts = np.bincount(drawn.train_labels, minlength=3) / TRAIN
    assert (abs(counts - 1 / 3) < 0.1).all()
    # Its own class is as likely as any other.
    assert abs(drawn.wrong_labels / TRAIN - 2 / 3) < 0.1
    np.testing.assert_array_equal(drawn.test_labels, loaded(folder).test_labels)


def test_validation_labels_stay_clean_unless_they_are_asked_for(folder):
    options = {"validation_fraction": 0.25, "seed": 3}
    clean = loaded(folder, **options)
    usual = loaded(folder, noise=Noise(0.2), **options)
    noisy = loaded(folder, noise=Noise(0.2, validation=True), **options)
    np.testing.assert_array_equal(usual.validation_labels, clean.validation_labels)
    assert usual.clean_validation_labels is None
    assert usual.wrong_labels == noisy.wrong_labels == 60
    np.testing.assert_array_equal(noisy.validation_images, clean.validation_images)
    np.testing.assert_array_equal(noisy.clean_validation_labels, clean.validation_labels)
    assert (noisy.validation_labels != clean.validation_labels).sum() == 20
    assert len({clean.digest, usual.digest, noisy.digest}) == 3


@pytest.mark.parametrize(
    ("noise", "said"),
    [
        (Noise(1.5), "data.label_noise: received 1.5, expected 0 to 1."),
        (Noise(0.001), "received 0.001, which is 0 of 400 labels, expected 1 to 400 labels."),
        (Noise(0.8, table=UNEVEN), "320 of 400 labels, expected 1 to 267 labels, those of the"),
        (Noise(0.2, seed=-1), "data.noise_seed: received -1, expected 0 or more."),
        (Noise(0.2, table=((0, 1), (1, 0))), "received 2 rows of 2 numbers, expected 3 rows of 3"),
        (Noise(0.2, table=((0, 1, 0), (1, 0, 0), (0.5, 0.6, 0))), "row 3: received probabilities"),
        (Noise(0.2, table=((0.5, 0.5, 0),) * 3), "row 1: received 0.5 for class 0 itself"),
        (Noise(0.2, table=((0, -1, 2),) * 3), "row 1: received -1, expected probabilities"),
        (Noise(0.2, table=((0, float("nan"), 0),) * 3), "row 1: received nan, expected prob"),
    ],
)
def test_noise_that_cannot_be_is_refused(folder, noise, said):
    assert said in refusal(folder, noise=noise)


# Which images


def test_a_split_seed_chooses_the_held_out_images_in_the_place_of_the_seed(folder):
    def held_out(**seeds: int) -> list[int]:
        return index_of(loaded(folder, validation_fraction=0.1, **seeds).validation_images)

    assert held_out(seed=0, split_seed=5) == held_out(seed=1, split_seed=5) == held_out(seed=5)
    assert held_out(split_seed=5) != held_out(split_seed=6)


def test_a_split_seed_makes_the_limit_a_sample(folder):
    def kept(limit: int, split_seed: int) -> list[int]:
        taken = loaded(folder, train_limit=limit, split_seed=split_seed)
        np.testing.assert_array_equal(
            taken.train_labels, [index % 256 % 3 for index in index_of(taken.train_images)]
        )
        return index_of(taken.train_images)

    assert len(kept(100, 0)) == 100
    assert kept(100, 0) == sorted(set(kept(100, 0))) == kept(100, 0)
    assert kept(100, 0) != kept(100, 1)
    assert set(kept(100, 0)) < set(kept(200, 0))
    assert max(kept(100, 0)) > 300


def test_excluded_images_are_left_out_before_all_else(folder):
    taken = loaded(folder, exclude=[1, 0, 5, 1], exclude_test=[59], train_limit=4, test_limit=59)
    assert index_of(taken.train_images) == [2, 3, 4, 6]
    assert index_of(taken.test_images) == list(range(59))
    assert "expected 1 to 397" in refusal(folder, exclude=[1, 0, 5, 1], train_limit=398)
    sampled = loaded(folder, exclude=range(200), train_limit=50, split_seed=1)
    assert min(index_of(sampled.train_images)) >= 200
    assert len(sampled.train_images) == 50


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"exclude": [3, 400]}, "data.exclude: received the index 400, expected indices from 0 to"),
        ({"exclude_test": [60]}, "data.exclude_test: received the index 60, expected indices from"),
        ({"exclude_test": range(60)}, "received all 60 images"),
        ({"split_seed": -1}, "data.split_seed: received -1"),
    ],
)
def test_images_that_are_not_there_cannot_be_left_out(folder, options, said):
    assert said in refusal(folder, **options)


# A run

MEASURED = ("memorised", "seen_through", "by_mistake")


def test_the_metrics_tell_the_labels_that_are_trained_on_from_the_true_ones(folder):
    noisy = loaded(folder, noise=Noise(0.25, validation=True), validation_fraction=0.25)
    eye = np.eye(3, dtype=np.float32)
    learnt_by_heart = {
        part: eye[getattr(noisy, f"{part}_labels")] for part in ("train", "validation", "test")
    }
    found = outputs.metrics(learnt_by_heart, noisy)
    assert (found["accuracy/train"], found["accuracy/train_clean"]) == (1, 0.75)
    assert (found["accuracy/validation"], found["accuracy/validation_clean"]) == (1, 0.75)
    assert (found["accuracy/gap"], found["accuracy/gap_clean"]) == (0, -0.25)
    assert [found[f"mislabelled/{name}"] for name in MEASURED] == [1, 0, 0]
    seen_through = learnt_by_heart | {"train": eye[noisy.clean_train_labels]}
    found = outputs.metrics(seen_through, noisy)
    assert (found["accuracy/train"], found["accuracy/train_clean"]) == (0.75, 1)
    assert [found[f"mislabelled/{name}"] for name in MEASURED] == [0, 1, 0]
    # Without noise there are the metrics that there were.
    plain = outputs.metrics(learnt_by_heart, loaded(folder, validation_fraction=0.25))
    parts = ("test", "train", "gap", "validation", "gap_validation")
    assert plain.keys() == {f"{name}/{part}" for name in ("accuracy", "loss") for part in parts}


@pytest.mark.slow
def test_a_run_with_noise_is_found_and_made_again_without_the_files_it_was_given(
    backend, real_data, tmp_path, capsys, monkeypatch
):
    from fmnist_lab.runs.__main__ import app

    words = ("data.train_limit=640", "data.test_limit=320", "trainer.epochs=2", "data.split_seed=1")
    noise = ("data.label_noise=0.25", "data.validation_fraction=0.1", "data.noisy_validation=true")
    listed = tmp_path / "leaked.csv"
    listed.write_text("split,index\ntest,0\ntrain,5\ntest,3\n")
    lists = ("data.exclude=leaked.csv", "data.exclude_test=leaked.csv")
    train_here(tmp_path, *words, *noise, *lists)
    tracked = Tracked(tmp_path)
    run = tracked.one()
    assert run.info.run_name.startswith("h128 e2 noise0.25 train640 test320 val0.1")
    assert run.data.params["data.label_noise"] == "0.25"
    metrics = run.data.metrics
    shares = [metrics[f"mislabelled/{name}"] for name in MEASURED]
    assert all(0 <= share <= 1 for share in shares)
    # Of 144 wrong labels among 576: the two accuracies differ by what is answered there.
    right = metrics["accuracy/train"] - metrics["accuracy/train_clean"]
    assert right == pytest.approx((shares[0] - shares[1]) * 144 / 576)
    assert metrics["accuracy/validation_clean"] != metrics["accuracy/validation"]
    gaps = {"gap": "train", "gap_clean": "train_clean"}
    for name, part in gaps.items():
        between = metrics[f"accuracy/{part}"] - metrics["accuracy/test"]
        assert metrics[f"accuracy/{name}"] == pytest.approx(between)
    assert len(tracked.history(run, "mislabelled/memorised")) == 2
    assert "mislabelled.png" in tracked.files(run)
    said = capsys.readouterr().out
    assert "144 of 576 training labels were made wrong" in said
    # The same list in another file is the same config; the list that is there now is another.
    listed.rename(tmp_path / "same.csv")
    listed.write_text("index\n7\n")
    same = ("data.exclude=same.csv", "data.exclude_test=same.csv")
    train_here(tmp_path, *words, *noise, *same, "resume=true")
    assert f"has answered this config already; its id is {run.info.run_id}" in (
        capsys.readouterr().out
    )
    listed.unlink()
    (tmp_path / "same.csv").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        app(["reproduce", run.info.run_id, "--store", tracked.uri])
    assert not ended.value.code
    assert "Identical to run" in capsys.readouterr().out
    again = tracked.runs()[0]
    for tag in ("config.hash", "data.digest"):
        assert again.data.tags[tag] == run.data.tags[tag]
    assert again.data.params == run.data.params


# The config


def test_a_config_holds_the_content_of_its_files(folder, tmp_path):
    found = tmp_path / "found.csv"
    found.write_text("split,index,distance\ntrain,17,0.5\ntest,4,0.5\ntrain,3,0.7\ntest,4,0.9\n")
    plain = tmp_path / "plain.txt"
    plain.write_text("\ufeff# looked at by hand\n17\n\n3\n3\n", "utf-8")
    table = tmp_path / "table.csv"
    table.write_text("0, 0, 1\n0, 0, 0\n.5, .5, 0\n")
    words = f"data.exclude={found} data.exclude_test={found} data.label_noise=0.2"
    chosen = idx_config(folder, f"{words} data.noise_table={table} data.noise_seed=2")
    assert chosen.data.exclude == [3, 17]
    assert chosen.data.exclude_test == [4]
    assert chosen.data.noise_table == [[0, 0, 1], [0, 0, 0], [0.5, 0.5, 0]]
    dataset = build.load_data(chosen)
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (398, 59)
    assert dataset.wrong_labels == 80
    expected = loaded(folder, exclude=[3, 17], exclude_test=[4], noise=Noise(0.2, 2, UNEVEN))
    assert dataset.digest == expected.digest
    # What a run keeps as its config.yaml needs none of the files.
    assert config.validate(chosen.to_dict()) == chosen
    # Neither the hash nor the params know where a list was.
    alike = [idx_config(folder, f"data.exclude={value}") for value in (found, plain, "[17,3]")]
    assert len({each.identity() for each in alike}) == 1
    (params,) = {tuple(naming.params(each).items()) for each in alike}
    assert str(dict(params)["data.exclude"]).startswith("2-")
    plain.write_text("17\n")
    assert idx_config(folder, f"data.exclude={plain}").identity() != alike[0].identity()


CHANGES = (
    *("data.label_noise=0.2", "data.label_noise=0.3", "data.label_noise=0.2 data.noise_seed=1"),
    "data.label_noise=0.2 data.noise_table=[[0,1],[1,0]]",
    *("data.label_noise=0.2 data.noisy_validation=true", "data.random_labels=true"),
    *("data.split_seed=0", "data.split_seed=1", "data.exclude=[0]", "data.exclude_test=[0]"),
)


def test_each_key_changes_the_hashes_and_the_name_and_its_default_neither():
    plain = composed("")
    rows = [
        (each.identity(), each.native_identity(), each.prefix_identity(), naming.run_name(each))
        for each in (plain, *map(composed, CHANGES))
    ]
    assert all(len(set(column)) == len(rows) for column in zip(*rows, strict=True))
    for words in ("data.label_noise=0", "data.exclude=[]", "data.noise_seed=0"):
        assert composed(words).identity() == plain.identity()
        assert naming.params(composed(words)) == naming.params(plain)
    assert naming.run_name(composed("data.label_noise=0.2")) == "h128 e5 noise0.2 s0"
    assert naming.run_name(composed("data.random_labels=true")) == "h128 e5 random_labels s0"
    # A run of an earlier version, or a YAML file of a user's own, has none of the keys.
    values = plain.to_dict()
    for key in config.identity.YOUNGER:
        del values["data"][key]
    assert config.validate(values).identity() == plain.identity()


@pytest.mark.parametrize(
    ("words", "content", "said"),
    [
        ("data.label_noise=1.2", "", "data.label_noise: received 1.2, expected a number from 0"),
        ("data.exclude={}x", "", "x', which cannot be read (No such file or directory), expected"),
        ("data.exclude={}", "17\n-3\n", "whose line 2 has '-3' in the place of an index"),
        ("data.exclude={}", "a,b\n1,2\n", "with the columns a, b, expected a list of indices"),
        ("data.exclude={}", "index,split\n1,val\n", "line 2 has the split 'val'"),
        ("data.exclude={}", "index,split\n1\n", "line 2 has 1 cells and not 2"),
        ("data.exclude={}", "split,index\ntest,1\n", "give it as data.exclude_test"),
        ("data.exclude=/dev/zero", "", "received /dev/zero, which is no file"),
        ("data.exclude=[-1]", "", "data.exclude: received [-1], expected the path of a file"),
        ("data.noise_table={}", "0,x\n", "could not convert string to float: 'x'"),
        (
            "data.random_labels=true data.label_noise=0.2",
            "",
            "data.label_noise: received 0.2, but with data.random_labels=true",
        ),
    ],
)
def test_what_a_file_or_a_value_cannot_be_is_one_sentence(tmp_path, words, content, said):
    file = tmp_path / "list.csv"
    file.write_text(content)
    with pytest.raises(UserError) as caught:
        composed(shlex.join(words.format(file).split()))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# Reports and comparisons


def kept(first: str = "r", **columns: object) -> pd.DataFrame:
    """Finished runs as a store's table has them."""
    count = max(len(each) for each in columns.values() if isinstance(each, list))
    rows = pd.DataFrame({"status": ["FINISHED"] * count, "data.train_limit": ["900"] * count})
    rows["run_id"] = [f"{first}{place}" for place in range(count)]
    rows["name"] = rows["run_id"]
    metrics = {"accuracy/test": 0.8, "accuracy/gap": 0.1, "loss/test": 0.5, "loss/gap": 0.2}
    return rows.assign(**(metrics | {"seed": "0"} | columns))


def test_a_run_without_noise_has_none_of_it_among_those_that_have():
    study = summary.take_apart(
        kept(
            **{
                "data.label_noise": [None, "0.2", "0.2"],
                "data.random_labels": [None] * 3,
                "seed": ["0", "0", "1"],
                "mislabelled/memorised": [math.nan, 0.1, 0.3],
                "accuracy/gap_clean": [math.nan, 0.15, 0.25],
            }
        )
    )
    assert study.parameters == ["data.label_noise"]
    assert study.summary["data.label_noise"].tolist() == [0, 0.2]
    assert study.summary["mislabelled/memorised/mean"].tolist()[1] == pytest.approx(0.2)
    # All labels of a run without noise are true.
    assert study.summary["accuracy/gap_clean/mean"].tolist() == pytest.approx([0.1, 0.2])
    assert findings.WRONG_LABELS in findings.findings(study)
    plain = summary.take_apart(kept(seed=["0", "1"])).summary
    assert not [name for name in plain if "clean" in name or "mislabelled" in name]


def test_runs_that_differ_in_the_seeds_of_their_data_are_of_one_setting():
    seeds = {"data.split_seed": ["0", "1", "1"], "data.noise_seed": [None, None, "4"]}
    study = summary.take_apart(kept(**seeds, **{"data.label_noise": "0.2"}))
    assert study.parameters == []
    assert study.summary["runs"].tolist() == [3]
    twice = summary.take_apart(kept(**{"data.split_seed": ["1", "1"]}))
    assert [run.reason for run in twice.unused] == ["repeats setting and seed of r0 (r0)"]
    # Runs on other samples are no evidence of different settings.
    verdict = compared(kept("a", **{"data.split_seed": ["0"]}), kept("b", seed=["0"]))
    assert ("config", "data.split_seed", "0", "-") in verdict.differences
    assert comparison.SAME_SETTING in verdict.sentences


def compared(a: pd.DataFrame, b: pd.DataFrame, test: tuple[int, int] = (9, 9)):
    """Two runs of other training sets, with so many test images each."""
    sides = [
        comparison.Side(summary.take_apart(runs), {f"{name}0": {"data.digest": name}})
        for name, runs in (("a", a), ("b", b))
    ]
    counts = dict(zip(("a0", "b0"), test, strict=True))
    return comparison.compare(
        *sides, lambda run: (np.eye(3)[np.zeros(counts[run], int)], np.zeros(counts[run], int))
    )


def test_other_noise_is_compared_on_the_test_images_that_both_have():
    sides = kept("a", **{"data.label_noise": ["0.2"]}), kept("b", seed=["0"])
    assert ("config", "data.label_noise", "0.2", "-") in compared(*sides).differences
    with pytest.raises(UserError, match="tested on different images"):
        compared(*sides, (9, 8))
