"""The verbs over runs that exist, against a real MLflow; no TensorFlow and no training."""

import json
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd
import pytest

from fmnist_lab import tracking
from fmnist_lab.runs.__main__ import app
from fmnist_lab.tracking import Store

EXPERIMENT = "fmnist_lab"
COMMAND = 'python -m fmnist_lab.run -m trainer.epochs=1,2 model.hidden_units=32,512 "seed=range(3)"'
SETTINGS = [(epochs, width) for epochs in (1, 2) for width in (32, 512)]


class Made:
    """A store with a sweep of twelve jobs, one of which failed, and a run of its own."""

    def __init__(self, folder):
        from mlflow import MlflowClient

        self.store = Store.locate(f"sqlite:///{folder}/mlflow.db")
        self.place = self.store.open(EXPERIMENT)
        self.client = MlflowClient(self.store.uri)
        self.sweep = self.run("epochs and widths", job="sweep", **{"sweep.command": COMMAND})
        self.jobs = [
            self.member(number, *setting, seed)
            for number, (setting, seed) in enumerate(
                (setting, seed) for setting in SETTINGS for seed in range(3)
            )
        ]
        self.failed = self.run(
            "h32 e2 s3",
            job="train",
            failure="out of memory",
            status="FAILED",
            **{tracking.member_tag(self.sweep): "12"},
        )
        self.alone = self.run("alone", job="train", curve=[0.5])

    def run(self, name, *, params=None, curve=(), status="FINISHED", right=None, **tags):
        run = self.client.create_run(self.place, run_name=name, tags=tags).info.run_id
        for key, value in (params or {}).items():
            self.client.log_param(run, key, value)
        for epoch, gap in enumerate(curve, 1):
            self.client.log_metric(run, "accuracy/gap", gap, step=epoch)
        if curve:
            self.client.log_metric(run, "accuracy/test", 0.9 - curve[-1], step=len(curve))
        self.client.set_terminated(run, status)
        return run

    def member(self, number, epochs, width, seed):
        return self.run(
            f"h{width} e{epochs} s{seed}",
            job="train",
            params={"seed": seed, "trainer.epochs": epochs, "model.hidden_units": width},
            curve=[0.01 * (epoch + width / 512 + seed / 10) for epoch in range(1, epochs + 1)],
            **{tracking.member_tag(self.sweep): str(number)},
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("made"))


@pytest.fixture
def say(made, capsys, monkeypatch, tmp_path):
    """Call a verb and return what it printed; the current folder is an empty one."""
    monkeypatch.chdir(tmp_path)

    def call(*words, code=0):
        with pytest.raises(SystemExit) as ended:
            app([*words, "--store", made.store.uri])
        said = capsys.readouterr()
        assert (ended.value.code or 0) == code, said.out + said.err
        return said.err if code else said.out

    return call


def test_list_shows_a_sweep_as_one_line_with_the_states_of_its_runs(say, made):
    lines = say("list").splitlines()
    (sweep,) = (line for line in lines if made.sweep in line)
    assert "FINISHED: 12 FINISHED, 1 FAILED" in sweep
    assert any(made.alone in line for line in lines)
    assert not any(job in line for job in made.jobs for line in lines)
    assert "The 13 runs of sweeps are not shown; --all shows them." in lines


def test_list_shows_a_sweeps_runs_below_it_in_the_order_of_the_jobs(say, made):
    lines = say("list", "--all").splitlines()
    ids = [line.split()[0] for line in lines[1:]]
    first = ids.index(made.sweep) + 1
    assert ids[first : first + 13] == [*made.jobs, made.failed]


def test_list_with_a_filter_shows_what_fits(say, made):
    ids = [
        line.split()[0]
        for line in say("list", "--filter", "attributes.status = 'FAILED'").splitlines()
    ]
    assert ids[1:] == [made.failed]


def test_a_report_on_a_sweep_is_of_its_runs_alone(say, made):
    said = say("report", made.sweep)
    rows = [line.split() for line in said.splitlines()]
    assert [row[:3] for row in rows[1:5]] == [
        [str(epochs), str(width), "3"] for epochs, width in SETTINGS
    ]
    assert "out of memory" in said
    assert "alone" not in said


