"""Errors of a store, told apart by type, errno and status code, never by their text.

MLflow wraps the error of a database or a server in one of its own, with a text of its own. The
wrapped error is still there, as the cause, and says which kind it is.
"""

from __future__ import annotations

import errno
import functools
import os
import shlex
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from fmnist_lab.errors import FULL_DISK, UserError, permission
from fmnist_lab.texts import duration, line

if TYPE_CHECKING:
    from fmnist_lab.tracking.store import Store

P = ParamSpec("P")
R = TypeVar("R")


class Kind(Enum):
    """What an error says of a store.

    Attributes:
        AWAY: The store may take the event in a moment: it is out of reach, in trouble, or locked.
        DISK: The store cannot write or read its files: the disk is full, broken or read-only.
        REFUSED: The store does not take this event.
    """

    AWAY = "away"
    DISK = "disk"
    REFUSED = "refused"


BAD_DISK = {*FULL_DISK, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV}
SQLITE = {
    sqlite3.SQLITE_BUSY: Kind.AWAY,
    sqlite3.SQLITE_LOCKED: Kind.AWAY,
    sqlite3.SQLITE_PROTOCOL: Kind.AWAY,
    sqlite3.SQLITE_FULL: Kind.DISK,
    sqlite3.SQLITE_IOERR: Kind.DISK,
    sqlite3.SQLITE_READONLY: Kind.DISK,
    sqlite3.SQLITE_CANTOPEN: Kind.DISK,
    sqlite3.SQLITE_CORRUPT: Kind.DISK,
    sqlite3.SQLITE_NOTADB: Kind.DISK,
}
# Answers of a server that may be another in a moment.
PASSING_STATUS = (408, 429, 502, 503, 504)
# What cannot be put off waits so long for a database that another program locks.
LOCK_PATIENCE_SECONDS = 120.0
ASK_AGAIN_SECONDS = 1.0


def kind(error: BaseException) -> Kind | None:
    """Return what an error says of a store; None if the error is not about a store or a disk."""
    errors = list(_chain(error))
    for each in errors:
        if isinstance(each, sqlite3.Error):
            # The database is a file of this machine; MLflow only guesses what its error means.
            return SQLITE.get(_sqlite_code(each), Kind.REFUSED)
    # The innermost error comes first: the others were made of it.
    found = [_kind(each) for each in reversed(errors)]
    return next((each for each in found if each in (Kind.AWAY, Kind.DISK)), None) or (
        Kind.REFUSED if Kind.REFUSED in found else None
    )


def is_outage(error: BaseException) -> bool:
    """Return whether an error means that the store may take the same event later."""
    return kind(error) is Kind.AWAY


def is_locked(error: BaseException) -> bool:
    """Return whether an error means that another program locks the store's database file."""
    return is_outage(error) and any(isinstance(each, sqlite3.Error) for each in _chain(error))


def outlast_lock(store: Store, ask: Callable[[], R], given_up: threading.Event | None = None) -> R:
    """Ask a store, and ask again for a while if another program locks its database.

    The wait is told in one line, on the standard error output.

    Args:
        store: The store that is asked.
        ask: Asks it; called again only after it has failed at a lock.
        given_up: Set by another thread that no longer wants to know.

    Returns:
        What `ask` returns.
    """
    given_up = given_up or threading.Event()
    deadline, told = time.monotonic() + LOCK_PATIENCE_SECONDS, False
    while True:
        try:
            return ask()
        except Exception as error:
            if not is_locked(error) or time.monotonic() >= deadline or given_up.is_set():
                raise
        if not told:
            print(
                f"The store {line(store.database)} is locked by another program; waiting up to "
                f"{duration(LOCK_PATIENCE_SECONDS)} for it.",
                file=sys.stderr,
                flush=True,
            )
        told = True
        given_up.wait(ASK_AGAIN_SECONDS)


def is_full(error: BaseException) -> bool:
    """Return whether an error means that there is no room left."""
    return any(
        _sqlite_code(each) == sqlite3.SQLITE_FULL
        if isinstance(each, sqlite3.Error)
        else isinstance(each, OSError) and each.errno in FULL_DISK
        for each in _chain(error)
    )


def reason(error: BaseException) -> str:
    """Return an error as one line, without the SQL statement that caused it."""
    error = next((each for each in _chain(error) if isinstance(each, sqlite3.Error)), error)
    text, _, _ = str(error).partition("[SQL:")
    return " ".join(text.split()) or type(error).__name__


def refused(store: Store, error: BaseException, *, resumable: bool = False) -> UserError:
    """Return the one sentence that tells a user why a store cannot be used.

    Args:
        store: The store.
        error: The error.
        resumable: Whether the command goes on with its run, given `resume=true`.
    """
    place, why = store.database or store.uri, reason(error)
    again = f"repeat the command{' with resume=true' if resumable else ''}"
    if is_full(error):
        disk = f"the disk of the store {place}" if store.database else "a disk of this machine"
        return UserError(f"{disk} is full: {why}; make room, and {again}")
    if is_locked(error):
        return UserError(
            f"the store {place} is locked by another program: {why}; end that program or wait for "
            f"it, and {again}"
        )
    status = _status(error)
    if status == 401:
        user = os.environ.get("MLFLOW_TRACKING_USERNAME")
        received = f"user '{user}' and a password" if user else "no user name"
        return UserError(
            f"the store {store.uri} does not let you in: received {received}, expected yours as "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
        )
    if status == 403:
        return UserError(
            f"the store {store.uri} does not permit this to user "
            f"'{os.environ.get('MLFLOW_TRACKING_USERNAME', '')}'; choose an experiment of your "
            "own, for example tracking.experiment=mine, or ask who keeps the server"
        )
    text = f"the store {store.uri} cannot be used: {why}"
    if store.database and not os.access(store.database, os.R_OK | os.W_OK):
        text += f"; {permission(store.database)}choose another place"
    return UserError(text)


