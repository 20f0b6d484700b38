"""The store: where it is, and whether it can be used."""

from __future__ import annotations

import errno
import os
import posixpath
import re
import shlex
import shutil
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote, unquote

from filelock import FileLock

from fmnist_lab import compat
from fmnist_lab.errors import ELSEWHERE, FULL_DISK, UserError, cannot_write, permission
from fmnist_lab.system import durable
from fmnist_lab.texts import line
from fmnist_lab.tracking.client import asking, client_of, quiet_mlflow
from fmnist_lab.tracking.failures import (
    is_locked,
    outlast_lock,
    refused,
    restoring,
    translated,
)

DEFAULT_EXPERIMENT = "fmnist_lab"
REMOTE_SCHEMES = ("http", "https", "postgresql", "mysql", "mssql", "databricks", "databricks-uc")
# Another run's transaction takes less; a longer lock is told while it is waited for.
BRIEF_LOCK_SECONDS = 5.0


@dataclass(frozen=True)
class Store:
    """A place for runs that was found and checked, but not opened.

    Attributes:
        uri: MLflow's tracking URI; a SQLite path in it is absolute.
        database: The SQLite file, or None for a server or another database.
        artifacts: The folder for the files of runs, or None where the server decides.
        unfinished: The folder on this machine for the journals of runs.
    """

    uri: str
    database: Path | None
    artifacts: Path | None
    unfinished: Path

    @property
    def place(self) -> str:
        """The store as a person would look for it: its file, or its URI."""
        return line(self.database or self.uri)

    @property
    def shared(self) -> Path:
        """The folder on this machine for the checkpoints that the jobs of a sweep share."""
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
        scheme = uri.partition(":")[0].partition("+")[0].lower() if ":" in uri else ""
        if scheme in ("", "file"):
            raise UserError(
                f"tracking.uri: received '{uri}', a folder, which MLflow no longer accepts as a "
                "store; expected a database or a server, for example "
                "tracking.uri=sqlite:///mlflow.db"
            )
        if scheme in REMOTE_SCHEMES:
            return cls(uri, None, None, Path.cwd() / "mlruns" / "unfinished")
        path = uri.partition(":///")[2]
        if scheme != "sqlite" or path in ("", ":memory:"):
            raise UserError(
                f"tracking.uri: received '{uri}', expected a SQLite file, a server or a database, "
                "for example sqlite:///mlflow.db, http://127.0.0.1:5000 or "
                "postgresql+psycopg://user@host/name"
            )
        database = Path(unquote(path)).absolute()
        artifacts = database.parent / "mlruns"
        store = cls(_sqlite_uri(database), database, artifacts, artifacts / "unfinished")
        if for_writing:
            _check_writable(store, database, artifacts)
        return store

    def is_there(self) -> bool:
        """Return whether the store exists; a server is supposed to."""
        return self.database is None or self.database.exists()

    def is_at(self, uri: str) -> bool:
        """Return whether a URI, as this version or an earlier one noted it, is this store's.

        Args:
            uri: A tracking URI whose path is absolute.
        """
        try:
            return bool(uri) and Store.locate(uri, for_writing=False).uri == self.uri
        except UserError:
            return False

    def is_found_here(self) -> bool:
        """Return whether a program that is started in this folder finds the store by itself."""
        try:
            return Store.locate(for_writing=False).uri == self.uri
        except (UserError, OSError):
            return False

    def command(self, *words: str) -> str:
        """Return the command line of a program of ours that finds this store, ready to be pasted.

        It names the store, by `--store`, unless the program finds the store by itself.

        Args:
            words: The program's name and what follows it: "runs", "list".
        """
        named = [] if self.is_found_here() else ["--store", self.uri]
        return shlex.join(["python", "-m", f"fmnist_lab.{words[0]}", *words[1:], *named])

    def open(self, experiment: str | None) -> str:
        """Create the store if it is missing, and return the id of an experiment of it.

        Any number of processes may do so at once.

        Args:
            experiment: MLflow's experiment; None: see `experiment_name`.

        Raises:
            UserError: The store cannot be reached, or is no store.
        """
        quiet_mlflow()
        with translated(self, resumable=True):
            if self.database is None or self.artifacts is None:
                name = experiment_name(self, experiment)
                return self._experiment(client_of(self), name, None)
            # Several processes that create one database at once would break it for good.
            with FileLock(self.artifacts / ".store.lock"):
                for left in self.artifacts.glob(".new-*"):
                    # A process was ended while it made the database.
                    shutil.rmtree(left, ignore_errors=True)
                if not self.database.exists():
                    self._create_database(self.database, self.artifacts)
                name = experiment_name(self, experiment)
                folder = self.artifacts / _folder_name(name)
                if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
                    # The folder is another user's, in a shared store.
                    raise cannot_write(folder, PermissionError(errno.EACCES, "Permission denied"))
                return self._experiment(client_of(self), name, folder)

    def _experiment(self, client: Any, name: str, artifacts: Path | None) -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                location = artifacts.as_uri() if artifacts else None
                return str(client.create_experiment(name, artifact_location=location))
            except MlflowException:
                # Another client of a server may have been quicker.
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
        check_active(self, found)
        return str(found.experiment_id)

    @staticmethod
    def _create_database(database: Path, artifacts: Path) -> None:
        with tempfile.TemporaryDirectory(dir=artifacts, prefix=".new-") as folder:
            half_made = Path(folder) / "mlflow.db"
            compat.make_mlflow_database(_sqlite_uri(half_made), artifacts.as_uri())
            # SQLite keeps a group from writing, whatever the umask permits.
            usual = half_made.with_name("usual")
            usual.touch()
            shutil.copymode(usual, half_made)
            durable.replace(half_made, database)


