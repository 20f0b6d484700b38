"""Where runs are kept: the store, found and checked, and the way MLflow is entered."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from filelock import FileLock

from fmnist_lab.errors import UserError

# Telemetry would call out, and a printed URL is http://…/#/experiments/… without its UI running.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# The default, 7 retries with growing pauses, keeps a client waiting for four minutes; we have
# retries of our own.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

DEFAULT_EXPERIMENT = "fmnist_lab"
REMOTE_SCHEMES = ("http", "https", "postgresql", "mysql", "mssql", "databricks", "databricks-uc")


@dataclass(frozen=True)
class Store:
    """A place for runs, found and checked but not opened.

    Attributes:
        uri: MLflow's tracking URI; a SQLite path in it is absolute.
        database: The SQLite file, or None for a server or another database.
        artifacts: Folder for the files of runs, or None where the server decides.
        unfinished: Folder on this machine for what runs keep until they are finished.
    """

    uri: str
    database: Path | None
    artifacts: Path | None
    unfinished: Path

    @property
    def shared(self) -> Path:
        """Folder on this machine for what the jobs of a sweep leave for each other."""
        return self.unfinished.with_name("sweeps")

    @classmethod
    def locate(cls, uri: str | None = None, *, for_writing: bool = True) -> Store:
        """Find the store and check that it can be written, without importing MLflow.

        Args:
            uri: A tracking URI; None: $MLFLOW_TRACKING_URI, or mlflow.db in this folder.
            for_writing: False leaves the place untouched.

        Raises:
            UserError: MLflow cannot use the URI, or the place cannot be written to.
        """
        uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        scheme = urlsplit(uri).scheme.partition("+")[0]
        if scheme in ("", "file"):
            raise UserError(
                f"tracking.uri: received '{uri}', a folder, which MLflow no longer accepts as a "
                "store; expected a database or a server, for example "
                "tracking.uri=sqlite:///mlflow.db"
            )
        if scheme in REMOTE_SCHEMES:
            return cls(uri, None, None, Path.cwd() / "mlruns" / "unfinished")
        path = uri.removeprefix("sqlite:///")
        if scheme != "sqlite" or path in (uri, "", ":memory:"):
            raise UserError(
                f"tracking.uri: received '{uri}', expected a SQLite file, a server or a database, "
                "for example sqlite:///mlflow.db, http://127.0.0.1:5000 or "
                "postgresql+psycopg://user@host/name"
            )
        database = Path(unquote(path)).absolute()
        artifacts = database.parent / "mlruns"
        if for_writing:
            _check_writable(database, artifacts)
        return cls(
            f"sqlite:///{quote(str(database))}", database, artifacts, artifacts / "unfinished"
        )

    def open(self, experiment: str) -> str:
        """Create what is missing, for any number of processes at once; return the experiment id.

        Raises:
            UserError: The store cannot be reached or is not one.
        """
        quiet_mlflow()
        from mlflow.exceptions import MlflowException

        try:
            if self.database is not None and self.artifacts is not None:
                # Several creating one database at once would break it for good.
                with FileLock(self.artifacts / ".store.lock"):
                    if not self.database.exists():
                        self._create_database(self.database, self.artifacts)
                    return self._experiment(
                        client_of(self), experiment, self.artifacts / experiment
                    )
            return self._experiment(client_of(self), experiment, None)
        except MlflowException as error:
            raise refused(self, error) from error

    @staticmethod
    def _experiment(client: Any, name: str, artifacts: Path | None) -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                location = artifacts.as_uri() if artifacts else None
                return client.create_experiment(name, artifact_location=location)
            except MlflowException:
                # Another client of a server may have been quicker.
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise UserError(
                f"tracking.experiment: '{name}' was deleted from the store; restore it in "
                "MLflow's UI or choose another name, for example tracking.experiment=second"
            )
        return found.experiment_id

    @staticmethod
    def _create_database(database: Path, artifacts: Path) -> None:
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        for left in artifacts.glob(".new-*"):
            # By a process that was killed in here; the lock is ours.
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=artifacts, prefix=".new-") as folder:
            half_made = Path(folder) / "mlflow.db"
            store = SqlAlchemyStore(f"sqlite:///{quote(str(half_made))}", artifacts.as_uri())
            store.engine.dispose()
            half_made.replace(database)


def refused(store: Store, error: Exception) -> UserError:
    """Return what kept MLflow from a store as our one sentence."""
    reason = " ".join(str(error).split())
    # MLflow's client gives the number in its text alone.
    if "error code 401" in reason:
        user = os.environ.get("MLFLOW_TRACKING_USERNAME")
        received = f"user '{user}' and a password" if user else "no user name"
        return UserError(
            f"the store {store.uri} does not let you in: received {received}, expected yours as "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
        )
    if "error code 403" in reason:
        return UserError(
            f"the store {store.uri} does not permit this to user "
            f"'{os.environ.get('MLFLOW_TRACKING_USERNAME', '')}'; choose an experiment of your "
            "own, for example tracking.experiment=mine, or ask who keeps the server"
        )
    return UserError(f"the store {store.uri} cannot be used: {reason}")


@contextmanager
def asking(store: Store) -> Iterator[Any]:
    """Yield a client; a store that does not answer or let us in becomes a `UserError`."""
    client = client_of(store)
    from mlflow.exceptions import MlflowException

    try:
        yield client
    except MlflowException as error:
        raise refused(store, error) from error


def client_of(store: Store) -> Any:
    """Return a client of a store, which MLflow's functions then use as well."""
    use(store)
    return quiet_mlflow().MlflowClient()


def use(store: Store) -> None:
    """Have MLflow's functions use a store, without opening it."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    quiet_mlflow().set_tracking_uri(store.uri)
    # MLflow has put it into the environment as well, where the next store is looked for.
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = before


def quiet_mlflow() -> Any:
    """Return MLflow, imported only where it is needed: on the writing thread."""
    import mlflow

    # Its remarks on databases and artifacts would break into our lines.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It also prints what it raises, with a traceback; we say it ourselves, if it matters.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return mlflow


def _check_writable(database: Path, artifacts: Path) -> None:
    """Refuse a store that training would end in vain for."""
    try:
        artifacts.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=artifacts):
            pass
        if database.exists():
            with closing(sqlite3.connect(database, timeout=30)) as connection:
                connection.execute("pragma user_version").fetchone()
                if not os.access(database, os.W_OK):
                    raise PermissionError(13, "Permission denied")
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"the store {database} cannot be written: {error}; choose another place, for example "
            "tracking.uri=sqlite:////tmp/mlflow.db, or none with tracking=none"
        ) from None
