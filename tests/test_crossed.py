"""Runs whose seeds cross, such as three seeds with each of ten splits, are no independent runs."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fmnist_lab.errors import UserError
from fmnist_lab.studies import comparison, crossed, decomposition, findings, planning, summary

SPLIT, NOISE = "data.split_seed", "data.noise_seed"
LIMITED = {"data.train_limit": "5000"}


def runs_of(results, first="r", **columns):
    """Return a grid's finished runs as a store's table has them."""
    places = list(np.ndindex(results.shape))
    rows = pd.DataFrame(
        {
            "run_id": [f"{first}{seed}-{split}" for seed, split in places],
            "status": "FINISHED",
            "seed": [str(seed) for seed, _ in places],
            SPLIT: [str(split) for _, split in places],
            "accuracy/test": results.ravel(),
            "accuracy/gap": 0.9 - results.ravel(),
        }
    )
    return rows.assign(name=rows["run_id"], **{**LIMITED, **columns})


def side(results, first="r", **columns):
    study = summary.take_apart(runs_of(results, first, **columns))
    tags = {"data.digest": "one", "host": "there"}
    return comparison.Side(study, dict.fromkeys(study.used["run_id"], tags))


@pytest.mark.parametrize("shape", [(3, 10), (6, 6)])
@pytest.mark.parametrize("spreads", [(0.01, 0), (0, 0.01), (0.01, 0.01)])
def test_the_interval_of_a_grid_holds_the_mean_as_often_as_it_says(shape, spreads):
    generator, many = np.random.default_rng(3), 600
    draws = [(seed, split, None) for seed, split in np.ndindex(shape)]
    by = crossed.samples(draws)
    held = {True: 0, False: 0}
    for _ in range(many):
        results = (
            0.8
            + generator.normal(0, spreads[0], (shape[0], 1))
            + generator.normal(0, spreads[1], (1, shape[1]))
            + generator.normal(0, 0.002, shape)
        ).ravel()
        for crossing in held:
            found = summary.interval(results, by if crossing else None)
            held[crossing] += found.low <= 0.8 <= found.high
    assert held[True] > 0.93 * many
    assert held[False] < 0.75 * many  # As independent runs, which they are not.


def test_reports_comparisons_and_plans_take_the_means_by_one_seed():
    generator = np.random.default_rng(1)
    mine, its = (
        0.8 + generator.normal(0, 0.01, (3, 1)) + generator.normal(0, 0.001, (3, 10))
        for _ in range(2)
    )
    a, b = side(mine), side(its, "o", model="linear")
    row = a.study.summary.iloc[0]
    expected = stats.t.interval(0.95, 2, mine.mean(), stats.sem(mine.mean(axis=1)))
    assert (row["accuracy/test/low"], row["accuracy/test/high"]) == pytest.approx(expected)
    assert row["runs"] == 30
    (said,) = [each for each in findings.findings(a.study) if "not independent" in each]
    assert f"`runs variance SWEEP --by seed {SPLIT}`" in said

    verdict = comparison.compare(a, b, unread)
    result = next(each for each in verdict.matches[0].results if each.metric == "accuracy/test")
    test = stats.ttest_rel(mine.mean(axis=1), its.mean(axis=1))
    assert result.found.p_value == pytest.approx(test.pvalue)
    assert result.found.sample == "3 pairs of means by seed"
    assert result.beyond is None
    assert any(said in each for each in verdict.sentences)

    # Without the last seed there are no pairs.
    fewer = side(its[:2], "o", model="linear")
    result = comparison.compare(a, fewer, unread).matches[0].results[0]
    test = stats.ttest_ind(mine.mean(axis=1), its[:2].mean(axis=1), equal_var=False)
    assert result.found.p_value == pytest.approx(test.pvalue)
    assert result.found.sample == "3 and 2 means by seed"

    plan = planning.plan([a], 0.01, unread, "here")
    assert plan.rows[0].spread.freedom == 2
    assert plan.rows[0].spread.deviation == pytest.approx(2**0.5 * mine.mean(axis=1).std(ddof=1))
    assert planning.CROSSED in plan.sentences


def unread(run):
    raise UserError(f"run {run} has no predictions.npz")


def test_seeds_that_vary_together_or_alone_leave_runs_independent():
    together = [(seed, seed, seed) for seed in range(5)]
    alone = [(seed, None, 0) for seed in range(5)]
    each = {"": [[place] for place in range(5)]}
    assert crossed.samples(together) == crossed.samples(alone) == each
    study = side(np.full((4, 1), 0.8), **{"data.validation_fraction": "0.1"}).study
    assert not any("not independent" in told for told in findings.findings(study))


@pytest.mark.parametrize(
    ("seed", "columns", "effective"),
    [
        (SPLIT, {"data.train_limit": None}, False),
        (SPLIT, {"data.train_limit": None, "data.validation_fraction": "0.0"}, False),
        (SPLIT, {"data.train_limit": None, "data.validation_fraction": "0.1"}, True),
        (SPLIT, {}, True),
        (NOISE, {}, False),
        (NOISE, {"data.label_noise": "0.2"}, True),
        (NOISE, {"data.random_labels": "True"}, True),
    ],
)
def test_a_seed_that_draws_nothing_makes_no_further_runs(seed, columns, effective):
    runs = runs_of(np.random.default_rng(0).normal(0.8, 0.01, (2, 3)))
    if seed == NOISE:
        runs = runs.rename(columns={SPLIT: NOISE})
    study = summary.take_apart(runs.assign(**columns))
    assert len(study.used) == (6 if effective else 2)
    if not effective:
        assert {run.reason for run in study.unused} == {
            "repeats setting and seed of r0-0 (r0-0)",
            "repeats setting and seed of r1-0 (r1-0)",
        }
        with pytest.raises(UserError, match=f"--by: received {seed}, which changes nothing"):
            decomposition.decompose(study, ("seed", seed), unread)
