"""What a model says of its data: probabilities, metrics, and all that a run keeps of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_lab import data, evaluation, tracking

if TYPE_CHECKING:
    import keras


def predict(model: keras.Model, dataset: data.Dataset) -> dict[str, np.ndarray]:
    """Return the model's probabilities for each part of the data set that has images."""
    from fmnist_lab import engines

    parts = {
        "train": dataset.train_images,
        "test": dataset.test_images,
        "validation": dataset.validation_images,
    }
    # Only the test set's are kept, for a reloaded model to give again to the last bit.
    sizes = {"train": engines.FAST_PREDICTION_BATCH}
    return {
        part: engines.predict(model, images, sizes.get(part, engines.PREDICTION_BATCH))
        for part, images in parts.items()
        if len(images)
    }


def metrics(probabilities: Mapping[str, np.ndarray], dataset: data.Dataset) -> dict[str, float]:
    """Return the metrics of an epoch, from what `predict` returns."""
    labels = {
        "train": dataset.train_labels,
        "test": dataset.test_labels,
        "validation": dataset.validation_labels,
    }
    scores = {part: evaluation.scores(rows, labels[part]) for part, rows in probabilities.items()}
    return evaluation.epoch_metrics(**scores)


def keep_results(run: tracking.Run, probabilities: np.ndarray, dataset: data.Dataset) -> None:
    """Keep what a finished model says of the test set: predictions, figures of merit, pictures."""
    images, labels, names = dataset.test_images, dataset.test_labels, dataset.class_names
    matrix = evaluation.confusion_matrix(probabilities, labels, len(names))
    calibration = evaluation.calibration(probabilities, labels)
    worst = evaluation.confident_mistakes(probabilities, labels, 15)

    def predicted(some: Any) -> tuple[Any, Any, Any, Sequence[str]]:
        return images[some], probabilities[some], labels[some], names

    for index in (0, 12):
        if index < len(labels):
            draw = partial(lambda one: _plots().single_prediction(*one), predicted(index))
            run.figure(f"prediction_{index}.png", draw)
    run.figure("predictions.png", lambda: _plots().prediction_grid(*predicted(slice(15))))
    run.figure("confusion_matrix.png", lambda: _plots().confusion_matrix(matrix, names))
    run.figure("calibration.png", lambda: _plots().reliability_diagram(calibration))
    run.figure("confident_mistakes.png", lambda: _plots().confident_mistakes(*predicted(worst)))
    run.arrays("predictions.npz", probabilities=probabilities, labels=labels)
    run.json(
        {
            "classes": [
                dataclasses.asdict(row)
                for row in evaluation.per_class(probabilities, labels, names)
            ],
            "confusion_matrix": matrix,
            "calibration": dataclasses.asdict(calibration),
        },
        "evaluation.json",
    )


def draw_data(run: tracking.Run, dataset: data.Dataset) -> None:
    """Draw what the data look like."""
    images, labels, names = dataset.train_images, dataset.train_labels, dataset.class_names
    run.figure("first_image.png", lambda: _plots().first_image(images[0], names[labels[0]]))
    run.figure("training_images.png", lambda: _plots().image_grid(images[:25], labels[:25], names))


def draw_curves(run: tracking.Run, history: Sequence[Mapping[str, float]]) -> None:
    """Draw how the metrics of each epoch, from the first, have come along."""
    # Not every epoch need have been evaluated; the last one has.
    curves = {name: [epoch.get(name, math.nan) for epoch in history] for name in history[-1]}
    curves["epoch"] = list(range(1, len(history) + 1))
    run.figure("learning_curves.png", lambda: _plots().learning_curves(curves))


def _plots() -> ModuleType:
    """Return our plots, imported where they are drawn: on a run's writing thread, or not at all."""
    from fmnist_lab import plots

    return plots
