"""Sweeps: a parent run, a child for each job, whatever becomes of them."""

import csv
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from fmnist_lab import compat, tracking
from fmnist_lab.config.naming import job_name
from fmnist_lab.errors import Terminated, UserError
from fmnist_lab.jobs.membership import Membership
from fmnist_lab.sweep.job import Job
from fmnist_lab.sweep.opening import finished_before
from fmnist_lab.tracking import Store, SweepRun, member_tag
from fmnist_lab.tracking.events import End, Status
from fmnist_lab.tracking.journal import Journal

TINY = ("data.train_limit=1000", "data.test_limit=500")
LOCAL_CORES = "hydra/launcher=local_cores"


class Kept:
    """What a sweep has left in a folder."""

    def __init__(self, folder: Path) -> None:
        self.client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
        (experiment,) = self.client.search_experiments(filter_string="name = 'fmnist_lab'")
        self.runs = list(self.client.search_runs([experiment.experiment_id]))
        (self.parent,) = [run for run in self.runs if run.data.tags["job"] == "sweep"]
        children = [run for run in self.runs if run is not self.parent]
        self.children = sorted(children, key=self.number)

    def number(self, child: Run) -> int:
        assert child.data.tags["mlflow.parentRunId"] == self.parent.info.run_id
        return int(child.data.tags[f"sweep.{self.parent.info.run_id}"])

    def states(self) -> dict[str, str]:
        return {child.info.run_name: child.info.status for child in self.children}

    def files(self, run: Run) -> set[str]:
        return {file.path for file in self.client.list_artifacts(run.info.run_id)}

    def text(self, run: Run, file: str) -> str:
        return Path(self.client.download_artifacts(run.info.run_id, file)).read_text()


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing has happened"
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("overrides", "axes", "name"),
    [
        (
            ["seed=3", "trainer.epochs=20", "model.hidden_units=512"],
            ["seed", "trainer.epochs", "model.hidden_units"],
            "h512 e20 s3",
        ),
        (["model=cnn", "trainer.epochs=5", "seed=0"], ["model", "seed"], "cnn s0"),
        (["model.hidden_units=[256,128]"], ["model.hidden_units"], "h256-128"),
        (["optimizer._target_=keras.optimizers.Lion"], ["optimizer._target_"], "Lion"),
        (["+trainer.label_smoothing=0.1"], ["trainer.label_smoothing"], "label_smoothing0.1"),
        (
            ["callbacks=none", "model.dropout=0.3"],
            ["callbacks", "model.dropout"],
            "no-callbacks dropout0.3",
        ),
        (["seed=0"], [], ""),
    ],
)
def test_a_job_is_named_by_what_differs(overrides, axes, name):
    assert job_name(overrides, axes) == name


@pytest.fixture(scope="module")
def sweep(doors, tmp_path_factory):
    """A finished sweep on the basic launcher: the folder, and the process that has ended."""
    folder = tmp_path_factory.mktemp("sweep")
    return folder, doors("run", folder, "-m", "trainer.epochs=1,2", "seed=0,1", *TINY)


def test_a_sweep_is_a_parent_with_a_child_for_each_job(sweep):
    folder, process = sweep
    assert (process.code, process.err) == (0, "")
    kept = Kept(folder)
    names = ["e1 s0", "e1 s1", "e2 s0", "e2 s1"]
    assert list(kept.states().items()) == [(name, "FINISHED") for name in names]
    assert [kept.number(child) for child in kept.children] == [0, 1, 2, 3]
    epochs = [child.data.params["trainer.epochs"] for child in kept.children]
    assert epochs == ["1", "1", "2", "2"]
    parent = kept.parent
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["sweep/finished"] == 4
    assert parent.data.metrics["sweep/failed"] == 0
    assert "-m trainer.epochs=1,2 seed=0,1" in parent.data.tags["sweep.command"]
    # The longer jobs went on from what the shorter ones had left; it is of no use any more.
    assert list((folder / "mlruns" / "sweeps").iterdir()) == []
    for child in kept.children[2:]:
        assert "Going on after epoch 1 of 2" in kept.text(child, "log.txt")


def test_each_child_names_the_command_that_makes_it_alone(sweep):
    kept = Kept(sweep[0])
    commands = [child.data.tags["mlflow.source.name"] for child in kept.children]
    jobs = ["trainer.epochs=1 seed=0", "trainer.epochs=1 seed=1", "trainer.epochs=2 seed=0"]
    expected = [f"python -m fmnist_lab.run {job} {' '.join(TINY)}" for job in jobs]
    assert commands[:3] == expected
    # MLflow's UI cuts the source of any other type at its last slash.
    assert {child.data.tags["mlflow.source.type"] for child in kept.children} == {"JOB"}


