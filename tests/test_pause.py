"""Runs that stop after an epoch with `pause_after`, and go on later to the same bits."""

import contextlib
import re
import socket
import time
from pathlib import Path

import pytest
from doors import QUICK
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient
from omegaconf import OmegaConf
from outcomes import outcome

from fmnist_lab import config, tracking
from fmnist_lab.errors import UserError
from fmnist_lab.jobs import resume, train
from fmnist_lab.jobs.membership import Membership
from fmnist_lab.runs.list import list_runs
from fmnist_lab.tracking import Store, SweepRun, member_tag
from fmnist_lab.tracking.events import End, Opened, Status
from fmnist_lab.tracking.journal import Journal

# A schedule and a callback have states of their own, and so has dropout.
WORDS = (
    *QUICK[:2],
    "trainer.epochs=3",
    "schedule=cosine",
    "callbacks=early_stopping",
    "data.validation_fraction=0.1",
)
SWEEP = "a" * 32


def composed(*overrides: str) -> config.Config:
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        found = compose("config", list(overrides))
    return config.validate(OmegaConf.to_container(found, resolve=True))


def do(folder: Path, *words: str, member: Membership | None = None) -> dict[str, float]:
    """Train in this process, as in a folder of its own."""
    with contextlib.chdir(folder):
        return train.run(
            composed(*WORDS, f"tracking.uri=sqlite:///{folder}/mlflow.db", *words), member
        )


def only_run(folder: Path):
    (run,) = MlflowClient(f"sqlite:///{folder}/mlflow.db").search_runs(["1"])
    return run


def check_paused(folder: Path, epoch: int) -> None:
    run = only_run(folder)
    assert (run.info.status, run.data.tags["paused.after"]) == ("SCHEDULED", str(epoch))
    (journal,) = (folder / "mlruns/unfinished").iterdir()
    assert max(file.stem for file in journal.glob("checkpoints/*")) == f"epoch-{epoch:06d}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine",
    ["native", *(pytest.param(each, marks=pytest.mark.slow) for each in ("xla", "graph"))],
)
def test_a_paused_run_ends_with_the_bits_of_one_that_was_not(
    backend, real_data, tmp_path, capsys, engine
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    words = (f"trainer.engine={engine}", f"model.dropout={0 if engine == 'native' else 0.2}")
    undisturbed = do(whole, *words)
    capsys.readouterr()
    first = do(parts, *words, "pause_after=1")
    assert first["epoch"] == 1
    assert first["accuracy/validation"] > 0.2
    check_paused(parts, 1)
    said = capsys.readouterr().out
    assert "Paused after epoch 1 of 3: the run is PAUSED" in said
    assert re.search("^go on +python .*resume=true$", said, re.MULTILINE)
    store = Store.locate(f"sqlite:///{parts}/mlflow.db")
    assert tracking.heal(store) == []
    # A search that was killed may ask for the same part a second time.
    again = do(parts, *words, "pause_after=1", "resume=true")
    assert again == first
    check_paused(parts, 1)
    second = do(parts, *words, "pause_after=2", "resume=true")
    assert second["epoch"] == 2
    check_paused(parts, 2)
    assert do(parts, *words, "pause_after=1", "resume=true") == first
    check_paused(parts, 2)
    capsys.readouterr()
    list_runs(store=store.uri)
    assert "PAUSED" in capsys.readouterr().out
    run_id = only_run(parts).info.run_id
    last = do(parts, *words, "resume=true")
    assert last.keys() == undisturbed.keys()
    assert last["epoch"] == undisturbed["epoch"] == 3
    expected, found = (outcome(f"sqlite:///{each}/mlflow.db", each) for each in (whole, parts))
    assert found.pop("id") == run_id
    expected.pop("id")
    assert found == expected
    assert only_run(parts).data.tags["paused.after"] == ""
    # A run that has come further answers with the figures that it had then.
    assert do(parts, *words, "pause_after=1", "resume=true") == first
    assert do(parts, *words, "pause_after=2", "resume=true") == second
    assert do(parts, *words, "resume=true") == last


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tracking=none",), "with tracking=none no state is kept"),
        (("checkpoint.every=null",), "with checkpoint.every=null no state is kept"),
        (("job=evaluate", "model_uri=runs:/1/model"), "job=evaluate trains no epoch"),
        (("pause_after=0",), "pause_after: received 0, expected a whole number, 1 or more"),
    ],
)
def test_a_pause_that_could_not_be_is_refused(words, said):
    with pytest.raises(UserError, match=re.escape(said)) as error:
        composed("pause_after=3", *words)
    assert str(error.value).startswith("pause_after: received ")
    if "pause_after=0" not in words[0] and "job" not in words[0]:
        composed("pause_after=3", "trainer.epochs=3", *words)  # never comes to pass


