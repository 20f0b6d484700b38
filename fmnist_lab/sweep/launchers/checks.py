"""Checks before anything is begun, of the launchers that use other machines."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence

from fmnist_lab.config.schema import SERVERS, Tracking
from fmnist_lab.errors import UserError


def check_cluster(option: str, library: str, extra: str, tracking: Tracking) -> None:
    """Refuse a sweep on other machines that lacks a tracking server or the cluster's library.

    Args:
        option: The launcher, as in hydra/launcher=OPTION.
        library: The module by which the cluster is spoken to.
        extra: The extra of this package that installs it.
        tracking: The checked `tracking`.

    Raises:
        UserError: One of them is missing.
    """
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
    try:
        importlib.import_module(library)
    except ImportError:
        raise UserError(
            f"hydra/launcher={option} needs {library}, which is not installed; "
            f"pip install 'fmnist_lab[{extra}]'"
        ) from None


def check_size(
    wanted: Mapping[str, float], nodes: Sequence[tuple[float, float, float]], where: str
) -> None:
    """Refuse a request that no node could meet: it would wait for a larger one for ever.

    Args:
        wanted: The options that ask for processors, GB of memory and GPUs, in this order.
        nodes: How much each node has of these.
        where: Whose nodes they are, in words.

    Raises:
        UserError: No node is large enough.
    """
    if any(all(a >= b for a, b in zip(node, wanted.values(), strict=True)) for node in nodes):
        return
    largest = ", ".join(
        f"{cpus:g} processors, {memory:.3g} GB and {gpus:g} GPUs"
        for cpus, memory, gpus in sorted(set(nodes), reverse=True)[:3]
    )
    received = ", ".join(f"{name}={value:g}" for name, value in wanted.items())
    raise UserError(
        f"hydra.launcher: received {received}, which no node of {where} has; the largest have "
        f"{largest}; expected no more than that, for example hydra.launcher.{next(iter(wanted))}="
        f"{max(nodes)[0]:g}"
    )
