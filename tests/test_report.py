"""What a reader is told of simulated studies, and that it is neither more nor less than is so."""

import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats
from simulated import NO_CURVES, simulate

from fmnist_lab.errors import UserError
from fmnist_lab.evaluation import statistics
from fmnist_lab.studies import report, writing
from fmnist_lab.studies.design import as_changes, heat_map_sides, one_at_a_time

COMMAND = 'python -m fmnist_lab.run -m trainer.epochs=1,5 "seed=range(3)"'


def printed(runs, width=130):
    console = Console(width=width, file=io.StringIO())
    console.print(report.terminal_table(runs))
    return console.file.getvalue()


def written(runs, curves, folder, **more):
    files = report.write(runs, curves, folder, title="A study", command=COMMAND, **more)
    return {file.name: file for file in files}


def with_parameters(**columns):
    """Finished runs, a seed each, with the given parameters."""
    count = len(next(iter(columns.values())))
    return pd.DataFrame(
        {
            "run_id": [f"{i:032x}" for i in range(count)],
            "name": [f"run {i}" for i in range(count)],
            "status": "FINISHED",
            "seed": [str(i) for i in range(count)],
            "accuracy/test": np.linspace(0.8, 0.9, count),
            "accuracy/gap": np.linspace(0.01, 0.02, count),
            **columns,
        }
    )


def with_failures():
    runs, curves = simulate(seeds=3)
    runs["failure"] = None
    runs.loc[0, ["status", "failure"]] = "FAILED", "out of memory:\n  [128, 784] | <b>"
    runs.loc[10, "status"] = "KILLED"
    runs.loc[20, "status"] = "RUNNING"
    runs.loc[30, "accuracy/gap"] = math.nan
    return runs, curves


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Runs with failures among them, and the files that were written of them."""
    runs, curves = with_failures()
    runs.loc[1, "name"] = "</script><img src=x>"
    return runs, curves, written(runs, curves, tmp_path_factory.mktemp("study"))


class Page(HTMLParser):
    """What a browser makes of a page: tags with their attributes, cells, texts at a pointer."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.tips, self.within = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if ("role", "graphics-symbol") in attributes and "aria-label" in dict(attributes):
            self.tips.append(dict(attributes)["aria-label"])
        self.within = tag

    def handle_endtag(self, tag):
        self.within = ""

    def handle_data(self, data):
        if self.within == "td":
            self.cells.append(data)


def test_varied_leaves_out_seeds_and_what_is_the_same():
    assert report.varied(simulate()[0]) == ["trainer.epochs", "model.hidden_units"]
    assert report.varied(simulate(epochs=(1,), widths=(8,))[0]) == []


def test_varied_puts_epochs_and_widths_first_and_choices_before_their_values():
    columns = {
        "augmentation.flip": ["True", "False"],
        "optimizer.learning_rate": ["0.1", "0.01"],
        "optimizer": ["SGD", "Adam"],
        "model.hidden_units": ["8", "16"],
        "trainer.epochs": ["1", "2"],
        "learning_rate": [0.1, 0.2],  # A metric.
        "images_per_second": [1.0, 2.0],
    }
    assert report.varied(with_parameters(**columns)) == [
        "trainer.epochs",
        "model.hidden_units",
        "optimizer",
        "augmentation.flip",
        "optimizer.learning_rate",
    ]


def test_the_same_value_as_text_or_number_does_not_vary():
    columns = {
        "trainer.epochs": ["5", 5, 5.0],
        "model.hidden_units": ["[128]", "128", [128]],
        "optimizer.learning_rate": ["0.001", "1e-3", 0.001],
    }
    assert report.varied(with_parameters(**columns)) == []


