"""Calibration, abstaining and conformal sets against models whose truth is known."""

import numpy as np
import pytest
from scipy import optimize, special

from fmnist_lab.evaluation import confidence, conformal, metrics


def drawn(n=20_000, sharpness=1.0, seed=0):
    """True probabilities, made `sharpness` times as sure, and labels drawn by the true ones."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(n, 10))
    labels = (logits + generator.gumbel(size=logits.shape)).argmax(axis=1).astype(np.uint8)
    return special.softmax(sharpness * logits, axis=1).astype(np.float32), labels


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_a_known_overconfidence(sharpness):
    probabilities, labels = drawn(sharpness=sharpness)
    found = confidence.fit_temperature(probabilities, labels)
    assert found == pytest.approx(sharpness, rel=0.03)
    logs, truth = np.log(probabilities.astype(np.float64)), np.eye(10)[labels]

    def loss(log_temperature):
        shares = special.log_softmax(logs / np.exp(log_temperature), axis=1)
        return -(shares * truth).sum(axis=1).mean()

    best = optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    assert found == pytest.approx(np.exp(best.x), rel=1e-4)
    calibrated = confidence.scaled(probabilities, found)
    assert metrics.accuracy(calibrated, labels) == metrics.accuracy(probabilities, labels)
    floor = confidence.ece_floor(calibrated, draws=200)
    assert metrics.calibration(calibrated, labels).ece < 1.5 * floor.high
    if sharpness != 1:
        assert metrics.calibration(probabilities, labels).ece > 5 * floor.high


def test_a_temperature_stays_within_its_bounds_and_passes_nan_on():
    sure, labels = np.eye(4, dtype=np.float32), np.arange(4, dtype=np.uint8)
    sure = 0.9 * sure + 0.025
    assert confidence.fit_temperature(sure, labels) == pytest.approx(confidence.COLDEST, rel=1e-3)
    wrong = np.roll(labels, 1)
    assert confidence.fit_temperature(sure, wrong) == pytest.approx(confidence.HOTTEST, rel=1e-3)
    assert np.isnan(confidence.fit_temperature(np.full((4, 4), np.nan, np.float32), labels))
    assert confidence.fit(np.full((4, 4), np.nan, np.float32), labels) is None


def test_the_interval_of_an_error_covers_the_error_of_very_many_images():
    everything = drawn(200_000, 1.05, seed=1)  # near the floor, where chance raises it most
    truth = metrics.calibration(*everything).ece
    held = 0
    for start in range(0, 80_000, 2000):
        some = [each[start : start + 2000] for each in everything]
        known = confidence.ece_interval(*some, draws=100)
        assert known.low <= known.value
        held += known.low <= truth <= known.high
    assert held >= 34  # of 40, 38 to be expected


def test_abstaining_answers_the_surest():
    probabilities, labels = drawn(2000)
    threshold = confidence.threshold_of(probabilities.max(axis=1), 0.7)
    coverage, accuracy = confidence.selected(probabilities, labels, threshold)
    assert coverage == 0.7
    covered, risk = confidence.risk_coverage(probabilities, labels)
    assert covered[1399] == 0.7
    assert risk[1399] == pytest.approx(1 - accuracy)
    assert risk[-1] == pytest.approx(1 - metrics.accuracy(probabilities, labels))
    assert np.isnan(confidence.selected(probabilities, labels, 1.1)[1])


def test_the_area_counts_pairs_and_half_of_the_ties():
    generator = np.random.default_rng(0)
    known, other = generator.integers(2, 9, 500), generator.integers(0, 7, 300)
    pairs = np.sign(known[:, None] - other)
    assert confidence.auroc(known, other) == pytest.approx((pairs.mean() + 1) / 2, abs=1e-12)


def test_energy_does_not_overflow():
    logits = np.array([[1000, 1000, 0], [0, 1, 2]], np.float32)
    assert confidence.energy(logits) == pytest.approx(special.logsumexp(logits, axis=1))


@pytest.mark.parametrize("score", ["lac", "aps"])
def test_conformal_sets_hold_the_true_class_as_often_as_promised(score):
    probabilities, labels = drawn(10_000, sharpness=2.5)  # wrong probabilities do not matter
    found = conformal.split(probabilities, labels, 0.9, score)
    assert len(found.coverage) == 20
    assert found.coverage.mean() == pytest.approx(0.9, abs=0.005)
    assert (found.size > 1).all()


def test_few_images_get_the_finite_sample_quantile():
    own = np.arange(9.0)
    assert conformal.quantile(own, 0.9) == 8  # the ninth of ten places
    assert conformal.quantile(own, 0.91) == np.inf
    assert conformal.quantile(own, 0.5) == 4
    covered = []
    for seed in range(400):
        probabilities, labels = drawn(39, seed=seed)
        covered.append(conformal.split(probabilities, labels, 0.9, splits=5).coverage.mean())
    # 19 images to calibrate: 18 of 20 places. Without the + 1 it would be 0.85.
    assert np.mean(covered) == pytest.approx(0.9, abs=0.012)


def test_adaptive_sets_by_hand():
    p = np.array([[0.2, 0.5, 0.3]], np.float32)
    u = np.random.default_rng(0).random()
    assert conformal.scores(p, "aps") == pytest.approx(
        np.array([[0.8 + 0.2 * u, 0.5 * u, 0.5 + 0.3 * u]])
    )
    assert conformal.scores(p) == pytest.approx(np.array([[0.8, 0.5, 0.7]]))


def test_bad_numbers_are_refused():
    probabilities, labels = drawn(10)
    with pytest.raises(ValueError, match="temperature=0"):
        confidence.scaled(probabilities, 0)
    for coverage in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="coverage"):
            confidence.fit(probabilities, labels, coverage)
    with pytest.raises(ValueError, match="coverage=1"):
        conformal.quantile(np.ones(3), 1)


def test_a_calibrated_model_is_left_nearly_as_it_is():
    generator = np.random.default_rng(5)
    logits = generator.normal(0, 2, (4000, 5))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (true.cumsum(axis=1) > generator.random((4000, 1))).argmax(axis=1)
    assert confidence.fit(true.astype(np.float32), labels).temperature == pytest.approx(1, rel=0.05)
    too_sure = confidence.scaled(true.astype(np.float32), 0.5)
    assert confidence.fit(too_sure, labels).temperature == pytest.approx(2, rel=0.1)
    few = too_sure[:499], labels[:499]
    assert confidence.fit(*few).temperature == 1
    assert confidence.fit(too_sure, too_sure.argmax(axis=1)).temperature == 1
