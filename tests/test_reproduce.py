"""`runs reproduce`: a run made again from the store and compared, and nothing of it trusted."""

import copy
import errno
import functools
import re

import pytest
from doors import QUICK, one_line
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fmnist_lab import config
from fmnist_lab.errors import UserError
from fmnist_lab.jobs import kept as earlier
from fmnist_lab.jobs import train
from fmnist_lab.run import main
from fmnist_lab.runs import reproduce as verb
from fmnist_lab.runs.__main__ import app
from fmnist_lab.tracking import RunRef, Store

OLD = RunRef("f" * 32, "h1", "fmnist_lab", "1", "train")
STORE = Store.locate("sqlite:////nowhere/mlflow.db", for_writing=False)


def values(*overrides: str) -> dict:
    """A config as a run keeps it."""
    return copy.deepcopy(_composed(overrides))


@functools.cache
def _composed(overrides: tuple[str, ...]) -> dict:
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        found = compose("config", list(overrides))
    checked = config.validate(OmegaConf.to_container(found, resolve=True))
    return checked.to_dict()


def rebuilt(kept: dict | str, *allowed: str, old: RunRef = OLD) -> config.Config:
    text = kept if isinstance(kept, str) else OmegaConf.to_yaml(OmegaConf.create(kept))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(earlier.tracking, "read_file", lambda *_: text.encode())
        return verb.rebuild(STORE, old, allowed)


def refusal(kept: dict | str, *allowed: str, old: RunRef = OLD) -> str:
    with pytest.raises(UserError) as caught:
        rebuilt(kept, *allowed, old=old)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The config


def test_the_config_is_the_runs_but_for_where_it_writes():
    kept = values(
        *("model.hidden_units=[3,4]", "optimizer=sgd", "seed=7", "name=x", "resume=true"),
        *("data.cache_dir=/elsewhere", "tracking.uri=sqlite:////elsewhere/x.db"),
        *("callbacks=early_stopping", "data.validation_fraction=0.1", "schedule=one_cycle"),
    )
    found = rebuilt(kept)
    assert found.identity() == config.validate(kept).identity()
    assert (found.tracking.uri, found.tracking.experiment) == (STORE.uri, "fmnist_lab")
    assert (found.data.cache_dir, found.resume, found.name) == (None, False, "h1 again")


EVIL = [
    *("os.system", "builtins.eval", "own.model", "fmnist_lab_evil.models.mlp", "keras.models.os"),
    *("fmnist_lab.models.os.system", "keras.src.utils.file_utils.os.system", "fmnist_lab.run.main"),
    *("keras.callbacks.CSVLogger", "keras.callbacks.ModelCheckpoint", "keras.utils.get_file"),
    *("keras.saving.load_model", "keras.optimizers.deserialize", "fmnist_lab.data.sources.find"),
]
GROUPS = ["model", "optimizer", "schedule", "callbacks.early_stopping", "callbacks.x", "model.deep"]


@pytest.mark.parametrize("key", GROUPS)
def test_nothing_else_than_what_is_trusted_is_built(key):
    for target in EVIL:
        kept = OmegaConf.create(values())
        OmegaConf.update(kept, key, {"_target_": target}, force_add=True)
        said = refusal(OmegaConf.to_container(kept))
        assert f"{key}._target_={target}" in said
        assert f"--allow {target}" in said


def test_what_the_user_allows_is_built():
    kept = values("model._target_=own.model", "model.dropout=0.5")
    assert "own.model" in refusal(kept, "own.mode", "own")
    assert rebuilt(kept, "own.model").model.target == "own.model"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read"),
        ("a: !!python/object/apply:os.getcwd []", "cannot be read"),
        ("\0", "cannot be read"),
        ("- a", "is no config"),
        ("data: 3", "is no config"),
        ("data: {}", "does not fit this version"),
    ],
)
def test_a_config_that_was_damaged_is_refused(text, reason):
    assert reason in refusal(text)


def test_a_config_from_a_store_has_no_other_file_read():
    kept = values()
    kept["data"]["exclude"] = "/etc/hostname"
    assert "names a file as data.exclude, expected what was in it" in refusal(kept)
    kept["data"]["exclude"] = [3, 5]
    assert rebuilt(kept).data.exclude == [3, 5]


def test_a_config_of_another_version_is_refused():
    said = refusal(values() | {"later": 1})
    assert "does not fit this version of fmnist_lab: later: unknown key" in said


@pytest.mark.parametrize(
    "value", ["${oc.env:HOME}", "${seed}", "${oc.create:{_target_:os.system,command:'true'}}"]
)
def test_a_config_asks_nothing_of_this_machine(value):
    kept = values()
    kept["model"]["activation"] = value
    assert f"has model.activation={value}, expected plain values" in refusal(kept)
    kept = values() | {"callbacks": {"x": value}}
    assert f"has callbacks.x={value}" in refusal(kept)
    kept = values() | {value: 1}
    assert "expected plain values" in refusal(kept)


