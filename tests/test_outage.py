"""Stores that fail: a server that is killed, one that answers errors, a full disk, many writers."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import QUICK, Doors, Process, clean_environment
from outcomes import outcome

from fmnist_lab import checkpoint

pytestmark = pytest.mark.slow

WORDS = (
    *("data.train_limit=20000", "data.test_limit=500", "trainer.epochs=60", "trainer.threads=1"),
    "checkpoint.every=1",
)


class Server:
    """An MLflow server on loopback that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
                *("--port", str(self.port), "--workers", "1"),
                *("--backend-store-uri", f"sqlite:///{self.folder}/server.db"),
                *("--artifacts-destination", str(self.folder / "artifacts")),
            ],
            cwd=self.folder,
            env=clean_environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # its worker is to go with it
        )
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                assert self.process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, 9)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    found = Server(folder)
    found.start()
    yield found
    found.kill()


@pytest.fixture(scope="module")
def undisturbed(backend, doors, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("undisturbed")
    process = doors("run", folder, *WORDS)
    assert process.code == 0, process.err
    return comparable(f"sqlite:///{folder}/mlflow.db")


def comparable(uri: str) -> dict:
    return {name: value for name, value in outcome(uri).items() if name not in ("id", "left")}


def wait_for(process: Process, text: str) -> None:
    deadline = time.monotonic() + 120
    while text not in process.out:
        assert process.running, process.err
        assert time.monotonic() < deadline
        time.sleep(0.02)


def begun(doors: Doors, server: Server, folder: Path) -> Process:
    """Start a run that keeps its figures on the server, and kill that in the midst of it."""
    folder.mkdir()
    process = doors.start("run", folder, *WORDS, f"tracking.uri={server.uri}")
    wait_for(process, " 5/60 ")
    server.kill()
    wait_for(process, " 30/60 ")
    return process


def test_a_server_that_is_away_for_a_while_has_it_all_in_the_end(
    undisturbed, doors, server, tmp_path
):
    process = begun(doors, server, tmp_path / "run")
    server.start()
    assert process.wait() == 0, process.err
    assert process.err == ""
    assert "could not be reached" not in process.out
    assert comparable(server.uri) == undisturbed
    assert list((tmp_path / "run/mlruns/unfinished").iterdir()) == []


def test_a_server_that_stays_away_gets_it_all_by_sync(undisturbed, doors, server, tmp_path):
    folder = tmp_path / "run"
    process = begun(doors, server, folder)
    assert process.wait() == 0, process.err
    assert process.err == ""
    assert "python -m fmnist_lab.runs sync" in process.out
    assert doors("runs", folder, "sync").code == 1
    server.start()
    sent = doors("runs", folder, "sync")
    assert (sent.code, sent.err) == (0, "")
    assert "it is complete" in sent.out
    assert comparable(server.uri) == undisturbed
    assert list((folder / "mlruns/unfinished").iterdir()) == []
    assert doors("runs", folder, "sync").out.startswith("Nothing to send")


# Many writers

MANY = """
import sys
from omegaconf import OmegaConf
from hydra import compose, initialize_config_dir
from fmnist_lab import config, jobs, results

# What is drawn says nothing of the store, and takes most of the time.
results.draw_data = results.draw_curves = lambda *_: None
results.keep_results = lambda run, *_: run.text("x", "evaluation.json")

for seed in map(int, sys.argv[1:]):
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        found = compose("config", [
            f"seed={seed}", "trainer.epochs=3", "trainer.threads=1", "model.hidden_units=8",
            "data.train_limit=100", "data.test_limit=100", "trainer.engine=graph",
        ])
    jobs.train(config.validate(OmegaConf.to_container(found, resolve=True)))
"""
PROCESSES = int(os.environ.get("FMNIST_LAB_PROCESSES", "16"))
RUNS = int(os.environ.get("FMNIST_LAB_RUNS", "200"))


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
from fmnist_lab import checkpoint, run

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
    assert "the state after epoch 3 cannot be saved: File too large" in said
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