def test_what_an_option_brings_along_goes_without_saying():
    columns = {
        "optimizer": ["AdamW", "AdamW", "SGD"],
        "optimizer.weight_decay": ["0.004", "0.004", None],
    }
    assert report.varied(with_parameters(**columns)) == ["optimizer"]
    columns["optimizer.weight_decay"] = ["0.004", "0.1", None]
    assert report.varied(with_parameters(**columns)) == ["optimizer", "optimizer.weight_decay"]
    columns = {"optimizer": ["AdamW"] * 3, "optimizer.weight_decay": ["0.004", None, None]}
    assert report.varied(with_parameters(**columns)) == ["optimizer.weight_decay"]


def test_a_run_that_failed_before_it_had_parameters_varies_nothing():
    runs = simulate(epochs=(5,))[0]
    runs.loc[0, ["trainer.epochs", "trainer.batch_size", "model.hidden_units", "model"]] = None
    runs.loc[0, ["optimizer.learning_rate", "status"]] = None, "FAILED"
    assert report.varied(runs) == ["model.hidden_units"]


def test_summary_is_the_t_interval_of_each_setting_in_numeric_order():
    runs, _ = simulate(epochs=(10, 5, 1), widths=(512, 32, 128))
    summary = report.summarize(runs.sample(frac=1, random_state=1))
    settings = summary[["trainer.epochs", "model.hidden_units"]].to_numpy().tolist()
    assert settings == [[e, w] for e in (1, 5, 10) for w in (32, 128, 512)]
    chosen = runs[(runs["trainer.epochs"] == "5") & (runs["model.hidden_units"] == "128")]
    row = summary.iloc[4]
    for metric in ("accuracy/test", "accuracy/gap", "loss/test", "loss/gap"):
        values = chosen[metric]
        expected = stats.ttest_1samp(values, 0).confidence_interval()
        assert row[f"{metric}/mean"] == pytest.approx(values.mean())
        assert row[f"{metric}/low"] == pytest.approx(expected.low)
        assert row[f"{metric}/high"] == pytest.approx(expected.high)
    assert (summary["runs"] == 5).all()


def test_summary_of_lists_and_missing_parameters():
    runs = with_parameters(
        **{"model": ["mlp", "mlp", "cnn"], "model.hidden_units": ["128", "[256, 128]", math.nan]}
    )
    assert report.summarize(runs)["model.hidden_units"].tolist() == [128, (256, 128), None]


def test_means_are_over_finished_runs_that_were_measured():
    runs, _ = with_failures()
    study = report.take_apart(runs)
    assert len(study.used) == 32
    assert study.summary["runs"].sum() == 32
    assert [(run.status, run.reason) for run in study.unused] == [
        ("FAILED", "out of memory: [128, 784] | <b>"),
        ("KILLED", "no reason recorded"),
        ("RUNNING", "has not ended"),
        ("FINISHED", "has no accuracy/gap"),
    ]


def test_repeating_a_seed_does_not_narrow_the_interval():
    runs, _ = simulate(seeds=3, epochs=(5,))
    again = runs.assign(run_id=[f"{i + 100:032x}" for i in range(len(runs))])
    study = report.take_apart(pd.concat([runs, again], ignore_index=True))
    pd.testing.assert_frame_equal(study.summary, report.summarize(runs))
    assert len(study.unused) == len(runs)
    assert "repeats setting and seed of h32 e5 s0" in study.unused[0].reason


def test_a_diverged_loss_leaves_the_accuracy_alone():
    runs, _ = simulate(seeds=3, epochs=(5,), widths=(32,))
    runs.loc[0, "loss/test"] = math.inf
    row = report.summarize(runs).iloc[0]
    assert math.isnan(row["loss/test/mean"])
    assert not math.isnan(row["accuracy/test/low"])


def test_best_is_the_highest_mean_and_ties_are_all_there():
    runs = with_parameters(**{"trainer.epochs": ["1", "2", "3"]})
    assert report.best(report.summarize(runs))["trainer.epochs"].tolist() == [3]
    runs["accuracy/test"] = [0.9, 0.8, 0.9]
    assert report.best(report.summarize(runs))["trainer.epochs"].tolist() == [1, 3]


