"""Charts of simulated studies as a reader sees them: their words, colours, and what they show."""

import io
import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from simulated import NO_CURVES, simulate

from fmnist_lab.studies import charts, heat_maps, report, vega
from fmnist_lab.studies.design import heat_map_sides
from fmnist_lab.studies.frames import ordered, short_names, shown


def figures_of(runs, curves=NO_CURVES):
    study = report.take_apart(runs)
    sides = heat_map_sides(study, None)
    points = {metric: report.mean_curves(study, curves, metric) for metric in report.CURVES}
    points = {
        metric: part for metric, part in points.items() if metric in charts.charted(study.summary)
    }
    figures, _ = report._figures(study, sides, points, is_chosen=False)
    return {figure.file: Drawn(figure.chart) for figure in figures}


def heat_map(runs, metric="accuracy/gap"):
    summary = report.summarize(runs)
    return Drawn(heat_maps.heat_map(summary, "trainer.epochs", "model.hidden_units", metric))


class Drawn:
    """A chart with what is on its SVG: texts, marks, and the texts at a pointer."""

    def __init__(self, chart):
        self.chart, self.svg = chart, vega.svg(chart)
        self.root = ElementTree.fromstring(self.svg)
        self.texts = [node for node in self.root.iter() if node.tag.endswith(("text", "tspan"))]
        self.words = [node.text.strip() for node in self.texts if node.text and node.text.strip()]
        self.marks = [
            node
            for group in self.root.iter()
            if "role-mark" in group.get("class", "").split()
            for node in group.iter()
            if "aria-label" in node.attrib
        ]
        self.tips = [mark.get("aria-label") for mark in self.marks]

    @property
    def note(self):
        return " ".join(" ".join(self.chart["title"]["subtitle"]).split())

    def lines(self):
        """The points of each line, in pixels."""
        groups = [g for g in self.root.iter() if "mark-line" in g.get("class", "").split()]
        found = [node.get("d") for group in groups for node in group.iter() if node.get("d")]
        return [len(re.findall("[ML]", path)) for path in found]


def colour(text):
    if text.startswith("#"):
        return tuple(int(text[place : place + 2], 16) for place in (1, 3, 5))
    return tuple(map(int, re.findall(r"\d+", text)[:3]))


def shades(drawn):
    """How dark each of a heat map's cells is, from 0 for white to 1."""
    return [1 - np.mean(colour(mark.get("fill"))) / 255 for mark in drawn.marks]


