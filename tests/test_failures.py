"""Stores in trouble: full disks, locks, other versions, what was deleted; told apart, and told."""

import errno
import math
import os
import shlex
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from doors import QUICK, one_line

from fmnist_lab import tracking
from fmnist_lab.errors import UserError, reported
from fmnist_lab.run import main
from fmnist_lab.runs.__main__ import app
from fmnist_lab.tracking import Store, failures, outbox
from fmnist_lab.tracking import run as run_module
from fmnist_lab.tracking.client import check_schema
from fmnist_lab.tracking.events import End, Opened, Params
from fmnist_lab.tracking.failures import Kind, kind
from fmnist_lab.tracking.journal import Journal, is_live
from fmnist_lab.tracking.outbox import Outbox

EXPERIMENT = "mine"


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    """A database as MLflow makes it, which takes a second."""
    found = Store.locate(f"sqlite:///{tmp_path_factory.mktemp('empty')}/mlflow.db")
    found.open("another")
    return found.database


@pytest.fixture
def store(tmp_path, empty) -> Store:
    found = Store.locate(f"sqlite:///{tmp_path}/store/mlflow.db")
    shutil.copy(empty, found.database)
    found.open(EXPERIMENT)
    return found


@pytest.fixture
def client(store):
    from mlflow import MlflowClient

    return MlflowClient(store.uri)