def test_nothing_finished_is_the_users_to_mend_and_says_why():
    runs = simulate(seeds=1)[0].assign(status="FAILED", failure="no data: set data.dir")
    for ask in (report.summarize, report.terminal_table):
        with pytest.raises(UserError, match=r"none of 12 runs finished.*no data: set data\.dir"):
            ask(runs)
    bare = runs[["run_id", "name", "status"]]
    with pytest.raises(UserError, match="none of 12 runs finished"):
        report.summarize(bare)
    with pytest.raises(UserError, match="no runs"):
        report.summarize(bare.iloc[:0])


def test_terminal_shows_means_with_half_widths_and_the_rest_with_reasons():
    runs, _ = with_failures()
    text = printed(runs)
    row = report.summarize(runs).iloc[-1]
    half = row["accuracy/test/high"] - row["accuracy/test/mean"]
    assert f"{row['accuracy/test/mean']:.4f} ± {half:.4f}" in text
    assert "36 runs: 1 FAILED, 33 FINISHED, 1 KILLED, 1 RUNNING; 32 in the means." in text
    assert "h32 e1 s0  FAILED  out of memory: [128, 784] | <b>" in text
    assert "it is no selection" in " ".join(text.split())


def test_one_seed_is_said_and_has_no_intervals():
    text = printed(simulate(seeds=1)[0])
    assert "One seed per setting: no intervals" in text
    assert "±" not in text
    assert "p = " not in text


def test_growth_of_the_gap_is_tested_in_pairs_of_seeds():
    runs, _ = simulate(epochs=(1, 20), widths=(32, 512))
    wide = runs[runs["model.hidden_units"] == "512"]
    late, early = (
        wide[wide["trainer.epochs"] == epochs]["accuracy/gap"].to_numpy() for epochs in ("20", "1")
    )
    expected = stats.ttest_rel(late, early).confidence_interval()
    sentence = report.findings(report.take_apart(runs))[3]
    assert sentence.startswith(
        "With hidden units 512: accuracy gap of epochs 20 is higher than that of epochs 1 by "
        f"{(late - early).mean():.4f} [{expected.low:.4f}, {expected.high:.4f}], p < 0.001 "
        "(paired t, 5 pairs of runs)"
    )


def test_no_difference_is_never_called_equal():
    runs, _ = simulate(epochs=(1, 20), widths=(32,))
    generator = np.random.default_rng(0)
    runs["accuracy/gap"] = generator.normal(0.02, 0.002, len(runs))
    text = " ".join(report.findings(report.take_apart(runs)))
    assert "No evidence of a difference in accuracy gap between epochs 20 and epochs 1" in text
    assert "equal" not in text


def test_gap_curves_are_of_the_longest_runs_and_end_where_the_first_of_them_does():
    runs, curves = simulate(seeds=3, epochs=(5, 20), widths=(32,))
    stopped = runs.iloc[-1]["run_id"]
    curves = curves[(curves["run_id"] != stopped) | (curves["epoch"] <= 12)]
    points = report.mean_curves(report.take_apart(runs), curves, "accuracy/gap")
    assert points["epoch"].tolist() == list(range(1, 13))
    assert set(points["runs"]) == {3}
    longest = runs[runs["trainer.epochs"] == "20"]["run_id"]
    at_seven = curves[
        curves["run_id"].isin(longest)
        & (curves["epoch"] == 7)
        & (curves["metric"] == "accuracy/gap")
    ]["value"]
    row = points.iloc[6]
    assert row["mean"] == pytest.approx(at_seven.mean())
    assert row["low"] == pytest.approx(stats.ttest_1samp(at_seven, 0).confidence_interval().low)


def test_gap_curves_of_single_epochs_are_nothing_to_draw():
    runs, curves = simulate(epochs=(1,))
    assert report.mean_curves(report.take_apart(runs), curves, "accuracy/gap").empty
    assert report.mean_curves(report.take_apart(runs), NO_CURVES, "accuracy/gap").empty


