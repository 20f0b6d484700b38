"""Kills at random moments: whatever a run was doing, `resume=true` brings it to the same end.

FMNIST_LAB_KILLS says how many moments are tried, FMNIST_LAB_SEED which ones; both are printed.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from doors import Doors
from outcomes import outcome

KILLS = int(os.environ.get("FMNIST_LAB_KILLS", "6"))
SEED = int(os.environ["FMNIST_LAB_SEED"])  # set in conftest.py
WORDS = (
    *("data.train_limit=2000", "data.test_limit=500", "trainer.epochs=10"),
    *("checkpoint.every=1", "model.dropout=0.2", "resume=true"),
)


@pytest.fixture(scope="module")
def undisturbed(backend, doors, tmp_path_factory) -> tuple[dict, float]:
    """What the run comes to if nobody disturbs it, and how many seconds it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    doors("run", folder, "debug=smoke")  # others start with XLA's programs kept, too
    began = time.monotonic()
    process = doors("run", folder, *WORDS)
    assert process.code == 0, process.err
    return outcome(f"sqlite:///{folder}/mlflow.db", folder), time.monotonic() - began


def kill_after(doors: Doors, folder: Path, seconds: float) -> bool:
    """Start the run and kill it; return whether it was still running."""
    process = doors.start("run", folder, *WORDS)
    time.sleep(seconds)
    was_running = process.running
    process.kill(signal.SIGKILL)
    process.wait()
    return was_running


@pytest.mark.slow
@pytest.mark.parametrize("number", range(KILLS), ids=lambda number: f"seed {SEED} kill {number}")
def test_a_run_that_is_killed_anywhere_ends_as_if_it_had_not_been(
    undisturbed, doors, tmp_path, number
):
    expected, seconds = undisturbed
    draw = random.Random(f"{SEED} {number}")
    moments = [draw.uniform(0, seconds)]
    if draw.random() < 0.3:  # and its continuation as well
        moments.append(draw.uniform(0, seconds))
    print(f"FMNIST_LAB_SEED={SEED}, kill {number}, after", *(f"{each:.2f} s" for each in moments))
    for moment in moments:
        kill_after(doors, tmp_path, moment)
    resumed = doors("run", tmp_path, *WORDS)
    assert (resumed.code, resumed.err) == (0, "")
    found = outcome(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)
    assert found.pop("id") in resumed.out
    assert found == {name: value for name, value in expected.items() if name != "id"}
