"""Learning-rate schedules: each a function from (peak rate, steps of the run, options).

It returns what a Keras optimizer takes as its `learning_rate`.
"""

from __future__ import annotations

from typing import Any

import keras


def constant(learning_rate: float, steps: int) -> float:
    """Keep one rate from the first step to the last."""
    return learning_rate


def cosine(
    learning_rate: float, steps: int, warmup: float = 0.0, start: float = 0.0, final: float = 0.0
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Rise in a line to the peak, then fall along half a cosine.

    Without a warm-up it is the decay of Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5; with
    a long one, the one-cycle policy of Smith and Topin 2018, arXiv:1708.07120.

    Args:
        learning_rate: The peak.
        steps: Steps of the whole run.
        warmup: Share of the steps in which the rate rises, from 0 up to, not including, 1.
        start: Rate of the first step, as a share of the peak; needs a warm-up.
        final: What it falls towards, as a share of the peak; a step after the last would have it.

    Returns:
        A Keras schedule over the optimizer's steps.
    """
    rising = round(warmup * steps)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=learning_rate * start if rising else learning_rate,
        decay_steps=max(1, steps - rising),
        alpha=final,
        warmup_target=learning_rate if rising else None,
        warmup_steps=rising,
    )


def warmup(learning_rate: float, steps: int, warmup: float = 0.05) -> WarmUp:
    """Rise in a line to the peak, then stay there."""
    return WarmUp(learning_rate, max(1, round(warmup * steps)))


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
