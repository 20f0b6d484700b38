"""No run in a store, whatever is wrong with it, costs more than a line: the others are all there.

FMNIST_LAB_SEED says which runs are generated, FMNIST_LAB_HOSTILE how many in the slow test; what is
wrong with a run, and its seed, is printed where it costs more.
"""

import contextlib
import io
import os
import re
from pathlib import Path

import pandas as pd
import pytest
from hostile import Healthy, Hostile
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fmnist_lab import config, tracking
from fmnist_lab.errors import UserError
from fmnist_lab.jobs import resume, train
from fmnist_lab.runs.__main__ import app
from fmnist_lab.training import runtime

SEED = int(os.environ["FMNIST_LAB_SEED"])  # set in conftest.py
FEW, MANY = 4, int(os.environ.get("FMNIST_LAB_HOSTILE", "100"))
# What a terminal acts on, or shows in another order than it is stored.
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        composed = compose("config", [])
    checked = config.validate(OmegaConf.to_container(composed, resolve=True))
    return Healthy(tmp_path_factory.mktemp("hostile"), checked)


@pytest.fixture
def untrained(monkeypatch):
    """Reproducing goes as far as it goes without TensorFlow."""

    def no_training(*_, **__):
        raise UserError("nothing is trained here")

    monkeypatch.setattr(train, "run", no_training)
    monkeypatch.setattr(runtime, "start", lambda *_, **__: runtime.Device("cpu", "cpu", 2))


@pytest.fixture
def victim(tmp_path):
    """A folder with a file in each place that a scratch folder has something."""
    folder = tmp_path / "victim"
    for name in ("tmp/x", "files/x", "checkpoints/x", "journal.jsonl", "x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    return folder


def say(*words: str) -> tuple[int, str]:
    """Call a verb; return its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            app(list(words))
        code = 0
    except SystemExit as end:
        code = end.code or 0
    said, error = out.getvalue(), err.getvalue()
    assert not CONTROL.search(said + error), ascii(said + error)
    if code == 2:
        assert re.fullmatch("error: [^\n]+\n", error), error
    else:
        assert (code in (0, 1), error) == (True, ""), (code, error)
    return code, said + error


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def try_all(healthy: Healthy, victim: Path, number: int, output: Path | None = None) -> None:
    """Call each verb on a store with one hostile run.

    Args:
        healthy: The store.
        victim: What the run points to, and nobody may touch.
        number: Of the hostile run.
        output: A folder for a whole report; None: none is written.
    """
    before = contents(victim)
    hostile = Hostile(healthy, f"{SEED} {number}", victim)
    at = "--store", healthy.store.uri
    writing = [] if output is None else ["--output", str(output)]
    try:
        code, said = say("list", "--all", *at)
        assert code == 0, said
        assert [run for run in healthy.ids if run not in said] == []
        for words in ((), (healthy.sweep, *writing)):
            code, said = say("report", *words, *at)
            assert code == 0, said
        if output is not None:
            rows = pd.read_csv(output / "results.csv", dtype=str, keep_default_na=False)
            assert set(healthy.jobs) <= set(rows["run_id"])
            for file in (*output.glob("*.csv"), output / "report.md"):
                assert not CONTROL.search(file.read_text()), file
        one, other = healthy.alone
        group = ("--a", *healthy.jobs, hostile.id, "--b", one, other)
        say("compare", *((one, hostile.id) if number % 2 else group), *at)
        say("reproduce", hostile.id, *at)
        tracking.links(healthy.store, "fmnist_lab", hostile.id)
        assert len(tracking.links(healthy.store, "fmnist_lab", healthy.sweep)) == 7
        say("sync", *at)
        code, said = say("heal", *at)
        assert code == 0, said
        resume.look_up(healthy.store, healthy.asked, None)
    except BaseException:
        print(f"FMNIST_LAB_SEED={SEED}, run {number}:", hostile)
        raise
    finally:
        healthy.remove(hostile.id)
    assert contents(victim) == before


@pytest.mark.slow
def test_a_hostile_run_costs_no_verb_more_than_a_line(healthy, victim, tmp_path, untrained):
    for number in range(FEW):
        output = tmp_path / "out" if number == 0 else None
        try_all(healthy, victim, number, output)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_of_many_hostile_runs_none_costs_more_than_a_line(
    healthy, victim, tmp_path, untrained, part
):
    for number in range(FEW + part, FEW + MANY, 5):
        output = tmp_path / "out" if number % 50 == 0 else None
        try_all(healthy, victim, number, output)
