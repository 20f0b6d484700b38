"""The verbs over runs that exist, against a real MLflow; no TensorFlow and no training."""

import json
import re
import shutil
from urllib.parse import parse_qs, urlsplit

import hydra
import numpy as np
import pandas as pd
import pytest
from composing import composed
from searched import COMMAND as SEARCHED
from searched import VALIDATED, WINNER, keep, search

from fmnist_lab import compat, config, tracking
from fmnist_lab.benchmark.simulation import multiply
from fmnist_lab.config import naming
from fmnist_lab.runs.__main__ import app
from fmnist_lab.tracking import Store, listing, query

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
        self.sweep = self.run(
            "epochs and widths", job="sweep", **{"sweep.command": COMMAND, "sweep.jobs": "313"}
        )
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
            **{tracking.member_tag(self.sweep): "00012"},
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
            **{tracking.member_tag(self.sweep): f"{number:05d}"},
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
    assert "FINISHED: 12 of 13 finished, 1 failed" in sweep
    assert any(made.alone in line for line in lines)
    assert not any(job in line for job in made.jobs for line in lines)
    assert "The runs of sweeps are not shown; --all shows them." in lines


def test_list_shows_a_sweeps_runs_below_it_in_the_order_of_the_jobs(say, made):
    lines = say("list", "--all").splitlines()
    ids = [line.split()[0] for line in lines[1:]]
    first = ids.index(made.sweep) + 1
    assert ids[first : first + 13] == [*made.jobs, made.failed]


@pytest.mark.parametrize("words", [[], ["--all"], ["--where", "tags.job = 'train'"]])
def test_a_short_list_loads_few_of_many_runs(made, tmp_path, capsys, monkeypatch, words):
    from mlflow import MlflowClient

    store = Store.locate(f"sqlite:///{shutil.copy(made.store.database, tmp_path)}")
    settings = {"seed": list(range(300)), "model.hidden_units": [32]}
    multiply(store, made.jobs[0], made.sweep, settings)
    loaded, search = [], MlflowClient.search_runs

    def counted(*asked, **options):
        found = search(*asked, **options)
        loaded.extend(found)
        return found

    monkeypatch.setattr(MlflowClient, "search_runs", counted)
    with pytest.raises(SystemExit):
        app(["list", "--most", "5", "--store", store.uri, *words])
    assert len(loaded) < 150
    said = capsys.readouterr().out
    assert ("of 313 finished" in said) == (words != ["--where", "tags.job = 'train'"])
    assert "… and older ones; --most 10 lists more of them" in said or not words


def test_a_server_tells_the_same_of_a_sweep_up_to_a_page(made, monkeypatch):
    def asked():
        return tracking.sweep_summaries(made.store, EXPERIMENT, [made.sweep])[made.sweep]

    of_a_database = asked()
    assert of_a_database.states == {"FINISHED": 12, "FAILED": 1}
    monkeypatch.setattr(compat, "store_behind", lambda client: None)
    assert asked() == of_a_database
    monkeypatch.setattr(query, "PAGE", 5)
    short = asked()
    assert (short.states.total(), short.more, len(short.sample)) == (5, True, 6)


@pytest.mark.parametrize("number", [1, 3, 200])
def test_runs_of_no_sweep_that_is_there_are_listed_as_their_own(made, monkeypatch, number):
    """A run may have another tool's parent, or a sweep that was deleted."""
    monkeypatch.setattr(listing, "MOST_EXCLUDED", number)
    kept = [made.run(f"sweep {each}", job="sweep") for each in range(3)]
    gone, other = made.run("gone", job="sweep"), made.run("a project", job="")
    tags = [{tracking.member_tag(each): "00000"} for each in (*kept, gone)]
    runs = [made.run("job", job="train", **each) for each in tags]
    runs.append(made.run("child", job="train", **{"mlflow.parentRunId": other}))
    made.client.delete_run(gone)
    rows = list(tracking.own_rows(made.store, EXPERIMENT, "", 2))
    listed = {row["run_id"] for row in rows}
    assert len(rows) == len(listed)
    assert listed == {made.sweep, made.alone, *kept, other, runs[3], runs[4]}
    for each in (*kept, other, *runs):
        made.client.delete_run(each)


def test_list_with_a_filter_shows_what_fits(say, made):
    ids = [
        line.split()[0]
        for line in say("list", "--where", "attributes.status = 'FAILED'").splitlines()
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
    said = say("report", made.sweep, "--where", "params.`trainer.epochs` = '2'")
    assert [line.split()[:2] for line in said.splitlines()[1:3]] == [["32", "3"], ["512", "3"]]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["report", "nobody"], "received 'nobody', which is no run in"),
        (["report", "alone", "--where", "params.x = 'y'"], "no run of alone in"),
        (["report", "--where", "nonsense"], "--where: received"),
        (["list", "--experiment", "nowhere"], "experiment 'nowhere' is not in"),
    ],
)
def test_what_cannot_be_found_is_one_line(say, words, told):
    said = say(*words, code=2)
    assert said.startswith("error: ")
    assert told in said
    assert said.count("\n") == 1


