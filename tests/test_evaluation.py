"""Figures of merit against sums done by hand and against scikit-learn."""

import math

import numpy as np
import pytest
from scipy import stats

from fmnist_lab import evaluation
from fmnist_lab.evaluation.metrics import Scores

# Predicted classes 0, 1, 0, 2; the third is a mistake.
PROBABILITIES = np.array(
    [[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.75, 0.125, 0.125], [0.0, 0.0, 1.0]], np.float32
)
LABELS = np.array([0, 1, 2, 2], np.uint8)


def random_model(n=3000, classes=10, seed=0):
    """Probabilities of a mediocre model that never predicts its last class."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, n).astype(np.uint8)
    logits = generator.normal(size=(n, classes))
    logits[np.arange(n), labels] += 1.5
    logits[:, -1] = -9
    probabilities = np.exp(logits)
    return (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32), labels


def test_scores_by_hand():
    assert evaluation.accuracy(PROBABILITIES, LABELS) == 0.75
    loss = -(math.log(0.5) + math.log(0.75) + math.log(0.125) + math.log(1)) / 4
    assert evaluation.cross_entropy(PROBABILITIES, LABELS) == pytest.approx(loss, rel=1e-12)
    assert evaluation.scores(PROBABILITIES, LABELS) == Scores(0.75, pytest.approx(loss))


def test_a_tie_goes_to_the_lower_class():
    tied = np.array([[0.4, 0.4, 0.2]], np.float32)
    assert evaluation.accuracy(tied, np.array([0], np.uint8)) == 1
    assert evaluation.accuracy(tied, np.array([1], np.uint8)) == 0


def test_confident_mistakes_are_not_capped_at_1e_7():
    sure = np.array([[1.0, 1e-30]], np.float32)
    one = np.array([1], np.uint8)
    assert evaluation.cross_entropy(sure, one) == pytest.approx(30 * math.log(10), rel=1e-6)
    impossible = np.array([[1.0, 0.0]], np.float32)
    assert evaluation.cross_entropy(impossible, one) == pytest.approx(87.3365, abs=1e-3)


def test_a_perfect_model_has_no_loss_and_no_minus():
    perfect = np.eye(3, dtype=np.float32)
    loss = evaluation.cross_entropy(perfect, np.arange(3, dtype=np.uint8))
    assert math.copysign(1, loss) == 1
    assert loss == 0


def test_loss_is_summed_in_double_precision():
    n = 200_000
    probabilities = np.tile(np.array([[0.9, 0.1]], np.float32), (n, 1))
    loss = evaluation.cross_entropy(probabilities, np.zeros(n, np.uint8))
    assert loss == pytest.approx(-math.log(float(np.float32(0.9))), rel=1e-12)


def test_both_gaps_grow_with_overfitting():
    gap = evaluation.gap(train=Scores(0.95, 0.125), test=Scores(0.875, 0.5))
    assert gap == Scores(pytest.approx(0.075), 0.375)


def test_epoch_metrics_come_in_the_order_mlflow_shall_see():
    metrics = evaluation.epoch_metrics(Scores(0.75, 0.25), Scores(0.5, 1.0))
    assert list(metrics.items()) == [
        ("accuracy/test", 0.5),
        ("accuracy/train", 0.75),
        ("accuracy/gap", 0.25),
        ("loss/test", 1.0),
        ("loss/train", 0.25),
        ("loss/gap", 0.75),
    ]
    more = evaluation.epoch_metrics(Scores(0.75, 0.25), Scores(0.5, 1.0), Scores(0.6, 0.9))
    assert list(more.items()) == [
        *metrics.items(),
        ("accuracy/validation", 0.6),
        ("accuracy/gap_validation", pytest.approx(0.15)),
        ("loss/validation", 0.9),
        ("loss/gap_validation", pytest.approx(0.65)),
    ]


def test_mislabelled_images_are_counted_apart():
    answers, given, true = [1, 1, 0, 2, 1, 0], [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]
    probabilities = np.eye(3, dtype=np.float32)[answers]
    # Of unseen images of class 0, a quarter is taken for class 1.
    unseen = np.eye(3, dtype=np.float32)[[0, 0, 2, 1, 1]]
    labels, clean, of_unseen = (np.array(each, np.uint8) for each in (given, true, [0, 0, 0, 0, 1]))
    found = evaluation.mislabelled(probabilities, labels, clean, unseen, of_unseen)
    assert found == {"memorised": 0.5, "seen_through": 0.25, "by_mistake": 0.25}
    assert evaluation.mislabelled(probabilities, labels, labels, unseen, of_unseen) == {}
    elsewhere = np.full(5, 2, np.uint8)
    found = evaluation.mislabelled(probabilities, labels, clean, unseen, elsewhere)
    assert found == {"memorised": 0.5, "seen_through": 0.25}


def test_clean_labels_have_a_gap_of_their_own():
    metrics = evaluation.epoch_metrics(
        Scores(0.75, 0.5), Scores(0.5, 1.0), train_clean=Scores(0.625, 0.75)
    )
    assert list(metrics.items())[6:] == [
        ("accuracy/train_clean", 0.625),
        ("loss/train_clean", 0.75),
        ("accuracy/gap_clean", 0.125),
        ("loss/gap_clean", 0.25),
    ]
    assert metrics["accuracy/gap"] == 0.25


def test_confusion_matrix_by_hand():
    matrix = evaluation.confusion_matrix(PROBABILITIES, LABELS, 3)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 1]]


def test_classes_agree_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    probabilities, labels = random_model()
    predicted = probabilities.argmax(axis=1)
    matrix = evaluation.confusion_matrix(probabilities, labels, 10)
    assert (matrix == metrics.confusion_matrix(labels, predicted, labels=range(10))).all()
    rows = evaluation.per_class(probabilities, labels, [f"class {i}" for i in range(10)])
    ours = np.array([(row.precision, row.accuracy, row.f1, row.support) for row in rows]).T
    theirs = metrics.precision_recall_fscore_support(labels, predicted, zero_division=np.nan)
    assert [row.name for row in rows] == [f"class {i}" for i in range(10)]
    assert math.isnan(ours[0, 9])  # The class that is never predicted.
    np.testing.assert_allclose(ours, np.array(theirs, float), rtol=1e-12)
    assert evaluation.cross_entropy(probabilities, labels) == pytest.approx(
        metrics.log_loss(labels, probabilities / probabilities.sum(axis=1, keepdims=True)), rel=1e-6
    )


def test_a_class_without_images_or_predictions_is_nan():
    probabilities = np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], np.float32)
    rows = evaluation.per_class(probabilities, np.array([0, 0], np.uint8), ["a", "b", "c"])
    assert (rows[0].accuracy, rows[0].precision, rows[0].support) == (0.5, 1.0, 2)
    assert rows[0].f1 == pytest.approx(2 / 3)
    assert math.isnan(rows[1].accuracy)  # Predicted once, but has no image.
    assert (rows[1].precision, rows[1].f1, rows[1].support) == (0.0, 0.0, 0)
    assert all(map(math.isnan, (rows[2].accuracy, rows[2].precision, rows[2].f1)))


def test_calibration_by_hand():
    # Confidences 0.5, 0.75, 0.75, 1 in bins (0, .25], (.25, .5], (.5, .75], (.75, 1]; the first
    # of the two 0.75 is right: ECE = 1/4 * |1 - .5| + 2/4 * |.5 - .75| + 1/4 * |1 - 1| = 0.25.
    found = evaluation.calibration(PROBABILITIES, LABELS, bins=4)
    assert found.ece == 0.25
    assert found.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.count.tolist() == [0, 1, 2, 1]
    np.testing.assert_array_equal(found.confidence, [np.nan, 0.5, 0.75, 1])
    np.testing.assert_array_equal(found.accuracy, [np.nan, 1, 0.5, 1])


def test_calibration_error_is_the_sum_over_its_bins():
    probabilities, labels = random_model(seed=3)
    found = evaluation.calibration(probabilities, labels)
    confidence = probabilities.max(axis=1).astype(float)
    right = probabilities.argmax(axis=1) == labels
    expected = 0.0
    for low, high in zip(found.edges[:-1], found.edges[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert len(found.count) == 15
    assert found.count.sum() == len(labels)
    assert found.ece == pytest.approx(expected, rel=1e-9)


def test_a_perfectly_calibrated_model_has_almost_no_error():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.5, 1, 50_000)
    probabilities = np.stack([confidence, 1 - confidence], axis=1).astype(np.float32)
    labels = (generator.uniform(size=50_000) > confidence).astype(np.uint8)
    assert evaluation.calibration(probabilities, labels).ece < 0.01


def test_confident_mistakes_come_surest_first_and_ties_by_index():
    sure = [0.6, 0.9, 0.8, 0.9, 0.99]
    probabilities = np.array([[value, 1 - value] for value in sure], np.float32)
    labels = np.array([1, 1, 1, 1, 0], np.uint8)
    found = evaluation.confident_mistakes(probabilities, labels, 10)
    assert found.dtype == np.int64
    assert found.tolist() == [1, 3, 2, 0]
    assert evaluation.confident_mistakes(probabilities, labels, 2).tolist() == [1, 3]
    assert evaluation.confident_mistakes(probabilities, labels, 0).tolist() == []


def test_a_model_without_mistakes_has_none_to_show():
    perfect = np.eye(3, dtype=np.float32)
    assert evaluation.confident_mistakes(perfect, np.arange(3, dtype=np.uint8), 5).size == 0


def test_a_diverged_model_can_be_evaluated():
    probabilities = PROBABILITIES.copy()
    probabilities[0] = np.nan
    assert math.isnan(evaluation.cross_entropy(probabilities, LABELS))
    assert 0 <= evaluation.accuracy(probabilities, LABELS) <= 1
    found = evaluation.calibration(probabilities, LABELS)
    assert math.isnan(found.ece)
    assert found.count.sum() == 3
    assert evaluation.confident_mistakes(probabilities, LABELS, 5).tolist() == [2]
    nothing = evaluation.calibration(np.full_like(probabilities, np.nan), LABELS)
    assert nothing.count.sum() == 0


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        (PROBABILITIES[0], LABELS),
        (PROBABILITIES, LABELS[:3]),
        (PROBABILITIES, LABELS[:, None]),
        (PROBABILITIES, LABELS.astype(np.float32)),
        (PROBABILITIES.astype(np.int64), LABELS),
        (PROBABILITIES[:0], LABELS[:0]),
        (PROBABILITIES[:, :2], LABELS),
        (PROBABILITIES, LABELS.astype(np.int64) - 1),
        (20 * PROBABILITIES - 10, LABELS),
    ],
)
@pytest.mark.parametrize(
    "function",
    [
        evaluation.accuracy,
        evaluation.cross_entropy,
        evaluation.scores,
        evaluation.calibration,
        lambda *arrays: evaluation.confusion_matrix(*arrays, 3),
        lambda *arrays: evaluation.per_class(*arrays, ["a", "b", "c"]),
        lambda *arrays: evaluation.confident_mistakes(*arrays, 1),
    ],
)
def test_what_does_not_fit_is_refused_and_named(function, probabilities, labels):
    with pytest.raises(ValueError, match=r"Received: .+"):
        function(probabilities, labels)


@pytest.mark.parametrize(
    "call",
    [
        lambda: evaluation.confusion_matrix(PROBABILITIES, LABELS, 4),
        lambda: evaluation.per_class(PROBABILITIES, LABELS, ["a"]),
        lambda: evaluation.calibration(PROBABILITIES, LABELS, bins=0),
        lambda: evaluation.confident_mistakes(PROBABILITIES, LABELS, -1),
    ],
)
def test_bad_numbers_are_refused_and_named(call):
    with pytest.raises(ValueError, match=r"Received: .+"):
        call()


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (5, 64), (0, 500), (9_012, 10_000)])
def test_intervals_of_shares_are_those_of_scipy(hits, count):
    expected = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    found = evaluation.wilson_interval(hits, count)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_gap_interval_is_the_published_one():
    """Newcombe 1998, table II: 56/70 - 48/80 and 9/10 - 3/10 by method 10."""
    assert evaluation.gap_interval(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert evaluation.gap_interval(9, 10, 3, 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)


def test_gap_intervals_cover_what_they_promise():
    random = np.random.default_rng(0)
    for share, train, test in ((0.9, 400, 100), (0.1, 64, 64)):
        hits = random.binomial((train, test), share, (2_000, 2)).tolist()
        intervals = [evaluation.gap_interval(a, train, b, test) for a, b in hits]
        covered = np.mean([low <= 0 <= high for low, high in intervals])
        assert 0.94 < covered < 0.975
