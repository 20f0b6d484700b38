"""The benchmark: what it says follows from what it timed. No test here looks at a clock."""

import csv

import pytest

from fmnist_lab.benchmark import contenders
from fmnist_lab.benchmark.epochs import Case, _bound, _kept_busy, _rows
from fmnist_lab.benchmark.sweep import _estimate


def test_a_job_is_estimated_by_a_straight_line():
    sampled = [
        (32, 1, 10.0),
        (32, 3, 16.0),
        (64, 1, 1.0),
        (64, 3, 1.0),
        (32, 1, 12.0),
        (32, 3, 18.0),
    ]
    assert _estimate(sampled, 32, 1) == 11.0
    assert _estimate(sampled, 32, 20) == 11.0 + 19 * 3.0
    assert _estimate(sampled, 64, 20) == 1.0


def test_every_round_of_every_contender_is_kept():
    rows = _rows(Case("mlp", 32), {"a": [0.1, 0.2], "b": [0.3, 0.4]})
    assert [(row["contender"], row["round"], row["seconds"]) for row in rows] == [
        ("a", 1, 0.1),
        ("a", 2, 0.2),
        ("b", 1, 0.3),
        ("b", 2, 0.4),
    ]


def test_processes_are_busy_meanwhile_and_not_after():
    with _kept_busy(2) as processes:
        orphan, other = processes
        orphan.stdin.close()
        assert orphan.wait(60) == 0, "it does not outlive the one who started it"
        assert other.poll() is None
    assert other.poll() is not None


def test_operations_are_those_of_the_networks_products():
    forward_and_weights = 2 * (784 * 128 + 128 * 10)
    assert contenders.network_operations(1) == 2 * (forward_and_weights + 128 * 10)


def test_the_share_of_the_products_is_the_median_over_the_rounds():
    times = {
        "fmnist_lab": [0.1, 0.2, 0.2],
        "square products alone": [0.08, 0.14, 0.1],
        "own products alone": [0.1, 0.1, 0.3],
    }
    said = _bound(times)
    assert "123 GFLOP/s" in said
    assert "70% of the rate of large square ones, 100% of the two largest" in said


@pytest.mark.parametrize(
    "command", ["audit", "epochs", "job", "memory", "outage", "store", "sweep"]
)
def test_each_measurement_has_help(doors, tmp_path, command):
    process = doors("benchmark", tmp_path, command, "--help")
    assert (process.code, process.err) == (0, "")
    assert "--output" in process.out


@pytest.mark.slow
def test_a_sweep_is_timed(doors, tmp_path):
    words = ("--epochs", "1", "--widths", "8", "--seeds", "2", "--output", "kept")
    # MLflow would look for each model's requirements in a process of its own, half a minute long.
    hasty = {"MLFLOW_REQUIREMENTS_INFERENCE_TIMEOUT": "1"}
    process = doors.start("benchmark", tmp_path, "sweep", *words, **hasty)
    assert process.wait(900) == 0, process.err
    rows = list(csv.DictReader((tmp_path / "kept/sweep.csv").open()))
    assert len(rows) == 2 * 2 + 2
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert {each.name for each in tmp_path.iterdir()} == {"kept"}


@pytest.mark.slow
def test_memory_is_measured(doors, tmp_path):
    process = doors.start("benchmark", tmp_path, "memory", "--jobs", "6", "--output", "kept")
    assert process.wait(900) == 0, process.err
    rows = list(csv.DictReader((tmp_path / "kept/memory.csv").open()))
    assert [row["width"] for row in rows] == [str(32 + 8 * number) for number in range(6)]
    assert "memory grown" in process.out
    assert all(float(row[f"seconds_before_{job}"]) > 0 for row in rows for job in ("new", "known"))


@pytest.mark.slow
def test_a_store_is_timed(doors, tmp_path):
    words = ("--clients", "2", "--jobs", "3", "--runs", "1000", "--output", "kept")
    process = doors.start("benchmark", tmp_path, "store", *words)
    assert process.wait(900) == 0, process.err
    rows = list(csv.DictReader((tmp_path / "kept/store.csv").open()))
    assert len([row for row in rows if "1000 runs" in row["what"]]) == 6
    assert all(float(row["seconds"]) > 0 for row in rows)
