"""What is called done is on disk: content, name and folders, and only then the word of it."""

import inspect
import os
import shutil
from pathlib import Path
from stat import S_ISDIR
from unittest import mock

import numpy as np
import pytest

from fmnist_lab import tracking
from fmnist_lab.data import sources
from fmnist_lab.errors import UserError
from fmnist_lab.system import durable
from fmnist_lab.tracking import Store
from fmnist_lab.tracking.events import Artifact, End, Metrics, Opened, Opening, Status
from fmnist_lab.tracking.journal import Journal, read_events
from fmnist_lab.training import checkpoint


class Trace:
    """The order in which this process syncs and renames, and what is on disk for good by then.

    SQLite syncs its own files, in C. What was removed counts as removed.
    """

    def __init__(self, monkeypatch) -> None:
        self.events: list[tuple] = []
        self.disk: dict[tuple, bytes | list[str]] = {}
        fsync, replace = os.fsync, os.replace

        def synced(handle: int) -> None:
            fsync(handle)
            stat = os.fstat(handle)
            self.events.append(("sync", *self._key(stat)))
            whole = os.listdir(handle) if S_ISDIR(stat.st_mode) else os.pread(handle, 1 << 26, 0)
            self.disk[self._key(stat)] = whole

        def renamed(made, name) -> None:
            self.events.append(("rename", *self._key(Path(made).stat())))
            replace(made, name)

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(os, "replace", renamed)

    def begin(self, folder: Path) -> None:
        """Take what there is in a folder to be on disk for good."""
        for path in (folder, *folder.rglob("*")):
            names = [each.name for each in path.iterdir()] if path.is_dir() else None
            whole = path.read_bytes() if names is None else names
            self.disk[self._key(path.stat())] = whole

    @staticmethod
    def _key(stat: os.stat_result) -> tuple[int, int]:
        return stat.st_dev, stat.st_ino

    def synced(self, path: Path) -> list[int]:
        """When a file or folder was synced, as places in the order of events."""
        return self._when("sync", path)

    def renamed(self, path: Path) -> list[int]:
        return self._when("rename", path)

    def _when(self, kind: str, path: Path) -> list[int]:
        sought = (kind, *self._key(path.stat()))
        return [place for place, event in enumerate(self.events) if event == sought]

    def cut(self, folder: Path, to: Path) -> None:
        """Copy of a folder what a power cut would leave now: names and contents that are synced."""
        to.mkdir()
        for name in self.disk.get(self._key(folder.stat()), []):
            path = folder / name
            if path.is_dir():
                self.cut(path, to / name)
            elif path.suffix == ".db":
                shutil.copy(path, to)
            elif path.exists():
                (to / name).write_bytes(self.disk.get(self._key(path.stat()), b""))


@pytest.fixture
def trace(monkeypatch) -> Trace:
    return Trace(monkeypatch)


def of_checkpoint(folder: Path, _) -> Path:
    state = checkpoint.Checkpoint(1, False, [{}], [np.zeros(3)], [])
    return checkpoint.save(state, folder)


def of_data(folder: Path, _) -> Path:
    sources._store(folder / "images", b"content")
    return folder / "images"


def of_library(folder: Path, monkeypatch) -> Path:
    from fmnist_lab.training.engines.native import build

    def compiler(command: list[str]) -> None:
        Path(command[command.index("-o") + 1]).write_text("compiled")

    monkeypatch.setattr(build, "complaint_of", compiler)
    return build.compile_library(folder)


def of_store(folder: Path, monkeypatch) -> Path:
    from mlflow.store.tracking import sqlalchemy_store

    def made(uri: str, *_: object):
        Path(uri.removeprefix("sqlite:///")).write_text("tables")
        return mock.Mock()

    monkeypatch.setattr(sqlalchemy_store, "SqlAlchemyStore", made)
    Store._create_database(folder / "mlflow.db", folder)
    return folder / "mlflow.db"


@pytest.mark.parametrize("make", [of_checkpoint, of_data, of_library, of_store])
def test_a_file_gets_its_name_when_its_content_is_on_disk(
    backend, trace, tmp_path, monkeypatch, make
):
    file = make(tmp_path, monkeypatch)
    (renamed,) = trace.renamed(file)
    assert trace.synced(file)[0] < renamed
    assert max(trace.synced(tmp_path)) > renamed


