"""A store that the code of an earlier commit has made is as good as one of today's.

The earlier code makes a finished run, a sweep, an evaluation, a run whose store was away at its
end, and a run that was killed. Today's code lists them, goes on with them and repeats them.
"""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from doors import QUICK, Doors, Process
from outcomes import SPEED, outcome, outcome_of

from fmnist_lab.runs.__main__ import app

pytestmark = pytest.mark.slow

COMMIT = "59861f2"
SIZE = QUICK[:2]
WORDS = (*SIZE, "trainer.epochs=4", "checkpoint.every=1", "model.dropout=0.2")
AWAY = (*SIZE, "trainer.epochs=1", "model.hidden_units=16", "seed=7")
SWEEP = ("-m", *SIZE, "trainer.epochs=1", "model.hidden_units=8", "seed=0,1")

# A store goes away when the run is in it, and does not come back.
WITHOUT_A_STORE = """
import sys
from fmnist_lab import run
from fmnist_lab.tracking import run as runs

def away(*_):
    raise ConnectionError("refused")

runs.Delivery.deliver = runs.Delivery.deliver_values = away
runs.PATIENCE_SECONDS = 0
sys.argv[0] = "run"
run.main()
"""
KILLED = """
import os, signal, sys
from fmnist_lab import checkpoint, run
from fmnist_lab.tracking.run import Run

saved = []

def save(*words, real=checkpoint.save, **others):
    real(*words, **others)
    saved.append(words)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

def metrics(self, *words, real=Run.metrics, **others):
    real(self, *words, **others)
    self.wait_until_open()

checkpoint.save, Run.metrics = save, metrics
sys.argv[0] = "run"
run.main()
"""


@dataclass
class Old:
    """What the earlier code has left.

    Attributes:
        folder: Where its store is.
        killed: Where the store with the killed run is.
        uri: The first store.
        runs: The ids of its runs, by "finished", "sweep", "job 0", "job 1", "evaluated", "away".
    """

    folder: Path
    killed: Path
    uri: str
    runs: dict[str, str]

    @property
    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def statuses(self) -> dict[str, str]:
        return {name: self.client.get_run(id).info.status for name, id in self.runs.items()}


@pytest.fixture(scope="module")
def code(tmp_path_factory) -> Iterator[Path]:
    """The package as it was at the earlier commit."""
    here = Path(__file__).parent.parent
    known = subprocess.run(
        ["git", "cat-file", "-e", f"{COMMIT}^{{commit}}"],
        cwd=here,
        capture_output=True,
        check=False,
    )
    if known.returncode:
        pytest.skip(f"the history of this checkout lacks the commit {COMMIT}")
    folder = tmp_path_factory.mktemp("earlier") / "code"
    subprocess.run(["git", "worktree", "add", "--detach", folder, COMMIT], cwd=here, check=True)
    # Its page of a sweep needs Plotly, which is no dependency any more.
    (folder / "fmnist_lab/report_page.py").write_text("def html_page(*_, **__): return ''")
    yield folder
    subprocess.run(["git", "worktree", "remove", "--force", folder], cwd=here, check=True)


@pytest.fixture(scope="module")
def old(code, real_data, backend, tmp_path_factory) -> Old:
    folder, killed = (tmp_path_factory.mktemp(name) for name in ("store", "killed"))

    def do(place: Path, *words: str) -> str:
        process = Process(place, *words, env={"PYTHONPATH": str(code)})
        try:
            assert process.code == (-9 if KILLED in words else 0), process.out + process.err
            return process.out
        finally:
            process.stop()

    where = do(folder, "-c", "import fmnist_lab; print(fmnist_lab.__file__)")
    assert where.startswith(str(code))
    ids = {}
    for name, *words in (
        ("finished", "-m", "fmnist_lab.run", *WORDS),
        ("sweep", "-m", "fmnist_lab.run", *SWEEP),
        ("away", "-c", WITHOUT_A_STORE, *AWAY),
    ):
        do(folder, *words)
        found = Old(folder, killed, f"sqlite:///{folder}/mlflow.db", ids)
        new = [run for run in runs_of(found.client) if run.info.run_id not in ids.values()]
        for run in new:
            numbers = [
                value
                for tag, value in run.data.tags.items()
                if re.match("sweep.[0-9a-f]{32}$", tag)
            ]
            ids[f"job {int(numbers[0])}" if numbers else name] = run.info.run_id
    model = f"model_uri=runs:/{ids['finished']}/model"
    do(folder, "-m", "fmnist_lab.run", *SIZE, "job=evaluate", model)
    (ids["evaluated"],) = {run.info.run_id for run in runs_of(found.client)} - set(ids.values())
    do(killed, "-c", KILLED, *WORDS)
    assert set(ids) == {"finished", "sweep", "job 0", "job 1", "away", "evaluated"}
    return found


