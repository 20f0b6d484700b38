"""The store and the life of a run, against a real MLflow; no TensorFlow."""

import json
import os
import re
import shutil
import signal
import sqlite3
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from doors import Process
from matplotlib.figure import Figure

from fmnist_lab import tracking
from fmnist_lab.errors import Terminated, UserError
from fmnist_lab.system import durable, provenance
from fmnist_lab.tracking import Store, tables
from fmnist_lab.tracking.events import End, Event


@pytest.fixture
def here(monkeypatch, tmp_path) -> Path:
    """An empty current folder, and no other store that MLflow remembers from before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def refusal(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        Store.locate(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Where the store is


def test_the_default_is_what_mlflow_ui_shows_here(here):
    store = Store.locate()
    files = here / "mlruns"
    database = here / "mlflow.db"
    assert store == Store(f"sqlite:///{database}", database, files, files / "unfinished")


def test_a_relative_database_is_of_the_folder_at_the_start(here, monkeypatch):
    store = Store.locate("sqlite:///sub/mine.db")
    monkeypatch.chdir("/")
    assert store.database == here / "sub/mine.db"
    assert store.artifacts == here / "sub/mlruns"


def test_an_absolute_database_keeps_its_files_beside_it(here):
    store = Store.locate(f"sqlite:///{here}/far/away.db")
    assert (store.database, store.artifacts) == (here / "far/away.db", here / "far/mlruns")


def test_the_environment_is_honoured_and_an_argument_comes_first(here, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///env.db")
    assert Store.locate().database == here / "env.db"
    assert Store.locate("sqlite:///arg.db").database == here / "arg.db"


@pytest.mark.parametrize("uri", ["http://127.0.0.1:5000", "https://x/y", "postgresql://u@h/d"])
def test_a_server_decides_where_files_go(here, uri):
    assert Store.locate(uri) == Store(uri, None, None, here / "mlruns" / "unfinished")
    assert list(here.iterdir()) == []


def test_looking_leaves_no_trace(here):
    Store.locate(for_writing=False)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "/tmp/mlruns", "file:///tmp/mlruns"])
def test_a_folder_is_refused_with_what_to_write_instead(here, uri):
    said = refusal(uri)
    assert f"tracking.uri: received '{uri}'" in said
    assert "tracking.uri=sqlite:///mlflow.db" in said
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "uri", ["nonsense://x", "sqlite://", "sqlite:///", "sqlite:///:memory:", "x://["]
)
def test_what_can_be_no_store_is_refused(here, uri):
    assert uri in refusal(uri)
    assert not Path("mlflow.db").exists()


def text_instead_of_a_database(here: Path) -> None:
    Path(here, "mlflow.db").write_text("This is not a database.\n" * 100)


def folder_instead_of_a_database(here: Path) -> None:
    Path(here, "mlflow.db").mkdir()


def file_instead_of_a_folder(here: Path) -> None:
    Path(here, "mlruns").write_text("")


@pytest.mark.parametrize(
    "spoil", [text_instead_of_a_database, folder_instead_of_a_database, file_instead_of_a_folder]
)
def test_a_store_that_cannot_be_written_is_refused_before_any_training(here, spoil):
    spoil(here)
    said = refusal()
    assert str(here / "mlflow.db") in said
    assert "tracking=none" in said


def test_a_list_of_runs_of_what_is_no_database_is_one_sentence(here):
    text_instead_of_a_database(here)
    with pytest.raises(UserError, match=re.escape(str(here / "mlflow.db"))):
        list(tables.rows(Store.locate(), "fmnist_lab"))


def test_a_place_where_nothing_can_be_made_is_refused(here):
    said = refusal("sqlite:////proc/x.db")
    assert "/proc/x.db" in said
    assert "tracking=none" in said


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_read_only_database_is_refused(here):
    sqlite3.connect("mlflow.db").execute("create table t (x)").connection.close()
    Path("mlflow.db").chmod(0o444)
    assert "mlflow.db cannot be written" in refusal()


# Letters beyond ASCII in both of Unicode's forms: one character, and a letter with an accent.
ODD_NAMES = [
    *("with space", " first", "last ", "50% off", "a%20b", "%", "%00", "no#1", "really?", "a&b"),
    *("a;b", "c++", "it's", 'say "x"', "two\nlines", "a\tb", "-dash", "[x]", "{x}", "*", "~"),
    *("a:b@c", "back\\slash", "$HOME `x`", "caf\u00e9", "cafe\u0301", "\u65e5\u672c", "\u202eabc"),
]


@pytest.mark.slow
def test_a_store_is_in_its_own_folder_whatever_that_is_called(here, store, monkeypatch):
    """MLflow would make the folder "with%20space" beside it."""
    from mlflow import MlflowClient
    from sqlalchemy import make_url

    for name in ODD_NAMES:
        folder = here / "folders" / name
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        found = Store.locate()
        assert found.database == folder / "mlflow.db", name
        if name != ODD_NAMES[0]:  # where all of it is made
            shutil.copy(store.database, found.database)
        assert Store.locate(found.uri) == found == Store.locate()
        found.open("odd")
        url = make_url(found.uri)
        assert (url.database, url.query) == (str(found.database), {}), name
        client = MlflowClient(found.uri)
        run = client.create_run(client.get_experiment_by_name("odd").experiment_id).info.run_id
        client.log_text(run, "kept", "a b.txt")
        assert tracking.read_file(found, run, "a b.txt") == b"kept", name
        assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlruns"}, name
    assert {path.name for path in (here / "folders").iterdir()} == set(ODD_NAMES)


NAMES = ["/etc/x", "../../x", "a/../../../x", "/Users/me/exp", "..", ".", "a/b", "c d"]


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_kept_in_the_store_whatever_its_name(store, name):
    store.open(name)
    with tracking.asking(store) as client:
        location = client.get_experiment_by_name(name).artifact_location
    folder = Path(os.path.normpath(durable.local_path(location)))
    assert folder != store.artifacts
    assert folder.is_relative_to(store.artifacts)


def test_a_store_is_the_same_under_the_uri_of_an_earlier_version(here):
    (here / "a b").mkdir()
    found = Store.locate("sqlite:///a b/mlflow.db")
    assert found.is_at(f"sqlite:///{here}/a%20b/mlflow.db")
    assert found.is_at(found.uri)
    for other in (f"sqlite:///{here}/mlflow.db", "http://127.0.0.1:1", "nonsense", "", "http://["):
        assert not found.is_at(other)


# Opening it

OPEN = "import sys; from fmnist_lab.tracking import Store; print(Store.locate().open(sys.argv[1]))"


@pytest.mark.slow
def test_processes_that_start_at_once_make_one_database(tmp_path):
    processes = [Process(tmp_path, "-c", OPEN, "together") for _ in range(3)]
    try:
        assert [process.code for process in processes] == [0, 0, 0]
        assert len({process.out for process in processes}) == 1
        assert [process.err for process in processes] == ["", "", ""]
    finally:
        for process in processes:
            process.stop()
    rows = (
        sqlite3.connect(tmp_path / "mlflow.db").execute("select name from experiments").fetchall()
    )
    assert sorted(rows) == [("Default",), ("together",)]
    assert [path.name for path in (tmp_path / "mlruns").iterdir()] == [".store.lock"]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """A store that exists, in a folder of its own."""
    folder = tmp_path_factory.mktemp("store")
    found = Store.locate(f"sqlite:///{folder}/mlflow.db")
    found.open("fmnist_lab")
    return found


@pytest.fixture
def client(store):
    from mlflow import MlflowClient

    return MlflowClient(store.uri)


@pytest.fixture
def experiment(request, store, client) -> str:
    """The name of an empty experiment of the test's own."""
    name = request.node.name
    store.open(name)
    return name


