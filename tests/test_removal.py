"""`runs delete`, `restore` and `move`: nothing else is touched, and nothing is lost on the way."""

import contextlib
import hashlib
import os
import shutil
import signal
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from doors import Doors, one_line
from mlflow_server import Server

from fmnist_lab.runs.__main__ import app
from fmnist_lab.tracking import Store, modelfiles, moving, orphans
from fmnist_lab.tracking.events import Metrics, TrainedModel

NAN = float("nan")


@dataclass
class Made:
    """A store with runs that nobody had to train: two sweeps that share a run, and one alone."""

    store: Store
    experiment_id: str
    ids: dict[str, str]

    @property
    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(self.store.uri)

    def active(self) -> set[str]:
        found = self.client.search_runs([self.experiment_id])
        return {run.info.run_name for run in found}


def made(folder: Path) -> Made:
    store = Store.locate(f"sqlite:///{folder}/mlflow.db")
    found = Made(store, store.open("mine"), {})
    client = found.client
    for sweep in ("sweep A", "sweep B"):
        found.ids[sweep] = _run(found, client, sweep, {"job": "sweep", "sweep.jobs": "2"})
    of_a, of_b = (f"sweep.{found.ids[sweep]}" for sweep in ("sweep A", "sweep B"))
    parent = {"mlflow.parentRunId": found.ids["sweep A"]}
    for number, name in enumerate(("one", "both")):
        tags = {of_a: f"{number:05d}", **parent} | ({of_b: "00000"} if name == "both" else {})
        found.ids[name] = _run(found, client, name, {"job": "train", **tags})
    found.ids["alone"] = _run(found, client, "alone", {"job": "train"})
    return found


def _run(found: Made, client, name: str, tags: dict[str, str]) -> str:
    from mlflow.entities import Metric, Param

    run = client.create_run(found.experiment_id, 1_000, tags, name)
    run_id = run.info.run_id
    points = [Metric("loss/test", value, 2_000 + k, k) for k, value in enumerate((0.5, NAN, 0.25))]
    client.log_batch(run_id, points, [Param("seed", "7"), Param("model", "mlp")])
    client.log_text(run_id, f"name: {name}\n", "config.yaml")
    if tags["job"] == "train":
        files = found.store.database.parent
        (files / "model.keras").write_bytes(name.encode() * 100)
        event = TrainedModel("model.keras", ["a", "b"], Metrics(2, 2_002, {"loss/test": 0.25}))
        modelfiles.log(client, found.store, run_id, event, files)
    client.set_terminated(run_id, "FINISHED", 9_000)
    return run_id


@pytest.fixture
def here(tmp_path) -> Made:
    folder = tmp_path / "here"
    folder.mkdir()
    return made(folder)


@pytest.fixture
def call(here, capsys):
    """Call a verb and return what it says."""

    def call(*words: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            app([*words, "--store", here.store.uri])
        said = capsys.readouterr()
        assert (ended.value.code or 0) == code, said.out + said.err
        return one_line(said.err) if code == 2 else said.out

    return call


def test_a_deleted_sweep_takes_its_own_runs_along_and_comes_back(here, call):
    said = call("delete", "sweep A")
    assert "2 runs deleted" in said
    assert f"runs restore {here.ids['sweep A']}" in said
    assert f"'both' ({here.ids['both']}) stays: it answers another sweep" in said
    assert here.active() == {"both", "sweep B", "alone"}
    assert call("restore", "sweep A") == "2 runs restored.\n"
    assert here.active() == set(here.ids)


def test_for_good_frees_the_disk_and_touches_nothing_else(here, call):
    client, folder = here.client, here.store.artifacts
    call("delete", "alone")
    other = client.create_experiment("gone")
    client.delete_experiment(other)
    files = {file for file in folder.rglob("*") if file.is_file()}
    of_one = [client.get_run(here.ids["one"]).info.artifact_uri]
    of_one += [
        m.artifact_location
        for m in client.search_logged_models([here.experiment_id])
        if m.source_run_id == here.ids["one"]
    ]
    said = call("delete", "--for-good", "one")
    assert said.startswith("1 run removed, ")
    left = {file for file in folder.rglob("*") if file.is_file()}
    gone = files - left
    assert len(of_one) == 2
    assert gone
    assert {
        any(str(file).startswith(uri.removeprefix("file://")) for uri in of_one) for file in gone
    } == {True}
    with pytest.raises(Exception, match="not found"):
        client.get_run(here.ids["one"])
    assert client.get_experiment(other).lifecycle_stage == "deleted"
    assert call("restore", "alone") == "1 run restored.\n"
    call("delete", "alone")
    assert "1 run removed" in call("delete", "--for-good", "alone")


def test_what_is_in_use_is_refused_and_nothing_is_deleted(here, call):
    client = here.client
    running = client.create_run(
        here.experiment_id,
        tags={"job": "train", "host": os.uname().nodename} | orphans.this_process(),
        run_name="running",
    )
    assert "it is in progress; stop it first" in call("delete", "alone", "running", code=2)
    client.set_terminated(running.info.run_id)
    client.create_registered_model("fmnist")
    client.create_model_version("fmnist", "file:///x", run_id=here.ids["alone"])
    said = call("delete", "one", "alone", code=2)
    assert "registered as fmnist, version 1; --anyway deletes it" in said
    assert here.active() == {*here.ids, "running"}
    assert "received 'nobody', which is no run in" in call("delete", "alone", "nobody", code=2)
    assert "received no run" in call("delete", code=2)
    assert "1 run deleted" in call("delete", "alone", "--anyway")
    told = call("report", "alone", code=2)
    assert f"is in the trash of {here.store.uri}" in told
    assert f"restore {here.ids['alone']}" in told


# Moving


def state(store: Store, served: Path | None = None) -> dict[str, object]:
    """Everything that a store has of its active runs, by their names, but for ids and places.

    A server serves its files from a folder.
    """
    from mlflow import MlflowClient

    client = MlflowClient(store.uri)
    place = client.get_experiment_by_name("mine").experiment_id
    runs = client.search_runs([place])
    names = {run.info.run_id: run.info.run_name for run in runs}
    found = {}
    for run in runs:
        tags = {
            ".".join(names.get(part, part) for part in name.split(".")): names.get(value, value)
            for name, value in run.data.tags.items()
            if name not in (moving.MOVED_TAG, "files", "mlflow.user", "mlflow.log-model.history")
        }
        history = sorted(
            (name, point.step, point.timestamp, repr(point.value))
            for name in run.data.metrics
            for point in client.get_metric_history(run.info.run_id, name)
        )
        info = (run.info.status, run.info.start_time, run.info.end_time)
        found[run.info.run_name] = (info, run.data.params, tags, history, _files(run.info, served))
    for model in client.search_logged_models([place]):
        if model.source_run_id in names:
            key = f"model of {names[model.source_run_id]}"
            assert key not in found, "a model is there twice"
            scores = [(each.key, each.value, each.step) for each in model.metrics]
            found[key] = (model.status, model.params, scores, _files(model, served))
    return found


def _files(place, served: Path | None) -> dict[str, str]:
    uri = getattr(place, "artifact_uri", "") or place.artifact_location
    folder = Path(uri.removeprefix("file://").replace("mlflow-artifacts:", str(served)))
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "MLmodel"
    }


