"""A run that is being written, on a thread of its own, and its life cycle.

Whatever is to be known of a run enters its journal first, on this machine, and goes to the store
from there. A store that is away holds nothing up: what it has missed is delivered when it is back,
at the end of the run, or by `python -m fmnist_lab.runs sync`.
"""

from __future__ import annotations

import functools
import json
import signal
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_lab.errors import DivergedError, UserError
from fmnist_lab.scratch import Event, Scratch
from fmnist_lab.tracking.delivery import Delivery, batch, describe, is_outage, reason, reopen
from fmnist_lab.tracking.heal import heal
from fmnist_lab.tracking.store import DEFAULT_EXPERIMENT, Store, asking

if TYPE_CHECKING:
    import keras
    from matplotlib.figure import Figure

# While a store is away, it is asked again after so long; at the end it is waited for.
RETRY_SECONDS = 5.0
PATIENCE_SECONDS = 20.0


class Run:
    """A run that is being written; see `start`. Without a store, all of it is forgotten."""

    def __init__(
        self,
        store: Store | None,
        experiment: str,
        name: str,
        tags: Mapping[str, str],
        scratch: Scratch | None,
        run_id: str = "",
    ) -> None:
        self.store = store
        self.name = name
        self.id = ""
        self.experiment_id = ""
        self.scratch = scratch
        self.outage = ""
        self._began = _now()
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tracking")
        self._tasks: list[Future[None]] = []
        self._dispensable: list[Future[None]] = []
        self._backlog: deque[tuple[Event, keras.Model | None]] = deque()
        self._refused: list[Exception] = []
        self._retry_at = 0.0
        self._points: dict[int, Event] = {}
        self._latest: Event = {}
        if store is not None:
            assert scratch is not None
            earlier = scratch.events()
            self._points = {event["step"]: event for event in earlier if event["kind"] == "metrics"}
            if run_id:
                # Files are made anew; the rest may not have come through.
                kinds = ("params", "metrics", "tags", "dataset")
                self._backlog.extend((event, None) for event in earlier if event["kind"] in kinds)
            self._again = bool(self._backlog)
            self._tasks.append(
                self._writer.submit(self._open, store, experiment, dict(tags), run_id)
            )

    def _open(self, store: Store, experiment: str, tags: dict[str, str], run_id: str) -> None:
        assert self.scratch is not None
        self.experiment_id = store.open(experiment)
        with asking(store) as client:
            if run_id:
                reopen(store, run_id)
            else:
                tags["scratch"] = str(self.scratch.folder)
                # Not when the store was ready, by when a short training is over.
                made = client.create_run(
                    self.experiment_id, self._began, tags=tags, run_name=self.name
                )
                run_id = made.info.run_id
        opened = {"kind": "run", "id": run_id, "name": self.name, "store": store.uri}
        self.scratch.append({**opened, "experiment": experiment})
        self._delivery = Delivery(store, run_id, self.scratch.files, again=self._again)
        self.id = run_id
        self._flush()
        # A courtesy to others, which is not to harm this run.
        with suppress(Exception):
            _heal_once(store)

    @property
    def store_name(self) -> str:
        """The store as a person would look for it."""
        assert self.store is not None
        return str(self.store.database or self.store.uri)

    @property
    def is_remote(self) -> bool:
        """Whether the store is more than files on this machine."""
        return self.store is not None and self.store.database is None

    @property
    def waiting(self) -> int:
        """How many events the store has not taken yet."""
        return len(self._backlog)

    def wait_until_open(self) -> None:
        """Block until the run exists in the store.

        Raises:
            UserError: The store cannot be used.
        """
        if self._tasks:
            self._tasks[0].result()

    def write(self, task: Callable[[], object], *, essential: bool = False) -> None:
        """Have something written after all that came before; a failure surfaces at the end.

        What is not essential is left out when the run is killed.
        """
        if self.store is None:
            return

        def in_this_run() -> None:
            # Without a run there is nothing to write to.
            if self.id:
                task()

        self._tasks.append(self._writer.submit(in_this_run))
        if not essential:
            self._dispensable.append(self._tasks[-1])

    def params(self, params: Mapping[str, Any]) -> None:
        """Log what was chosen."""
        self._log({"kind": "params", "values": {key: str(value) for key, value in params.items()}})

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log figures of an epoch, in the given order; one that is known stays as it is.

        Raises:
            UserError: The run could not be opened; training on would be in vain.
        """
        if self._tasks and self._tasks[0].done():
            self.wait_until_open()
        values = {name: float(value) for name, value in metrics.items()}
        event = {"kind": "metrics", "step": step, "time": _now(), "values": values}
        self._latest = self._points.get(step, event)
        if step in self._points:
            self.write(lambda: self._send(self._points[step]), essential=True)
        else:
            self._log(event)

    def tags(self, tags: Mapping[str, str]) -> None:
        """Log facts about the run."""
        self._log({"kind": "tags", "values": dict(tags)})

    def text(self, text: str, file: str) -> None:
        """Keep a text file with the run."""
        self._file(file, lambda path: path.write_text(text, encoding="utf-8"), essential=True)

    def json(self, value: Mapping[str, Any], file: str) -> None:
        """Keep nested values as a JSON file, arrays as lists and nan as null."""
        self.text(json.dumps(_plain(value), indent=1), file)

    def figure(self, file: str, draw: Callable[[], Figure]) -> None:
        """Draw a figure on the writing thread and keep it at the artifact root.

        MLflow's compare page shows pictures only from there.
        """
        self._file(file, lambda path: draw().savefig(path))

    def arrays(self, file: str, **arrays: np.ndarray) -> None:
        """Keep arrays with the run, as a compressed .npz."""
        self._file(file, lambda path: np.savez_compressed(path, **arrays))  # type: ignore[arg-type]

    def dataset(self, images: np.ndarray, name: str, digest: str, source: str) -> None:
        """Log which data the run has used, by our own digest.

        MLflow's would cover only the first 10,000 values.
        """
        event = {"kind": "dataset", "name": name, "digest": digest, "source": source}
        self._log({**event, **describe(images)})
        self.tags({"data.digest": digest})

    def model(self, model: keras.Model, class_names: Sequence[str]) -> None:
        """Keep the model: uint8 images in, float32 probabilities out, exact requirements.

        Its metrics are those that were logged last.
        """
        scores = self._latest

        def task() -> None:
            assert self.scratch is not None
            model.save(self.scratch.files / "model.keras")
            event = {
                "kind": "model",
                "file": "model.keras",
                "class_names": list(class_names),
                "metrics": scores,
            }
            self.scratch.append(event)
            self._send(event, model)

        self.write(task)

    def finish(self) -> None:
        """Wait until everything is written, and for a while for a store that is away.

        Raises:
            UserError: Something could not be written.
        """
        self.wait_until_open()
        for task in self._tasks:
            if failure := task.exception():
                raise UserError(
                    f"run {self.id} is incomplete, of its files one could not be made: "
                    f"{reason(failure)}"
                ) from failure
        if self.store and self._refused:
            raise UserError(
                f"run {self.id} is incomplete, the store {self.store.uri} refused: "
                f"{reason(self._refused[0])}"
            ) from self._refused[0]
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._backlog and time.monotonic() < deadline:
            self._writer.submit(self._flush, True).result()
            if self._backlog:
                time.sleep(0.5)

    def close(self, status: str) -> None:
        """Write what is essential, and mark the run; nothing happens if it was never opened."""
        if status == "KILLED":
            for task in self._dispensable:
                task.cancel()
        self._log({"kind": "end", "status": status, "time": _now()})
        self._writer.shutdown()

    def leave(self, *, resumable: bool) -> None:
        """Let go of the scratch folder, and remove it if there is nothing to go on with."""
        if self.scratch is None:
            return
        begun = bool(self.id) or any(self.scratch.checkpoints.iterdir())
        if (resumable and begun) or (self.id and self._backlog):
            self.scratch.release()
        else:
            self.scratch.remove()

    def _log(self, event: Event) -> None:
        """Note an event in the journal, at once, and have it sent."""
        if self.scratch is None:
            return
        try:
            self.scratch.append(event)
        except OSError as error:
            if event["kind"] != "end":
                raise UserError(
                    f"{self.scratch.folder} cannot be written: {error.strerror}; make room, and "
                    "repeat the command with resume=true"
                ) from error
        if event["kind"] == "end":
            self.write(lambda: self._send(event), essential=True)
            return
        # At once, so that what the store is slow to take goes there together.
        self._backlog.append((event, None))
        self.write(self._flush, essential=True)

    def _file(self, file: str, make: Callable[[Path], object], *, essential: bool = False) -> None:
        """Have a file made and sent."""

        def task() -> None:
            assert self.scratch is not None
            make(self.scratch.files / file)
            event = {"kind": "file", "name": file}
            self.scratch.append(event)
            self._send(event)

        self.write(task, essential=essential)

    def _send(self, event: Event, model: keras.Model | None = None) -> None:
        self._backlog.append((event, model))
        self._flush()

    def _flush(self, at_once: bool = False) -> None:
        """Deliver what waits, in order, unless the store was away a moment ago."""
        if time.monotonic() < self._retry_at and not at_once:
            return
        together = True
        while self._backlog:
            events = batch(event for event, _ in tuple(self._backlog)) if together else []
            try:
                if len(events) > 1:
                    self._delivery.deliver_values(events)
                else:
                    self._delivery.deliver(*self._backlog[0])
            except Exception as error:
                if is_outage(error):
                    self.outage = reason(error)
                    self._retry_at = time.monotonic() + RETRY_SECONDS
                    self._delivery.again = True
                    return
                if len(events) > 1:
                    # One of them is refused, and is not to take the others along.
                    together = False
                    continue
                self._refused.append(error)
            self._retry_at = 0.0
            for _ in range(max(len(events), 1)):
                self._backlog.popleft()


@contextmanager
def start(
    store: Store | None,
    experiment: str | None,
    name: str,
    tags: Mapping[str, str],
    *,
    scratch: Scratch | None = None,
    run_id: str = "",
) -> Iterator[Run]:
    """Open a run, and close it as what it turns out to be.

    Args:
        store: Where to keep it; None: nowhere.
        experiment: MLflow's experiment.
        name: The run's name.
        tags: Facts to be known from the start.
        scratch: What an earlier process has left of the run; None: the run is new.
        run_id: The run to be continued; empty: a new one.

    Yields:
        The run, FINISHED after the block, FAILED with the reason as tag `failure` if the block
        raises, KILLED after Ctrl-C or SIGTERM. What can be gone on with stays in its scratch
        folder.

    Raises:
        UserError: The store cannot be used.
    """
    again = scratch is not None
    if store is not None and scratch is None:
        scratch = Scratch.claim(store.unfinished, tags.get("config.hash", "run"))
    run = Run(store, experiment or DEFAULT_EXPERIMENT, name, tags, scratch, run_id)
    with _temporary_files_in(scratch):
        try:
            yield run
            run.finish()
        except KeyboardInterrupt:
            with _undisturbed():
                run.close("KILLED")
                run.leave(resumable=True)
            raise
        except BaseException as error:
            why = str(error) if isinstance(error, UserError) else traceback.format_exc()
            with _undisturbed():
                with suppress(UserError):
                    run.tags({"failure": why[-5000:]})
                run.close("FAILED")
                # The user's own mistake would only be repeated; what there was before stays.
                mistake = isinstance(error, UserError) and error.__cause__ is None
                diverged = isinstance(error, DivergedError)
                run.leave(resumable=not diverged and (again or not mistake))
            raise
        else:
            with _undisturbed():
                run.close("FINISHED")
                run.leave(resumable=False)


@contextmanager
def _temporary_files_in(scratch: Scratch | None) -> Iterator[None]:
    """Have libraries put their temporary files where they are found if this process is killed."""
    if scratch is None:
        yield
        return
    before, tempfile.tempdir = tempfile.tempdir, str(scratch.temporary)
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM for the moment it takes to leave a run in its right state."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@functools.cache
def _heal_once(store: Store) -> None:
    """Heal what other processes have left; the jobs of one sweep need not each ask."""
    heal(store)


def _now() -> int:
    """Milliseconds since 1970, as MLflow has times."""
    return int(time.time() * 1000)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: arrays as lists, nan as null."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