@pytest.fixture
def the_run(client, experiment):
    """Read back the only run of the test's experiment."""

    def read():
        (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
        return run

    return read


def written(store, experiment: str, task) -> tracking.Run:
    """Start a run, have `task` do something with it, and return it."""
    with tracking.start(store, experiment, "x", {}) as run:
        task(run)
    return run


def all_runs(client) -> set[str]:
    experiments = [each.experiment_id for each in client.search_experiments()]
    return {run.info.run_id for run in client.search_runs(experiments)}


def test_an_experiment_is_made_once_with_its_files_in_mlruns(store, client):
    first, again = store.open("named"), store.open("named")
    assert first == again
    assert client.get_experiment(first).artifact_location == (store.artifacts / "named").as_uri()


def test_what_was_left_of_making_a_database_is_cleared_away(store):
    """A process may end, or the power, after the database has its name and before that."""
    (store.artifacts / ".new-x").mkdir()
    store.open("fmnist_lab")
    assert not (store.artifacts / ".new-x").exists()


def test_a_database_that_could_not_be_finished_is_not_there(here, monkeypatch):
    from mlflow.exceptions import MlflowException
    from mlflow.store.tracking import sqlalchemy_store

    def fail(uri: str, *_: object) -> None:
        Path(uri.removeprefix("sqlite:///")).write_text("half")
        raise MlflowException("no space left")

    monkeypatch.setattr(sqlalchemy_store, "SqlAlchemyStore", fail)
    with pytest.raises(UserError, match="no space left"):
        Store.locate().open("x")
    assert [path.name for path in here.rglob("*")] == ["mlruns", ".store.lock"]


def test_a_database_of_another_mlflow_is_one_line(store, tmp_path):
    copy = tmp_path / "mlflow.db"
    copy.write_bytes(store.database.read_bytes())
    with sqlite3.connect(copy) as connection:
        connection.execute("update alembic_version set version_num = 'fromthefuture'")
    connection.close()
    with pytest.raises(UserError) as caught:
        Store.locate(f"sqlite:///{copy}").open("x")
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


# The life of a run


def test_a_run_that_ends_well_is_finished(store, experiment, the_run):
    with tracking.start(store, experiment, "h1 e1 s0", {"job": "train"}) as run:
        run.params({"seed": 0, "model": "mlp"})
        run.tags({"later": "known"})
    found = the_run()
    assert found.info.status == "FINISHED"
    assert found.info.run_id == run.id
    assert found.info.run_name == "h1 e1 s0"
    assert found.data.params == {"seed": "0", "model": "mlp"}
    assert found.data.tags.items() >= {"job": "train", "later": "known"}.items()
    assert "failure" not in found.data.tags
    assert found.info.end_time >= found.info.start_time


def test_metrics_keep_their_order_and_steps(store, experiment, the_run, client):
    with tracking.start(store, experiment, "x", {}) as run:
        for step in (1, 2):
            run.metrics({"b/test": step / 10, "a/test": step * 1.0}, step)
    for name, values in {"b/test": [0.1, 0.2], "a/test": [1.0, 2.0]}.items():
        history = client.get_metric_history(run.id, name)
        assert [(point.step, point.value) for point in history] == list(enumerate(values, 1))


def test_a_run_has_begun_before_a_slow_store_is_open(
    store, experiment, the_run, client, monkeypatch
):
    trained = threading.Event()

    def slow(self, experiment, opened=Store.open):
        trained.wait()
        time.sleep(0.01)
        return opened(self, experiment)

    monkeypatch.setattr(Store, "open", slow)
    with tracking.start(store, experiment, "x", {}) as run:
        run.metrics({"loss": 1.0}, 1)
        trained.set()
    (point,) = client.get_metric_history(run.id, "loss")
    assert the_run().info.start_time <= point.timestamp


def test_a_users_mistake_makes_the_run_failed_and_says_why(store, experiment, the_run, client):
    def task(run) -> None:
        run.metrics({"loss": 1.0}, 1)
        raise UserError("too fast")

    with pytest.raises(UserError, match="too fast"):
        written(store, experiment, task)
    found = the_run()
    assert found.info.status == "FAILED"
    assert found.data.tags["failure"] == "too fast"
    assert found.data.metrics == {"loss": 1.0}


def test_a_bug_makes_the_run_failed_with_its_traceback(store, experiment, the_run):
    with pytest.raises(ZeroDivisionError):
        written(store, experiment, lambda _: 1 / 0)
    found = the_run()
    assert found.info.status == "FAILED"
    assert found.data.tags["failure"].startswith("Traceback")
    assert "ZeroDivisionError: division by zero" in found.data.tags["failure"]


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (KeyboardInterrupt(), "ended by Ctrl-C"),
        (Terminated(), "ended by SIGTERM"),
        (Terminated(signal.SIGHUP), "ended by SIGHUP"),
    ],
)
def test_a_run_that_is_stopped_is_killed_says_why_and_keeps_what_it_has(
    store, experiment, the_run, reason, told
):
    def task(run) -> None:
        run.metrics({"loss": 1.0}, 1)
        raise reason

    with pytest.raises(type(reason)):
        written(store, experiment, task)
    found = the_run()
    assert found.info.status == "KILLED"
    assert found.data.metrics == {"loss": 1.0}
    assert found.data.tags["failure"] == told


