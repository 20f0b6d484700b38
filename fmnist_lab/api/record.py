"""One run, just made or read from a store."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from fmnist_lab import tracking
from fmnist_lab.api.pictures import Pictures
from fmnist_lab.errors import UserError
from fmnist_lab.system import process
from fmnist_lab.tracking.bounds import MOST_ARRAYS
from fmnist_lab.tracking.tables import TAG_COLUMNS

if TYPE_CHECKING:
    import keras
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from fmnist_lab.classifier import Classifier
    from fmnist_lab.jobs.outcome import Outcome

TRUTH: dict[Any, Any] = {"True": True, "False": False}
# Columns of a table of runs that are neither params nor metrics.
FACTS = (
    *("run_id", "name", "status", "started", "ended", "job", "sweeps", "job_number"),
    *TAG_COLUMNS.values(),
)
PARTS = ("train", "validation", "test", "gap")


class Predictions(NamedTuple):
    """What models say of the test set.

    Attributes:
        probabilities: float32 (images, classes) of one run, (runs, images, classes) of several.
        labels: The true classes, (images,).
    """

    probabilities: np.ndarray
    labels: np.ndarray


class Run:
    """A run: what it was made with, what came out, and the model.

    Attributes:
        run_id: Its id; "" if nothing was kept.
        name: Its name.
        status: FINISHED, PAUSED, FAILED, KILLED or RUNNING.
        params: Its parameters by name, as numbers, truth values, texts or tuples of layers.
        metrics: The last value of each metric, by name.
    """

    def __init__(
        self,
        store: tracking.Store | None,
        run_id: str,
        name: str,
        status: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        outcome: Outcome | None = None,
    ) -> None:
        from fmnist_lab.studies.frames import value_of

        self.run_id, self.name, self.status = run_id, name, status
        known = {name: value_of(str(value)) for name, value in params.items()}
        # A table of settings has them as texts, of which "False" counts as true.
        self.params = {name: TRUTH.get(value, value) for name, value in known.items()}
        self.metrics = dict(metrics)
        self._store = store
        # Without a model, an earlier run has answered, and all is in the store.
        self._outcome = outcome if outcome is not None and outcome.model is not None else None

    @classmethod
    def of_row(cls, store: tracking.Store, row: Mapping[Any, Any]) -> Run:
        """Return a run of a table, as `tracking.find` returns it.

        Args:
            store: The store that it is in.
            row: The table's row.
        """
        own = {str(name): value for name, value in row.items() if name not in FACTS}
        params = {name: value for name, value in own.items() if isinstance(value, str)}
        metrics = {
            name: float(value)
            for name, value in own.items()
            if name not in params and not (value is None or math.isnan(value))
        }
        return cls(store, row["run_id"], row["name"], row["status"], params, metrics)

    @classmethod
    def of_outcome(cls, found: Outcome) -> Run:
        """Return the run of a job that this process has done."""
        known = found.params, {k: v for k, v in found.metrics.items() if k != "epoch"}
        return cls(found.store, found.run_id, found.name, found.status, *known, outcome=found)

    @property
    def gap(self) -> float:
        """Training accuracy minus test accuracy; nan if they were not measured."""
        return self.metrics.get("accuracy/gap", math.nan)

    @property
    def accuracy(self) -> float:
        """The test accuracy; nan if it was not measured."""
        return self.metrics.get("accuracy/test", math.nan)

    @cached_property
    @process.store_as_found()
    def history(self) -> pd.DataFrame:
        """The metrics of each epoch, one row per epoch, from 1, and one column per metric."""
        import pandas as pd

        if self._outcome is not None:
            found = pd.DataFrame(list(self._outcome.history))
            return found.set_index(pd.RangeIndex(1, len(found) + 1, name="epoch"))
        curves = tracking.curves(self._kept(), [self.run_id], *self.metrics)
        return (
            curves.pivot(index="epoch", columns="metric", values="value")
            .reindex(columns=[name for name in self.metrics if name in set(curves["metric"])])
            .rename_axis(columns=None)
        )

    @cached_property
    def classifier(self) -> Classifier:
        """The model with the names of its classes, see `fmnist_lab.predict`.

        Raises:
            UserError: The run has no model, or its file is damaged.
        """
        from fmnist_lab import classifier

        outcome = self._outcome
        if outcome is not None and outcome.model is not None and outcome.dataset is not None:
            names = outcome.dataset.class_names
            return classifier.Classifier(outcome.model, names, self.name, outcome.divisor)
        return classifier.load(f"runs:/{self.run_id}", store=self._kept().uri)

    @property
    def model(self) -> keras.Model:
        """The Keras model, from images to probabilities; see `classifier` for errors."""
        return self.classifier.model

    def predict(self, images: npt.ArrayLike) -> np.ndarray:
        """Return the probability of each class.

        Args:
            images: One image or a batch, as the model takes them: uint8 (28, 28) or (n, 28, 28).

        Returns:
            float32 probabilities, shape (classes,) for one image or (n, classes) for a batch.

        Raises:
            UserError: The images have another shape or other values than the model takes.
        """
        return self.classifier.predict(images)

    @cached_property
    @process.store_as_found()
    def predictions(self) -> Predictions:
        """What the model says of the test set, (images, classes), and the true labels.

        Raises:
            UserError: The run has no predictions, or their file is damaged.
        """
        outcome = self._outcome
        if outcome is not None and outcome.dataset is not None:
            if outcome.probabilities is None:
                raise UserError(f"run '{self.name}' is {self.status} and has no predictions yet")
            return Predictions(outcome.probabilities, outcome.dataset.test_labels)
        return Predictions(*tracking.read_predictions(self._kept(), self.run_id))

    @cached_property
    @process.store_as_found()
    def figures(self) -> Pictures:
        """The run's pictures by name, such as "learning_curves" and "confusion_matrix"."""
        if self._outcome is not None:
            return Pictures(_drawings(self._outcome))
        store = self._kept()

        def reader(file: str) -> Callable[[], bytes]:
            return lambda: self.file(file)

        files = tracking.file_names(store, self.run_id)
        names = [file for file in files if file.endswith(".png")]
        return Pictures({name.removesuffix(".png"): reader(name) for name in names})

    @process.store_as_found()
    def file(self, name: str) -> bytes:
        """Return a file that was kept with the run, such as "config.yaml" or "evaluation.json".

        Args:
            name: The file's name.

        Raises:
            UserError: The run has no such file.
        """
        return tracking.read_file(self._kept(), self.run_id, name, MOST_ARRAYS)

    def _kept(self) -> tracking.Store:
        """Return the store that the run is in.

        Raises:
            UserError: It is in none.
        """
        if self._store is None or not self.run_id:
            raise UserError(
                f"run '{self.name}' was kept nowhere (tracking=none), so this is not there; leave "
                "out tracking=none"
            )
        return self._store

    def __repr__(self) -> str:
        told = [f"{self.run_id[:8]} {self.status}".strip()]
        if not math.isnan(self.accuracy):
            told.append(f"test accuracy {self.accuracy:.4f}, gap {self.gap:+.4f}")
        return f"<Run {self.name!r} {': '.join(told)}>"

    def _repr_html_(self) -> str:
        import pandas as pd

        parts = [part for part in PARTS if f"accuracy/{part}" in self.metrics]
        scores = pd.DataFrame(
            [[self.metrics.get(f"{name}/{part}") for part in parts] for name in _SCORES],
            index=list(_SCORES),
            columns=parts,
        )
        from html import escape

        kept = f"id <code>{self.run_id}</code>" if self.run_id else "kept nowhere"
        head = f"<p><b>{escape(self.name)}</b> {self.status}, {kept}</p>"
        return head + (scores.to_html(float_format="{:.4f}".format) if parts else "")


_SCORES = ("accuracy", "loss")


class _Drawings:
    """Takes what a job's outputs would keep with a run, of which only figures are wanted."""

    def __init__(self) -> None:
        self.made: dict[str, Callable[[], bytes]] = {}

    def figure(self, file: str, draw: Callable[[], Any]) -> None:
        """Take a figure."""

        def png() -> bytes:
            content = io.BytesIO()
            draw().savefig(content, format="png")
            return content.getvalue()

        self.made[file.removesuffix(".png")] = png

    def arrays(self, file: str, **arrays: Any) -> None:
        """Leave arrays alone."""

    def json(self, value: Mapping[str, Any], file: str) -> None:
        """Leave nested values alone."""


def _drawings(outcome: Outcome) -> dict[str, Callable[[], bytes]]:
    """Return what makes each of the figures that are kept of a job."""
    from fmnist_lab.jobs import outputs

    drawings = _Drawings()
    assert outcome.dataset is not None
    if outcome.history:
        outputs.draw_data(drawings, outcome.dataset)
    if outcome.probabilities is not None:
        outputs.keep_results(drawings, outcome.probabilities, outcome.dataset)
    if outcome.history:
        outputs.draw_curves(drawings, outcome.history, outcome.chosen)
    return drawings.made