def runs_of(client) -> list:
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


@pytest.fixture
def say(old, capsys, monkeypatch):
    """Call a verb of `runs` in the folder of the store, and return what it printed."""
    monkeypatch.chdir(old.folder)

    def call(*words: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app(list(words))
        said = capsys.readouterr()
        assert not ended.value.code, said.out + said.err
        return said.out

    return call


def test_all_runs_are_listed_reported_and_compared(old, say):
    listed = {line.split()[0]: line for line in say("list", "--all").splitlines()[1:]}
    assert set(old.runs.values()) <= set(listed)
    assert "FINISHED: 2 runs" in listed[old.runs["sweep"]]
    reported = say("report", old.runs["sweep"])
    accuracies = [
        old.client.get_run(old.runs[job]).data.metrics["accuracy/test"]
        for job in ("job 0", "job 1")
    ]
    assert f"{np.mean(accuracies):.4f}" in reported
    compared = say("compare", old.runs["finished"], old.runs["job 0"])
    assert "dropout" in compared


def test_a_run_is_reproduced_bit_for_bit(old, doors: Doors):
    again = doors("runs", old.folder, "reproduce", old.runs["finished"])
    assert again.code == 0, again.out + again.err
    assert "weights and predictions are the same, bit for bit" in again.out


def test_a_killed_run_is_healed_and_goes_on_to_the_same_bits(old, doors: Doors):
    healed = doors("runs", old.killed, "heal")
    assert "it is KILLED now" in healed.out
    assert "resume=true" in healed.out
    resumed = doors("run", old.killed, *WORDS, "resume=true")
    assert (resumed.code, resumed.err) == (0, "")
    assert "Going on after epoch 2 of 4, exactly as it was left." in resumed.out
    found = outcome(f"sqlite:///{old.killed}/mlflow.db")
    expected = outcome_of(old.client, old.client.get_run(old.runs["finished"]))
    assert found["speeds"] == [1, 2, 3, 4]
    assert [step for step, _ in found["metrics"]["accuracy/test"]] == [1, 2, 3, 4]
    # Earlier versions kept neither.
    found["files"] = [name for name in found["files"] if name not in ("packages.txt", "code.diff")]
    for what in ("status", "params", "metrics", "weights", "predictions", "class_names", "files"):
        assert found[what] == expected[what], what
    assert not list((old.killed / "mlruns/unfinished").iterdir())


def test_a_sweep_is_answered_by_its_earlier_runs(old, doors: Doors):
    before = len(runs_of(old.client))
    again = doors("run", old.folder, *SWEEP, "resume=true")
    assert (again.code, again.err) == (0, "")
    assert again.out.count("from before") == 2
    assert len(runs_of(old.client)) == before


def test_a_finished_run_and_an_evaluation_answer_their_configs(old, doors: Doors):
    model = f"model_uri=runs:/{old.runs['finished']}/model"
    for name, words in (("finished", WORDS), ("evaluated", (*SIZE, "job=evaluate", model))):
        again = doors("run", old.folder, *words, "resume=true")
        assert (again.code, again.err) == (0, "")
        assert old.runs[name] in again.out


def test_a_run_whose_store_was_away_is_sent_with_its_model(old, say):
    from fmnist_lab import tracking
    from fmnist_lab.models import saved

    run_id = old.runs["away"]
    assert old.statuses()["away"] == "RUNNING"
    assert say("heal").startswith("Nothing to heal")
    said = say("sync")
    assert f"id {run_id}: " in said
    assert said.strip().endswith("it is complete.")
    run = old.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.hidden_units"] == "16"
    store = tracking.Store.locate(old.uri)
    assert tracking.damage(store, run_id) == ""
    model, names = tracking.load_model(f"runs:/{run_id}/model", store, saved.load)
    assert len(names or ()) == 10
    probabilities, labels = tracking.read_predictions(store, run_id)
    assert (probabilities.argmax(axis=1) == labels).mean() == pytest.approx(
        run.data.metrics["accuracy/test"]
    )
    assert model.output_shape == (None, 10)
    assert SPEED in run.data.metrics
    assert not list((old.folder / "mlruns/unfinished").iterdir())
