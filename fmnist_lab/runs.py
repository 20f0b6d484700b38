"""The door to runs that exist: `python -m fmnist_lab.runs VERB`."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import webbrowser
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from fmnist_lab import provenance, tracking
from fmnist_lab.console import duration
from fmnist_lab.errors import UserError, reported

if TYPE_CHECKING:
    import pandas as pd

HOST = "127.0.0.1"
PATIENCE_SECONDS = 60

app = App(
    name="python -m fmnist_lab.runs", help="Look after the runs that exist.", version_flags=()
)


@app.command
def ui(
    run: str | None = None,
    *,
    store: str | None = None,
    experiment: str = tracking.DEFAULT_EXPERIMENT,
    port: int | None = None,
    open_browser: Annotated[bool, Parameter(name="--open", negative="")] = False,
) -> None:
    """Start MLflow's UI on this machine and print links that show what was asked for.

    Args:
        run: A run's id, to be linked directly.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        experiment: The experiment to be linked.
        port: Where to listen; left out, 5000 or the next free port.
        open_browser: Open the first link in the browser.
    """
    with reported():
        place = tracking.Store.locate(store, for_writing=False)
        links = tracking.links(place, experiment, run)
        if place.database is None and place.uri.startswith("http"):
            _show(place.uri.rstrip("/"), links, open_browser)
            return
        chosen = port or _free_port()
        with tempfile.TemporaryFile() as notes:
            server = _serve(place, chosen, notes.fileno())
            try:
                _wait_until_it_answers(server, chosen, notes.fileno())
                _show(f"http://{HOST}:{chosen}", links, open_browser)
                print("\nCtrl-C stops it.", flush=True)
                server.wait()
            finally:
                server.terminate()
                server.wait()


@app.command(name="list")
def list_runs(
    *,
    where: Annotated[str, Parameter(name="--filter")] = "",
    store: str | None = None,
    experiment: str = tracking.DEFAULT_EXPERIMENT,
    most: int = 30,
) -> None:
    """List runs, the newest first: state, age, test accuracy and gap.

    Args:
        where: MLflow's filter, such as "attributes.status = 'FAILED'".
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        experiment: The experiment to look into.
        most: How many to list at the most.
    """
    with reported():
        runs, _ = _find(store, experiment, where)
        table = Table("run", "name", "state", "age", "accuracy/test", "accuracy/gap", box=None)
        for column in table.columns[3:]:
            column.justify = "right"
        now = datetime.now(UTC)
        for run in runs.head(most).to_dict("records"):
            figures = (f"{run.get(f'accuracy/{part}', math.nan):.4f}" for part in ("test", "gap"))
            age = duration((now - run["started"]).total_seconds())
            table.add_row(run["run_id"], run["name"], run["status"], age, *figures)
        console = Console(width=None if sys.stdout.isatty() else 120)
        console.print(table)
        if len(runs) > most:
            console.print(f"… and {len(runs) - most} older ones; --most {len(runs)} lists them all")


@app.command
def report(
    *,
    where: Annotated[str, Parameter(name="--filter")] = "",
    output: Path | None = None,
    title: str = "Report",
    store: str | None = None,
    experiment: str = tracking.DEFAULT_EXPERIMENT,
) -> None:
    """Sum up training runs: a row a setting, means over the seeds with 95 % intervals.

    Args:
        where: MLflow's filter, such as "params.model = 'mlp' and params.trainer.epochs = '5'".
        output: Folder for results.csv, summary.csv, report.md with figures, and report.html.
        title: What the report is called.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        experiment: The experiment to look into.
    """
    from fmnist_lab import report as reports

    with reported():
        training = " and ".join(filter(None, [where, "tags.job = 'train'"]))
        runs, curves = _find(store, experiment, training, curve="accuracy/gap")
        console = Console(width=None if sys.stdout.isatty() else 140)
        console.print(reports.terminal_table(runs))
        if output:
            command = provenance.command()
            for file in reports.write(runs, curves, output, title=title, command=command):
                console.print(f"written: {file}", highlight=False, soft_wrap=True)


def _find(
    store: str | None, experiment: str, where: str, **options: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    place = tracking.Store.locate(store, for_writing=False)
    found = tracking.find(place, experiment, where, **options)
    if found[0].empty:
        raise UserError(
            f"no run in experiment '{experiment}' of {place.uri} fits"
            f"{f' the filter {where}' if where else ''}; python -m fmnist_lab.runs list shows all"
        )
    return found


def _serve(store: tracking.Store, port: int, notes: int) -> subprocess.Popen[bytes]:
    """Start the server with a single worker and no job runners: a quarter of the memory."""
    options = {
        "backend-store-uri": store.uri,
        "host": HOST,
        "port": str(port),
        "workers": "1",
    }
    if store.artifacts:
        options["default-artifact-root"] = store.artifacts.as_uri()
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server"),
            *(word for name, value in options.items() for word in (f"--{name}", value)),
        ],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=notes,
        stderr=notes,
    )


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
        "another with --port"
    )


def _free_port(first: int = 5000) -> int:
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


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
