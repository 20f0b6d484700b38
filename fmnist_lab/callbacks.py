"""Keras callbacks around a loop that knows only epochs: which can be served, and serving them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import keras

from fmnist_lab.errors import UserError

if TYPE_CHECKING:
    from fmnist_lab import evaluation
    from fmnist_lab.training import Epoch

# What callbacks may do that there is no moment for.
BATCH_HOOKS = (
    *("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end"),
    *("on_test_batch_begin", "on_test_batch_end"),
)


def check(
    callbacks: Sequence[keras.callbacks.Callback], optimizer: keras.Optimizer, validated: bool
) -> None:
    """Refuse callbacks that `train` could not serve.

    Args:
        callbacks: Keras callbacks.
        optimizer: What they may change the learning rate of.
        validated: Whether there are validation images.

    Raises:
        UserError: One acts on batches, watches what is not measured, sets a rate that a schedule
            sets, or does what is done anyway.
    """
    base = keras.callbacks.Callback
    scheduled = isinstance(
        optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule
    )
    setters = (keras.callbacks.ReduceLROnPlateau, keras.callbacks.LearningRateScheduler)
    others_measure = not all(map(_only_watches, callbacks))
    for callback in callbacks:
        name = type(callback).__name__
        # Those of LambdaCallback are the instance's own.
        used = [
            hook
            for hook in BATCH_HOOKS
            if hook in vars(callback) or getattr(type(callback), hook) is not getattr(base, hook)
        ]
        # ModelCheckpoint and BackupAndRestore define the hook, and do nothing in it when told so.
        if used and getattr(callback, "save_freq", None) != "epoch":
            raise UserError(
                f"callback {name} acts on batches ({', '.join(used)}), but a whole epoch runs as "
                "one compiled program; use one that acts on epochs"
            )
        if isinstance(callback, keras.callbacks.SwapEMAWeights):
            raise UserError(
                f"callback {name} puts averaged weights in place, which they are between epochs "
                "anyway; leave it out"
            )
        if scheduled and isinstance(callback, setters):
            raise UserError(
                f"callback {name} sets the learning rate, which a schedule sets at every step; "
                "leave out one of them (schedule=constant)"
            )
        _check_monitor(callback, validated, others_measure)


def _is_of_keras(callback: keras.callbacks.Callback) -> bool:
    return type(callback).__module__.partition(".")[0] == "keras"


def _only_watches(callback: keras.callbacks.Callback) -> bool:
    """Whether a callback cannot put a figure of its own among the logs, as anybody's may."""
    return _is_of_keras(callback) and not isinstance(callback, keras.callbacks.LambdaCallback)


def _monitor(callback: keras.callbacks.Callback) -> str:
    return str(getattr(callback, "monitor", ""))


def _check_monitor(
    callback: keras.callbacks.Callback, validated: bool, others_measure: bool
) -> None:
    """Refuse a callback that watches what nobody measures."""
    monitor = _monitor(callback)
    if not monitor or getattr(callback, "save_best_only", True) is False:
        return
    name = type(callback).__name__
    if monitor in ("val_loss", "val_accuracy") and not validated:
        raise UserError(
            f"callback {name} watches {monitor}, but no images are held out to measure it on, "
            "and nothing is chosen on the test set; add for example "
            "data.validation_fraction=0.1"
        )
    scores = ["loss", "accuracy", *(["val_loss", "val_accuracy"] if validated else [])]
    measured = [*scores, "learning_rate"]
    if not others_measure and monitor not in measured:
        raise UserError(
            f"callback {name}: received monitor={monitor}, expected one of {', '.join(measured)}"
        )
    if monitor not in scores and getattr(callback, "mode", "") == "auto":
        raise UserError(
            f"callback {name} watches {monitor}, which may be better the higher or the lower; "
            "add mode=max or mode=min"
        )


class Listeners:
    """Callbacks that have begun, to be told of each epoch; a context, at whose end they end.

    `model.optimizer` is the optimizer meanwhile, where callbacks look for it.
    """

    def __init__(
        self,
        callbacks: Sequence[keras.callbacks.Callback],
        model: keras.Model,
        optimizer: keras.Optimizer,
        epochs: int,
        steps: int,
    ) -> None:
        self.callbacks = callbacks
        self.model = model
        self.optimizer = optimizer
        self.params = {"epochs": epochs, "steps": steps, "verbose": 0}
        self.finished = False

    def __enter__(self) -> None:
        self.model.stop_training = False
        self.before = getattr(self.model, "optimizer", None)
        if self.callbacks:
            self.model.optimizer = self.optimizer
        try:
            for callback in self.callbacks:
                if _is_of_keras(callback) and _monitor(callback) in ("accuracy", "val_accuracy"):
                    # Keras would ask the compiled model's metrics, and there are none.
                    callback.mode = "max" if callback.mode == "auto" else callback.mode
                callback.set_params(dict(self.params))
                callback.set_model(self.model)
                callback.on_train_begin()
        except BaseException:
            self._restore()
            raise

    def __exit__(self, *_: object) -> None:
        self.finish()
        self._restore()

    def _restore(self) -> None:
        if self.callbacks:
            self.model.optimizer = self.before

    def begin(self, number: int) -> None:
        """Tell of an epoch that begins, counted from 1; Keras counts from 0."""
        for callback in self.callbacks:
            callback.on_epoch_begin(number - 1)

    def begin_validation(self) -> None:
        """Tell of a validation that begins."""
        for callback in self.callbacks:
            callback.on_test_begin()

    def end_validation(self, scores: evaluation.Scores) -> None:
        """Tell what a validation has found."""
        for callback in self.callbacks:
            callback.on_test_end({"loss": scores.loss, "accuracy": scores.accuracy})

    def end(self, epoch: Epoch) -> bool:
        """Tell of an epoch that is over; return whether it is the last one."""
        logs = {
            "loss": epoch.loss,
            "accuracy": epoch.accuracy,
            "learning_rate": epoch.learning_rate,
        }
        if epoch.validation:
            logs |= {"val_loss": epoch.validation.loss, "val_accuracy": epoch.validation.accuracy}
        for callback in self.callbacks:
            callback.on_epoch_end(epoch.number - 1, logs)
        return self.model.stop_training or epoch.number == self.params["epochs"]

    def finish(self) -> None:
        """Tell, once, that the training is over."""
        if not self.finished:
            self.finished = True
            for callback in self.callbacks:
                callback.on_train_end()
