"""The audit of a data set: its searches, its doubts about labels, and the door."""

import csv
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import idx_files
import numpy as np
import pandas as pd
import pytest
from doors import one_line

from fmnist_lab import audit, data
from fmnist_lab.benchmark import audit as planting
from fmnist_lab.evaluation import neighbours
from fmnist_lab.evaluation.label_errors import label_errors
from fmnist_lab.studies.audit import Audit
from fmnist_lab.system import terminal


def smooth(count: int, shape: tuple[int, ...], seed: int = 0, margin: int = 0) -> np.ndarray:
    """Images of a few broad waves, all different, as uint8, in a black margin."""
    rng = np.random.default_rng(seed)
    height, width, *_ = shape
    rows, columns = np.mgrid[:height, :width]
    images = np.zeros((count, *shape))
    for _ in range(3):
        slopes = rng.normal(0, 0.5, (2, count, 1, 1))
        phase = rng.uniform(0, 6, (count, 1, 1))
        wave = np.sin(slopes[0] * rows + slopes[1] * columns + phase)
        images += 35 * (wave[..., None] if len(shape) == 3 else wave)
    whole = (images + 120).clip(0, 254).astype(np.uint8)
    framed = np.zeros_like(whole)
    inside = (slice(None), slice(margin, height - margin), slice(margin, width - margin))
    framed[inside] = whole[inside]
    return framed


def pairs_of(found: neighbours.Pairs) -> set[tuple[int, int]]:
    return set(zip(found.first.tolist(), found.second.tolist(), strict=True))


@pytest.mark.parametrize(("shape", "threads"), [((9, 12), 1), ((36, 7), 2), ((10, 7, 3), 2)])
def test_close_pairs_are_those_of_a_search_without_shortcuts(shape, threads):
    images = smooth(500, shape)
    rng = np.random.default_rng(1)
    near = images[::10] + rng.integers(-3, 4, images[::10].shape)
    images = np.concatenate([images, near.clip(0, 255).astype(np.uint8), images[:3]])
    # More than a block has rows; float64 has all whole numbers of this size.
    assert len(images) > neighbours.ROWS
    flat = images.reshape(len(images), -1).astype(np.float64)
    norms = (flat**2).sum(axis=1)
    squares = norms[:, None] + norms - 2 * flat @ flat.T
    radius = float(np.sqrt(np.quantile(squares, 0.01))) / 255
    first, second = np.nonzero(np.triu(np.sqrt(squares) / 255 <= radius, 1))
    seen: list[tuple[int, int]] = []
    found = neighbours.close_pairs(
        images, radius, threads=threads, on_progress=lambda *at: seen.append(at)
    )
    assert found.first.tolist() == first.tolist()
    assert found.second.tolist() == second.tolist()
    assert np.allclose(found.distance, np.sqrt(squares[first, second]) / 255, rtol=1e-6)
    assert len(first) > 1000
    assert seen[-1] == (len(images), len(images))


@pytest.mark.parametrize("shape", [(20, 21), (14, 18, 3)])
def test_altered_copies_are_found_and_said_how(shape):
    images = smooth(150, shape, seed=2, margin=3)
    images[:3] = 77  # of no contrast
    images[10] = np.roll(images[11], (1, -1), axis=(0, 1))  # down and to the left
    images[20] = np.minimum(images[21] * 1.4, 255)
    images[30] = images[31] // 2 + 60
    found = neighbours.altered_pairs(images, 0.995, threads=2)
    assert pairs_of(found) == {(10, 11), (20, 21), (30, 31)}
    assert found.shift.tolist() == [[-1, 1], [0, 0], [0, 0]]
    assert np.allclose(found.gain, [1, 1 / 1.4, 2], atol=0.03)
    assert (found.correlation > 0.999).all()
    apart = (images[10].astype(float) - images[11]) / 255
    assert found.distance[0] == pytest.approx(np.sqrt((apart**2).sum()))


def test_images_without_contrast_are_no_copies_of_each_other():
    blank = np.full((50, 8, 8), 200, np.uint8)
    assert len(neighbours.altered_pairs(blank, 0.995)) == 0
    assert len(neighbours.close_pairs(blank, 0.1)) == 50 * 49 / 2


