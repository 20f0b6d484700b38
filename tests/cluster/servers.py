"""Real servers on loopback, each in a folder of its own, stopped when the tests are over."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

AUTHENTICATION = """
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = {database}
admin_username = admin
admin_password = {password}
auth_cache_ttl_seconds = 60
"""


def need(packages: str, *commands: str) -> None:
    """Skip, unless what Debian's packages bring is there."""
    os.environ["PATH"] += "" if "/usr/sbin" in os.environ["PATH"].split(":") else ":/usr/sbin"
    if missing := [each for each in commands if not shutil.which(each)]:
        pytest.skip(f"there is no {', '.join(missing)}; apt-get install {packages}")


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for(ready: Callable[[], object], what: str, seconds: float = 60, log: Path | None = None):
    """Wait until something is so; fail with what a server has written if it never is."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            written = log.read_text()[-3000:] if log else ""
            pytest.fail(f"not so after {seconds:.0f} s: {what}\n{written}")
        time.sleep(0.1)


def succeeds(*command: object, env: Mapping[str, str] | None = None) -> bool:
    """Return whether a command ends with 0."""
    return subprocess.run(list(map(str, command)), env=env, capture_output=True).returncode == 0


def output(*command: object, env: Mapping[str, str] | None = None) -> str:
    """Return what a command prints; it must end with 0."""
    return subprocess.run(
        list(map(str, command)), env=env, capture_output=True, text=True, check=True
    ).stdout


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that other users' servers can enter, unlike pytest's own."""
    path = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def server(
    *command: object, log: Path, env: Mapping[str, str] | None = None, user: str | None = None
) -> Iterator[subprocess.Popen]:
    """Run a server in a process group of its own, and stop the whole group at the end."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            list(map(str, command)),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user,
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen, first: signal.Signals = signal.SIGTERM) -> None:
    """End a server's process group, by force if it takes longer than ten seconds."""
    for number in (first, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(10)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def listens(port: int) -> bool:
    """Return whether anyone listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def postgresql() -> Iterator[str]:
    """Start PostgreSQL with a database `mlflow`; yield its URI as SQLAlchemy has it."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda each: each.parent.name)
    if not versions:
        pytest.skip("there is no PostgreSQL; apt-get install postgresql")
    pytest.importorskip("psycopg", reason="pip install 'fmnist_lab[postgres]'")
    programs = versions[-1]
    # It refuses to be run by root.
    user = "postgres" if os.geteuid() == 0 else None
    with folder() as home:
        if user:
            shutil.chown(home, user)
        (port,) = free_ports(1)
        log = home / "postgresql.log"
        init = [programs / "initdb", "--auth=trust", "--username=lab", "--no-sync"]
        subprocess.run([*init, home / "data"], user=user, capture_output=True, check=True)
        options = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": "",
            "fsync": "off",
        }
        settings = [f"--{name}={value}" for name, value in options.items()]
        with server(programs / "postgres", "-D", home / "data", *settings, log=log, user=user):
            address = ("--host=127.0.0.1", f"--port={port}")
            ready = lambda: succeeds(programs / "pg_isready", *address)  # noqa: E731
            wait_for(ready, "PostgreSQL answers", log=log)
            output(programs / "createdb", *address, "--username=lab", "mlflow")
            yield f"postgresql+psycopg://lab@127.0.0.1:{port}/mlflow"


@dataclass(frozen=True)
class TrackingServer:
    """An MLflow server; `env` is what a client has to know."""

    uri: str
    env: dict[str, str]
    artifacts: Path


@contextmanager
def tracking_server(database: str) -> Iterator[TrackingServer]:
    """Start an MLflow server as docs/tracking_server.md does: authenticated, files proxied."""
    pytest.importorskip("flask_wtf", reason="pip install 'fmnist_lab[postgres]'")
    with folder() as home:
        (port,) = free_ports(1)
        password = os.urandom(12).hex()
        configuration = home / "auth.ini"
        configuration.write_text(AUTHENTICATION.format(database=database, password=password))
        env = {
            "MLFLOW_AUTH_CONFIG_PATH": str(configuration),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": os.urandom(12).hex(),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        options = {
            "app-name": "basic-auth",
            "backend-store-uri": database,
            "artifacts-destination": home / "artifacts",
            "host": "127.0.0.1",
            "port": port,
            "workers": 1,
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        log = home / "mlflow.log"
        with server(
            sys.executable, "-m", "mlflow", "server", *words, log=log, env=os.environ | env
        ):
            wait_for(lambda: listens(port), "MLflow answers", seconds=120, log=log)
            client = {
                "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
                "MLFLOW_TRACKING_USERNAME": "admin",
                "MLFLOW_TRACKING_PASSWORD": password,
            }
            yield TrackingServer(client["MLFLOW_TRACKING_URI"], client, home / "artifacts")
