"""The same sweep on the cores of this machine, by which the clusters' are measured as well."""

import pytest
from doors import Doors
from mlflow import MlflowClient

from .sweeps import IN_TWO_PARTS, TWELVE, TWO, Swept

pytestmark = pytest.mark.cluster


def test_a_sweep_is_the_same_side_by_side(doors: Doors, baseline, tmp_path):
    done = doors("run", tmp_path, "-m", "hydra/launcher=local_cores", *TWELVE, "trainer.threads=1")
    assert (done.code, done.err) == (0, "")
    swept = Swept(MlflowClient(f"sqlite:///{tmp_path}/mlflow.db"), "fmnist_lab")
    assert swept.states() == [(number, "FINISHED") for number in range(12)]
    assert swept.parent.info.status == "FINISHED"
    assert swept.figures() == baseline


def test_jobs_in_two_parts_are_the_same_side_by_side(doors: Doors, baseline, tmp_path):
    words = ("-m", "hydra/launcher=local_cores", *TWO)
    done = doors.python(tmp_path, IN_TWO_PARTS, *words)
    assert (done.code, done.err) == (0, "")
    swept = Swept(MlflowClient(f"sqlite:///{tmp_path}/mlflow.db"), "fmnist_lab")
    assert swept.states() == [(number, "FINISHED") for number in range(2)]
    figures = swept.figures()
    assert figures == {each: baseline[each] for each in figures}
