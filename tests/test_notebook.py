"""In one process with other work: everything works there, and leaves it as it was."""

import logging
import random
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import keras
import numpy as np
import pytest
import tensorflow as tf
from hydra.core.global_hydra import GlobalHydra

from fmnist_lab import figures, run
from fmnist_lab.errors import UserError
from fmnist_lab.predict import load
from fmnist_lab.system import process
from fmnist_lab.system.terminal import printout
from fmnist_lab.training import runtime as backend_module

SMALL = ("debug=smoke", "tracking=local")


def speaks(capsys: pytest.CaptureFixture[str], work: Callable[[], object]) -> bool:
    capsys.readouterr()
    work()
    return bool(capsys.readouterr().out)


@pytest.mark.slow
def test_a_run_and_a_reload_leave_a_process_as_they_found_it(
    backend, hydra_here, real_data, capsys, monkeypatch
):
    """TensorFlow is in use; its threads are taken, and told where others were asked for."""
    import mlflow

    kept_store = f"sqlite:///{hydra_here}/mine.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # put back afterwards
    mlflow.set_tracking_uri(kept_store)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    logging.getLogger("mlflow").setLevel(logging.INFO)
    keras.config.set_dtype_policy("mixed_bfloat16")
    handler = logging.FileHandler(hydra_here / "mine.log", mode="w")
    logging.getLogger().addHandler(handler)
    hydra_of_mine = object()
    monkeypatch.setattr(GlobalHydra.instance(), "hydra", hydra_of_mine)

    def found() -> object:
        return (
            (sys.stdout, sys.stderr, list(sys.argv)),
            (mlflow.get_tracking_uri(), logging.getLogger("mlflow").level),
            (logging.getLogger().handlers[:], logging.getLogger().level),
            (keras.config.dtype_policy().name, tf.get_logger().level),
            (random.getstate(), np.random.get_state()[1].tolist(), GlobalHydra.instance().hydra),
        )

    try:
        before = found()
        run.main(*SMALL, "trainer.threads=1", "name=first")
        assert found() == before
        said = capsys.readouterr().out
        run.main("-m", "debug=smoke", "seed=1,2")
        assert found() == before
        with pytest.raises(SystemExit):
            run.main("--hydra-help")
        assert found() == before
        classifier = load()
        assert found() == before
        logging.getLogger().warning("still mine")
        assert "still mine" in Path(handler.baseFilename).read_text()
    finally:
        keras.config.set_dtype_policy("float32")
        logging.getLogger().removeHandler(handler)
        handler.close()
    if backend.threads != 1:
        assert (
            f"trainer.threads: received 1, but TensorFlow already runs in this process with "
            f"{backend.threads}" in said
        )
    client = mlflow.MlflowClient(f"sqlite:///{hydra_here}/mlflow.db")
    experiment = client.get_experiment_by_name("fmnist_lab").experiment_id
    (first,) = client.search_runs([experiment], "attributes.run_name = 'first'")
    assert first.data.tags["threads"] == str(backend.threads)
    assert first.data.tags["mlflow.source.name"].startswith("python -m fmnist_lab.run debug=smoke")

    # Keras has not been silenced.
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    data = np.ones((4, 2)), np.ones(4)
    assert speaks(capsys, classifier.model.summary)
    assert speaks(capsys, lambda: model.fit(*data))
    assert speaks(capsys, lambda: model.evaluate(*data, verbose=2))


def test_threads_that_tensorflow_never_was_told_are_all_cores(monkeypatch):
    threading = tf.config.threading

    def refuse(_: int) -> None:
        raise RuntimeError("Intra op parallelism cannot be modified after initialization.")

    monkeypatch.setattr(threading, "get_intra_op_parallelism_threads", lambda: 0)
    monkeypatch.setattr(threading, "set_intra_op_parallelism_threads", refuse)
    cores = backend_module.usable_cores()
    assert backend_module.start().threads == cores
    assert backend_module.start(1).threads == cores


def test_keras_on_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UserError, match=r"received jax, .* expected tensorflow"):
        backend_module.start()


@pytest.mark.parametrize("ours", [True, False])
def test_a_kernels_own_command_line_is_not_taken_for_overrides(
    monkeypatch, hydra_here, ours, capsys
):
    monkeypatch.setattr(process, "in_ipython", lambda: not ours)
    words = ["-f", "kernel.json"]
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", *words])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "ipykernel_launcher", *words])
    with run._called(()) as taken:
        assert taken == (words if ours else [])
    with run._called(("seed=1",)) as taken:
        assert taken == ["seed=1"]
    assert sys.argv == ["ipykernel_launcher.py", *words]


