"""A run in; its model card, in Markdown, out.

Every number is the run's own, but for what the audit has found in Fashion-MNIST. A line whose value
the run does not have is left out.

The headings are those of Mitchell et al. 2019, "Model Cards for Model Reporting",
arXiv:1810.03993, as far as a run can fill them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import NamedTuple

import numpy as np

from fmnist_lab import evaluation
from fmnist_lab.studies import frames
from fmnist_lab.texts import counted

FILE = "model_card.md"
MOST_CONFUSED, MOST_WEAK = 5, 3


class Audited(NamedTuple):
    """What `python -m fmnist_lab.audit` has found in a data set; docs/audit.md has it."""

    test_images: int
    near_training: int
    suspect_training: int
    suspect_test: int


AUDITED = {"fashion-mnist": Audited(10_000, 82, 255, 37)}
# Metrics that a run may have, and what a card calls them.
MORE = {
    "loss/test": "test loss",
    "loss/gap": "loss gap",
    "accuracy/gap_clean": "accuracy gap on true labels",
    "mislabelled/memorised": "share of the wrong labels that it has memorised",
    "calibration/temperature": "temperature, fitted on the validation images",
    "calibration/ece_scaled": "calibration error (ECE) on the test set with that temperature",
    "conformal/coverage": "share of conformal sets that hold the true class",
    "conformal/size": "mean size of the conformal sets",
}
# Tags that say what a run was made with.
ORIGIN = {
    "mlflow.source.name": "command",
    "mlflow.source.git.commit": "code commit",
    "version.fmnist_lab": "fmnist_lab",
    "version.python": "Python",
    "version.tensorflow": "TensorFlow",
    "version.keras": "Keras",
    "version.numpy": "NumPy",
    "engine": "engine",
    "threads": "threads",
    "device": "device",
}

Predicted = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Described:
    """A run, as a card wants it.

    Attributes:
        name: Its name.
        run_id: Its id.
        tags, params: Its tags and params.
        metrics: The last value of each of its metrics.
        data_name: The name of its data set; "" if it is not known.
        training_images: How many images it was trained on; None if that is not known.
        test: Probabilities float (n, classes) and labels int (n,) of the test set.
        validation: The same of the validation images; None if they were not kept.
        class_names: The names of the classes; empty if they are not known.
        image_shape: The shape of an image; empty if it is not known.
        reproduce: The command that makes it again.
    """

    name: str
    run_id: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    data_name: str
    training_images: int | None
    test: Predicted
    validation: Predicted | None
    class_names: Sequence[str]
    image_shape: Sequence[int]
    reproduce: str


class Figure(NamedTuple):
    """A line of the table of results."""

    name: str
    value: str
    interval: str = ""


def write(run: Described, *, promoted: str = "") -> str:
    """Return the model card of a run, in Markdown.

    Args:
        run: The run.
        promoted: Sentences on its promotion, if there was one.
    """
    import jinja2

    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = files("fmnist_lab.studies").joinpath("model_card.md.j2").read_text(encoding="utf-8")
    probabilities, labels = run.test
    classes = probabilities.shape[1]
    names = run.class_names if len(run.class_names) == classes else list(map(str, range(classes)))
    matrix = evaluation.confusion_matrix(probabilities, labels, classes)
    shown = [escaped(name) for name in names]
    return environment.from_string(template).render(
        name=escaped(run.name),
        kind=escaped(run.params.get("model", "model")),
        promoted=escaped(promoted),
        classes=shown,
        shape=" x ".join(map(str, run.image_shape)),
        data_name=run.data_name,
        data=list(_data(run)),
        caveats=list(_caveats(run)),
        figures=list(_figures(run)),
        confused=list(_confused(matrix, shown)),
        weakest=list(_weakest(matrix, shown)),
        config=[
            _code(f"{key}={value}")
            for key, value in sorted(run.params.items())
            if frames.is_parameter(key) or key in frames.SEEDS
        ],
        reproduce=run.reproduce,
        origin=list(_origin(run)),
    )


def escaped(text: object) -> str:
    """Return a text as Markdown that shows it as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(text).split()))


