"""Going on with a run: what is found of it, what is cleared away, and the bits it ends with."""

import json
import socket
import threading
from pathlib import Path

import pytest
from doors import QUICK
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from outcomes import outcome

from fmnist_lab import config
from fmnist_lab.errors import UserError
from fmnist_lab.jobs import resume, train
from fmnist_lab.jobs.membership import Membership
from fmnist_lab.tracking import RunRecord, Store, member_tag
from fmnist_lab.tracking.events import End, Opened, Opening, Params, Status
from fmnist_lab.tracking.journal import TOKEN_TAG, Journal
from fmnist_lab.tracking.query import PAUSED_TAG

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
        scratch = Journal.claim(self.store.unfinished, self.asked.identity())
        tags |= {"config.hash": self.asked.identity(), "job": "train"}
        tags |= {"scratch": str(scratch.folder), "host": socket.gethostname()}
        run_id = self.client.create_run(self.place, tags=tags, run_name="x").info.run_id
        self.client.log_metric(run_id, "accuracy/test", 0.5)
        if status != "RUNNING":
            self.client.set_terminated(run_id, status)
        scratch.append(Opened(run_id, store=self.store.uri))
        if ended:
            scratch.append(End(Status(ended)))
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


@pytest.mark.parametrize("status", ["RUNNING", "KILLED", "FAILED", "SCHEDULED"])
def test_an_interrupted_run_is_found_with_what_is_left_of_it(store, asked, before, status):
    run_id, left = before.run(status, threads="3", engine="graph")
    found = resume.look_up(store, asked, None)
    assert isinstance(found, resume.Interrupted)
    assert (found.run_id, found.scratch.folder) == (run_id, left.folder)
    assert (found.tags["threads"], found.tags["engine"]) == ("3", "graph")
    with pytest.raises(UserError, match=f"{run_id}.* is in progress"):
        resume.look_up(store, asked, None)
    found.scratch.remove()
    assert resume.look_up(store, asked, None) is None


def test_what_the_store_never_knew_of_is_found_as_well(store, asked, before):
    left = Journal.claim(store.unfinished, asked.identity())
    left.append(Params({}))
    left.release()
    found = resume.look_up(store, asked, None)
    assert (found.run_id, found.scratch.folder) == ("", left.folder)
    found.scratch.remove()


def test_what_the_store_has_forgotten_is_made_anew_from_what_is_left(store, asked, before):
    """A power cut may take the store's last word back, but not the journal's."""
    left = Journal.claim(store.unfinished, asked.identity())
    left.append(Opening("forgotten"))
    left.release()
    found = resume.look_up(store, asked, None)
    assert (found.run_id, found.scratch.folder) == ("", left.folder)
    left.append(Opened("f" * 32, "", store.uri, EXPERIMENT))
    found.scratch.release()
    found = resume.look_up(store, asked, None)
    assert (found.run_id, found.scratch.folder) == ("", left.folder)
    found.scratch.remove()


def test_a_run_is_known_by_its_token_before_its_folder_knows_its_id(store, asked, before):
    _, gone = before.run("FAILED", **{TOKEN_TAG: "older"})
    gone.remove()
    left = Journal.claim(store.unfinished, asked.identity())
    assert left.folder == gone.folder
    left.append(Opening("t"))
    tags = {"config.hash": asked.identity(), "job": "train", "scratch": str(left.folder)}
    made = before.client.create_run(before.place, tags={**tags, TOKEN_TAG: "t"})
    left.release()
    found = resume.look_up(store, asked, None)
    assert (found.run_id, found.scratch.folder) == (made.info.run_id, left.folder)
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
    assert isinstance(found, RunRecord)
    assert (found.run_id, found.metrics) == (finished, {"accuracy/test": 0.5})
    assert not killed.folder.exists()
    assert not own.folder.exists()
    assert not (store.unfinished / ".gone.1").exists()
    assert waiting.folder.exists()  # until it is delivered
    assert live.folder.exists()
    live.release()
    for each in (waiting, live):
        each.remove()