@pytest.fixture(scope="module")
def kept(made):
    """A search in an experiment of its own: its parent's id, its runs, its facts."""
    runs, curves, facts = search(9, (1, 3), finals=2)
    place = made.store.open("searches")
    return keep(made.client, place, runs, curves, facts), runs, facts


def test_list_shows_a_search_as_one_line_with_the_validation_accuracy_of_its_best(say, kept):
    parent, runs, facts = kept
    lines = say("list", "--experiment", "searches").splitlines()
    (line,) = (line for line in lines if parent in line)
    assert f"{runs.at[facts['best'], VALIDATED]:.4f}" in line
    assert not any(f"t{number} " in line for number in range(9) for line in lines)
    assert any("its best trial, which looks better than it is" in line for line in lines)


def test_a_report_on_a_search_is_of_its_trials_and_its_winner(say, kept, tmp_path):
    parent, runs, facts = kept
    said = say("report", parent, "--output", "out", "--title", "Mine")
    assert "9 trials: 3 FINISHED, 5 PAUSED, 1 FAILED." in said
    assert f"{runs.at[facts['best'], VALIDATED]:.4f} in trial {facts['best']}, with" in said
    assert "Trained 2 times on all training images" in said
    assert f"  {WINNER}\n" in said
    text = (tmp_path / "out/report.md").read_text()
    assert text.startswith("# Mine")
    assert SEARCHED in text
    written = pd.read_csv(tmp_path / "out/trials.csv")
    assert written[VALIDATED].equals(runs[runs["role"] == "trial"][VALIDATED])
    assert (tmp_path / "out/parallel_coordinates.png").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["epochs and widths"], "received the search search with 1 more, expected a search by"),
        (["--axes", "model.dropout", "optimizer"], "--axes: received model.dropout, optimizer"),
    ],
)
def test_a_search_is_reported_by_itself(say, kept, more, told):
    assert told in say("report", kept[0], *more, code=2)


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
        "pictures of the first",
        "pictures of the last",
        "both, with pictures at the end",
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
    for which, job in (("first", made.jobs[0]), ("last", made.jobs[-1])):
        assert f"/runs/{job}/artifacts/confusion_matrix.png?" in shown[f"pictures of the {which}"]
    ends = parse_qs(urlsplit(shown["both, with pictures at the end"]).fragment.partition("?")[2])
    assert json.loads(ends["runs"][0]) == [made.jobs[0], made.jobs[-1]]
    assert json.loads(compared["experiments"][0]) == [made.place]


# A store with a run for each question of docs/questions.md, and with sweeps

QUESTIONS = [
    *("", "trainer.epochs=20", "model.hidden_units=512", "model.hidden_units=[256,128]"),
    *("optimizer=sgd optimizer.learning_rate=0.1", "optimizer._target_=keras.optimizers.Lion"),
    *("model.dropout=0.3", "model.batch_norm=true", "trainer.label_smoothing=0.1"),
    *("optimizer=adamw", "augmentation=flip"),
    "callbacks=early_stopping data.validation_fraction=0.1 trainer.epochs=50",
    *("schedule=one_cycle", "schedule=cosine schedule.warmup=0.1"),
    *("model=cnn", "model=resnet", "model=wide_resnet"),
    "model=own model._target_=patches.patches +model.units=32",
    *("data=idx data.name=shapes data.dir=shapes data.class_names=3", "debug=smoke"),
]
SWEPT = "sweep epochs 1,5 × hidden_units 32,512, sgd"  # noqa: RUF001


