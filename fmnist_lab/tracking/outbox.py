"""The outbox: events on their way from a run's journal into the store.

An event can be delivered again without being doubled: params and tags are set to their values,
files are replaced, and MLflow itself drops a second metric of the same name, step, time and value.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from fmnist_lab import compat
from fmnist_lab.errors import UserError
from fmnist_lab.tracking import events, modelfiles
from fmnist_lab.tracking.client import asking, client_of, quiet_mlflow
from fmnist_lab.tracking.events import Event, Values
from fmnist_lab.tracking.failures import Kind, deleted, kind, reason, refused
from fmnist_lab.tracking.files import settle, sync_store
from fmnist_lab.tracking.journal import Journal
from fmnist_lab.tracking.store import Store, surrounding_run

# A store that is away is asked again after so long.
RETRY_SECONDS = 5.0
# MLflow takes so many values in a call.
MOST_VALUES = {events.Params: 100, events.Metrics: 800, events.Tags: 100}


class Outbox:
    """Takes the events of a run to the store, in order, and keeps what the store does not take.

    Attributes:
        run_id: The run; empty until it is in the store.
        again: Whether an earlier delivery may have come some of the way.
        refused: What the store has said of the events that it does not take.
        held: What has kept the store from taking the next event; None if nothing has.
    """

    def __init__(
        self, store: Store, journal: Journal, run_id: str = "", *, again: bool = False
    ) -> None:
        self.store = store
        self.journal = journal
        self.run_id = run_id
        self.again = again
        self.refused: list[Exception] = []
        self.held: Exception | None = None
        self._waiting: deque[Event] = deque()
        self._retry_at = 0.0
        self._files: dict[str, None] = {}
        self._settled = False

    def __len__(self) -> int:
        """Return how many events wait."""
        return len(self._waiting)

    @cached_property
    def client(self) -> Any:
        """MLflow's client of the store."""
        return client_of(self.store)

    def put(self, *some: Event) -> None:
        """Have events wait for the next `flush`."""
        self._waiting.extend(some)

    def flush(self, *, at_once: bool = False) -> None:
        """Deliver the events that wait, in order, unless the store was away a moment ago.

        Args:
            at_once: Whether to ask a store that was away a moment ago.
        """
        if time.monotonic() < self._retry_at and not at_once:
            return
        together = True
        while self._waiting:
            # Other threads put some in meanwhile.
            some = batch(tuple(self._waiting)) if together else [self._waiting[0]]
            first = some[0]
            try:
                if not isinstance(first, events.Artifact | events.TrainedModel):
                    # The store must not know more than the journal: a run that goes on would log
                    # it again at another time. Files are made again in any case.
                    self.journal.sync()
                self.deliver(some)
            except Exception as error:
                # A run without its end is not over, whatever the store's reason.
                if kind(error) in (Kind.AWAY, Kind.DISK) or isinstance(first, events.End):
                    self.held = error
                    self._retry_at = time.monotonic() + RETRY_SECONDS
                    self.again = True
                    return
                if len(some) > 1:
                    # The store refuses one of them, and takes the others one by one.
                    together = False
                    continue
                self.refused.append(error)
            self.held, self._retry_at = None, 0.0
            for _ in some:
                self._waiting.popleft()

    def incomplete(self, error: Exception) -> UserError:
        """Return the sentence for a run of which the store does not take everything."""
        return deleted(self.store, self.run_id) or UserError(
            f"run {self.run_id} is incomplete, the store {self.store.uri} refused: {reason(error)}"
        )

    def check_disk(self) -> None:
        """Raise if the store has not taken everything because its disk is full or broken.

        Raises:
            UserError: The disk is full or broken.
        """
        if self._waiting and self.held and kind(self.held) is Kind.DISK:
            raise refused(self.store, self.held, resumable=True) from self.held

    def deliver(self, some: Sequence[Event]) -> None:
        """Take events to the store: several of `Values` in one call, or one of any kind.

        Args:
            some: Events, as `batch` returns them.
        """
        match some[0]:
            case events.Artifact(name=name):
                self.client.log_artifact(self.run_id, str(self.journal.files / name))
                self._files[name] = None
                self._settled = False
            case events.DatasetUsed() as dataset:
                self._dataset(dataset)
            case events.TrainedModel() as model:
                if not (self.again and modelfiles.is_there(self.client, self.run_id)):
                    modelfiles.log(self.client, self.store, self.run_id, model, self.journal.files)
                self._settled = False
            case events.End(status=status, time=ended):
                if status is events.Status.FINISHED:
                    self.settle()
                self.client.set_terminated(self.run_id, status, ended)
                # The folder from which the run could be made again goes only after this.
                sync_store(self.store)
            case _:
                self._values([each for each in some if isinstance(each, Values)])

    def settle(self) -> None:
        """Have on disk what the run has on this machine, before it is called finished.

        Raises:
            OSError: The disk is full or failing.
        """
        if not self._settled:
            settle(self.client, self.run_id, self._files)
            self._settled = True

    def _values(self, some: Sequence[Values]) -> None:
        from mlflow.entities import Param, RunTag

        metrics, params, tags = [], [], []
        for event in some:
            match event:
                case events.Metrics():
                    metrics += modelfiles.metrics(event)
                case events.Params(values=values):
                    params += [Param(name, value) for name, value in values.items()]
                case events.Tags(values=values):
                    tags += [RunTag(name, value) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics, params, tags)

    def _dataset(self, event: events.DatasetUsed) -> None:
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        source = CodeDatasetSource({"source": event.source})
        used = Dataset(
            name=event.name,
            # MLflow's column holds 36 characters.
            digest=event.digest[:36],
            source_type=compat.source_type_of(source),
            source=source.to_json(),
            schema=event.schema,
            profile=event.profile,
        )
        inputs = [DatasetInput(used, [InputTag("mlflow.data.context", "training")])]
        try:
            self.client.log_inputs(self.run_id, inputs)
        except MlflowException as error:
            if kind(error) is Kind.AWAY:
                raise
            # Another run has added the data set between MLflow's look for it and its adding it.
            self.client.log_inputs(self.run_id, inputs)


