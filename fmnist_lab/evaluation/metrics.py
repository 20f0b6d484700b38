"""Probabilities and labels in, figures of merit out.

Every function takes `probabilities`, float32 (n, classes), one row an image and each row summing
to 1, and `labels`, uint8 (n,), the true classes. The predicted class is the most probable one, the
lower index on a tie. Anything that does not fit together raises a `ValueError`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist_lab.evaluation.scaling import SMALLEST_PROBABILITY


@dataclass(frozen=True)
class Scores:
    """Accuracy and loss of a model on one data set, or the two gaps between data sets.

    Attributes:
        accuracy: Share of right predictions, 0 to 1.
        loss: Mean cross-entropy, in nats an image.
    """

    accuracy: float
    loss: float


@dataclass(frozen=True)
class ClassScores:
    """How well one class is recognised; see `per_class` for the formulas and for nan.

    Attributes:
        name: The class's name.
        accuracy: Share of the class's images that were recognised (its recall).
        precision: Share of the predictions of the class that were right.
        f1: Harmonic mean of the two.
        support: Number of images of the class.
    """

    name: str
    accuracy: float
    precision: float
    f1: float
    support: int


@dataclass(frozen=True, eq=False)
class Calibration:
    """How far the model's confidence can be trusted, in bins of equal width.

    Attributes:
        ece: Expected calibration error, 0 (perfect) to 1.
        edges: float64 (bins + 1,), from 0 to 1; bin i holds confidences in (edges[i], edges[i+1]].
        count: int64 (bins,), images in each bin.
        confidence: float64 (bins,), mean confidence in each bin; nan where the bin is empty.
        accuracy: float64 (bins,), share of right predictions; nan where the bin is empty.
    """

    ece: float
    edges: NDArray[np.float64]
    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def accuracy(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of the images whose most probable class is the true one.

    A row of nan (a diverged model) predicts class 0, as `argmax` has it.

    Args:
        probabilities: float32 (n, classes).
        labels: uint8 (n,).

    Returns:
        A share from 0 to 1.

    Raises:
        ValueError: The arrays do not fit together.
    """
    _check(probabilities, labels)
    return float(np.mean(probabilities.argmax(axis=1) == labels))


