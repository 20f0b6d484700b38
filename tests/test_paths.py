"""The whole program where paths are odd, and the commands that it prints, pasted as they are."""

import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from doors import Doors, Process

WORST = '-it\'s 50% "u\u0308\u00fc" #1 +?&;[x]\n~ $HOME'
QUICK = ("data.train_limit=1000", "data.test_limit=500", "trainer.epochs=1")


def files(folder: Path) -> set[str]:
    """Return what is in a folder, but for what is in its own folders."""
    return {path.name for path in folder.iterdir()}


def good(process: Process) -> str:
    assert (process.code, process.err) == (0, ""), process.out
    return process.out


@pytest.fixture
def pasted(tmp_path):
    """Have a shell do a printed command in another folder; return what it prints."""
    started: list[Process] = []
    other = tmp_path / "other"
    other.mkdir()

    def paste(command: str, *, until: str = "") -> str:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        process = Process(other, prefix=("bash", "-c", f"exec {command}"), env={"PATH": path})
        started.append(process)
        if not until:
            return good(process)
        deadline = time.monotonic() + 120
        while until not in process.out and process.running and time.monotonic() < deadline:
            time.sleep(0.1)
        assert until in process.out, process.err
        process.kill(signal.SIGTERM)
        assert process.wait() == 143
        return process.out

    yield paste
    for process in started:
        process.stop()


def commands(out: str, program: str = "") -> list[str]:
    """Return the command lines that were printed, of a program if it is named."""
    return re.findall(rf"python -m fmnist_lab\.{program}.*", out)


@pytest.mark.slow
def test_a_folder_with_the_worst_of_names_does_for_everything(doors: Doors, tmp_path):
    here = tmp_path / "folders" / WORST
    here.mkdir(parents=True)
    first = good(doors("run", here, *QUICK))
    (run,) = re.findall("[0-9a-f]{32}", commands(first, "runs ui")[0])
    (name,) = re.findall("Run '(h128 e1 .*) s0'", first)
    assert f"Run '{name} s1'" in good(doors("run", here, *QUICK, "seed=1"))
    again = good(doors("run", here, *QUICK, "resume=true"))
    assert commands(again) == [f"python -m fmnist_lab.runs ui {run}"]
    assert run in good(doors("runs", here, "list"))
    assert "written to out" in good(doors("runs", here, "report", "--output", "out"))
    assert "One run a side" in good(doors("runs", here, "compare", f"{name} s0", f"{name} s1"))
    good(doors("predict", here, "--index", "0"))
    swept = good(doors("run", here, "-m", *QUICK, "model=linear", "seed=0,1", "resume=true"))
    assert "2 finished" in swept
    ui = doors.start("runs", here, "ui", run)
    while "Ctrl-C" not in ui.out and ui.running:
        time.sleep(0.1)
    ui.kill(signal.SIGTERM)
    assert ui.wait() == 143
    assert f"/runs/{run}?" in ui.out
    assert files(here) == {"mlflow.db", "mlruns", "out"}
    assert files(tmp_path / "folders") == {WORST}
    assert list((here / "mlruns/unfinished").iterdir()) == []


@pytest.mark.slow
def test_every_printed_command_works_as_printed_from_another_folder(doors: Doors, tmp_path, pasted):
    here, there = tmp_path / "here", tmp_path / WORST
    here.mkdir()
    there.mkdir()
    elsewhere = f"tracking.uri='sqlite:///{quote(str(there))}/other.db'"
    ran = good(doors("run", here, *QUICK, elsewhere))
    see, predict = commands(ran, "runs ui") + commands(ran, "predict")
    (run,) = re.findall("[0-9a-f]{32}", see)
    assert run in pasted(see, until="Ctrl-C stops it.")
    assert "test image 12" in pasted(predict)
    swept = good(doors("run", here, "-m", *QUICK, "model=linear", "seed=0,1", elsewhere))
    see, report = commands(swept, "runs ui") + commands(swept, "runs report")
    assert "charts of its runs" in pasted(see, until="Ctrl-C stops it.")
    assert "2 runs: 2 FINISHED" in pasted(report)
    again = commands(good(doors("run", here, *QUICK, elsewhere, "resume=true")))
    assert again == commands(ran, "runs ui")
    unknown = doors("runs", here, "compare", "x", "y", "--store", shlex.split(again[0])[-1])
    assert run in pasted(commands(unknown.error)[0].removesuffix(" shows them"))
    assert files(tmp_path) == {"here", "other", WORST}
    assert files(there) == {"other.db", "mlruns"}
    assert files(here) == {"mlruns"}
    assert files(tmp_path / "other") == {"report"}
