"""Numbers from predictions and from runs: metrics, calibration, intervals and tests."""

from fmnist_lab.evaluation.metrics import (
    Scores,
    accuracy,
    calibration,
    confident_mistakes,
    confusion_matrix,
    cross_entropy,
    epoch_metrics,
    gap,
    mislabelled,
    per_class,
    scores,
)
from fmnist_lab.evaluation.shares import gap_interval, wilson_interval

__all__ = [
    "Scores",
    "accuracy",
    "calibration",
    "confident_mistakes",
    "confusion_matrix",
    "cross_entropy",
    "epoch_metrics",
    "gap",
    "gap_interval",
    "mislabelled",
    "per_class",
    "scores",
    "wilson_interval",
]
