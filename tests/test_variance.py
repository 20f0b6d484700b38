"""Components of variance against hand calculation and simulations in which they are known."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from simulated import simulate

from fmnist_lab.errors import UserError
from fmnist_lab.evaluation.statistics import compare_groups, superiority
from fmnist_lab.evaluation.variance import (
    IMAGE,
    bias_variance,
    components,
    finite_test_set,
    on_new_images,
)
from fmnist_lab.studies import beyond, bias, decomposition, report, summary


def by_name(found):
    return {" ".join(each.factors): each for each in found}


def test_components_by_hand():
    # Rows' means 2 and 4, columns' 1, 3 and 5; residuals -1, 0, 1 and 1, 0, -1. Mean squares:
    # rows 3 · 2 / 1 = 6, columns 2 · 8 / 2 = 8, both 4 / 2 = 2.
    found = by_name(components(np.array([[-1, 2, 5], [3, 4, 5]]), ("row", "column")))
    assert found["row"].variance == pytest.approx((6 - 2) / 3)
    assert found["column"].variance == pytest.approx((8 - 2) / 2)
    assert found["row column"].variance == pytest.approx(2)
    # χ² with 2 degrees of freedom has quantiles 0.0506 and 7.3778; the draws come close.
    assert found["row column"].low == pytest.approx(2 * 2 / 7.3778, rel=0.03)
    assert found["row column"].high == pytest.approx(2 * 2 / 0.0506, rel=0.1)
    assert sum(each.share for each in found.values()) == pytest.approx(1)


def test_simulated_components_are_found_without_bias_and_within_their_intervals():
    """Seeds, split seeds and test images, as the study of variance has them."""
    shape, names = (10, 8, 30), ("seed", "split", IMAGE)
    true = {
        "seed": 4.0,
        "split": 9.0,
        IMAGE: 1.0,
        "seed split": 2.0,
        f"seed {IMAGE}": 1.0,
        f"split {IMAGE}": 0.5,
        f"seed split {IMAGE}": 3.0,
    }
    of_mean = {name: each / (30 if IMAGE in name else 1) for name, each in true.items()}
    generator = np.random.default_rng(0)
    estimates, held = [], []
    for _ in range(40):
        cells = np.zeros(shape)
        for name, each in true.items():
            sides = [n if known in name else 1 for n, known in zip(shape, names, strict=True)]
            cells = cells + generator.normal(0, math.sqrt(each), sides)
        found = by_name(components(cells, names, over=IMAGE))
        estimates.append([found[name].variance for name in true])
        held += [found[name].low <= each <= found[name].high for name, each in of_mean.items()]
        whole = sum(of_mean.values())
        held += [
            found[name].share_low <= each / whole <= found[name].share_high
            for name, each in of_mean.items()
        ]
    error = np.std(estimates, axis=0) / math.sqrt(len(estimates))
    assert (np.abs(np.mean(estimates, axis=0) - list(of_mean.values())) < 4 * error).all()
    assert 0.92 < np.mean(held) < 0.98


@pytest.mark.parametrize(
    ("values", "factors", "over"),
    [
        (np.ones((3, 1)), ("seed", IMAGE), None),
        (np.ones((3, 3)), ("seed",), None),
        (np.ones((3, 3)), ("seed", IMAGE), "split"),
        (np.array([[1, 2], [3, math.nan]]), ("seed", IMAGE), None),
    ],
)
def test_no_full_grid_is_refused(values, factors, over):
    with pytest.raises(ValueError, match="expected"):
        components(values, factors, over)


def drawn(generator, hardness, effects):
    """Correctness of runs with the given effects on images with the given chances."""
    chances = np.clip(hardness + np.asarray(effects)[:, None], 0, 1)
    return generator.random(chances.shape) < chances


def test_the_test_sets_part_is_found_within_its_interval():
    """Runs vary by their effect, and as a binomial with each image's own chance does."""
    generator = np.random.default_rng(1)
    images, deviation = 400, 0.015
    noise = (0.8 * 0.2 - 0.15**2 / 3) / images  # Mean of q (1 - q) for q uniform in 0.8 ± 0.15.
    share = noise / (noise + deviation**2)
    found = [
        finite_test_set(
            drawn(
                generator,
                generator.uniform(0.65, 0.95, images),
                generator.normal(0, deviation, 5),
            )
        )
        for _ in range(300)
    ]
    assert 0.91 < np.mean([each.low <= share <= each.high for each in found]) < 0.98
    expected = 0.15**2 / 3 / images
    assert np.mean([each.error**2 for each in found]) == pytest.approx(expected, rel=0.1)


