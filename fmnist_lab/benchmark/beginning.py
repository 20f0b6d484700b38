"""When a training begins its first epoch, as a callback that a config can name."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import keras


class Beginning(keras.callbacks.Callback):
    """Notes the moment of each epoch's beginning, by `time.perf_counter`."""

    moments: ClassVar[list[float]] = []

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the moment."""
        self.moments.append(time.perf_counter())
