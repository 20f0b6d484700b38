"""Power cuts: what is finished stays, and `resume=true` brings the rest to the same end.

A run and a sweep are carried out once each in a folder on a lossy disk, which is recorded
(`lossy_disk`, `recordings`), so that what a power cut would have left is known for every moment.

- At every moment, on every kind of disk, the files of what the store calls FINISHED or READY are
  whole, and so is a checkpoint that was saved.
- At ten moments, what a power cut leaves is put back into the folder, and the same command, which
  has `resume=true`, comes to the end that the undisturbed one came to. That, too, is recorded, so
  that it withstands another power cut.

FMNIST_LAB_CUTS=all tries each of the ten moments on every kind of disk instead of on one.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from urllib.parse import unquote, urlsplit

import lossy_mount
import pytest
from doors import Process
from lossy_disk import KINDS, read_tree, write_tree
from outcomes import left_behind, outcome_of
from recordings import DATABASE, Recording, Seen, StoreReader

pytestmark = pytest.mark.slow

TINY = ("data.train_limit=1000", "data.test_limit=500", "checkpoint.every=1", "resume=true")
COMMANDS = {
    "run": (*TINY, "trainer.epochs=12", "model.dropout=0.2"),
    "sweep": ("-m", *TINY, "trainer.epochs=1,2", "model.hidden_units=16,32"),
}
# As in a longer training: the store is there before the second epoch.
SLOWER = """
import sys
from fmnist_lab import run
from fmnist_lab.tracking.run import Run

def metrics(self, *words, real=Run.metrics, **others):
    real(self, *words, **others)
    self.wait_until_open()