class Asked:
    """What the questions of docs/questions.md leave in a store, with results of our own making."""

    def __init__(self, folder):
        from mlflow import MlflowClient

        self.store = Store.locate(f"sqlite:///{folder}/mlflow.db")
        self.place = self.store.open(EXPERIMENT)
        self.client = MlflowClient(self.store.uri)
        self.results = {}
        with hydra.initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
            for number, words in enumerate(QUESTIONS):
                self.run(composed(words), 0.8 + number / 1000)
            sweep = self.log(
                SWEPT,
                {},
                {"sweep/best_mean/accuracy_test": 0.8765, "sweep/best_mean/accuracy_gap": 0.0321},
                job="sweep",
            )
            for number, (epochs, width) in enumerate(((1, 32), (1, 512), (5, 32), (5, 512))):
                words = f"optimizer=sgd trainer.epochs={epochs} model.hidden_units={width}"
                tags = {tracking.member_tag(sweep): str(number)}
                name = f"h{width} e{epochs}"
                self.run(composed(words), 0.7 + number / 1000, name=name, **tags)
        # As an earlier version named it.
        self.old = self.run(
            composed("model.dropout=0.4 optimizer.clipnorm=1"), 0.7654, name="h128 e5 s0"
        )
        # Of long ago.
        self.client.create_run(self.place, start_time=10**12, run_name="ancient", tags={"job": "x"})

    def run(self, asked, accuracy, *, name="", **tags):
        gap = accuracy / 20
        metrics = {"accuracy/test": accuracy, "accuracy/gap": gap, "loss/test": 1 - accuracy}
        metrics["loss/gap"] = 2 * gap
        if asked.data.validation_fraction:
            metrics["accuracy/validation"] = accuracy + 0.001
        name = name or naming.run_name(asked)
        self.results[name] = [f"{accuracy:.4f}", f"{gap:.4f}"]
        return self.log(name, naming.params(asked), metrics, job="train", **tags)

    def log(self, name, params, metrics, **tags):
        from mlflow.entities import Metric, Param

        run = self.client.create_run(self.place, run_name=name, tags=tags).info.run_id
        self.client.log_batch(
            run,
            metrics=[Metric(key, value, 0, 1) for key, value in metrics.items()],
            params=[Param(key, str(value)) for key, value in params.items()],
        )
        self.client.set_terminated(run, "FINISHED")
        return run


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    return Asked(tmp_path_factory.mktemp("asked"))


@pytest.fixture
def ask(asked, capsys, monkeypatch):
    """Call a verb on a terminal so wide, or in a pipe, and return what it printed."""

    def call(*words, columns=None, code=0):
        if columns is None:
            monkeypatch.delenv("COLUMNS", raising=False)
        else:
            monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as ended:
            app([*words, "--store", asked.store.uri])
        said = capsys.readouterr()
        assert (ended.value.code or 0) == code, said.out + said.err
        return said.err if code else said.out

    return call


@pytest.mark.parametrize("columns", [80, 100, 140, 200, None])
def test_a_list_of_runs_that_differ_in_everything_names_each_and_cuts_nothing(ask, asked, columns):
    said = ask("list", columns=columns)
    lines = said.splitlines()
    assert columns is None or max(map(len, lines)) <= columns
    assert "…" not in said.partition("The figures of a sweep")[0]
    start, end = (next(line.index(w) for line in lines if w in line) for w in ("name", "started"))
    words = " ".join(line[start:end].strip() for line in lines).split()
    runs = [name for name in asked.results if name.endswith(" s0")]  # The others are of the sweep.
    assert len(runs) == len(QUESTIONS)
    for name in runs:
        assert set(name.split()) <= set(words), name
        assert all(result in said for result in asked.results[name]), name
        assert columns or name in said
    assert {*SWEPT.split(), "dropout", "0.4,", "clipnorm"} <= set(words)
    assert "0.8765" in said
    assert "0.0321" in said
    assert re.search(r"\d{4}-\d\d-\d\d", said)


@pytest.mark.parametrize("columns", [20, 40])
def test_a_list_on_a_narrow_terminal_has_lines_for_each_run_and_cuts_nothing(ask, asked, columns):
    said = ask("list", columns=columns)
    assert "…" not in said
    assert max(map(len, said.splitlines())) <= columns
    blocks = [" ".join(each.split()) for each in re.split("(?m)^[0-9a-f]{8}  ", said)]
    runs = {name: values for name, values in asked.results.items() if name.endswith(" s0")}
    for name, (accuracy, gap) in runs.items():
        (block,) = (each for each in blocks if f"test accuracy {accuracy}, gap {gap}" in each)
        assert block.startswith(f"FINISHED {name} ")
    assert any(each.startswith(f"FINISHED: 4 runs {SWEPT} 20") for each in blocks)


def test_a_list_in_a_pipe_is_a_line_for_each_run(ask, asked):
    lines = ask("list", "--since", "1d").splitlines()
    assert len(lines) == 1 + len(QUESTIONS) + 1 + 1 + 2
    (sweep,) = (line for line in lines if SWEPT in line)
    # What all of its jobs have in common, and no more.
    assert "  optimizer sgd  " in sweep
    assert "FINISHED: 4 runs" in sweep


@pytest.mark.parametrize("columns", [80, 100, 140, None])
def test_a_report_on_runs_that_differ_in_everything_cuts_nothing(ask, asked, columns):
    said = ask("report", columns=columns)
    assert "…" not in said
    table = said.partition("The table tells")[0]
    for results in asked.results.values():
        assert all(result in table for result in results)
    # The runs were tested on different images, so none of them is the best.
    told = next(each for each in said.split("\n\n") if "tested on different images" in each)
    assert len(told) < 400
    assert "Highest" not in said


