"""The confidence of a logged model: calibrated, put to use, and tried on other pictures."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import isnan, nan
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from fmnist_lab import data, evaluation, tracking
from fmnist_lab.config.schema import Config
from fmnist_lab.data import others
from fmnist_lab.errors import UserError
from fmnist_lab.evaluation import confidence, conformal
from fmnist_lab.evaluation.confidence import Scaling
from fmnist_lab.jobs import build
from fmnist_lab.texts import counted

if TYPE_CHECKING:
    import keras

    from fmnist_lab.evaluation.metrics import Calibration

OTHERS = {"digits": "handwritten digits", "noise": "noise", "upside_down": "upside-down clothes"}


@dataclass(frozen=True, eq=False)
class Confidence:
    """The findings about one model.

    Attributes:
        figures: Numbers by name, see `measure`.
        before: Calibration on the test images.
        after: The same with the temperature; None if no images were held out to fit one.
        curve: Coverage and risk on the test images, by calibrated confidence.
    """

    figures: dict[str, float]
    before: Calibration
    after: Calibration | None
    curve: tuple[np.ndarray, np.ndarray]


def measure(
    store: tracking.Store, run_id: str, config: Config, coverage: float = confidence.COVERAGE
) -> Confidence:
    """Measure how far the confidence of a run's model can be trusted.

    The images are those of the run: its own held-out images give the temperature, the threshold for
    abstaining, and nothing else.

    Args:
        store: Where the run is.
        run_id: The run, which has trained a model.
        config: The run's config.
        coverage: The share of images to answer, and of conformal sets to hold the true class.

    Returns:
        Figures on the test images, nan where they cannot be had:

        - `calibration/temperature`; `calibration/ece`, `/ece_scaled` with `_low` and `_high` (95 %
          bootstrap intervals), and for either the `floor`, `floor_high` (the mean and the 97.5 %
          quantile of the error of a perfectly calibrated model of the same confidences);
        - `conformal_splits/coverage`, `_low`, `_high` (mean, least and most of 20 splits of the
          test images) and `conformal_splits/size`; `conformal_aps/...` for adaptive sets;
        - `abstaining/coverage`, `abstaining/accuracy`, `accuracy/test`;
        - `auroc_softmax/...` and `auroc_energy/...` for each of `OTHERS`.

    Raises:
        UserError: The model or the data cannot be had, or the data are others than the run's.
    """
    from fmnist_lab.models import saved

    dataset = build.load_data(config)
    digest = tracking.facts(store, run_id)["tags"].get("data.digest")
    if digest != dataset.digest:
        raise UserError(
            f"run {run_id}: received images with the digest {dataset.digest[:12]}, expected those "
            f"that it was trained with, {str(digest)[:12]}; put its data set back"
        )
    model, _ = tracking.load_model(f"runs:/{run_id}/model", store, saved.load)
    build.check_model(model, dataset, f"runs:/{run_id}/model")
    seen = _Seen(model)
    test, labels = seen.probabilities(dataset.test_images), dataset.test_labels
    scaling = None
    if len(dataset.validation_images):
        held_out = seen.probabilities(dataset.validation_images)
        scaling = confidence.fit(held_out, dataset.validation_labels, coverage)
    scaled = test if scaling is None else confidence.scaled(test, scaling.temperature)
    figures = {
        "accuracy/test": evaluation.accuracy(test, labels),
        **_calibration(test, scaled, labels, scaling),
        **_sets(test, labels, coverage),
        **_abstaining(scaled, labels, scaling),
        **_others(seen, dataset),
    }
    before = evaluation.calibration(test, labels)
    after = evaluation.calibration(scaled, labels) if _is_calibrated(scaling) else None
    return Confidence(figures, before, after, confidence.risk_coverage(scaled, labels))


@dataclass(frozen=True)
class Abstention:
    """When a model abstains, and what that buys.

    Attributes:
        scaling: Its temperature and threshold, and the coverage that the threshold is for. Its
            `images` is 0 if no images were held out to fit a temperature on, which is 1 then.
        tested: Number of the test images that the following were measured on; 0: there were none.
        answered: Share of these that it answers; nan without any.
        accuracy: Its accuracy on those that it answers; nan without any.
        accuracy_of_all: Its accuracy if it answered all; nan without any.
    """

    scaling: Scaling
    tested: int = 0
    answered: float = nan
    accuracy: float = nan
    accuracy_of_all: float = nan

    def calibrated(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the calibrated probabilities (n, classes) of the model's own."""
        return confidence.scaled(probabilities, self.scaling.temperature)

    def abstains(self, calibrated: np.ndarray) -> bool:
        """Return whether the model abstains from an image, by its calibrated ones (classes,)."""
        return not float(calibrated.max()) >= self.scaling.threshold

    def facts(self) -> dict[str, float | None]:
        """Return all of it by name, None for what is not known."""
        known = asdict(self)
        found = {**known.pop("scaling"), **known}
        return {name: None if isnan(value) else value for name, value in found.items()}

    def sentence(self) -> str:
        """Say it in plain words."""
        said = f"It abstains where its confidence is below {self.scaling.threshold:.1%}"
        if _is_calibrated(self.scaling):
            said += f" (calibrated, temperature {self.scaling.temperature:.2f})"
        elif self.scaling.images:
            held_out = counted(self.scaling.images, "held-out image")
            said += f" (chosen by {held_out}, too few to calibrate it)"
        if not self.tested:
            return f"{said}."
        return (
            f"{said}: of the {self.tested:,} test images of its run it answers "
            f"{self.answered:.1%}, and {self.accuracy:.1%} of these answers are right, instead of "
            f"{self.accuracy_of_all:.1%} of all."
        )


