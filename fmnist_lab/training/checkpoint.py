"""The exact state of a training after an epoch: save, find, restore.

A checkpoint holds all variables of the model and the optimizer, the state of the callbacks and the
history, so that an interrupted run ends with the same bits as one that was never disturbed. It is
one NumPy .npz file without pickles, whose members carry checksums. It is written aside, synced and
renamed, so that a torn file never has a checkpoint's name.
"""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_lab import compat
from fmnist_lab.errors import UserError, cannot_write
from fmnist_lab.system import durable

if TYPE_CHECKING:
    import keras

KEPT = 2


@dataclass(frozen=True)
class Chosen:
    """The epoch whose weights a model has, if a callback has put other weights in place.

    Attributes:
        epoch: The epoch, from 1; 0 if the callback does not tell.
        monitor: The figure that it was chosen by, such as "val_loss"; "" if it does not tell.
        value: That figure in the epoch; nan if the callback does not tell.
    """

    epoch: int = 0
    monitor: str = ""
    value: float = nan

    def tags(self) -> dict[str, str]:
        """Return the tags that keep this with the run."""
        return {"chosen.epoch": str(self.epoch), "chosen.by": self.monitor} if self.epoch else {}

    def __str__(self) -> str:
        if not self.epoch:
            return "weights of its own"
        figure = self.monitor.replace("val_", "validation ").replace("_", " ")
        return f"the weights of epoch {self.epoch}, whose {figure}, {self.value:.4f}, was the best"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A training's state after an epoch.

    Attributes:
        epoch: The last finished epoch, from 1.
        stopped: Whether a callback ended the training with that epoch.
        history: Metrics of each epoch, from the first.
        model: Every variable of the model, in its order.
        optimizer: Every variable of the optimizer, in its order, the learning rate included.
        callbacks: State of each callback: numbers, texts, arrays and lists of those, by attribute.
        chosen: The epoch whose weights `model` has, if a callback has put others in place.
    """

    epoch: int
    stopped: bool
    history: list[dict[str, float]]
    model: list[np.ndarray]
    optimizer: list[np.ndarray]
    callbacks: list[dict[str, Any]] = field(default_factory=list)
    chosen: Chosen | None = None


def capture(
    model: keras.Model,
    optimizer: keras.Optimizer,
    callbacks: Sequence[keras.callbacks.Callback],
    history: Sequence[Mapping[str, float]],
    stopped: bool,
    chosen: Chosen | None = None,
) -> Checkpoint:
    """Copy a training's state between two epochs.

    Args:
        model: The model that is trained.
        optimizer: The optimizer that trains it.
        callbacks: The callbacks of the training.
        history: The metrics of each finished epoch.
        stopped: Whether a callback has ended the training.
        chosen: The epoch whose weights the model has, if a callback has put others in place.

    Raises:
        TypeError: A callback holds something else than numbers, texts, arrays and lists of them.
    """
    return Checkpoint(
        epoch=len(history),
        stopped=stopped,
        history=[dict(epoch) for epoch in history],
        model=[np.array(variable.numpy()) for variable in model.variables],
        optimizer=[np.array(variable.numpy()) for variable in optimizer.variables],
        callbacks=[_callback_state(callback) for callback in callbacks],
        chosen=chosen,
    )


def restore(checkpoint: Checkpoint, model: keras.Model, optimizer: keras.Optimizer) -> None:
    """Give a model and an optimizer the state of a checkpoint.

    Args:
        checkpoint: The state.
        model: A model of the same architecture.
        optimizer: An optimizer of the same class and options.

    Raises:
        ValueError: The variables have other shapes than those of the checkpoint.
    """
    optimizer.build(model.trainable_variables)
    for variables, values in (
        (model.variables, checkpoint.model),
        (optimizer.variables, checkpoint.optimizer),
    ):
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def restore_callbacks(
    checkpoint: Checkpoint, callbacks: Sequence[keras.callbacks.Callback]
) -> None:
    """Give callbacks, which have begun already, the state of a checkpoint."""
    for callback, state in zip(callbacks, checkpoint.callbacks, strict=True):
        vars(callback).update(state)


def save(checkpoint: Checkpoint, folder: Path, keep: int | None = KEPT) -> Path:
    """Write a checkpoint beside the earlier ones, and remove all but the newest.

    Args:
        checkpoint: The checkpoint.
        folder: The folder of the run's checkpoints, which is there.
        keep: How many to keep; None: all.

    Returns:
        The file, which a power cut would leave whole.

    Raises:
        OSError: It could not be written; the earlier ones are as they were.
    """
    arrays: dict[str, np.ndarray] = {}
    meta = {
        "epoch": checkpoint.epoch,
        "stopped": checkpoint.stopped,
        "history": checkpoint.history,
        "model": _pack(checkpoint.model, arrays),
        "optimizer": _pack(checkpoint.optimizer, arrays),
        "callbacks": _pack(checkpoint.callbacks, arrays),
        "chosen": asdict(checkpoint.chosen) if checkpoint.chosen else None,
    }
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    file = folder / f"epoch-{checkpoint.epoch:06d}.npz"
    part = file.with_suffix(".part")
    try:
        with part.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        durable.replace(part, file)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    for old in _files(folder)[keep:] if keep else []:
        old.unlink(missing_ok=True)
    return file


def load(file: Path) -> Checkpoint | None:
    """Read a checkpoint; None if it is damaged."""
    try:
        with zipfile.ZipFile(file) as archive:
            # NumPy checks a member only if it reads it to its end; a damaged header may prevent it.
            if archive.testzip() is not None:
                return None
        with np.load(file, allow_pickle=False) as arrays:
            meta = json.loads(arrays["meta"].tobytes())
            return Checkpoint(
                epoch=meta["epoch"],
                stopped=meta["stopped"],
                # Checkpoints of version 0.1.0 have no such entry.
                chosen=Chosen(**meta["chosen"]) if meta.get("chosen") else None,
                history=meta["history"],
                **{
                    part: _unpack(meta[part], arrays)
                    for part in ("model", "optimizer", "callbacks")
                },
            )
    except Exception:
        # The parsers of zip files, arrays and JSON raise many kinds of errors for a damaged file.
        return None


def newest(folder: Path, most: int | None = None) -> Checkpoint | None:
    """Return the newest checkpoint of a folder that is undamaged, or None.

    Args:
        folder: The folder of a run's checkpoints.
        most: The last epoch that is of use; None: any.
    """
    for file in _files(folder):
        if most is not None and int(file.stem.rpartition("-")[2]) > most:
            continue
        found = load(file)
        if found is not None:
            return found
    return None


class Checkpointer:
    """Keeps a training's history and, now and then, its state.

    Attributes:
        history: Metrics of each finished epoch.
        stopped: Whether a callback has ended the training.
        chosen: The epoch whose weights the model has, if a callback has put others in place.
        latest: The state after the last finished epoch, if it can be kept.
        saved: The last epoch that is saved in `folder`, from 1; 0: none.

    Args:
        folder: The folder to save in; None: save nothing.
        every: After how many epochs, or seconds such as "10s", to save; None: never.
        model: The model that is trained.
        optimizer: The optimizer that trains it.
        callbacks: The callbacks of the training.
    """

    def __init__(
        self,
        folder: Path | None,
        every: int | str | None,
        model: keras.Model,
        optimizer: keras.Optimizer,
        callbacks: Sequence[keras.callbacks.Callback],
    ) -> None:
        self.history: list[dict[str, float]] = []
        self.stopped = False
        self.chosen: Chosen | None = None
        self.latest: Checkpoint | None = None
        self._folder = folder if every is not None else None
        self._every = every
        self._trained = model, optimizer, callbacks
        self._saved_at = time.monotonic()
        self.saved = 0

    def resume(self, folders: Sequence[Path], epochs: int) -> bool:
        """Go on from the newest checkpoint of the first folder that has one.

        Args:
            folders: Where to look.
            epochs: The last epoch that is wanted.

        Returns:
            Whether there was one.

        Raises:
            UserError: The checkpoint is another model's.
        """
        for folder in folders:
            found = newest(folder, most=epochs)
            if found is not None:
                model, optimizer, _ = self._trained
                try:
                    restore(found, model, optimizer)
                except ValueError as error:
                    raise UserError(
                        f"resume: {folder} holds another model's state, perhaps because the "
                        "model's code has changed since; begin again without resume=true"
                    ) from error
                self.latest = found
                self.history = list(found.history)
                self.stopped, self.chosen = found.stopped, found.chosen
                self.saved = found.epoch if folder == self._folder else 0
                return True
        return False

    def begin(self) -> None:
        """Give the callbacks, which have just begun, the state that they had."""
        if self.latest is not None:
            restore_callbacks(self.latest, self._trained[2])

    def can_keep(self) -> bool:
        """Return whether the state of the training, as it is now, can be kept."""
        try:
            capture(*self._trained, self.history, stopped=False)
        except TypeError:
            return False
        return True

    def after(
        self,
        metrics: Mapping[str, float],
        *,
        last: bool,
        epochs: int,
        chosen: Chosen | None = None,
    ) -> None:
        """Note a finished epoch, and save the state if that is due or the training is over.

        Args:
            metrics: The epoch's metrics.
            last: Whether the training is over.
            epochs: The last epoch that was wanted.
            chosen: The epoch whose weights the model has, if a callback has put others in place.

        Raises:
            UserError: It could not be saved.
        """
        self.history.append(dict(metrics))
        self.stopped, self.chosen = last and len(self.history) < epochs, chosen
        if self._folder is None:
            return
        try:
            self.latest = capture(*self._trained, self.history, self.stopped, chosen)
        except TypeError:
            # It is better to begin again than to go on from half of a state.
            self._folder = self.latest = None
            return
        if last or self._is_due():
            self.save()

    def save(self) -> None:
        """Save the state after the last finished epoch, unless it is saved already.

        Raises:
            UserError: It could not be saved; what was saved before is as it was.
        """
        if self._folder and self.latest and self.latest.epoch > self.saved:
            try:
                save(self.latest, self._folder)
            except OSError as error:
                raise UserError(
                    f"the state after epoch {self.latest.epoch} cannot be saved, what was saved "
                    f"before is as it was: {cannot_write(self._folder, error)}"
                ) from error
            self.saved = self.latest.epoch
            self._saved_at = time.monotonic()

    def _is_due(self) -> bool:
        if isinstance(self._every, str):
            return time.monotonic() - self._saved_at >= float(self._every.rstrip("s"))
        return self._every is not None and len(self.history) % self._every == 0


def _callback_state(callback: keras.callbacks.Callback) -> dict[str, Any]:
    state = {}
    for name, value in compat.callback_state(callback).items():
        if not callable(value):
            _pack(value, {})
            state[name] = value
    return state


def _pack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Return a value in the form of JSON; its arrays go into `arrays`, under a name of their own.

    Raises:
        TypeError: The value is none of a number, a text, an array and a list or mapping of those.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        name = f"a{len(arrays)}"
        arrays[name] = np.asarray(value)
        return {"array": name, "scalar": isinstance(value, np.generic)}
    if isinstance(value, Mapping):
        return {"map": {str(key): _pack(each, arrays) for key, each in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_pack(each, arrays) for each in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cannot keep a {type(value).__name__}")


def _unpack(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_unpack(each, arrays) for each in value]
    if isinstance(value, dict):
        if "map" in value:
            return {key: _unpack(each, arrays) for key, each in value["map"].items()}
        array = arrays[value["array"]]
        return array[()] if value["scalar"] else array
    return value


def _files(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the newest first."""
    return sorted(folder.glob("epoch-*.npz"), reverse=True)