def test_axes_are_the_two_parameters_with_most_values_that_cross():
    grid = {"optimizer": ["Adam", "SGD"], "model.dropout": [0, 0.1, 0.2, 0.3, 0.4]}
    study = report.take_apart(simulate(1, **grid)[0])
    assert heat_map_sides(study, None) == ["trainer.epochs", "model.dropout"]
    # A learning rate for each width: nothing crosses, so there is no map.
    tied = with_parameters(
        **{
            "model.hidden_units": ["8", "16", "32"],
            "optimizer.learning_rate": ["0.1", "0.01", "0.001"],
        }
    )
    assert heat_map_sides(report.take_apart(tied), None) == ["model.hidden_units"]


def test_axes_may_be_chosen(tmp_path):
    runs, curves = simulate(1, (1, 2), (8, 16), optimizer=["Adam", "SGD"])
    files = written(runs, curves, tmp_path, axes=["optimizer", "trainer.epochs"])
    assert "Test accuracy by optimizer and epochs" in files["report.md"].read_text()
    with pytest.raises(UserError, match=r"received model\.dropout, optimizer; expected two"):
        written(runs, curves, tmp_path, axes=["model.dropout", "optimizer"])


def test_files_are_the_same_whatever_the_order_of_the_runs(study, tmp_path):
    runs, curves, one = study
    shuffled = runs.sample(frac=1, random_state=3)
    other = written(shuffled[shuffled.columns[::-1]], curves[::-1], tmp_path)
    assert list(one) == [
        "results.csv",
        "summary.csv",
        "curves.csv",
        "report.md",
        "report.html",
        "heat_map_accuracy.png",
        "heat_map_gap.png",
        "accuracy_against_epochs.png",
        "gap_against_epochs.png",
        "accuracy_against_gap.png",
    ]
    for name, file in one.items():
        assert file.read_bytes() == other[name].read_bytes(), name


def test_results_hold_every_run_bit_for_bit(study):
    runs, _, files = study
    results = pd.read_csv(files["results.csv"], dtype={"run_id": str})
    assert len(results) == 36
    assert list(results.columns[:3]) == ["name", "status", "seed"]
    assert results.columns[-1] == "run_id"
    back = results.set_index("run_id").loc[runs["run_id"], "accuracy/test"]
    assert back.tolist() == runs["accuracy/test"].tolist()


def test_curves_hold_the_mean_of_every_epoch(study):
    runs, curves, files = study
    kept = pd.read_csv(files["curves.csv"])
    assert list(kept.columns[:3]) == ["model.hidden_units", "epoch", "runs"]
    assert len(kept) == 3 * 20
    longest = runs[(runs["trainer.epochs"] == "20") & (runs["model.hidden_units"] == "32")]
    values = curves[curves["run_id"].isin(longest["run_id"]) & (curves["epoch"] == 7)]
    (row,) = kept[(kept["model.hidden_units"] == 32) & (kept["epoch"] == 7)].to_dict("records")
    for metric in ("accuracy/test", "accuracy/gap"):
        measured = values[values["metric"] == metric]["value"]
        interval = stats.ttest_1samp(measured, 0).confidence_interval()
        assert row[f"{metric}/mean"] == pytest.approx(measured.mean())
        assert row[f"{metric}/low"] == pytest.approx(interval.low)
        assert row[f"{metric}/high"] == pytest.approx(interval.high)


def test_lists_survive_the_csv():
    runs, _ = simulate(1, (1,), (8, (256, 128)))
    results = writing.plain(report._results(report.take_apart(runs)))
    assert results["model.hidden_units"].tolist() == [8, "[256, 128]"]
    assert report.varied(results) == ["model.hidden_units"]


def test_markdown_has_the_command_the_table_and_figures_that_exist(study):
    runs, _, files = study
    text = files["report.md"].read_text()
    assert text.startswith(f"# A study\n\n```\n{COMMAND}\n```\n")
    for name in files:
        if name.endswith(".png"):
            assert f"]({name})" in text
    row = report.summarize(runs).iloc[-1]
    half = row["accuracy/test/high"] - row["accuracy/test/mean"]
    assert f"| 20 | 512 | 3 | {row['accuracy/test/mean']:.4f} ± {half:.4f} |" in text
    assert r"| h32 e1 s0 | FAILED | out of memory: [128, 784] \| <b> |" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) == 2 + 12 + 2 + 4


