"""The schedule that Keras does not have: up in a line, then constant."""

from __future__ import annotations

from typing import Any

import keras


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that rises in a line over its first steps, then stays."""

    def __init__(self, learning_rate: float, rising: int) -> None:
        self.learning_rate = learning_rate
        self.rising = rising

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step, counted from 0."""
        share = (keras.ops.cast(step, "float32") + 1) / self.rising
        return self.learning_rate * keras.ops.minimum(share, 1.0)

    def get_config(self) -> dict[str, float]:
        """Return the arguments to build it again."""
        return {"learning_rate": self.learning_rate, "rising": self.rising}
