"""Jobs of a command, with all that the store and this machine tell of them before any is begun."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fmnist_lab import tracking
from fmnist_lab.config import naming
from fmnist_lab.config.schema import Config, IdxData, Tracking
from fmnist_lab.data import idx
from fmnist_lab.sweep.estimate import FASHION_MNIST, DataSize, Estimate, Estimator
from fmnist_lab.texts import in_bytes
from fmnist_lab.tracking import history, journal

FINISHED, BEGUN, IN_PROGRESS = "finished", "begun", "in progress"


@dataclass(frozen=True)
class Planned:
    """A job that would be done.

    Attributes:
        name: The name that its run would have.
        config: Its config; None where it cannot be told without composing it.
        state: What earlier runs have left of it: `FINISHED`, `BEGUN`, `IN_PROGRESS` or "".
        cost: Its estimate; None if it has no config.
    """

    name: str
    config: Config | None
    state: str
    cost: Estimate | None

    @property
    def epochs(self) -> int:
        """The epochs to be trained."""
        train = self.config is not None and self.config.job.name == "train"
        return self.config.trainer.epochs if self.config and train else 0

    @property
    def seconds(self) -> float:
        """The time that the job would take alone; 0 if that is not known."""
        return self.cost.fixed + self.epochs * self.cost.epoch if self.cost else 0.0


class KnownJobs:
    """Everything that the store and the machine tell of jobs, asked once.

    Args:
        configs: The configs of the jobs.
        chosen: The checked `tracking`.
        threads: Threads of a job that does not say otherwise; None: all cores.
    """

    def __init__(
        self, configs: Iterable[Config | None], chosen: Tracking, threads: int | None
    ) -> None:
        known = [config for config in configs if config is not None]
        self.store, self.experiment = None, ""
        self.answers: dict[str, history.Answer] = {}
        self.all_asked = True
        self.host = socket.gethostname()
        past: list[history.PastRun] = []
        if chosen.kind != "none":
            self.store = tracking.Store.locate(chosen.uri, for_writing=False)
            self.experiment = tracking.experiment_name(self.store, chosen.experiment)
            hashes = [(each.identity(), each.native_identity()) for each in known]
            self.answers, self.all_asked = history.answers(self.store, self.experiment, hashes)
            models = sorted({str(naming.params(each)["model"]) for each in known})
            past = history.past_runs(self.store, models, self.host)
        self.estimator = Estimator(past, threads)

    def answer(self, config: Config) -> history.Answer | None:
        """Return the finished run of a config."""
        found = self.answers.get(config.identity())
        return found or self.answers.get(config.native_identity())

    def state(self, config: Config) -> str:
        """Return what earlier runs have left of a config."""
        if self.answer(config):
            return FINISHED
        if self.store is None:
            return ""
        folders = journal.folders_of(self.store.unfinished, config.identity())
        if any(map(journal.is_live, folders)):
            return IN_PROGRESS
        return BEGUN if folders else ""

    def job(self, name: str, config: Config | None) -> Planned:
        """Return a job with all that is known of it."""
        if config is None:
            return Planned(name, None, "", None)
        cost = self.estimator.estimate(config, size_of_data(config))
        return Planned(name, config, self.state(config), cost)

    def place(self) -> str:
        """Return where the runs would be kept."""
        if self.store is None:
            return "nowhere (tracking=none)"
        where = self.store.place
        new = "" if self.store.is_there() else ", which does not exist yet"
        return f"{where}, experiment {self.experiment}{new}"

    def disk(self, kept: int) -> str:
        """Return how much room files of so many bytes take, and how much there is."""
        if self.store is None:
            return "nothing is kept"
        text = f"about {in_bytes(kept)}"
        if self.store.artifacts is None:
            return text
        folder = next(each for each in self.store.artifacts.parents if each.is_dir())
        with suppress(OSError):
            text += f"; {in_bytes(shutil.disk_usage(folder).free)} are free"
        return text


def size_of_data(config: Config) -> DataSize:
    """Return the size of a config's data set, as the headers of its files have it."""
    chosen = config.data
    if not isinstance(chosen, IdxData):
        return FASHION_MNIST
    files = (chosen.train_images, chosen.test_images)
    train, test = (idx.shape_in(Path(chosen.dir), name) for name in files)
    if not train or not test:
        # The run will say what is wrong with the files.
        return FASHION_MNIST._replace(classes=len(chosen.classes()))
    return DataSize(train[0], test[0], train[1:], len(chosen.classes()))