def test_html_is_one_page_that_needs_no_other(study):
    text = study[2]["report.html"].read_text()
    assert len(text) < 1_500_000
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in ("img", "link", "iframe")]
    assert not [a for tag, a in page.tags if tag == "script" and "src" in a]
    used = [a[n] for _, a in page.tags for n in ("href", "xlink:href") if n in a]
    assert all(each.startswith("#") for each in used)
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]+"', "", text)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    assert {each[1:] for each in used if each[0] == "#"} <= set(ids)
    assert [a["aria-label"] for tag, a in page.tags if tag == "figure"] == [
        "Test accuracy by epochs and hidden units",
        "Accuracy gap by epochs and hidden units",
        "Test accuracy against epoch",
        "Accuracy gap against epoch",
        "Test accuracy against accuracy gap",
    ]
    assert "</script><img src=x>" in page.cells
    assert any("out of memory" in cell for cell in page.cells)
    assert page.cells.count("h128 e20 s1") == 1


def test_a_pointer_tells_the_settings_and_the_runs_of_the_page(study):
    runs, _, files = study
    page = Page(files["report.html"].read_text())
    row = report.summarize(runs).iloc[-1]
    half = row["accuracy/test/high"] - row["accuracy/test/mean"]
    mean = f"test accuracy {row['accuracy/test/mean']:.4f} ± {half:.4f}"
    assert f"epochs 20, hidden units 512\n{mean}" in page.tips
    assert [each for each in page.tips if each.startswith("h128 e20 s1\ntest accuracy 0.")]
    assert [each for each in page.tips if each.startswith("hidden units 32, epoch 7\n")]


@pytest.mark.parametrize(
    "shape",
    [
        {"seeds": 1, "epochs": (1,), "widths": (8,)},
        {"seeds": 4, "epochs": (3,), "widths": (8,)},
        {"seeds": 2, "epochs": (3,), "widths": (8, (16, 8))},
        {"seeds": 1, "epochs": (1, 2), "widths": (8, 16), "optimizer": ["Adam", "SGD"]},
    ],
)
def test_studies_of_all_shapes_are_written(shape, tmp_path):
    runs, curves = simulate(**shape)
    files = written(runs, curves if shape["seeds"] > 1 else NO_CURVES, tmp_path)
    assert all(file.stat().st_size for file in files.values())


def test_one_change_at_a_time_is_what_the_figures_are_by(tmp_path):
    grid = {"optimizer": ["Adam", "SGD"], "model.dropout": [0, 0.5]}
    runs, curves = simulate(2, (5, 20), (32,), **grid)
    changes = (
        (runs["trainer.epochs"] == "5").astype(int)
        + (runs["optimizer"] == "SGD")
        + (runs["model.dropout"].astype(str) == "0.5")
    )
    runs = runs[changes <= 1]
    study = report.take_apart(runs)
    common = one_at_a_time(study)
    assert common == {"trainer.epochs": 20, "optimizer": "Adam", "model.dropout": 0}
    changed = as_changes(study.summary, common)
    assert set(changed["change"]) == {"(none)", "epochs 5", "optimizer SGD", "dropout 0.5"}
    files = written(runs, curves, tmp_path)
    assert "by_parameter.png" in files
    assert "heat_map_gap.png" not in files
    assert one_at_a_time(report.take_apart(simulate(2, (5, 20), (32,), **grid)[0])) is None


def with_validation(seeds=3, **shape):
    """A study whose best setting by validation is another than by test accuracy."""
    runs, curves = simulate(seeds, **shape)
    runs["accuracy/validation"] = runs["accuracy/test"] - 0.1 * (runs["trainer.epochs"] == "20")
    runs["loss/validation"] = runs["loss/test"]
    mine = curves[curves["metric"] == "accuracy/test"].assign(metric="accuracy/validation")
    return runs, pd.concat([curves, mine], ignore_index=True)