def cross_entropy(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """Mean negative log-likelihood of the true classes, -1/n Σ ln p(true class).

    Logarithm and sum are float64. Probabilities are clipped from below at float32's smallest
    normal number, 1.2e-38, and not at Keras' 1e-7, so on confident mistakes this exceeds what
    `keras.losses.SparseCategoricalCrossentropy` says of the same probabilities.

    Args:
        probabilities: float32 (n, classes).
        labels: uint8 (n,).

    Returns:
        Nats an image, 0 to 87.3; nan if the probability of a true class is.

    Raises:
        ValueError: The arrays do not fit together.
    """
    _check(probabilities, labels)
    likelihood = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    # `+ 0.0` turns the -0.0 of a perfect model into 0.0.
    return float(-np.log(np.maximum(likelihood, SMALLEST_PROBABILITY)).mean()) + 0.0


def scores(probabilities: NDArray[Any], labels: NDArray[Any]) -> Scores:
    """Accuracy and cross-entropy together; arguments and errors as in those two."""
    return Scores(accuracy(probabilities, labels), cross_entropy(probabilities, labels))


def gap(train: Scores, test: Scores) -> Scores:
    """The train-test gaps, signed so that both grow with overfitting.

    Args:
        train: Scores of the finished model, in inference mode, on the whole training set.
        test: The same on the whole test set.

    Returns:
        Accuracy gap = train - test; loss gap = test - train.
    """
    return Scores(train.accuracy - test.accuracy, test.loss - train.loss)


def mislabelled(
    probabilities: NDArray[Any],
    labels: NDArray[Any],
    clean: NDArray[Any],
    test: NDArray[Any],
    test_labels: NDArray[Any],
) -> dict[str, float]:
    """The model's answers to the images whose labels were made wrong, and to those alone.

    Args:
        probabilities: float32 (n, classes), of the training images.
        labels: uint8 (n,), the labels that the model is trained on.
        clean: uint8 (n,), the labels before some were made wrong.
        test: float32 (m, classes), of images that the model has not seen.
        test_labels: uint8 (m,), their true classes.

    Returns:
        Empty if no label is wrong; else three shares. `memorised`: the images with a wrong label
        that are predicted as that label. `seen_through`: those predicted as their true class; the
        rest is predicted as a third class. `by_mistake`: the `memorised` to expect of a model that
        has not seen these images, the mean of P(wrong label | true class) in the confusion matrix
        of the unseen ones; it is not there if none of these is of such a class.

    Raises:
        ValueError: The arrays do not fit together.
    """
    _check(probabilities, labels)
    _check(probabilities, clean)
    wrong = labels != clean
    if not wrong.any():
        return {}
    rows, given, true = probabilities[wrong], labels[wrong], clean[wrong]
    matrix = confusion_matrix(test, test_labels, probabilities.shape[1])
    count = matrix.sum(axis=1)[true]
    mistakes = matrix[true, given][count > 0] / count[count > 0]
    shares = {"memorised": accuracy(rows, given), "seen_through": accuracy(rows, true)}
    return shares | ({"by_mistake": float(mistakes.mean())} if len(mistakes) else {})


def epoch_metrics(
    train: Scores,
    test: Scores,
    validation: Scores | None = None,
    train_clean: Scores | None = None,
    validation_clean: Scores | None = None,
) -> dict[str, float]:
    """The metrics of one epoch under the names they are tracked by.

    Args:
        train: Scores on the training set, by the labels that the model is trained on. The gap is
            between these and the test set's.
        test: Scores on the test set.
        validation: Scores on the validation split, where there is one.
        train_clean: Scores on the training set by its true labels, where labels were made wrong;
            there is a gap between these and the test set's as well.
        validation_clean: The same of the validation split.

    Returns:
        Names to values. `accuracy/test` is first because MLflow's compare page pre-selects the
        first metric that was logged. The gap to the validation split is there for choices, which
        must not be made by the gap to the test set.
    """
    between = gap(train, test)
    metrics = {
        "accuracy/test": test.accuracy,
        "accuracy/train": train.accuracy,
        "accuracy/gap": between.accuracy,
        "loss/test": test.loss,
        "loss/train": train.loss,
        "loss/gap": between.loss,
    }
    if validation is not None:
        held_out = gap(train, validation)
        metrics |= {
            "accuracy/validation": validation.accuracy,
            "accuracy/gap_validation": held_out.accuracy,
            "loss/validation": validation.loss,
            "loss/gap_validation": held_out.loss,
        }
    further = {"train_clean": train_clean, "validation_clean": validation_clean}
    if train_clean is not None:
        further["gap_clean"] = gap(train_clean, test)
    for part, scored in further.items():
        if scored is not None:
            metrics |= {f"accuracy/{part}": scored.accuracy, f"loss/{part}": scored.loss}
    return metrics


def confusion_matrix(
    probabilities: NDArray[Any], labels: NDArray[Any], classes: int
) -> NDArray[np.int64]:
    """Counts of true against predicted class.

    Args:
        probabilities: float32 (n, classes).
        labels: uint8 (n,).
        classes: Number of classes; must be the number of columns.

    Returns:
        int64 (classes, classes): rows are true classes, columns predicted ones.

    Raises:
        ValueError: The arrays, or `classes`, do not fit together.
    """
    _check(probabilities, labels)
    if probabilities.shape[1] != classes:
        raise ValueError(
            "`classes` must be the number of columns of `probabilities`. "
            f"Received: classes={classes}, probabilities of shape {probabilities.shape}"
        )
    cell = labels.astype(np.int64) * classes + probabilities.argmax(axis=1)
    return np.bincount(cell, minlength=classes**2).reshape(classes, classes).astype(np.int64)


def per_class(
    probabilities: NDArray[Any], labels: NDArray[Any], class_names: Sequence[str]
) -> list[ClassScores]:
    """Accuracy, precision and F1 of every class.

    With TP, FP and FN the class's true positives, false positives and false negatives: accuracy
    (recall) TP / (TP + FN), precision TP / (TP + FP), F1 2 TP / (2 TP + FP + FN). Where that is
    0 / 0 the value is nan, not 0: accuracy of a class with no images, precision of a class that
    was never predicted, F1 only if both hold. Average them with `numpy.nanmean`.

    Args:
        probabilities: float32 (n, classes).
        labels: uint8 (n,).
        class_names: A name for every class.

    Returns:
        One row a class, in the order of `class_names`.

    Raises:
        ValueError: The arrays, or the number of names, do not fit together.
    """
    matrix = confusion_matrix(probabilities, labels, len(class_names))
    hit, support, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid="ignore"):
        rows = zip(
            class_names,
            (hit / support).tolist(),
            (hit / predicted).tolist(),
            (2 * hit / (support + predicted)).tolist(),
            support.tolist(),
            strict=True,
        )
    return [ClassScores(*row) for row in rows]


