"""What the tests share: a home of their own, the real data set, the doors as subprocesses."""

import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

SANDBOX = pytest.StashKey[tempfile.TemporaryDirectory]()
USERS_OWN = pytest.StashKey[dict[str, str | None]]()
REDIRECTED = ("KERAS_HOME", "FMNIST_LAB_CACHE")
CLEARED = ("MLFLOW_TRACKING_URI", "HYDRA_FULL_ERROR", "COLUMNS", "TF_XLA_FLAGS")

QUICK = ("data.train_limit=1000", "data.test_limit=500", "trainer.epochs=2")


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
    # The workers of pytest-xdist must agree on the names of the tests.
    os.environ.setdefault("FMNIST_LAB_SEED", str(random.randrange(10**6)))


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
    """An empty current folder where `fmnist_lab.run.main` can be called in this process.

    Hydra's set-up of logging is left out: it would close every handler of the process, and
    absl's (once a test has imported TensorFlow) closes pytest's own stream with it.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # put back afterwards, whatever main sets
    monkeypatch.setattr("hydra._internal.logging_config.configure_logging", lambda _: None)
    return tmp_path


@pytest.fixture(scope="session")
def backend():
    """TensorFlow, started in this process the way the doors start it."""
    from fmnist_lab import backend

    return backend.start()


def clean_environment() -> dict[str, str]:
    """Return the environment without what libraries add to it, and with usual buffering."""
    # JAX, where a library imports it, sets TensorFlow's log level.
    dropped = (*CLEARED, "PYTHONUNBUFFERED", "TF_CPP_MIN_LOG_LEVEL")
    return {name: value for name, value in os.environ.items() if name not in dropped}


class Process:
    """A door in a process of its own; both its streams go to files, as with `> out 2> err`."""

    def __init__(
        self,
        folder: Path,
        *words: str,
        env: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self._out = tempfile.TemporaryFile()  # noqa: SIM115
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [*prefix, sys.executable, *words],
            cwd=folder,
            env=clean_environment() | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
        )

    def wait(self, seconds: float = 300) -> int:
        return self._process.wait(seconds)

    @property
    def code(self) -> int:
        return self.wait()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def out(self) -> str:
        return self._read(self._out)

    @property
    def err(self) -> str:
        return self._read(self._err)

    @property
    def error(self) -> str:
        """What a failed process said: exactly one line, and nothing that a user cannot use."""
        assert self.code == 2, (self.code, self.out, self.err)
        return one_line(self.err)

    def kill(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def descendants(self) -> list[int]:
        """Return the processes that it has started, and theirs."""
        found, parents = [], [self._process.pid]
        while parents:
            file = Path(f"/proc/{(parent := parents.pop())}/task/{parent}/children")
            children = [int(each) for each in file.read_text().split()]
            found += children
            parents += children
        return found

    def stop(self) -> None:
        if self.running:
            # It may have processes of its own to end.
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._out.close()
        self._err.close()

    @staticmethod
    def _read(stream) -> str:
        # The child shares the file's position, so it must not be moved.
        return os.pread(stream.fileno(), 1 << 24, 0).decode()


def one_line(err: str) -> str:
    """Return an error message after checking that it is a single line and no traceback."""
    assert err.startswith("error: "), err
    assert err.endswith("\n"), err
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err.removeprefix("error: ").rstrip("\n")


class Doors:
    """The command lines, run in a folder."""

    def __init__(self) -> None:
        self.started: list[Process] = []

    def start(
        self, module: str, folder: Path, *words: str, prefix: Sequence[str] = (), **env: str
    ) -> Process:
        process = Process(folder, "-m", f"fmnist_lab.{module}", *words, env=env, prefix=prefix)
        self.started.append(process)
        return process

    def __call__(self, module: str, folder: Path, *words: str, **env: str) -> Process:
        process = self.start(module, folder, *words, **env)
        process.wait()
        return process

    def python(self, folder: Path, code: str, *words: str, **env: str) -> Process:
        process = Process(folder, "-c", code, *words, env=env)
        self.started.append(process)
        process.wait()
        return process


@pytest.fixture(scope="session")
def doors(real_data: Path) -> Iterator[Doors]:
    """Start the project's command lines; whatever is still running at the end is stopped."""
    opened = Doors()
    yield opened
    for process in opened.started:
        process.stop()
