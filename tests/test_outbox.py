"""From the journal into the store: once, in order, later if the store is away; and what heals."""

import base64
import http.server
import io
import json
import shlex
import shutil
import socket
import sys
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from doors import Process
from hydra.core.override_parser.overrides_parser import OverridesParser

from fmnist_lab import tracking
from fmnist_lab.errors import DivergedError, UserError
from fmnist_lab.runs.__main__ import app
from fmnist_lab.tracking import Store, modelfiles
from fmnist_lab.tracking import run as run_module
from fmnist_lab.tracking.events import (
    Artifact,
    DatasetUsed,
    End,
    Metrics,
    Opened,
    Params,
    Status,
    Tags,
    TrainedModel,
)
from fmnist_lab.tracking.failures import is_outage
from fmnist_lab.tracking.journal import Journal, journal_at
from fmnist_lab.tracking.orphans import command_again, heal_once, this_process
from fmnist_lab.tracking.outbox import Outbox, batch, describe

EXPERIMENT = "fmnist_lab"
EVENTS = [
    Params({"seed": "0", "model": "mlp"}),
    Tags({"data.digest": "d" * 64}),
    Metrics(1, 1000, {"b/test": 0.5, "a/test": 0.25}),
    Metrics(2, 2000, {"b/test": 0.75, "a/test": 0.5}),
    DatasetUsed("images", "d" * 64, "cache", **describe(np.zeros((3, 28, 28), np.uint8))),
    Artifact("notes.txt"),
    End(Status.FINISHED, 3000),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    found = Store.locate(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")
    found.open(EXPERIMENT)
    return found


@pytest.fixture(scope="module")
def client(store):
    from mlflow import MlflowClient

    return MlflowClient(store.uri)


@pytest.fixture
def new_run(client, store):
    """Make a run in the store, as a process does that then goes away."""

    def make(scratch: Journal | None = None, /, **tags: str) -> str:
        place = client.get_experiment_by_name(EXPERIMENT).experiment_id
        if scratch is not None:
            tags |= {"scratch": str(scratch.folder), "host": socket.gethostname()}
        return client.create_run(place, tags=tags).info.run_id

    return make


@pytest.fixture
def journal(tmp_path) -> Journal:
    """A journal outside of the store."""
    return Journal.claim(tmp_path, "id")


@pytest.fixture(autouse=True)
def _nothing_is_left(store):
    yield
    for folder in store.unfinished.glob("*"):
        shutil.rmtree(folder)


def histories(client, run_id: str) -> dict[str, list[tuple[int, int, float]]]:
    return {
        name: [(p.step, p.timestamp, p.value) for p in client.get_metric_history(run_id, name)]
        for name in ("b/test", "a/test")
    }


EXPECTED = {
    "b/test": [(1, 1000, 0.5), (2, 2000, 0.75)],
    "a/test": [(1, 1000, 0.25), (2, 2000, 0.5)],
}


def check_delivered(client, run_id: str) -> None:
    found = client.get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.info.end_time == 3000
    assert found.data.params == {"seed": "0", "model": "mlp"}
    assert found.data.tags["data.digest"] == "d" * 64
    assert histories(client, run_id) == EXPECTED
    assert [each.dataset.name for each in found.inputs.dataset_inputs] == ["images"]
    assert [each.path for each in client.list_artifacts(run_id)] == ["notes.txt"]


def test_what_is_delivered_again_is_not_doubled(store, client, new_run, journal):
    run_id = new_run()
    journal.append(Opened(run_id))
    for text in ("first", "second"):
        (journal.files / "notes.txt").write_text(text)
        outbox = Outbox(store, journal, run_id, again=True)
        outbox.put(*EVENTS)
        outbox.flush()
        assert (len(outbox), outbox.refused) == (0, [])
    check_delivered(client, run_id)
    assert Path(client.download_artifacts(run_id, "notes.txt")).read_text() == "second"


def test_two_runs_may_be_the_first_of_a_data_set_at_once(
    store, client, new_run, journal, monkeypatch
):
    from mlflow.store.tracking import sqlalchemy_store

    (event,) = (event for event in EVENTS if isinstance(event, DatasetUsed))
    # Of this test alone: one that the store has already cannot be raced for.
    event = replace(event, digest="raced for")
    runs = {"slow": new_run(), "quick": new_run()}
    uuid4, asked = uuid.uuid4, []

    def overtaken() -> uuid.UUID:
        # Between MLflow's look for the data set and its adding it.
        asked.append(1)
        if len(asked) == 1:
            Outbox(store, journal, runs["quick"]).deliver([event])
        return uuid4()

    monkeypatch.setattr(sqlalchemy_store.uuid, "uuid4", overtaken)
    Outbox(store, journal, runs["slow"]).deliver([event])
    for run_id in runs.values():
        (used,) = client.get_run(run_id).inputs.dataset_inputs
        assert used.dataset.digest == "raced for"
        client.set_terminated(run_id)


@pytest.fixture
def trained(backend, journal) -> TrainedModel:
    """A model whose file is in the journal, as a run leaves it."""
    import keras

    model = keras.Sequential(
        [
            keras.Input((4, 4), dtype="uint8"),
            keras.layers.Flatten(),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    model.save(journal.files / "model.keras")
    ends = ("uint8", (-1, 4, 4)), ("float32", (-1, 2))
    return TrainedModel("model.keras", ["a", "b"], None, *ends)


def test_of_a_model_that_was_delivered_halfway_one_is_left(
    store, client, new_run, journal, trained, monkeypatch
):
    import keras

    from fmnist_lab.models import saved

    folder = store.artifacts / EXPERIMENT / "models"
    of_other_tests = set(folder.glob("*"))
    run_id = new_run()
    outbox = Outbox(store, journal, run_id, again=True)
    with monkeypatch.context() as patch:

        def broken(*_: object, **__: object) -> None:
            raise ConnectionError("gone")

        patch.setattr(modelfiles, "write", broken)
        with pytest.raises(ConnectionError):
            outbox.deliver([trained])
    outbox.deliver([trained])
    outbox.deliver([trained])
    found = client.search_logged_models(
        [client.get_run(run_id).info.experiment_id], f"source_run_id = '{run_id}'"
    )
    assert [each.status for each in found] == ["READY"]
    loaded, names = tracking.load_model(f"runs:/{run_id}/model", store, saved.load)
    assert names == ("a", "b")
    model = keras.saving.load_model(journal.files / "model.keras")
    np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])
    left = set(folder.iterdir()) - of_other_tests
    assert [each.name for each in left] == [found[0].model_id]
    # As a power cut left it where it was not on disk before it was called READY.
    (folder / found[0].model_id / "artifacts/data/model.keras").write_bytes(b"")
    outbox.deliver([trained])
    (again,) = set(folder.iterdir()) - of_other_tests
    assert again.name != found[0].model_id
    tracking.load_model(f"runs:/{run_id}/model", store, saved.load)


def test_mlflow_takes_the_folder_of_a_model_for_its_own(store, new_run, journal, trained):
    """The contract: MLflow's Keras flavour loads it, serves it, and knows what it requires."""
    import keras
    import mlflow.keras
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc import scoring_server
    from PIL import Image

    run_id = new_run()
    Outbox(store, journal, run_id).deliver([trained])
    uri = f"runs:/{run_id}/model"
    x = np.random.default_rng(0).integers(0, 256, (3, 4, 4)).astype(np.uint8)
    x[:, 0] = x[:, :, 0] = 0
    expected = keras.saving.load_model(journal.files / "model.keras").predict(x, verbose=0)
    np.testing.assert_array_equal(mlflow.keras.load_model(uri).predict(x, verbose=0), expected)
    files = []
    for pixels in x:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        files.append(base64.b64encode(file.getvalue()).decode())
    served = mlflow.pyfunc.load_model(uri)

    def ask(**request: object) -> list[dict]:
        """Ask as a client of MLflow's server does."""
        body = json.dumps(request)
        told = scoring_server.invocations(body, "application/json", served, None)
        assert told.status == 200
        return json.loads(told.response)["predictions"]

    answers = ask(instances=x.tolist())
    said = [list(answer["probabilities"].values()) for answer in answers]
    np.testing.assert_allclose(said, expected, rtol=1e-6)
    assert [answer["label"] for answer in answers] == ["ab"[row.argmax()] for row in expected]
    assert all(answer["abstained"] is None and len(answer["top_k"]) == 2 for answer in answers)
    for same in (files, [{"b64": file} for file in files]):
        assert ask(instances=same) == answers
    assert ask(inputs=files) == served.predict(x) == answers
    for wrong, told in (
        ({"instances": [[[0.5] * 4] * 4]}, "image 0: received values that are no pixels; "),
        ({"instances": ["AAAA"]}, "image 0: it cannot be read as an image "),
        ({"instances": files, "params": {"top_k": 0}}, "top_k: received 0, "),
    ):
        with pytest.raises(MlflowException) as refused:
            ask(**wrong)
        # MLflow's server would repeat the input.
        assert refused.value.message.startswith(told)
        assert refused.value.get_http_status_code() == 400
    assert "fmnist_lab" not in Path(sys.modules["fmnist_served.tracking.pyfunc"].__file__).parts
    assert served.metadata.metadata["inputs"] == {"dtype": "uint8", "shape": [-1, 4, 4]}
    listed = Path(mlflow.pyfunc.get_model_dependencies(uri)).read_text().split()
    libraries = ["mlflow", "tensorflow", "keras", "numpy", "pillow"]
    assert [each.partition("==")[0] for each in listed] == libraries
    conda = Path(mlflow.pyfunc.get_model_dependencies(uri, format="conda")).read_text()
    assert "keras==" in conda


# A store that goes away


class Outage:
    """Between a run and its store: while it lasts, nothing is taken."""

    def __init__(self, monkeypatch) -> None:
        self.on = False
        self.asked = 0
        deliver = Outbox.deliver

        def interrupted(outbox, events):
            self.asked += 1
            if self.on:
                raise ConnectionError("connection refused")
            deliver(outbox, events)

        monkeypatch.setattr(Outbox, "deliver", interrupted)
        monkeypatch.setattr(run_module, "PATIENCE_SECONDS", 0.1)


@pytest.fixture
def outage(monkeypatch) -> Outage:
    return Outage(monkeypatch)


def write(run: tracking.Run, steps: range) -> None:
    for step in steps:
        run.metrics({"loss": step / 8}, step=step)


def losses(client, run_id: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run_id, "loss")]


def test_what_a_store_has_missed_is_delivered_when_it_is_back(store, client, outage):
    with tracking.start(store, EXPERIMENT, "x", {}) as run:
        run.wait_until_open()
        write(run, range(1, 3))
        outage.on = True
        write(run, range(3, 200))
        run.text("kept", "notes.txt")
        run._writer.submit(lambda: None).result()
        assert run.waiting
        assert "connection refused" in run.outage
        # It is not asked anew for each event.
        assert outage.asked < 20
        outage.on = False
    assert not run.waiting
    assert client.get_run(run.id).info.status == "FINISHED"
    assert losses(client, run.id) == [(step, step / 8) for step in range(1, 200)]
    assert [each.path for each in client.list_artifacts(run.id)] == ["notes.txt"]
    assert list(store.unfinished.iterdir()) == []


def test_what_a_store_never_took_is_sent_by_sync(store, client, outage):
    with tracking.start(store, EXPERIMENT, "x", {}) as run:
        run.wait_until_open()
        outage.on = True
        write(run, range(1, 5))
        run.text("kept", "notes.txt")
    assert run.waiting
    assert client.get_run(run.id).info.status == "RUNNING"
    (folder,) = store.unfinished.iterdir()
    (tried,) = tracking.sync(store)
    assert (tried.run_id, tried.status) == (run.id, "FINISHED")
    assert "connection refused" in tried.problem
    assert folder.exists()
    outage.on = False
    (sent,) = tracking.sync(store)
    assert (sent.run_id, sent.status, sent.problem) == (run.id, "FINISHED", "")
    assert client.get_run(run.id).info.status == "FINISHED"
    assert losses(client, run.id) == [(step, step / 8) for step in range(1, 5)]
    assert not folder.exists()
    assert tracking.sync(store) == []


def test_what_the_store_refuses_is_told_and_takes_nothing_along(store, client):
    def contradict(run: tracking.Run) -> None:
        run.params({"seed": 1})
        run.params({"seed": 2})
        write(run, range(1, 3))

    started = tracking.start(store, EXPERIMENT, "x", {})
    run = started.__enter__()
    contradict(run)
    with pytest.raises(UserError) as caught:
        started.__exit__(None, None, None)
    assert str(caught.value).startswith(f"run {run.id} is incomplete, the store {store.uri} ")
    assert "seed" in str(caught.value)
    assert client.get_run(run.id).info.status == "FAILED"
    assert losses(client, run.id) == [(1, 1 / 8), (2, 2 / 8)]


def journalled(store: Store, run_id: str, events=EVENTS, uri: str = "") -> Journal:
    scratch = Journal.claim(store.unfinished, "id")
    scratch.append(Opened(run_id, store=uri or store.uri))
    for event in events:
        scratch.append(event)
    (scratch.files / "notes.txt").write_text("x")
    return scratch


def test_sync_takes_what_is_its_own_and_lies_idle(store, client, new_run):
    first, second, third = (new_run() for _ in range(3))
    finished = journalled(store, first)
    elsewhere = journalled(store, second, uri="http://127.0.0.1:1")
    live = journalled(store, third)
    for each in (finished, elsewhere):
        each.release()
    assert [each.run_id for each in tracking.sync(store)] == [first]
    check_delivered(client, first)
    assert not finished.folder.exists()
    assert elsewhere.folder.exists()
    assert histories(client, third) == {"b/test": [], "a/test": []}
    live.release()


def test_sync_sends_what_an_interrupted_run_has_and_leaves_it_to_be_resumed(store, client, new_run):
    run_id = new_run()
    scratch = journalled(store, run_id, EVENTS[:-1])
    scratch.release()
    for _ in range(2):
        (sent,) = tracking.sync(store)
        assert (sent.events, sent.status, sent.problem) == (len(EVENTS) - 1, None, "")
    assert histories(client, run_id) == EXPECTED
    assert scratch.folder.exists()


@pytest.mark.parametrize("reason", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("saved", [True, False], ids=["a state", "no state"])
def test_of_a_run_that_the_store_never_knew_its_state_is_kept(store, monkeypatch, saved, reason):
    def away(*_: object) -> None:
        raise ConnectionError("refused")

    monkeypatch.setattr(tracking.Run, "_open", away)

    def interrupt(run: tracking.Run) -> None:
        if saved:
            (run.journal.checkpoints / "epoch-000001.npz").touch()
        raise reason

    with pytest.raises(reason), tracking.start(store, EXPERIMENT, "x", {}) as run:
        interrupt(run)
    assert len(list(store.unfinished.iterdir())) == saved


@pytest.mark.parametrize(
    ("reason", "kept"), [(UserError("no such thing"), True), (DivergedError("nan"), False)]
)
def test_what_there_was_before_outlives_a_mistake(store, reason, kept):
    before = Journal.claim(store.unfinished, "id")
    with pytest.raises(UserError), tracking.start(store, EXPERIMENT, "x", {}, journal=before):
        raise reason
    assert before.folder.exists() == kept


# Runs whose process is gone


def test_only_runs_whose_process_is_gone_are_healed(store, client, new_run, tmp_path):
    gone, live, unknown = (Journal.claim(store.unfinished, "id") for _ in range(3))
    runs = {
        "gone": new_run(gone, name="gone"),
        "live": new_run(live),
        "of another machine": new_run(scratch=str(gone.folder), host="elsewhere"),
        "without a folder": new_run(unknown),
        "of another tool": new_run(),
    }
    gone.release()
    unknown.remove()
    before = int(time.time() * 1000)
    (healed,) = tracking.heal(store)
    assert (healed.run_id, healed.command) == (runs["gone"], "")
    states = {name: client.get_run(run_id).info for name, run_id in runs.items()}
    assert {name for name, info in states.items() if info.status == "KILLED"} == {"gone"}
    assert states["gone"].end_time >= before
    assert tracking.heal(store) == []
    assert gone.folder.exists()
    live.release()


def test_a_finished_run_that_waits_to_be_sent_is_not_healed(store, client, new_run):
    waiting = Journal.claim(store.unfinished, "id")
    run_id = new_run(waiting)
    waiting.append(EVENTS[-1])
    waiting.release()
    assert tracking.heal(store) == []
    assert client.get_run(run_id).info.status == "RUNNING"
    client.set_terminated(run_id)


def test_a_sweep_whose_process_is_gone_is_healed(store, client, new_run):
    """It has no scratch folder; a number of its process may be another's by now."""
    ours = this_process()["process"]
    boot, number, started = ours.split()
    ended = Process(Path.cwd(), "-c", "pass")
    ended.wait()
    places = {
        "this one": ours,
        "the number of another": f"{boot} {number} {int(started) - 1}",
        "of before the machine was started": f"{'0' * 8}-0 {number} {started}",
        "gone": f"{boot} {ended._process.pid} {started}",
        "unknown": "",
    }
    ended.stop()
    here = socket.gethostname()
    runs = {name: new_run(host=here, process=value) for name, value in places.items()}
    healed = {each.run_id for each in tracking.heal(store)}
    assert healed == set(runs.values()) - {runs["this one"], runs["unknown"]}
    for each in runs.values():
        client.set_terminated(each)


def test_a_lost_job_is_left_to_its_sweep_as_long_as_that_goes_on(store, client, new_run):
    """Of two that mark it, the one that does not know why it ended could be the last."""
    here, gone = socket.gethostname(), Journal.claim(store.unfinished, "id")
    gone.release()
    jobs = {}
    for kind in ("true", "false"):
        sweep = new_run(host=here, **this_process(), **{"sweep.here": kind})
        jobs[kind] = sweep, new_run(gone, **{"mlflow.parentRunId": sweep})
    assert [each.run_id for each in tracking.heal(store)] == [jobs["false"][1]]
    for sweep, _ in jobs.values():
        client.set_terminated(sweep)
    assert [each.run_id for each in tracking.heal(store)] == [jobs["true"][1]]


def test_the_next_run_heals_those_before(store, client, new_run):
    gone = Journal.claim(store.unfinished, "id")
    run_id = new_run(gone)
    gone.release()
    # Of a process, only the first run does.
    heal_once.cache_clear()
    with tracking.start(store, EXPERIMENT, "x", {}):
        pass
    assert client.get_run(run_id).info.status == "KILLED"


# The verbs


@pytest.fixture
def say(store, capsys):
    """Call a verb of `runs` and return what it printed."""

    def call(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app(list(words))
        said = capsys.readouterr()
        assert (ended.value.code or 0) == code, said.out + said.err
        return said.err if code == 2 else said.out

    return call


def test_heal_says_which_run_it_was_and_how_to_go_on(say, store, new_run):
    gone = Journal.claim(store.unfinished, "id")
    run_id = new_run(gone, **{"mlflow.source.name": "python -m fmnist_lab.run seed=3"})
    gone.release()
    said = say("heal", "--store", store.uri)
    assert run_id in said
    assert "KILLED" in said
    again = f"  python -m fmnist_lab.run seed=3 tracking.uri={store.uri} resume=true"
    assert said.splitlines()[-1] == again
    assert say("heal", "--store", store.uri).startswith("Nothing to heal")


OURS = "python -m fmnist_lab.run"


@pytest.mark.parametrize(
    ("made", "again"),
    [
        (f"{OURS} seed=3", f"{OURS} seed=3 resume=true"),
        (f"{OURS} 'name=a b' resume=true", f"{OURS} 'name=a b' resume=true"),
        *((made, "") for made in ["", "python", f"{OURS} seed=3; rm -rf ~", f"{OURS} `x`"]),
        *((made, "") for made in [f"{OURS} $(x)", f"{OURS} '", f"{OURS} x\nrm -rf ~", "rm -rf ~"]),
        *(
            (made, "")
            for made in [f"{OURS} 'x\x1b[2J'", "python -m fmnist_lab.run2", "python x.py"]
        ),
    ],
)
def test_a_command_to_be_pasted_is_one_of_ours(store, monkeypatch, made, again):
    """What the store says of it may have been written by anyone."""
    assert store.database
    monkeypatch.chdir(store.database.parent)
    assert command_again(store, made) == again


def test_a_command_names_the_store_that_is_not_found_without(store, monkeypatch, tmp_path):
    assert store.database
    monkeypatch.chdir(store.database.parent)
    assert store.command("runs", "ui", "a b") == "python -m fmnist_lab.runs ui 'a b'"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense")
    named = f"python -m fmnist_lab.runs ui x --store {store.uri}"
    assert store.command("runs", "ui", "x") == named
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    assert store.command("runs", "ui", "x") == named
    assert command_again(store, OURS) == f"{OURS} tracking.uri={store.uri} resume=true"
    mine = f"{OURS} tracking.uri=sqlite:///x.db"
    assert command_again(store, mine) == f"{mine} resume=true"
    odd = Store.locate("sqlite:////nowhere/it's ~ 50% [x]/a b.db", for_writing=False)
    assert shlex.split(odd.command("runs", "list"))[-2:] == ["--store", odd.uri]
    (override,) = OverridesParser.create().parse_overrides(
        [shlex.split(command_again(odd, OURS))[3]]
    )
    assert override.value() == odd.uri


def test_no_folder_but_a_runs_own_is_touched(store, client, new_run, tmp_path):
    """A run's tag says where its folder is, and anyone may have written it."""
    other = Journal.claim(tmp_path / "mlruns/unfinished", "a" * 16)
    other.release()
    store.unfinished.mkdir(parents=True, exist_ok=True)
    link = store.unfinished / ("b" * 16)
    link.symlink_to(other.folder)
    victim = tmp_path / "victim"
    (victim / "tmp").mkdir(parents=True)
    for folder in (Path("/"), victim, link, Path("mlruns/unfinished/a"), Path("x" * 5000)):
        run_id = new_run(host=socket.gethostname(), scratch=str(folder), process="\x1b x")
        assert journal_at(str(folder)) is None
        assert tracking.heal(store) == []
        client.set_terminated(run_id)
    link.unlink()
    assert journal_at(str(other.folder)) == other.folder
    assert not Path("/lock").exists()
    assert [path.name for path in victim.iterdir()] == ["tmp"]


def test_sync_says_what_it_has_sent(say, store, client, new_run):
    first, second = new_run(), new_run()
    finished, interrupted = journalled(store, first), journalled(store, second, EVENTS[:-1])
    for each in (finished, interrupted):
        each.release()
    said = say("sync", "--store", store.uri).splitlines()
    assert len(said) == 2
    assert said[0].endswith(f"id {first}: 7 events sent to {store.uri}; it is complete.")
    assert "resume=true" in said[1]
    check_delivered(client, first)
    interrupted.release()


def test_sync_finds_the_stores_that_are_waited_for(say, store, client, new_run, monkeypatch):
    run_id = new_run()
    journalled(store, run_id).release()
    monkeypatch.chdir(store.artifacts.parent)
    said = say("sync")
    assert run_id in said
    check_delivered(client, run_id)
    assert say("sync").startswith("Nothing to send: no run waits in ")


def test_sync_of_a_store_that_stays_away_fails_and_keeps_everything(say, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(store.artifacts.parent)
    away = "http://127.0.0.1:1"
    scratch = journalled(store, "f" * 32, uri=away)
    scratch.release()
    for words in ([], ["--store", away]):
        said = say("sync", *words, code=1)
        assert f"0 events sent to {away}; the rest waits" in said
    assert len(scratch.events()) == 1 + len(EVENTS)


@pytest.mark.parametrize("verb", ["heal", "sync"])
def test_where_there_is_no_store_nothing_is_made(say, verb, tmp_path):
    said = say(verb, "--store", f"sqlite:///{tmp_path}/mlflow.db", code=2)
    assert said.startswith("error: no runs: ")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_server_out_of_reach_is_one_line(say, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said = say("heal", "--store", "http://127.0.0.1:1", code=2)
    assert said.startswith("error: the store http://127.0.0.1:1 cannot be used: ")
    assert said.count("\n") == 1


# What counts as a store that may be back


@pytest.fixture
def answering(monkeypatch):
    """A server on loopback that gives one answer to everything."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    servers = []

    def make(status: int, body: str, torn: int) -> Store:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                if not status:
                    time.sleep(3)  # longer than anyone waits
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) + torn))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return Store.locate(f"http://127.0.0.1:{server.server_port}")

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


NO_RUN = '{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such run"}'


@pytest.mark.parametrize(
    ("status", "body", "outage"),
    [
        (0, "", True),
        (200, "torn", True),
        (500, "<html>trouble</html>", True),
        (500, '{"error_code": "INTERNAL_ERROR", "message": "trouble"}', True),
        (502, "", True),
        (503, "", True),
        (504, "", True),
        (429, "", True),
        (400, '{"error_code": "INVALID_PARAMETER_VALUE", "message": "too long"}', False),
        (404, NO_RUN, False),
        (403, "", False),
    ],
)
def test_a_server_in_trouble_is_asked_again_and_a_refusal_is_one(
    answering, tmp_path, status, body, outage
):
    store = answering(status, body, torn=int(body == "torn"))
    outbox = Outbox(store, Journal.claim(tmp_path, "id"), "f" * 32)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        outbox.deliver([EVENTS[2]])
    assert is_outage(caught.value) == outage, caught.value


def test_values_go_to_the_store_together_as_far_as_one_call_takes_them():
    params = Params({str(number): "1" for number in range(60)})
    point = Metrics(1, 1, {"loss": 1.0})
    file = Artifact("a")
    assert batch([params, point, point, file, point]) == [params, point, point]
    assert batch([params, params]) == [params]
    assert batch([file, point]) == [file]
    assert len(batch([point] * 900)) == 800


def test_of_values_that_go_together_only_what_is_refused_is_missing(store, client):
    held, ids = threading.Event(), []

    def log() -> None:
        with tracking.start(store, None, "run", {}) as run:
            run.write(held.wait)
            run.params({"kept": "1"})
            run.params({"k" * 1000: "refused"})
            run.metrics({"loss": 1.0}, step=1)
            run.metrics({"loss": 0.5}, step=2)
            held.set()
            run.wait_until_open()
            ids.append(run.id)

    with pytest.raises(UserError, match="incomplete"):
        log()
    kept = client.get_run(ids[0])
    assert kept.data.params == {"kept": "1"}
    assert [point.value for point in client.get_metric_history(ids[0], "loss")] == [1.0, 0.5]
