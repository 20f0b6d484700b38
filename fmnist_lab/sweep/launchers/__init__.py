"""Launchers: `hydra/launcher=local_cores`, `slurm` and `ray_cluster`.

The last two stand directly on the clusters' own libraries, submitit and Ray. Hydra's plugins for
those wait for ever for a job that was killed, drop the other jobs' results when one is lost, and
leave the queue full after Ctrl-C.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from fmnist_lab.sweep.launchers.base import JobLauncher

# Hydra accepts plugins from this package only; its classes have the names of ours.
PLUGINS = "hydra_plugins.fmnist_lab"
MODULES = {"LocalCores": "local_cores", "Slurm": "slurm", "RayCluster": "ray_cluster"}


def load(name: str) -> type[JobLauncher]:
    """Import a launcher by the name of its class."""
    module = importlib.import_module(f"{__name__}.{MODULES[name]}")
    return cast("type[JobLauncher]", getattr(module, name))
