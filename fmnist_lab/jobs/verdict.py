"""Sentences on what the figures of a model mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from fmnist_lab import evaluation
from fmnist_lab.evaluation.confidence import FEWEST_IMAGES

if TYPE_CHECKING:
    from fmnist_lab.data.dataset import Dataset

SLIGHT = 0.05  # A temperature so near to 1 changes no probability by more than some 0.03.


def verdict(metrics: Mapping[str, float], dataset: Dataset) -> str:
    """Say in plain words what an accuracy gap means, if it means anything.

    Args:
        metrics: The `accuracy/train`, `accuracy/test` and `accuracy/gap` of a model.
        dataset: The images that they were measured on.
    """
    labels, test = dataset.train_labels, len(dataset.test_labels)
    hits = round(metrics["accuracy/train"] * len(labels))
    counts = np.bincount(labels, minlength=len(dataset.class_names))
    usual = int(counts.argmax())
    if evaluation.wilson_interval(hits, len(labels))[0] <= counts[usual] / len(labels):
        return (
            f"It is right for {hits:,} of {len(labels):,} training images; always answering "
            f"'{dataset.class_names[usual]}' would be right for {counts[usual]:,}. It has learnt "
            "nothing yet, so its gap says nothing of overfitting."
        )
    if dataset.wrong_labels:
        return _verdict_on_noise(metrics, dataset)
    low, high = evaluation.gap_interval(
        hits, len(labels), round(metrics["accuracy/test"] * test), test
    )
    gap = metrics["accuracy/gap"]
    if low > 0:
        return (
            f"In 100 images it gets {100 * gap:.1f} more right (95 % interval {100 * low:.1f} to "
            f"{100 * high:.1f}) among those it has seen than among new ones: it overfits by that "
            "much."
        )
    interval = f"{gap:+.4f}, with a 95 % interval from {low:+.4f} to {high:+.4f}"
    if high < 0:
        return (
            "It does better on the test images than on the training images: the gap is "
            f"{interval}. "
            "The training figure is measured against the training labels as they are, so wrong "
            "labels among them, or harder images, lower it; this gap does not tell whether the "
            "model overfits."
        )
    return (
        f"There is no evidence of overfitting: the gap is {interval}, for {len(labels):,} training "
        f"and {test:,} test images."
    )


def on_confidence(metrics: Mapping[str, float], validation: int) -> str:
    """Say how far a model's confidence can be trusted.

    Args:
        metrics: Those of its last epoch.
        validation: Number of its validation images.
    """
    temperature = metrics["calibration/temperature"]
    if validation < FEWEST_IMAGES:
        return (
            f"Its confidence: {validation:,} validation images are too few to fit a temperature. "
            f"The calibration error (ECE) on the test images is {metrics['calibration/ece']:.4f}."
        )
    sure = "too sure of itself" if temperature > 1 else "not sure enough of itself"
    if abs(temperature - 1) < SLIGHT:
        sure = "about as sure of itself as it should be"
    return (
        f"Its confidence: by the validation images it is {sure} (temperature {temperature:.2f}). "
        "With that temperature, the calibration error (ECE) on the test images is "
        f"{metrics['calibration/ece_scaled']:.4f} instead of {metrics['calibration/ece']:.4f}."
    )


def _verdict_on_noise(metrics: Mapping[str, float], dataset: Dataset) -> str:
    """Say what the figures mean where training labels were made wrong.

    Args:
        metrics: All metrics of a model.
        dataset: The images that they were measured on.
    """
    train, test, wrong = len(dataset.train_labels), len(dataset.test_labels), dataset.wrong_labels
    learnt, seen = (metrics[f"mislabelled/{name}"] for name in ("memorised", "seen_through"))
    said = (
        f"The training figure, and so the gap, is by the labels that the model was trained on, and "
        f"{wrong:,} of those {train:,} were made wrong. Of these {wrong:,} images it predicts "
        f"{100 * learnt:.1f} % as the wrong label that they have"
    )
    if (mistakes := metrics.get("mislabelled/by_mistake")) is not None:
        is_memory = evaluation.wilson_interval(round(learnt * wrong), wrong)[0] > mistakes
        said += (
            f"; on test images of the same classes, that mistake happens in {100 * mistakes:.1f} %"
            ", "
        ) + (
            "and the difference is learnt by heart"
            if is_memory
            else "so there is no evidence that it has learnt any by heart"
        )
    said += (
        f". It sees through {100 * seen:.1f} %, which it predicts as what they are.\n\n"
        "By the true labels of the training images, "
    )
    shares = [metrics["accuracy/train_clean"], metrics["accuracy/test"]]
    hits = [round(share * count) for share, count in zip(shares, (train, test), strict=True)]
    low, high = evaluation.gap_interval(hits[0], train, hits[1], test)
    gap = 100 * metrics["accuracy/gap_clean"]
    if low > 0:
        return said + (
            f"it gets {gap:.1f} more of 100 right (95 % interval {100 * low:.1f} to "
            f"{100 * high:.1f}) among those than among new ones: it overfits by that much."
        )
    if high < 0:
        return said + (
            f"it gets {-gap:.1f} fewer of 100 right (95 % interval {-100 * high:.1f} to "
            f"{-100 * low:.1f}) among those than among new ones: the wrong labels that it has "
            "learnt are mistakes there."
        )
    return said + (
        f"the gap is {metrics['accuracy/gap_clean']:+.4f}, with a 95 % interval from {low:+.4f} "
        f"to {high:+.4f}: no evidence that it does better among those than among new ones."
    )