@pytest.mark.parametrize("kept", [True, False], ids=["with its folder", "without"])
def test_a_finished_run_that_has_lost_files_answers_nothing(store, asked, before, kept):
    said: list[str] = []
    run_id, left = before.run("FINISHED", ended="FINISHED")
    before.client.log_text(run_id, "seed: 0", "config.yaml")
    assert isinstance(resume.look_up(store, asked, None, say=said.append), RunRecord)
    left = Journal.claim(store.unfinished, asked.identity())
    left.append(Opened(run_id, store=store.uri))
    left.release()
    if not kept:
        left.remove()
    (store.artifacts / EXPERIMENT / run_id / "artifacts/config.yaml").write_text("")
    found = resume.look_up(store, asked, None, say=said.append)
    (sentence,) = said
    assert f"({run_id}) has lost files: config.yaml is empty. It is " in sentence
    run = before.client.get_run(run_id)
    if kept:
        assert (found.run_id, found.scratch.folder) == (run_id, left.folder)
        found.scratch.remove()
    else:
        assert found is None
        assert run.info.status == "FAILED"
        assert run.data.tags["failure"] == "has lost files: config.yaml is empty"
        assert resume.look_up(store, asked, None, say=said.append) is None
        assert said == [sentence]


@pytest.mark.parametrize(
    ("engine", "status", "answers"),
    [("native", "FINISHED", True), ("native", "KILLED", False), ("xla", "FINISHED", False)],
)
def test_a_finished_run_of_the_native_engine_answers_for_any_number_of_threads(
    store, asked, before, engine, status, answers
):
    def with_threads(threads: int | None) -> config.Config:
        trainer = asked.trainer.model_copy(update={"threads": threads})
        return asked.model_copy(update={"trainer": trainer})

    others = [with_threads(2), with_threads(None), with_threads(1)]
    assert len({each.identity() for each in others}) == 3
    tags = {resume.NATIVE_HASH: with_threads(7).native_identity(), "engine": engine}
    run_id, left = Before(store, with_threads(7)).run(status, **tags)
    for other in others:
        found = resume.look_up(store, other, None)
        assert (found.run_id if found else None) == (run_id if answers else None)
        assert resume.look_up(store, other.model_copy(update={"resume": False}), None) is None
    longer = others[0].model_copy(update={"seed": asked.seed + 1})
    assert resume.look_up(store, longer, None) is None
    left.remove()


def test_a_run_that_ends_clears_away_what_others_of_its_config_have_left(store, asked, before):
    _, killed = before.run("KILLED")
    _, waiting = before.run("RUNNING", ended="FINISHED")
    resume.supersede(store, asked)
    assert not killed.folder.exists()
    assert waiting.folder.exists()
    waiting.remove()


def test_a_trial_that_another_search_has_paused_keeps_its_state(store, asked, before):
    mine, other = (Membership(each * 32, 3, "h1") for each in "ab")
    trial = {"role": "trial", PAUSED_TAG: "1"}
    paused = {"status": "SCHEDULED", "ended": "SCHEDULED"}
    waits, theirs = before.run(**paused, **other.tags(), **trial)
    lost, own = before.run(**paused, **mine.tags(), **trial)
    # A job of a plain sweep is paused until its command is repeated, and this one's has been.
    _, plain = before.run(**paused, **{PAUSED_TAG: "1"})
    resume.supersede(store, asked, mine)
    assert [each.folder.exists() for each in (theirs, own, plain)] == [True, False, False]
    assert (before.status(waits), before.status(lost)) == ("SCHEDULED", "KILLED")
    before.run("FINISHED")[1].remove()
    assert isinstance(resume.look_up(store, asked, None), RunRecord)
    assert theirs.folder.exists()
    assert before.status(waits) == "SCHEDULED"
    theirs.remove()


