"""What a reader is told of simulated searches, and that it is neither more nor less than is so."""

import io
import json
import math
import re
import sys
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from rich.console import Console
from scipy import stats
from searched import COMMAND, RUNGS, SPACE, VALIDATED, WINNER, search

from fmnist_lab.errors import UserError
from fmnist_lab.studies import parallel, search_charts, search_findings, trials, vega
from fmnist_lab.studies import search as reports
from fmnist_lab.studies.importance import importances
from fmnist_lab.studies.search_marks import round_numbers

GAP = "accuracy/gap_validation"
BOTH = {VALIDATED: "maximize", GAP: "minimize"}


@pytest.fixture(scope="module")
def asha():
    return search()


@pytest.fixture(scope="module")
def halved(asha):
    return trials.take_apart(*asha)


@pytest.fixture(scope="module")
def plain():
    """A search for two objectives, without pruning."""
    return search(20, RUNGS[-1:], objectives=BOTH, finals=0)


@pytest.fixture(scope="module")
def written(asha, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    runs, curves, facts = asha
    runs = runs.assign(name=["</script><img src=x>", *runs["name"][1:]])
    files = reports.write(runs, curves, facts, folder, title="A search", command=COMMAND)
    return {file.name: file for file in files}


@pytest.fixture(scope="module")
def known(halved):
    """What mattered in the search."""
    return importances(halved)


def told(found, known=()):
    return " ".join(search_findings.findings(found, known))


def test_rungs_count_the_trials_that_came_to_them_and_the_epochs_they_took(asha, halved):
    _, curves, _ = asha
    epochs = curves[curves["metric"] == VALIDATED].groupby("run_id")["epoch"].max()
    assert [rung.epochs for rung in halved.rungs] == [1, 3, 9]
    assert [rung.trials for rung in halved.rungs] == [sum(epochs >= r) for r in RUNGS]
    assert [rung.promoted for rung in halved.rungs] == [sum(epochs > r) for r in RUNGS]
    assert [rung.paused for rung in halved.rungs] == [sum(epochs == 1), sum(epochs == 3), 0]
    assert sum(rung.spent for rung in halved.rungs) == epochs.sum()
    assert [rung.seconds for rung in halved.rungs] == pytest.approx([4.2, 12.6, 37.8])


def test_the_best_is_a_finished_trial_and_the_searchs_own_choice_counts(asha):
    runs, curves, facts = asha
    over = runs[(runs["role"] == "trial") & (runs["status"] == "FINISHED")]
    best = int(over.loc[over[VALIDATED].idxmax(), "trial"])
    assert trials.take_apart(runs, curves, facts | {"best": None}).best == best
    other = next(int(trial) for trial in over["trial"] if int(trial) != best)
    assert trials.take_apart(runs, curves, facts | {"best": other}).best == other
    # A paused trial may be ahead of a finished one at fewer epochs, by luck; it is no winner.
    ahead = runs.assign(**{VALIDATED: runs[VALIDATED].mask(runs["status"] == "SCHEDULED", 0.99)})
    assert trials.take_apart(ahead, curves, facts | {"best": None}).best == best
    losses = facts | {"objectives": {"loss/validation": "minimize"}, "best": None}
    lowest = int(over.loc[over["loss/validation"].idxmin(), "trial"])
    assert trials.take_apart(runs, curves, losses).best == lowest


def test_of_several_runs_of_a_trial_the_furthest_counts(asha):
    runs, curves, facts = asha
    lost = runs.iloc[[facts["best"]]].assign(run_id="f" * 32, status="KILLED")
    again = trials.take_apart(pd.concat([runs, lost]), curves, facts)
    assert again.row(facts["best"])["status"] == "FINISHED"
    assert len(again.trials) == 60


def test_finals_of_an_earlier_winner_do_not_count(asha, halved):
    runs, curves, facts = asha
    old = runs[runs["role"] == "final"].assign(trial="3", job_number=range(900, 905))
    both = trials.take_apart(pd.concat([runs, old], ignore_index=True), curves, facts)
    assert both.tested == halved.tested


def test_the_front_has_the_trials_that_no_other_beats(plain):
    runs, curves, facts = plain
    found = trials.take_apart(runs, curves, facts)
    points = {
        int(row["trial"]): (-row[VALIDATED], row[GAP])
        for row in runs.to_dict("records")
        if row["status"] == "FINISHED"
    }
    expected = {
        one
        for one, (x, y) in points.items()
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points.values())
    }
    assert set(found.front) == expected
    assert 1 < len(expected) < len(points)
    values = [points[trial][0] for trial in found.front]
    assert values == sorted(values)


def test_importance_finds_what_matters_from_trials_that_nothing_has_picked(halved, known, written):
    (found,) = known
    assert next(iter(found.shares)) == "optimizer.learning_rate"
    assert set(found.shares) == set(SPACE)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert (found.epochs, found.trials) == (1, 59)
    # Computed once more, with the same seed.
    again = pd.read_csv(written["importance.csv"], index_col="parameter")["share"]
    assert again.to_dict() == found.shares
    assert "mattered most: learning rate 97 % and hidden units 2 %" in told(halved, known)


