"""What a model says of its data: probabilities, metrics, and all that a run keeps of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fmnist_lab import data, evaluation, tracking

if TYPE_CHECKING:
    import keras
    from matplotlib.figure import Figure

    Figures: TypeAlias = Iterator[tuple[str, Figure]]


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

    def draw() -> Figures:
        from fmnist_lab import plots

        def predicted(some: Any) -> tuple[Any, Any, Any, Sequence[str]]:
            return images[some], probabilities[some], labels[some], names

        for index in (0, 12):
            if index < len(labels):
                yield f"prediction_{index}.png", plots.single_prediction(*predicted(index))
        yield "predictions.png", plots.prediction_grid(*predicted(slice(15)))
        yield "confusion_matrix.png", plots.confusion_matrix(matrix, names)
        yield "calibration.png", plots.reliability_diagram(calibration)
        worst = evaluation.confident_mistakes(probabilities, labels, 15)
        yield "confident_mistakes.png", plots.confident_mistakes(*predicted(worst))

    run.figures(draw)
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

    def draw() -> Figures:
        from fmnist_lab import plots

        yield "first_image.png", plots.first_image(images[0], names[labels[0]])
        yield "training_images.png", plots.image_grid(images[:25], labels[:25], names)

    run.figures(draw)


def draw_curves(run: tracking.Run, history: Sequence[Mapping[str, float]]) -> None:
    """Draw how the metrics of each epoch, from the first, have come along."""
    # Not every epoch need have been evaluated; the last one has.
    curves = {name: [epoch.get(name, math.nan) for epoch in history] for name in history[-1]}
    curves["epoch"] = list(range(1, len(history) + 1))

    def draw() -> Figures:
        from fmnist_lab import plots

        yield "learning_curves.png", plots.learning_curves(curves)

    run.figures(draw)