@pytest.mark.parametrize("status", ["FINISHED", "KILLED", "RUNNING"])
def test_a_folder_that_is_no_scratch_folder_is_not_touched(store, asked, before, tmp_path, status):
    """A run's tag says where its scratch folder is, and anyone may have written that."""
    thesis = tmp_path / "thesis"
    (thesis / "tmp").mkdir(parents=True)
    (thesis / "tmp/chapter").write_text("mine")
    run_id, left = before.run(status)
    left.remove()
    before.client.set_tag(run_id, "scratch", str(thesis))
    found = resume.look_up(store, asked, None)
    assert isinstance(found, RunRecord) == (status == "FINISHED")
    assert [path.name for path in thesis.rglob("*")] == ["tmp", "chapter"]


def test_a_folder_that_became_another_runs_is_left_to_that(store, asked, before):
    _, gone = before.run("FINISHED", ended="FINISHED")
    gone.remove()
    later, waiting = before.run("RUNNING", ended="FINISHED")
    assert waiting.folder == gone.folder
    assert isinstance(resume.look_up(store, asked, None), RunRecord)
    assert waiting.folder.exists()
    assert before.status(later) == "RUNNING"
    waiting.remove()


def test_what_is_cleared_away_does_not_seem_to_run(store, asked, before):
    before.run("FINISHED")[1].remove()
    lost, left = before.run("RUNNING")
    assert isinstance(resume.look_up(store, asked, None), RunRecord)
    assert not left.folder.exists()
    assert before.status(lost) == "KILLED"


def test_a_run_of_another_experiment_keeps_what_it_has(store, asked, before):
    run_id, left = before.run("KILLED")
    event = Opened(run_id, "", store.uri, "another")
    left.append(event)
    left.release()
    resume.supersede(store, asked)
    assert left.folder.exists()
    left.remove()