def test_a_notebooks_process_is_not_ended_by_a_program_in_it(monkeypatch):
    monkeypatch.setattr(process, "in_ipython", lambda: True)
    monkeypatch.setattr(process.atexit, "register", lambda *_: pytest.fail("ends the process"))
    done = []
    process.run(lambda: done.append("done"))
    assert done
    assert not process.ours


def test_a_kernel_is_no_terminal(monkeypatch):
    """It asks for colours, but cannot go back to an earlier line."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert printout().is_terminal
    monkeypatch.setattr(process, "in_ipython", lambda: True)
    assert not printout().is_terminal


def test_a_notebook_may_call_main_and_then_run_the_module(doors, tmp_path):
    """By `%run -m fmnist_lab.run`, of which Python would warn."""
    code = """if True:
        import runpy, sys
        from fmnist_lab import run
        sys.argv[1:] = ["--version"]
        runpy.run_module("fmnist_lab.run", run_name="__main__", alter_sys=True)"""
    done = doors.python(tmp_path, code)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("fmnist_lab ")


def test_functions_that_are_compiled_time_and_again_are_not_warned_of(backend, caplog):
    from fmnist_lab.training.engines.replica import compiled

    tf.get_logger().addHandler(caplog.handler)
    try:
        for one in range(8):
            compiled(lambda x, one=one: x + one)(tf.constant(1))
        assert not caplog.records
        for one in range(8):
            tf.function(lambda x, one=one: x + one)(tf.constant(1))
        assert "retracing" in caplog.text
    finally:
        tf.get_logger().removeHandler(caplog.handler)


def test_figures_show_in_a_notebook_and_text_says_what_they_are():
    figure = figures.first_image(np.zeros((28, 28), np.uint8), "Coat")
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert repr(figure).startswith("<Picture size ")


CELLS = {
    "tensorflow used": """
        import keras, numpy as np, sys, tensorflow as tf
        print(int(tf.linalg.matmul(tf.ones((2, 2)), tf.ones((2, 2)))[0, 0]))
        mine = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        mine.compile("sgd", "mse")
        mine.fit(np.ones((64, 4)), np.ones(64))
        found = sys.stdout, sys.stderr, list(sys.argv)""",
    "run": "%run -m fmnist_lab.run debug=smoke tracking=local name=one",
    "main": """
        from fmnist_lab import run
        run.main("debug=smoke", "tracking=local", "name=two", "trainer.threads=1")""",
    "load": """
        from fmnist_lab import data, figures
        from fmnist_lab.predict import load
        classifier, images = load(), data.load()
        images""",
    "predict": "classifier.predict(images.test_images[:3]).shape",
    "summary": "classifier.model.summary()",
    "figure": """
        figures.image_grid(images.train_images[:4], images.train_labels[:4], images.class_names)""",
    "evaluate": "mine.evaluate(np.ones((64, 4)), np.ones(64), verbose=2)",
    "fit": "mine.fit(np.ones((64, 4)), np.ones(64))",
    "left": "print(found == (sys.stdout, sys.stderr, sys.argv))",
}


@pytest.mark.slow
def test_a_notebook_in_which_tensorflow_was_used_first(real_data, tmp_path, monkeypatch):
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "JUPYTER_RUNTIME_DIR").mkdir()
    (folder := tmp_path / "work").mkdir()
    cells = [nbformat.v4.new_code_cell(dedent(cell)) for cell in CELLS.values()]
    notebook = nbformat.v4.new_notebook(cells=cells)
    kernel = AsyncKernelManager(kernel_name="python3", ip="127.0.0.1")
    NotebookClient(
        notebook, km=kernel, timeout=300, resources={"metadata": {"path": str(folder)}}
    ).execute()
    outputs = dict(zip(CELLS, (cell.outputs for cell in notebook.cells), strict=True))

    def said(cell: str) -> str:
        """What a cell printed, and the words of what it showed."""
        return "".join(
            part.text if part.output_type == "stream" else part.data.get("text/plain", "")
            for part in outputs[cell]
        )

    assert said("tensorflow used")
    cores = backend_module.usable_cores()
    for cell, name in (("run", "one"), ("main", "two")):
        assert f"Run '{name}', id " in said(cell)
        assert f"{cores} thread" in said(cell)
    if cores > 1:
        assert "trainer.threads: received 1" in said("main")
        assert "trainer.threads" not in said("run")
    assert said("load").startswith("<fashion-mnist: 60,000 training, 10,000 test images")
    assert said("predict") == "(3, 10)"
    assert "Total params" in said("summary")
    assert any("image/png" in part.get("data", {}) for part in outputs["figure"])
    assert "loss: " in said("evaluate")
    assert "loss: " in said("fit")
    assert said("left").strip() == "True"
