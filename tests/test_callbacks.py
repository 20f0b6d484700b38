"""What callbacks of the user's own leave with a run: figures in the logs, and by MLflow itself."""

import os

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import _validate_metric_name

from fmnist_lab import evaluation, run, tracking
from fmnist_lab.jobs import outputs
from fmnist_lab.training import loop
from fmnist_lab.training.callbacks import measured

EPOCH = loop.Epoch(
    number=3,
    loss=0.5,
    accuracy=0.8,
    validation=evaluation.Scores(0.7, float("nan")),
    learning_rate=0.001,
    images=10,
    seconds=1.0,
    last=False,
)


def kept(**added: object) -> tuple[dict[str, float], dict[str, str]]:
    logs = measured(EPOCH) | {name.replace("__", "/"): value for name, value in added.items()}
    return outputs.of_callbacks(loop.replace(EPOCH, logs=logs))


def test_numbers_are_kept_whatever_holds_them():
    figures, remarks = kept(
        a=1, b=0.5, c=np.float32(0.25), d=np.ones((1, 1)), e=tf.constant(2.0), f=True, g=[3]
    )
    assert figures == {"a": 1, "b": 0.5, "c": 0.25, "d": 1, "e": 2, "f": 1, "g": 3}
    assert remarks == {}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("spread", np.ones(3), "received spread of type ndarray, expected one number"),
        ("word", "0.5", "received word of type str, expected one number"),
        ("none", None, "received none of type NoneType, expected one number"),
        ("loss", 9.0, "received loss = 9, where 0.5 was measured; the latter is kept"),
        ("accuracy", None, "received accuracy of type NoneType, where 0.8 was measured"),
        ("val_loss", 9.0, "received val_loss = 9, where nan was measured"),
        ("accuracy/test", 1.0, "received accuracy/test = 1, under a name of our own metrics"),
        ("images_per_second", 1, "received images_per_second = 1, under a name of our own"),
        ("f1 (macro)", 1.0, "received f1 (macro) = 1, under a name that MLflow does not take"),
    ],
)
def test_what_cannot_be_kept_is_told(name, value, said):
    figures, remarks = kept(**{name: value})
    assert figures == {}
    assert list(remarks) == [name]
    assert f"callbacks: in the logs of epoch 3, {said}" in remarks[name]


def test_names_of_metrics_are_those_that_mlflow_takes():
    for name in (
        *("f1", "f1 macro", "a/b", "a.b-c_d:e", "präzision", "x" * 250, "1"),
        *("", "f1 (macro)", "a//b", "/a", "../a", "..", ".", "a/", "./a", "a/../b", "x" * 251),
        *("a%b", "a\nb", "a,b", "..a", "a\n"),
    ):
        try:
            _validate_metric_name(name)
        except MlflowException:
            taken = False
        else:
            taken = len(name) <= 250
        if name == "a\n":
            taken = False  # which MLflow's expression lets through, by mistake
        assert tracking.is_metric(name) == taken, name


class Adds(keras.callbacks.Callback):
    """Adds figures in each way there is; the second epoch's, once, is its last."""

    interrupts = False

    def on_test_end(self, logs):
        logs["recall"] = 0.25

    def on_epoch_end(self, epoch, logs):
        logs["f1"] = float(epoch)
        mlflow.log_metric("direct", epoch, step=epoch + 1)
        assert mlflow.active_run().info.run_name == "mine"
        if epoch == 1 and Adds.interrupts:
            Adds.interrupts = False
            raise KeyboardInterrupt


@pytest.mark.parametrize("engine", ["native", "graph"])
def test_an_epochs_logs_hold_what_callbacks_added(backend, engine):
    images = np.zeros((8, 2, 2), np.uint8)
    labels = np.arange(8) % 2
    model = keras.Sequential(
        [
            keras.Input((2, 2), dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    added = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: logs.update(f1=epoch),
        on_test_end=lambda logs: logs.update(recall=0.25),
    )
    (epoch,) = loop.train(
        model,
        images,
        labels,
        keras.optimizers.SGD(0.1),
        epochs=1,
        recipe=loop.Recipe(batch_size=4, engine=engine),
        validation=(images, labels),
        callbacks=[added],
    )
    own = {"loss", "accuracy", "learning_rate", "val_loss", "val_accuracy"}
    assert set(epoch.logs) == own | {"f1", "val_recall"}
    assert (epoch.logs["f1"], epoch.logs["val_recall"]) == (0, 0.25)


@pytest.mark.slow
def test_figures_of_callbacks_are_kept_with_the_run_across_an_interruption(
    backend, hydra_here, real_data
):
    """Beside a run that is active already, in another store and experiment."""
    words = ("debug=smoke", "tracking=local", "name=mine", "data.validation_fraction=0.1")
    words += ("trainer.epochs=3", "checkpoint.every=1", "+callbacks.a._target_=test_callbacks.Adds")
    elsewhere = f"sqlite:///{hydra_here}/elsewhere.db"
    mlflow.set_tracking_uri(elsewhere)
    mlflow.set_experiment("elsewhere")
    try:
        with mlflow.start_run() as outer:
            Adds.interrupts = True
            where = f"tracking.uri=sqlite:///{hydra_here}/mlflow.db"
            with pytest.raises(SystemExit) as end:
                run.main(*words, where)
            assert end.value.code == 130
            assert mlflow.active_run().info.run_id == outer.info.run_id
            run.main(*words, where, "resume=true")
            assert mlflow.active_run().info.run_id == outer.info.run_id
            assert mlflow.get_tracking_uri() == elsewhere
        client = mlflow.MlflowClient(f"sqlite:///{hydra_here}/mlflow.db")
        experiments = [each.experiment_id for each in client.search_experiments()]
        (found,) = client.search_runs(experiments)
        assert found.info.status == "FINISHED"
        for name, values in {
            "f1": [0, 1, 2],
            "val_recall": [0.25] * 3,
            "direct": [0, 1, 2],
        }.items():
            history = client.get_metric_history(found.info.run_id, name)
            points = {each.step: each.value for each in history}
            assert points == dict(enumerate(values, 1)), name
        (untouched,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
        assert untouched.data.metrics == {}
    finally:
        mlflow.tracking.fluent._active_experiment_id = None
        os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
        mlflow.set_tracking_uri(None)