def test_a_pause_changes_no_identity():
    plain, paused = composed(), composed("pause_after=2")
    for identity in ("identity", "native_identity", "prefix_identity"):
        assert getattr(plain, identity)() == getattr(paused, identity)()
    member = Membership.of(None, 0, ["seed=1", "pause_after=2"], ("seed",))
    assert (member.name, member.command) == ("s1", "python -m fmnist_lab.run seed=1")


def test_a_state_that_cannot_be_kept_is_refused_before_the_first_epoch(
    backend, real_data, tmp_path, monkeypatch
):
    def refuse(*_):
        raise TypeError

    monkeypatch.setattr("fmnist_lab.training.checkpoint._callback_state", refuse)
    with pytest.raises(UserError, match="pause_after: received 1, but a callback holds"):
        do(tmp_path, "pause_after=1")
    run = only_run(tmp_path)
    assert (run.info.status, run.data.metrics) == ("FAILED", {})


class Paused:
    """A store with a run that is paused, and with one that goes on from a pause."""

    def __init__(self, folder: Path) -> None:
        self.store = Store.locate(f"sqlite:///{folder}/mlflow.db")
        self.place = self.store.open("fmnist_lab")
        self.client = MlflowClient(self.store.uri)
        self.sweep = SweepRun(self.store, "fmnist_lab", self.place, SWEEP)

    def run(self, number: int, *, running: bool = False) -> str:
        tags = {member_tag(SWEEP): f"{number:05d}", "job": "train", "paused.after": "1"}
        id = self.client.create_run(self.place, tags=tags, run_name="x").info.run_id
        self.client.log_metric(id, "accuracy/test", 0.5, step=1)
        self.client.set_terminated(id, "SCHEDULED")
        if running:
            self.client.update_run(id, "RUNNING")
        return id

    def status(self, id: str) -> str:
        return self.client.get_run(id).info.status


@pytest.fixture
def paused(tmp_path) -> Paused:
    return Paused(tmp_path)


def test_a_sweep_tells_its_paused_jobs_from_those_that_go_on(paused, tmp_path):
    rests, goes_on = paused.run(0), paused.run(1, running=True)
    found = {job.job: (job.status, job.epoch, bool(job.ended)) for job in paused.sweep.progress(0)}
    assert len(paused.sweep.progress(0)) == 2
    assert found == {0: ("PAUSED", 1, True), 1: ("RUNNING", 1, False)}
    runs, _ = paused.sweep.members()
    assert dict(zip(runs["job_number"], runs["status"], strict=True)) == {0: "PAUSED", 1: "RUNNING"}
    short = tracking.sweep_summaries(paused.store, "fmnist_lab", [SWEEP])[SWEEP]
    assert dict(short.states) == {"PAUSED": 1, "RUNNING": 1}
    # A job that is lost while it goes on has failed; one that is paused has no worker to lose.
    paused.sweep.end_members("FAILED", "its worker process was lost")
    assert (paused.status(rests), paused.status(goes_on)) == ("SCHEDULED", "FAILED")
    # The log of each part is kept.
    log = tmp_path / "log.txt"
    for part, began in (("first", 0), ("second", round(1000 * time.time()))):
        log.write_text(f"{part} part\n")
        paused.client.set_terminated(rests, "SCHEDULED")
        paused.sweep.keep_log(0, "x", log, began, "", {})
        assert (paused.status(rests), log.exists()) == ("SCHEDULED", False)
    assert [file.path for file in paused.client.list_artifacts(rests)] == ["log.txt"]
    kept = Path(paused.client.download_artifacts(rests, "log.txt"))
    assert kept.read_text() == "first part\nsecond part\n"


