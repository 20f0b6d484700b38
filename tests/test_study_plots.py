"""Figures of simulated studies as a reader sees them."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from test_plots import assert_legible, png, words

from fmnist_lab import report, study_plots
from fmnist_lab.study import heat_map_sides
from fmnist_lab.study_plots import ordered, palette, short_names, shown

NO_CURVES = pd.DataFrame({"run_id": [], "epoch": [], "metric": [], "value": []})


def simulate(seeds=5, epochs=(1, 5, 10, 20), widths=(32, 128, 512), per_epoch=True, **grid):
    """Runs and curves that look like the tutorial's network, parameters as MLflow stores them.

    The gap grows with epochs and width, test accuracy saturates; a shorter run is the prefix of
    the longer one with its seed. `grid` is of further parameters and their values.
    """
    rows, curves = [], []
    settings = itertools.product(epochs, widths, *grid.values())
    for number, (setting, seed) in enumerate(itertools.product(settings, range(seeds))):
        last, width, *rest = setting
        size = float(np.log2(np.sum(width)))
        places = [
            list(values).index(value) for values, value in zip(grid.values(), rest, strict=True)
        ]
        generator = np.random.default_rng([seed, int(np.sum(width)), *places])
        step = np.arange(1, last + 1)
        noise = np.cumsum(generator.normal(0, 6e-4, max(epochs))) + generator.normal(0, 1e-3)
        gap = 0.0025 * size**1.35 * (step / 20) ** 0.75 + 0.004 * sum(places) + noise[:last]
        test = 0.8 + 0.011 * size - 0.09 / step**0.7 * (1.2 - size / 20) + noise[:last] / 2
        values = {
            "accuracy/test": test,
            "accuracy/train": test + gap,
            "accuracy/gap": gap,
            "loss/test": 1.1 - test * 0.85 + gap,
            "loss/train": 1.1 - test * 0.85 - 2 * gap,
            "loss/gap": 3 * gap,
        }
        layers = [width] if np.isscalar(width) else list(width)
        rows.append(
            {
                "run_id": f"{number:032x}",
                "name": f"h{'-'.join(map(str, layers))} e{last} s{seed}",
                "status": "FINISHED",
                "model": "mlp",
                "model.hidden_units": str(layers if len(layers) > 1 else layers[0]),
                "trainer.epochs": str(last),
                "trainer.batch_size": "32",
                "optimizer.learning_rate": "0.001",
                "seed": str(seed),
                **{name: str(value) for name, value in zip(grid, rest, strict=True)},
                **{name: series[-1] for name, series in values.items()},
            }
        )
        if per_epoch:
            curves += [
                (f"{number:032x}", epoch, name, value)
                for name, series in values.items()
                for epoch, value in zip(step, series, strict=True)
            ]
    return pd.DataFrame(rows), pd.DataFrame(curves, columns=list(NO_CURVES))


def figures_of(runs, curves=NO_CURVES):
    study = report.take_apart(runs)
    sides = heat_map_sides(study, None)
    points = {metric: report.mean_curves(study, curves, metric) for metric in report.CURVES}
    drawn = report._figures(study, sides, points)
    return {name: figure for name, (figure, _) in drawn.items()}


def heat_map(runs, metric="accuracy/gap"):
    summary = report.summarize(runs)
    x, y = "trainer.epochs", "model.hidden_units"
    return study_plots.heat_map(summary, x, y, metric, "Accuracy gap")


def cell_colours(figure):
    boxes = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]
    return boxes[0].get_facecolor()[:, :3]


LONG = "an_exceedingly_long_name_of_callbacks costing $3 and a_b, and another one"
STUDIES = {
    "wide": {"seeds": 2, "epochs": (1, 5, 40), "widths": (8, 16, 32, 64, 128, 256, 512, 1024)},
    "three optimizers": {"seeds": 2, "epochs": (1, 3), "optimizer": ["Adam", "SGD", "Lion"]},
    "one seed": {"seeds": 1},
    "lists": {"seeds": 2, "epochs": (1, 5), "widths": (128, (256, 128), (1024, 512, 256, 128))},
    "long names": {"seeds": 2, "epochs": (1, 5), "widths": (8,), "callbacks": ["", LONG, LONG * 2]},
    "width alone": {"seeds": 3, "epochs": (5,), "widths": (8, 64, 512)},
    "optimizer alone": {"seeds": 3, "epochs": (5,), "widths": (8,), "optimizer": ["Adam", LONG]},
    "seeds alone": {"seeds": 8, "epochs": (5,), "widths": (8,)},
    "one run": {"seeds": 1, "epochs": (1,), "widths": (8,)},
    "four parameters": {
        "seeds": 1,
        "epochs": (1, 2),
        "widths": (8, 16),
        "optimizer": ["Adam", "SGD"],
        "model.dropout": [0.0, 0.1, 0.2, 0.5],
    },
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", STUDIES)
def test_nothing_overlaps_or_leaves_the_page(name):
    for figure in figures_of(*simulate(**STUDIES[name])).values():
        assert_legible(figure)
        assert figure.axes[0].texts[0].get_weight() == "bold"  # The title.


def test_figures_are_small_pngs():
    for figure in figures_of(*simulate(seeds=2)).values():
        file = png(figure)
        assert file.startswith(b"\x89PNG\r\n")
        assert len(file) < 250_000


def test_values_are_ordered_as_numbers_not_as_texts():
    assert ordered([128, 32, (256, 128), 8, 32]) == [8, 32, 128, (256, 128)]
    assert ordered(["SGD", None, "Adam", 0.1]) == [0.1, "Adam", "SGD", None]


def test_values_are_shown_as_in_run_names():
    assert [shown(v) for v in (5, 0.001, 1e-5, (256, 128), "SGD", None)] == [
        "5",
        "0.001",
        "1e-05",
        "256-128",
        "SGD",
        "none",
    ]


def test_short_names_stay_apart():
    assert short_names(["trainer.epochs", "model.dropout", "data.dropout"]) == {
        "trainer.epochs": "epochs",
        "model.dropout": "model.dropout",
        "data.dropout": "data.dropout",
    }


def test_numbers_get_a_scale_from_light_to_dark_and_texts_distinct_colours():
    light = [sum(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in palette([1, 2, 3, 4])]
    assert light == sorted(light, reverse=True)
    assert palette(["Adam", "SGD"]) == [study_plots.BLUE, study_plots.RED]
    assert len(set(palette([str(i) for i in range(20)]))) == 20


def test_heat_map_shows_means_and_half_widths_with_epochs_across_and_widths_upwards():
    runs, _ = simulate(epochs=(1, 20), widths=(32, 512))
    summary = report.summarize(runs)
    figure = heat_map(runs)
    for _, row in summary.iterrows():
        assert f"{row['accuracy/gap/mean']:.4f}" in words(figure)
        half = row["accuracy/gap/high"] - row["accuracy/gap/mean"]
        assert f"± {half:.4f}" in words(figure)
    assert "Means of 5 runs, ± half their 95 % intervals (t)." in words(figure)
    place = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert place["1"][0] < place["20"][0]
    assert place["512"][1] < place["32"][1]  # Points are counted downwards.
    ink = 1 - cell_colours(figure).mean(axis=1)
    assert ink[0] < ink[1] < ink[3]  # h32 e1, h32 e20, h512 e20: the gap grows.


def test_one_seed_has_no_intervals_and_says_so():
    runs, curves = simulate(seeds=1)
    for figure in figures_of(runs, curves).values():
        assert any("One run a setting: no intervals." in text for text in words(figure))
        assert not any("±" in text for text in words(figure))


def test_a_missing_setting_leaves_an_empty_cell():
    runs, _ = simulate(seeds=1, epochs=(1, 20), widths=(32, 512))
    figure = heat_map(runs.iloc[:3])
    assert to_hex(cell_colours(figure)[3]) == "#f2f2f2"
    assert "nan" not in " ".join(words(figure))


def test_differences_that_are_mere_noise_do_not_fill_the_scale():
    runs, _ = simulate(seeds=1, epochs=(1, 20), widths=(32, 512))
    runs["accuracy/gap"] = [0.0200, 0.0201, 0.0200, 0.0202]
    assert np.ptp(cell_colours(heat_map(runs)), axis=0).max() < 0.1


def test_a_cell_over_other_parameters_is_their_mean_without_an_interval():
    runs, _ = simulate(epochs=(1, 20), widths=(32, 512), optimizer=["Adam", "SGD"])
    figure = heat_map(runs)
    chosen = (runs["trainer.epochs"] == "20") & (runs["model.hidden_units"] == "512")
    assert f"{runs[chosen]['accuracy/gap'].mean():.4f}" in words(figure)
    assert "Each cell is the mean over 2 settings of optimizer." in words(figure)
    assert not any("±" in text for text in words(figure))
    unequal = heat_map(runs[~chosen | (runs["optimizer"] == "SGD")])
    assert any("1 to 2 settings of optimizer, not the same" in text for text in words(unequal))


def test_writing_on_cells_contrasts_with_them():
    means = np.linspace(0, 0.1, 50)[None]
    for metric in study_plots.PAIR:
        colours = study_plots._cell_colors(means, metric)[0]
        linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
        ground = linear @ (0.2126, 0.7152, 0.0722)
        white = study_plots.inks(means, metric)[0] == "white"
        contrast = np.where(white, 1.05 / (ground + 0.05), (ground + 0.05) / 0.066)
        assert contrast.min() > 3.9


def test_a_large_grid_is_colour_alone():
    runs, _ = simulate(1, tuple(range(1, 27)), (8, 16), per_epoch=False)
    figure = heat_map(runs)
    assert_legible(figure)
    assert not any("0." in text for text in words(figure)[5:-2])


def test_gap_lines_end_where_their_labels_are_and_have_bands_over_seeds():
    figure = figures_of(*simulate(epochs=(1, 20)))["gap_against_epochs.png"]
    axes = figure.axes[1]
    assert [len(line.get_xdata()) for line in axes.lines] == [20, 20, 20]
    assert len(axes.collections) == 3
    labels = {text.get_text(): text.get_position()[1] for text in figure.axes[0].texts}
    assert labels["512"] < labels["128"] < labels["32"]
    assert axes.get_ylim()[0] <= 0


def test_accuracy_against_epochs_need_not_begin_at_0():
    figure = figures_of(*simulate(epochs=(1, 20)))["accuracy_against_epochs.png"]
    axes = figure.axes[1]
    assert [len(line.get_xdata()) for line in axes.lines] == [20, 20, 20]
    assert axes.get_ylim()[0] > 0.5
    assert "Test accuracy" in words(figure)


def test_gap_lines_of_more_parameters_are_in_panels():
    runs, curves = simulate(seeds=2, optimizer=["Adam", "SGD"])
    figure = figures_of(runs, curves)["gap_against_epochs.png"]
    assert {"optimizer Adam", "optimizer SGD"} <= set(words(figure))
    left, right = figure.axes[1:]
    assert left.get_ylim() == right.get_ylim()


def test_gap_lines_without_curves_join_settings_of_different_epochs():
    runs, _ = simulate(epochs=(1, 5, 20))
    figure = figures_of(runs)["gap_against_epochs.png"]
    assert [list(line.get_xdata()) for line in figure.axes[1].lines] == [[1, 5, 20]] * 3


def test_accuracy_against_gap_joins_epochs_and_has_bars_both_ways():
    figure = figures_of(*simulate())["accuracy_against_gap.png"]
    axes = figure.axes[1]
    assert any("Lines follow epochs from 1 to 20." in text for text in words(figure))
    for container in axes.containers:
        assert container.has_xerr
        assert container.has_yerr
        assert len(container.lines[0].get_xdata()) == 4
        gaps = container.lines[0].get_xdata()
        assert list(gaps) == sorted(gaps)


def test_widths_alone_are_on_a_logarithmic_axis_with_ticks_where_they_are():
    figure = figures_of(*simulate(epochs=(5,), widths=(8, 64, 512)))["by_parameter.png"]
    for axes in figure.axes[1:]:
        assert axes.get_xscale() == "log"
        assert list(axes.get_xticks()) == [8, 64, 512]


def test_a_random_search_is_points_without_lines():
    runs, _ = simulate(1, (5,), (32,), **{"model.dropout": list(range(40))})
    generator = np.random.default_rng(0)
    runs["optimizer.learning_rate"] = [str(x) for x in 10 ** generator.uniform(-4, -1, 40)]
    figures = figures_of(runs)
    assert_legible(figures["by_parameter.png"])
    container = figures["by_parameter.png"].axes[1].containers[0]
    assert container.lines[0].get_linewidth() == 0


def test_seeds_show_their_mean_and_interval():
    runs, _ = simulate(epochs=(5,), widths=(32,))
    figure = figures_of(runs)["runs.png"]
    row = report.summarize(runs).iloc[0]
    half = row["accuracy/test/high"] - row["accuracy/test/mean"]
    assert f"{row['accuracy/test/mean']:.4f} ± {half:.4f}" in words(figure)
    assert "seed 4" in words(figure)
