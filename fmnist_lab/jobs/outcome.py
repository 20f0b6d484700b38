"""What a job leaves behind in the process that has done it, for the Python API."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras
    import numpy as np

    from fmnist_lab import tracking
    from fmnist_lab.data.dataset import Dataset


@dataclass(frozen=True)
class Outcome:
    """A job's results in memory.

    Attributes:
        name: The run's name.
        status: The run's state, such as FINISHED.
        store: Where the run is kept; None: nowhere.
        run_id: The run's id; "" if it is kept nowhere, or its store is away.
        params: The run's params.
        metrics: The last metrics.
        history: The metrics of each epoch, from the first; empty if nothing was trained.
        chosen: The epoch whose weights a callback has put in place at the end; 0: the last.
        model: The model; None if an earlier run has answered the config.
        dataset: The data that it was trained and tested on; None with `model`.
        probabilities: Its predictions for the test set, float32 (images, classes); None if there
            are none yet, or with `model`.
        divisor: What pixels are divided by to become the model's images; None: they cannot be.
    """

    name: str
    status: str
    store: tracking.Store | None
    run_id: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    history: Sequence[Mapping[str, float]] = field(default=())
    chosen: int = 0
    model: keras.Model | None = None
    dataset: Dataset | None = None
    probabilities: np.ndarray | None = None
    divisor: float | None = 1


Keep = Callable[[Outcome], object]
