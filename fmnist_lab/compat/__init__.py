"""Every private name of another library that this package uses, behind one function each.

A release may move such a name without a word. Then exactly one test of `tests/test_compat.py` fails
and names the library, the name and its use, and this package is the only one to mend. Importing it
imports none of the libraries: each function imports the one that it needs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_lab.compat.hydra import add_override_function as add_override_function
from fmnist_lab.compat.hydra import basic_jobs as basic_jobs
from fmnist_lab.compat.hydra import flags_of as flags_of
from fmnist_lab.compat.hydra import hydra_parser as hydra_parser
from fmnist_lab.compat.hydra import job_return as job_return
from fmnist_lab.compat.hydra import pass_over_byte_order_marks as pass_over_byte_order_marks
from fmnist_lab.compat.hydra import run_hydra as run_hydra
from fmnist_lab.compat.hydra import show_hydra as show_hydra

if TYPE_CHECKING:
    import keras


# Loggers whose levels `tracking` sets: MLflow's, and those of the libraries below it.
MLFLOW_LOGGERS = ("mlflow", "alembic", "mlflow.store.db.utils", "urllib3.connectionpool")


# Keras


def schedule_of(optimizer: keras.Optimizer) -> keras.optimizers.schedules.LearningRateSchedule:
    """Return an optimizer's learning-rate schedule, or None if its rate is a number.

    The public `learning_rate` is the schedule's current value.
    """
    import keras

    rate = optimizer._learning_rate
    return rate if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) else None


def batch_counter(optimizer: keras.Optimizer) -> keras.Variable:
    """Return the variable, int32 (), that counts the batches an optimizer has seen.

    The public `iterations` counts updates: several batches make one where gradients accumulate.
    """
    return optimizer._iterations


def decays(optimizer: keras.Optimizer, variables: Iterable[keras.Variable]) -> tuple[bool, ...]:
    """Return for each variable whether an optimizer's weight decay applies to it.

    Args:
        optimizer: Any Keras optimizer.
        variables: Weights of a model.
    """
    return tuple(map(optimizer._use_weight_decay, variables))


def averages(optimizer: keras.Optimizer) -> list[keras.Variable]:
    """Return the moving averages of the weights, of a built optimizer with `use_ema`."""
    return list(optimizer._model_variables_moving_average)


def adam_moments(optimizer: keras.Optimizer) -> list[list[keras.Variable]]:
    """Return the first and second moments of each weight, of a built Adam or AdamW."""
    return [optimizer._momentums, optimizer._velocities]


def all_layers(model: keras.Model) -> list[keras.Layer]:
    """Return a model and all layers in it, also those inside other layers."""
    return list(model._flatten_layers())


def callback_state(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """Return a callback's own attributes: all but those that Keras sets when a training begins."""
    keras_own = ("_model", "model", "params", "validation_data")
    return {name: value for name, value in vars(callback).items() if name not in keras_own}


def undistributed(kind: type[keras.Optimizer]) -> type[keras.Optimizer]:
    """Return a subclass of an optimizer that updates variables without a distribution strategy.

    TensorFlow's strategies keep every graph alive that was ever traced through them: 4 MB for each
    architecture.
    """
    from keras.src.backend.tensorflow.optimizer import TFOptimizer
    from keras.src.optimizers.base_optimizer import BaseOptimizer

    names = (
        "_backend_update_step",
        "_apply_weight_decay",
        "_overwrite_model_variables_with_average_value",
        "_backend_increment_gradient_accumulators",
    )
    direct = type("Undistributed", (TFOptimizer,), {n: getattr(BaseOptimizer, n) for n in names})
    # The methods of the optimizer's own class come first, and `direct` replaces Keras' only.
    return type(kind.__name__, (kind, direct), {})


# TensorFlow


def without_retracing_warning(function: Any) -> Any:
    """Return a `tf.function` that does not warn when its source is compiled many times.

    A sweep over widths compiles the same source once for each width.
    """
    function._omit_frequent_tracing_warning = True
    return function


def kernel_devices(operation: str) -> set[str]:
    """Return the devices that can run an operation: "CPU", "GPU", "XLA_CPU_JIT" and so on."""
    from tensorflow.python.framework.kernels import get_registered_kernels_for_op

    return {kernel.device_type for kernel in get_registered_kernels_for_op(operation).kernel}


