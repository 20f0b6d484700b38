"""Odd environments: no terminal or a poor one, no home, no time zone, files from Windows.

Every program is started that way, some oddities together where they do not hide each other.
"""

# ruff: noqa: RUF001
import fcntl
import os
import pty
import re
import shlex
import signal
import stat
import subprocess
import sys
import termios
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import matplotlib
import pytest
from doors import QUICK, Doors, Process, clean_environment

from fmnist_lab.data import sources
from fmnist_lab.system import cache, streams

SWEEP = ("-m", "seed=0,1", *QUICK)
# A user of whom only a number is known.
NOBODY = """if True:
    import pwd

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    pwd.getpwuid = unknown
"""


def through_shell(redirections: str, *unset: str) -> tuple[str, ...]:
    """Return the prefix of a command that a shell starts without variables and so redirected."""
    dropped = " ".join(f"-u {name}" for name in unset)
    return "sh", "-c", f'exec env {dropped} "$@" {redirections}', "sh"


def runs(folder: Path, experiment: str = "") -> dict[str, tuple[str, dict[str, str]]]:
    """Return what the store has: status and tags of each run by its name."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found = client.search_experiments()
    chosen = [each.experiment_id for each in found if experiment in ("", each.name)]
    return {
        run.info.run_name: (run.info.status, {**run.data.tags, "run_id": run.info.run_id})
        for run in client.search_runs(chosen)
    }


def statuses(folder: Path) -> dict[str, str]:
    """The runs' states by name; of a sweep's name, the first word."""
    states = {name: status for name, (status, _) in runs(folder).items()}
    return {"sweep" if name.startswith("sweep ") else name: states[name] for name in states}


# Streams

SHOWN = {
    "0.86 ± 0.01": "0.86 +- 0.01",
    "28 × 28": "28 x 28",
    "a – b — c − d": "a - b - c - d",
    "… and 3 more": "... and 3 more",
    "“so”, ‘so’": "\"so\", 'so'",
    "naïve Ångström Łódź": "naive Angstrom Lodz",
    "→ ≥ ·": "-> >= .",
    "衣服": "??",
    "\u2800\u2502": "??",
}


def test_what_an_encoding_lacks_is_shown_by_what_it_has():
    for text, shown in SHOWN.items():
        assert text.encode("ascii", streams.TRANSLITERATE).decode("ascii") == shown
    assert "±×é–".encode("latin-1", streams.TRANSLITERATE).decode("latin-1") == "±×é-"
    # A file name that is no text in this locale.
    assert os.fsdecode(b"caf\xe9").encode("utf-8", streams.TRANSLITERATE) == b"caf\xe9"
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("ascii", streams.TRANSLITERATE)


PRINTS = """if True:
    import logging, os, sys
    from fmnist_lab.system import process

    def main():
        for _ in range(3):
            print("28 × 28" * 5000, flush=True)
            print("a remark", file=sys.stderr)
        open(sys.argv[1], "w").write("done")
        # A file that is opened later is not the terminal's.
        assert min(os.open(sys.argv[1], os.O_RDONLY) for _ in range(3)) > 2

    process.run(main, keeps=bool(int(sys.argv[2])))"""
FULL = "standard output cannot be written: No space left on device"


@pytest.mark.parametrize(
    ("redirections", "keeps", "code", "said"),
    [
        (">&-", False, 0, "a remark\n" * 3),
        (">&- <&-", True, 0, "a remark\n" * 3),
        ("2>&- >&-", False, 0, ""),
        (">/dev/full", False, 2, "a remark\n" * 3 + f"error: {FULL}\n"),
        (">/dev/full", True, 0, "a remark\n" * 3 + f"{FULL}; the work went on without it\n"),
        ("2>/dev/full", False, 0, ""),
        (">/dev/full 2>/dev/full", False, 2, ""),
        ("| head -c 1 >/dev/null", False, 0, "a remark\n" * 3),
    ],
)
def test_the_work_goes_on_whatever_became_of_the_streams(tmp_path, redirections, keeps, code, said):
    command = [sys.executable, "-c", PRINTS, str(tmp_path / "work"), str(int(keeps))]
    shell = f"({shlex.join(command)} {{}}; echo $? > code) {{}}"
    # The shell's own descriptors are whole, so that it can make its file.
    pipe = redirections.startswith("|")
    shell = shell.format("" if pipe else redirections, redirections if pipe else "")
    ended = subprocess.run(
        ["sh", "-c", shell],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=clean_environment() | {"PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert (tmp_path / "work").read_text() == "done"
    assert int((tmp_path / "code").read_text()) == code
    assert ended.stderr == said


# A run


def keep_compiled(folder: Path) -> None:
    """Have a cache share compiled programs with the tests' own, which are half a minute's work."""
    folder.mkdir(mode=0o700, parents=True)
    for kind in ("native", "xla"):
        compiled = Path(os.environ["FMNIST_LAB_CACHE"], kind)
        compiled.mkdir(parents=True, exist_ok=True)
        (folder / kind).symlink_to(compiled)


@pytest.fixture
def nobody(tmp_path: Path, real_data: Path) -> dict[str, str]:
    """The environment of a user without a home, whose folder of temporary files has the data."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(NOBODY)
    home = tmp_path / f"tmp/fmnist_lab-{os.getuid()}"
    keep_compiled(home / ".cache/fmnist_lab")
    home.chmod(0o700)
    (home / ".cache/fmnist_lab" / real_data.name).symlink_to(real_data)
    path = os.pathsep.join(filter(None, [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    fonts = matplotlib.get_cachedir()
    return {"PYTHONPATH": path, "TMPDIR": str(tmp_path / "tmp"), "MPLCONFIGDIR": fonts}


MODEL = """\
import keras
from keras import layers

def small(image_shape, classes):
    return keras.Sequential([
        keras.Input(image_shape, dtype="uint8"),
        layers.Rescaling(1 / 255),
        layers.Flatten(),
        layers.Dense(classes, activation="softmax", dtype="float32"),
    ])
"""
CONFIG = """\
# @package _global_
defaults:
  - override /model: own
model:
  _target_: mine.small
name: "naïve"
"""
NO_VARIABLES = ("HOME", "FMNIST_LAB_CACHE", "KERAS_HOME", "XDG_CACHE_HOME", "LANG")


@pytest.mark.slow
def test_a_run_with_no_home_no_output_no_input_no_time_zone_and_files_from_windows(
    doors: Doors, tmp_path, nobody
):
    folder = tmp_path / "work"
    (folder / "conf/experiment").mkdir(parents=True)
    for file, text in {"conf/experiment/mine.yaml": CONFIG, "mine.py": MODEL}.items():
        windows = b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()
        (folder / file).write_bytes(windows)
    process = doors.start(
        "run",
        folder,
        *("experiment=mine", *QUICK, "--config-dir", "conf"),
        prefix=through_shell(">&- <&-", *NO_VARIABLES),
        **nobody,
        LC_ALL="C",
        PYTHONUTF8="0",
        TERM="dumb",
        TZ="Nowhere/At_All",
        MLFLOW_EXPERIMENT_NAME="thesis",
    )
    assert process.code == 0, process.err
    home = tmp_path / f"tmp/fmnist_lab-{os.getuid()}"
    assert process.err == (
        f"This user has no home folder; {home} serves as one, and for the cache. HOME or "
        "FMNIST_LAB_CACHE names another.\n"
    )
    ((name, (status, tags)),) = runs(folder, "thesis").items()
    assert (name, status) == ("naïve", "FINISHED")
    assert tags["mlflow.user"] == str(os.getuid())
    assert {each.name for each in folder.iterdir()} >= {"mlflow.db", "mlruns"}
    assert not (folder / "~").exists()


def test_a_config_that_is_not_utf_8_is_refused_in_one_line(doors: Doors, tmp_path):
    """As PowerShell writes it."""
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_text("seed: 3\n", encoding="utf-16")
    process = doors("run", tmp_path, "experiment=mine", "--config-dir", "conf", "--cfg", "job")
    assert process.error == (
        "a config file of yours is no text in UTF-8 (invalid start byte 0xff at 0); save it as "
        "UTF-8"
    )


@pytest.fixture(scope="module")
def swept(doors: Doors, tmp_path_factory) -> tuple[Path, Process]:
    """A sweep on a terminal of another age: ASCII, dumb, of 40 columns, its output in a file."""
    folder = tmp_path_factory.mktemp("swept")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "TERM": "dumb", "COLUMNS": "40", "TZ": ""}
    return folder, doors("run", folder, *SWEEP, **ascii_only)


@pytest.mark.slow
def test_a_sweep_under_an_ascii_locale_shows_something_sensible(swept):
    folder, process = swept
    assert (process.code, process.err) == (0, "")
    assert process.out.isascii()
    assert re.search(r"\+- 0\.\d{4}", process.out)
    assert statuses(folder) == {"sweep": "FINISHED", "s0": "FINISHED", "s1": "FINISHED"}
    (report,) = (folder / "mlruns").glob("**/report.md")
    assert "±" in report.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "verb"),
    [("runs", ("list", "--all")), ("predict", ("--index", "0"))],
)
def test_a_door_whose_work_is_its_output_says_that_it_is_lost(doors: Doors, swept, module, verb):
    folder, _ = swept
    process = doors.start(module, folder, *verb, prefix=through_shell(">/dev/full"))
    assert process.error == FULL


