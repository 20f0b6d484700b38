"""Searches that train: what is left in the store, whatever becomes of them."""

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from doors import Doors
from mlflow import MlflowClient

WORDS = (
    "-m",
    "hydra/sweeper=optuna",
    "optimizer.learning_rate=tag(log,interval(1e-4,1e-1))",
    "model.hidden_units=int(interval(16,64))",
    "data.train_limit=1000",
    "data.test_limit=500",
    "data.validation_fraction=0.2",
    "trainer.epochs=9",
    "hydra.sweeper.n_trials=6",
    "hydra.sweeper.finals=1",
)


class Kept:
    """What a search has left in a folder."""

    def __init__(self, folder: Path) -> None:
        client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
        (experiment,) = client.search_experiments(filter_string="name = 'fmnist_lab'")
        runs = list(client.search_runs([experiment.experiment_id]))
        (self.parent,) = [run for run in runs if run.data.tags["job"] == "sweep"]
        mine = f"sweep.{self.parent.info.run_id}"
        self.children = [run for run in runs if mine in run.data.tags]
        self.facts = json.loads(self.parent.data.tags["search.facts"])
        self.files = {file.path for file in client.list_artifacts(self.parent.info.run_id)}
        self.log = folder / "mlruns" / "hydra" / self.parent.info.run_id / "trials.jsonl"

    def states(self) -> Counter:
        """Return how many trials and finals are in which state."""
        return Counter((run.data.tags["role"], run.info.status) for run in self.children)

    def trials(self) -> dict[int, tuple[str, str]]:
        """Return the values and the state of each trial."""
        return {
            int(run.data.tags["trial.number"]): (run.data.tags["trial.values"], run.info.status)
            for run in self.children
            if run.data.tags["role"] == "trial"
        }

    def events(self) -> list[dict]:
        lines = map(json.loads, self.log.read_text().splitlines())
        return [
            {key: value for key, value in line.items() if key not in ("seconds", "took")}
            for line in lines
        ]


@pytest.fixture(scope="module")
def search(doors: Doors, tmp_path_factory):
    """A search on one worker that nothing disturbs."""
    folder = tmp_path_factory.mktemp("search")
    process = doors.start("run", folder, *WORDS)
    process.wait(600)
    return folder, process


@pytest.mark.slow
def test_a_search_is_a_parent_with_paused_and_finished_trials_and_finals(doors, search):
    folder, process = search
    assert (process.code, process.err) == (0, "")
    kept = Kept(folder)
    assert kept.parent.info.status == "FINISHED"
    states = kept.states()
    assert states["final", "FINISHED"] == 1
    assert states["trial", "FINISHED"] >= 1
    assert states["trial", "SCHEDULED"] + states["trial", "FINISHED"] == 6
    assert sum(states.values()) == 7
    assert {"report.html", "best.yaml", "trials.csv", "rungs.csv"} <= kept.files
    best = kept.facts["best"]
    (winner,) = [
        run
        for run in kept.children
        if run.data.tags["role"] == "trial" and int(run.data.tags["trial.number"]) == best
    ]
    finals = [run for run in kept.children if run.data.tags["role"] == "final"]
    assert {run.data.params["seed"] for run in finals} == {"1"}
    assert all(run.info.run_name.endswith(" s1") for run in finals)
    assert finals[0].info.run_id in doors("runs", folder, "list", "--all").out
    for run in finals:
        assert run.data.tags["trial.values"] == winner.data.tags["trial.values"]
        assert run.data.params["data.validation_fraction"] == "0.0"
        assert "accuracy/validation" not in run.data.metrics
    # No figure of the test set was on the screen before the winner was known.
    assert "test accuracy" not in process.out.partition("has won")[0]
    # It was promoted twice, and has the bits of a training in one go.
    promoted = [line for line in kept.events() if line["event"] == "promoted"]
    assert [line["epochs"] for line in promoted if line["number"] == best] == [3, 9]
    again = doors("runs", folder, "reproduce", winner.info.run_id)
    assert (again.code, again.err) == (0, "")
    assert "metrics of every epoch, weights and predictions are the same, bit for bit" in again.out
    assert kept.facts["winner_command"] in process.out


@pytest.mark.slow
def test_a_search_killed_at_five_moments_ends_as_if_it_were_not(doors: Doors, search, tmp_path):
    expected = Kept(search[0])
    words = WORDS
    for lines in (1, 4, 8, 13, 18):
        process = doors.start("run", tmp_path, *words)
        log = tmp_path / "mlruns" / "hydra"
        end = time.monotonic() + 600
        while sum(file.read_bytes().count(b"\n") for file in log.glob("*/*.jsonl")) < lines:
            assert process.running, process.err
            assert time.monotonic() < end
            time.sleep(0.02)
        # In the middle of a training, and sometimes of writing down its end.
        time.sleep(0.05 * lines)
        process.kill(signal.SIGKILL)
        process.wait()
        words = (*WORDS, "resume=true")
    process = doors.start("run", tmp_path, *words)
    assert (process.wait(600), process.err) == (0, "")
    found = Kept(tmp_path)
    assert found.events() == expected.events()
    assert found.trials() == expected.trials()
    assert found.states() == expected.states()
    assert {**found.facts, "seconds": 0, "rung_seconds": 0} == {
        **expected.facts,
        "seconds": 0,
        "rung_seconds": 0,
    }


@pytest.mark.slow
def test_side_by_side_a_killed_search_loses_no_trial(doors: Doors, tmp_path):
    words = (*WORDS, "hydra/launcher=local_cores", "hydra.launcher.workers=2")
    process = doors.start("run", tmp_path, *words)
    log = tmp_path / "mlruns" / "hydra"
    end = time.monotonic() + 600
    while sum(file.read_bytes().count(b"\n") for file in log.glob("*/*.jsonl")) < 5:
        assert process.running, process.err
        assert time.monotonic() < end
        time.sleep(0.05)
    for each in (process._process.pid, *process.descendants()):
        os.kill(each, signal.SIGKILL)
    process.wait()
    before = Kept(tmp_path)
    process = doors.start("run", tmp_path, *words, "resume=true")
    assert (process.wait(600), process.err) == (0, "")
    kept = Kept(tmp_path)
    assert kept.parent.info.run_id == before.parent.info.run_id
    assert sorted(kept.trials()) == list(range(6))
    states = kept.states()
    assert states["final", "FINISHED"] == 1
    assert set(states) <= {
        ("final", "FINISHED"),
        ("trial", "FINISHED"),
        ("trial", "SCHEDULED"),
    }
    values = {number: trial[0] for number, trial in kept.trials().items()}
    assert {number: trial[0] for number, trial in before.trials().items()}.items() <= values.items()


@pytest.mark.slow
def test_ctrl_c_leaves_no_trial_running_and_the_paused_ones_paused(doors: Doors, tmp_path):
    words = (*WORDS, "hydra/launcher=local_cores", "hydra.launcher.workers=2")
    process = doors.start("run", tmp_path, *words)
    log = tmp_path / "mlruns" / "hydra"
    end = time.monotonic() + 600
    while sum(file.read_bytes().count(b"\n") for file in log.glob("*/*.jsonl")) < 5:
        assert process.running, process.err
        assert time.monotonic() < end
        time.sleep(0.05)
    process.kill(signal.SIGINT)
    assert process.wait() == 130
    kept = Kept(tmp_path)
    assert kept.parent.info.status == "KILLED"
    states = {status for _, status in kept.states()}
    assert "RUNNING" not in states
    assert "SCHEDULED" in states
    assert "resume=true" in process.out
