"""The private names of other libraries that `compat` uses are where it expects them.

Each test here fails with one sentence, and without a traceback, when a release moves its name.
"""

import ast
import inspect
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from pkgutil import iter_modules

import numpy as np
import pytest

from fmnist_lab import compat

COMPAT = Path(compat.__file__).parent
PACKAGE = COMPAT.parent
CONTRACTS: dict[str, tuple[str, Callable[[], None]]] = {}


def contract(library: str):
    """Register a check of the function of `compat` that has the check's name."""

    def register(check: Callable[[], None]) -> Callable[[], None]:
        CONTRACTS[check.__name__] = library, check
        return check

    return register


def keep_contract(name: str) -> None:
    """Do a check; fail with a sentence that says which name of which library was moved."""
    library, check = CONTRACTS[name]
    try:
        check()
    except Exception as error:
        pytest.fail(
            f"{library} {metadata.version(library)} has moved a private name that compat.{name} "
            f"uses ({type(error).__name__}: {error}); look it up in the release and mend "
            "fmnist_lab/compat/",
            pytrace=False,
        )


PARTS = [import_module(f"{compat.__name__}.{each.name}") for each in iter_modules(compat.__path__)]
PUBLIC = sorted(
    {
        name
        for module in (compat, *PARTS)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__.startswith(compat.__name__) and not name.startswith("_")
    }
)


@pytest.mark.parametrize("name", PUBLIC)
def test_the_name_is_where_it_was(name):
    if name == "replace_ray_messages":
        pytest.importorskip("ray")
    keep_contract(name)


def built(optimizer_class: str = "Adam", **options):
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    optimizer = getattr(keras.optimizers, optimizer_class)(**options)
    optimizer.build(model.trainable_variables)
    return model, optimizer


@contract("keras")
def schedule_of():
    import keras

    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    assert compat.schedule_of(keras.optimizers.SGD(schedule)) is schedule
    assert compat.schedule_of(keras.optimizers.SGD(0.1)) is None


@contract("keras")
def batch_counter():
    model, optimizer = built(gradient_accumulation_steps=2)
    optimizer.apply([np.ones(each.shape, np.float32) for each in model.trainable_variables])
    assert int(compat.batch_counter(optimizer).numpy()) == 1
    assert int(optimizer.iterations.numpy()) == 0


@contract("keras")
def decays():
    import keras

    model, _ = built()
    optimizer = keras.optimizers.AdamW()
    assert compat.decays(optimizer, model.trainable_variables) == (True, True)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    assert compat.decays(optimizer, model.trainable_variables) == (True, False)


@contract("keras")
def averages():
    model, optimizer = built(use_ema=True)
    shapes = [each.shape for each in model.trainable_variables]
    assert [each.shape for each in compat.averages(optimizer)] == shapes


@contract("keras")
def adam_moments():
    model, optimizer = built()
    shapes = [each.shape for each in model.trainable_variables]
    for moments in compat.adam_moments(optimizer):
        assert [each.shape for each in moments] == shapes


@contract("keras")
def all_layers():
    import keras

    inner = keras.layers.Dense(2)
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.TimeDistributed(inner)])
    assert any(layer is inner for layer in compat.all_layers(model))


@contract("keras")
def callback_state():
    import keras

    callback = keras.callbacks.EarlyStopping()
    before = compat.callback_state(callback)
    assert "patience" in before
    callback.set_model(built()[0])
    callback.set_params({"epochs": 1})
    assert compat.callback_state(callback).keys() == before.keys()


@contract("keras")
def undistributed():
    import keras
    from keras.src.optimizers.base_optimizer import BaseOptimizer

    class Own(keras.optimizers.SGD):
        def _apply_weight_decay(self, variables) -> None:
            """Override a method that is replaced otherwise."""

    kind = compat.undistributed(Own)
    assert kind._apply_weight_decay is Own._apply_weight_decay
    assert kind._backend_update_step is BaseOptimizer._backend_update_step
    model, _ = built()
    before = model.get_weights()
    optimizer = kind(learning_rate=1.0)
    optimizer.build(model.trainable_variables)
    optimizer.apply([np.ones(each.shape, np.float32) for each in model.trainable_variables])
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_allclose(new, old - 1, rtol=1e-6)


