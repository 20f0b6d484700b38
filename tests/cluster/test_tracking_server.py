"""A tracking server as docs/tracking_server.md describes it, and all that a client does there."""

import json

import pytest
from doors import QUICK, Doors
from mlflow import MlflowClient

from .servers import TrackingServer

pytestmark = pytest.mark.cluster

THROUGH_SERVER = ("tracking=server", "trainer.threads=1", *QUICK)


@pytest.fixture(scope="module")
def made(doors: Doors, tracking_server: TrackingServer, tmp_path_factory):
    """A run that a client has made in an empty folder."""
    folder = tmp_path_factory.mktemp("client")
    done = doors("run", folder, *THROUGH_SERVER, **tracking_server.env)
    assert done.code == 0, done.err
    return folder


def only_run(client: MlflowClient, job: str):
    experiment = client.get_experiment_by_name("fmnist_lab")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.job = '{job}'")
    return run


def test_a_run_and_its_files_are_on_the_server_alone(made, client, tracking_server):
    run = only_run(client, "train")
    assert run.info.status == "FINISHED"
    assert {"accuracy/test", "accuracy/gap", "loss/gap"} <= set(run.data.metrics)
    assert len(client.get_metric_history(run.info.run_id, "accuracy/gap")) == 2
    kept = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "predictions.npz", "evaluation.json"} <= kept
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert list(tracking_server.artifacts.rglob("predictions.npz"))
    assert list(tracking_server.artifacts.rglob("model.keras"))
    assert not (made / "mlflow.db").exists()
    assert not list(made.rglob("predictions.npz"))


def test_its_figures_are_those_of_a_local_run(made, client, doors, tmp_path):
    overrides = [each for each in THROUGH_SERVER if each != "tracking=server"]
    assert doors("run", tmp_path, *overrides).code == 0
    local = only_run(MlflowClient(f"sqlite:///{tmp_path}/mlflow.db"), "train")
    remote = only_run(client, "train")
    speed = "images_per_second"
    for name in local.data.metrics.keys() - {speed}:
        assert remote.data.metrics[name] == local.data.metrics[name], name
    assert local.data.tags["config.hash"] == remote.data.tags["config.hash"]


def test_its_model_is_evaluated_and_predicts(made, client, doors, tracking_server, tmp_path):
    run = only_run(client, "train")
    uri = f"runs:/{run.info.run_id}/model"
    words = ("job=evaluate", f"model_uri={uri}", *THROUGH_SERVER)
    done = doors("run", tmp_path, *words, **tracking_server.env)
    assert done.code == 0, done.err
    again = only_run(client, "evaluate")
    assert again.data.metrics["accuracy/test"] == run.data.metrics["accuracy/test"]
    done = doors(
        "predict", tmp_path, "--model", uri, "--index", "0", "--json", **tracking_server.env
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)


def test_reports_and_lists(made, client, doors, tracking_server, tmp_path):
    done = doors("runs", tmp_path, "list", **tracking_server.env)
    assert done.code == 0, done.err
    assert "FINISHED" in done.out
    done = doors("runs", tmp_path, "report", "--output", "report", **tracking_server.env)
    assert done.code == 0, done.err
    assert (tmp_path / "report" / "results.csv").exists()


@pytest.mark.parametrize(
    ("door", "words"), [("run", THROUGH_SERVER), ("runs", ("list",))], ids=["run", "runs"]
)
def test_a_stranger_is_told_how_to_say_who_he_is(doors, tracking_server, tmp_path, door, words):
    env = tracking_server.env | {"MLFLOW_TRACKING_PASSWORD": "wrong"}
    error = doors(door, tmp_path, *words, **env).error
    assert "received user 'admin' and a password, expected yours as MLFLOW_TRACKING" in error
    nobody = {"MLFLOW_TRACKING_URI": tracking_server.uri}
    assert "received no user name" in doors(door, tmp_path, *words, **nobody).error


def test_a_colleague_does_only_what_is_permitted(made, client, tracking_server, doors, tmp_path):
    from mlflow.server.auth.client import AuthServiceClient

    users = AuthServiceClient(tracking_server.uri)
    users.create_user("guest", "guest-password-1")
    env = {
        "MLFLOW_TRACKING_URI": tracking_server.uri,
        "MLFLOW_TRACKING_USERNAME": "guest",
        "MLFLOW_TRACKING_PASSWORD": "guest-password-1",
    }
    assert "does not permit this to user 'guest'" in doors("runs", tmp_path, "list", **env).error
    place = client.get_experiment_by_name("fmnist_lab").experiment_id
    users.grant_user_permission("guest", "experiment", place, "READ")
    assert "FINISHED" in doors("runs", tmp_path, "list", **env).out
    assert "does not permit" in doors("run", tmp_path, *THROUGH_SERVER, **env).error
    own = doors("run", tmp_path, *THROUGH_SERVER, "tracking.experiment=mine", **env)
    assert own.code == 0, own.err