@contextmanager
def brief_origins() -> Iterator[None]:
    """Have TensorFlow note for each traced operation only the callers outside the libraries.

    A compiled program keeps these notes for good: 2 MB for the tutorial's network, most of them
    about Keras. If a release moves the name, only that memory is lost.
    """
    loaded = (getattr(module, "__file__", None) or "" for module in list(sys.modules.values()))
    files = frozenset(file for file in loaded if "site-packages" in file)
    try:
        from tensorflow.python.util.tf_stack import StackTraceFilter
    except ImportError:
        yield
        return
    with type("Libraries", (StackTraceFilter,), {"get_filtered_filenames": lambda _: files})():
        yield


# MLflow


def make_mlflow_database(uri: str, artifacts: str) -> None:
    """Make the tables of a new store.

    Args:
        uri: Where, such as "sqlite:////tmp/mlflow.db".
        artifacts: The URI of the folder for the files of its default experiment.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(uri, artifacts).engine.dispose()


def mlflow_migrations() -> Path:
    """Return the folder with the versions of MLflow's database schema, in Alembic's form."""
    import mlflow

    return Path(mlflow.__file__).parent / "store" / "db_migrations"


def active_mlflow_runs() -> list[Any]:
    """Return this thread's stack of runs; MLflow's own functions log to the last one.

    `mlflow.start_run` refuses to put a run there beside one of the user's, and marks it as finished
    at the end.
    """
    from mlflow.tracking import fluent

    runs: list[Any] = fluent._active_run_stack.get()
    return runs


def store_behind(client: Any) -> Any:
    """Return the store behind an `MlflowClient`: a database, or what asks a server.

    It answers for many runs at once, where a client asks for one run at a time. None if a release
    has moved the name, which costs only time.
    """
    return getattr(getattr(client, "_tracking_client", None), "store", None)


def remove_for_good(client: Any, *, run_id: str = "", model_id: str = "") -> None:
    """Remove the rows of a deleted run, or of a deleted model, from the database of a client."""
    store = store_behind(client)
    if run_id:
        store._hard_delete_run(run_id)
    if model_id:
        store._hard_delete_logged_model(model_id)


def artifacts_at(uri: str) -> Any:
    """Return MLflow's access to the files below a URI."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(uri)


def fitting_runs(store: Any, experiment_id: str, where: str) -> list[Any] | None:
    """Return the rows of runs that fit a filter, straight from a database, the newest first.

    MLflow makes objects of all that a run has, which takes half a minute for 10,000 runs.

    Args:
        store: What `store_behind` returns.
        experiment_id: The id of an experiment.
        where: MLflow's filter; "" for all active runs.

    Returns:
        Rows with run_uuid, name, status, start_time and end_time; None if the store is no database,
        or a release has moved a name, which costs only time.
    """
    if getattr(store, "engine", None) is None:
        return None
    from mlflow.utils.search_utils import SearchUtils
    from sqlalchemy import select

    try:
        from mlflow.store.tracking import sqlalchemy_store as sql

        clauses, table = sql._get_sqlalchemy_filter_clauses, sql.SqlRun
        session_of, dialect = store.ManagedSessionMaker, store._get_dialect()
    except (ImportError, AttributeError):
        return None
    parsed = SearchUtils.parse_search_filter(where)
    with session_of() as session:
        own, joined, datasets = clauses(parsed, session, dialect)
        names = ("run_uuid", "name", "status", "start_time", "end_time")
        asked = select(*(getattr(table, name) for name in names))
        for each in joined:
            asked = asked.join(each, table.run_uuid == each.c.run_uuid)
        for each in datasets:
            asked = asked.join(each, table.run_uuid == each.c.destination_id)
        here = table.experiment_id == int(experiment_id), table.lifecycle_stage == "active"
        asked = asked.filter(*here, *own).distinct()
        return list(session.execute(asked.order_by(table.start_time.desc(), table.run_uuid)))


def latest_metrics(data: Any) -> list[Any]:
    """Return the latest value of each metric of a run, with its step, from the run's `data`.

    The public `metrics` have no steps. Empty if a release has moved the name, which costs a number
    on the screen of a sweep.
    """
    return list(getattr(data, "_metric_objs", []))


def source_type_of(source: Any) -> str:
    """Return MLflow's name for the kind of a data set's source, such as "code"."""
    return str(source._get_source_type())


# Ray


def replace_ray_messages(tell: Callable[[list[str]], None]) -> None:
    """Hand the lines that Ray prints about lost processes to a function, instead of printing them.

    If a release moves the name, Ray's own paragraphs appear.

    Args:
        tell: Called with the lines of one message.
    """
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda data, ignore_prefix: tell(data["lines"])
