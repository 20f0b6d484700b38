"""Stores that fail: a server that is killed, one that answers errors, a full disk, many writers."""

import os
import time
from pathlib import Path

import pytest
from doors import QUICK, Doors, Process
from mlflow_server import Server
from outcomes import outcome

from fmnist_lab.training import checkpoint

pytestmark = pytest.mark.slow

# Stops after the third and the sixth epoch until it is let on.
GATE = """
import time
from pathlib import Path
import keras

class Gate(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        Path(f"{epoch + 1}.reached").touch()
        while epoch + 1 in (3, 6) and not Path(f"{epoch + 1}.go").exists():
            time.sleep(0.05)
"""
WORDS = (*QUICK[:2], "trainer.epochs=8", "checkpoint.every=1", "+callbacks.gate._target_=own.Gate")


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    found = Server(folder)
    found.start()
    yield found
    found.kill()


class Gated:
    """A run that goes on when it is let."""

    def __init__(self, doors: Doors, folder: Path, *words: str) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "own.py").write_text(GATE)
        self.folder = folder
        self.process = doors.start("run", folder, *WORDS, *words)

    def reach(self, epoch: int) -> None:
        """Wait until it stands after an epoch."""
        while not (self.folder / f"{epoch}.reached").exists():
            assert self.process.running, self.process.err
            time.sleep(0.05)

    def let(self, epoch: int) -> None:
        (self.folder / f"{epoch}.go").touch()

    def end(self) -> str:
        """Let it come to its end, a good one, and return what it said."""
        for epoch in (3, 6):
            self.let(epoch)
        assert self.process.wait(600) == 0, self.process.err
        assert self.process.err == ""
        return self.process.out


@pytest.fixture(scope="module")
def undisturbed(backend, doors, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("undisturbed")
    Gated(doors, folder).end()
    return comparable(f"sqlite:///{folder}/mlflow.db")


def comparable(uri: str) -> dict:
    return {name: value for name, value in outcome(uri).items() if name not in ("id", "left")}


def without_its_server(doors: Doors, server: Server, folder: Path) -> Gated:
    """Start a run, take its server away after three epochs, and have it train on for three."""
    run = Gated(doors, folder, f"tracking.uri={server.uri}")
    run.reach(3)
    server.kill()
    run.let(3)
    run.reach(6)
    return run


def test_a_server_that_is_away_for_a_while_has_it_all_in_the_end(
    undisturbed, doors, server, tmp_path
):
    run = without_its_server(doors, server, tmp_path / "run")
    server.start()
    assert "The rest waits" not in run.end()
    assert comparable(server.uri) == undisturbed
    assert list((run.folder / "mlruns/unfinished").iterdir()) == []


def test_a_server_that_stays_away_gets_it_all_by_sync(undisturbed, doors, server, tmp_path):
    run = without_its_server(doors, server, tmp_path / "run")
    assert "python -m fmnist_lab.runs sync" in run.end()
    assert doors("runs", run.folder, "sync").code == 1
    server.start()
    sent = doors("runs", run.folder, "sync")
    assert (sent.code, sent.err) == (0, "")
    assert "it is complete" in sent.out
    assert comparable(server.uri) == undisturbed
    assert list((run.folder / "mlruns/unfinished").iterdir()) == []
    assert doors("runs", run.folder, "sync").out.startswith("Nothing to send")


# Many writers

MANY = """
import sys
from omegaconf import OmegaConf
from hydra import compose, initialize_config_dir
from fmnist_lab import config
from fmnist_lab.jobs import outputs as results, train

# What is drawn says nothing of the store, and takes most of the time.
results.draw_data = results.draw_curves = lambda *_: None
results.keep_results = lambda run, *_: run.text("x", "evaluation.json")

for seed in map(int, sys.argv[1:]):
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        found = compose("config", [
            f"seed={seed}", "trainer.epochs=3", "trainer.threads=1", "model.hidden_units=8",
            "data.train_limit=100", "data.test_limit=100", "trainer.engine=graph",
        ])
    train.run(config.validate(OmegaConf.to_container(found, resolve=True)))
"""
PROCESSES = int(os.environ.get("FMNIST_LAB_PROCESSES", "8"))
RUNS = int(os.environ.get("FMNIST_LAB_RUNS", "48"))


def test_many_processes_write_one_database(doors, tmp_path):
    from mlflow import MlflowClient

    processes = []
    try:
        for number in range(PROCESSES):
            seeds = map(str, range(number, RUNS, PROCESSES))
            processes.append(Process(tmp_path, "-c", MANY, *seeds))
        ends = [(process.wait(3000), process.err) for process in processes]
    finally:
        for process in processes:
            process.stop()
    assert ends == [(0, "")] * PROCESSES
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs(
        [client.get_experiment_by_name("fmnist_lab").experiment_id], max_results=RUNS + 1
    )
    assert sorted(int(run.data.params["seed"]) for run in runs) == list(range(RUNS))
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        for name in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
            assert steps == [1, 2, 3], (run.info.run_id, name)
        assert len(run.data.metrics) == 10
    assert list((tmp_path / "mlruns/unfinished").iterdir()) == []


# A full disk

FULL = """
import resource, sys
from fmnist_lab import run
from fmnist_lab.training import checkpoint

saved = []

def save(*words, real=checkpoint.save, **others):
    if len(saved) == 2:
        # From here on, no file may grow beyond 100 kB: no checkpoint, nor the database.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    real(*words, **others)
    saved.append(words)

checkpoint.save = save
sys.argv[0] = "run"
run.main()
"""


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(doors, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = (*QUICK[:2], "trainer.epochs=4", "checkpoint.every=1")
    for folder in (whole, parts):
        folder.mkdir()
    undisturbed = doors("run", whole, *words)
    assert undisturbed.code == 0, undisturbed.err
    said = doors.python(parts, FULL, *words).error
    assert "the state after epoch 3 cannot be saved, what was saved before is as it was" in said
    assert "File too large; make room, and repeat the command with resume=true" in said
    assert "resume=true" in said
    (left,) = (parts / "mlruns/unfinished").iterdir()
    assert checkpoint.newest(left / "checkpoints").epoch == 2
    resumed = doors("run", parts, *words, "resume=true")
    assert (resumed.code, resumed.err) == (0, "")
    assert "Going on after epoch 2 of 4" in resumed.out
    expected, found = (
        outcome(f"sqlite:///{folder}/mlflow.db", folder) for folder in (whole, parts)
    )
    assert found | {"id": ""} == expected | {"id": ""}
