"""The function that Hydra calls with the config of each job, alone or as a part of a sweep."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fmnist_lab import config
from fmnist_lab.config import naming
from fmnist_lab.config.overrides import explained
from fmnist_lab.errors import UserError, raised, reported
from fmnist_lab.sweep.job import Sweep

if TYPE_CHECKING:
    from fmnist_lab.jobs.membership import Membership
    from fmnist_lab.jobs.outcome import Keep
    from fmnist_lab.sweep.search.source import SearchSource


class Task:
    """The task of one command; launchers pickle it for the processes that do the jobs.

    Attributes:
        sweep: The sweep that its jobs belong to, or None for a single run.
        search: The jobs of a search, in the process that was started; None elsewhere.
        remark: Prints a line on the sweep's screen, in the process that was started.
        keep: Called with the outcome of a single run, in the process that does it; None: nobody
            wants it.
        failure: The error that a single run has ended with, for who has set `keep`.
        called: True once Hydra has made a config of the command line and called it.
    """

    def __init__(self, keep: Keep | None = None) -> None:
        self.sweep: Sweep | None = None
        self.search: SearchSource | None = None
        self.remark: Callable[[str], None] = print
        self.keep = keep
        self.failure: UserError | None = None
        self.called = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "remark": print, "search": None, "keep": None}

    def __call__(self, composed: DictConfig) -> Any:
        """Check a composed config and do its job."""
        self.called = True
        if self.sweep is None:
            # Hydra adds a line of its own to an exception, but lets SystemExit pass.
            with self._kept() if self.keep else reported():
                return do(composed, keep=self.keep)
        hydra = HydraConfig.get()
        job = self.sweep.job(int(hydra.job.num), list(hydra.overrides.task))
        return job.attempt(lambda: do(composed, job.member), lambda: self.params_of(composed))

    @staticmethod
    def params_of(composed: DictConfig) -> dict[str, str]:
        """Return the params of a job that has come to no run; none if its config is refused.

        Args:
            composed: The job's config.
        """
        own: Any = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        try:
            return {name: str(value) for name, value in naming.params(_checked(own)).items()}
        except UserError:
            return {}

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Put an error aside, as `failure`, for the caller to raise it."""
        try:
            with raised():
                yield
        except UserError as error:
            self.failure = error
            raise SystemExit(2) from None


def do(composed: DictConfig, member: Membership | None = None, *, keep: Keep | None = None) -> Any:
    """Check a composed config and do its job.

    Args:
        composed: The config without Hydra's part.
        member: The job's place in a sweep, if it has one.
        keep: Called with the job's outcome.

    Raises:
        UserError: The config is refused, or the job cannot be done.
    """
    checked = _checked(composed)
    if checked.dry_run:
        from fmnist_lab.sweep import preview

        return preview.show_run(checked)
    from fmnist_lab import jobs

    with _where_it_was_typed():
        return jobs.run(checked, member, *([keep] if keep else []))


def _checked(composed: DictConfig) -> config.Config:
    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(explained(error, sys.argv[1:])) from None
    return config.validate(values)  # type: ignore[arg-type]


def _where_it_was_typed() -> contextlib.AbstractContextManager[None]:
    """Undo hydra.job.chdir for a job, so that the store and every relative path stay the same."""
    hydra = HydraConfig.get()
    return contextlib.chdir(hydra.runtime.cwd) if hydra.job.chdir else contextlib.nullcontext()