def test_the_parent_keeps_the_results_of_all_children(sweep):
    kept = Kept(sweep[0])
    assert {"results.csv", "report.md", "report.html"} <= kept.files(kept.parent)
    rows = list(csv.DictReader(kept.text(kept.parent, "results.csv").splitlines()))
    found = {row["run_id"]: float(row["accuracy/test"]) for row in rows}
    expected = {child.info.run_id: child.data.metrics["accuracy/test"] for child in kept.children}
    assert found == pytest.approx(expected)


def test_what_a_job_prints_is_kept_with_its_run_and_not_on_the_screen(sweep):
    folder, process = sweep
    kept = Kept(folder)
    for child in kept.children:
        assert "epoch" in kept.text(child, "log.txt")
    assert "log.txt" not in kept.files(kept.parent)
    assert len(process.out.splitlines()) < 40
    assert "\x1b" not in process.out
    lines = re.findall(r"^[1-4]/4  e[12] s[01] .*$", process.out, re.M)
    assert len(lines) == 4
    for child, line in zip(kept.children, lines, strict=True):
        assert line.split()[1:3] == child.info.run_name.split()
        assert f" {child.data.metrics['accuracy/test']:.4f} " in line
    assert re.search(r"^4 jobs in .*: 4 finished\.$", process.out, re.M)
    assert f"fmnist_lab.runs ui {kept.parent.info.run_id}" in process.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.epochs=1,0"], "trainer.epochs: received 0, expected "),
        (["seed=1"], "-m: nothing is swept, expected "),
        (["seed=0,1", LOCAL_CORES, "hydra.launcher.workers=0"], "workers: received 0, expected "),
    ],
)
def test_a_sweep_that_cannot_be_done_is_refused_before_it_begins(doors, tmp_path, words, said):
    process = doors("run", tmp_path, "-m", *words)
    assert said in process.error
    assert process.out == ""
    assert not (tmp_path / "mlflow.db").exists()


def test_a_sweep_that_is_going_on_is_not_begun_a_second_time(tmp_path):
    store = Store.locate(f"sqlite:///{tmp_path}/mlflow.db")
    tags = {"sweep.hash": "same", "host": socket.gethostname()}
    first = SweepRun.open(store, None, "sweep", tags, resume=False)
    with pytest.raises(UserError, match=rf"{first.id}.* in progress"):
        SweepRun.open(store, None, "sweep", tags, resume=True)
    MlflowClient(store.uri).set_tag(first.id, "process", "another-boot 1 1")
    again = SweepRun.open(store, None, "sweep", tags, resume=True)
    assert (again.id, again.continued) == (first.id, True)


def test_what_a_killed_sweep_has_left_running_is_marked_when_it_is_resumed(tmp_path):
    store = Store.locate(f"sqlite:///{tmp_path}/mlflow.db")
    here = {"host": socket.gethostname()}
    tags = {"sweep.hash": "same", **here}
    first = SweepRun.open(store, None, "sweep", tags, resume=False, here=True)
    client = MlflowClient(store.uri)
    scratch = Journal.claim(store.unfinished, "x")
    member = {member_tag(first.id): "00000", "mlflow.parentRunId": first.id}
    member |= {"scratch": str(scratch.folder), **here}
    run_id = client.create_run(first.experiment_id, tags=member).info.run_id
    scratch.release()
    client.set_tag(first.id, "process", "another-boot 1 1")
    again = SweepRun.open(store, None, "sweep", tags, resume=True, here=True)
    assert again.id == first.id
    assert client.get_run(run_id).info.status == "KILLED"
    assert client.get_run(first.id).info.status == "RUNNING"