@pytest.mark.parametrize("key", ["hydra", "defaults", "later"])
def test_no_key_beyond_the_config_reaches_hydra(monkeypatch, key):
    text = OmegaConf.to_yaml(OmegaConf.create(values() | {key: ["x"]})).encode()
    monkeypatch.setattr("fmnist_lab.tracking.look_up", lambda *_: OLD)
    monkeypatch.setattr("fmnist_lab.tracking.read_file", lambda *_: text)
    with pytest.raises(UserError, match=f"{key}: unknown key"):
        earlier.look_up(f"runs:/{OLD.run_id}", STORE.uri)


@pytest.mark.parametrize(("job", "said"), [("", "was not made by"), ("sweep", "job=sweep")])
def test_what_has_not_trained_is_refused(job, said):
    assert said in refusal(values(), old=RunRef(OLD.run_id, "h1", "fmnist_lab", "1", job))


@pytest.mark.parametrize(
    ("configured", "wanted", "recorded", "expected"),
    [
        (None, None, "2", None),  # this machine's default is what it had
        (None, None, "1", 1),
        (1, None, "1", 1),
        (None, None, "64", None),  # more than there are here
        (64, None, "64", 64),  # which the training then refuses
        (None, None, "", None),
        (1, 2, "1", 2),
        (None, 1, "2", 1),
    ],
)
def test_threads_are_those_of_the_run_if_they_are_here(
    monkeypatch, configured, wanted, recorded, expected
):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    asked = rebuilt(values(*([f"trainer.threads={configured}"] if configured else [])))
    assert verb.with_threads(asked, wanted, recorded).trainer.threads == expected


# Training again


@pytest.fixture(scope="module")
def store(backend, real_data, tmp_path_factory) -> Store:
    """A store with one run."""
    folder = tmp_path_factory.mktemp("store")
    found = Store.locate(f"sqlite:///{folder}/mlflow.db")
    train.run(config.validate(values(*QUICK, f"tracking.uri={found.uri}", "name=first")))
    return found


@pytest.fixture(scope="module")
def client(store):
    from mlflow import MlflowClient

    return MlflowClient(store.uri)


