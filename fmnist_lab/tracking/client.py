"""MLflow, imported and asked: the only way from a store to a client of it."""

from __future__ import annotations

import functools
import logging
import os
import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_lab import compat
from fmnist_lab.errors import UserError
from fmnist_lab.system.process import variables_kept
from fmnist_lab.tracking.failures import translated

if TYPE_CHECKING:
    from fmnist_lab.tracking.store import Store

# Telemetry would call out, and a printed URL is http://…/#/experiments/… without its UI running.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# The default, 7 retries with growing pauses, keeps a client waiting for four minutes; we have
# retries of our own.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

# MLflow imports progress bars that notebooks need ipywidgets for, which nobody here needs.
warnings.filterwarnings("ignore", "IProgress not found")

SERVER_SCHEMES = ("http:", "https:", "databricks")  # they have no schema to be checked
LOCK_SECONDS = 30  # the wait for another program that locks a database


@contextmanager
def asking(store: Store, *, resumable: bool = False) -> Iterator[Any]:
    """Yield a client; a store that does not answer or let us in becomes a `UserError`."""
    with translated(store, resumable=resumable):
        yield client_of(store)


@contextmanager
def active(store: Store, run_id: str) -> Iterator[None]:
    """Let MLflow's own functions log to a run, on this thread, until the block ends.

    If MLflow names its stack differently one day, its functions make runs of their own again.
    """
    client = client_of(store)
    import mlflow

    try:
        runs = compat.active_mlflow_runs()
        runs.append(mlflow.ActiveRun(client.get_run(run_id)))
    except Exception:
        # The store may be away, and they could not log anything either.
        yield
        return
    try:
        yield
    finally:
        runs[:] = [run for run in runs if run.info.run_id != run_id]


def client_of(store: Store, *, current: bool = True) -> Any:
    """Return a client of a store.

    Args:
        store: The store.
        current: Whether the store becomes the one of MLflow's functions, which a job of this
            process may have set to another.

    Raises:
        UserError: The store's database is of another version of MLflow.
    """
    mlflow = quiet_mlflow()
    check_schema(store)
    if current:
        use(store)
    return mlflow.MlflowClient(tracking_uri=store.uri)


@functools.cache
def check_schema(store: Store) -> None:
    """Refuse a database that was made by another version of MLflow.

    MLflow itself would upgrade an older one without a question, even if somebody only looks at it,
    and an upgrade cannot be undone.

    Raises:
        UserError: Another version has made the database.
    """
    if store.uri.startswith(SERVER_SCHEMES) or (store.database and not store.database.exists()):
        return
    import mlflow
    import sqlalchemy
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    database = str(store.database) if store.database else None
    uri = sqlalchemy.URL.create("sqlite", database=database) if database else store.uri
    # Another program may be writing to a file at this moment.
    wait = {"timeout": LOCK_SECONDS} if database else {}
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, connect_args=wait)
    try:
        with engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
            if found is None and not sqlalchemy.inspect(connection).has_table("experiments"):
                return
    finally:
        engine.dispose()
    script = ScriptDirectory(str(compat.mlflow_migrations()))
    if found == script.get_current_head():
        return
    version = mlflow.__version__
    try:
        script.get_revision(found or "base")
    except CommandError:
        raise UserError(
            f"the store {store.uri} was made by a newer MLflow than {version}, which is installed "
            f"here and does not know the schema {found}; install the newer one, or choose another "
            "place, for example tracking.uri=sqlite:///other.db"
        ) from None
    raise UserError(
        f"the store {store.uri} was made by an older MLflow than {version}, which is installed "
        "here; to upgrade it, which cannot be undone, make a copy of it and type: "
        f"python -m mlflow db upgrade {shlex.quote(store.uri)}"
    )


def use(store: Store) -> None:
    """Make a store the one that MLflow's functions use, without opening it."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    quiet_mlflow().set_tracking_uri(store.uri)
    # MLflow has put the URI into the environment as well, where `Store.locate` looks.
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = before


def quiet_mlflow() -> Any:
    """Return MLflow, imported only where it is needed: on the writing thread."""
    import mlflow

    # MLflow's remarks on databases and artifacts would break into our lines.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # MLflow also prints the errors that it raises; we tell those that matter.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return mlflow


def download(uri: str, folder: str) -> Path:
    """Download an artifact, a file or a folder, without MLflow's progress bar.

    Args:
        uri: The artifact, as MLflow names it.
        folder: Takes it.

    Returns:
        The path of the copy.
    """
    import mlflow.artifacts

    with variables_kept("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"):
        # MLflow draws it wherever tqdm is installed, on the standard error output.
        os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