LONG = "an_exceedingly_long_name_of_callbacks costing $3 and a_b, and another one"
STUDIES = {
    "wide": {"seeds": 2, "epochs": (1, 5, 40), "widths": (8, 16, 32, 64, 128, 256, 512, 1024)},
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


@pytest.mark.parametrize("name", STUDIES)
def test_every_figure_is_a_small_png_with_nothing_at_its_edges(name):
    for file, drawn in figures_of(*simulate(**STUDIES[name])).items():
        png = vega.png(drawn.svg)
        assert len(png) < 400_000, file
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
        edges = np.concatenate(
            [pixels[:6].flat, pixels[-6:].flat, pixels[:, :6].flat, pixels[:, -6:].flat]
        )
        assert edges.min() == 255, f"{file} is cut off"
        inner = pixels[pixels.shape[0] // 3 :]
        assert (inner < 200).mean() > 0.001, f"{file} is empty"
        assert drawn.tips, file
        assert not any("nan" in text or "undefined" in text for text in [*drawn.words, *drawn.tips])


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


def legend(drawn):
    """Colours of the legend by its labels."""
    group = next(g for g in drawn.root.iter() if "role-legend" in g.get("class", "").split())
    texts = [node.text for node in group.iter() if node.tag.endswith("text")]
    symbols = [
        node.get("fill")
        for part in group.iter()
        if "role-legend-symbol" in part.get("class", "").split()
        for node in part.iter()
        if node.tag.endswith("path") and node.get("fill")
    ]
    labels = [text for text in texts if text not in ("hidden units", "optimizer", "callbacks")]
    return dict(zip(labels, map(colour, symbols), strict=True))


def test_numbers_get_colours_from_light_to_dark_and_texts_distinct_ones():
    widths = legend(figures_of(*simulate(2))["gap_against_epochs.png"])
    assert list(widths) == ["512", "128", "32"]
    light = [sum(each) for each in widths.values()]
    assert light == sorted(light)
    runs, curves = simulate(2, (1, 3), (8,), optimizer=["Adam", "SGD"])
    optimizers = legend(figures_of(runs, curves)["gap_against_epochs.png"])
    assert optimizers == {"Adam": colour(vega.BLUE), "SGD": colour(vega.RED)}


def test_long_names_keep_labels_and_colours_of_their_own():
    shape = STUDIES["long names"]
    labels = legend(figures_of(*simulate(**shape))["accuracy_against_epochs.png"])
    assert len(labels) == 3
    assert len(set(labels.values())) == 3


def test_heat_map_shows_means_and_half_widths_with_epochs_across_and_widths_upwards():
    runs, _ = simulate(epochs=(1, 20), widths=(32, 512))
    summary = report.summarize(runs)
    drawn = heat_map(runs)
    for _, row in summary.iterrows():
        assert f"{row['accuracy/gap/mean']:.4f}" in drawn.words
        half = row["accuracy/gap/high"] - row["accuracy/gap/mean"]
        assert f"± {half:.4f}" in drawn.words
    assert drawn.note == "Means of 5 runs, ± half their 95 % intervals (t)."
    (cells,) = drawn.chart["hconcat"]
    assert cells["encoding"]["x"]["scale"]["domain"] == ["1", "20"]
    assert cells["encoding"]["y"]["scale"]["domain"] == ["512", "32"]  # From the top downwards.
    ink = shades(drawn)
    assert ink[0] < ink[2] < ink[3]  # h32 e1, h32 e20, h512 e20: the gap grows.


def test_one_seed_has_no_intervals_and_says_so():
    for drawn in figures_of(*simulate(seeds=1)).values():
        assert "One run per setting: no intervals." in drawn.note
        assert not any("±" in text for text in [*drawn.words, *drawn.tips])


def test_a_missing_setting_leaves_a_hole():
    runs, _ = simulate(seeds=1, epochs=(1, 20), widths=(32, 512))
    assert len(heat_map(runs).marks) == 4
    assert len(heat_map(runs.iloc[:3]).marks) == 3


def test_differences_that_are_mere_noise_do_not_fill_the_scale():
    runs, _ = simulate(seeds=1, epochs=(1, 20), widths=(32, 512))
    runs["accuracy/gap"] = [0.0200, 0.0201, 0.0200, 0.0202]
    assert np.ptp(shades(heat_map(runs))) < 0.1


def test_a_cell_over_other_parameters_is_their_mean_without_an_interval():
    runs, _ = simulate(epochs=(1, 20), widths=(32, 512), optimizer=["Adam", "SGD"])
    drawn = heat_map(runs)
    chosen = (runs["trainer.epochs"] == "20") & (runs["model.hidden_units"] == "512")
    assert f"{runs[chosen]['accuracy/gap'].mean():.4f}" in drawn.words
    assert "Each cell is the mean over 2 settings of optimizer." in drawn.note
    assert not any("±" in text for text in drawn.words)
    unequal = heat_map(runs[~chosen | (runs["optimizer"] == "SGD")])
    assert "1 to 2 settings of optimizer, not the same" in unequal.note


@pytest.mark.parametrize("column", ["data.test_limit", "data_digest"])
def test_settings_with_different_test_images_share_no_cell(column):
    runs, _ = simulate(2, (1, 20), (32, 512), **{column: ["a", "b"]})
    if column == "data.test_limit":
        runs[column] = runs[column].map({"a": "100", "b": None})
    drawn = heat_map(runs)
    assert len(drawn.marks) == 8
    assert "Means of 2 runs" in drawn.note
    heads = (
        {"test images 100", "test images all"}
        if "limit" in column
        else {"data digest a", "data digest b"}
    )
    assert heads <= set(drawn.words)


def test_writing_on_cells_contrasts_with_them():
    def luminance(red, green, blue):
        linear = [
            each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4
            for each in (red / 255, green / 255, blue / 255)
        ]
        return np.dot(linear, (0.2126, 0.7152, 0.0722))

    runs, _ = simulate(1, tuple(range(1, 20)), (8, 512), per_epoch=False)
    runs["accuracy/validation"] = runs["accuracy/test"]
    for metric in ("accuracy/validation", "accuracy/test", "accuracy/gap"):
        drawn = heat_map(runs, metric)
        group = [g for g in drawn.root.iter() if "mark-text role-mark" in g.get("class", "")]
        inks = [node.get("fill") for node in group[0].iter() if node.get("fill")]
        for mark, ink in zip(drawn.marks, inks, strict=True):
            ground = luminance(*colour(mark.get("fill")))
            own = 1.0 if ink == "white" else luminance(*colour(ink))
            low, high = sorted((ground, own))
            assert (high + 0.05) / (low + 0.05) > 3.9


def test_a_large_grid_is_colour_alone():
    runs, _ = simulate(1, tuple(range(1, 27)), (8, 16), per_epoch=False)
    drawn = heat_map(runs)
    assert not any(re.fullmatch(r"0\.\d{4}", text) for text in drawn.words)


def test_lines_are_of_every_epoch_and_have_bands_over_seeds():
    figures = figures_of(*simulate(epochs=(1, 20)))
    for name in ("gap_against_epochs.png", "accuracy_against_epochs.png"):
        assert figures[name].lines() == [20, 20, 20]
        assert "Bands: 95 % intervals" in figures[name].note
        assert "mark-area" in figures[name].svg
    domains = {
        name: drawn.chart["layer"][1]["encoding"]["y"]["scale"]["domain"]
        for name, drawn in figures.items()
        if name.endswith("against_epochs.png")
    }
    assert domains["gap_against_epochs.png"][0] <= 0
    assert domains["accuracy_against_epochs.png"][0] > 0.5


def test_lines_of_more_parameters_are_in_panels_of_one_scale():
    runs, curves = simulate(seeds=2, optimizer=["Adam", "SGD"])
    drawn = figures_of(runs, curves)["gap_against_epochs.png"]
    assert {"optimizer Adam", "optimizer SGD"} <= set(drawn.words)
    assert len(drawn.lines()) == 6


def test_lines_without_curves_join_settings_of_different_epochs():
    runs, _ = simulate(epochs=(1, 5, 20))
    assert figures_of(runs)["gap_against_epochs.png"].lines() == [3, 3, 3]


def test_accuracy_against_gap_joins_epochs_and_has_bars_both_ways():
    drawn = figures_of(*simulate())["accuracy_against_gap.png"]
    assert "Lines follow epochs from 1 to 20." in drawn.note
    assert drawn.lines() == [4, 4, 4]
    assert drawn.svg.count("mark-rule role-mark") == 2
    assert len(drawn.tips) == 12 + 60


def test_widths_alone_are_on_a_logarithmic_axis_with_ticks_where_they_are():
    drawn = figures_of(*simulate(epochs=(5,), widths=(8, 64, 512)))["by_parameter.png"]
    for panel in drawn.chart["hconcat"]:
        assert panel["encoding"]["x"]["scale"]["type"] == "log"
    assert [drawn.words.count(width) for width in ("8", "64", "512")] == [2, 2, 2]


def below_the_axis(drawn):
    """The visible labels below the first panel's axis, with where they begin and end, in pixels."""
    found = []
    for node in drawn.texts:
        place = re.fullmatch(r"translate\(([\d.]+),15\)", node.get("transform", ""))
        if place and node.text and float(node.get("opacity", 1)) > 0:
            middle, half = float(place[1]), 5.6 * len(node.text) / 2
            found.append((node.text, middle - half, middle + half))
            if len(found) > 1 and found[-1][1] < found[-2][1]:
                return found[:-1]  # the next panel's
    return found


@pytest.mark.parametrize(
    "widths",
    [
        (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096),
        (8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096),
        tuple(2**power for power in range(12)),
        (32, 48, 64, 512),
    ],
)
def test_labels_of_a_logarithmic_axis_do_not_touch_and_name_both_ends(widths):
    labels = below_the_axis(figures_of(*simulate(2, (5,), widths))["by_parameter.png"])
    numbers = [int(label) for label, _, _ in labels]
    assert set(numbers) <= set(widths)
    assert (numbers[0], numbers[-1]) == (widths[0], widths[-1])
    assert len(numbers) >= min(len(widths), 6)
    for (_, _, end), (_, start, _) in pairwise(labels):
        assert end < start


def test_values_that_were_drawn_at_random_have_round_labels():
    rates = sorted(np.random.default_rng(0).lognormal(-6, 2, 40))
    assert vega.logarithmic_ticks(rates) == {"tickCount": 5}


@pytest.mark.parametrize("widths", [(8, 64), (32, 64, 128), (48, 96, 128), (1000, 4096)])
def test_numbers_on_an_axis_are_those_of_the_settings(widths):
    drawn = figures_of(*simulate(epochs=(5,), widths=widths))["by_parameter.png"]
    assert {str(width) for width in widths} & set(drawn.words)
    assert not {"60", "130", "4100", "4000"} & set(drawn.words)


def test_a_random_search_is_points_without_lines():
    runs, _ = simulate(1, (5,), (32,), **{"model.dropout": list(range(40))})
    generator = np.random.default_rng(0)
    runs["optimizer.learning_rate"] = [str(x) for x in 10 ** generator.uniform(-4, -1, 40)]
    drawn = figures_of(runs)["by_parameter.png"]
    assert not drawn.lines()
    assert len(drawn.tips) == 80


def test_seeds_show_their_mean_and_interval():
    runs, _ = simulate(epochs=(5,), widths=(32,))
    drawn = figures_of(runs)["runs.png"]
    row = report.summarize(runs).iloc[0]
    half = row["accuracy/test/high"] - row["accuracy/test/mean"]
    assert f"mean {row['accuracy/test/mean']:.4f} ± {half:.4f}" in drawn.words
    assert "seed 4" in drawn.words


def test_names_of_strangers_are_texts():
    runs, _ = simulate(2, (5,), (8,), optimizer=["<script>alert(1)</script>", '"><img src=x>'])
    runs["name"] = "</svg><script>"
    for drawn in figures_of(runs).values():
        assert {node.tag.rpartition("}")[2] for node in drawn.root.iter()} <= {
            *("svg", "g", "rect", "path", "text", "tspan", "line", "defs", "linearGradient", "stop")
        }


def test_a_legend_of_many_numbers_shows_a_few_of_them_and_one_of_many_names_none():
    numbers = vega.color("epochs", vega.labels(range(1, 21), "epochs"))
    assert numbers["legend"]["values"] == ["20", "15", "10", "5", "1"]
    assert vega.color("model", vega.labels(map("m{}".format, range(20)), "model"))["legend"] is None


def noisy(**grid):
    """Runs of which those with noise have metrics of wrong labels, and their curves."""
    runs, curves = simulate(3, (20,), **grid, **{"data.label_noise": [0, 0.2]})
    wrong = runs["data.label_noise"] == "0.2"
    runs.loc[wrong, "accuracy/gap_clean"] = runs["accuracy/gap"] - 0.3
    runs.loc[wrong, "mislabelled/memorised"] = 0.5
    known = curves[curves["run_id"].isin(runs[wrong]["run_id"])]
    gaps = known[known["metric"] == "accuracy/gap"]
    more = [
        gaps.assign(metric="accuracy/gap_clean", value=gaps["value"] - 0.3),
        gaps.assign(metric="mislabelled/memorised", value=0.5),
    ]
    return runs, pd.concat([curves, *more], ignore_index=True)


def test_with_wrong_labels_the_gap_is_drawn_by_both_labels_and_says_which():
    drawn = figures_of(*noisy(widths=(32,)))
    assert {"gap_on_true_labels_against_epochs.png", "memorised_against_epochs.png"} <= {*drawn}
    given = "Accuracy gap: by the labels trained on, wrong ones among them."
    assert given in drawn["by_parameter.png"].note
    assert given in drawn["gap_against_epochs.png"].note
    assert "Gap on true labels" in drawn["accuracy_against_gap.png"].words
    # Without noise, both gaps are the same: a line of its own for each share.
    assert len(drawn["gap_on_true_labels_against_epochs.png"].lines()) == 2
    assert len(drawn["memorised_against_epochs.png"].lines()) == 1
    clean = figures_of(*simulate(3, (5,), (8, 64)))
    assert not any("labels" in name for name in clean)
    assert given not in clean["by_parameter.png"].note


def test_a_long_row_of_numbers_is_drawn_as_lines_beside_its_heat_maps():
    widths = tuple(2**power for power in range(6))
    drawn = figures_of(*noisy(widths=widths))
    assert "heat_map_gap_on_true_labels.png" in drawn
    chart = drawn["by_parameter.png"]
    assert len(chart.chart["concat"]) == 4
    # One line for each share of noise and metric, but for the memorised labels of none.
    assert [points for points in chart.lines() if points > 1] == [6] * 7
    assert "by_parameter.png" not in figures_of(*noisy(widths=widths[:5]))