@pytest.fixture
def say(store, capsys):
    """Reproduce the first run and return what was said."""

    def call(*words: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            app(["reproduce", "first", "--store", store.uri, *words])
        said = capsys.readouterr()
        assert (ended.value.code or 0) == code, said.out + said.err
        return said.err if code == 2 else said.out

    return call


def runs(client) -> list:
    """The runs, the newest first."""
    place = client.get_experiment_by_name("fmnist_lab").experiment_id
    return client.search_runs([place])


def test_a_run_is_reproduced_to_the_last_bit(say, client):
    said = say()
    new, *_, old = runs(client)
    assert "Identical to run 'first': " in said
    for name in ("Keras", "threads", "hardware"):
        assert not re.search(f"^{name} ", said, re.M)
    assert new.data.tags["reproduces"] == old.info.run_id
    assert new.info.run_name == "first again"
    assert new.data.params == old.data.params
    assert new.data.tags["config.hash"] == old.data.tags["config.hash"]
    for name in ("accuracy/test", "loss/fit"):
        before, after = (client.get_metric_history(each.info.run_id, name) for each in (old, new))
        assert [point.value for point in before] == [point.value for point in after]


def test_the_engine_is_that_of_the_run_although_auto_would_choose_another_today(say, client):
    old = runs(client)[-1].info.run_id
    chosen = client.get_run(old).data.tags["engine"]
    try:
        client.set_tag(old, "engine", "graph")
        say(code=1)
    finally:
        client.set_tag(old, "engine", chosen)
    assert chosen == "native"
    assert runs(client)[0].data.tags["engine"] == "graph"


@pytest.mark.slow
def test_an_engine_that_is_not_here_is_told(say, client, monkeypatch):
    from fmnist_lab.training.engines import native

    monkeypatch.setattr(native, "suits", lambda *words: False)
    said = say(code=1)
    assert "trained by the native engine, which is not here; now by xla." in said
    assert runs(client)[0].data.tags["engine"] == "xla"


def test_what_differs_and_by_how_much_is_told(say, client):
    """The seed that the store has is another one, as is the code."""
    old = runs(client)[-1].info.run_id
    kept = client.download_artifacts(old, "config.yaml")
    before = OmegaConf.load(kept)
    tags = client.get_run(old).data.tags
    try:
        client.log_text(old, OmegaConf.to_yaml(OmegaConf.merge(before, {"seed": 1})), "config.yaml")
        client.set_tag(old, "mlflow.source.git.commit", "0" * 40)
        client.set_tag(old, "version.keras", "3.0.0")
        # As of an earlier version, which noted no digests.
        client.delete_tag(old, "files")
        said = say(code=1)
    finally:
        client.set_tag(old, "files", tags["files"])
        client.log_text(old, OmegaConf.to_yaml(before), "config.yaml")
        client.set_tag(old, "version.keras", tags["version.keras"])
        client.set_tag(
            old, "mlflow.source.git.commit", tags.get("mlflow.source.git.commit", "none")
        )
    assert re.search(r"^code commit +0{12} +\S+ *$", said, re.M)
    assert re.search(rf"^Keras +3\.0\.0 +{re.escape(tags['version.keras'])} *$", said, re.M)
    assert f"Not identical to run 'first', id {old}:" in said
    assert re.search(r"^loss/test +\d\.[\de-]+ +[12] *$", said, re.M)
    assert re.search(r"^weights +\d\.[\de-]+", said, re.M)
    assert re.search(r"^predicted labels +\d+ of 500", said, re.M)
    assert "images_per_second" not in said


def test_a_full_disk_is_told_without_advice_that_this_command_cannot_take(say, monkeypatch):
    from fmnist_lab.training import checkpoint

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    said = say(code=2)
    assert said.endswith("make room, and repeat the command\n")
    assert "resume" not in said


def test_a_run_of_two_engines_is_told(say, client):
    old = runs(client)[-1].info.run_id
    try:
        client.set_tag(old, "engine.before", '["graph"]')
        said = say()
    finally:
        client.delete_tag(old, "engine.before")
    assert "trained by the graph, then native engine; now by native." in said


def test_a_run_that_is_not_there_is_one_line(store, capsys):
    with pytest.raises(SystemExit) as ended:
        app(["reproduce", "nobody", "--store", store.uri])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: received 'nobody', which is no run in")


@pytest.mark.slow
def test_another_number_of_threads_is_told_with_what_it_changes(doors, tmp_path):
    words = "data.train_limit=5000", *QUICK[1:], "trainer.threads=1", "trainer.engine=xla"
    made = doors("run", tmp_path, *words)
    assert made.code == 0, made.err
    name = "h128 e2 threads1 train5000 test500 s0"
    same = doors("runs", tmp_path, "reproduce", name)
    assert (same.code, same.err) == (0, "")
    assert f"Identical to run '{name}'" in same.out
    other = doors("runs", tmp_path, "reproduce", name, "--threads", "2")
    assert (other.code, other.err) == (1, "")
    assert re.search(r"^threads +1 +2 *$", other.out, re.M)
    assert re.search(r"^weights +\d\.[\de-]+", other.out, re.M)


# Again, with other values


@pytest.fixture
def composed(store, capsys):
    """Compose the first run's config with other values, and return it."""

    def call(*words: str) -> dict:
        config_of = ("--cfg", "job", "--config-name", "runs:/first")
        main(*config_of, f"tracking.uri={store.uri}", *words)
        return OmegaConf.to_container(OmegaConf.create(capsys.readouterr().out))

    return call


def test_another_value_leaves_all_others_as_the_run_had_them(composed, store):
    before = values(*QUICK, f"tracking.uri={store.uri}")
    found = composed("optimizer.learning_rate=0.01", "seed=4")
    before["optimizer"]["learning_rate"], before["seed"] = 0.01, 4
    assert found == before | {"tracking": found["tracking"]}
    assert found["tracking"]["experiment"] == "fmnist_lab"


def test_another_option_brings_its_own_values(composed):
    found = composed("model=linear", "optimizer=sgd")
    assert found["model"] == values("model=linear")["model"]
    assert found["optimizer"] == values("optimizer=sgd")["optimizer"]
    assert found["trainer"]["epochs"] == 2


def test_again_trains_a_run_beside_the_first(store, client, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    before = runs(client)
    with pytest.raises(SystemExit) as ended:
        app(["again", "first", "model=linear", "--store", store.uri])
    assert not ended.value.code, capsys.readouterr().err
    new = runs(client)[0]
    assert len(runs(client)) == len(before) + 1
    assert (new.info.run_name, new.data.params["model"]) == (
        "linear e2 train1000 test500 s0",
        "linear",
    )
    first = next(each for each in before if each.info.run_name == "first")
    assert f"--config-name runs:/{first.info.run_id} " in new.data.tags["mlflow.source.name"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["first"], "received nothing to change, expected key=value"),
        (["nowhere", "seed=1"], "received 'nowhere', which is no run in"),
        (["first", "sed=1"], "did you mean seed?"),
        (["first", "model=mpl"], "did you mean model=mlp?"),
    ],
)
def test_again_refuses_in_one_sentence(store, capsys, words, said):
    with pytest.raises(SystemExit) as ended:
        app(["again", *words, "--store", store.uri])
    assert ended.value.code == 2
    assert said in one_line(capsys.readouterr().err)


def test_a_config_that_could_do_anything_is_not_composed(monkeypatch):
    kept = OmegaConf.create(values())
    OmegaConf.update(kept, "model._target_", "os.system")
    text = OmegaConf.to_yaml(kept).encode()
    monkeypatch.setattr(earlier.tracking, "read_file", lambda *_: text)
    with pytest.raises(UserError, match="save its config in a file"):
        earlier.read(STORE, OLD, mend=earlier.SAVE)