@pytest.mark.parametrize("already", [False, True], ids=["once", "twice"])
def test_stopped_while_the_last_files_are_written_it_does_not_stay_running(
    store, experiment, the_run, already
):
    """Ctrl-C when the training is over, or over by Ctrl-C, and figures are still being drawn."""
    left = threading.Event()

    def slow() -> None:
        left.wait()
        time.sleep(0.1)  # for the main thread to arrive where it waits for this
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.3)

    with (
        suppress(KeyboardInterrupt),
        tracking.start(store, experiment, "x", {}) as run,
    ):
        run.write(slow)
        left.set()
        if already:
            raise KeyboardInterrupt
    run._writer.shutdown()  # what the interpreter does at its exit
    status = the_run().info.status
    assert status == "KILLED" or (status == "FINISHED" and not already)


def test_what_cannot_be_written_fails_the_run_and_is_reported(store, experiment, the_run):
    def full() -> None:
        raise OSError(28, "disk is full")

    def task(run) -> None:
        run.write(full)
        run.metrics({"loss": 1.0}, 1)

    with pytest.raises(UserError, match="No space left on device; make room"):
        written(store, experiment, task)
    found = the_run()
    assert found.info.status == "FAILED"
    assert found.data.metrics == {"loss": 1.0}  # what came after it was not given up


