"""A run that is being written, on a thread of its own, and its life cycle."""

from __future__ import annotations

import json
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_lab.errors import UserError
from fmnist_lab.tracking.store import DEFAULT_EXPERIMENT, Store, quiet_mlflow

if TYPE_CHECKING:
    import keras
    from matplotlib.figure import Figure


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
        run = quiet_mlflow().start_run(
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
        self.write(lambda: quiet_mlflow().log_params(params), essential=True)

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log figures of an epoch, in the given order.

        Raises:
            UserError: The run could not be opened; training on would be in vain.
        """
        if self._tasks and self._tasks[0].done():
            self.wait_until_open()
        self.write(lambda: quiet_mlflow().log_metrics(metrics, step=step), essential=True)

    def tags(self, tags: Mapping[str, str]) -> None:
        """Log facts about the run."""
        self.write(lambda: quiet_mlflow().set_tags(tags), essential=True)

    def text(self, text: str, file: str) -> None:
        """Keep a text file with the run."""
        self.write(lambda: quiet_mlflow().log_text(text, file), essential=True)

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
        self.write(lambda: quiet_mlflow().end_run(status), essential=True)
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
