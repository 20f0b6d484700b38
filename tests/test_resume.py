"""Going on with a run: what is found of it, what is cleared away, and the bits it ends with."""

import json
import socket
from pathlib import Path

import pytest
from conftest import QUICK
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from outcomes import outcome

from fmnist_lab import config, resume
from fmnist_lab.errors import UserError
from fmnist_lab.scratch import Scratch
from fmnist_lab.sweep import Membership
from fmnist_lab.tracking import Store, member_tag

EXPERIMENT = "fmnist_lab"
SWEEP = "a" * 32


def composed(*overrides: str) -> config.Config:
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        found = compose("config", list(overrides))
    return config.validate(OmegaConf.to_container(found, resolve=True))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    found = Store.locate(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")
    found.open(EXPERIMENT)
    return found


@pytest.fixture
def asked(request) -> config.Config:
    """A config that only this test asks for, to be resumed."""
    return composed("resume=true", f"seed={abs(hash(request.node.name)) % 10**6}")


class Before:
    """Runs of a config that earlier processes have made."""

    def __init__(self, store: Store, asked: config.Config) -> None:
        from mlflow import MlflowClient

        self.store, self.asked = store, asked
        self.client = MlflowClient(store.uri)
        self.place = self.client.get_experiment_by_name(EXPERIMENT).experiment_id

    def run(self, status: str, *, live: bool = False, ended: str = "", **tags: str):
        scratch = Scratch.claim(self.store.unfinished, self.asked.identity())
        tags |= {"config.hash": self.asked.identity(), "job": "train"}
        tags |= {"scratch": str(scratch.folder), "host": socket.gethostname()}
        run_id = self.client.create_run(self.place, tags=tags, run_name="x").info.run_id
        self.client.log_metric(run_id, "accuracy/test", 0.5)
        if status != "RUNNING":
            self.client.set_terminated(run_id, status)
        scratch.append({"kind": "run", "id": run_id, "store": self.store.uri})
        if ended:
            scratch.append({"kind": "end", "status": ended})
        if not live:
            scratch.release()
        return run_id, scratch

    def status(self, run_id: str) -> str:
        return self.client.get_run(run_id).info.status


@pytest.fixture
def before(store, asked) -> Before:
    return Before(store, asked)


def test_nothing_is_found_where_nothing_was(store, asked, before, tmp_path):
    assert resume.look_up(store, asked, None) is None
    empty = Store.locate(f"sqlite:///{tmp_path}/mlflow.db", for_writing=False)
    assert resume.look_up(empty, asked, None) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", ["RUNNING", "KILLED", "FAILED"])
def test_an_interrupted_run_is_found_with_what_is_left_of_it(store, asked, before, status):
    run_id, left = before.run(status, threads="3", engine="graph")
    found = resume.look_up(store, asked, None)
    assert isinstance(found, resume.Interrupted)
    assert (found.run_id, found.scratch.folder) == (run_id, left.folder)
    assert (found.threads, found.engine) == ("3", "graph")
    with pytest.raises(UserError, match=f"{run_id}.* is in progress"):
        resume.look_up(store, asked, None)
    found.scratch.remove()
    assert resume.look_up(store, asked, None) is None


def test_what_the_store_never_knew_of_is_found_as_well(store, asked, before):
    left = Scratch.claim(store.unfinished, asked.identity())
    left.append({"kind": "params", "values": {}})
    left.release()
    found = resume.look_up(store, asked, None)
    assert (found.run_id, found.scratch.folder) == ("", left.folder)
    found.scratch.remove()


def test_a_run_of_another_config_is_not_gone_on_with(store, asked, before):
    _, left = before.run("KILLED")
    longer = asked.model_copy(update={"trainer": asked.trainer.model_copy(update={"epochs": 99})})
    assert resume.look_up(store, longer, None) is None
    assert left.folder.exists()
    left.remove()


def test_a_finished_run_answers_and_what_lies_about_is_cleared_away(store, asked, before):
    _, killed = before.run("KILLED")
    finished, own = before.run("FINISHED", ended="FINISHED")
    _, waiting = before.run("RUNNING", ended="FINISHED")
    _, live = before.run("RUNNING", live=True)
    (store.unfinished / ".gone.1").mkdir()
    found = resume.look_up(store, asked, None)
    assert isinstance(found, resume.Answered)
    assert (found.run_id, found.metrics) == (finished, {"accuracy/test": 0.5})
    assert not killed.folder.exists()
    assert not own.folder.exists()
    assert not (store.unfinished / ".gone.1").exists()
    assert waiting.folder.exists()  # until it is delivered
    assert live.folder.exists()
    live.release()
    for each in (waiting, live):
        each.remove()


def test_a_run_that_ends_clears_away_what_others_of_its_config_have_left(store, asked, before):
    _, killed = before.run("KILLED")
    _, waiting = before.run("RUNNING", ended="FINISHED")
    resume.supersede(store, asked)
    assert not killed.folder.exists()
    assert waiting.folder.exists()
    waiting.remove()


def test_a_folder_that_became_another_runs_is_left_to_that(store, asked, before):
    _, gone = before.run("FINISHED", ended="FINISHED")
    gone.remove()
    later, waiting = before.run("RUNNING", ended="FINISHED")
    assert waiting.folder == gone.folder
    assert isinstance(resume.look_up(store, asked, None), resume.Answered)
    assert waiting.folder.exists()
    assert before.status(later) == "RUNNING"
    waiting.remove()


def test_what_is_cleared_away_does_not_seem_to_run(store, asked, before):
    before.run("FINISHED")[1].remove()
    lost, left = before.run("RUNNING")
    assert isinstance(resume.look_up(store, asked, None), resume.Answered)
    assert not left.folder.exists()
    assert before.status(lost) == "KILLED"


def test_a_run_of_another_experiment_keeps_what_it_has(store, asked, before):
    run_id, left = before.run("KILLED")
    event = {"kind": "run", "id": run_id, "store": store.uri, "experiment": "another"}
    left.append(event)
    left.release()
    resume.supersede(store, asked)
    assert left.folder.exists()
    left.remove()


def test_a_run_on_other_data_answers_nothing(store, asked, before):
    run_id, left = before.run("FINISHED", **{"data.digest": "one"})
    left.remove()
    assert resume.look_up(store, asked, None, "two") is None
    assert resume.look_up(store, asked, None, "one").run_id == run_id


def test_a_job_of_a_sweep_goes_on_with_its_own_run(store, before):
    asked = before.asked.model_copy(update={"resume": False})
    member = Membership(SWEEP, 3, "h1")
    of_another, left = before.run("KILLED", **{member_tag("b" * 32): "00003"})
    assert resume.look_up(store, asked, member) is None
    run_id, own = before.run("KILLED", **member.tags())
    found = resume.look_up(store, asked, member)
    assert (found.run_id, found.scratch.folder) == (run_id, own.folder)
    found.scratch.remove()
    # Its folder went down with another machine: the run will not go on.
    lost, gone = before.run("RUNNING", **member.tags())
    gone.remove()
    assert resume.look_up(store, asked, member) is None
    assert (before.status(lost), before.status(of_another)) == ("KILLED", "KILLED")
    left.remove()


# From end to end

SUICIDE = """
import os, signal, sys
from fmnist_lab import checkpoint, run

saved = []

def save(*words, real=checkpoint.save, **others):
    real(*words, **others)
    saved.append(words)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.save = save
sys.argv[0] = "run"
run.main()
"""
WORDS = (*QUICK[:2], "trainer.epochs=4", "checkpoint.every=1", "model.dropout=0.2")


def test_a_killed_run_goes_on_to_the_bits_of_one_that_was_not(backend, doors, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    undisturbed = doors("run", whole, *WORDS)
    assert undisturbed.code == 0, undisturbed.err
    assert doors.python(parts, SUICIDE, *WORDS).code == -9
    (left,) = (parts / "mlruns/unfinished").iterdir()
    ids = [event["id"] for event in events(left) if event["kind"] == "run"]
    assert len(ids) <= 1  # the store may not have known of it yet
    resumed = doors("run", parts, *WORDS, "resume=true")
    assert (resumed.code, resumed.err) == (0, "")
    assert "Going on after epoch 2 of 4" in resumed.out
    expected, found = (
        outcome(f"sqlite:///{folder}/mlflow.db", folder) for folder in (whole, parts)
    )
    assert ids in ([found.pop("id")], [])
    expected.pop("id")
    assert found["status"] == "FINISHED"
    assert [step for step, _ in found["metrics"]["accuracy/test"]] == [1, 2, 3, 4]
    assert found == expected


@pytest.mark.parametrize(
    ("then", "now", "kept", "expected"),
    [
        (False, True, True, "xla"),
        (True, False, True, "native, then xla"),
        (True, False, False, "xla"),
        (True, True, True, "native"),
    ],
)
def test_it_goes_on_with_the_engine_it_had_or_says_that_it_cannot(
    backend, real_data, tmp_path, monkeypatch, capsys, then, now, kept, expected
):
    """A compiler comes or goes between the two."""
    from mlflow import MlflowClient

    from fmnist_lab import checkpoint, jobs
    from fmnist_lab.engines import native

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    asked = composed(*QUICK, "trainer.epochs=2", "resume=true", f"tracking.uri={uri}")

    def interrupted(*words, real=checkpoint.Keeper.after, **others):
        if kept:
            real(*words, **others)
        raise KeyboardInterrupt

    able = native.suits
    monkeypatch.setattr(native, "suits", lambda *words: then and able(*words))
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.Keeper, "after", interrupted)
        with pytest.raises(KeyboardInterrupt):
            jobs.train(asked)
    capsys.readouterr()
    monkeypatch.setattr(native, "suits", lambda *words: now and able(*words))
    jobs.train(asked)
    said = capsys.readouterr().out
    (found,) = MlflowClient(uri).search_runs(["1"])
    assert (found.info.status, found.data.tags["engine"]) == ("FINISHED", expected)
    told = "It had trainer.engine=native before; with another" in said
    assert told == (expected == "native, then xla")


def events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
