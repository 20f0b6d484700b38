"""A run that is being written, on a thread of its own.

Every event of a run enters its journal first, on this machine, and goes to the store from there. A
store that is away holds nothing up, and gets what it has missed later.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic_core import to_json

from fmnist_lab.errors import UserError, cannot_write
from fmnist_lab.system import durable
from fmnist_lab.tracking import events
from fmnist_lab.tracking.client import active
from fmnist_lab.tracking.events import Event, Metrics, Status, Tags, now
from fmnist_lab.tracking.failures import Kind, asks, is_full, kind, outlast_lock, reason
from fmnist_lab.tracking.journal import TOKEN_TAG, Journal
from fmnist_lab.tracking.orphans import heal_once
from fmnist_lab.tracking.outbox import Outbox, create, describe, reopen
from fmnist_lab.tracking.query import PAUSED_TAG
from fmnist_lab.tracking.store import Store, experiment_name

if TYPE_CHECKING:
    import keras
    from matplotlib.figure import Figure

# The end of a run waits so long for a store that is away.
PATIENCE_SECONDS = 20.0


class Run:
    """A run that is being written; see `start`. Without a store, all of it is forgotten.

    Attributes:
        store: The store; None if nothing is kept.
        name: The run's name.
        id: The run's id; empty until the run is in the store.
        experiment_id: The id of the run's experiment; empty until then.
        journal: The run's journal; None if nothing is kept.
        failed_before: Whether an earlier process has noted a failure.
        paused_before: Whether an earlier process has paused the run.
        is_paused: Whether the run is to be PAUSED at its end, see `pause`.
    """

    def __init__(
        self,
        store: Store | None,
        experiment: str | None,
        name: str,
        tags: Mapping[str, str],
        journal: Journal | None,
        run_id: str = "",
    ) -> None:
        self.store = store
        self.name = name
        self.id = ""
        self.experiment_id = ""
        self.journal = journal
        self.failed_before = self.paused_before = self.is_paused = False
        self._began = now()
        self._killed = threading.Event()
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tracking")
        self._tasks: list[Future[None]] = []
        self._dispensable: list[Future[None]] = []
        self._points: dict[int, Metrics] = {}
        self._latest: Metrics | None = None
        if store is None or journal is None:
            return
        self._outbox = Outbox(store, journal, again=bool(run_id))
        earlier = journal.events()
        self._points = {event.step: event for event in earlier if isinstance(event, Metrics)}
        noted = [event.values for event in earlier if isinstance(event, Tags)]
        self.failed_before = any("failure" in tags for tags in noted)
        self.paused_before = any(PAUSED_TAG in tags for tags in noted)
        if run_id:
            # Files are made again; the rest may not have come through.
            kinds = events.Params | Metrics | Tags | events.DatasetUsed
            self._outbox.put(*(event for event in earlier if isinstance(event, kinds)))
        self._tasks.append(
            self._writer.submit(self._open, store, journal, experiment, dict(tags), run_id)
        )

    @asks
    def _open(
        self,
        store: Store,
        journal: Journal,
        experiment: str | None,
        tags: dict[str, str],
        run_id: str,
    ) -> None:
        self.experiment_id = outlast_lock(store, lambda: store.open(experiment), self._killed)
        experiment = experiment_name(store, experiment)
        if run_id:
            again = outlast_lock(store, lambda: reopen(store, run_id), self._killed)
            self.failed_before |= bool(again.get("failure"))
        else:
            # The journal comes first, so that no run is in the store that it does not know.
            tags |= {"scratch": str(journal.folder), TOKEN_TAG: uuid.uuid4().hex}
            with self._written():
                journal.append(events.Opening(tags[TOKEN_TAG]))
                journal.sync()
            # The run has begun before the store was ready: a short training is over by then.
            made = self.experiment_id, self.name, self._began, tags
            run_id = outlast_lock(store, lambda: create(store, *made), self._killed)
        with self._written():
            journal.append(events.Opened(run_id, self.name, store.uri, experiment))
        self.id = self._outbox.run_id = run_id
        self._outbox.flush()
        # Healing is a courtesy to other runs, which must not harm this one.
        with suppress(Exception):
            heal_once(store)

    @property
    def waiting(self) -> int:
        """How many events the store has not taken yet."""
        return len(self._outbox) if self.store else 0

    @property
    def outage(self) -> str:
        """Why the store has not taken them; empty if it takes all."""
        held = self._outbox.held if self.store else None
        return reason(held) if held else ""

    def wait_until_open(self) -> None:
        """Block until the run exists in the store.

        Raises:
            UserError: The store cannot be used.
        """
        if self._tasks:
            self._tasks[0].result()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Have `mlflow.log_metric` and the like, in a user's callback, log to this run."""
        self.wait_until_open()
        with active(self.store, self.id) if self.store and self.id else nullcontext():
            yield

    def write(self, task: Callable[[], object], *, essential: bool = False) -> None:
        """Do a task of writing after all tasks before it; a failure surfaces at the end.

        Args:
            task: The task; it is not done if the run cannot be opened.
            essential: Whether the task is done even if the run is killed.
        """
        if self.store is None:
            return

        def in_this_run() -> None:
            if self.id:
                task()

        self._tasks.append(self._writer.submit(in_this_run))
        if not essential:
            self._dispensable.append(self._tasks[-1])

    def params(self, params: Mapping[str, Any]) -> None:
        """Log parameters."""
        self._log(events.Params({key: str(value) for key, value in params.items()}))

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log figures of an epoch, in the given order; an epoch that is known stays as it is.

        Args:
            metrics: The figures by name.
            step: The epoch's number.

        Raises:
            UserError: The run could not be opened, so that more training would be in vain.
        """
        if self._tasks and self._tasks[0].done():
            self.wait_until_open()
        known = self._points.get(step)
        self._latest = known or Metrics(step, now(), {k: float(v) for k, v in metrics.items()})
        if known:
            self._send(known)
        else:
            self._log(self._latest)

    def tags(self, tags: Mapping[str, str]) -> None:
        """Log facts about the run."""
        self._log(Tags(dict(tags)))

    def pause(self, epoch: int) -> None:
        """Have the run PAUSED at its end, with its journal kept for a process that goes on.

        Args:
            epoch: The last finished epoch.
        """
        self.tags({PAUSED_TAG: str(epoch)})
        self.is_paused = True

    def text(self, text: str, file: str) -> None:
        """Keep a text file with the run."""
        self._file(file, lambda path: path.write_text(text, encoding="utf-8"), essential=True)

    def json(self, value: Mapping[str, Any], file: str) -> None:
        """Keep nested values as a JSON file, arrays as lists and nan as null."""
        made = to_json(value, indent=1, inf_nan_mode="null", fallback=lambda each: each.tolist())
        self.text(made.decode(), file)

    def figure(self, file: str, draw: Callable[[], Figure]) -> None:
        """Draw a figure on the writing thread and keep it.

        Args:
            file: The file's name, in no folder: MLflow's compare page shows no other pictures.
            draw: Draws the figure.
        """
        self._file(file, lambda path: draw().savefig(path))

    def arrays(self, file: str, **arrays: np.ndarray) -> None:
        """Keep arrays with the run, as a compressed .npz."""
        self._file(file, lambda path: np.savez_compressed(path, **arrays))  # type: ignore[arg-type]

    def dataset(self, images: np.ndarray, name: str, digest: str, source: str) -> None:
        """Log which data the run has used.

        Args:
            images: The training images, shape (images, height, width) or with channels behind.
            name: The data set's name.
            digest: Our own digest; MLflow's would cover only the first 10,000 values.
            source: Where the data have come from.
        """
        self._log(events.DatasetUsed(name, digest, source, **describe(images)))
        self.tags({"data.digest": digest})

    def model(
        self,
        model: keras.Model,
        class_names: Sequence[str],
        calibration: Mapping[str, float] | None = None,
        divisor: float | None = 1,
    ) -> None:
        """Keep a model with the metrics that were logged last.

        Args:
            model: Takes images, shape (batch, height, width) or with channels behind, and
                returns float32 probabilities, shape (batch, classes).
            class_names: The names of the classes.
            calibration: The content of the model's `calibration.json`; None: it gets none.
            divisor: What pixels, 0 to 255, are divided by to become images that the model takes: 1
                or 255; None: they cannot be made of pixels so.
        """
        ends = model.inputs[0], model.outputs[0]
        inputs, outputs = ((end.dtype, (-1, *end.shape[1:])) for end in ends)
        kept = dict(calibration) if calibration else None
        names = list(class_names)
        event = events.TrainedModel(
            "model.keras", names, self._latest, inputs, outputs, kept, divisor
        )
        self._file("model.keras", model.save, event=event)

    def finish(self) -> None:
        """Wait until everything is written, and for a while for a store that is away.

        Raises:
            UserError: Something could not be written.
        """
        self.wait_until_open()
        for task in self._tasks:
            if failure := task.exception():
                if isinstance(failure, OSError) and is_full(failure) and self.journal:
                    raise cannot_write(self.journal.folder, failure) from failure
                raise UserError(
                    f"run {self.id} is incomplete, one of its files could not be made: "
                    f"{reason(failure)}"
                ) from failure
        if self.store is None:
            return
        for refusal in self._outbox.refused[:1]:
            raise self._outbox.incomplete(refusal) from refusal
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self._written() as journal:
            while self._outbox and time.monotonic() < deadline:
                self._writer.submit(self._outbox.flush, at_once=True).result()
                self.check_disk()
                if self._outbox:
                    time.sleep(0.5)
            self._writer.submit(self._settle, journal).result()

    def _settle(self, journal: Journal) -> None:
        """Have on disk what a finished run needs: its files here, and those that are delivered."""
        durable.sync_tree(journal.files)
        if self._outbox:
            return
        try:
            self._outbox.settle()
        except Exception as error:
            if kind(error) is Kind.AWAY:
                return
            if isinstance(error, OSError):
                raise
            raise self._outbox.incomplete(error) from error

    def check_disk(self) -> None:
        """Raise if the store has not taken everything because its disk is full or broken.

        Raises:
            UserError: The disk is full or broken.
        """
        if self.store:
            self._outbox.check_disk()

    def close(self, status: Status, failure: str = "") -> None:
        """Write what is essential, and mark the run; nothing happens if it was never opened.

        Args:
            status: The run's state from now on.
            failure: Why the run is not finished.
        """
        if status is Status.KILLED:
            self._killed.set()
            for task in self._dispensable:
                task.cancel()
        last: list[Event] = [Tags({"failure": failure[-5000:]})] if failure else []
        for event in (*last, events.End(status, now())):
            # The store may take what a full disk here does not.
            with suppress(UserError):
                self._note(event)
            self._send(event)
        self._writer.shutdown()

    def leave(self, *, resumable: bool) -> None:
        """Let go of the journal, and remove it if there is nothing to go on with.

        Args:
            resumable: Whether a later process may go on with a run that has begun.
        """
        if self.journal is None:
            return
        begun = bool(self.id) or any(self.journal.checkpoints.glob("*"))
        if (resumable and begun) or (self.id and self._outbox):
            self.journal.release()
        else:
            self.journal.remove()

    def _log(self, event: Event) -> None:
        """Note an event in the journal, at once, and have it sent."""
        self._note(event)
        if self.store:
            # At once, so that what the store is slow to take goes there together.
            self._outbox.put(event)
            self.write(self._outbox.flush, essential=True)

    def _send(self, event: Event) -> None:
        """Have an event sent that the journal has, after all tasks before."""

        def task() -> None:
            self._outbox.put(event)
            self._outbox.flush()

        self.write(task, essential=True)

    def _note(self, event: Event) -> None:
        if self.journal is not None:
            with self._written() as journal:
                journal.append(event)

    @contextmanager
    def _written(self) -> Iterator[Journal]:
        """Yield the journal, and tell what to do if it cannot be written."""
        assert self.journal is not None
        try:
            yield self.journal
        except OSError as error:
            raise cannot_write(self.journal.folder, error) from error

    def _file(
        self,
        file: str,
        make: Callable[[Path], object],
        *,
        event: Event | None = None,
        essential: bool = False,
    ) -> None:
        """Have a file made, noted and sent."""

        def task() -> None:
            assert self.journal is not None
            make(self.journal.files / file)
            made = event or events.Artifact(file)
            self.journal.append(made)
            self._outbox.put(made)
            self._outbox.flush()

        self.write(task, essential=essential)
