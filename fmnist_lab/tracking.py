"""Where runs are kept: the only room that imports MLflow.

A `Run` does its writing on one thread of its own, in order, so that MLflow's import, its database
and its files cost the training nothing. MLflow is imported there, after TensorFlow.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np
from filelock import FileLock

from fmnist_lab.errors import UserError

if TYPE_CHECKING:
    import keras
    import pandas as pd
    from matplotlib.figure import Figure

# Telemetry would call out, and a printed URL is http://…/#/experiments/… without its UI running.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# The default, 7 retries with growing pauses, keeps a client waiting for four minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
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
    """

    uri: str
    database: Path | None
    artifacts: Path | None

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
            return cls(uri, None, None)
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
        return cls(f"sqlite:///{quote(str(database))}", database, artifacts)

    def open(self, experiment: str) -> str:
        """Create what is missing, for any number of processes at once; return the experiment id.

        Raises:
            UserError: The store cannot be reached or is not one.
        """
        _mlflow()
        from mlflow.exceptions import MlflowException

        try:
            if self.database is not None and self.artifacts is not None:
                # Several creating one database at once would break it for good.
                with FileLock(self.artifacts / ".store.lock"):
                    if not self.database.exists():
                        self._create_database(self.database, self.artifacts)
                    return self._experiment(_client(self), experiment, self.artifacts / experiment)
            return self._experiment(_client(self), experiment, None)
        except MlflowException as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the store {self.uri} cannot be used: {reason}") from error

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

        with tempfile.TemporaryDirectory(dir=artifacts, prefix=".new-") as folder:
            half_made = Path(folder) / "mlflow.db"
            store = SqlAlchemyStore(f"sqlite:///{quote(str(half_made))}", artifacts.as_uri())
            store.engine.dispose()
            half_made.replace(database)


