"""The exact state of a training after an epoch: save, find, restore.

A checkpoint holds all variables of model and optimizer, the state of callbacks, the history and
what is needed to go on, so that an interrupted run ends with the same bits as one that was never
disturbed. It is one NumPy .npz file without pickles, whose members carry checksums; it is written
aside, synced and renamed, so that a torn one is never found under its name.
"""

from __future__ import annotations

import json
import os
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_lab.errors import UserError

if TYPE_CHECKING:
    import keras

KEPT = 2
# What Keras itself puts into a callback, and what is set again when training begins.
NOT_STATE = ("_model", "model", "params", "validation_data")


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
    """

    epoch: int
    stopped: bool
    history: list[dict[str, float]]
    model: list[np.ndarray]
    optimizer: list[np.ndarray]
    callbacks: list[dict[str, Any]] = field(default_factory=list)


def capture(
    model: keras.Model,
    optimizer: keras.Optimizer,
    callbacks: Sequence[keras.callbacks.Callback],
    history: Sequence[Mapping[str, float]],
    stopped: bool,
) -> Checkpoint:
    """Copy a training's state between two epochs.

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
    )


def restore(checkpoint: Checkpoint, model: keras.Model, optimizer: keras.Optimizer) -> None:
    """Give model and optimizer the state of a checkpoint.

    Raises:
        ValueError: They are of another shape than those it was taken from.
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
        checkpoint: What to write.
        folder: Where.
        keep: How many to keep; None: all.

    Returns:
        The file, on disk for good.

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
    }
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    file = folder / f"epoch-{checkpoint.epoch:06d}.npz"
    part = file.with_suffix(".part")
    try:
        with part.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    _sync(folder)
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
                history=meta["history"],
                **{
                    part: _unpack(meta[part], arrays)
                    for part in ("model", "optimizer", "callbacks")
                },
            )
    except Exception:
        # Whatever the parsers of zip files, arrays and JSON make of a damaged one.
        return None


def newest(folder: Path, most: int | None = None) -> Checkpoint | None:
    """Return the newest checkpoint of a folder that is undamaged, or None.

    Args:
        folder: Where checkpoints were saved.
        most: The last epoch that is of use; None: any.
    """
    for file in _files(folder):
        if most is not None and int(file.stem.rpartition("-")[2]) > most:
            continue
        found = load(file)
        if found is not None:
            return found
    return None


class Keeper:
    """Keeps a training's history and, now and then, its state.

    Attributes:
        history: Metrics of each finished epoch.
        stopped: Whether a callback has ended the training.

    Args:
        folder: Where to save; None: nowhere.
        every: After how many epochs, or seconds such as "10s"; None: never.
        model, optimizer, callbacks: What is trained.
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
            UserError: It is that of another model.
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
                        "model's code has changed since; begin anew without resume=true"
                    ) from error
                self.latest = found
                self.history = list(found.history)
                self.stopped = found.stopped
                self.saved = found.epoch if folder == self._folder else 0
                return True
        return False

    def begin(self) -> None:
        """Give the callbacks, which have just begun, the state they had."""
        if self.latest is not None:
            restore_callbacks(self.latest, self._trained[2])

    def after(self, metrics: Mapping[str, float], *, last: bool, epochs: int) -> None:
        """Note a finished epoch, and save the state if that is due or the training is over.

        Raises:
            UserError: It could not be saved.
        """
        self.history.append(dict(metrics))
        self.stopped = last and len(self.history) < epochs
        if self._folder is None:
            return
        try:
            self.latest = capture(*self._trained, self.history, self.stopped)
        except TypeError:
            # Better to begin anew than to go on from half of a state.
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
                    f"{self._folder}: the state after epoch {self.latest.epoch} cannot be saved: "
                    f"{error.strerror}; what was saved before is intact, so make room, and repeat "
                    "the command with resume=true"
                ) from error
            self.saved = self.latest.epoch
            self._saved_at = time.monotonic()

    def _is_due(self) -> bool:
        if isinstance(self._every, str):
            return time.monotonic() - self._saved_at >= float(self._every.rstrip("s"))
        return self._every is not None and len(self.history) % self._every == 0


def _callback_state(callback: keras.callbacks.Callback) -> dict[str, Any]:
    state = {}
    for name, value in vars(callback).items():
        if name not in NOT_STATE and not callable(value):
            _pack(value, {})
            state[name] = value
    return state


def _pack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Return a value as JSON has it; arrays are put aside under a name of their own."""
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
    """Checkpoints by epoch, the newest first."""
    return sorted(folder.glob("epoch-*.npz"), reverse=True)


def _sync(folder: Path) -> None:
    """Have the renaming itself reach the disk, where a folder can be opened for that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
