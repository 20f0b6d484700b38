"""Keras callbacks around a loop that knows only epochs: checking them, and calling them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from fmnist_lab import compat
from fmnist_lab.errors import UserError
from fmnist_lab.training.checkpoint import Chosen

if TYPE_CHECKING:
    from fmnist_lab import evaluation
    from fmnist_lab.training.loop import Epoch

# Methods of callbacks that are never called, because a whole epoch is one compiled program.
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
        optimizer: The optimizer whose learning rate they may change.
        validated: Whether there are validation images.

    Raises:
        UserError: One acts on batches, watches a figure that is not measured, sets a rate that a
            schedule sets, or does something that is done anyway.
    """
    base = keras.callbacks.Callback
    scheduled = compat.schedule_of(optimizer) is not None
    setters = (keras.callbacks.ReduceLROnPlateau, keras.callbacks.LearningRateScheduler)
    others_measure = not all(map(only_watches, callbacks))
    for callback in callbacks:
        name = type(callback).__name__
        # The hooks of a LambdaCallback are the instance's own.
        used = [
            hook
            for hook in BATCH_HOOKS
            if hook in vars(callback) or getattr(type(callback), hook) is not getattr(base, hook)
        ]
        # The hooks of ModelCheckpoint and BackupAndRestore do nothing with save_freq=epoch.
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


def only_watches(callback: keras.callbacks.Callback) -> bool:
    """Return whether a callback is one of Keras' own, none of which adds a figure to the logs."""
    return _is_of_keras(callback) and not isinstance(callback, keras.callbacks.LambdaCallback)


def _monitor(callback: keras.callbacks.Callback) -> str:
    return str(getattr(callback, "monitor", ""))


def _check_monitor(
    callback: keras.callbacks.Callback, validated: bool, others_measure: bool
) -> None:
    """Refuse a callback that watches a figure which nobody measures."""
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


def measured(epoch: Epoch) -> dict[str, Any]:
    """Return the figures of an epoch, under Keras' names, as the callbacks first see them."""
    logs = {"loss": epoch.loss, "accuracy": epoch.accuracy, "learning_rate": epoch.learning_rate}
    if epoch.validation:
        logs |= {"val_loss": epoch.validation.loss, "val_accuracy": epoch.validation.accuracy}
    return logs


@dataclass
class CallbackRunner:
    """Calls callbacks at each epoch; a context, in which their training begins and ends.

    Meanwhile `model.optimizer` is the optimizer, because callbacks look for it there.

    Attributes:
        callbacks: Keras callbacks that `check` has accepted.
        model: The model that is trained.
        optimizer: The optimizer that trains it.
        epochs: The last epoch's number.
        steps: Steps per epoch.
        finished: Whether the callbacks know that the training is over.
        chosen: The epoch whose weights the model has, if a callback has put others in place.
        validated: The last validation's figures, with those that callbacks added.
    """

    callbacks: Sequence[keras.callbacks.Callback]
    model: keras.Model
    optimizer: keras.Optimizer
    epochs: int
    steps: int
    finished: bool = False
    chosen: Chosen | None = None
    validated: dict[str, Any] = field(default_factory=dict)

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
                callback.set_params({"epochs": self.epochs, "steps": self.steps, "verbose": 0})
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
        """Tell the callbacks that an epoch begins, counted from 1; Keras counts from 0."""
        for callback in self.callbacks:
            callback.on_epoch_begin(number - 1)

    def begin_validation(self) -> None:
        """Tell the callbacks that a validation begins."""
        for callback in self.callbacks:
            callback.on_test_begin()

    def end_validation(self, scores: evaluation.Scores) -> None:
        """Tell the callbacks the scores of a validation."""
        self.validated = {"loss": scores.loss, "accuracy": scores.accuracy}
        for callback in self.callbacks:
            callback.on_test_end(self.validated)

    def end(self, epoch: Epoch) -> tuple[bool, dict[str, Any]]:
        """Tell the callbacks that an epoch is over.

        Returns:
            Whether it is the last one, and the epoch's logs with the figures that callbacks added.
        """
        logs = measured(epoch)
        # As in `fit`, so that the logs hold the figures that `on_test_end` has added.
        logs |= {f"val_{name}": value for name, value in self.validated.items()}
        for callback in self.callbacks:
            callback.on_epoch_end(epoch.number - 1, logs)
        return self.model.stop_training or epoch.number == self.epochs, logs

    def finish(self) -> None:
        """Tell the callbacks, once, that the training is over, and note the chosen epoch."""
        if self.finished:
            return
        self.finished = True
        before = self.model.get_weights() if self.callbacks else []
        for callback in self.callbacks:
            callback.on_train_end()
        after = self.model.get_weights() if self.callbacks else []
        if not all(map(np.array_equal, before, after)):
            self.chosen = _chosen(self.callbacks)


def _chosen(callbacks: Sequence[keras.callbacks.Callback]) -> Chosen:
    """Return the epoch whose weights a callback has restored, as far as the callback tells."""
    for callback in reversed(callbacks):
        if isinstance(callback, keras.callbacks.EarlyStopping) and callback.restore_best_weights:
            return Chosen(callback.best_epoch + 1, _monitor(callback), float(callback.best))
    return Chosen()