@pytest.mark.slow
def test_a_sweep_outlives_a_full_disk_behind_its_output_and_a_read_only_home(
    doors: Doors, tmp_path, real_data
):
    """On processes of its own. The home costs a line, and no list of fonts at each start."""
    home = tmp_path / f"tmp/fmnist_lab-{os.getuid()}"
    keep_compiled(home)
    (tmp_path / "keras/datasets").mkdir(parents=True)
    (tmp_path / "keras/datasets" / real_data.name).symlink_to(real_data)
    own = {
        "HOME": "/dev/null",
        "KERAS_HOME": str(tmp_path / "keras"),
        "TMPDIR": str(tmp_path / "tmp"),
    }
    unset = ("FMNIST_LAB_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    words = (*SWEEP, "hydra/launcher=local_cores")
    process = doors.start(
        "run", tmp_path, *words, prefix=through_shell(">/dev/full", *unset), **own
    )
    assert process.code == 0
    assert process.err == f"{FULL}; the work went on without it\n"
    assert statuses(tmp_path) == {"sweep": "FINISHED", "s0": "FINISHED", "s1": "FINISHED"}
    assert any(
        re.search(
            rf"The cache /dev/null/\S+ cannot be written \(.*\), so the data are kept in {home}/",
            log.read_text(encoding="utf-8"),
        )
        for log in (tmp_path / "mlruns").glob("**/log.txt")
    )
    again = doors.start(
        "predict", tmp_path, "--plot", "a.png", prefix=through_shell("", *unset), **own
    )
    assert (again.code, again.err) == (0, "")
    assert (home / "matplotlib").is_dir()


# A terminal that goes away


class Terminal:
    """A terminal with a program in it, whose window can be closed; its errors go to a file."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.window, inside = pty.openpty()
        self.errors = folder / "errors.txt"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fmnist_lab.run", *words],
                cwd=folder,
                env=clean_environment() | {"TERM": "xterm", "COLUMNS": "100"},
                stdin=inside,
                stdout=inside,
                stderr=errors,
                start_new_session=True,
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            )
        os.close(inside)
        self.shown = ""

    def wait_for(self, pattern: str) -> None:
        while not re.search(pattern, self.shown):
            self.shown += os.read(self.window, 65536).decode(errors="replace")

    def close(self) -> int:
        """Close the window; return the program's exit code."""
        os.close(self.window)
        return self.process.wait(120)


@contextmanager
def terminal(folder: Path, *words: str):
    opened = Terminal(folder, *words)
    try:
        yield opened
    finally:
        opened.process.kill()
        opened.process.wait()
        with suppress(OSError):
            os.close(opened.window)


@pytest.mark.slow
def test_a_run_whose_terminal_goes_away_is_killed_properly(doors, tmp_path):
    with terminal(tmp_path, *QUICK[:2], "trainer.epochs=9999") as opened:
        opened.wait_for(r" 2/9999 ")
        assert opened.close() == 128 + signal.SIGHUP
    said = opened.errors.read_text()
    assert "Traceback" not in said
    assert "and the model's exact state are kept. To go on from there:" in said
    assert said.rstrip().endswith("trainer.epochs=9999 resume=true")
    assert set(statuses(tmp_path).values()) == {"KILLED"}
    assert list((tmp_path / "mlruns/unfinished").glob("*/checkpoints/*"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "local_cores"])
def test_a_sweep_whose_terminal_goes_away_is_killed_properly(doors, tmp_path, launcher):
    words = ("-m", f"hydra/launcher={launcher}", "trainer.epochs=5000,5001", *QUICK[:2])
    with terminal(tmp_path, *words) as opened:
        opened.wait_for(r"epoch \d")
        assert opened.close() == 128 + signal.SIGHUP
    said = opened.errors.read_text()
    assert "Traceback" not in said
    assert re.search(r"finish it.* python -m fmnist_lab\.run .* resume=true\n", said)
    found = statuses(tmp_path)
    assert len(found) >= 2
    assert set(found.values()) == {"KILLED"}


@pytest.mark.slow
def test_under_nohup_a_run_goes_on(doors: Doors, tmp_path):
    process = doors.start("run", tmp_path, *QUICK, prefix=("nohup",))
    while "engine" not in process.out:  # the last line before the training
        assert process.running, process.err
        time.sleep(0.05)
    process.kill(signal.SIGHUP)
    assert process.code == 0
    assert set(statuses(tmp_path).values()) == {"FINISHED"}


# Homes and caches


def test_another_users_folder_does_not_serve_as_ours(tmp_path, monkeypatch):
    """Programs are run from there, and anybody can make a folder of that name."""
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = tmp_path / f"fmnist_lab-{os.getuid()}"
    find = cache.temporary_folder.__wrapped__
    assert find() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    assert find() is None
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    assert find() is None


def test_the_folder_among_temporary_files_serves_only_where_the_users_own_does_not(
    tmp_path, monkeypatch
):
    """Where it served once, files of that time are not read any more."""
    own, temporary = tmp_path / "cache/fmnist_lab", tmp_path / "temporary"
    monkeypatch.delenv("FMNIST_LAB_CACHE")
    monkeypatch.setattr(cache.platformdirs, "user_cache_path", lambda _: own)
    monkeypatch.setattr(cache, "temporary_folder", lambda: temporary)
    assert list(cache.folders()) == [own]
    own.mkdir(parents=True)
    assert list(cache.folders()) == [own]
    monkeypatch.setattr(cache.os, "access", lambda path, mode: mode != os.W_OK)
    assert list(cache.folders()) == [own, temporary]


# MLflow around us

PROJECT = """\
name: around
entry_points:
  main:
    command: "{python} -m fmnist_lab.run {words}"
"""


@pytest.mark.slow
def test_within_mlflow_run_a_run_is_a_child_in_the_same_experiment(doors: Doors, tmp_path):
    project = PROJECT.format(python=sys.executable, words=" ".join(QUICK))
    (tmp_path / "MLproject").write_text(project)
    words = ("-m", "mlflow", "run", ".", "--env-manager", "local", "--experiment-name", "outer")
    process = Process(tmp_path, *words, env={"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"})
    doors.started.append(process)
    assert process.code == 0, process.err
    found = runs(tmp_path, "outer")
    outer = next(tags["run_id"] for name, (_, tags) in found.items() if not name.startswith("h128"))
    assert len(found) == 2
    assert {status for status, _ in found.values()} == {"FINISHED"}
    assert found["h128 e2 train1000 test500 s0"][1]["mlflow.parentRunId"] == outer


def test_the_experiment_of_mlflows_variables_is_ours(tmp_path, monkeypatch):
    from fmnist_lab.errors import UserError
    from fmnist_lab.tracking import Store, experiment_name
    from fmnist_lab.tracking.client import client_of
    from fmnist_lab.tracking.store import surrounding_run

    store = Store.locate(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    assert experiment_name(store, None) == "fmnist_lab"  # there is no store yet
    number = store.open("other")
    assert experiment_name(store, "mine") == "mine"
    with pytest.raises(UserError, match=r"received '77', expected one of .*: .*\(other\)"):
        experiment_name(store, None)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
    assert experiment_name(store, None) == "other"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "named")
    assert experiment_name(store, None) == "named"

    client = client_of(store)
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)  # of another store
    assert surrounding_run(client) == {}
    run_id = client.create_run(number).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert surrounding_run(client) == {"mlflow.parentRunId": run_id}


def test_a_cache_in_memory_is_the_last_resort(tmp_path, monkeypatch, capsys):
    """Where nothing can be written at all."""
    from contextlib import ExitStack

    (tmp_path / "file").touch()
    tried: list[str] = []
    with ExitStack() as held:
        assert sources._hold(held, [tmp_path / "file/a", tmp_path / "file/b"], tried) is None
    assert len(tried) == 2
    assert "the data stay in memory for this once" in capsys.readouterr().err.replace("\n", " ")
