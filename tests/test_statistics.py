"""Numbers against published examples and hand calculation, and words that claim no more."""

import math

import numpy as np
import pytest
from scipy import stats

from fmnist_lab.evaluation.statistics import (
    Comparison,
    Interval,
    compare_groups,
    mcnemar_exact,
    mean_interval,
)

NAN = float("nan")

# Student's own example (1908): additional hours of sleep of ten patients under two drugs.
SLEEP_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SLEEP_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def paired_table(both, only_a, only_b, neither):
    """Two bool arrays with the given counts, shuffled alike."""
    a = np.repeat([True, True, False, False], (both, only_a, only_b, neither))
    b = np.repeat([True, False, True, False], (both, only_a, only_b, neither))
    order = np.random.default_rng(0).permutation(len(a))
    return a[order], b[order]


def test_mean_interval_by_hand():
    # Mean 3, s² = 10 / 4, t(4) = 2.776445 at 95 %: half-width 2.776445 √(2.5 / 5) = 1.963243.
    found = mean_interval([1, 2, 3, 4, 5])
    assert found.mean == 3
    assert found.count == 5
    assert found.low == pytest.approx(3 - 1.963243, abs=1e-6)
    assert found.high == pytest.approx(3 + 1.963243, abs=1e-6)


def test_mean_interval_agrees_with_scipy_and_narrows_with_confidence():
    expected = stats.ttest_1samp(SLEEP_2, 0).confidence_interval(0.9)
    found = mean_interval(SLEEP_2, confidence=0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert mean_interval(SLEEP_2).low < found.low


def test_one_value_has_no_interval():
    found = mean_interval([0.87])
    assert found.mean == 0.87
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.count == 1


def test_equal_values_have_an_interval_of_no_width():
    assert mean_interval([0.5, 0.5]) == Interval(0.5, 0.5, 0.5, 2)


@pytest.mark.parametrize("values", [[], [0.8, NAN], [0.8, math.inf], [[0.8, 0.9]]])
def test_what_has_no_mean_is_refused(values):
    with pytest.raises(ValueError, match="finite"):
        mean_interval(values)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_confidence_is_a_share(confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        mean_interval([1, 2], confidence)


def test_welch_on_the_sleep_data():
    # R's t.test(extra ~ group, data = sleep): p = 0.07939, interval -3.3654832 to 0.2054832.
    found = compare_groups(SLEEP_1, SLEEP_2, paired=False)
    assert found.difference == pytest.approx(-1.58)
    assert found.p_value == pytest.approx(0.07939, abs=5e-6)
    assert (found.low, found.high) == pytest.approx((-3.3654832, 0.2054832), abs=1e-7)
    assert found.test == "Welch's t"
    assert not found.evidence


def test_pairs_on_the_sleep_data():
    # R's t.test(Pair(extra.1, extra.2) ~ 1): p = 0.002833, interval -2.4598858 to -0.7001142.
    found = compare_groups(SLEEP_1, SLEEP_2, paired=True)
    assert found.difference == pytest.approx(-1.58)
    assert found.p_value == pytest.approx(0.002833, abs=5e-7)
    assert (found.low, found.high) == pytest.approx((-2.4598858, -0.7001142), abs=1e-7)
    assert found.test == "paired t"
    assert found.evidence


def test_groups_may_differ_in_size_but_pairs_may_not():
    assert compare_groups([1, 2, 3], [5, 6], paired=False).sample == "3 and 2 runs"
    with pytest.raises(ValueError, match="3 and 2"):
        compare_groups([1, 2, 3], [5, 6], paired=True)


@pytest.mark.parametrize("paired", [False, True])
def test_one_run_each_cannot_be_tested(paired):
    found = compare_groups([0.9], [0.8], paired)
    assert found.difference == pytest.approx(0.1)
    assert math.isnan(found.p_value)
    assert math.isnan(found.low)
    assert not found.evidence
    assert "cannot be tested" in found.sentence("A", "B", "accuracy/test")
    assert "no evidence" in found.sentence("A", "B", "accuracy/test")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("a", "b", "paired"),
    [
        ([0.9, 0.9], [0.8, 0.8], False),
        ([0.9, 0.9], [0.9, 0.9], False),
        ([0.90, 0.91, 0.92], [0.88, 0.89, 0.90], True),
    ],
)
def test_no_spread_is_no_certainty(a, b, paired):
    found = compare_groups(a, b, paired)
    assert math.isnan(found.p_value)
    assert not found.evidence
    assert "without any spread" in found.sentence("A", "B", "accuracy/test")


@pytest.mark.filterwarnings("error")
def test_spread_in_one_group_is_enough_for_welch():
    assert compare_groups([0.9, 0.9, 0.9], [0.80, 0.81, 0.82], paired=False).evidence


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_diverged_runs_are_refused(bad):
    with pytest.raises(ValueError, match="`b` must be"):
        compare_groups([1, 2], [1, bad], paired=False)


@pytest.mark.parametrize(
    ("table", "interval", "digits"),
    [
        # Altman et al. 2000, "Statistics with confidence", 2nd edition, page 52.
        ((14, 5, 0, 22), (0.011, 0.226), 3),
        # Cavo et al. 2012, as in Fagerland et al.'s R package contingencytables.
        ((59, 6, 16, 80), (-0.1186, -0.0046), 4),
    ],
)
def test_newcombe_against_published_examples(table, interval, digits):
    found = mcnemar_exact(*paired_table(*table))
    assert (round(found.low, digits), round(found.high, digits)) == interval
    assert found.difference == pytest.approx((table[1] - table[2]) / sum(table))


def test_mcnemar_p_value_by_hand():
    # 1 and 7 discordant pairs: 2 (C(8, 0) + C(8, 1)) / 2⁸ = 18 / 256.
    assert mcnemar_exact(*paired_table(30, 1, 7, 12)).p_value == pytest.approx(18 / 256)
    # 16 against 6: twice the binomial tail.
    found = mcnemar_exact(*paired_table(59, 6, 16, 80))
    tail = sum(math.comb(22, k) for k in range(7)) / 2**22
    assert found.p_value == pytest.approx(2 * tail)


def test_swapping_the_models_mirrors_everything():
    a, b = paired_table(59, 6, 16, 80)
    there, back = mcnemar_exact(a, b), mcnemar_exact(b, a)
    assert there.p_value == back.p_value
    assert (there.difference, there.low, there.high) == pytest.approx(
        (-back.difference, -back.high, -back.low)
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("table", [(8, 0, 0, 2), (10, 0, 0, 0), (0, 0, 0, 10)])
def test_no_discordant_images(table):
    found = mcnemar_exact(*paired_table(*table))
    assert found.p_value == 1
    assert found.difference == 0
    assert found.low <= 0 <= found.high
    assert not found.evidence


@pytest.mark.filterwarnings("error")
def test_one_model_all_right_and_the_other_all_wrong():
    found = mcnemar_exact(*paired_table(0, 1000, 0, 0))
    assert found.difference == 1
    assert found.evidence
    assert 0.9 < found.low < 1
    assert found.high == pytest.approx(1)


def test_intervals_cover_as_they_claim():
    """On two simulated models of the same accuracy, 95 % of intervals hold 0; p agrees."""
    generator = np.random.default_rng(1)
    tables = generator.multinomial(10_000, [0.85, 0.03, 0.03, 0.09], 300)
    found = [mcnemar_exact(*paired_table(*table)) for table in tables[:150]]
    covered = np.mean([one.low <= 0 <= one.high for one in found])
    assert 0.89 <= covered <= 1
    # Only on the verge may interval and p-value disagree.
    for one in found:
        if (one.low <= 0 <= one.high) == one.evidence:
            assert one.p_value == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.ones(3, bool), np.ones(2, bool)),
        (np.zeros(0, bool), np.zeros(0, bool)),
        (np.ones((2, 2), bool), np.ones((2, 2), bool)),
        (np.array([7, 2]), np.array([7, 1])),  # Labels in the place of their correctness.
    ],
)
def test_correctness_must_be_bool_and_of_one_length(a, b):
    with pytest.raises(ValueError, match="Received"):
        mcnemar_exact(a, b)