class Run:
    """A run that is being written; see `start`. Without a store, all of it is forgotten."""

    def __init__(
        self, store: Store | None, experiment: str, name: str, tags: Mapping[str, str]
    ) -> None:
        self.store = store
        self.name = name
        self.id = ""
        self.experiment_id = ""
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tracking")
        self._tasks: list[Future[None]] = []
        self._dispensable: list[Future[None]] = []
        if store is not None:
            self._tasks.append(self._writer.submit(self._open, store, experiment, tags))
            self.write(_prepare_for_models)

    def _open(self, store: Store, experiment: str, tags: Mapping[str, str]) -> None:
        self.experiment_id = store.open(experiment)
        run = _mlflow().start_run(
            experiment_id=self.experiment_id, run_name=self.name, tags=dict(tags)
        )
        self.id = run.info.run_id

    @property
    def store_name(self) -> str:
        """The store as a person would look for it."""
        assert self.store is not None
        return str(self.store.database or self.store.uri)

    @property
    def is_remote(self) -> bool:
        """Whether the store is more than files on this machine."""
        return self.store is not None and self.store.database is None

    def wait_until_open(self) -> None:
        """Block until the run exists in the store.

        Raises:
            UserError: The store cannot be used.
        """
        if self._tasks:
            self._tasks[0].result()

    def write(self, task: Callable[[], object], *, essential: bool = False) -> None:
        """Have something written after all that came before; a failure surfaces at the end.

        What is not essential is left out when the run is killed.
        """
        if self.store is None:
            return

        def in_this_run() -> None:
            # Without a run, MLflow would quietly make another one elsewhere.
            if self.id:
                task()

        self._tasks.append(self._writer.submit(in_this_run))
        if not essential:
            self._dispensable.append(self._tasks[-1])

    def params(self, params: Mapping[str, Any]) -> None:
        """Log what was chosen."""
        self.write(lambda: _mlflow().log_params(params), essential=True)

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log figures of an epoch, in the given order.

        Raises:
            UserError: The run could not be opened; training on would be in vain.
        """
        if self._tasks and self._tasks[0].done():
            self.wait_until_open()
        self.write(lambda: _mlflow().log_metrics(metrics, step=step), essential=True)

    def tags(self, tags: Mapping[str, str]) -> None:
        """Log facts about the run."""
        self.write(lambda: _mlflow().set_tags(tags), essential=True)

    def text(self, text: str, file: str) -> None:
        """Keep a text file with the run."""
        self.write(lambda: _mlflow().log_text(text, file), essential=True)

    def json(self, value: Mapping[str, Any], file: str) -> None:
        """Keep nested values as a JSON file, arrays as lists and nan as null."""
        self.text(json.dumps(_plain(value), indent=1), file)

    def figure(self, file: str, draw: Callable[..., Figure], *arguments: Any) -> None:
        """Draw a figure on the writing thread and keep it at the artifact root.

        MLflow's compare page shows pictures only from there.
        """

        def task() -> None:
            import mlflow

            figure = draw(*arguments)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / file
                figure.savefig(path)
                mlflow.log_artifact(str(path))

        self.write(task)

    def arrays(self, file: str, **arrays: np.ndarray) -> None:
        """Keep arrays with the run, as a compressed .npz."""

        def task() -> None:
            import mlflow

            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / file
                np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
                mlflow.log_artifact(str(path))

        self.write(task)

    def dataset(self, images: np.ndarray, name: str, digest: str, source: str) -> None:
        """Log which data the run has used, by our own digest.

        MLflow's would cover only the first 10,000 values; its column holds 36 characters.
        """

        def task() -> None:
            import mlflow
            from mlflow.data.code_dataset_source import CodeDatasetSource
            from mlflow.data.numpy_dataset import NumpyDataset

            origin = CodeDatasetSource({"source": source})
            data = NumpyDataset(images, origin, name=name, digest=digest[:36])
            mlflow.log_input(data, context="training")
            mlflow.set_tag("data.digest", digest)

        self.write(task)

    def model(self, model: keras.Model, class_names: Sequence[str]) -> None:
        """Keep the model: uint8 images in, float32 probabilities out, exact requirements."""

        def task() -> None:
            import mlflow.keras
            from mlflow.models import ModelSignature
            from mlflow.types import Schema, TensorSpec

            def tensor(symbol: keras.KerasTensor) -> TensorSpec:
                return TensorSpec(np.dtype(symbol.dtype), (-1, *symbol.shape[1:]))

            mlflow.keras.log_model(
                model,
                name="model",
                signature=ModelSignature(
                    Schema([tensor(model.inputs[0])]), Schema([tensor(model.outputs[0])])
                ),
                metadata={"class_names": list(class_names)},
                # Left to itself, MLflow loads the model in another process to find these out.
                pip_requirements=[
                    f"{library}=={metadata.version(library)}"
                    for library in ("mlflow", "tensorflow", "keras", "numpy")
                ],
            )

        self.write(task)

    def finish(self) -> None:
        """Wait until everything is written.

        Raises:
            UserError: Something could not be written.
        """
        self.wait_until_open()
        failure = next(filter(None, (task.exception() for task in self._tasks)), None)
        if failure and self.store:
            raise UserError(
                f"run {self.id} is incomplete, the store {self.store.uri} refused: {failure}"
            ) from failure

    def close(self, status: str) -> None:
        """Write what is essential, and mark the run; nothing happens if it was never opened."""
        if status == "KILLED":
            for task in self._dispensable:
                task.cancel()
        self.write(lambda: _mlflow().end_run(status), essential=True)
        self._writer.shutdown()


@contextmanager
def start(
    store: Store | None, experiment: str | None, name: str, tags: Mapping[str, str]
) -> Iterator[Run]:
    """Open a run, and close it as what it turns out to be.

    Args:
        store: Where to keep it; None: nowhere.
        experiment: MLflow's experiment.
        name: The run's name.
        tags: Facts to be known from the start.

    Yields:
        The run, FINISHED after the block, FAILED with the reason as tag `failure` if the block
        raises, KILLED after Ctrl-C or SIGTERM.

    Raises:
        UserError: The store cannot be used.
    """
    run = Run(store, experiment or DEFAULT_EXPERIMENT, name, tags)
    try:
        yield run
        run.finish()
    except KeyboardInterrupt:
        with _undisturbed():
            run.close("KILLED")
        raise
    except BaseException as error:
        reason = str(error) if isinstance(error, UserError) else traceback.format_exc()
        with _undisturbed():
            run.tags({"failure": reason[-5000:]})
            run.close("FAILED")
        raise
    else:
        with _undisturbed():
            run.close("FINISHED")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM for the moment it takes to leave a run in its right state."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def load_model(uri: str, store: Store) -> tuple[keras.Model, tuple[str, ...] | None]:
    """Reload a logged Keras model in Keras' safe mode, which runs no code from the file.

    Args:
        uri: runs:/RUN_ID/model, models:/NAME/VERSION or a folder.
        store: The store that the first two refer to.

    Returns:
        The model, and the names of its classes if they were logged with it.

    Raises:
        UserError: There is no such model, or it is no Keras model.
    """
    import mlflow.keras
    from mlflow.exceptions import MlflowException

    _use(store)
    try:
        # Asking a database that does not exist would create it.
        if store.database and not store.database.exists() and not Path(uri).exists():
            raise FileNotFoundError(f"there is no store {store.database}")
        model = mlflow.keras.load_model(uri)
        metadata = mlflow.models.get_model_info(uri).metadata or {}
    except (MlflowException, ImportError, OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"model_uri: received '{uri}', which cannot be loaded as a Keras model: {reason}; "
            "expected runs:/RUN_ID/model, models:/NAME/VERSION or a folder that MLflow wrote"
        ) from None
    names = metadata.get("class_names")
    return model, tuple(names) if names else None


def origin(uri: str) -> dict[str, str]:
    """Return a tag that names the run a model came from, where its URI tells."""
    parts = uri.removeprefix("runs:/").split("/")
    return {"evaluated_run": parts[0]} if uri.startswith("runs:/") else {}


def links(store: Store, experiment: str, run_id: str | None = None) -> dict[str, str]:
    """Return links into MLflow's UI, without the server's address: a title and a path.

    A fresh browser shows an experiment in a view for language models, with nothing of ours in
    it, so every link names the view.

    Raises:
        UserError: There is no such run or experiment.
    """
    from mlflow.exceptions import MlflowException

    client, experiment_id = _look_into(store, experiment)
    view = "?workflowType=machine_learning"
    if not run_id:
        return {"all runs": f"/#/experiments/{experiment_id}/runs{view}"}
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise UserError(f"run '{run_id}' is not in {store.uri}: {error.message}") from None
    page = f"/#/experiments/{run.info.experiment_id}/runs"
    return {f"run {run.info.run_name}": f"{page}/{run_id}{view}", "all runs": f"{page}{view}"}


def find(
    store: Store, experiment: str = DEFAULT_EXPERIMENT, where: str = "", *, curve: str = ""
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return runs as a table, the newest first.

    Args:
        store: Where to look.
        experiment: The experiment they are in.
        where: MLflow's filter, for example "params.model = 'mlp'".
        curve: A metric to return for every epoch as well.

    Returns:
        A row a run: `run_id`, `name`, `status`, `started` (UTC), `failure` and `job` where there
        are any, then params and last metrics under their own names; and a row an epoch: `run_id`,
        `epoch`, `metric`, `value`.

    Raises:
        UserError: The store or the experiment is not there, or MLflow refuses the filter.
    """
    import pandas as pd
    from mlflow.exceptions import MlflowException

    client, experiment_id = _look_into(store, experiment)
    rows, points, token = [], [], None
    try:
        while token != "":
            page = client.search_runs([experiment_id], where, max_results=1000, page_token=token)
            for run in page:
                tags = run.data.tags
                rows.append(
                    {
                        "run_id": run.info.run_id,
                        "name": run.info.run_name,
                        "status": run.info.status,
                        "started": pd.Timestamp(run.info.start_time, unit="ms", tz="UTC"),
                        **{tag: tags[tag] for tag in ("job", "failure") if tag in tags},
                        **run.data.params,
                        **run.data.metrics,
                    }
                )
                if curve in run.data.metrics:
                    points += [
                        (run.info.run_id, point.step, curve, point.value)
                        for point in client.get_metric_history(run.info.run_id, curve)
                    ]
            token = page.token or ""
    except MlflowException as error:
        raise UserError(
            f"--filter: received '{where}', which MLflow refuses: {error.message}"
        ) from None
    return pd.DataFrame(rows), pd.DataFrame(points, columns=["run_id", "epoch", "metric", "value"])