def test_jobs_that_have_finished_before_are_counted(tmp_path, monkeypatch):
    store = Store.locate(f"sqlite:///{tmp_path}/mlflow.db")
    sweep = SweepRun.open(store, None, "sweep", {}, resume=False)
    client = MlflowClient(store.uri)
    place = sweep.experiment_id
    elsewhere = client.create_experiment("elsewhere")

    def run(identity: str, status: str = "FINISHED", place: str = place, **tags: str) -> str:
        run_id = client.create_run(place, tags={"config.hash": identity, **tags}).info.run_id
        client.set_terminated(run_id, status)
        return run_id

    for identity in ("one", "two", "two", "not asked for"):
        run(identity)
    run("failed", "FAILED")
    run("of another experiment", place=elsewhere)
    run("made to be compared", reproduces="another")
    client.delete_run(run("deleted"))
    asked = ("one", "two", "failed", "of another experiment", "deleted", "new")
    hashes = [(each, f"{each}, any threads") for each in asked]
    for _ in ("a database", "a server"):
        assert tracking.finished(store, place, hashes) == ({"one", "two"}, True)
        said = "2 of these 6 jobs have finished before: resume=true takes over"
        assert finished_before(sweep, hashes, 6).startswith(said)
        assert finished_before(sweep, hashes, 60).startswith("at least 2 of these 60 jobs have")
        assert finished_before(sweep, hashes[:1] + hashes[-1:], 2).startswith("1 of these 2 jobs")
        assert finished_before(sweep, hashes[-1:], 1) == ""
        assert finished_before(sweep, [], 3) == ""
        monkeypatch.setattr(compat, "store_behind", lambda client: None)
    # So many that a server would be asked for a while.
    more = [(str(each), "") for each in range(99)]
    found, all_asked = tracking.finished(store, place, [hashes[0], *more])
    assert (found, all_asked) == ({"one"}, False)
    monkeypatch.undo()
    native = {"config.hash.native": "new, any threads"}
    run("with other threads", engine="xla", **native)
    run("made to be compared", engine="native", reproduces="another", **native)
    assert finished_before(sweep, hashes[-1:], 1) == ""
    run("with other threads", engine="native", **native)
    assert finished_before(sweep, hashes[-1:], 1).startswith("1 of these 1 jobs has finished")
    Path(tmp_path, "mlflow.db").write_bytes(b"no database any more" * 100)
    assert finished_before(sweep, hashes, 6) == ""


@pytest.mark.slow
def test_a_sweep_with_one_more_value_tells_what_has_finished_and_takes_it_over(doors, tmp_path):
    words = "run", tmp_path, "-m", "trainer.epochs=1", *TINY
    note = re.compile(r"^note +2 of these 3 jobs have finished before: resume=true takes", re.M)
    first = doors(*words, "seed=0,1")
    assert (first.code, first.err) == (0, "")
    assert "finished before" not in first.out
    more = doors(*words, "seed=0,1,2")
    assert (more.code, more.err) == (0, "")
    assert note.search(more.out)
    assert more.out.index("note ") < more.out.index("1/3")
    assert "from before" not in more.out
    extended = doors(*words, "seed=0,1,2,3", "resume=true")
    assert (extended.code, extended.err) == (0, "")
    assert extended.out.count("from before") == 3
    assert "finished before" not in extended.out
    (sweep,) = re.findall(r"fmnist_lab.runs report (\w{32}) ", extended.out)
    assert "4 runs: 4 FINISHED." in doors("runs", tmp_path, "report", sweep).out


def test_a_store_that_is_away_at_the_end_of_a_job_does_not_end_the_sweep(tmp_path):
    store = Store.locate(f"sqlite:///{tmp_path}/mlflow.db")
    run = SweepRun.open(store, None, "sweep", {}, resume=False)
    Path(tmp_path, "mlflow.db").write_bytes(b"no database any more" * 100)
    job = Job(Membership(run.id, 0, "one"), run, tmp_path)
    assert job.attempt(lambda: print("done") or {"accuracy/test": 0.5}) == {"accuracy/test": 0.5}
    assert job.log.read_text().startswith("done\n")

    def stopped() -> dict[str, float]:
        raise Terminated(signal.SIGTERM)

    # In its place an error of the store would be one of the job, and the next job would begin.
    with pytest.raises(Terminated):
        job.attempt(stopped)
    assert "ended by SIGTERM" in job.log.read_text()


def test_a_run_whose_end_the_store_has_not_heard_of_is_not_marked_as_lost(tmp_path):
    store = Store.locate(f"sqlite:///{tmp_path}/mlflow.db")
    sweep = SweepRun.open(store, None, "sweep", {}, resume=False)
    client = MlflowClient(store.uri)
    scratch = Journal.claim(store.unfinished, "x")
    tags = {member_tag(sweep.id): "00000", "mlflow.parentRunId": sweep.id}
    tags["scratch"] = str(scratch.folder)
    run_id = client.create_run(sweep.experiment_id, tags=tags).info.run_id
    scratch.append(End(Status.FINISHED))
    (tmp_path / "log.txt").write_text("said")
    sweep.keep_log(0, "x", tmp_path / "log.txt", 0, "", {})
    sweep.end_members("FAILED", "its worker process was lost")
    assert client.get_run(run_id).info.status == "RUNNING"
    assert [file.path for file in client.list_artifacts(run_id)] == ["log.txt"]
    scratch.remove()
    sweep.end_members("FAILED", "its worker process was lost")
    assert client.get_run(run_id).info.status == "FAILED"