def test_a_tree_is_on_disk_with_the_folders_above_it_that_may_be_new(trace, tmp_path):
    inner = tmp_path / "a/b"
    inner.mkdir(parents=True)
    files = [tmp_path / "a/one", inner / "two"]
    for file in files:
        file.write_text("x")
    (inner / "dangling").symlink_to("nowhere")
    durable.sync_tree(tmp_path / "a", above=2)
    folders = [inner, tmp_path / "a", tmp_path, tmp_path.parent]
    content = max(trace.synced(file)[0] for file in files)
    times = [trace.synced(folder)[0] for folder in folders]
    assert [content, *times] == sorted([content, *times])


def test_a_folder_that_was_made_is_found_again(trace, tmp_path):
    made = tmp_path / "a/b/c"
    durable.make_folder(made)
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a/b"):
        assert trace.synced(folder)
    before = len(trace.events)
    durable.make_folder(made)
    assert len(trace.events) == before


def test_what_a_power_cut_does_to_a_file_is_noticed(tmp_path):
    file = tmp_path / "arrays.npz"
    np.savez(file, numbers=np.arange(1000))
    content = file.read_bytes()
    whole = durable.fingerprint(file)
    assert durable.damage(file, whole) == durable.damage(file) == ""
    for broken, said in {
        b"": "is empty",
        b"\0" * len(content): "is damaged",
        content[: len(content) // 2]: "is damaged",
    }.items():
        file.write_bytes(broken)
        assert durable.damage(file, whole) == durable.damage(file) == said
    file.write_bytes(content[:-9] + b"changed" + content[-2:])
    assert durable.damage(file, whole) == "is damaged"
    assert durable.damage(file, whole, thorough=False) == ""
    file.unlink()
    assert durable.damage(file, whole) == durable.damage(file) == "is missing"


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///a/b%20c%23", "/a/b c#"),
        ("/a/b%20c", "/a/b%20c"),
        ("./mlruns/0", "mlruns/0"),
        ("mlflow-artifacts:/1/x/artifacts", None),
        ("s3://bucket/x", None),
        ("file://[", None),
    ],
)
def test_artifacts_on_this_machine_are_told_from_a_servers(uri, path):
    assert durable.local_path(uri) == (Path(path) if path else None)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    found = Store.locate(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")
    found.open("fmnist_lab")
    return found


@pytest.fixture
def client(store):
    from mlflow import MlflowClient

    return MlflowClient(store.uri)


@pytest.fixture(autouse=True)
def _nothing_is_left(store):
    yield
    for folder in store.unfinished.glob("*"):
        shutil.rmtree(folder)


@pytest.fixture
def asked(monkeypatch):
    """Have a function called before MLflow's store does something, in the order of a call."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    def before(method: str, look) -> None:
        real = getattr(SqlAlchemyStore, method)

        def looked_at(self, *words, **named):
            look(**inspect.signature(real).bind(self, *words, **named).arguments)
            return real(self, *words, **named)

        monkeypatch.setattr(SqlAlchemyStore, method, looked_at)

    return before


def test_the_store_hears_nothing_that_the_journal_may_lose(trace, store, asked, tmp_path):
    trace.begin(store.artifacts.parent)
    heard = []

    def journal() -> list[dict]:
        left = tmp_path / f"cut {len(heard)}"
        trace.cut(store.artifacts.parent, left)
        (folder,) = (left / "mlruns/unfinished").iterdir()
        return read_events(folder)

    def made(tags, **_) -> None:
        (token,) = (tag.value for tag in tags if tag.key == "scratch.token")
        assert Opening(token) in journal()
        heard.append("run")

    def told(metrics, **_) -> None:
        if metrics:
            known = journal()
            assert [each.id for each in known if isinstance(each, Opened)] == [run.id]
            points = {(each.step, each.time) for each in known if isinstance(each, Metrics)}
            assert {(each.step, each.timestamp) for each in metrics} <= points
            heard.extend(each.step for each in metrics)

    asked("create_run", made)
    asked("log_batch", told)
    with tracking.start(store, None, "x", {}) as run:
        for step in (1, 2, 3):
            run.metrics({"loss": 1.0}, step)
            run._tasks[-1].result()
    assert heard == ["run", 1, 2, 3]


class Cuts:
    """What power cuts at given moments would leave, beside what there is at those moments."""

    def __init__(self, trace: Trace, store: Store, folder: Path) -> None:
        self.trace, self.store, self.folder = trace, store, folder
        trace.begin(store.artifacts.parent)
        self.seen: list[str] = []

    def check(self, moment: str, *parts: Path) -> None:
        """Each file in some folders is to be what a power cut now leaves of it."""
        self.seen.append(moment)
        left = self.folder / f"cut {len(self.seen)}"
        here = self.store.artifacts.parent
        self.trace.cut(here, left)
        for part in parts:
            files = [file for file in part.rglob("*") if file.is_file()]
            assert files, f"{moment}: nothing in {part}"
            for file in files:
                kept = left / file.relative_to(here)
                assert kept.exists(), f"{moment}: {kept} is not on disk"
                assert kept.read_bytes() == file.read_bytes(), f"{moment}: {kept} is torn"


@pytest.fixture
def cuts(trace, store, client, asked, tmp_path) -> Cuts:
    """Look at each moment right before the store says READY or FINISHED."""
    from mlflow.entities import LoggedModelStatus, RunStatus

    cuts = Cuts(trace, store, tmp_path)

    def model(model_id, status, **_) -> None:
        if status == LoggedModelStatus.READY:
            model = client.get_logged_model(model_id)
            cuts.check("READY", durable.local_path(model.artifact_location))

    def run(run_id, run_status, **_) -> None:
        if run_status == RunStatus.FINISHED:
            run = client.get_run(run_id)
            parts = [durable.local_path(run.info.artifact_uri)]
            cuts.check("FINISHED", *parts, *store.unfinished.glob("*/files"))

    asked("finalize_logged_model", model)
    asked("update_run_info", run)
    return cuts


def test_what_is_said_to_be_ready_or_finished_is_on_disk(backend, cuts, store):
    import keras

    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    with tracking.start(store, None, "x", {"job": "train"}) as run:
        run.text("seed: 0", "config.yaml")
        run.metrics({"loss": 1.0}, 1)
        run.arrays("predictions.npz", labels=np.arange(3))
        run.model(network, ["a", "b"])
    assert cuts.seen == ["READY", "FINISHED"]
    assert tracking.damage(store, run.id) == ""
    assert list(store.unfinished.iterdir()) == []
    # What the tag says of the model is what is looked at.
    (file,) = store.artifacts.rglob("model.keras")
    file.write_bytes(b"")
    assert tracking.damage(store, run.id) == "has lost files: model/data/model.keras is empty"


def test_what_is_sent_later_is_on_disk_before_it_is_finished(cuts, store, client):
    place = store.open("fmnist_lab")
    run_id = client.create_run(place).info.run_id
    scratch = Journal.claim(store.unfinished, "id")
    scratch.append(Opened(run_id, store=store.uri))
    (scratch.files / "notes.txt").write_text("x")
    durable.sync_tree(scratch.files)  # by the process that left it
    scratch.append(Artifact("notes.txt"))
    scratch.append(End(Status.FINISHED, 1))
    scratch.release()
    (sent,) = tracking.sync(store)
    assert (sent.problem, cuts.seen) == ("", ["FINISHED"])


def test_a_sweeps_report_and_logs_are_on_disk_before_it_is_finished(cuts, store, client, tmp_path):
    sweep = tracking.SweepRun.open(store, None, "sweep", {}, resume=False)
    tags = {tracking.member_tag(sweep.id): "00000"}
    job = client.create_run(sweep.experiment_id, tags=tags).info
    client.set_terminated(job.run_id, "KILLED")
    log, summary = tmp_path / "log.txt", tmp_path / "summary"
    log.write_text("said")
    sweep.keep_log(0, "x", log, 0, "", {})
    cuts.check("kept", durable.local_path(job.artifact_uri))
    summary.mkdir()
    (summary / "report.md").write_text("# Sweep")
    sweep.close("FINISHED", "", {}, summary)
    assert cuts.seen == ["kept", "FINISHED"]
    assert not log.exists()
    assert not summary.exists()


def test_what_cannot_be_synced_is_not_finished(store, client, monkeypatch):
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    started = tracking.start(store, None, "x", {})
    run = started.__enter__()
    run.text("x", "notes.txt")
    run.wait_until_open()
    monkeypatch.setattr(durable, "sync_tree", full)
    with pytest.raises(UserError, match="No space left on device; make room"):
        started.__exit__(None, None, None)
    assert client.get_run(run.id).info.status == "FAILED"
    (folder,) = store.unfinished.iterdir()
    assert (folder / "files/notes.txt").read_text() == "x"


def test_an_end_that_the_store_does_not_take_is_kept(store, client, monkeypatch):
    from mlflow.exceptions import MlflowException

    def refuse(*_) -> None:
        raise MlflowException("no")

    with monkeypatch.context() as patch:
        patch.setattr(type(client), "set_terminated", refuse)
        with tracking.start(store, None, "x", {}) as run:
            pass
    assert (run.waiting, run.outage) == (1, "no")
    (sent,) = tracking.sync(store)
    assert (sent.status, sent.problem) == ("FINISHED", "")
    assert client.get_run(run.id).info.status == "FINISHED"


def test_a_transaction_of_mlflow_is_on_disk_when_it_is_over(client):
    """SQLite waits for its database, unless someone has told it not to."""
    from sqlalchemy import text

    engine = client._tracking_client.store.engine
    with engine.connect() as connection:
        level = connection.execute(text("pragma synchronous")).scalar()
    assert level >= 2  # FULL


# What has lost its files


@pytest.fixture
def trained(store, client, request):
    """Make a run as an earlier version did, whose files are as they are given."""
    experiment = request.node.originalname

    def make(name: str, **contents: bytes) -> str:
        place = store.open(experiment)
        run = client.create_run(place, run_name=name, tags={"job": "train"}).info
        model = client.create_logged_model(place, name="model", source_run_id=run.run_id)
        folders = {
            "config": durable.local_path(run.artifact_uri) / "config.yaml",
            "MLmodel": durable.local_path(model.artifact_location) / "MLmodel",
        }
        for file, content in {"config": b"seed: 0", "MLmodel": b"{}", **contents}.items():
            folders[file].parent.mkdir(parents=True, exist_ok=True)
            folders[file].write_bytes(content)
        client.finalize_logged_model(model.model_id, "READY")
        client.set_terminated(run.run_id, "FINISHED")
        return run.run_id

    return make


def test_a_run_that_has_lost_files_is_not_offered(store, trained, capsys, request):
    from fmnist_lab.runs.__main__ import app

    whole = trained("whole")
    torn = trained("torn", MLmodel=b"")
    assert tracking.damage(store, torn) == "has lost files: model/MLmodel is empty"
    chosen = tracking.choose_model(store)
    assert chosen.run_id == whole
    (said,) = chosen.remarks
    assert f"'torn' ({torn}), which has lost files: model/MLmodel is empty" in said
    with pytest.raises(SystemExit):
        app(["list", "--store", store.uri, "--experiment", request.node.originalname])
    states = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "FINISHED, files lost" in states[torn]
    assert "lost" not in states[whole]
    assert "1 finished run has lost files" in " ".join(states.values())
    with pytest.raises(SystemExit) as ended:
        app(["reproduce", torn, "--store", store.uri])
    assert ended.value.code == 2
    assert "has lost files: model/MLmodel is empty; " in capsys.readouterr().err


def test_a_store_whose_files_are_on_another_machine_has_lost_none(store, trained, request):
    run_id = trained("torn", config=b"")
    assert tracking.damage(store, run_id)
    shutil.rmtree(store.artifacts / request.node.originalname)
    assert tracking.damage(store, run_id) == ""


@pytest.mark.parametrize(
    "noted", ["{", "[1]", "3", "[" * 4000, '{"../../../../etc/passwd": "0 x"}']
)
def test_what_a_store_notes_of_files_leads_nowhere_else(store, client, trained, noted):
    run_id = trained("x")
    client.set_tag(run_id, "files", noted)
    assert tracking.damage(store, run_id) == ""
