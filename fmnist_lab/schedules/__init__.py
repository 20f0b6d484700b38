"""Learning-rate schedules: each a function from (peak rate, steps of the run, options).

A schedule returns the `learning_rate` of a Keras optimizer: a number or a schedule of Keras. The
config reads its options from the signature, so Keras is imported inside the functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fmnist_lab.config.fields import Fraction, Share

if TYPE_CHECKING:
    from keras.optimizers.schedules import LearningRateSchedule


def constant(learning_rate: float, steps: int) -> float:
    """Keep one rate from the first step to the last.

    Args:
        learning_rate: The rate.
        steps: Number of steps of the whole run.
    """
    return learning_rate


def cosine(
    learning_rate: float,
    steps: int,
    warmup: Share = 0.0,
    start: Fraction = 0.0,
    final: Fraction = 0.0,
) -> LearningRateSchedule:
    """Rise in a line to the peak, then fall along half a cosine.

    Without a warm-up it is the decay of Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5; with
    a long one, the one-cycle policy of Smith and Topin 2018, arXiv:1708.07120.

    Args:
        learning_rate: The peak.
        steps: Number of steps of the whole run.
        warmup: Share of the steps in which the rate rises, from 0 up to, not including, 1.
        start: Rate of the first step, as a share of the peak; needs a warm-up.
        final: The rate that a step after the last would have, as a share of the peak.

    Returns:
        A Keras schedule over the optimizer's steps.
    """
    import keras

    rising = round(warmup * steps)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=learning_rate * start if rising else learning_rate,
        decay_steps=max(1, steps - rising),
        alpha=final,
        warmup_target=learning_rate if rising else None,
        warmup_steps=rising,
    )


def warmup(learning_rate: float, steps: int, warmup: Share = 0.05) -> LearningRateSchedule:
    """Rise in a line to the peak, then stay there.

    Args:
        learning_rate: The peak.
        steps: Number of steps of the whole run.
        warmup: Share of the steps in which the rate rises, from 0 up to, not including, 1.

    Returns:
        A Keras schedule over the optimizer's steps.
    """
    from fmnist_lab.schedules.warm_up import WarmUp

    return WarmUp(learning_rate, max(1, round(warmup * steps)))