def test_expected_errors_are_those_of_the_formula():
    # Thresholds: of class 0 (0.9 + 0.7 + 0.2) / 3 = 0.6, of class 1 (0.9 + 0.5) / 2 = 0.7.
    zero = np.array([0.9, 0.7, 0.2, 0.1, 0.5])
    labels = np.array([0, 0, 0, 1, 1], np.uint8)
    found = label_errors(np.stack([zero, 1 - zero], axis=1), labels)
    # The third image counts as one of class 1; the last reaches no threshold.
    assert found.joint == pytest.approx(np.array([[2, 1], [0, 2]]))
    assert found.expected == pytest.approx(1)
    assert found.likely.tolist() == [0, 0, 1, 1, 0]
    assert found.given == pytest.approx([0.9, 0.7, 0.2, 0.9, 0.5])
    # A class without images, and labels that are all believed.
    sure = label_errors(np.eye(3)[[0, 1, 1]], np.array([0, 1, 1]))
    assert sure.expected == 0
    with pytest.raises(ValueError, match="Received"):
        label_errors(np.eye(3), np.array([0]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A data set of three kinds of images, with planted duplicates and two wrong labels."""
    rng = np.random.default_rng(5)
    rows, columns = np.mgrid[:10, :10]
    means = 60 + 15 * np.stack([rows, columns, 9 - rows])
    labels = np.arange(240) % 3
    noise = rng.normal(0, 12, (240, 10, 10))
    images = (means[labels] + noise).clip(0, 250).astype(np.uint8)
    images[:, [0, -1]] = images[:, :, [0, -1]] = 0
    images[190] = np.roll(images[33], 1, axis=0)
    images[100] = images[7]
    images[100][0, 0] += 5
    images[231] = images[40]
    labels[[190, 100, 231]] = labels[[33, 7, 40]]
    labels[[50, 215]] = (labels[[50, 215]] + 1) % 3
    arrays = {
        "train-images-idx3-ubyte": images[:180],
        "train-labels-idx1-ubyte": labels[:180],
        "t10k-images-idx3-ubyte": images[180:],
        "t10k-labels-idx1-ubyte": labels[180:],
    }
    files = {name: idx_files.idx_bytes(each.astype(np.uint8)) for name, each in arrays.items()}
    return idx_files.write(tmp_path_factory.mktemp("set") / "slopes", files, packed=True)


@pytest.fixture
def door(capsys, monkeypatch, tmp_path):
    """A function that runs the audit's command line here, and returns its code and what it says."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        code: Any = 0
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["audit", *map(str, words)])
            try:
                audit.main()
            except SystemExit as end:
                code = end.code
        return (code or 0, *capsys.readouterr())

    return call


def rows_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def test_planted_faults_are_in_the_files_and_nothing_else(backend, door, folder, tmp_path):
    words = ("--data-dir", folder, "--closer-than", "0.1", "--folds", "2", "--seeds", "1")
    code, out, err = door(*words, "--less-likely-than", "0.1")
    assert (code, err) == (0, "")
    kept = tmp_path / "audit"
    duplicates = rows_of(kept / "near_duplicates.csv")
    keys = ("split", "index", "other_split", "other_index", "kind")
    assert [tuple(row[key] for key in keys) for row in duplicates] == [
        ("test", "51", "train", "40", "identical"),
        ("train", "100", "train", "7", "close"),
        ("test", "10", "train", "33", "altered"),
    ]
    assert float(duplicates[1]["distance"]) == pytest.approx(5 / 255, abs=1e-4)
    near = rows_of(kept / "leaked_images.csv")
    assert [(row["split"], row["index"], row["other_index"]) for row in near] == [
        ("train", "33", "10"),
        ("train", "40", "51"),
        ("test", "10", "33"),
        ("test", "51", "40"),
    ]
    suspects = rows_of(kept / "suspect_labels.csv")
    assert {(row["split"], row["index"]) for row in suspects} == {("train", "50"), ("test", "35")}
    page = (kept / "audit.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    for name in ("near_duplicates", "suspect_labels_train", "suspect_labels_test"):
        assert (kept / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert page.count("<img ") == 3
    assert "1 of 60 test images (1.67%) are closer than 0.1" in out
    assert "1 more look like a training image that was shifted" in out
    summary = (kept / "summary.md").read_text()
    said = [line for line in out.splitlines() if line.startswith(("Leaked", "Labels"))]
    assert len(said) == 3
    assert all(line in summary for line in said)
    assert "| test images | 60 | a training image | 1 | 1 | 1 | 1 |" in summary


def test_an_audit_is_not_overwritten_without_being_asked(door, folder, tmp_path):
    words = ("--data-dir", folder, "--seeds", "0", "--output", "kept")
    assert door(*words, "--closer-than", "0.1")[0] == 0
    before = (tmp_path / "kept/near_duplicates.csv").read_bytes()
    code, _, err = door(*words, "--closer-than", "0.001")
    assert code == 2
    assert "'kept', which has near_duplicates.csv already" in one_line(err)
    assert (tmp_path / "kept/near_duplicates.csv").read_bytes() == before
    (tmp_path / "kept/mine.txt").touch()
    (tmp_path / "kept/suspect_labels_test.png").touch()
    assert door(*words, "--closer-than", "0.001", "--overwrite")[0] == 0
    assert (tmp_path / "kept/near_duplicates.csv").read_bytes() != before
    # The sheet of an earlier audit goes, another's file stays.
    assert not (tmp_path / "kept/suspect_labels_test.png").exists()
    assert (tmp_path / "kept/mine.txt").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--closer-than 0", "--closer-than: received 0.0, expected a number above 0"),
        ("--correlation 1", "--correlation: received 1.0, expected a number from 0.9 to below 1"),
        ("--less-likely-than 2", "--less-likely-than: received 2.0, expected a share"),
        ("--folds 1", "--folds: received 1, expected a whole number, 2 or more"),
        ("--folds 181 --data-dir {}", "--folds: received 181, expected at most 180"),
        ("--seeds -1", "--seeds: received -1, expected a whole number, 0 or more"),
        ("--class-names a b", "received --class-names or --files without --data-dir"),
        ("--data-dir {} --class-names a b", "received the label 2, expected 0 to 1"),
        ("--data-dir nowhere", "nowhere cannot be used: no such folder"),
        ("--data-dir {} --output file", "--output: received 'file', which is a file"),
        ("--data-dir {} --closer-than 50", "at which more than 10,000 pairs of images are alike"),
    ],
)
def test_bad_input_is_told_in_a_sentence(door, folder, tmp_path, monkeypatch, words, said):
    (tmp_path / "file").touch()
    monkeypatch.setattr(neighbours, "MOST_PAIRS", 10_000)
    code, _, err = door(*words.format(folder).split())
    assert code == 2
    assert said in one_line(err)


def test_faults_are_planted_as_asked_and_counted():
    images, labels = smooth(60, (12, 12)), np.arange(60, dtype=np.uint8) % 10
    names = tuple(map(str, range(10)))
    dataset = data.Dataset(
        *(images, labels, images[:0], labels[:0], images, labels), names, "waves", "", "here"
    )
    planted = planting.plant(dataset, 2, 0.1, seed=3)
    changed = np.flatnonzero(planted.dataset.train_labels != labels)
    assert changed.tolist() == planted.wrong.tolist()
    assert len(changed) == 6
    assert (planted.dataset.test_images != images).any(axis=(1, 2)).sum() == 10
    for place, source in planted.source.items():
        assert planted.dataset.test_labels[place] == labels[source]
    places = [place for place, kind in planted.kind.items() if kind == "shifted by a pixel"]
    others = sorted(set(range(60)) - set(planted.kind))[:3]
    columns = ["split", "index", "other_split", "other_index"]
    natural = [("test", other, "train", 0) for other in others]
    found = ("test", places[0], "train", planted.source[places[0]])
    before = pd.DataFrame(natural[:2], columns=columns)
    after = pd.DataFrame([found, *natural], columns=columns)
    rows = {row["planted"]: row for row in planting.duplicate_rows(planted, before, after)}
    row = rows["copies shifted by a pixel"]
    assert (row["recall"], row["precision"], row["precision_aside"]) == (1 / 2, 1 / 4, 1 / 2)
    assert rows["copies brightened by 1.2"]["recall"] == 0
    given = np.ones(60)
    given[planted.wrong[:3]] = 0.001
    given[np.setdiff1d(np.arange(60), planted.wrong)[0]] = 0.002
    row = planting.label_rows(planted, given, 0.01)[0]
    assert (row["found"], row["recall"], row["precision"]) == (3, 1 / 2, 3 / 4)


@pytest.mark.slow
def test_fashion_mnist_has_the_known_number_of_leaked_images(pixels):
    images = np.concatenate([pixels.train_images, pixels.test_images])
    found = neighbours.close_pairs(images, 2.5, threads=2)
    train = len(pixels.train_images)
    across = found[(found.first < train) & (found.second >= train)]
    nearest = np.full(len(images), np.inf)
    np.minimum.at(nearest, across.second, across.distance)
    closer = [int((nearest < radius).sum()) for radius in (1, 1.5, 2, 2.5)]
    assert closer == [16, 82, 547, 1613]
    assert found.distance.min() > 0


@pytest.mark.slow
def test_planted_faults_are_found_in_fashion_mnist(backend, pixels, capsys):
    part = replace(
        pixels,
        train_images=pixels.train_images[:12_000],
        train_labels=pixels.train_labels[:12_000],
        test_images=pixels.test_images[:2000],
        test_labels=pixels.test_labels[:2000],
    )
    planted = planting.plant(part, 40, 0.01, seed=1)
    console = terminal.printout()
    thresholds = audit.CLOSER_THAN, audit.CORRELATION
    found = []
    for each in (part, planted.dataset):
        pairs = audit.find_pairs(each, *thresholds, console)
        found.append(Audit(each, *pairs, *thresholds, {}, 0.01).duplicates)
    rows = planting.duplicate_rows(planted, *found)
    assert min(row["recall"] for row in rows) > 0.9
    assert min(row["precision_aside"] for row in rows) > 0.9
    labels = audit.find_label_errors(planted.dataset, 4, 1, console)["train"]
    below, first = planting.label_rows(planted, labels.given, audit.LESS_LIKELY_THAN)
    assert below["recall"] > 0.7
    assert first["precision"] > 0.6