def test_the_part_in_a_gap_is_of_the_gaps_variance():
    correct = drawn(np.random.default_rng(0), np.full(100, 0.7), [-0.2, -0.1, 0.1, 0.2])
    accuracy = finite_test_set(correct)
    gaps = correct.mean(axis=1) * 2  # Twice the spread, four times the variance.
    assert finite_test_set(correct, gaps).share == pytest.approx(accuracy.share / 4, rel=0.05)
    assert math.isnan(finite_test_set(correct, [0.1] * 4).share)


@pytest.mark.parametrize("paired", [True, False])
def test_new_images_are_in_the_wider_interval_and_shared_hardness_cancels(paired):
    generator = np.random.default_rng(2)
    images, true, held, widths = 500, 0.01, [], []
    for _ in range(100):
        hardness = generator.uniform(0.3, 0.99, images)
        # B finds some images harder than A does; on average by `true`.
        other = hardness - true - generator.normal(0, 0.1, images).clip(-0.1, 0.1)
        a = drawn(generator, hardness, generator.normal(0, 0.01, 5))
        b = drawn(generator, other, generator.normal(0, 0.01, 5))
        found = compare_groups(a.mean(axis=1), b.mean(axis=1), paired)
        low, high = on_new_images(found, a, b, paired=paired)
        assert low <= found.low + 1e-12
        assert high >= found.high - 1e-12
        held.append(low <= true <= high)
        alone = [finite_test_set(each).error for each in (a, b)]
        seeds = found.high - found.low
        widths.append((high - low, math.hypot(seeds, 2 * 1.96 * math.hypot(*alone))))
    assert np.mean(held) > 0.91
    shared, apart = np.median(widths, axis=0)
    assert shared < 0.9 * apart


def test_the_chance_to_win_is_by_the_normal_model_with_the_noncentral_t_interval():
    a, b = np.array([0.88, 0.87, 0.89, 0.875]), np.array([0.87, 0.872, 0.88, 0.86])
    found = superiority(a, b, paired=True)
    differences = a - b
    effect = differences.mean() / differences.std(ddof=1)
    assert found.probability == pytest.approx(stats.norm.cdf(effect))
    for end, share in ((found.low, 0.975), (found.high, 0.025)):
        shift = stats.norm.ppf(end) * 2
        assert stats.nct.cdf(effect * 2, 3, shift) == pytest.approx(share, abs=1e-6)
    assert (found.share, found.pairs) == (0.75, 4)
    turned = superiority(b, a, paired=True)
    assert turned.low == pytest.approx(1 - found.high)
    assert superiority(a, b[:3], paired=False).pairs == 12
    assert superiority(a[:1], b[:1], paired=True) is None
    assert superiority([0.5, 0.6], [0.4, 0.5], paired=True) is None
    sure = superiority(a, b - 1e6, paired=False)
    assert sure.probability == sure.low == 1


@pytest.mark.slow
@pytest.mark.parametrize("paired", [True, False])
def test_the_chance_to_win_is_within_its_interval(paired):
    generator, held = np.random.default_rng(3), []
    true = stats.norm.cdf(0.6 / (1 if paired else math.sqrt(5)))
    for _ in range(400):
        a = generator.normal(0.6, 1, 5)
        b = np.zeros(5) if paired else generator.normal(0, 2, 7)
        found = superiority(a, b, paired)
        held.append(found.low <= true <= found.high)
    assert 0.92 < np.mean(held) < 0.98


def predicted(runs, images=200):
    """What each run has predicted: right for its share of images, drawn for each anew."""
    labels = np.arange(images) % 10

    def read(run):
        row = runs[runs["run_id"] == run].iloc[0]
        right = np.random.default_rng(int(run, 16)).random(images) < row["accuracy/test"]
        return np.eye(10)[(labels + ~right) % 10], labels

    return read