def test_moved_runs_are_in_the_other_store_as_they_were(here, call, tmp_path):
    before = state(here.store)
    target = Store.locate(f"sqlite:///{tmp_path}/there/mlflow.db")
    said = call("move", "sweep A", "sweep B", "alone", "--to", target.uri)
    assert "5 runs copied" in said
    assert here.active() == set()
    assert state(target) == before
    from mlflow.models import Model

    (model,) = ((tmp_path / "there").glob("**/models/*/artifacts/MLmodel"),)
    described = Model.load(next(iter(model)))
    assert described.run_id not in here.ids.values()
    assert described.metadata == {"class_names": ["a", "b"]}
    call("restore", "sweep A", "sweep B", "alone")
    assert state(here.store) == before


def test_a_run_that_another_sweep_needs_is_copied_and_stays(here, call, tmp_path):
    before = state(here.store)
    target = Store.locate(f"sqlite:///{tmp_path}/there/mlflow.db")
    said = call("move", "sweep A", "--to", target.uri)
    assert "3 runs copied" in said
    assert f"'both' ({here.ids['both']}) stays" in said
    assert here.active() == {"both", "sweep B", "alone"}
    assert set(state(target)) == {"sweep A", "one", "both", "model of one", "model of both"}
    call("move", "sweep B", "alone", "--to", target.uri)
    assert here.active() == set()
    assert state(target) == before


def test_runs_move_on_to_a_third_store(here, call, tmp_path, capsys):
    before = state(here.store)
    stores = [Store.locate(f"sqlite:///{tmp_path}/{name}/mlflow.db") for name in ("b", "c")]
    call("move", "sweep A", "sweep B", "alone", "--to", stores[0].uri)
    for _ in range(2):  # the second time, all of it is there
        words = ["move", "sweep A", "sweep B", "alone", "--copy"]
        with pytest.raises(SystemExit):
            app([*words, "--to", stores[1].uri, "--store", stores[0].uri])
        assert "5 runs copied" in capsys.readouterr().out
    assert state(stores[1]) == before


def test_files_that_are_gone_are_not_moved_as_if_there_never_were_any(here, call, tmp_path):
    lost = Path(here.client.get_run(here.ids["alone"]).info.artifact_uri[7:])
    (model,) = (
        each
        for each in here.client.search_logged_models([here.experiment_id])
        if each.source_run_id == here.ids["alone"]
    )
    shutil.rmtree(model.artifact_location[7:])
    words = ("move", "alone", "--to", f"sqlite:///{tmp_path}/there/mlflow.db")
    assert "is not here" in call(*words, code=2)
    assert here.active() == set(here.ids)
    from fmnist_lab.tracking.files import FILES_TAG

    here.client.delete_logged_model(model.model_id)
    here.client.set_tag(here.ids["alone"], FILES_TAG, '{"config.yaml": "5 x"}')
    shutil.rmtree(lost)
    assert "is not here" in call(*words, code=2)


