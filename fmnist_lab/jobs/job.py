"""A job from its config to its open run: the part that training and evaluating share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from fmnist_lab import tracking
from fmnist_lab.config import naming
from fmnist_lab.config.schema import Config
from fmnist_lab.errors import UserError
from fmnist_lab.jobs import build, resume
from fmnist_lab.jobs.membership import Membership
from fmnist_lab.jobs.outcome import Outcome
from fmnist_lab.jobs.screen import Screen
from fmnist_lab.system import provenance, signals


class Job:
    """A config that is about to be carried out, with its data, its store and its screen.

    Attributes:
        answered: The finished run of the same config, which leaves nothing to do, or None. The
            screen has shown its metrics.
        interrupted: What an interrupted run of the same config has left, or None.
        device: The device that TensorFlow runs on; it is there only if there is something to do.
        tags: The run's tags; they are there only after `open_run`.

    Args:
        config: A checked config.
        member: The job's place in a sweep, if it is in one.
        store: Where the run is kept; None: nowhere.

    Raises:
        UserError: The data cannot be loaded, a run of this config is in progress, or TensorFlow
            cannot be started as configured.
    """

    def __init__(
        self, config: Config, member: Membership | None, store: tracking.Store | None
    ) -> None:
        self.config, self.member, self.store = config, member, store
        self.dataset = build.load_data(config)
        self.screen = Screen(self.dataset)
        earlier = None
        # A sweep of which nothing is kept has no parent run.
        place = member if member and member.sweep else None
        if store is not None and (config.resume or place):
            digest = self.dataset.digest
            earlier = resume.look_up(store, config, place, digest, self.screen.remark)
        self.interrupted: resume.Interrupted | None = None
        self.answered: tracking.RunRecord | None = None
        if store is None or earlier is None:
            self._start_device()
        elif isinstance(earlier, resume.Interrupted):
            self.interrupted = earlier
            self._start_device()
        else:
            see = store.command("runs", "ui", earlier.run_id)
            self.screen.answered(earlier.name, earlier.run_id, earlier.metrics, see)
            self.answered = earlier

    def answer(self) -> Outcome:
        """Return the outcome of the earlier run that has answered the config."""
        found = self.answered
        assert found is not None
        params = naming.params(self.config)
        return Outcome(found.name, found.status, self.store, found.run_id, params, found.metrics)

    def _start_device(self) -> None:
        """Start TensorFlow, and say so if it cannot have the number of threads that was asked for.

        Raises:
            UserError: The sweep varies that number, so that this job would be none of its settings.
        """
        from fmnist_lab.training import runtime

        asked = self.config.trainer.threads
        self.device = runtime.start(asked)
        if asked in (None, self.device.threads):
            return
        reason = (
            f"trainer.threads: received {asked}, but TensorFlow already runs in this process with "
            f"{self.device.threads}, and it cannot change that"
        )
        if self.member and "trainer.threads" in self.member.axes:
            raise UserError(f"{reason}; start a process of its own for each number of threads")
        self.screen.remark(
            f"{reason}; so this run has {self.device.threads}; start another process for {asked}\n"
        )

    @contextmanager
    def open_run(
        self, name: str, tags: Mapping[str, str]
    ) -> Iterator[tuple[tracking.Run, Callable[[], None]]]:
        """Open the run, or the interrupted one again, and close it with its state.

        Args:
            name: The run's name.
            tags: Facts about this job, beside those that identify code, config, data and machine.

        Yields:
            The run, and a function that raises if a signal has asked the process to end.
        """
        left, dataset = self.interrupted, self.dataset
        self.tags = self._identity() | dict(tags)
        with (
            signals.noted() as check_signals,
            tracking.start(
                self.store,
                self.config.tracking.experiment,
                name,
                self.tags,
                journal=left.scratch if left else None,
                run_id=left.run_id if left else "",
            ) as run,
        ):
            run.dataset(dataset.train_images, dataset.name, dataset.digest, dataset.source)
            yield run, check_signals

    def _identity(self) -> dict[str, str]:
        """Return the tags that say exactly which config ran with which code, data and machine."""
        return {
            **provenance.tags(),
            "config.hash": self.config.identity(),
            resume.NATIVE_HASH: self.config.native_identity(),
            "data.digest": self.dataset.digest,
            "device": self.device.name,
            "threads": str(self.device.threads),
            **(self.member.tags() if self.member else {}),
        }