def test_two_runs_after_each_other_are_two_runs(store, experiment, client):
    for name in "ab":
        with tracking.start(store, experiment, name, {}) as run:
            run.params({"name": name})
    found = client.search_runs([run.experiment_id], order_by=["attributes.start_time"])
    assert [(each.info.run_name, each.data.params["name"]) for each in found] == [
        ("a", "a"),
        ("b", "b"),
    ]


def test_a_deleted_experiment_is_refused_and_no_run_appears_elsewhere(store, experiment, client):
    client.delete_experiment(client.get_experiment_by_name(experiment).experiment_id)
    before = all_runs(client)
    opened = []

    def task(run) -> None:
        opened.append(run)
        run.params({"seed": 0})
        run.text("x", "config.yaml")
        run.metrics({"loss": 1.0}, 1)

    with pytest.raises(UserError, match=r"tracking\.experiment: .* was deleted"):
        written(store, experiment, task)
    opened[0]._writer.shutdown()
    assert all_runs(client) == before


def test_without_a_store_everything_is_forgotten(here):
    def never() -> Figure:
        raise AssertionError("drawn for nobody")

    with tracking.start(None, None, "x", {}) as run:
        run.params({"seed": 0})
        run.metrics({"loss": 1.0}, 1)
        run.figure("x.png", never)
        run.wait_until_open()
    assert run.id == ""
    assert list(here.iterdir()) == []