def test_a_folder_that_only_the_database_calls_the_runs_is_left_alone(here, call, tmp_path):
    precious = tmp_path / "home" / "artifacts"
    precious.mkdir(parents=True)
    (precious / "thesis.tex").write_text("x")
    with contextlib.closing(sqlite3.connect(here.store.database)) as database:
        words = (precious.as_uri(), here.ids["alone"])
        database.execute("update runs set artifact_uri = ? where run_uuid = ?", words)
        database.commit()
    to = f"sqlite:///{tmp_path}/there/mlflow.db"
    assert "is no folder of its own" in call("move", "alone", "--to", to, code=2)
    assert f"The folder {precious} was left" in call("delete", "--for-good", "alone")
    assert (precious / "thesis.tex").exists()


def test_what_two_sweeps_share_comes_back_with_either(here, call):
    said = call("delete", "sweep A", "sweep B")
    assert "4 runs deleted" in said
    assert call("restore", "sweep A") == "3 runs restored.\n"
    assert here.active() == {"sweep A", "one", "both", "alone"}
    # The other sweep is in the trash and needs nothing.
    assert "3 runs deleted" in call("delete", "sweep A")


def test_a_registered_model_is_kept_in_the_trash_as_well(here, call):
    here.client.create_registered_model("fmnist")
    here.client.create_model_version("fmnist", "file:///x", run_id=here.ids["alone"])
    here.client.delete_run(here.ids["alone"])
    assert "registered as fmnist" in call("delete", "--for-good", "alone", code=2)
    assert "1 run removed" in call("delete", "--for-good", "--anyway", "alone")


MOMENTS = [
    "create_run",
    "log_batch",
    "log_artifacts",
    "create_logged_model",
    "log_model_artifacts",
    "finalize_logged_model",
    "set_terminated",
    "delete_run",
]


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_move_that_is_broken_off_loses_and_doubles_nothing(
    here, call, tmp_path, monkeypatch, moment, after
):
    from mlflow import MlflowClient

    before = state(here.store)
    target = Store.locate(f"sqlite:///{tmp_path}/there/mlflow.db")
    words = ("move", "sweep A", "sweep B", "alone", "--to", target.uri)
    real, seen = getattr(MlflowClient, moment), []

    def broken(self, *words, **options):
        seen.append(words)
        result = real(self, *words, **options) if after or len(seen) != 2 else None
        if len(seen) == 2:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt, SystemExit):
        patch.setattr(MlflowClient, moment, broken)
        app([*words, "--store", here.store.uri])
    assert len(seen) == 2
    if moment == "delete_run":
        # The members go first, so that the sweeps are there to be named again.
        assert {"sweep A", "sweep B"} <= here.active() < set(here.ids)
    else:
        assert state(here.store) == before
    call(*words[:3], *([] if moment == "delete_run" else ["alone"]), *words[-2:])
    assert state(target) == before


def test_a_run_moved_without_its_sweep_stands_alone(here, call, tmp_path):
    target = Store.locate(f"sqlite:///{tmp_path}/there/mlflow.db")
    call("move", "one", "--copy", "--to", target.uri)
    assert here.active() == set(here.ids)
    ((_, _, tags, _, _), _) = state(target).values()
    assert tags == {"job": "train", "mlflow.runName": "one"}
    call("move", "sweep A", "sweep B", "alone", "--to", target.uri)
    assert state(target)["one"][2]["mlflow.parentRunId"] == "sweep A"


def test_a_copy_that_differs_is_told_and_the_originals_stay(here, call, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    real = MlflowClient.log_artifacts

    def torn(self, run_id, folder, *words):
        real(self, run_id, folder, *words)
        for file in (tmp_path / "there").rglob("config.yaml"):
            file.write_bytes(b"")

    monkeypatch.setattr(MlflowClient, "log_artifacts", torn)
    said = call("move", "alone", "--to", f"sqlite:///{tmp_path}/there/mlflow.db", code=2)
    assert "its file config.yaml differs; nothing was removed" in said
    assert here.active() == set(here.ids)


def test_a_move_to_the_same_store_is_refused(here, call):
    said = call("move", "alone", "--to", here.store.uri, code=2)
    assert "is the store that the runs are in already" in said


@pytest.mark.slow
def test_a_move_to_a_server_that_is_killed_goes_on(here, doors: Doors, tmp_path):
    before = state(here.store)
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    server.start()
    target = Store.locate(server.uri, for_writing=False)
    words = ("move", "sweep A", "sweep B", "alone", "--to", server.uri, "--store", here.store.uri)
    try:
        for copied in (1, 3):
            process = doors.start("runs", tmp_path, *words)
            while f"\n{copied}/5  " not in f"\n{process.out}":
                assert process.running, process.err
                time.sleep(0.01)
            process.kill(signal.SIGKILL)
            process.wait()
            assert state(here.store) == before
        process = doors("runs", tmp_path, *words)
        assert (process.code, process.err) == (0, "")
        assert "5 runs copied to http://127.0.0.1:" in process.out
        assert state(target, folder / "artifacts") == before
        assert here.active() == set()
    finally:
        server.kill()
