"""Numbers of seeds against published tables and simulations in which the variance is known."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from simulated import simulate

from fmnist_lab.errors import UserError
from fmnist_lab.evaluation.power import (
    Seeds,
    Spread,
    _equivalence,
    power,
    seeds_needed,
    spread,
)
from fmnist_lab.evaluation.statistics import compare_groups
from fmnist_lab.studies import planning, summary
from fmnist_lab.studies.differences import Side


def known(deviation, per_seed=1.0):
    """A spread that is known exactly."""
    return Spread(deviation, deviation, deviation, math.inf, per_seed, "")


def test_numbers_of_seeds_are_those_of_published_tables():
    # Cohen 1988, table 2.4.1: d = 0.5 and 0.8 at power 0.80; pairs as G*Power has them.
    assert seeds_needed(0.5, known(math.sqrt(2), 2), 0.8).count == 64
    assert seeds_needed(0.8, known(math.sqrt(2), 2), 0.8).count == 26
    assert seeds_needed(0.5, known(1.0), 0.8).count == 34


@pytest.mark.parametrize(("variation", "subjects"), [(0.2, 16), (0.3, 32)])
def test_equivalence_takes_as_many_as_published(variation, subjects):
    # Diletti, Hauschke and Steinijans 1991: crossover trials, 5 % a side, limits 0.8 to 1.25.
    deviation = math.sqrt(math.log(1 + variation**2))

    def reached(count):
        critical = stats.t.ppf(0.95, count - 2)
        shift = math.log(1.25) / (deviation * math.sqrt(2 / count))
        return _equivalence(shift, critical, count - 2)

    assert reached(subjects) > 0.8 > reached(subjects - 2)


@pytest.mark.parametrize("wanted", [0.8, 0.95])
@pytest.mark.parametrize(
    ("deviations", "paired"), [((0.003,), True), ((0.002, 0.004), False)], ids=["pairs", "Welch"]
)
def test_at_the_advised_number_of_seeds_the_share_of_results_is_as_promised(
    deviations, paired, wanted
):
    """Accuracies are drawn with known variances, and tested as `runs compare` does."""
    difference, repeats = 0.002, 4000
    total = sum(each**2 for each in deviations)
    true = known(math.sqrt(total), total**2 / sum(each**4 for each in deviations))
    generator = np.random.default_rng(0)

    def compared(mean, exclude):
        seeds = seeds_needed(difference, true, wanted, exclude=exclude).count
        a = generator.normal(mean, deviations[0], (repeats, seeds))
        b = np.zeros_like(a) if paired else generator.normal(0, deviations[1], a.shape)
        found = (
            stats.ttest_rel(a, b, axis=1)
            if paired
            else stats.ttest_ind(a, b, axis=1, equal_var=False)
        )
        assert compare_groups(a[0], b[0], paired).p_value == pytest.approx(found.pvalue[0])
        return found

    shown = (compared(difference, exclude=False).pvalue < 0.05).mean()
    ends = compared(0, exclude=True).confidence_interval()
    excluded = ((ends.low > -difference) & (ends.high < difference)).mean()
    for share in (shown, excluded):
        assert wanted - 0.02 < share < wanted + 0.04


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("effect", [0.1, 1.0, 12.0])
def test_it_is_the_fewest_seeds_with_the_power(effect, exclude):
    true = known(1 / effect, 1.6)
    count = seeds_needed(1.0, true, 0.8, exclude=exclude).count
    assert power(1.0, true, count, exclude=exclude) >= 0.8
    assert count == 2 or power(1.0, true, count - 1, exclude=exclude) < 0.8


def test_the_spread_is_that_of_the_difference_of_two_runs():
    a, b = [0.1, 0.2, 0.3, 0.4], [0.4, 0.6, 0.5, 0.9]
    pairs = spread(a, b, paired=True)
    assert pairs.deviation == pytest.approx(np.std(np.subtract(a, b), ddof=1))
    # χ² with 3 degrees of freedom has quantiles 0.2158 and 9.3484.
    assert pairs.low / pairs.deviation == pytest.approx(math.sqrt(3 / 9.3484), rel=1e-4)
    assert pairs.high / pairs.deviation == pytest.approx(math.sqrt(3 / 0.2158), rel=1e-4)
    welch = spread(a, b)
    assert welch.deviation**2 == pytest.approx(np.var(a, ddof=1) + np.var(b, ddof=1))
    result = stats.ttest_ind(a, b, equal_var=False)
    assert welch.freedom == pytest.approx(result.df)
    assert welch.per_seed * 3 == pytest.approx(result.df)
    alone = spread(a)
    assert alone.deviation == pytest.approx(np.std(a, ddof=1) * math.sqrt(2))
    assert (alone.freedom, alone.per_seed) == (3, 2)


def test_an_uncertain_variance_makes_the_answer_uncertain():
    found = seeds_needed(0.002, spread([0.871, 0.874, 0.869]), 0.8)
    assert found.low < found.count < found.high
    assert spread([0.871, 0.874, 0.869]).vague
    assert not spread(np.random.default_rng(0).normal(0, 1, planning.ENOUGH)).vague
    assert seeds_needed(1e-9, known(1), 0.8) == Seeds(None, None, None)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (lambda: spread([0.8]), "two runs a side"),
        (lambda: spread([0.8, 0.8, 0.8]), "no spread"),
        (lambda: spread([0.8, 0.9], [0.8], paired=True), "as many"),
        (lambda: spread([0.8, math.nan]), "finite"),
        (lambda: seeds_needed(0, known(1), 0.8), "other than 0"),
        (lambda: seeds_needed(1, known(1), 80), "between 0 and 1"),
    ],
)
def test_what_has_no_answer_is_refused(words, told):
    with pytest.raises(ValueError, match=told):
        words()


def side(seeds=10, first=0, **settings):
    """A side of runs of a minute each, two at a time, with an hour's pause in the middle."""
    runs, _ = simulate(seeds, (5,), (32,), per_epoch=False, **settings)
    number = np.arange(len(runs))
    runs["run_id"] = [f"{first + each:032x}" for each in number]
    minutes = number // 2 + 60 * (number >= 4)
    runs["started"] = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(minutes, "min")
    runs["ended"] = runs["started"] + pd.Timedelta(minutes=1)
    return Side(summary.take_apart(runs), {run: {"host": "lab"} for run in runs["run_id"]})