def test_importance_of_few_trials_is_not_told():
    few = trials.take_apart(*search(7, failed=()))
    text = told(few, importances(few))
    assert "No importance of hyperparameters for validation accuracy: that takes 8" in text


def test_without_optuna_a_report_says_how_to_have_the_importance(halved, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "that takes Optuna: pip install 'fmnist_lab[search]'" in told(
        halved, importances(halved)
    )


def test_findings_tell_the_cost_the_best_and_the_finals_beside_it(asha, halved):
    runs, _, facts = asha
    text = told(halved)
    assert "60 trials: 6 FINISHED, 53 PAUSED, 1 FAILED." in text
    assert "135 epochs, 25 % of the 531 that they would have taken without pruning" in text
    assert "13 min 32 s on 2 workers" in text
    best = runs.iloc[facts["best"]][VALIDATED]
    assert f"Highest validation accuracy: {best:.4f} in trial {facts['best']}, with" in text
    assert "As the highest of 6 finished trials it looks better than it is." in text
    tests = runs[runs["role"] == "final"]["accuracy/test"]
    ends = stats.ttest_1samp(tests, 0).confidence_interval()
    half = (ends.high - ends.low) / 2
    assert "Trained 5 times on all training images" in text
    assert f"a test accuracy of {tests.mean():.4f} ± {half:.4f}" in text
    assert f"{best - tests.mean():.4f} below its validation accuracy in the search" in text


def test_a_winner_at_the_end_of_an_interval_is_remarked_on(asha):
    runs, curves, facts = asha
    text = runs.at[facts["best"], "trial_values"]
    values = json.loads(text) | {"optimizer.learning_rate": 0.0999, "model.hidden_units": 16}
    runs = runs.assign(trial_values=runs["trial_values"].replace(text, json.dumps(values)))
    said = told(trials.take_apart(runs, curves, facts))
    assert "learning rate (upper end) and hidden units (lower end)" in said


def test_a_search_that_goes_on_tells_what_there_is(asha):
    runs, curves, facts = asha
    trials_only = runs[runs["role"] == "trial"]
    going = trials_only.assign(status=trials_only["status"].replace("FINISHED", "RUNNING"))
    found = trials.take_apart(going, curves, facts | {"best": None, "n_trials": 90})
    text = told(found)
    assert "60 trials of 90 that were asked for: 53 PAUSED, 1 FAILED, 6 RUNNING." in text
    assert "No trial has finished yet" in text
    assert found.best is None
    assert not found.front
    assert reports.best_means(going, curves, facts | {"best": None}) == {}


def test_figures_of_the_parent_are_the_best_trials_and_the_finals(asha):
    runs, _, facts = asha
    finals = runs[runs["role"] == "final"]
    assert reports.best_means(*asha) == {
        VALIDATED: runs.at[facts["best"], VALIDATED],
        "accuracy/test": pytest.approx(finals["accuracy/test"].mean()),
        "accuracy/gap": pytest.approx(finals["accuracy/gap"].mean()),
    }


def test_every_figure_is_a_small_png_with_nothing_at_its_edges(written):
    names = {name for name in written if name.endswith(".png")}
    assert names == {
        *("history.png", "parallel_coordinates.png", "importance.png", "by_parameter.png"),
        *("trials_against_epochs.png", "finals.png"),
    }
    for name in names:
        png = written[name].read_bytes()
        assert len(png) < 300_000, name
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
        edges = [pixels[:6], pixels[-6:], pixels[:, :6], pixels[:, -6:]]
        assert min(edge.min() for edge in edges) == 255, f"{name} is cut off"


def test_the_page_is_small_needs_no_network_and_runs_nothing_of_a_store(written):
    page = written["report.html"].read_text()
    assert len(page) < 1_500_000
    assert "<img" not in page
    assert not re.search(r"""(?:src|href)=["']""", page)
    assert COMMAND in page
    assert WINNER in page
    text = written["report.md"].read_text()
    assert all(f"]({name})" in text for name in written if name != "report.md")


def test_files_for_programs_have_full_precision(asha, written):
    runs, _, facts = asha
    best = yaml.safe_load(written["best.yaml"].read_text())
    assert best["values"] == json.loads(runs.at[facts["best"], "trial_values"])
    assert best["search"] == {VALIDATED: runs.at[facts["best"], VALIDATED]}
    assert best["finals"]["accuracy/test"]["runs"] == 5
    assert best["command"] == WINNER
    table = pd.read_csv(written["trials.csv"])
    assert table[VALIDATED].equals(runs[runs["role"] == "trial"][VALIDATED])
    assert table["status"].value_counts().to_dict() == {"PAUSED": 53, "FINISHED": 6, "FAILED": 1}
    for key in SPACE:
        chosen = [json.loads(text)[key] for text in runs["trial_values"].dropna()]
        assert table[key].tolist() == chosen
    assert not any("test" in name for name in table)


def test_two_objectives_give_a_front_and_no_rungs(tmp_path):
    few = search(6, RUNGS[-1:], objectives=BOTH, finals=0, failed=())
    files = {f.name for f in reports.write(*few, tmp_path, title="Two", command=COMMAND)}
    assert {"pareto.csv", "pareto.png"} <= files
    assert not files & {"best.yaml", "rungs.csv", "finals.csv", "finals.png", "importance.png"}
    front = pd.read_csv(tmp_path / "pareto.csv")["trial"].tolist()
    assert front == list(trials.take_apart(*few).front)


def test_a_front_is_labelled_with_its_trials(plain):
    found = trials.take_apart(*plain)
    svg = ElementTree.fromstring(vega.svg(search_charts.front(found)))
    labels = [node.text for node in svg.iter() if (node.text or "").isdigit()]
    assert labels
    # Not all of them, as some would meet.
    assert {int(label) for label in labels} <= set(found.front)


def test_paused_trials_are_told_apart_from_finished_ones(halved):
    assert vega.svg(parallel.parallel(halved)).count("stroke-dasharray") == 53
    (panel,) = search_charts.history(halved)["hconcat"]
    _, hollow, filled, beyond, failed, ring = (
        (layer["mark"], layer["data"]["values"]) for layer in panel["layer"]
    )
    assert hollow[0]["filled"] is False
    assert filled[0]["filled"] is True
    assert {row["status"] for row in (*hollow[1], *beyond[1])} == {"PAUSED"}
    assert {row["status"] for row in filled[1]} == {"FINISHED"}
    assert [len(each[1]) for each in (filled, failed, ring)] == [6, 1, 1]
    assert len(hollow[1]) + len(beyond[1]) == 53
    # What a few bad trials do to the axis.
    low, high = panel["layer"][1]["encoding"]["y"]["scale"]["domain"]
    assert high - low < 0.4 < halved.trials[VALIDATED].max() - halved.trials[VALIDATED].min()


def test_scales_are_logarithmic_where_the_space_is(halved):
    kinds = {
        panel["layer"][0]["encoding"]["x"]["title"]: panel["layer"][0]["encoding"]["x"]["scale"]
        for panel in search_charts.slices(halved)["concat"]
    }
    assert [kinds[name]["type"] for name in ("Learning rate", "Hidden units", "Dropout")] == [
        *("log", "log", "linear")
    ]
    assert kinds["Batch size"]["domain"] == ["32", "64", "128", "256"]
    rate = halved.parameters[0]
    assert [rate.place(value) for value in (1e-4, 10**-2.5, 0.1)] == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("tag(log, interval(1e-4, 1e-1))", (1e-4, 0.1, True)),
        ("tag(log,int(interval(start=1,end=512)))", (1, 512, True)),
        ("int(interval(1, 8))", (1, 8, False)),
        ("tag(blog, interval(-1, .5))", (-1, 0.5, False)),
        ("tag(x, log, interval(0, 1))", (0, 1, False)),  # There is no logarithm of 0.
    ],
)
def test_intervals_are_read_as_hydra_has_them(text, ends):
    runs, curves, facts = search(3, failed=())
    chosen = [json.dumps({"a.b": value}) for value in (max(ends[0], 0.01), ends[1], ends[1])]
    runs = runs[runs["role"] == "trial"].assign(trial_values=chosen)
    (found,) = trials.take_apart(runs, curves, facts | {"space": {"a.b": text}}).parameters
    assert (found.low, found.high, found.is_log) == ends
    assert not found.levels


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"objectives": {}, "space": {}, "epochs": 1}'),
        '{"objectives": {"a": "up"}, "space": {}, "epochs": 1}',
        '{"objectives": {"a": "minimize"}, "space": {}, "epochs": 1, "rungs": [3, 1]}',
    ],
)
def test_damaged_facts_are_refused(text):
    with pytest.raises(UserError, match=r"the tag search\.facts of the search is damaged"):
        trials.facts_of(text)


def test_a_search_without_a_value_says_why(asha):
    runs, curves, facts = asha
    lost = runs.iloc[:3].assign(**{VALIDATED: math.nan}, status="FAILED", failure="no memory")
    with pytest.raises(UserError, match="none of 3 trials has a finite accuracy/validation yet"):
        trials.take_apart(lost, curves, facts)


def test_a_terminal_shows_the_best_trials_first_and_cuts_nothing(asha):
    shown = reports.terminal(*asha)
    for width in (70, 200):
        console = Console(width=width, file=io.StringIO())
        for each in shown:
            console.print(each)
        said = console.file.getvalue()
        assert "…" not in said
        rows = [line.split() for line in said.splitlines()]
        numbers = [row[0] for row in rows if len(row) > 3 and row[1] in ("FINISHED", "PAUSED")]
        assert numbers[0] == str(asha[2]["best"])
        assert len(numbers) == 5


def test_round_numbers_lie_within_their_ends():
    for low, high, is_log in ((0.003, 0.004, True), (1e-9, 1.0, True), (-3.0, 7e5, False)):
        found = round_numbers(low, high, is_log)
        assert 2 <= len(found) <= 12
        assert low <= found[0] < found[-1] <= high