@pytest.fixture
def say(capsys):
    """Call a verb of `runs` and return its exit code and what it said."""

    def call(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app(list(words))
        said = capsys.readouterr()
        return ended.value.code or 0, said.err or said.out

    return call


class Trouble:
    """SQLite that raises a given error at the next questions that change something."""

    def __init__(self) -> None:
        self.error: sqlite3.Error | None = None
        self.times = math.inf

    def begin(self, code: int, text: str, times: float = math.inf) -> None:
        self.error = sqlite3.OperationalError(text)
        self.error.sqlite_errorcode = code
        self.times = times

    def end(self) -> None:
        self.error = None

    def meet(self, statement: str) -> None:
        if self.error and self.times and statement.split()[0] in ("INSERT", "UPDATE", "DELETE"):
            self.times -= 1
            raise self.error


@pytest.fixture
def trouble(monkeypatch) -> Trouble:
    """Below SQLAlchemy, so that what it and MLflow make of an error is there as well."""
    from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite as Dialect

    found = Trouble()

    for name in ("do_execute", "do_executemany"):
        real = getattr(Dialect, name)

        def execute(self, *words, real=real, **options):
            found.meet(str(words[1]))
            return real(self, *words, **options)

        monkeypatch.setattr(Dialect, name, execute)
    monkeypatch.setattr(run_module, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.0)
    return found


# What an error says


def sqlite_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("it did not work")
    error.sqlite_errorcode = code
    return error


def wrapped(error: Exception) -> Exception:
    """Return an error as MLflow hands it on: SQLAlchemy's, in one of its own."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
    from sqlalchemy.exc import OperationalError

    try:
        try:
            raise OperationalError("insert", {}, error)
        except OperationalError as outer:
            raise MlflowException(outer, TEMPORARILY_UNAVAILABLE) from outer
    except MlflowException as last:
        return last


def answered(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("no", response=response)


IOERR_WRITE = sqlite3.SQLITE_IOERR | 3 << 8


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (wrapped(sqlite_error(sqlite3.SQLITE_FULL)), Kind.DISK),
        (wrapped(sqlite_error(IOERR_WRITE)), Kind.DISK),
        (wrapped(sqlite_error(sqlite3.SQLITE_BUSY)), Kind.AWAY),
        (wrapped(sqlite_error(sqlite3.SQLITE_ERROR)), Kind.REFUSED),
        (wrapped(ConnectionError("gone")), Kind.AWAY),
        (sqlite_error(sqlite3.SQLITE_READONLY), Kind.DISK),
        (OSError(errno.ENOSPC, "no"), Kind.DISK),
        (OSError(errno.EDQUOT, "no"), Kind.DISK),
        (OSError(errno.EIO, "no"), Kind.DISK),
        (PermissionError(errno.EACCES, "no", "file"), Kind.REFUSED),
        (TimeoutError("no"), Kind.AWAY),
        (requests.ConnectionError("no"), Kind.AWAY),
        (answered(503), Kind.AWAY),
        (answered(403), Kind.REFUSED),
        (KeyError("a bug"), None),
        (FileNotFoundError(errno.ENOENT, "no working folder"), None),
    ],
    ids=lambda each: each.name if isinstance(each, Kind) else type(each).__name__,
)
def test_an_error_is_told_by_its_type_and_number_and_not_by_its_text(error, expected):
    assert kind(error) == expected


def test_what_a_bug_raises_while_a_store_is_asked_stays_a_bug(store):
    def bug() -> None:
        try:
            raise OSError(errno.ENOSPC, "no")
        except OSError:
            raise KeyError("x")  # noqa: B904

    with pytest.raises(KeyError), failures.translated(store):
        bug()


# Full disks


def write(store: Store) -> tracking.Run:
    with tracking.start(store, EXPERIMENT, "x", {"config.hash": "abc"}) as run:
        run.wait_until_open()
        run.metrics({"loss": 1.0}, step=1)
    return run


FULL = (sqlite3.SQLITE_FULL, "database or disk is full")
BUSY = (sqlite3.SQLITE_BUSY, "database is locked")


@pytest.mark.parametrize("moment", ["_open", "_values", "deliver"])
def test_a_database_without_room_is_one_sentence_and_all_of_the_run_is_kept(
    store, client, trouble, monkeypatch, moment
):
    owner = tracking.Run if moment == "_open" else Outbox
    real = getattr(owner, moment)

    def full(self, *words):
        if moment != "deliver" or isinstance(words[0][0], End):
            trouble.begin(*FULL)
        return real(self, *words)

    monkeypatch.setattr(owner, moment, full)
    with pytest.raises(UserError) as caught:
        write(store)
    said = str(caught.value)
    assert said == (
        f"the disk of the store {store.database} is full: database or disk is full; make room, "
        "and repeat the command with resume=true"
    )
    if moment == "_open":
        # Nothing has come of it yet.
        assert not list(store.unfinished.iterdir())
        return
    # Room is made.
    monkeypatch.setattr(owner, moment, real)
    trouble.end()
    (sent,) = tracking.sync(store)
    assert not sent.problem
    assert [point.value for point in client.get_metric_history(sent.run_id, "loss")] == [1.0]


def test_a_locked_database_is_away_and_no_full_disk(store, client, trouble, monkeypatch):
    real = Outbox.deliver

    def locked(self, events):
        if isinstance(events[0], End):
            trouble.begin(*BUSY)
        return real(self, events)

    monkeypatch.setattr(Outbox, "deliver", locked)
    run = write(store)
    assert run.waiting
    assert run.outage == "database is locked"
    trouble.end()
    monkeypatch.setattr(Outbox, "deliver", real)
    assert [sent.status for sent in tracking.sync(store)] == ["FINISHED"]
    assert client.get_run(run.id).info.status == "FINISHED"


def test_verbs_that_write_say_that_the_disk_is_full(store, client, trouble, say):
    place = client.get_experiment_by_name(EXPERIMENT).experiment_id
    dead, waiting = (Journal.claim(store.unfinished, "abc") for _ in range(2))
    host = os.uname().nodename
    client.create_run(place, tags={"scratch": str(dead.folder), "host": host})
    run_id = client.create_run(place).info.run_id
    waiting.append(Opened(run_id, store=store.uri))
    waiting.append(Params({"seed": "1"}))
    for each in (dead, waiting):
        each.release()
    trouble.begin(*FULL)
    for verb in ("heal", "sync"):
        code, said = say(verb, "--store", store.uri)
        assert code == 2
        assert f"the disk of the store {store.database} is full" in one_line(said)
    trouble.end()
    assert "KILLED" in say("heal", "--store", store.uri)[1]
    assert "1 event sent" in say("sync", "--store", store.uri)[1]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "a disk cannot be written: No space"),
        (OSError(errno.ENOSPC, "No space left", "a.csv"), "a.csv: No space left; make room"),
    ],
)
def test_a_full_disk_is_told_by_every_door(capsys, error, told):
    with pytest.raises(SystemExit) as ended, reported():
        raise error
    assert ended.value.code == 2
    assert one_line(capsys.readouterr().err).startswith(told)


def test_a_disk_without_room_for_temporary_files_is_told(capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/nowhere"])
    with pytest.raises(SystemExit), reported():
        tempfile.mkdtemp()
    said = one_line(capsys.readouterr().err)
    assert "/proc/nowhere" in said
    assert "TMPDIR" in said


# Databases of other versions


@pytest.fixture
def versioned(store, tmp_path):
    """Make a copy of the store whose schema is another one."""

    def make(revision: str, *dropped: str) -> Path:
        copy = tmp_path / f"{revision}.db"
        copy.write_bytes(store.database.read_bytes())
        with closing(sqlite3.connect(copy)) as connection:
            connection.execute("update alembic_version set version_num = ?", [revision])
            for table in dropped:
                connection.execute(f"drop table {table}")
            connection.commit()
        return copy

    return make


def test_a_database_of_an_older_mlflow_is_never_upgraded_unasked(versioned, say):
    """MLflow upgrades one that lacks a table, whoever only looks at it."""
    copy = versioned("c48cb773bb87", "inputs")
    before = copy.read_bytes()
    uri = f"sqlite:///{copy}"
    for verb in (["list"], ["heal"], ["ui"], ["report"], ["compare", "a", "b"]):
        code, said = say(*verb, "--store", uri)
        assert code == 2
        told = one_line(said)
        assert "was made by an older MLflow" in told
        assert told.endswith(f"make a copy of it and type: python -m mlflow db upgrade {uri}")
    for ask in (
        lambda place: place.open("x"),
        lambda place: tracking.load_model("runs:/abc/model", place, Path),
        lambda place: tracking.read_file(place, "abc", "x"),
    ):
        with pytest.raises(UserError, match="was made by an older MLflow"):
            ask(Store.locate(uri))
    assert copy.read_bytes() == before


def test_a_database_of_a_newer_mlflow_is_named_as_one(versioned, say):
    copy = versioned("feedfacecafe")
    before = copy.read_bytes()
    code, said = say("list", "--store", f"sqlite:///{copy}")
    assert code == 2
    assert "was made by a newer MLflow than" in one_line(said)
    assert "feedfacecafe" in said
    assert copy.read_bytes() == before


def test_looking_at_the_schema_makes_no_database(tmp_path):
    check_schema(Store.locate(f"sqlite:///{tmp_path}/mlflow.db", for_writing=False))
    assert not list(tmp_path.iterdir())


# What was deleted


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_a_run_that_is_deleted_while_it_goes_on_says_how_to_restore_it(store, client, what):
    from click.testing import CliRunner
    from mlflow.cli import cli

    ids = []

    def write() -> None:
        with tracking.start(store, EXPERIMENT, "x", {"config.hash": "abc"}) as run:
            run.wait_until_open()
            ids.append(run.id)
            if what == "run":
                client.delete_run(run.id)
            else:
                client.delete_experiment(run.experiment_id)
            run.metrics({"loss": 1.0}, step=1)

    with pytest.raises(UserError) as caught:
        write()
    said = str(caught.value)
    assert f"run {ids[0]} was deleted from the store" in said
    _, _, command = said.partition("restore it with ")
    command, _, rest = command.partition(" and repeat the command with resume=true")
    assert not rest
    where, *program = shlex.split(command)
    assert program[:3] == ["python", "-m", "mlflow"]
    done = CliRunner().invoke(cli, program[3:], env=dict([where.split("=", 1)]))
    assert done.exit_code == 0, done.output
    (folder,) = store.unfinished.iterdir()
    scratch = Journal.reclaim(folder)
    with tracking.start(store, EXPERIMENT, "x", {}, journal=scratch, run_id=ids[0]):
        pass
    found = client.get_run(ids[0])
    assert found.info.status == "FINISHED"
    assert found.data.metrics == {"loss": 1.0}
    assert not found.data.tags.get("failure")
    assert not folder.exists()


def test_an_experiment_that_was_deleted_is_named_by_every_door(store, client, say):
    place = client.get_experiment_by_name(EXPERIMENT).experiment_id
    sweep = tracking.SweepRun.open(store, EXPERIMENT, "sweep", {"sweep.hash": "x"}, resume=False)
    client.delete_experiment(place)
    command = f"python -m mlflow experiments restore --experiment-id {place}"
    for ask in (
        lambda: store.open(EXPERIMENT),
        lambda: sweep.members(),
        lambda: sweep.close("FAILED", "", {"a": 1.0}, store.unfinished / "none"),
    ):
        with pytest.raises(UserError) as caught:
            ask()
        assert command in str(caught.value)
    for verb in ("list", "report", "ui"):
        code, said = say(verb, "--store", store.uri, "--experiment", EXPERIMENT)
        assert code == 2
        assert command in one_line(said)
        assert "(--experiment second for `runs`)" in said


# A lock, for real


@pytest.mark.parametrize("of", ["run", "sweep", "sweep that goes on"])
def test_a_lock_at_the_beginning_is_told_once_and_outlasted(
    store, client, trouble, capsys, monkeypatch, of
):
    def begin() -> str:
        if of == "run":
            return write(store).id
        tags = {"sweep.hash": "x"}
        return tracking.SweepRun.open(store, EXPERIMENT, "x", tags, resume=True).id

    if of == "sweep that goes on":
        client.set_terminated(begin(), "FAILED")
    monkeypatch.setattr(failures, "ASK_AGAIN_SECONDS", 0.0)
    trouble.begin(*BUSY, times=3)
    opened = client.get_run(begin())
    assert capsys.readouterr().err == (
        f"The store {store.database} is locked by another program; waiting up to 2 min 00 s for "
        "it.\n"
    )
    (only,) = client.search_runs([opened.info.experiment_id])
    assert only.info.status == ("FINISHED" if of == "run" else "RUNNING")


def test_a_lock_that_stays_ends_the_command(store, trouble, monkeypatch):
    monkeypatch.setattr(failures, "LOCK_PATIENCE_SECONDS", 0.0)
    trouble.begin(*BUSY)
    with pytest.raises(UserError, match="is locked by another program: database is locked; end"):
        write(store)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["immediate", "exclusive"])
def test_a_database_that_another_program_locks_before_a_run_is_waited_for(doors, store, how):
    with closing(sqlite3.connect(store.database, isolation_level=None)) as other:
        other.execute(f"begin {how}")
        process = doors.start("run", store.database.parent, *QUICK)
        deadline = time.monotonic() + 120
        while "is locked by another program; waiting" not in process.err:
            assert process.running
            assert time.monotonic() < deadline
            time.sleep(0.1)
        other.execute("commit")
    assert process.code == 0, process.err
    assert len(process.err.splitlines()) == 1


@pytest.mark.slow
def test_a_database_that_another_program_locks_in_mid_run_has_it_all_in_the_end(store, client):
    """MLflow waits twenty seconds for a lock; the run does not wait for it."""
    with (
        closing(sqlite3.connect(store.database, isolation_level=None)) as other,
        tracking.start(store, EXPERIMENT, "x", {"config.hash": "abc"}) as run,
    ):
        run.wait_until_open()
        run._writer.submit(lambda: None).result()
        other.execute("begin exclusive")
        for step in range(1, 5):
            run.metrics({"loss": 1 / step}, step=step)
        run._writer.submit(lambda: None).result()
        assert run.outage == "database is locked"
        assert run.waiting
        other.execute("commit")
    assert not run.waiting
    assert client.get_run(run.id).info.status == "FINISHED"
    points = client.get_metric_history(run.id, "loss")
    assert [(point.step, point.value) for point in points] == [(n, 1 / n) for n in range(1, 5)]


# Folders


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["tracking=none", "tracking.uri=sqlite:///{}/mlflow.db"])
def test_a_sweep_works_in_a_folder_that_is_read_only(
    hydra_here, backend, real_data, tmp_path_factory, monkeypatch, capsys, kept
):
    mkdir, elsewhere = Path.mkdir, tmp_path_factory.mktemp("elsewhere")

    def read_only(folder: Path, *words, **options) -> None:
        if folder.absolute().is_relative_to(hydra_here) and not folder.is_dir():
            raise OSError(errno.EROFS, "Read-only file system", str(folder))
        mkdir(folder, *words, **options)

    monkeypatch.setattr(Path, "mkdir", read_only)
    words = ["run", "-m", "seed=0,1", *QUICK, "model.hidden_units=8", kept.format(elsewhere)]
    monkeypatch.setattr("sys.argv", words)
    main()
    assert "2 finished" in capsys.readouterr().out
    assert not list(hydra_here.iterdir())


def test_a_removed_working_folder_does_not_keep_a_store_elsewhere_from_taking_it_all(
    backend, store, client, tmp_path, monkeypatch
):
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with tracking.start(store, EXPERIMENT, "x", {"config.hash": "abc"}) as run:
        run.wait_until_open()
        here.rmdir()
        run.metrics({"loss": 1.0}, step=1)
        run.text("x", "notes.txt")
        run.model(model, ["a", "b"])
    found = client.get_run(run.id)
    assert found.info.status == "FINISHED"
    from fmnist_lab.models import saved

    assert tracking.load_model(f"runs:/{run.id}/model", store, saved.load)[1] == ("a", "b")


def test_a_store_that_is_removed_while_a_run_goes_on_is_told(store):
    def write() -> None:
        with tracking.start(store, EXPERIMENT, "x", {"config.hash": "abc"}) as run:
            run.wait_until_open()
            shutil.rmtree(store.database.parent)
            run.metrics({"loss": 1.0}, step=1)

    with pytest.raises(UserError) as caught:
        write()
    assert "something has removed it" in str(caught.value)
    assert not store.database.parent.exists()


def test_a_working_folder_that_is_gone_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    with pytest.raises(SystemExit), reported():
        Path.cwd()
    assert "working folder does not exist any more" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_who_may_write_into_a_new_store_is_as_the_umask_has_it(tmp_path, umask, mode, monkeypatch):
    from mlflow.store.tracking import sqlalchemy_store

    def make(uri: str, *_: object) -> SimpleNamespace:
        # As SQLite makes a file, which is the group's to read at the most.
        os.close(os.open(uri.removeprefix("sqlite:///"), os.O_CREAT, 0o644))
        return SimpleNamespace(engine=SimpleNamespace(dispose=lambda: None))

    monkeypatch.setattr(sqlalchemy_store, "SqlAlchemyStore", make)
    before = os.umask(umask)
    try:
        Store._create_database(tmp_path / "mlflow.db", tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / "mlflow.db").stat().st_mode & 0o777 == mode


def test_a_run_of_another_user_of_a_store_is_left_alone(store, client):
    """Its folder is private, so nobody else can tell whether it is alive."""
    scratch = Journal.claim(store.unfinished, "abc")
    place = client.get_experiment_by_name(EXPERIMENT).experiment_id
    tags = {"scratch": str(scratch.folder), "host": os.uname().nodename}
    run_id = client.create_run(place, tags=tags).info.run_id
    scratch.release()
    if os.getuid() == 0:
        os.seteuid(65534)
        try:
            assert is_live(scratch.folder)
        finally:
            os.seteuid(0)
    else:
        (scratch.folder / "lock").chmod(0)
        assert tracking.heal(store) == []
        assert client.get_run(run_id).info.status == "RUNNING"