def unread(run):
    raise AssertionError(f"the predictions of {run} are not needed")


def test_a_plan_counts_seeds_and_time():
    one = side()
    found = planning.plan([one], 0.001, unread, "lab")
    assert [row.metric for row in found.rows] == ["accuracy/test", "accuracy/gap"]
    values = one.study.used["accuracy/test"].to_numpy()
    row = found.rows[0]
    assert row.answers[0].seeds == seeds_needed(0.001, spread(values), 0.8)
    assert row.answers[3].seeds == seeds_needed(0.001, spread(values), 0.95, exclude=True)
    assert found.at_once == pytest.approx(2)
    for answer in row.answers:
        assert answer.seconds == pytest.approx(60 * answer.seeds.count)
    told = " ".join(found.sentences)
    assert "a run 1 min 00 s in A, 2.0 runs at a time" in told
    assert "not this machine" not in told
    assert "too few seeds" not in told


def test_a_plan_of_two_sides_is_for_what_they_differ_by_in_pairs():
    a, b = side(3), side(3, 50, optimizer=["SGD", "Adam"])
    b = Side(summary.take_apart(b.study.runs.query("optimizer == 'Adam'")), b.tags)
    # Parameters that one side has throughout do not divide it.
    found = planning.plan([a, b], None, unread, "elsewhere").rows[0]
    mine, its = (each.study.used["accuracy/test"].to_numpy() for each in (a, b))
    assert found.spread == spread(mine, its, paired=True)
    assert found.difference == pytest.approx(abs(mine.mean() - its.mean()))
    told = " ".join(planning.plan([a, b], None, unread, "elsewhere").sentences)
    assert "too few seeds to tell the variance" in told
    assert "on lab, which is not this machine" in told
    assert "--difference names the smallest" in told


def test_without_durations_a_plan_has_no_times():
    one = side()
    bare = one.study.used.drop(columns=["started", "ended"])
    found = planning.plan([Side(summary.take_apart(bare), one.tags)], 0.001, unread, "lab")
    assert all(math.isnan(answer.seconds) for row in found.rows for answer in row.answers)
    assert not any("Times" in told for told in found.sentences)


def test_a_plan_from_single_runs_is_refused():
    with pytest.raises(UserError, match=r"received 1 run of a setting.*expected several seeds"):
        planning.plan([side(1)], 0.002, unread, "lab")
