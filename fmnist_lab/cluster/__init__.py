"""Launchers for more than one machine: `hydra/launcher=slurm` and `hydra/launcher=ray_cluster`.

They stand directly on the engines' own libraries, submitit and Ray. Hydra's plugins for those wait
for ever for a job that was killed, drop the other jobs' results when one is lost, and leave the
queue full after Ctrl-C.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from fmnist_lab.config import SERVERS, Tracking, check_section
from fmnist_lab.errors import UserError

if TYPE_CHECKING:
    from fmnist_lab.cluster.worker import ClusterLauncher

# Hydra takes a launcher only under a name in this package.
PLUGINS = "hydra_plugins.fmnist_lab."
OPTIONS = {"Slurm": "slurm", "RayCluster": "ray_cluster"}


def prepare(launcher: DictConfig, tracking: Tracking) -> None:
    """Make a launcher of this package known to Hydra and check that it can do its work.

    Called before anything is written or submitted; other launchers are left alone.

    Args:
        launcher: The composed `hydra.launcher`.
        tracking: The checked `tracking`.

    Raises:
        UserError: An extra is missing, the store is out of the other machines' reach, or no
            machine is as large as what is asked for.
    """
    name = str(launcher.get("_target_", "")).removeprefix(PLUGINS)
    if name not in OPTIONS:
        return
    from hydra.core.plugins import Plugins

    _check_store(OPTIONS[name], tracking)
    plugin = _launcher(name)
    values = OmegaConf.to_container(launcher, resolve=True)
    plugin.check(check_section(plugin.options_class, values, "hydra.launcher."))
    Plugins.instance().class_name_to_class[PLUGINS + name] = plugin


def _launcher(name: str) -> type[ClusterLauncher]:
    if name == "Slurm":
        from fmnist_lab.cluster.slurm import Slurm

        return Slurm
    from fmnist_lab.cluster.ray_cluster import RayCluster

    return RayCluster


def _check_store(option: str, tracking: Tracking) -> None:
    """Refuse a store that a worker on another machine could not write to."""
    if tracking.kind == "none":
        raise UserError(
            f"tracking: received none with hydra/launcher={option}, but what other machines find "
            "out comes back through a tracking server only; expected tracking=server"
        )
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if not uri.startswith(SERVERS):
        raise UserError(
            f"tracking.uri: received '{uri}' with hydra/launcher={option}, but jobs on other "
            "machines reach neither a database file of this machine nor its folder for the files "
            "of runs; expected a tracking server, for example tracking=server "
            "tracking.uri=http://HOST:5000"
        )