def test_a_report_tells_the_test_sets_part_in_one_sentence():
    runs, _ = simulate(3, (1, 5), (32,))
    study = summary.take_apart(runs)
    read = predicted(runs)
    (told,) = beyond.of_study(study, read)
    parts = []
    for epochs in ("1", "5"):
        ids = runs[runs["trainer.epochs"] == epochs]["run_id"]
        correct = np.stack([read(run)[0].argmax(1) == read(run)[1] for run in ids])
        parts.append(finite_test_set(correct))
    assert f"by up to ± {1.96 * max(part.error for part in parts):.4f}; " in told
    ends = sorted(f"{100 * part.share:.0f}" for part in parts)
    assert f"make {ends[0]} to {ends[1]} % of the variance" in told


def test_the_images_part_in_a_gap_is_not_told_as_that_in_the_test_accuracy():
    correct = np.random.default_rng(0).random((3, 200)) < 0.8
    part = finite_test_set(correct, [0.1, 0.12, 0.15])
    gap = beyond.Beyond(None, beyond.OnNewImages(part, part, -0.01, 0.02))
    tested = beyond.Beyond(
        None, gap.images._replace(a=finite_test_set(correct), b=finite_test_set(correct))
    )
    (alone,) = beyond.of_one([("accuracy/gap", gap)], paired=True)
    assert alone.endswith("-0.0100 to +0.0200 for accuracy gap.")
    (both,) = beyond.of_one([("accuracy/test", tested), ("accuracy/gap", gap)], paired=True)
    assert f"make {100 * tested.images.a.share:.0f} % [" in both
    assert both.endswith("of the variance of test accuracy between runs.")


def test_without_several_seeds_a_report_takes_the_binomial_and_without_predictions_nothing():
    runs, _ = simulate(1, (1, 5), (32,))
    study = summary.take_apart(runs)
    worst = runs["accuracy/test"].min()
    half = 1.96 * math.sqrt(worst * (1 - worst) / 200)
    (told,) = beyond.of_study(study, predicted(runs))
    assert f"by up to ± {half:.4f} (binomial)" in told

    def away(run):
        raise UserError(f"run {run} has no predictions.npz")

    assert beyond.of_study(study, away) == []


def test_a_study_of_very_many_runs_reads_some_predictions():
    runs, _ = simulate(30, range(1, 9), (32,), per_epoch=False)
    read, asked = predicted(runs, 20), []

    def counting(run):
        asked.append(run)
        return read(run)

    assert beyond.of_study(summary.take_apart(runs), counting)
    assert len(asked) == beyond.MOST_REPORTED  # Two settings.


def grid():
    """Runs of 4 seeds by 3 split seeds, and which of 300 images they get right."""
    data = {"data.train_limit": [5000], "data.split_seed": [0, 1, 2]}
    runs, _ = simulate(4, (5,), (32,), per_epoch=False, **data)
    generator = np.random.default_rng(5)
    effects = np.add.outer(generator.normal(0, 0.05, 3), generator.normal(0, 0.02, 4)).ravel()
    correct = drawn(generator, generator.uniform(0.5, 0.9, 300), effects)
    runs["accuracy/test"] = correct.mean(axis=1)
    runs["accuracy/gap"] = 0.95 - runs["accuracy/test"]
    labels = np.arange(300) % 10
    known = {
        run: (np.eye(10)[(labels + ~right) % 10], labels)
        for run, right in zip(runs["run_id"], correct, strict=True)
    }
    return runs, correct.reshape(3, 4, 300), known.__getitem__


def test_a_grid_of_runs_is_split_by_seed_split_and_image():
    runs, correct, read = grid()
    study = summary.take_apart(runs.sample(frac=1, random_state=0))
    found = decomposition.decompose(study, ("seed", "data.split_seed"), read)
    expected = components(correct.transpose(1, 0, 2), ("seed", "split seed", IMAGE), over=IMAGE)
    for mine, its in zip(found["accuracy/test"], expected, strict=True):
        assert mine.factors == its.factors
        assert mine.variance == pytest.approx(its.variance, abs=1e-12)
    # All have the same training accuracy, so that the gap varies as the test accuracy does.
    for mine, its in zip(found["accuracy/gap"], expected, strict=True):
        assert mine.share == pytest.approx(its.share, abs=1e-9)
        assert mine.share_high == pytest.approx(its.share_high, abs=1e-9)


