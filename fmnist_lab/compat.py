"""Every private name of another library that this package uses, behind one function each.

A release may move such a name without a word. Then exactly one test of `tests/test_compat.py` fails
and names the library, the name and its use, and this file is the only one to mend. Importing this
module imports none of the libraries: each function imports the one that it needs.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import keras
    from hydra.core.override_parser.types import Override
    from hydra.core.utils import JobReturn
    from omegaconf import DictConfig

T = TypeVar("T", bound=Callable[..., Any])

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


# Hydra, and the parser of arguments that it builds on


def hydra_parser() -> argparse.ArgumentParser:
    """Return the parser of Hydra's flags."""
    from hydra._internal.utils import get_args_parser

    return get_args_parser()


def flags_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Return what a parser does for each of its flags, such as "--multirun" and "-m"."""
    return dict(parser._option_string_actions)


def show_hydra(args: argparse.Namespace, folder: str, name: str) -> None:
    """Print what Hydra's flags ask for: a config, information, its own help or a completion.

    Args:
        args: The flags and overrides, as `hydra_parser` has parsed them.
        folder: The folder with the primary config.
        name: The primary config's name, without ".yaml".
    """
    from hydra._internal.utils import _run_hydra

    _run_hydra(args, hydra_parser(), lambda _: None, config_path=folder, config_name=name)


def run_hydra(
    args: argparse.Namespace,
    folder: str,
    name: str,
    task: T,
    driving: Callable[[DictConfig, T], AbstractContextManager[None] | None],
    jobs: Callable[[list[Override]], list[list[str]]],
) -> None:
    """Do the run or the sweep that a command line asks for.

    Hydra's own multirun calls no callback when a sweep fails or is interrupted; here a context
    manager surrounds it.

    Args:
        args: The flags and overrides, as `hydra_parser` has parsed them.
        folder: The folder with the primary config.
        name: The primary config's name, without ".yaml".
        task: The function to be called with each composed config.
        driving: Called with a sweep's own config and the task; the sweep is done within what it
            returns. None: there is nothing more to be done.
        jobs: Called by the basic sweeper to make the overrides of each job of a command line's.
    """
    from hydra._internal.callbacks import Callbacks
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import _run_app, create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode
    from omegaconf import OmegaConf

    def split(overrides: list[Override], size: int | None) -> list[list[list[str]]]:
        return list(BasicSweeper.split_overrides_to_chunks(jobs(overrides), size))

    class DrivenHydra(Hydra):
        def multirun(
            self,
            config_name: str | None,
            task_function: Callable[[Any], Any],
            overrides: list[str],
            with_log_configuration: bool = True,
        ) -> Any:
            mode = RunMode.MULTIRUN
            config = self.compose_config(config_name, overrides, mode, with_log_configuration)
            driven = driving(config, task)
            if driven is None:
                return None
            callbacks = Callbacks(config)
            callbacks.on_multirun_start(config=config, config_name=config_name)
            with driven:
                sweeper = Plugins.instance().instantiate_sweeper(
                    config=config,
                    hydra_context=HydraContext(self.config_loader, callbacks),
                    task_function=task_function,
                )
                # Hydra has executed the module of its class again, so that it is another class.
                if type(sweeper).__name__ == BasicSweeper.__name__:
                    sweeper.split_arguments = split  # type: ignore[attr-defined]
                words = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
                returned = sweeper.sweep(arguments=words)  # type: ignore[arg-type]
                callbacks.on_multirun_end(config=config, config_name=config_name)
            return returned

    search_path = create_config_search_path(folder)
    if args.config_dir is not None:
        added = f"file://{Path(args.config_dir).absolute()}"
        search_path.prepend("command-line", added, SearchPathQuery(provider="schema"))
    hydra = DrivenHydra.create_main_hydra2("run", search_path)
    try:
        mode = hydra.get_mode(name, args.overrides)
        _run_app(not args.multirun, args.multirun, mode, hydra, name, task, args.overrides)
    finally:
        GlobalHydra.instance().clear()


@functools.cache
def add_override_function(name: str, function: Callable[..., Any]) -> None:
    """Have Hydra's parser of overrides know a function more, as in key=NAME(1,2).

    Args:
        name: Its name.
        function: Called with the values between the parentheses.
    """
    from hydra.core.override_parser import overrides_parser

    make = overrides_parser.create_functions

    def extended() -> Any:
        functions = make()
        functions.register(name, function)
        return functions

    overrides_parser.create_functions = extended


def basic_jobs(overrides: list[Override]) -> list[list[str]]:
    """Return the overrides of each job of a sweep, as Hydra's basic sweeper makes them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    return BasicSweeper.split_arguments(overrides, None)[0]


def job_return(overrides: Sequence[str], value: Any) -> JobReturn:
    """Return what a launcher hands to Hydra for a job that has ended with a value.

    Args:
        overrides: The job's overrides.
        value: The value that the job's function returned, or stands for it.
    """
    from hydra.core.utils import JobReturn, JobStatus

    return JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=value)


@functools.cache
def pass_over_byte_order_marks() -> None:
    """Have Hydra read "# @package" in a file that an editor on Windows has begun with a mark.

    If a release moves the name, such a file is read as one without that line.
    """
    from hydra.plugins.config_source import ConfigSource

    header_of = getattr(ConfigSource, "_get_header_dict", None)
    if header_of is not None:
        without_mark = staticmethod(lambda text: header_of(text.removeprefix("\ufeff")))
        ConfigSource._get_header_dict = without_mark  # type: ignore[assignment, method-assign]


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