def _folder_name(experiment: str) -> str:
    """Return the name of an experiment's folder below `mlruns`, which leads nowhere else."""
    path = PurePath(experiment)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        return quote(experiment, safe=" ").replace(".", "%2E")
    return experiment


def _sqlite_uri(database: Path) -> str:
    """Return the URI of a SQLite file, by which MLflow finds it and makes no other folder.

    MLflow makes the folder that a URI of "sqlite:///" names, but reads the folder's name as it is
    written: "a%20b" beside "a b". It makes no folder for a URI with the driver's name.
    """
    path = str(database)
    scheme = "sqlite" if quote(path) == path else "sqlite+pysqlite"
    return f"{scheme}:///{quote(path)}"


def experiment_name(store: Store, experiment: str | None) -> str:
    """Return an experiment's name: the given one, that of MLflow's environment, or ours.

    Args:
        store: The store.
        experiment: The name; None: MLFLOW_EXPERIMENT_NAME, or the name of MLFLOW_EXPERIMENT_ID,
            or `DEFAULT_EXPERIMENT`.

    Raises:
        UserError: MLFLOW_EXPERIMENT_ID is no experiment of the store.
    """
    named = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    number = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if named or not number or not store.is_there():
        return named or DEFAULT_EXPERIMENT
    with asking(store) as client:
        known = {each.experiment_id: each.name for each in client.search_experiments()}
    if number not in known:
        expected = ", ".join(f"{key} ({name})" for key, name in list(known.items())[:10])
        raise UserError(
            f"MLFLOW_EXPERIMENT_ID: received '{number}', expected one of the store {store.uri}: "
            f"{expected}; or give tracking.experiment=NAME"
        )
    return str(known[number])


def surrounding_run(client: Any) -> dict[str, str]:
    """Return the tag of a run within the run of MLFLOW_RUN_ID, which `mlflow run` has begun."""
    from mlflow.exceptions import MlflowException

    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return {}
    try:
        client.get_run(run_id)
    except MlflowException:
        # The run is another store's, or gone.
        return {}
    return {"mlflow.parentRunId": run_id}


def check_active(store: Store, experiment: Any) -> None:
    """Refuse an experiment of MLflow that was deleted.

    Args:
        store: The store.
        experiment: MLflow's experiment.

    Raises:
        UserError: The experiment was deleted.
    """
    if experiment.lifecycle_stage != "active":
        command = restoring(store, experiment=experiment.experiment_id)
        raise UserError(
            f"tracking.experiment: '{experiment.name}' was deleted from the store {store.uri}; "
            "choose another name, for example tracking.experiment=second (--experiment second for "
            f"`runs`), or restore it with its runs: {command}"
        )


def is_metric(name: str) -> bool:
    """Return whether MLflow takes a name for a metric, without importing it."""
    plain = re.fullmatch(r"[\w.\- :/]{1,250}", name) and not name.startswith(("/", ".."))
    return bool(plain) and name == posixpath.normpath(name) != "."


def _check_writable(store: Store, database: Path, artifacts: Path) -> None:
    """Refuse a store that could not keep a training, and wait for one that is locked."""

    def write() -> None:
        with closing(sqlite3.connect(database, timeout=BRIEF_LOCK_SECONDS)) as connection:
            connection.execute("pragma user_version").fetchone()
            if not os.access(database, os.W_OK):
                raise PermissionError(13, "Permission denied")
            # This takes the lock of a writer, and changes nothing.
            connection.execute("begin immediate")

    try:
        durable.make_folder(artifacts)
        with tempfile.TemporaryFile(dir=artifacts):
            pass
        if database.exists():
            outlast_lock(store, write)
    except (OSError, sqlite3.Error) as error:
        if is_locked(error):
            raise refused(store, error) from None
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise cannot_write(database, error) from None
        raise UserError(
            f"the store {database} cannot be written: {error}; "
            f"{permission(database if database.exists() else artifacts)}choose another place, for "
            f"example {ELSEWHERE}, or none with tracking=none"
        ) from None