def test_a_column_that_says_nothing_is_left_out(ask, asked):
    header, *lines = ask("list", "--where", "params.optimizer = 'Adam'").splitlines()
    assert header.split("  ")[0] == "run"
    assert "state" not in header
    assert "The same in all rows: FINISHED." in lines
    # A sweep's state says how many runs it has.
    assert "state" in ask("list", "--since", "1d").splitlines()[0]
    # One row is the same as itself; and empty is what no row has.
    header, line, *_ = ask("list", "--where", "params.`model.dropout` = '0.4'").splitlines()
    assert "state" in header
    assert "FINISHED" in line
    assert "validation" not in header
    # A value that is left out of the table is not lost.
    twin = asked.log("twin", {}, {"accuracy/test": 0.7654}, job="train")
    said = ask("list", "--where", f"attributes.run_id IN ('{asked.old}', '{twin}')")
    asked.client.delete_run(twin)
    assert "test accuracy" not in said.splitlines()[0]
    assert "gap" in said.splitlines()[0]
    assert "The same in all rows: FINISHED, test accuracy 0.7654." in said


@pytest.mark.parametrize("columns", [40, 100, None])
def test_a_list_has_the_columns_that_are_asked_for(ask, asked, columns):
    words = ("name", "optimizer", "loss/test", "state", "duration", "seed")
    said = ask("list", "--since", "1d", "--columns", ",".join(words), columns=columns)
    assert columns is None or max(map(len, said.splitlines())) <= columns
    told = " ".join(said.split())
    assert all(word in told for word in ("SGD", "Lion", "FINISHED", "h512"))
    if columns is None:
        header, *lines = said.splitlines()
        assert tuple(header.split()) == words
        (line,) = (each for each in lines if each.startswith("h512 e5 s0  "))
        loss = 1 - float(asked.results["h512 e5 s0"][0])
        assert line.split()[3:6] == ["Adam", f"{loss:.4f}", "FINISHED"]
        # A sweep has the parameters that all its runs have, and the metrics of its best setting.
        (sweep,) = (each for each in lines if each.startswith(SWEPT))
        assert "  SGD  " in sweep
        assert "FINISHED: 4 runs" in sweep


def test_columns_of_sweeps_alone_and_of_ids(ask, asked):
    words = "--columns", "run, accuracy/test,test accuracy"
    header, line, *_ = ask("list", "--where", "tags.job = 'sweep'", *words).splitlines()
    assert header.split() == ["run", "accuracy/test"]
    assert re.fullmatch(r"[0-9a-f]{32} +0\.8765", line)
    header, line, *_ = ask("list", "--where", "tags.job = 'sweep'", *words, columns=80).splitlines()
    assert re.fullmatch(r"[0-9a-f]{8} +0\.8765 *", line)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--columns", "loss/tset"], "--columns: received loss/tset, which none of the"),
        (["--columns", "model.hiddenunits"], "did you mean model.hidden_units?"),
        (["--columns", "xyzzy"], "listed runs has; there are accuracy/gap, "),
        (["--columns", ""], "--columns: received '', expected names separated by commas, such as"),
        (["--columns", "name,,state"], "--columns: received 'name,,state', expected names"),
        (["--where", "nonsense"], "--where: received 'nonsense', which MLflow refuses: "),
        (["--where", "params.model = 'none'"], "fits the filter params.model = 'none'"),
    ],
)
def test_a_list_that_cannot_be_made_is_refused_in_a_sentence(ask, words, told):
    said = ask("list", *words, code=2)
    assert said.startswith("error: ")
    assert told in said
    assert said.count("\n") == 1


def test_since_takes_an_age_or_a_date(ask, asked):
    everything = ask("list", "--most", "99")
    assert "ancient" in everything
    for since in ("1d", "2 w", "2001-09-10", "2001-09-10 12:00"):
        assert "ancient" not in ask("list", "--since", since, "--most", "99")
    assert "ancient" in ask("list", "--since", "2001-09-08", "--most", "99")
    assert ask("report", "--since", "1d") == ask("report")
    said = ask("list", "--since", "yesterday", code=2)
    assert said.startswith("error: --since: received 'yesterday', expected how long ago or a date")
    assert said.count("\n") == 1
    assert "fits the filter attributes.start_time >= " in ask(
        "report", "--since", "2999-01-01", code=2
    )


def test_a_filter_and_since_have_to_fit_both(ask, asked):
    words = "--where", "params.`model.dropout` = '0.4'"
    assert asked.old in ask("list", *words, "--since", "1d")
    assert "no run" in ask("list", *words, "--since", "2999-01-01", code=2)