def deleted(store: Store, run_id: str) -> UserError | None:
    """Return the sentence for a run that was deleted while it was written; None if it was not.

    Args:
        store: The store.
        run_id: The run; empty if it is not known yet.
    """
    from mlflow import MlflowClient

    if not run_id:
        return None
    try:
        client = MlflowClient(store.uri)
        run = client.get_run(run_id).info
        experiment = client.get_experiment(run.experiment_id)
    except Exception:
        # There is another reason, and the caller tells it.
        return None
    if run.lifecycle_stage == "active":
        return None
    whole = experiment.lifecycle_stage != "active"
    again = (
        restoring(store, experiment=run.experiment_id) if whole else restoring(store, run=run_id)
    )
    return UserError(
        f"run {run_id} was deleted from the store {store.uri} while it went on"
        f"{f', with its experiment {experiment.name!r}' if whole else ''}; what it has done is "
        f"kept on this machine: restore it with {again} and repeat the command with resume=true"
    )


def restoring(store: Store, *, experiment: str = "", run: str = "") -> str:
    """Return the command that restores an experiment or a run; MLflow's UI has no button for it."""
    what = f"experiments restore --experiment-id {experiment}" if experiment else ""
    what = what or f"runs restore --run-id {run}"
    return f"MLFLOW_TRACKING_URI={shlex.quote(store.uri)} python -m mlflow {what}"


@contextmanager
def translated(store: Store, *, resumable: bool = False) -> Iterator[None]:
    """Turn an error of a store into a `UserError`; any other error passes as it is.

    Args:
        store: The store that is asked.
        resumable: Whether the command goes on with its run, given `resume=true`.

    Raises:
        UserError: The store or its disk failed.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if kind(error) is None:
            raise
        raise refused(store, error, resumable=resumable) from error


@contextmanager
def read_errors(
    store: Store,
    problem: str,
    *,
    expected: str = "",
    errors: tuple[type[Exception], ...] = (Exception,),
) -> Iterator[None]:
    """Turn an error of reading a file into a `UserError`: the store's fault, or the file's.

    Args:
        store: The store that has the file.
        problem: What cannot be done if it is the file's fault.
        expected: The rest of that sentence, behind what the error says.
        errors: The errors that a damaged file gives; others pass as they are.

    Raises:
        UserError: The store or its disk failed, or the file cannot be read.
    """
    try:
        yield
    except errors as error:
        if kind(error) in (Kind.AWAY, Kind.DISK):
            raise refused(store, error) from error
        raise UserError(f"{problem}: {reason(error)}{expected}") from None


def asks(function: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Run a function that asks a store within `translated`.

    Args:
        function: A function whose first argument is a store, or a run or sweep that has a `store`
            and that `resume=true` goes on with.
    """

    @functools.wraps(function)
    def asking(where: Any, /, *words: P.args, **options: P.kwargs) -> R:
        store = getattr(where, "store", where)
        try:
            with translated(store, resumable=store is not where):
                return function(where, *words, **options)
        except UserError as error:
            gone = deleted(store, getattr(where, "id", "")) if error.__cause__ else None
            raise gone or error from error.__cause__

    return asking


def _kind(error: BaseException) -> Kind | None:
    """Return what a single error says, without its causes."""
    import requests
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

    status = _own_status(error)
    if status is not None:
        return Kind.AWAY if status in PASSING_STATUS or status >= 500 else Kind.REFUSED
    if isinstance(error, (requests.RequestException, ConnectionError, TimeoutError)):
        return Kind.AWAY
    if isinstance(error, FileNotFoundError) and error.filename is None:
        # This is the working folder or the folder of temporary files, and no file of a store.
        return None
    if isinstance(error, OSError):
        return Kind.DISK if error.errno in BAD_DISK else Kind.REFUSED
    if isinstance(error, MlflowException):
        # A database that aborts a transaction takes it the next time; MLflow's status is 409.
        passing = error.error_code == "ABORTED" or _mlflow_status(error) in PASSING_STATUS
        return Kind.AWAY if passing else Kind.REFUSED
    if isinstance(error, (OperationalError, InterfaceError)):
        return Kind.AWAY
    return Kind.REFUSED if isinstance(error, (SQLAlchemyError, CommandError)) else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes, the outermost first."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        within = getattr(
            error, "orig", None
        )  # SQLAlchemy's name for the error of the database's driver
        if isinstance(within, BaseException):
            error = within
        elif error.__cause__ is None and type(error).__module__ == "mlflow.exceptions":
            # MLflow does not name the cause everywhere.
            error = None if error.__suppress_context__ else error.__context__
        else:
            error = error.__cause__


def _sqlite_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary error code, the lowest byte; 0 if the error has none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of a server's answer; None if there is none."""
    from mlflow.exceptions import MlflowException

    for each in _chain(error):
        status = _own_status(each)
        if status is None and isinstance(each, MlflowException):
            status = _mlflow_status(each)
        if status is not None:
            return status
    return None


def _own_status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _mlflow_status(error: Any) -> int:
    return int(error.get_http_status_code())
