"""`ui`: MLflow's own interface, with links to a sweep or a run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from cyclopts import Parameter

from fmnist_lab import tracking
from fmnist_lab.errors import UserError, reported
from fmnist_lab.system import signals

HOST = "127.0.0.1"
# On a busy machine it takes a minute to import what it needs.
PATIENCE_SECONDS = 180


def ui(
    run: str | None = None,
    /,
    *,
    store: str | None = None,
    experiment: str | None = None,
    port: int | None = None,
    open_browser: Annotated[bool, Parameter(name="--open")] = False,
) -> None:
    """Start MLflow's UI on this machine and print links to a sweep, a run or all runs.

    Args:
        run: A sweep or run to link directly: its id, the beginning of its id, or its name.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        experiment: The experiment to link; left out, MLflow's $MLFLOW_EXPERIMENT_NAME or
            $MLFLOW_EXPERIMENT_ID, or fmnist_lab.
        port: The port to listen on; left out, 5000 or the next free port.
        open_browser: Open the first link in the browser.
    """
    with reported():
        place = tracking.Store.locate(store, for_writing=False)
        experiment = tracking.experiment_name(place, experiment)
        links = tracking.links(place, experiment, run)
        if place.database is None and place.uri.startswith("http"):
            _show(place.uri.rstrip("/"), links, open_browser)
            return
        chosen = port or free_port()
        with signals.handled(signals.terminate), tempfile.TemporaryFile() as notes:
            server = serve(place, chosen, notes.fileno())
            with answering(server, chosen, notes.fileno()):
                _show(f"http://{HOST}:{chosen}", links, open_browser)
                print("\nCtrl-C stops it.", flush=True)
                server.wait()


def serve(store: tracking.Store, port: int, notes: int) -> subprocess.Popen[bytes]:
    """Start MLflow's server with one worker and no job runners, in a quarter of the memory.

    Args:
        store: The store to be shown.
        port: The port to listen on.
        notes: A file descriptor for the server's output.
    """
    server = [sys.executable, "-m", "mlflow", "server", f"--host={HOST}", f"--port={port}"]
    files = [f"--default-artifact-root={store.artifacts.as_uri()}"] if store.artifacts else []
    return subprocess.Popen(
        [*server, "--workers=1", f"--backend-store-uri={store.uri}", *files],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=notes,
        stderr=notes,
    )


@contextmanager
def answering(server: subprocess.Popen[bytes], port: int, notes: int) -> Iterator[None]:
    """Wait until a server answers, and end it after the block.

    Args:
        server: The server's process.
        port: The port that it listens on.
        notes: The file descriptor of its output.

    Raises:
        UserError: The server has ended, or takes more than `PATIENCE_SECONDS`.
    """
    try:
        _wait_until_it_answers(server, port, notes)
        yield
    finally:
        server.terminate()
        server.wait()


def _wait_until_it_answers(server: subprocess.Popen[bytes], port: int, notes: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            said = os.pread(notes, 1 << 20, 0).decode(errors="replace").strip().splitlines()
            raise UserError(
                f"MLflow's server stopped at once with exit code {server.returncode}: "
                f"{said[-1] if said else 'it said nothing'}"
            )
        try:
            urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=2).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return
    raise UserError(
        f"MLflow's server did not answer on port {port} within {PATIENCE_SECONDS} s; try "
        "it again when the machine is less busy, or another port with --port"
    )


def free_port(first: int = 5000) -> int:
    """Return the first port of this machine, of a hundred, that nothing listens on.

    Raises:
        UserError: No such port is free.
    """
    for port in range(first, first + 100):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise UserError(f"no free port from {first} to {first + 99}; name one with --port")


def _show(address: str, links: dict[str, str], open_browser: bool) -> None:
    width = max(map(len, links))
    for name, link in links.items():
        print(f"{name:<{width}}  {address}{link}", flush=True)
    if open_browser:
        webbrowser.open(address + next(iter(links.values())))