@pytest.mark.parametrize("status", ["FINISHED", "FINISHED before", "FAILED", "RUNNING"])
def test_a_worker_that_is_lost_leaves_its_job_one_run(tmp_path, status):
    """It may be lost before its job has a run, amid it, or when all is done but to say so."""
    status, _, before = status.partition(" ")
    store = Store.locate(f"sqlite:///{tmp_path}/mlflow.db")
    began = round(time.time() * 1000)
    sweep = SweepRun.open(store, None, "sweep", {}, resume=False, here=True)
    client = MlflowClient(store.uri)
    tags = {member_tag(sweep.id): "00000", "mlflow.parentRunId": sweep.id}
    run_id = client.create_run(sweep.experiment_id, tags=tags).info.run_id
    if status != "RUNNING":
        client.set_terminated(run_id, status)
    began += 3_600_000 if before else 0
    for job in (0, 1):
        sweep.keep_log(
            job, f"job {job}", tmp_path / "log.txt", began, "it was lost", {}, {"seed": str(job)}
        )
    rows = sweep.members()[0]
    assert rows["seed"][1] == "1"  # what it would have logged itself
    assert list(rows["job_number"]) == [0, 1]
    assert list(rows["status"]) == ["FINISHED" if status == "FINISHED" else "FAILED", "FAILED"]
    assert rows["run_id"][0] == run_id
    assert len(client.search_runs([sweep.experiment_id])) == 3
    reasons = dict(zip(rows["status"], rows["failure"], strict=True))
    assert reasons["FAILED"] == "it was lost"
    assert reasons.get("FINISHED", "") != "it was lost"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "local_cores"])
def test_a_failing_job_leaves_the_others(doors, tmp_path, launcher):
    rates = "optimizer.learning_rate=1e30,0.001"
    process = doors(
        *("run", tmp_path, "-m", f"hydra/launcher={launcher}", rates, "seed=0,1", *TINY),
        "trainer.epochs=1",
    )
    assert process.code == 1
    assert process.err == ""
    kept = Kept(tmp_path)
    states = [child.info.status for child in kept.children]
    assert states == ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    assert kept.parent.info.status == "FAILED"
    assert kept.parent.data.metrics["sweep/failed"] == 2
    assert "2 finished, 2 failed" in process.out
    assert len(re.findall(r"FAILED +the training loss of epoch 1 is nan", process.out)) >= 2
    assert "training diverged" in kept.text(kept.children[0], "log.txt")


@pytest.mark.slow
def test_jobs_side_by_side_give_what_they_give_one_after_the_other(doors, tmp_path):
    words = ("-m", "trainer.epochs=1,2", "seed=0,1", *TINY)
    results = []
    for place, more in enumerate([(LOCAL_CORES,), ("trainer.threads=1",)]):
        folder = tmp_path / str(place)
        folder.mkdir()
        process = doors("run", folder, *words, *more)
        assert (process.code, process.err) == (0, "")
        kept = Kept(folder)
        assert kept.parent.info.status == "FINISHED"
        results.append(
            {
                child.info.run_name: {
                    name: value
                    for name, value in child.data.metrics.items()
                    if name.startswith(("accuracy/", "loss/"))
                }
                for child in kept.children
            }
        )
    assert len(results[0]) == 4
    assert results[0] == results[1]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "local_cores"])
def test_ctrl_c_ends_a_sweep_in_a_known_state(doors, tmp_path, launcher):
    words = ("-m", f"hydra/launcher={launcher}", "trainer.epochs=5000,5001", *TINY)
    process = doors.start("run", tmp_path, *words)

    wait_until(lambda: "accuracy/test" in measured(tmp_path))
    process.kill(signal.SIGINT)
    assert process.wait(90) == 128 + signal.SIGINT
    assert "Traceback" not in process.out + process.err
    kept = Kept(tmp_path)
    assert kept.parent.info.status == "KILLED"
    assert kept.states()
    assert set(kept.states().values()) == {"KILLED"}


