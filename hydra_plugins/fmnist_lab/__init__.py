"""The launchers of fmnist_lab under the names by which Hydra finds them.

Hydra looks for plugins in the namespace package `hydra_plugins`, and imports what it finds there
whenever it composes a config, also for --help. So this module imports nothing heavy: a launcher is
imported when a sweep uses it.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper

from fmnist_lab.sweep import launchers


class LocalCores(Launcher):
    """`hydra/launcher=local_cores`."""

    def __init__(self, **options: Any) -> None:
        """Import the launcher of the same name, and make it with the values of its preset."""
        self.launcher = launchers.load(type(self).__name__)(**options)

    def setup(self, **given: Any) -> None:
        """Take what Hydra hands over before `launch`."""
        self.launcher.setup(**given)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Do all jobs and return their results, in their order.

        Args:
            job_overrides: The overrides of each job.
            initial_job_idx: The number of the first.
        """
        return self.launcher.launch(job_overrides, initial_job_idx)

    def stream(self, source: Any) -> None:
        """Do jobs as a source gives them out; see `JobLauncher.stream`.

        Args:
            source: A `JobSource`.
        """
        self.launcher.stream(source)


class Slurm(LocalCores):
    """`hydra/launcher=slurm`."""


class RayCluster(LocalCores):
    """`hydra/launcher=ray_cluster`."""


class OptunaSweeper(Sweeper):
    """`hydra/sweeper=optuna`."""

    def __init__(self, **options: Any) -> None:
        """Take the values of the preset, which the sweep's driver has checked."""

    def setup(self, **given: Any) -> None:
        """Take what Hydra hands over before `sweep`.

        Args:
            given: `hydra_context`, `task_function` and `config`.
        """
        self.task = given["task_function"]
        self.launcher = Plugins.instance().instantiate_launcher(**given)

    def sweep(self, arguments: list[str]) -> None:
        """Have the launcher do the jobs of the search that the driver has begun.

        Args:
            arguments: The overrides of the command line, which the driver has read.
        """
        from fmnist_lab.sweep.launchers import base

        base.stream(self.launcher, self.task.search)