@pytest.mark.parametrize(("ended", "healed"), [(Status.PAUSED, 0), (Status.KILLED, 1)])
def test_a_pause_that_the_store_has_not_heard_of_is_not_healed(paused, ended, healed):
    journal = Journal.claim(paused.store.unfinished, "0123456789abcdef")
    tags = {"host": socket.gethostname(), "scratch": str(journal.folder)}
    id = paused.client.create_run(paused.place, tags=tags).info.run_id
    for event in (Opened(id, "x", paused.store.uri), End(ended, 1)):
        journal.append(event)
    journal.release()
    assert len(tracking.heal(paused.store)) == healed
    (sent,) = tracking.sync(paused.store)
    assert (sent.status, paused.status(id)) == (ended, ended)
    assert journal.folder.exists()


def test_a_paused_run_whose_state_is_removed_is_killed(paused):
    asked = composed()
    journal = Journal.claim(paused.store.unfinished, asked.identity())
    id = paused.run(0)
    for event in (Opened(id, "x", paused.store.uri), End(Status.PAUSED, 1)):
        journal.append(event)
    journal.release()
    resume.supersede(paused.store, asked)
    assert not journal.folder.exists()
    assert paused.status(id) == "KILLED"


# From end to end

KILLED_GOING_ON = """
import os, signal, sys
from fmnist_lab import run
from fmnist_lab.training import checkpoint

def after(*words, real=checkpoint.Checkpointer.after, **others):
    real(*words, **others)
    os.kill(os.getpid(), signal.SIGKILL)

checkpoint.Checkpointer.after = after
sys.argv[0] = "run"
run.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("saves", ["1", "60s"], ids=["after its epoch", "before it is saved"])
def test_a_run_that_is_killed_while_it_goes_on_loses_nothing(backend, doors, tmp_path, saves):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    words = (*WORDS, f"checkpoint.every={saves}")
    assert doors("run", whole, *words).code == 0
    assert doors("run", parts, *words, "pause_after=1").code == 0
    assert doors.python(parts, KILLED_GOING_ON, *words, "resume=true").code == -9
    healed = doors("runs", parts, "heal")
    assert "it is KILLED now" in healed.out
    assert only_run(parts).info.status == "KILLED"
    assert doors("run", parts, *words, "pause_after=2", "resume=true").code == 0
    check_paused(parts, 2)
    assert "Nothing to heal" in doors("runs", parts, "heal").out
    assert doors("run", parts, *words, "resume=true").code == 0
    expected, found = (outcome(f"sqlite:///{each}/mlflow.db", each) for each in (whole, parts))
    assert found.pop("id") != expected.pop("id")
    assert found == expected


@pytest.mark.slow
def test_the_jobs_of_a_sweep_are_paused_and_go_on(doors, tmp_path):
    words = ("-m", "seed=range(3)", "hydra/launcher=local_cores", *WORDS)
    paused = doors("run", tmp_path, *words, "pause_after=1")
    assert (paused.code, paused.err) == (0, "")
    assert "3 paused" in paused.out
    assert "paused at 1/3" in paused.out
    assert "finish it" in paused.out
    assert "PAUSED: 0 of 3 finished, 3 paused" in doors("runs", tmp_path, "list").out
    finished = doors("run", tmp_path, *words, "resume=true")
    assert (finished.code, finished.err) == (0, "")
    assert "3 finished" in finished.out
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs(["1"])
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    assert {run.data.tags.get("paused.after") for run in runs} == {""}
