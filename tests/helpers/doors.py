"""The command lines, each run in a process of its own."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

CLEARED = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"),
    *("HYDRA_FULL_ERROR", "COLUMNS", "TF_XLA_FLAGS"),
)

QUICK = ("data.train_limit=1000", "data.test_limit=500", "trainer.epochs=2")


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

    def wait(self, seconds: float = 900) -> int:
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

    def package(self, folder: Path, *words: str, door: str = "", **env: str) -> Process:
        """Run `python -m fmnist_lab`, or a door of it such as ".run"."""
        process = Process(folder, "-m", f"fmnist_lab{door}", *words, env=env)
        self.started.append(process)
        process.wait()
        return process

    def python(
        self, folder: Path, code: str, *words: str, prefix: Sequence[str] = (), **env: str
    ) -> Process:
        process = Process(folder, "-c", code, *words, env=env, prefix=prefix)
        self.started.append(process)
        process.wait()
        return process