@pytest.mark.parametrize("word", ["epochs and widths", "the beginning of its id"])
def test_a_sweep_may_be_named_by_its_name_or_the_beginning_of_its_id(say, made, word):
    named = made.sweep[:12] if "id" in word.split() else word
    assert say("report", named) == say("report", made.sweep)


def test_a_report_holds_every_run_and_the_sweeps_own_command(say, made, tmp_path):
    say("report", made.sweep, "--output", "out", "--axes", "trainer.epochs", "model.hidden_units")
    results = pd.read_csv(tmp_path / "out/results.csv").set_index("run_id")
    assert set(results.index) == {*made.jobs, made.failed}
    assert results["job_number"][made.jobs].tolist() == list(range(12))
    np.testing.assert_array_equal(
        results["accuracy/gap"][made.jobs[-1]], 0.01 * (2 + 512 / 512 + 2 / 10)
    )
    text = (tmp_path / "out/report.md").read_text()
    assert "# epochs and widths" in text
    assert COMMAND in text
    assert (tmp_path / "out/report.html").exists()


def test_a_report_on_single_runs_and_filters(say, made):
    said = say("report", made.jobs[0], made.jobs[3])
    assert [line.split()[:2] for line in said.splitlines()[1:3]] == [["32", "1"], ["512", "1"]]
    said = say("report", made.sweep, "--filter", "params.`trainer.epochs` = '2'")
    assert [line.split()[:2] for line in said.splitlines()[1:3]] == [["32", "3"], ["512", "3"]]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["report", "nobody"], "received 'nobody', which is no run in"),
        (["report", "alone", "--filter", "params.x = 'y'"], "no run of alone in"),
        (["report", "--filter", "nonsense"], "--filter: received"),
        (["list", "--experiment", "nowhere"], "experiment 'nowhere' is not in"),
    ],
)
def test_what_cannot_be_found_is_one_line(say, words, told):
    said = say(*words, code=2)
    assert said.startswith("error: ")
    assert told in said
    assert said.count("\n") == 1


def test_curves_of_a_resumed_run_hold_each_epoch_once(made):
    run = made.run("resumed", job="other", curve=[0.1, 0.2])
    made.client.log_metric(run, "accuracy/gap", 0.3, step=2, timestamp=2**42)
    made.client.log_metric(run, "accuracy/gap", 0.4, step=3)
    curves = tracking.curves(made.store, [run, made.jobs[-1]], "accuracy/gap")
    mine = curves[curves["run_id"] == run]
    assert mine["epoch"].tolist() == [1, 2, 3]
    assert mine["value"].tolist() == [0.1, 0.3, 0.4]
    assert (curves["run_id"] == made.jobs[-1]).sum() == 2
    made.client.delete_run(run)


def test_links_to_a_sweep_show_its_runs_and_compare_them(made):
    shown = tracking.links(made.store, EXPERIMENT, "epochs and widths")
    assert list(shown) == [
        "charts of its runs",
        "10 of them compared",
        "pictures of the first and the last",
        "sweep epochs and widths",
        "all runs",
    ]
    charts = parse_qs(urlsplit(shown["charts of its runs"]).fragment.partition("?")[2])
    assert charts["searchFilter"] == [tracking.members_of(made.sweep)]
    assert charts["compareRunsMode"] == ["CHART"]
    found, _ = tracking.find(made.store, EXPERIMENT, charts["searchFilter"][0])
    assert set(found["run_id"]) == {*made.jobs, made.failed}
    compared = parse_qs(urlsplit(shown["10 of them compared"]).fragment.partition("?")[2])
    some = json.loads(compared["runs"][0])
    assert len(set(some)) == 10
    assert [some[0], some[-1]] == [made.jobs[0], made.jobs[-1]]
    ends = parse_qs(
        urlsplit(shown["pictures of the first and the last"]).fragment.partition("?")[2]
    )
    assert json.loads(ends["runs"][0]) == [made.jobs[0], made.jobs[-1]]
    assert json.loads(compared["experiments"][0]) == [made.place]