@pytest.mark.parametrize(
    ("chosen", "factors", "told"),
    [
        (slice(None), ["seed"], r"the runs differ in data\.split_seed as well.*data\.split_seed=0"),
        (slice(4), ["seed", "data.split_seed"], r"all runs have data\.split_seed=0, expected"),
        (slice(11), ["seed", "data.split_seed"], "4 x 3 values.*none has seed=3 data.split_seed=2"),
        (slice(None), ["seed", "data.order"], r"--by: received data\.order, which no run has"),
    ],
)
def test_runs_that_are_no_grid_are_refused(chosen, factors, told):
    runs, _, read = grid()
    with pytest.raises(UserError, match=told):
        decomposition.decompose(summary.take_apart(runs.iloc[chosen]), factors, read)


def test_components_are_kept_as_a_table_and_a_chart(tmp_path):
    runs, _, read = grid()
    found = decomposition.decompose(summary.take_apart(runs), ("seed", "data.split_seed"), read)
    table, picture = decomposition.write(found, tmp_path, len(runs))
    kept = pd.read_csv(table).set_index("source")
    assert list(kept.index) == [" x ".join(each.factors) for each in found["accuracy/test"]]
    assert kept["accuracy/gap/mean"].sum() == pytest.approx(1)
    split = found["accuracy/test"][1]
    assert kept.loc["split seed", "accuracy/test/high"] == pytest.approx(split.share_high)
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_bias_and_variance_of_predictions_are_found_without_bias():
    """Predictions around a mean of their own for each image, with a known spread."""
    generator = np.random.default_rng(6)
    labels = generator.integers(0, 3, 500)
    center, spread = generator.normal(0, 0.3, (500, 3)), 0.2
    known = ((np.eye(3)[labels] - center) ** 2).sum(axis=1).mean()
    found = [
        bias_variance(center + generator.normal(0, spread, (4, 500, 3)), labels) for _ in range(60)
    ]
    for part, true in (("variance", 3 * spread**2), ("bias", known)):
        estimates = np.array([getattr(each, part).mean for each in found])
        assert abs(estimates.mean() - true) < 4 * estimates.std() / math.sqrt(len(found))
        held = [getattr(each, part).low <= true <= getattr(each, part).high for each in found]
        assert np.mean(held) > 0.85
    assert found[0].error.mean == pytest.approx(found[0].bias.mean + found[0].variance.mean)
    with pytest.raises(ValueError, match="expected three runs or more"):
        bias_variance(np.zeros((2, 500, 3)), labels)


def drawing_images(runs):
    """The runs as if each seed had drawn training images of its own."""
    return runs.assign(**{"data.split_seed": runs["seed"], "data.train_limit": "2000"})


def test_a_report_parts_the_error_where_each_seed_draws_its_own_images(tmp_path):
    runs, curves = simulate(3, (5,), (8, 32, 512), per_epoch=False)
    read, own = predicted(runs), drawing_images(runs)
    parts = bias.by_setting(summary.take_apart(own), read)
    assert parts["model.hidden_units"].tolist() == [8, 32, 512]
    chosen = own[own["model.hidden_units"] == "32"]["run_id"]
    expected = bias_variance(np.stack([read(run)[0] for run in chosen]), read(chosen.iloc[0])[1])
    assert parts["variance/high"][1] == expected.variance.high
    files = report.write(own, curves, tmp_path, title="T", command="C", error_parts=parts)
    assert {"bias_variance.csv", "bias_variance.png"} <= {file.name for file in files}
    shared = runs.assign(**{"data.split_seed": "0", "data.train_limit": "2000"})
    for others in (runs, shared, own[own["seed"] != "2"]):
        assert bias.by_setting(summary.take_apart(others), read) is None
