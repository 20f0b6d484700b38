"""A Ray cluster of two nodes and a tracking server, in a network namespace of their own.

Ray listens on all of a machine's addresses, so it is kept away from them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest
from mlflow import MlflowClient

from .namespace import Namespace, namespace
from .servers import folder, server, succeeds, wait_for

HEAD, TRACKING = 6399, 5099
QUIET = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
NODE = (
    "--num-cpus=1",
    "--node-ip-address=127.0.0.1",
    "--object-store-memory=100000000",
    "--disable-usage-stats",
    "--block",
)


@dataclass
class Ray:
    """Two nodes of one processor each.

    Attributes:
        inside: Where everything is.
        env: What a client has to know.
        client: The tracking server's database, asked from outside.
        start_second: Starts a second node, and returns the process that has started it.
        second: That process; None when there is no second node.
    """

    inside: Namespace
    env: dict[str, str]
    client: MlflowClient
    start_second: Callable[[], int]
    second: int | None = None

    def nodes(self) -> int:
        """Return how many nodes run."""
        return sum("raylet/raylet" in words[0] for _, words in self.inside.processes().values())

    def complete(self) -> None:
        """Start the second node, unless it runs: a test may have ended it."""
        if self.second is None:
            self.second = self.start_second()
        wait_for(lambda: self.nodes() == 2, "two nodes", 60)

    def workers(self) -> dict[int, str]:
        """Return the processes that do a job, and what Ray has renamed them to."""
        return {
            process: words[0]
            for process, (_, words) in self.inside.processes().items()
            if words[0].startswith("ray::job ")
        }

    def kill_second_node(self) -> None:
        """End the second node as a power cut would: its daemon and all its workers."""
        assert self.second
        processes = self.inside.processes()
        lost = {self.second}
        self.second = None
        while more := {each for each, (parent, _) in processes.items() if parent in lost} - lost:
            lost |= more
        for process in lost:
            os.kill(process, signal.SIGKILL)


@contextmanager
def ray_cluster() -> Iterator[Ray]:
    """Start everything, and end it."""
    pytest.importorskip("ray", reason="pip install 'fmnist_lab[ray]'")
    with ExitStack() as stack:
        home = stack.enter_context(folder())
        inside = stack.enter_context(namespace(home / "namespace.log"))
        env = {**os.environ, **QUIET}
        ray = (*inside.enter, sys.executable, "-m", "ray.scripts.scripts")

        def start(name: str, *command: object) -> int:
            log = home / f"{name}.log"
            return stack.enter_context(server(*command, log=log, env=env)).pid

        database = f"sqlite:///{home}/mlflow.db"
        store = (f"--backend-store-uri={database}", f"--artifacts-destination={home}/artifacts")
        address = ("--host=127.0.0.1", f"--port={TRACKING}", "--workers=1")
        start("mlflow", *inside.enter, sys.executable, "-m", "mlflow", "server", *store, *address)
        temporary = f"--temp-dir={home}/ray"
        head = (f"--port={HEAD}", "--include-dashboard=false", temporary)
        start("head", *ray, "start", "--head", *head, *NODE)
        health = (*ray, "health-check", f"--address=127.0.0.1:{HEAD}")
        wait_for(lambda: succeeds(*health, env=env), "Ray's head", 120, home / "head.log")
        wait_for(lambda: inside.listens(TRACKING), "MLflow answers", 120, home / "mlflow.log")
        known = {
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{TRACKING}",
            "RAY_ADDRESS": f"127.0.0.1:{HEAD}",
            **QUIET,
        }
        join = (*ray, "start", f"--address=127.0.0.1:{HEAD}", *NODE)
        yield Ray(inside, known, MlflowClient(database), lambda: start("second", *join))