Run.metrics = metrics
sys.argv[0] = "run"
run.main()
"""

# Each is the moment after an operation.
MOMENTS: dict[str, dict[str, Callable[[Seen], int]]] = {
    "run": {
        "the store is made": lambda seen: seen.first["store"],
        "the run is in the store": lambda seen: seen.first["run 0"],
        "epoch 1 is saved": lambda seen: seen.first["epoch-000001.npz"],
        "epoch 8 is saved": lambda seen: seen.first["epoch-000008.npz"],
        "the training is over": lambda seen: seen.first["epoch-000012.npz"],
        "half of the artifacts are there": lambda seen: (
            (seen.first["epoch-000012.npz"] + seen.last["artifact"]) // 2
        ),
        "the last artifact is there": lambda seen: seen.last["artifact"],
        "half of the model is there": lambda seen: (
            (seen.first["model 0"] + seen.first["model 0 READY"]) // 2
        ),
        "the model is READY": lambda seen: seen.first["model 0 READY"],
        "the last line is printed": lambda seen: seen.last["operation"],
    },
    "sweep": {
        "the sweep is in the store": lambda seen: seen.first["run 0"],
        "the first job is in the store": lambda seen: seen.first["run 1"],
        "half of the first model is there": lambda seen: (
            (seen.first["model 0"] + seen.first["model 0 READY"]) // 2
        ),
        "the first model is READY": lambda seen: seen.first["model 0 READY"],
        "the first job is FINISHED": lambda seen: seen.first["run 1 FINISHED"],
        "the second job is in the store": lambda seen: seen.first["run 2"],
        "the second model is READY": lambda seen: seen.first["model 1 READY"],
        "the last job is FINISHED": lambda seen: seen.first["run 4 FINISHED"],
        "half of the report is there": lambda seen: (
            (seen.first["run 4 FINISHED"] + seen.first["run 0 FINISHED"]) // 2
        ),
        "the last line is printed": lambda seen: seen.last["operation"],
    },
}
CUTS = [
    pytest.param(command, moment, kind, id=f"{command}: {moment}, {kind}")
    for command, named in MOMENTS.items()
    for moment, one in zip(named, cycle(("ordered", "strict", "scattered")))
    for kind in (KINDS if os.environ.get("FMNIST_LAB_CUTS") == "all" else (one,))
]


@dataclass
class Folder:
    """A folder where a command was carried out, undisturbed, on a lossy disk.

    Attributes:
        folder: The folder.
        recording: What was done to the disk.
        end: What the command came to.
    """

    folder: Path
    recording: Recording
    end: dict


def carry_out(folder: Path, start: Callable[[], Process]) -> Recording:
    """Carry out a command in a folder that is on a lossy disk for so long."""
    before = read_tree(folder)
    with lossy_mount.mounted(folder) as disk:
        process = start()
    assert (process.code, process.err) == (0, "")
    recording = Recording(StoreReader(folder), before, disk.log)
    write_tree(recording.disk().now(), folder)
    return recording


@pytest.fixture(scope="module")
def undisturbed(fuse, backend, doors, tmp_path_factory) -> Callable[[str], Folder]:
    """Carry out a command, or return how that went."""

    @functools.cache
    def first(command: str) -> Folder:
        folder = tmp_path_factory.mktemp(command)

        def start() -> Process:
            if command == "run":
                return doors.python(folder, SLOWER, *COMMANDS[command])
            return doors("run", folder, *COMMANDS[command])

        recording = carry_out(folder, start)
        return Folder(folder, recording, end(folder, tmp_path_factory.mktemp("copy")))

    return first


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_said_to_be_complete_outlasts_a_power_cut_at_any_moment(undisturbed, command, kind):
    broken = undisturbed(command).recording.broken_promises(kind)
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(("command", "moment", "kind"), CUTS)
def test_after_a_power_cut_it_comes_to_the_same_end(
    undisturbed, doors, tmp_path, command, moment, kind
):
    before = undisturbed(command)
    number = MOMENTS[command][moment](before.recording.seen)
    write_tree(before.recording.disk(number).after_cut(kind, moment), before.folder)
    again = carry_out(before.folder, lambda: doors("run", before.folder, *COMMANDS[command]))
    different = differences(end(before.folder, tmp_path), before.end)
    assert not different, "\n".join(different)
    broken = again.broken_promises(kind)
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_empty_all_the_same_is_made_again(undisturbed, doors, tmp_path, command):
    """As a disk leaves it that does not sync what it should, or an earlier version of ours."""
    before = undisturbed(command)
    emptied = {
        path: content and (b"" if path.startswith("mlruns/fmnist_lab/") else content)
        for path, content in before.recording.disk().now().items()
    }
    write_tree(emptied, before.folder)
    carry_out(before.folder, lambda: doors("run", before.folder, *COMMANDS[command]))
    different = differences(
        end(before.folder, tmp_path, "attributes.status = 'FINISHED'") | {"left": ""},
        before.end | {"left": ""},
    )
    assert not different, "\n".join(different)


def end(folder: Path, empty: Path, where: str = "") -> dict:
    """Return all that is to be the same of what a command has left in a folder.

    The store is copied into an empty folder: MLflow in this process keeps each file open that it
    has read, and would not see another one that has taken its place.

    Args:
        folder: The folder.
        empty: Another one, which is empty.
        where: MLflow's filter of the runs that are looked at.
    """
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{shutil.copy(folder / DATABASE, empty)}")
    (experiment,) = client.search_experiments(filter_string="name = 'fmnist_lab'")
    found: dict = {"left": dict(Counter(left_behind(folder)))}
    for run in client.search_runs([experiment.experiment_id], where):
        assert run.info.run_name not in found, f"there are two of {run.info.run_name}"
        artifacts = Path(unquote(urlsplit(run.info.artifact_uri).path))
        found[run.info.run_name] = {
            "status": run.info.status,
            "failure": run.data.tags.get("failure", ""),
            "contents": {
                file.relative_to(artifacts).as_posix(): comparable(file)
                for file in artifacts.rglob("*")
                if file.is_file()
            },
            **(outcome_of(client, run) if run.data.tags["job"] == "train" else {}),
        }
    return found


def comparable(file: Path) -> object:
    """Return what is to be the same of an artifact."""
    if file.name == "log.txt":  # it tells times
        return file.stat().st_size > 0
    if file.name == "results.csv":  # ids and times as well
        rows = csv.DictReader(file.read_text().splitlines())
        return [[row[name] for name in row if name.startswith(("acc", "loss"))] for row in rows]
    return hashlib.sha256(file.read_bytes()).hexdigest()


def differences(found: object, expected: object, where: str = "") -> list[str]:
    """Return where nested values differ."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return [
            line
            for key in sorted(found.keys() | expected.keys())
            for line in differences(found.get(key), expected.get(key), f"{where}/{key}")
        ]
    return [] if found == expected else [f"{where}: {shown(found)}, expected {shown(expected)}"]


def shown(value: object) -> str:
    length = f", {len(value)} of them" if isinstance(value, list) else ""
    return f"{repr(value)[:80]}{length}"