@pytest.mark.parametrize("experiment", ["", "3"])
@pytest.mark.parametrize("status", [Status.FINISHED, Status.PAUSED])
def test_a_store_that_is_away_keeps_nothing_from_its_end(
    asked, status, experiment, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        store = Store.locate(f"http://127.0.0.1:{nobody_listens.getsockname()[1]}")
        left = Journal.claim(store.unfinished, asked.identity())
        for event in (Opened("0" * 32, "x", store.uri), End(status, 1)):
            left.append(event)
        left.release()
        resume.supersede(store, asked)
    assert left.folder.exists()


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
    # Even if there is a newer one, which is another sweep's.
    found.scratch.release()
    _, newer = before.run("SCHEDULED", **{member_tag("b" * 32): "00003"})
    found = resume.look_up(store, before.asked, member)
    assert (found.run_id, found.scratch.folder) == (run_id, own.folder)
    newer.remove()
    found.scratch.remove()
    # Its folder went down with another machine: the run will not go on.
    lost, gone = before.run("RUNNING", **member.tags())
    gone.remove()
    assert resume.look_up(store, asked, member) is None
    assert (before.status(lost), before.status(of_another)) == ("KILLED", "KILLED")
    left.remove()


def test_a_job_waits_for_the_last_worker_of_its_own_run(store, before, monkeypatch):
    """The driver was killed, and its worker is about to end."""
    monkeypatch.setattr(resume, "ASK_AGAIN_SECONDS", 0.01)
    member = Membership(SWEEP, 4, "h1")
    _, others = before.run("RUNNING", live=True, **{member_tag("b" * 32): "00004"})
    with pytest.raises(UserError, match="in progress"):
        resume.look_up(store, before.asked, member)
    others.remove()
    run_id, own = before.run("RUNNING", live=True, **member.tags())
    ending = threading.Timer(0.3, own.release)
    ending.start()
    found = resume.look_up(store, before.asked, member)
    ending.join()
    assert (found.run_id, found.scratch.folder) == (run_id, own.folder)
    monkeypatch.setattr(resume, "WAIT_SECONDS", 0.1)
    with pytest.raises(UserError, match=f"{run_id}.* is in progress"):
        resume.look_up(store, before.asked, member)
    found.scratch.remove()


# From end to end

SUICIDE = """
import os, signal, sys
from fmnist_lab import run
from fmnist_lab.training import checkpoint

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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("then", "now", "kept", "expected"),
    [
        (False, True, True, ["xla"]),
        (True, False, True, ["native", "xla"]),
        (True, False, False, ["xla"]),
        (True, True, True, ["native"]),
    ],
)
def test_it_goes_on_with_the_engine_it_had_or_says_that_it_cannot(
    backend, real_data, tmp_path, monkeypatch, capsys, then, now, kept, expected
):
    """A compiler comes or goes between the two."""
    from mlflow import MlflowClient

    from fmnist_lab.training import checkpoint
    from fmnist_lab.training.engines import native

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    asked = composed(*QUICK, "trainer.epochs=2", "resume=true", f"tracking.uri={uri}")

    def interrupted(*words, real=checkpoint.Checkpointer.after, **others):
        if kept:
            real(*words, **others)
        raise KeyboardInterrupt

    able = native.suits
    monkeypatch.setattr(native, "suits", lambda *words: then and able(*words))
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.Checkpointer, "after", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.run(asked)
    capsys.readouterr()
    monkeypatch.setattr(native, "suits", lambda *words: now and able(*words))
    train.run(asked)
    said = capsys.readouterr().out
    (found,) = MlflowClient(uri).search_runs(["1"])
    tags = found.data.tags
    assert (found.info.status, tags["engine"]) == ("FINISHED", expected[-1])
    assert resume.values(tags, "engine") == expected
    changed = len(expected) > 1
    assert ("It had trainer.engine=native before; with another" in said) == changed
    # Only one engine makes bits that answer for every number of threads.
    assert bool(tags[resume.NATIVE_HASH]) != changed


@pytest.mark.parametrize(
    ("tags", "values"),
    [
        ({}, [""]),
        ({"engine": "xla"}, ["xla"]),
        ({"engine": "native, then xla"}, ["native", "xla"]),  # as of version 0.1.0
        ({"engine": "xla", "engine.before": '["native"]'}, ["native", "xla"]),
        ({"engine": "graph, then xla", "engine.before": '["native"]'}, ["native", "graph", "xla"]),
        ({"engine": "xla", "engine.before": ""}, ["xla"]),
        ({"engine": "x\x1bla", "engine.before": "{"}, ["xla"]),
        ({"engine": "xla", "engine.before": "3"}, ["xla"]),
    ],
)
def test_the_values_of_a_setting_are_read_from_the_tags_of_every_version(tags, values):
    assert resume.values(tags, "engine") == values


@pytest.mark.parametrize(
    ("tags", "now", "changed"),
    [
        ({}, ("xla", "1"), {}),
        ({"engine": "xla", "threads": "2"}, ("xla", "2"), {}),
        ({"engine": "xla", "threads": "2"}, ("xla", "1"), {"threads": ["2"]}),
        ({"engine": "native", "threads": "2"}, ("native", "1"), {}),
        (
            {"engine": "xla, then native", "threads": "1, then 2"},
            ("native", "1"),
            {"threads": ["1", "2"]},
        ),
        ({"engine": "native", "threads": "2"}, ("graph", "2"), {"engine": ["native"]}),
    ],
)
def test_a_changed_setting_is_kept_with_its_earlier_values(tags, now, changed):
    present = dict(zip(resume.SETTINGS, now, strict=True))
    left = resume.Interrupted("", None, tags)
    assert left.changed(present) == changed
    after = tags | resume.tags_of_change(changed, present)
    for name, earlier in changed.items():
        assert resume.values(after, name) == [*earlier, present[name]]
    # The next interruption finds nothing changed.
    if tags:
        assert resume.Interrupted("", None, tags | present | after).changed(present) == {}


def events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