UNTRACKED = """
import sys
from fmnist_lab import tracking
with tracking.start(None, None, "x", {}) as run:
    run.params({"seed": 0})
print([name for name in sys.modules if name.partition(".")[0] == "mlflow"])
"""


def test_without_a_store_mlflow_is_not_imported(tmp_path):
    process = Process(tmp_path, "-c", UNTRACKED)
    assert (process.wait(), process.out, process.err) == (0, "[]\n", "")
    process.stop()


# What a run keeps


@pytest.fixture
def kept(store, experiment, client, tmp_path):
    """Write into a run, and return a function that downloads one of its files."""

    def write(task) -> tuple[str, list[str]]:
        run = written(store, experiment, task)
        files = [item.path for item in client.list_artifacts(run.id)]
        return client.download_artifacts(run.id, "", str(tmp_path)), files

    return write


def test_files_come_back_as_they_were(kept):
    rows = np.random.default_rng(0).random((5, 10), np.float32)
    labels = np.arange(5, dtype=np.uint8)

    def task(run) -> None:
        run.text("seed: 0\n", "config.yaml")
        run.arrays("predictions.npz", probabilities=rows, labels=labels)
        run.json({"a": np.array([[1, 2]]), "b": [float("nan"), float("inf"), (1.5,)]}, "e.json")
        run.figure("empty.png", lambda: Figure((3, 1)))

    folder, files = kept(task)
    assert sorted(files) == ["config.yaml", "e.json", "empty.png", "predictions.npz"]
    assert Path(folder, "config.yaml").read_text() == "seed: 0\n"
    with np.load(Path(folder, "predictions.npz")) as back:
        assert back["probabilities"].tobytes() == rows.tobytes()
        assert (back["labels"].dtype, back["labels"].tolist()) == (np.uint8, [0, 1, 2, 3, 4])
    said = json.loads(Path(folder, "e.json").read_text())
    assert said == {"a": [[1, 2]], "b": [None, None, [1.5]]}
    assert Path(folder, "empty.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_that_cannot_be_drawn_takes_no_other_along(store, experiment, client, the_run):
    def broken() -> Figure:
        raise ValueError("no such class")

    def task(run) -> None:
        run.figure("first.png", lambda: Figure((1, 1)))
        run.figure("broken.png", broken)
        run.figure("last.png", lambda: Figure((1, 1)))

    with pytest.raises(UserError, match="could not be made: no such class"):
        written(store, experiment, task)
    found = the_run().info
    assert found.status == "FAILED"
    assert [item.path for item in client.list_artifacts(found.run_id)] == ["first.png", "last.png"]


def test_a_killed_run_waits_for_the_figure_that_is_being_drawn_and_no_other(
    store, experiment, client, the_run, monkeypatch
):
    drawing, killed = threading.Event(), threading.Event()

    def slow() -> Figure:
        drawing.set()
        assert killed.wait(60)
        return Figure((1, 1))

    def task(run) -> None:
        def note(event: Event) -> None:
            if isinstance(event, End):
                killed.set()
            noted(event)

        noted = run._note
        monkeypatch.setattr(run, "_note", note)
        run.figure("first.png", slow)
        run.figure("last.png", lambda: Figure((1, 1)))
        assert drawing.wait(60)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(store, experiment, task)
    found = the_run().info
    assert found.status == "KILLED"
    assert [item.path for item in client.list_artifacts(found.run_id)] == ["first.png"]


def test_the_data_set_is_logged_by_our_own_digest(store, experiment, the_run):
    digest = "0123456789abcdef" * 4
    with tracking.start(store, experiment, "x", {}) as run:
        run.dataset(np.zeros((3, 28, 28), np.uint8), "fashion-mnist", digest, "folder /x")
    found = the_run()
    (used,) = found.inputs.dataset_inputs
    assert used.dataset.name == "fashion-mnist"
    assert used.dataset.digest == digest[:36]
    assert found.data.tags["data.digest"] == digest


# Finding runs


def test_the_newest_run_with_a_model_is_a_finished_training(store, client):
    ended = {}
    jobs = [("train", None), ("train", UserError("x")), ("evaluate", None)]
    for job, error in jobs:
        try:
            with tracking.start(store, "fmnist_lab", "x", {"job": job}) as run:
                ended[job, error] = run
                if error:
                    raise error
        except UserError:
            pass
    assert next(tracking.finished_runs(store)).run_id == ended["train", None].id


def test_the_newest_run_may_be_in_an_experiment_of_another_name(tmp_path, store):
    """Whoever trains with tracking.experiment=mine has a newest run, too."""
    with tracking.start(store, "mine", "x", {"job": "train"}) as run:
        pass
    assert next(tracking.finished_runs(store)).run_id == run.id


def test_looking_for_a_run_where_there_is_none_leaves_no_database(here):
    assert list(tracking.finished_runs(Store.locate(for_writing=False))) == []
    assert list(here.iterdir()) == []


def test_a_store_that_was_named_once_is_not_the_default_from_then_on(store, here):
    list(tracking.finished_runs(store))
    assert Store.locate(for_writing=False).database == here / "mlflow.db"


def test_links_open_the_view_that_shows_our_runs(store, experiment, the_run):
    with tracking.start(store, experiment, "h1 e1 s0", {}) as run:
        pass
    links = tracking.links(store, experiment, run.id)
    page = f"/#/experiments/{run.experiment_id}/runs"
    assert next(iter(links.values())) == f"{page}/{run.id}?workflowType=machine_learning"
    assert links["its pictures"] == (
        f"{page}/{run.id}/artifacts/confusion_matrix.png?workflowType=machine_learning"
    )
    assert links["all runs"] == f"{page}?workflowType=machine_learning"
    assert tracking.links(store, experiment) == {"all runs": links["all runs"]}


@pytest.mark.parametrize(("name", "run"), [("nowhere", None), ("fmnist_lab", "f" * 32)])
def test_links_to_what_is_not_there_are_refused(store, name, run):
    with pytest.raises(UserError) as caught:
        tracking.links(store, name, run)
    assert (run or name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_links_in_a_folder_without_runs_say_how_to_make_one(here):
    with pytest.raises(UserError, match=r"python -m fmnist_lab\.run"):
        tracking.links(Store.locate(for_writing=False), "fmnist_lab")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "tag"),
    [
        ("runs:/abc/model", {"evaluated_run": "abc"}),
        ("models:/name/1", {}),
        ("/some/folder", {}),
    ],
)
def test_where_a_model_came_from_is_told_where_its_uri_tells(uri, tag):
    assert tracking.origin(uri) == tag


# Where a result came from


def test_tags_name_code_libraries_and_machine():
    found = provenance.tags()
    libraries = {"fmnist_lab", "tensorflow", "keras", "numpy", "mlflow", "python"}
    assert {f"version.{name}" for name in libraries} <= set(found)
    assert {"host", "mlflow.user", "mlflow.source.name"} <= set(found)
    assert all(isinstance(value, str) and value for value in found.values())
    if "mlflow.source.git.commit" in found:
        assert found["git.dirty"] in ("true", "false")


def test_a_user_without_a_name_can_run(monkeypatch):
    """In a container, under a number that /etc/passwd does not know."""
    import pwd

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[f"uid not found: {uid}"])
    assert "host" in provenance.tags()


@pytest.mark.parametrize("module", ["fmnist_lab.run", "fmnist_lab.runs.__main__"])
def test_the_command_can_be_pasted(monkeypatch, module):
    spec = type("Spec", (), {"name": module})
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setattr(sys, "argv", ["x/run.py", "seed=1", "name=a b"])
    door = module.removesuffix(".__main__")
    assert provenance.command() == f"python -m {door} seed=1 'name=a b'"