def calibration(probabilities: NDArray[Any], labels: NDArray[Any], bins: int = 15) -> Calibration:
    """Confidence against accuracy, and the expected calibration error.

    Confidence is the probability of the predicted class. ECE = Σ_b |B_b| / n · |acc(B_b) -
    conf(B_b)| over M bins of equal width ((m-1)/M, m/M]: Guo et al. 2017, arXiv:1706.04599,
    equation 3. Rows of nan are in no bin and make the error nan.

    Args:
        probabilities: float32 (n, classes).
        labels: uint8 (n,).
        bins: M, at least 1; the paper and most after it use 15.

    Returns:
        The error and the bins it was summed over.

    Raises:
        ValueError: The arrays do not fit together, or there is no bin.
    """
    _check(probabilities, labels)
    if bins < 1:
        raise ValueError(f"`bins` must be at least 1. Received: bins={bins}")
    predicted, confidence = _decide(probabilities)
    right = predicted == labels
    known = ~np.isnan(confidence)
    if not known.all():
        right, confidence = right[known], confidence[known]
    edges = np.linspace(0.0, 1.0, bins + 1)
    # Against the inner edges only: 0 belongs to the first bin, and rounding above 1 to the last.
    index = np.searchsorted(edges[1:-1], confidence.astype(np.float64), side="left")
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(index, weights=confidence, minlength=bins) / count
        share = np.bincount(index, weights=right, minlength=bins) / count
    ece = float(np.nansum(count * np.abs(share - mean)) / len(labels))
    return Calibration(
        ece if known.all() else float("nan"), edges, count.astype(np.int64), mean, share
    )


def confident_mistakes(
    probabilities: NDArray[Any], labels: NDArray[Any], count: int
) -> NDArray[np.int64]:
    """Where the model was wrong and surest of it.

    Args:
        probabilities: float32 (n, classes).
        labels: uint8 (n,).
        count: How many to return, at most; there may be fewer mistakes.

    Returns:
        int64 (at most count,): indices of wrong predictions, the most confident first, the lower
        index first where equally confident.

    Raises:
        ValueError: The arrays do not fit together, or `count` is negative.
    """
    _check(probabilities, labels)
    if count < 0:
        raise ValueError(f"`count` must not be negative. Received: count={count}")
    predicted, confidence = _decide(probabilities)
    wrong = np.flatnonzero(predicted != labels)
    return wrong[np.argsort(-confidence[wrong], kind="stable")[:count]].astype(np.int64)


def _decide(probabilities: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    predicted = probabilities.argmax(axis=1)
    return predicted, probabilities[np.arange(len(predicted)), predicted]


def _check(probabilities: NDArray[Any], labels: NDArray[Any]) -> None:
    if (
        probabilities.ndim != 2
        or labels.shape != probabilities.shape[:1]
        or probabilities.size == 0
        or probabilities.dtype.kind != "f"
        or labels.dtype.kind not in "iu"
    ):
        raise ValueError(
            "`probabilities` must be floats of shape (n, classes) and `labels` integers of shape "
            f"(n,), with n and classes at least 1. Received: probabilities {probabilities.dtype} "
            f"{probabilities.shape}, labels {labels.dtype} {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        raise ValueError(
            f"`labels` must be from 0 to {probabilities.shape[1] - 1}, the last column of "
            f"`probabilities`. Received: labels from {labels.min()} to {labels.max()}"
        )
    # Logits in the place of probabilities would give a plausible and wrong loss. Written so that
    # nan passes: a diverged model has to be evaluated too.
    if probabilities.min() < 0 or probabilities.max() > 1.001:
        raise ValueError(
            "`probabilities` must be from 0 to 1 (logits need a softmax first). Received: values "
            f"from {probabilities.min()} to {probabilities.max()}"
        )