def batch(waiting: Iterable[Event]) -> list[Event]:
    """Return the first events as far as one call can take them, or else the first alone."""
    room: dict[type[Event], int] = {**MOST_VALUES}
    taken: list[Event] = []
    for event in waiting:
        if isinstance(event, Values):
            room[type(event)] -= len(event.values)
        if not isinstance(event, Values) or room[type(event)] < 0:
            return taken or [event]
        taken.append(event)
    return taken


def describe(images: Any) -> dict[str, str]:
    """Return the shape and type of images as MLflow's dataset page shows them."""
    shape = list(images.shape)
    schema = {
        "mlflow_tensorspec": {
            "features": json.dumps(
                [{"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1, *shape[1:]]}}]
            ),
            "targets": None,
        }
    }
    profile = {"features_shape": shape, "features_size": images.size}
    return {"schema": json.dumps(schema), "profile": json.dumps(profile)}


def create(store: Store, experiment_id: str, name: str, began: int, tags: Mapping[str, str]) -> str:
    """Make a run in the store, and return its id.

    Args:
        store: The store.
        experiment_id: The id of the run's experiment.
        name: The run's name.
        began: When it began, in milliseconds since 1970.
        tags: Its first tags.

    Raises:
        UserError: The store cannot be reached.
    """
    with asking(store, resumable=True) as client:
        tags = {**surrounding_run(client), **tags}
        return str(client.create_run(experiment_id, began, tags=tags, run_name=name).info.run_id)


def reopen(store: Store, run_id: str) -> Mapping[str, str]:
    """Have a run of the store go on, and return its tags: a sweep notes why a worker has ended.

    Args:
        store: The store.
        run_id: The run.

    Raises:
        UserError: The store cannot be reached, or does not know the run.
    """
    quiet_mlflow()
    from mlflow.exceptions import MlflowException

    with asking(store, resumable=True) as client:
        try:
            client.update_run(run_id, status=events.Status.RUNNING)
        except MlflowException as error:
            if kind(error) is Kind.AWAY:
                raise
            raise UserError(f"run {run_id} cannot go on: {reason(error)}") from None
        tags: Mapping[str, str] = client.get_run(run_id).data.tags
        return tags