@contract("tensorflow")
def without_retracing_warning():
    import tensorflow as tf

    function = tf.function(lambda x: x)
    assert function._omit_frequent_tracing_warning is False
    assert compat.without_retracing_warning(function)._omit_frequent_tracing_warning is True


@contract("tensorflow")
def kernel_devices():
    assert {"CPU", "XLA_CPU_JIT"} <= compat.kernel_devices("MatMul")


@contract("tensorflow")
def brief_origins():
    from tensorflow.python.util import tf_stack

    before = tf_stack.extract_stack()
    with compat.brief_origins():
        during = tf_stack.extract_stack()
    # A worker of pytest-xdist has frames of a file that is no module.
    assert any("_pytest" in frame.filename for frame in before)
    assert not any("_pytest" in frame.filename for frame in during)


@contract("hydra-core")
def hydra_parser():
    args = compat.hydra_parser().parse_args(["--cfg", "job", "a=1"])
    assert (args.cfg, args.overrides) == ("job", ["a=1"])


@contract("hydra-core")
def flags_of():
    flags = compat.flags_of(compat.hydra_parser())
    assert flags["-m"] is flags["--multirun"]
    assert flags["--version"].version


@contract("hydra-core")
def show_hydra():
    from hydra._internal import utils

    arguments = inspect.signature(utils._run_hydra).parameters
    names = ["args", "args_parser", "task_function", "config_path", "config_name"]
    assert list(arguments)[:5] == names


@contract("hydra-core")
def run_hydra():
    from hydra._internal import utils
    from hydra._internal.callbacks import Callbacks
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra._internal.hydra import Hydra

    names = ["run", "multirun", "mode", "hydra", "config_name", "task_function", "overrides"]
    assert list(inspect.signature(utils._run_app).parameters) == names
    ours = ["self", "config_name", "task_function", "overrides", "with_log_configuration"]
    assert list(inspect.signature(Hydra.multirun).parameters) == ours
    assert list(inspect.signature(Hydra.compose_config).parameters)[:5] == [
        *("self", "config_name", "overrides", "run_mode", "with_log_configuration"),
    ]
    assert callable(Hydra.create_main_hydra2)
    assert callable(Hydra.get_mode)
    assert {"on_multirun_start", "on_multirun_end"} <= set(dir(Callbacks))
    assert "self.split_arguments(overrides, self.max_batch_size)" in inspect.getsource(
        BasicSweeper.sweep
    )
    assert list(BasicSweeper.split_overrides_to_chunks([["a"], ["b"]], 1)) == [[["a"]], [["b"]]]
    assert list(BasicSweeper.split_overrides_to_chunks([["a"], ["b"]], None)) == [[["a"], ["b"]]]


@contract("hydra-core")
def add_override_function():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    compat.add_override_function("twice", lambda value: [value, value])
    (parsed,) = OverridesParser.create().parse_overrides(["a=twice(3)"])
    assert parsed.value() == [3, 3]


@contract("hydra-core")
def basic_jobs():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = OverridesParser.create().parse_overrides(["a=1,2", "b=3"])
    assert compat.basic_jobs(overrides) == [["a=1", "b=3"], ["a=2", "b=3"]]


@contract("hydra-core")
def job_return():
    made = compat.job_return(["a=1"], {"failure": "lost"})
    assert (made.overrides, made.return_value) == (["a=1"], {"failure": "lost"})


@contract("hydra-core")
def pass_over_byte_order_marks():
    from hydra.plugins.config_source import ConfigSource

    compat.pass_over_byte_order_marks()
    assert ConfigSource._get_header_dict("\ufeff# @package _global_") == {"package": "_global_"}


@contract("mlflow")
def make_mlflow_database():
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    assert list(inspect.signature(SqlAlchemyStore).parameters)[:2] == [
        "db_uri",
        "default_artifact_root",
    ]


@contract("mlflow")
def mlflow_migrations():
    from alembic.script import ScriptDirectory

    assert ScriptDirectory(str(compat.mlflow_migrations())).get_current_head()


