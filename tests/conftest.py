"""What the tests share: a home of their own, the real data set, the doors as subprocesses."""

import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from doors import CLEARED, QUICK, Doors

if TYPE_CHECKING:
    # Whatever the tests import of the package is imported after its coverage is being measured.
    from tracked import First

SANDBOX = pytest.StashKey[tempfile.TemporaryDirectory]()
USERS_OWN = pytest.StashKey[dict[str, str | None]]()
REDIRECTED = ("KERAS_HOME", "FMNIST_LAB_CACHE")


def pytest_configure(config: pytest.Config) -> None:
    """Before anything imports Keras, which writes a file into its folder, move that folder."""
    sandbox = tempfile.TemporaryDirectory(prefix="fmnist_lab-tests-")
    config.stash[SANDBOX] = sandbox
    users_own = {name: os.environ.get(name) for name in (*REDIRECTED, *CLEARED)}
    # A worker of pytest-xdist is born with the first process' folders.
    config.stash[USERS_OWN] = getattr(config, "workerinput", {}).get("users_own", users_own)
    os.environ["KERAS_HOME"] = str(Path(sandbox.name, "keras"))
    os.environ["FMNIST_LAB_CACHE"] = str(Path(sandbox.name, "cache"))
    for name in CLEARED:
        os.environ.pop(name, None)
    # Ignored where a shell has put the tests into the background, and so by what they start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Ignored under nohup. A handler stays here; what is started begins with the default.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    # The workers of pytest-xdist must agree on the names of the tests.
    os.environ.setdefault("FMNIST_LAB_SEED", str(random.randrange(10**6)))
    measure_coverage(config)


def is_whole_suite(config: pytest.Config) -> bool:
    """Return whether all the default tests are run, as by `python -m pytest` alone."""
    option = config.option
    return (
        config.args_source is pytest.Config.ArgsSource.TESTPATHS
        and option.markexpr == "not slow and not cluster"
        and not (option.keyword or option.collectonly or option.deselect)
        and not (option.lf or option.stepwise)
        and not getattr(option, "no_cov", False)
    )


def measure_coverage(config: pytest.Config) -> None:
    """Start pytest-cov for the whole suite; of some of the tests, its figures say nothing."""
    worker = getattr(config, "workerinput", None)
    wanted = is_whole_suite(config) if worker is None else "cov_master_host" in worker
    plugins = config.pluginmanager
    if not wanted or not plugins.hasplugin("pytest_cov") or plugins.hasplugin("_cov"):
        return
    from pytest_cov.plugin import CovPlugin

    config.option.cov_source = ["fmnist_lab"]
    config.option.cov_report = {"term": "skip-covered"}
    # A worker starts when its session does.
    plugins.register(CovPlugin(config.option, plugins, start=worker is None), "_cov")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    """Tell a worker what the first process found before it moved the folders."""
    node.workerinput["users_own"] = node.config.stash[USERS_OWN]


def pytest_unconfigure(config: pytest.Config) -> None:
    for name, value in config.stash[USERS_OWN].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    config.stash[SANDBOX].cleanup()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Refuse a test that has fetched the real data without `real_data`, and undo it.

    In another order of the tests it would not be the one to fetch them, and its own messages, or
    the link that `real_data` makes for all others, would fail only now and then.
    """
    fetched = Path(item.config.stash[SANDBOX].name, "cache", "fashion-mnist")
    if fetched.is_dir() and not fetched.is_symlink():
        shutil.rmtree(fetched)
        pytest.fail("this test loads the real data: have it use `real_data`", pytrace=False)


def pytest_runtest_setup() -> None:
    """Once MLflow is imported, have it copy the tables of its first database into all others.

    It makes them by seventy migrations, which take 1.4 s of a processor each time.
    """
    utils = sys.modules.get("mlflow.store.db.utils")
    if utils is None or hasattr(utils._initialize_tables, "template"):
        return
    make_tables = utils._initialize_tables

    def copy_tables(engine) -> None:
        if engine.dialect.name != "sqlite":
            make_tables(engine)
            return
        with closing(sqlite3.connect(engine.url.database)) as database:
            if not copy_tables.template:
                make_tables(engine)
                copy_tables.template = database.serialize()
                return
            with closing(sqlite3.connect(":memory:")) as template:
                template.deserialize(copy_tables.template)
                template.backup(database)

    copy_tables.template = b""
    utils._initialize_tables = copy_tables


@pytest.fixture(scope="session")
def real_data(pytestconfig: pytest.Config) -> Path:
    """Folder with the four real, unpacked files, which every test finds in its cache as well.

    It is the user's own cache, filled on the first use; the tests' cache links to it.
    """
    from fmnist_lab import data

    with pytest.MonkeyPatch.context() as patch:
        for name in REDIRECTED:
            value = pytestconfig.stash[USERS_OWN][name]
            if value is None:
                patch.delenv(name)
            else:
                patch.setenv(name, value)
        folder = Path(data.load().source.removeprefix("cache "))
        if not folder.is_dir():  # just fetched
            folder = Path(data.load().source.removeprefix("cache "))
    link = Path(os.environ["FMNIST_LAB_CACHE"], folder.name)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(folder)
    return folder


@pytest.fixture
def hydra_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty current folder where `fmnist_lab.run.main` can be called in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it
    return tmp_path


@pytest.fixture(scope="session")
def backend():
    """TensorFlow, started in this process the way the doors start it."""
    from fmnist_lab.training import runtime

    return runtime.start()


@pytest.fixture(scope="session")
def fuse() -> None:
    """Skip where a lossy disk cannot be mounted: not Linux, no fuse3, or a closed container."""
    import lossy_mount

    if reason := lossy_mount.obstacle():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def doors(real_data: Path) -> Iterator[Doors]:
    """Start the project's command lines; whatever is still running at the end is stopped."""
    opened = Doors()
    yield opened
    for process in opened.started:
        process.stop()


@pytest.fixture(scope="session")
def tracked(doors: Doors, tmp_path_factory) -> "First":
    folder = tmp_path_factory.mktemp("tracked")
    from tracked import First

    process = doors("run", folder, *QUICK)
    assert process.code == 0, process.err
    return First(folder, process)


@pytest.fixture(scope="session")
def pixels(real_data):
    """The real data."""
    from fmnist_lab import data

    return data.load(real_data)


@pytest.fixture(scope="session")
def trained(backend, real_data, tmp_path_factory) -> "First":
    """The run of `tracked`, but made in this process, which costs a third."""
    folder = tmp_path_factory.mktemp("trained")
    from tracked import First, train_here

    train_here(folder, *QUICK)
    return First(folder, None)


@pytest.fixture
def door(hydra_here, capsys):
    from command_lines import Door

    return Door(capsys)
