"""The launchers of fmnist_lab under the names by which Hydra finds them.

Hydra looks for plugins in the namespace package `hydra_plugins`, and imports what it finds there
whenever it composes a config, also for --help. So this module imports nothing heavy: a launcher is
imported when a sweep uses it.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

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
