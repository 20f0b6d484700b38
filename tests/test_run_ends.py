"""Runs that end badly: they diverge, they are killed, or a callback fails."""

import signal
import time
from pathlib import Path

import pytest
from doors import QUICK, Doors, Process
from tracked import METRICS, Tracked, train_here

# Its rate is sound for half of the steps, and then no weight survives it.
OWN_SCHEDULE = """
import keras

def late(learning_rate, steps):
    return keras.optimizers.schedules.PiecewiseConstantDecay([steps // 2 - 1], [0.01, 1e38])
"""


def test_a_diverging_run_stops_is_failed_and_keeps_the_epochs_before(
    backend, real_data, hydra_here, monkeypatch, capsys
):
    (hydra_here / "own_rate.py").write_text(OWN_SCHEDULE)
    monkeypatch.syspath_prepend(hydra_here)
    words = (*QUICK[:2], "trainer.epochs=4", "optimizer=sgd", "schedule._target_=own_rate.late")
    with pytest.raises(SystemExit) as end:
        train_here(hydra_here, *words)
    out, err = capsys.readouterr()
    assert end.value.code == 2
    for said in (err.splitlines()[-1], found_failed(hydra_here).data.tags["failure"]):
        assert "epoch 3" in said
        assert "optimizer.learning_rate" in said
    store = Tracked(hydra_here)
    for name in METRICS:
        assert [step for step, _ in store.history(store.one(), name)] == [1, 2]
    assert "2/4" in out
    assert "3/4" not in out


def found_failed(folder: Path):
    found = Tracked(folder).one()
    assert found.info.status == "FAILED"
    assert found.info.end_time is not None
    return found


def interrupted(doors: Doors, folder: Path, number: signal.Signals) -> Process:
    """Send a signal to a long run after its second epoch."""
    process = doors.start("run", folder, *QUICK[:2], "trainer.epochs=9999")
    wait_for(process, " 2/9999 ")
    process.kill(number)
    process.wait(60)
    return process


def wait_for(process: Process, text: str) -> None:
    deadline = time.monotonic() + 120
    while text not in process.out:
        assert process.running, process.err
        assert time.monotonic() < deadline
        time.sleep(0.05)


def check_killed(process: Process, folder: Path, code: int) -> None:
    assert process.code == code
    assert "Traceback" not in process.err
    found = Tracked(folder).one()
    assert found.info.status == "KILLED"
    history = Tracked(folder).history(found, "accuracy/test")
    assert [step for step, _ in history] == list(range(1, len(history) + 1))
    assert len(history) >= 2


def test_sigterm_kills_a_run_properly(doors, tmp_path):
    check_killed(interrupted(doors, tmp_path, signal.SIGTERM), tmp_path, 143)


@pytest.mark.slow
def test_ctrl_c_kills_a_run_properly(doors, tmp_path):
    check_killed(interrupted(doors, tmp_path, signal.SIGINT), tmp_path, 130)


@pytest.mark.slow
def test_sigterm_after_the_last_epoch_does_not_leave_a_run_running(doors, tmp_path):
    """While the figures are drawn and the model is written."""
    process = doors.start("run", tmp_path, *QUICK[:2], "trainer.epochs=1")
    wait_for(process, "1/1 ")
    process.kill(signal.SIGTERM)
    assert process.wait() in (0, 143)
    assert Tracked(tmp_path).one().info.status in ("KILLED", "FINISHED")


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.1, 0.2])
def test_sigterm_before_the_first_epoch_is_not_lost(doors, tmp_path, moment):
    """While the first step is compiled, Python may be anywhere: in a callback of the garbage
    collector, say, which swallows what a signal's handler raises."""
    process = doors.start("run", tmp_path, *QUICK[:2], "trainer.epochs=9999")
    wait_for(process, "engine")
    time.sleep(moment)
    process.kill(signal.SIGTERM)
    assert process.wait(60) in (143, -signal.SIGTERM)
    assert process.err == ""
    if (tmp_path / "mlflow.db").exists():
        assert {each.info.status for each in Tracked(tmp_path).runs()} <= {"KILLED"}


@pytest.mark.slow
def test_what_fails_while_training_is_not_said_of_the_words(doors, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import keras\n\n\n"
        "class Failing(keras.callbacks.Callback):\n"
        "    def on_epoch_end(self, epoch, logs=None):\n"
        "        raise ValueError('my own mistake')\n"
    )
    words = ("callbacks=[early_stopping]", "+callbacks.mine._target_=mine.Failing")
    small = ("data.train_limit=1000", "data.test_limit=500", "data.validation_fraction=0.2")
    process = doors("run", tmp_path, *words, *small, "tracking=none")
    assert process.code == 1
    assert process.err.endswith("ValueError: my own mistake\n")
    assert "callbacks: received" not in process.err