def test_what_was_held_out_comes_first_and_decides(tmp_path):
    runs, curves = with_validation()
    text = " ".join(printed(runs, 200).split())
    assert text.startswith(
        "epochs hidden units runs validation accuracy test accuracy accuracy gap"
    )
    row = report.summarize(runs).set_index(["trainer.epochs", "model.hidden_units"]).loc[(10, 512)]
    cell = {
        metric: f"{row[f'{metric}/mean']:.4f} ± {row[f'{metric}/high'] - row[f'{metric}/mean']:.4f}"
        for metric in ("accuracy/validation", "accuracy/test")
    }
    assert (
        f"Highest mean validation accuracy: {cell['accuracy/validation']} with epochs 10, hidden "
        f"units 512. Its test accuracy, which had no say in this, is {cell['accuracy/test']}."
    ) in text
    assert "fitted to the test set" not in text
    files = written(runs, curves, tmp_path)
    assert list(files)[5:7] == ["heat_map_validation.png", "heat_map_accuracy.png"]
    assert "validation_against_epochs.png" in files
    assert "accuracy/validation/mean" in pd.read_csv(files["curves.csv"])
    assert "accuracy/validation/mean" in pd.read_csv(files["summary.csv"])
    assert "validation accuracy" in files["report.md"].read_text()
    assert Page(files["report.html"].read_text()).tips[0].startswith("epochs 1, hidden units 32\nv")


def test_where_only_some_settings_have_held_out_images_none_is_chosen_by_them(tmp_path):
    runs, curves = with_validation(epochs=(5, 10, 20), widths=(8,))
    runs.loc[runs["trainer.epochs"] == "5", ["accuracy/validation", "loss/validation"]] = math.nan
    text = " ".join(printed(runs).split())
    assert "Highest mean test accuracy: " in text
    assert "to choose one, use a validation split" in text
    assert "validation" in text.partition("36 runs")[0]
    written(runs, curves, tmp_path)
    plain = printed(simulate(2)[0])
    assert "alidation accuracy" not in plain


def mixed(count=12):
    """Runs of which each differs in a parameter of its own, one in two, as MLflow keeps them."""
    common = {f"group{place % 3}.parameter_{place}": ["0"] * count for place in range(count - 2)}
    for place, values in enumerate(common.values()):
        values[place] = "True" if place % 2 else "0.25"
    common["group0.parameter_0"][count - 2] = "0.125"
    common["group1.parameter_1"][count - 2] = None
    runs = with_parameters(**common)
    return runs.assign(seed="0", **{"loss/test": 0.5, "loss/gap": 0.01})


def test_a_narrow_terminal_shows_whole_accuracies_of_a_setting_and_says_what_it_leaves_out():
    """No parameter varies, so there are no differences to tell."""
    runs = with_parameters(a=["1", "1"]).assign(**{"loss/test": 0.5, "loss/gap": 0.1})
    text = printed(runs, 34)
    words = " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 34
    assert words.startswith("test accuracy runs accuracy gap 2 0.8500 0.0150 ± 0.6353 ± 0.0635")
    assert "The losses need a wider terminal" in words
    assert "most common values" not in words


