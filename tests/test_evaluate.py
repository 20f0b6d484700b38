"""`job=evaluate`: a model that exists is evaluated in a process of its own."""

import re

import numpy as np
import pytest
from doors import QUICK
from tracked import FIGURES, METRICS, First, check_quiet


@pytest.fixture(scope="module")
def tracked(trained) -> First:
    """A run that was made in this process, which is all that is needed here."""
    return trained


@pytest.fixture(scope="module")
def evaluated(tracked, doors):
    process = doors("run", tracked.folder, "job=evaluate", f"model_uri={tracked.model}", *QUICK[:2])
    assert process.code == 0, process.err
    return process, tracked.one("tags.job = 'evaluate'")


def test_evaluating_a_logged_model_gives_its_metrics_again(tracked, evaluated):
    _, found = evaluated
    assert found.info.status == "FINISHED"
    for name in METRICS[:6]:
        assert found.data.metrics[name] == tracked.run.data.metrics[name], name
    with np.load(tracked.file(found, "predictions.npz")) as arrays:
        assert arrays["probabilities"].tobytes() == tracked.predictions["probabilities"].tobytes()
    of_training = {"first_image.png", "training_images.png", "learning_curves.png"}
    assert tracked.files(found) >= FIGURES - of_training | {"evaluation.json"}


def test_an_evaluation_points_at_its_model(tracked, evaluated):
    process, found = evaluated
    assert found.data.tags["evaluated_run"] == tracked.run.info.run_id
    assert found.data.tags["model_uri"] == tracked.model
    check_quiet(process)
    assert f"id {found.info.run_id}" in process.out
    assert f"runs:/{found.info.run_id}/model" not in process.out  # it has none of its own


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folder", "registered"])
def test_a_model_may_be_named_in_other_ways(tracked, doors, tmp_path, form):
    """By its folder, with no store at all; or by its name in MLflow's registry."""
    folder = next((tracked.folder / "mlruns/fmnist_lab/models").iterdir()) / "artifacts"
    if form == "folder":
        uri, store = str(folder), ["tracking=none"]
    else:
        tracked.client.create_registered_model("mine")
        version = tracked.client.create_model_version("mine", str(folder))
        uri, store = f"models:/mine/{version.version}", [f"tracking.uri={tracked.uri}"]
    process = doors("run", tmp_path, "job=evaluate", f"model_uri={uri}", *QUICK[:2], *store)
    assert process.code == 0, process.err
    check_quiet(process)
    accuracy = tracked.run.data.metrics["accuracy/test"]
    assert re.search(rf"^accuracy +\S+ +{accuracy:.4f} ", process.out, re.M)