def abstention(store: tracking.Store, uri: str, coverage: float | None = None) -> Abstention:
    """Return when a logged model abstains, and what that buys on the test images of its run.

    The threshold is the one that is kept with the model, from its held-out images. For another
    coverage, or where no images were held out, it is taken from the confidences on the test images,
    without a look at their labels.

    Args:
        store: The store that the URI refers to.
        uri: runs:/RUN_ID/model, models:/NAME/VERSION or a folder.
        coverage: The share of images to answer, above 0 and at most 1; None: the one that is kept
            with the model, or 0.9.

    Raises:
        UserError: The coverage is no such share, or nothing is known of the model's confidences.
    """
    if coverage is not None and not 0 < coverage <= 1:
        raise UserError(
            f"--abstain: received {coverage:g}, expected the share of images to answer, above 0 "
            "and at most 1, such as 0.9"
        )
    kept, run_id = tracking.read_calibration(uri, store)
    predictions = None
    with suppress(UserError):
        predictions = tracking.read_predictions(store, run_id) if run_id else None
    wanted = coverage or (kept.coverage if kept else confidence.COVERAGE)
    temperature = kept.temperature if kept else 1.0
    scaled = confidence.scaled(predictions[0], temperature) if predictions else None
    if kept is None or kept.coverage != wanted:
        if scaled is None:
            raise UserError(
                f"--abstain: received {wanted:g} for {uri}, of which no confidences are kept that "
                "a threshold could be chosen by; expected the model of a run in this store"
                + (f", or --abstain {kept.coverage:g}" if kept else "")
            )
        threshold = confidence.threshold_of(scaled.max(axis=1), wanted)
        kept = Scaling(temperature, threshold, wanted, kept.images if kept else 0)
    if predictions is None or scaled is None:
        return Abstention(kept)
    answered, accuracy = confidence.selected(scaled, predictions[1], kept.threshold)
    of_all = evaluation.accuracy(scaled, predictions[1])
    return Abstention(kept, len(scaled), answered, accuracy, of_all)


class _Seen:
    """What a model says of images: probabilities, and logits where it has any."""

    def __init__(self, model: keras.Model) -> None:
        from fmnist_lab.models import io

        self.bare = io.logits(model)
        self.model = model

    def logits(self, images: np.ndarray) -> np.ndarray | None:
        """Return logits (n, classes) of images; None if the model has none."""
        from fmnist_lab.training import engines

        if self.bare is None:
            return None
        return engines.predict(self.bare, images, engines.FAST_PREDICTION_BATCH)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return probabilities (n, classes) of images."""
        from fmnist_lab.training import engines

        return engines.predict(self.model, images)

    def scores(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return the scores (n,) that are to be higher for known images."""
        logits = self.logits(images)
        if logits is None:
            return {"softmax": self.probabilities(images).max(axis=1)}
        probabilities = confidence.of_logits(logits)
        return {"softmax": probabilities.max(axis=1), "energy": confidence.energy(logits)}


def _is_calibrated(scaling: Scaling | None) -> TypeGuard[Scaling]:
    return scaling is not None and scaling.images >= confidence.FEWEST_IMAGES


def _calibration(
    test: np.ndarray, scaled: np.ndarray, labels: np.ndarray, scaling: Scaling | None
) -> dict[str, float]:
    temperature = scaling.temperature if _is_calibrated(scaling) else nan
    figures = {"calibration/temperature": temperature}
    for suffix, probabilities in (("", test), ("_scaled", scaled)):
        name = f"calibration/ece{suffix}"
        if suffix and isnan(temperature):
            figures |= dict.fromkeys((name, f"{name}_low", f"{name}_high"), nan)
            continue
        found = confidence.ece_interval(probabilities, labels)
        floor = confidence.ece_floor(probabilities)
        figures |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        figures |= {
            f"calibration/floor{suffix}": floor.value,
            f"calibration/floor{suffix}_high": floor.high,
        }
    return figures


def _sets(test: np.ndarray, labels: np.ndarray, coverage: float) -> dict[str, float]:
    figures = dict[str, float]()
    scores: tuple[conformal.Score, ...] = ("lac", "aps")
    for score in scores:
        name = "conformal_splits" if score == "lac" else "conformal_aps"
        found = conformal.split(test, labels, coverage, score)
        figures |= {
            f"{name}/coverage": float(found.coverage.mean()),
            f"{name}/coverage_low": float(found.coverage.min()),
            f"{name}/coverage_high": float(found.coverage.max()),
            f"{name}/size": float(found.size.mean()),
        }
    return figures


def _abstaining(
    scaled: np.ndarray, labels: np.ndarray, scaling: Scaling | None
) -> dict[str, float]:
    if scaling is None:
        return {"abstaining/coverage": nan, "abstaining/accuracy": nan}
    covered, accuracy = confidence.selected(scaled, labels, scaling.threshold)
    return {"abstaining/coverage": covered, "abstaining/accuracy": accuracy}


def _others(seen: _Seen, dataset: data.Dataset) -> dict[str, float]:
    shape = dataset.test_images.shape[1:]
    pictures: Mapping[str, np.ndarray] = {
        "digits": others.digits(shape),
        "noise": others.noise(shape),
        "upside_down": others.upside_down(dataset.test_images),
    }
    known = seen.scores(dataset.test_images)
    figures = {}
    for name, images in pictures.items():
        other = seen.scores(images)
        for score in ("softmax", "energy"):
            both = score in known
            area = confidence.auroc(known[score], other[score]) if both else nan
            figures[f"auroc_{score}/{name}"] = area
    return figures