@contract("mlflow")
def active_mlflow_runs():
    assert compat.active_mlflow_runs() == []
    from mlflow.tracking import fluent

    compat.active_mlflow_runs().append("a run")
    try:
        assert fluent.active_run() == "a run"
    finally:
        compat.active_mlflow_runs().clear()


@contract("mlflow")
def store_behind():
    from mlflow import MlflowClient

    store = compat.store_behind(MlflowClient("http://127.0.0.1:1"))
    assert type(store).__name__ == "RestStore"
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    assert SqlAlchemyStore.get_metric_history_bulk


@contract("mlflow")
def remove_for_good():
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for name, argument in (
        ("_hard_delete_run", "run_id"),
        ("_hard_delete_logged_model", "model_id"),
    ):
        assert list(inspect.signature(getattr(SqlAlchemyStore, name)).parameters)[1] == argument


@contract("mlflow")
def artifacts_at():
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "artifacts")
        place.mkdir()
        compat.artifacts_at(place.as_uri()).delete_artifacts()
        assert not place.exists()


@contract("mlflow")
def fitting_runs():
    from mlflow.store.tracking import sqlalchemy_store as sql

    assert list(inspect.signature(sql._get_sqlalchemy_filter_clauses).parameters) == [
        "parsed",
        "session",
        "dialect",
    ]
    assert sql.SqlAlchemyStore._get_dialect
    assert {"run_uuid", "name", "status", "start_time", "end_time"} <= vars(sql.SqlRun).keys()
    assert compat.fitting_runs(object(), "1", "") is None


@contract("mlflow")
def latest_metrics():
    from mlflow.entities import Metric, RunData

    metric = Metric("loss", 0.5, timestamp=0, step=3)
    assert compat.latest_metrics(RunData([metric], [], [])) == [metric]


@contract("mlflow")
def source_type_of():
    from mlflow.data.code_dataset_source import CodeDatasetSource

    assert compat.source_type_of(CodeDatasetSource({})) == "code"


@contract("ray")
def replace_ray_messages():
    from ray._private import worker

    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
        compat.replace_ray_messages(told.append)
        worker.print_to_stdstream({"lines": ["a"]}, ignore_prefix=False)
    assert told == [["a"]]
    assert "print_to_stdstream(" in inspect.getsource(worker)


def test_a_name_that_was_moved_is_told_in_one_sentence(monkeypatch):
    from tensorflow.python.framework import kernels

    monkeypatch.delattr(kernels, "get_registered_kernels_for_op")
    said = r"^tensorflow \S+ has moved .* that compat.kernel_devices uses \(ImportError: [^\n]*$"
    with pytest.raises(pytest.fail.Exception, match=said):
        keep_contract("kernel_devices")


def test_importing_it_imports_no_library():
    code = """if True:
        import sys
        from fmnist_lab import compat
        libraries = ("keras", "tensorflow", "mlflow", "hydra", "ray", "matplotlib", "numpy")
        print([name for name in libraries if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Names with an underscore that are documented: of named tuples, SQLAlchemy, Hydra's configs and os.
DOCUMENTED = {"_asdict", "_fields", "_replace", "_mapping", "_target_", "_exit"}
PRIVATE_MODULES = ("keras.src", "tensorflow.python", "mlflow.store", "hydra._internal")


def private_uses(source: str) -> list[str]:
    """Return the private names of other modules or objects that code uses."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom | ast.Import):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [each.name for each in node.names]
            found += [
                module
                for module in modules
                if module.startswith(PRIVATE_MODULES) or (module[:1] == "_" and module[:2] != "__")
            ]
        elif isinstance(node, ast.Attribute):
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if private and not own and node.attr not in DOCUMENTED:
                found.append(ast.unparse(node))
    return found


def test_private_uses_are_found():
    code = "from hydra._internal import utils\nimport keras.src\noptimizer._rate = self._mine"
    assert private_uses(code) == ["hydra._internal", "keras.src", "optimizer._rate"]


def test_no_other_module_uses_a_private_name():
    files = [file for file in PACKAGE.rglob("*.py") if file.parent != COMPAT]
    used = {str(file): private_uses(file.read_text(encoding="utf-8")) for file in files}
    assert len(files) > 50
    assert {file: names for file, names in used.items() if names} == {}