def _look_into(store: Store, experiment: str) -> tuple[Any, str]:
    """Return a client of a store and an experiment's id, if there are any runs to look at."""
    if store.database is not None and not store.database.exists():
        raise UserError(
            f"no runs: {store.database} does not exist; make a run with python -m fmnist_lab.run, "
            "go to the folder you made one in, or name a store with --store"
        )
    client = _client(store)
    known = client.get_experiment_by_name(experiment)
    if known is None:
        raise UserError(
            f"experiment '{experiment}' is not in {store.uri}; name one with --experiment"
        )
    return client, known.experiment_id


def newest_run(store: Store) -> str | None:
    """Return the id of the newest finished training run, in any experiment, or None."""
    if store.database is not None and not store.database.exists():
        return None
    client = _client(store)
    runs = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()],
        "attributes.status = 'FINISHED' and tags.job = 'train'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return runs[0].info.run_id if runs else None


def _client(store: Store) -> Any:
    """Return a client of a store, which MLflow's functions then use as well."""
    _use(store)
    return _mlflow().MlflowClient()


def _use(store: Store) -> None:
    """Have MLflow's functions use a store, without opening it."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    _mlflow().set_tracking_uri(store.uri)
    # MLflow has put it into the environment as well, where the next store is looked for.
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = before


def _mlflow() -> Any:
    """Return MLflow, imported only where it is needed: on the writing thread."""
    import mlflow

    # Its remarks on databases and artifacts would break into our lines.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
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


def _prepare_for_models() -> None:
    """Have MLflow list the installed packages while the model is training.

    It does so once a process, in 0.4 s, when the first model is logged. If it names this
    differently one day, only that time is lost.
    """
    with suppress(ImportError, AttributeError):
        from mlflow.utils import requirements_utils

        requirements_utils._init_modules_to_packages_map()


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: arrays as lists, nan as null."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