def _code(text: str) -> str:
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def _data(run: Described) -> Iterator[str]:
    if run.data_name:
        yield f"data set: {escaped(run.data_name)}"
    if digest := run.tags.get("data.digest"):
        yield f"digest (SHA-256 of the arrays after limits and split): {_code(digest)}"
    if run.training_images is not None:
        yield f"training images: {run.training_images:,}"
    if run.validation is not None:
        yield f"validation images: {len(run.validation[1]):,}"
    yield f"test images: {len(run.test[1]):,}"


def _caveats(run: Described) -> Iterator[str]:
    """Yield what makes the figures say less than they seem to."""
    noise = frames.value_of(run.params.get(frames.NOISE))
    if isinstance(noise, int | float) and noise:
        yield f"{noise:.1%} of the training labels were made wrong on purpose"
    if run.params.get("data.random_labels") == "True":
        yield "the training labels were drawn at random"
    if run.params.get("data.noisy_validation") == "True":
        yield "as many of the validation labels were made wrong"
    for key, what in (("exclude", "training"), ("exclude_test", "test")):
        if left_out := run.params.get(f"data.{key}"):
            yield f"{what} images left out (number and hash): {escaped(left_out)}"
    found = AUDITED.get(run.data_name)
    if found is None or len(run.test[1]) != found.test_images:
        return
    yield (
        f"{found.near_training} of the {found.test_images:,} test images are near duplicates of "
        "images in the whole training set, so that they may have been learnt by heart: they are "
        f"{found.near_training / found.test_images:.4f} of the test accuracy at most"
    )
    yield (
        f"{found.suspect_training} training labels and {found.suspect_test} test labels are "
        "probably wrong (docs/audit.md tells how both were found)"
    )


def _figures(run: Described) -> Iterator[Figure]:
    probabilities, labels = run.test
    hits = int((probabilities.argmax(axis=1) == labels).sum())
    yield _share("test accuracy", hits, len(labels))
    if run.validation is not None:
        held_out, true = run.validation
        right = int((held_out.argmax(axis=1) == true).sum())
        yield _share("validation accuracy", right, len(true))
    if (gap := run.metrics.get("accuracy/gap")) is not None:
        interval = ""
        trained = run.metrics.get("accuracy/train")
        if trained is not None and run.training_images and math.isfinite(trained):
            right = round(trained * run.training_images)
            interval = _between(
                *evaluation.gap_interval(right, run.training_images, hits, len(labels))
            )
        yield Figure("accuracy gap, training minus test", f"{gap:.4f}", interval)
    ece = evaluation.calibration(probabilities, labels).ece
    if math.isfinite(ece):
        yield Figure("calibration error (ECE, 15 bins) on the test set", f"{ece:.4f}")
    for metric, name in MORE.items():
        if math.isfinite(value := run.metrics.get(metric, math.nan)):
            yield Figure(name, f"{value:.4f}")


def _share(name: str, hits: int, of: int) -> Figure:
    return Figure(name, f"{hits / of:.4f}", _between(*evaluation.wilson_interval(hits, of)))


def _between(low: float, high: float) -> str:
    return f"{low:.4f} to {high:.4f}"


def _confused(matrix: np.ndarray, names: Sequence[str]) -> Iterator[str]:
    """Yield the most frequent confusions, of a matrix of true against predicted classes."""
    wrong = matrix - np.diag(matrix.diagonal())
    for cell in np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]:
        true, predicted = np.unravel_index(cell, wrong.shape)
        if count := int(wrong[true, predicted]):
            of = int(matrix[true].sum())
            yield (
                f"{names[true]}, taken for {names[predicted]}: {count:,} of "
                f"{counted(of, 'test image')} ({count / of:.1%})"
            )


def _weakest(matrix: np.ndarray, names: Sequence[str]) -> Iterator[str]:
    """Yield the classes with the lowest accuracy, of those that have test images."""
    support = matrix.sum(axis=1)
    tested = np.flatnonzero(support)
    recall = matrix.diagonal()[tested] / support[tested]
    for place in np.argsort(recall, kind="stable")[:MOST_WEAK]:
        yield f"{names[tested[place]]} ({recall[place]:.1%})"


def _origin(run: Described) -> Iterator[str]:
    yield f"run: {_code(run.run_id)}"
    for tag, name in ORIGIN.items():
        if value := run.tags.get(tag):
            yield f"{name}: {_code(value)}"
    if run.tags.get("git.dirty") == "true":
        yield "the checkout had uncommitted changes"