SIX = ("-m", "trainer.epochs=1,2", "seed=range(3)", LOCAL_CORES, "trainer.threads=1", *TINY)


def figures(kept: Kept) -> dict[str, list[dict[str, str]]]:
    """What the summary on the parent says of each setting and run, but for ids and times."""
    rows = csv.DictReader(kept.text(kept.parent, "results.csv").splitlines())
    said = [
        {
            name: value
            for name, value in row.items()
            if name.startswith(("accuracy/", "loss/", "trainer.", "seed"))
        }
        for row in rows
    ]
    return {"results": sorted(said, key=str), "finished": [kept.parent.data.metrics]}


def children(folder: Path) -> list[Run]:
    if not (folder / "mlflow.db").exists():
        return []
    try:
        return Kept(folder).children
    except ValueError:
        return []  # the store is being made


def finished(folder: Path) -> set[str]:
    return {child.info.run_id for child in children(folder) if child.info.status == "FINISHED"}


def training(folder: Path) -> list[Run]:
    """Return the jobs that are amid their epochs."""
    running = [child for child in children(folder) if child.info.status == "RUNNING"]
    return [child for child in running if "accuracy/test" in child.data.metrics]


def measured(folder: Path) -> set[str]:
    return {metric for child in children(folder) for metric in child.data.metrics}


@pytest.mark.slow
def test_a_killed_sweep_is_finished_by_resume_to_the_bits_of_one_that_was_not(doors, tmp_path):
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    for folder in (killed, undisturbed):
        folder.mkdir()
    process = doors.start("run", killed, *SIX)
    wait_until(lambda: len(finished(killed)) >= 2)
    workers = process.descendants()
    assert len(workers) >= 2
    process.kill(signal.SIGKILL)
    for worker in workers:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    process.wait()
    before = finished(killed)
    assert 2 <= len(before) < 6, "too late"
    for _ in range(2):  # the second time there is nothing left to do
        resumed = doors("run", killed, *SIX, "resume=true")
        assert (resumed.code, resumed.err) == (0, "")
    kept = Kept(killed)
    assert [kept.number(child) for child in kept.children] == list(range(6))
    assert set(kept.states().values()) == {"FINISHED"}
    assert kept.parent.info.status == "FINISHED"
    assert before < {child.info.run_id for child in kept.children}
    assert doors("run", undisturbed, *SIX).code == 0
    assert figures(kept) == figures(Kept(undisturbed))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "told"),
    [
        (signal.SIGKILL, "its worker process was ended by SIGKILL"),
        (signal.SIGTERM, "ended by SIGTERM"),
    ],
)
def test_a_worker_that_is_killed_costs_its_own_job_alone(doors, tmp_path, number, told):
    words = ("-m", "trainer.epochs=600", "seed=range(3)", LOCAL_CORES, *TINY)
    process = doors.start("run", tmp_path, *words)
    # Both workers amid a job: of one that had no run yet, one would be made that only says why.
    wait_until(lambda: len(training(tmp_path)) == 2)
    commands = {each: Path(f"/proc/{each}/cmdline").read_text() for each in process.descendants()}
    worker = next(each for each, command in commands.items() if "spawn_main" in command)
    os.kill(worker, number)
    assert process.wait(300) == 1
    ended = "failed" if number == signal.SIGKILL else "killed"
    assert f"2 finished, 1 {ended}" in process.out, process.out
    assert told in process.out
    assert "no reason" not in process.out
    resumed = doors("run", tmp_path, *words, "resume=true")
    assert (resumed.code, resumed.err) == (0, "")
    kept = Kept(tmp_path)
    assert [kept.number(child) for child in kept.children] == [0, 1, 2]
    assert set(kept.states().values()) == {"FINISHED"}
    # The sweep's process has told the store alone what became of the worker.
    assert not any(child.data.tags.get("failure") for child in kept.children)


@pytest.mark.slow
def test_a_sweep_that_keeps_nothing_says_all_the_same_what_came_out(doors, tmp_path):
    process = doors("run", tmp_path, *SIX, "tracking=none")
    assert (process.code, process.err) == (0, "")
    lines = re.findall(r"^[1-6]/6  e[12] s[012] +0\.\d{4} +[+-]0\.\d{4} ", process.out, re.M)
    assert len(lines) == 6
    assert re.search(r"^6 jobs in .*: 6 finished\.$", process.out, re.M)
    assert not (tmp_path / "mlflow.db").exists()
