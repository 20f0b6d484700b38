"""The outputs of a model on its data: probabilities, metrics, and all that a run keeps of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fmnist_lab import data, evaluation, tracking
from fmnist_lab.evaluation import confidence, conformal
from fmnist_lab.jobs import kept
from fmnist_lab.system import provenance

if TYPE_CHECKING:
    import keras
    from matplotlib.figure import Figure

    from fmnist_lab.training.loop import Epoch


class Keeper(Protocol):
    """What takes the outputs of a job: a run of the store, or a result in memory."""

    def figure(self, file: str, draw: Callable[[], Figure]) -> None:
        """Take a figure under a file's name."""

    def arrays(self, file: str, **arrays: np.ndarray) -> None:
        """Take arrays."""

    def json(self, value: Mapping[str, Any], file: str) -> None:
        """Take nested values."""


def predict(model: keras.Model, dataset: data.Dataset) -> dict[str, np.ndarray]:
    """Return the model's probabilities for each part of the data set that has images.

    Args:
        model: A model from this data set's images to probabilities of its classes.
        dataset: The images.

    Returns:
        float32 probabilities, shape (images, classes), by part: train, test, validation.
    """
    from fmnist_lab.training import engines

    probabilities = {}
    for part in ("train", "test", "validation"):
        # Those of the training set are not kept, so no reloaded model has to repeat their bits.
        size = engines.FAST_PREDICTION_BATCH if part == "train" else engines.PREDICTION_BATCH
        if len(images := getattr(dataset, f"{part}_images")):
            probabilities[part] = engines.predict(model, images, size)
    return probabilities


def metrics(probabilities: Mapping[str, np.ndarray], dataset: data.Dataset) -> dict[str, float]:
    """Return the metrics of a model.

    Args:
        probabilities: What `predict` returns, by part.
        dataset: The images that were predicted.
    """
    scores = {
        part: evaluation.scores(rows, getattr(dataset, f"{part}_labels"))
        for part, rows in probabilities.items()
    }
    wrong = {}
    for part, clean in (
        ("train", dataset.clean_train_labels),
        ("validation", dataset.clean_validation_labels),
    ):
        if clean is not None and part in probabilities:
            scores[f"{part}_clean"] = evaluation.scores(probabilities[part], clean)
    if (clean := dataset.clean_train_labels) is not None:
        seen = probabilities["train"], dataset.train_labels, clean
        wrong = evaluation.mislabelled(*seen, probabilities["test"], dataset.test_labels)
    told = {f"mislabelled/{name}": share for name, share in wrong.items()}
    return evaluation.epoch_metrics(**scores) | told


def scaling(
    probabilities: Mapping[str, np.ndarray], dataset: data.Dataset
) -> confidence.Scaling | None:
    """Return a finished model's temperature and threshold.

    Args:
        probabilities: What `predict` returns, by part.
        dataset: The images that were predicted.

    Returns:
        Both, fitted on the validation images; None if there are none.
    """
    held_out = probabilities.get("validation")
    return None if held_out is None else confidence.fit(held_out, dataset.validation_labels)


def of_confidence(
    probabilities: Mapping[str, np.ndarray], dataset: data.Dataset, found: confidence.Scaling
) -> dict[str, float]:
    """Return how far a finished model's confidence can be trusted, under the names of `AT_END`.

    All of it is fitted on the validation images and measured on the test images: the temperature,
    the calibration error before and after, and the share of conformal sets that hold the true class
    beside their mean size. Arguments as in `scaling`, and what that has returned.
    """
    labels, test = dataset.test_labels, probabilities["test"]
    held_out, new = (
        confidence.scaled(probabilities[part], found.temperature) for part in ("validation", "test")
    )
    own = conformal.scores(held_out)[np.arange(len(held_out)), dataset.validation_labels]
    most = conformal.quantile(own, confidence.COVERAGE)
    covered, size = conformal.measure(conformal.sets(conformal.scores(new), most), labels)
    return {
        "calibration/temperature": found.temperature,
        "calibration/ece": evaluation.calibration(test, labels).ece,
        "calibration/ece_scaled": evaluation.calibration(new, labels).ece,
        "conformal/coverage": covered,
        "conformal/size": size,
    }


def of_epoch(
    epoch: Epoch,
    probabilities: Mapping[str, np.ndarray],
    dataset: data.Dataset,
    fitted: confidence.Scaling | None = None,
) -> tuple[dict[str, float], dict[str, str]]:
    """Return all metrics of an epoch.

    Args:
        epoch: A finished epoch.
        probabilities: The model's predictions after it, as `predict` returns them; empty if the
            epoch was not evaluated. The validation images are scored after every epoch, because
            callbacks choose by those scores.
        dataset: The images that were predicted.
        fitted: What `scaling` returns after the last epoch; None before, or without validation
            images.

    Returns:
        The metrics, and a sentence about each figure of a callback that cannot be kept, by name.
    """
    measured = {}
    if probabilities:
        measured = metrics(probabilities, dataset)
        if fitted:
            measured |= of_confidence(probabilities, dataset, fitted)
    elif epoch.validation is not None:
        measured = {
            "accuracy/validation": epoch.validation.accuracy,
            "loss/validation": epoch.validation.loss,
        }
    added, remarks = of_callbacks(epoch)
    trained = {
        "accuracy/fit": epoch.accuracy,
        "loss/fit": epoch.loss,
        "learning_rate": epoch.learning_rate,
        "images_per_second": epoch.images / epoch.seconds,
    }
    return measured | trained | added, remarks