def test_sentences():
    higher = Comparison(0.0123, 0.0040, 0.0206, 0.0031, "Welch's t", "5 and 5 runs")
    assert higher.sentence("h512", "h128", "accuracy/test") == (
        "accuracy/test of h512 is higher than that of h128 by 0.0123 [0.0040, 0.0206], p = 0.003 "
        "(Welch's t, 5 and 5 runs)"
    )
    lower = Comparison(-0.0123, -0.0206, -0.0040, 1e-9, "paired t", "5 pairs of runs")
    assert lower.sentence("h512", "h128", "accuracy/test") == (
        "accuracy/test of h512 is lower than that of h128 by 0.0123 [0.0040, 0.0206], p < 0.001 "
        "(paired t, 5 pairs of runs)"
    )
    none = Comparison(0.0003, -0.001, 0.0016, 0.612, "Welch's t", "5 and 5 runs")
    assert none.sentence("s0", "s1", "accuracy/test") == (
        "no evidence of a difference in accuracy/test between s0 and s1: 0.0003 "
        "[-0.0010, 0.0016], p = 0.612 (Welch's t, 5 and 5 runs)"
    )
    nothing = Comparison(-1e-9, -0.001, 0.001, 0.9, "Welch's t", "5 and 5 runs")
    assert "s1: 0.0000 [-0.0010, 0.0010]" in nothing.sentence("s0", "s1", "accuracy/test")
    for sentence in (one.sentence("A", "B", "loss/test") for one in (higher, lower, none)):
        assert "equal" not in sentence


def test_evidence_is_below_the_level():
    assert Comparison(1, 0, 2, 0.0499, "", "").evidence
    assert not Comparison(1, 0, 2, 0.05, "", "").evidence