@pytest.mark.parametrize("width", [60, 80, 100, 140, 300])
@pytest.mark.parametrize("runs", [mixed(), with_validation()[0], with_failures()[0]])
def test_results_are_never_cut(runs, width):
    text = printed(runs, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    study = report.take_apart(runs)
    for metric in ("accuracy/test", "accuracy/gap"):
        for mean in study.summary[f"{metric}/mean"]:
            assert f"{mean:.4f}" in text
    if "loss/test" in runs and width >= 100:
        assert f"{study.summary['loss/test/mean'].iloc[0]:.4f}" in text


def test_runs_that_differ_in_everything_are_told_by_their_differences(tmp_path):
    runs = mixed()
    text = " ".join(printed(runs, 100).split())
    assert "(none) 1 " in text
    assert "parameter 0 0.125, parameter 1 none 1 0." in text
    assert "parameter 3 true 1 0." in text
    assert "The table tells what differs from the most common values: parameter 0 0, " in text
    assert "0.9000 with the most common values of all 10 parameters." in text
    told = next(line for line in text.split(". ") if "Highest" in line)
    assert told.count(", ") <= 2
    files = written(runs, NO_CURVES, tmp_path)
    assert "| parameter 0 0.125, parameter 1 none | 1 | 0." in files["report.md"].read_text()
    assert "by_parameter.png" in files


def test_a_callback_that_one_run_has_is_told(tmp_path):
    columns = {
        "callbacks": [None, None, "early_stopping"],
        "data.validation_fraction": ["0.0", "0.0", "0.1"],
        "model.dropout": ["0.0", "0.5", "0.0"],
    }
    study = report.take_apart(with_parameters(**columns))
    assert study.parameters == ["callbacks", "data.validation_fraction", "model.dropout"]
    # The images that it needs are no change of their own.
    assert one_at_a_time(study) is not None


def test_the_work_grows_with_the_settings_and_no_faster(tmp_path, monkeypatch):
    intervals, quantile = [], statistics._t_quantile
    monkeypatch.setattr(
        statistics, "_t_quantile", lambda *each: (intervals.append(each), quantile(*each))[1]
    )
    counts = []
    for optimizers in ("ab", "abcdef"):
        intervals.clear()
        runs, curves = simulate(3, (1, 5), (8, 32), optimizer=list(optimizers))
        written(runs, curves, tmp_path / optimizers)
        counts.append(len(intervals))
    assert 0 < counts[0] <= counts[1] <= 3.2 * counts[0]


def test_the_page_of_five_hundred_runs_can_be_mailed(tmp_path):
    runs, curves = simulate(5, (1, 5, 10, 20, 40), (8, 32, 128, 512), optimizer=list("abcde"))
    assert len(runs) == 500
    files = written(runs, curves, tmp_path)
    assert files["report.html"].stat().st_size < 1_500_000


def test_a_number_of_threads_is_a_setting_only_where_a_sweep_varied_it():
    runs = with_parameters(
        **{"trainer.threads": ["1", "2", None], "trainer.epochs": ["5", "5", "9"]}
    )
    runs["sweeps"] = [{"a": 0}, {"b": 0}, {}]
    assert report.varied(runs) == ["trainer.epochs"]
    runs["sweeps"] = [{"a": 0}, {"a": 1}, {}]
    assert report.varied(runs) == ["trainer.epochs", "trainer.threads"]
    alone = runs.drop(columns="sweeps")
    assert "trainer.threads" in report.varied(alone)
    # The numbers of threads are kept, whether they tell settings apart or not.
    assert report._results(report.take_apart(runs))["trainer.threads"].tolist()[:2] == [1, 2]


def test_runs_that_were_tested_on_different_images_are_different_settings():
    columns = {"data.test_limit": ["100", None, "100"], "trainer.epochs": ["5", "5", "9"]}
    text = " ".join(printed(with_parameters(**columns)).split())
    assert "test images" in text
    assert " all " in text
    assert "Settings were tested on different images (test images)" in text
    assert "Highest mean" not in text
    # Data whose names and sizes are the same.
    assert report.varied(with_parameters(data_digest=["a" * 64, "b" * 64])) == ["data_digest"]
    # A worker that was lost early has left a run that knows no data.
    assert report.varied(with_parameters(seed=[0, 1], data_digest=["a" * 64, None])) == []
    digests = {"model": ["mlp"] * 2, "data_digest": ["a" * 64, "b" * 64]}
    explained = digests | {"data.train_limit": ["10", None]}
    assert report.varied(with_parameters(**explained)) == ["data.train_limit"]
    by_seed = digests | {"data.validation_fraction": ["0.1"] * 2}
    assert report.varied(with_parameters(**by_seed)) == []