# Metrics of a finished model alone begin with one of these.
AT_END = ("calibration/", "conformal/")
# Metrics of ours begin with, or are called, one of these.
OURS = ("accuracy/", "loss/", "mislabelled/", "learning_rate", "images_per_second", *AT_END)


def of_callbacks(epoch: Epoch) -> tuple[dict[str, float], dict[str, str]]:
    """Return the figures that callbacks have put into an epoch's logs, to be kept as metrics.

    Args:
        epoch: A finished epoch.

    Returns:
        The figures, and a sentence about each of those that cannot be kept, both by name.
    """
    from fmnist_lab.training import callbacks

    measured = callbacks.measured(epoch)
    kept, remarks = dict[str, float](), dict[str, str]()
    for key, value in epoch.logs.items():
        name, number = str(key), _number(value)
        received = f"of type {type(value).__name__}" if number is None else f"= {number:g}"
        fault = ""
        if name in measured:
            own = measured[name]
            if number is None or not np.array_equal(number, own, equal_nan=True):
                fault = f"where {own:g} was measured; the latter is kept"
        elif name.startswith(OURS):
            fault = "under a name of our own metrics; choose another name"
        elif not tracking.is_metric(name):
            fault = (
                "under a name that MLflow does not take; choose one of letters, digits, spaces "
                "and _ - . : /"
            )
        elif number is None:
            fault = "expected one number; it is not kept"
        else:
            kept[name] = number
        if fault:
            where = f"callbacks: in the logs of epoch {epoch.number}"
            remarks[name] = f"{where}, received {name} {received}, {fault}"
    return kept, remarks


def _number(value: Any) -> float | None:
    """Return a number, or an array or tensor of one, as a float; None if it is none."""
    if isinstance(value, str | bytes):
        return None
    try:
        return float(np.asarray(value).item())
    except Exception:
        # An object of somebody else's may raise anything when it is asked for its value.
        return None


def keep_versions(run: tracking.Run, tags: Mapping[str, str]) -> None:
    """Keep the versions of code and libraries that a run is made with.

    Args:
        run: The run that takes them.
        tags: Its tags, which say whether there are uncommitted changes at all.
    """
    run.text(provenance.packages(), kept.PACKAGES)
    if tags.get("git.dirty") == "true" and (changes := provenance.changes()):
        run.text(changes, kept.CHANGES)


def keep_results(run: Keeper, probabilities: np.ndarray, dataset: data.Dataset) -> None:
    """Keep the results of a finished model on the test set: predictions, scores, pictures.

    Args:
        run: The run that takes them.
        probabilities: float32, shape (test images, classes).
        dataset: The test images, with their labels and the names of their classes.
    """
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
    classes = [asdict(row) for row in evaluation.per_class(probabilities, labels, names)]
    scores = {"classes": classes, "confusion_matrix": matrix, "calibration": asdict(calibration)}
    run.json(scores, "evaluation.json")


def keep_validation(
    run: tracking.Run, probabilities: Mapping[str, np.ndarray], dataset: data.Dataset
) -> None:
    """Keep what a finished model predicts for the validation images, if there are any.

    Two models that held out the same images can then be compared without looking at the test set.

    Args:
        run: The run that takes them.
        probabilities: What `predict` returns, by part.
        dataset: The images that were predicted.
    """
    if (held_out := probabilities.get("validation")) is not None:
        labels = dataset.validation_labels
        run.arrays(tracking.VALIDATION, probabilities=held_out, labels=labels)


def keep_model(
    run: tracking.Run,
    model: keras.Model,
    dataset: data.Dataset,
    fitted: confidence.Scaling | None,
    divisor: float | None = 1,
) -> None:
    """Keep a trained model.

    Args:
        run: The run that takes it.
        model: The model.
        dataset: What it was trained with.
        fitted: What `scaling` returns.
        divisor: See `tracking.Run.model`.
    """
    calibration = asdict(fitted) if fitted else None
    run.model(model, dataset.class_names, calibration, divisor)


def draw_data(run: Keeper, dataset: data.Dataset) -> None:
    """Draw the first of the training images."""
    images, labels, names = dataset.train_images, dataset.train_labels, dataset.class_names
    clean = dataset.clean_train_labels
    true = labels if clean is None else clean
    title = names[labels[0]]
    if labels[0] != true[0]:
        title += f" (a wrong label: it is of the class {names[true[0]]})"
    run.figure("first_image.png", lambda: _plots().first_image(images[0], title))
    wrong = labels[:25] != true[:25]
    run.figure(
        "training_images.png",
        lambda: _plots().image_grid(images[:25], labels[:25], names, wrong=wrong),
    )


def draw_curves(run: Keeper, history: Sequence[Mapping[str, float]], chosen: int = 0) -> None:
    """Draw the metrics over the epochs.

    Args:
        run: The run that takes the picture.
        history: The metrics of each epoch, from the first.
        chosen: The epoch whose weights the model has, if a callback has put them back; 0: none.
    """
    # Not every epoch need have been evaluated; the last one has.
    curves = {name: [epoch.get(name, math.nan) for epoch in history] for name in history[-1]}
    curves["epoch"] = list(range(1, len(history) + 1))
    run.figure("learning_curves.png", lambda: _plots().learning_curves(curves, chosen))
    if "mislabelled/memorised" in curves:
        run.figure("mislabelled.png", lambda: _plots().mislabelled(curves, chosen))


def _plots() -> ModuleType:
    """Return our plots; matplotlib is imported on a run's writing thread, or not at all."""
    from fmnist_lab import figures

    return figures
