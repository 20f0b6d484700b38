"""What may be asked for, and what a wrong request is answered; nothing here trains."""

import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import get_args

import pytest
from command_lines import (
    LINES,
    check_answered,
    folders_of_configs,
)
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, given, settings
from omegaconf import OmegaConf

from fmnist_lab import config
from fmnist_lab.config import files, naming, overrides
from fmnist_lab.config.fields import Section
from fmnist_lab.config.nearest import keras_names
from fmnist_lab.config.schema import Config
from fmnist_lab.config.suggestion import sweep_around
from fmnist_lab.errors import UserError
from fmnist_lab.models import dense

CONF = config.conf_dir()
GROUPS = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())


def left_behind(folder: Path) -> list[str]:
    """The files in a folder, but for what Hydra itself puts under mlruns/hydra."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [file for file in files if not file.startswith("mlruns/hydra/")]


# What is refused

EPOCHS = "a whole number, 1 or more"
UNITS = "a whole number, 1 or more, or a list of them"
FRACTION = "a number from 0 up to, not including, 1"
RATE = "a finite number above 0"

# An override, the key that the message must begin with, and what it must say was received and
# was expected.
REFUSED = [
    # unknown keys
    ("trainer.epochz=3", "trainer.epochz", "unknown", "did you mean trainer.epochs?"),
    ("+trainer.foo=1", "trainer.foo", "unknown", "epochs, batch_size"),
    ("++trainer.foo=1", "trainer.foo", "unknown", "epochs, batch_size"),
    ("trainer.foo=1", "trainer.foo", "unknown", "epochs, batch_size"),
    ("+model.foo=1", "model.foo", "unknown", "hidden_units"),
    ("+optimizer.momentum=0.9", "optimizer.momentum", "unknown", "learning_rate"),
    ("+data.foo=1", "data.foo", "unknown", "train_limit"),
    ("+tracking.foo=1", "tracking.foo", "unknown", "uri"),
    ("+job.foo=1", "job.foo", "unknown", "name"),
    ("seeds=1", "seeds", "unknown", "did you mean seed?"),
    ("+seeds=1", "seeds", "unknown", "did you mean seed?"),
    ("foo.bar=1", "foo.bar", "unknown", "trainer"),
    ("+foo.bar=1", "foo", "unknown", "trainer"),
    ("model/foo=1", "model/foo", "unknown", "did you mean model?"),
    ("callbacks.foo=1", "callbacks.foo", "unknown", "none under callbacks"),
    ("schedule.warmup=0.1", "schedule.warmup", "unknown", "schedule=cosine has it"),
    # wrong types
    ("trainer.epochs=abc", "trainer.epochs", "'abc'", EPOCHS),
    ("trainer.epochs=1.5", "trainer.epochs", "1.5", EPOCHS),
    ("trainer.epochs=1.0", "trainer.epochs", "1.0", EPOCHS),
    ("trainer.epochs=true", "trainer.epochs", "true", EPOCHS),
    ("trainer.epochs=null", "trainer.epochs", "null", EPOCHS),
    ("trainer.epochs=", "trainer.epochs", "''", EPOCHS),
    ("trainer.epochs=[3]", "trainer.epochs", "[3]", EPOCHS),
    ("trainer.epochs='5'", "trainer.epochs", "'5'", EPOCHS),
    ("trainer.engine=cuda", "trainer.engine", "'cuda'", "one of auto, native, xla, graph"),
    ("seed=abc", "seed", "'abc'", "a whole number from 0"),
    ("seed=-1", "seed", "-1", "a whole number from 0"),
    ("seed=4294967296", "seed", "4294967296", "to 4294967295"),
    ("data.dir=[]", "data.dir", "[]", "a text, or null"),
    ("data.dir=", "data.dir", "''", "a text, or null"),
    ("data.download=maybe", "data.download", "'maybe'", "true or false"),
    ("optimizer.learning_rate=fast", "optimizer.learning_rate", "'fast'", RATE),
    # out of bounds
    ("trainer.epochs=0", "trainer.epochs", "0", EPOCHS),
    ("trainer.batch_size=0", "trainer.batch_size", "0", EPOCHS),
    ("trainer.batch_size=-32", "trainer.batch_size", "-32", EPOCHS),
    ("trainer.threads=0", "trainer.threads", "0", EPOCHS),
    ("model.hidden_units=0", "model.hidden_units", "0", UNITS),
    ("model.hidden_units=-3", "model.hidden_units", "-3", UNITS),
    ("model.hidden_units=[]", "model.hidden_units", "[]", UNITS),
    ("model.hidden_units=[128,0]", "model.hidden_units", "[128, 0]", UNITS),
    ("model.hidden_units=[128,abc]", "model.hidden_units", "[128, 'abc']", UNITS),
    ("model.hidden_units=null", "model.hidden_units", "null", UNITS),
    ("model.dropout=1", "model.dropout", "1", FRACTION),
    ("model.dropout=-0.1", "model.dropout", "-0.1", FRACTION),
    ("model.activation=swoosh", "model.activation", "'swoosh'", "relu, celu"),
    ("optimizer.learning_rate=-1", "optimizer.learning_rate", "-1", RATE),
    ("optimizer.learning_rate=0", "optimizer.learning_rate", "0", RATE),
    ("optimizer.learning_rate=nan", "optimizer.learning_rate", "nan", RATE),
    ("optimizer.learning_rate=inf", "optimizer.learning_rate", "inf", RATE),
    ("optimizer.beta_1=1.5", "optimizer.beta_1", "1.5", FRACTION),
    ("data.validation_fraction=1.5", "data.validation_fraction", "1.5", FRACTION),
    ("data.validation_fraction=1", "data.validation_fraction", "1", FRACTION),
    ("data.validation_fraction=-0.1", "data.validation_fraction", "-0.1", FRACTION),
    ("data.validation_fraction=nan", "data.validation_fraction", "nan", FRACTION),
    ("data.train_limit=0", "data.train_limit", "0", EPOCHS),
    ("data.test_limit=-5", "data.test_limit", "-5", EPOCHS),
    # unknown options, groups taken away or filled with something else
    ("model=resnet9", "model=resnet9", "unknown", "one of "),
    ("optimizer=rmsprop", "optimizer=rmsprop", "unknown", "one of adam, adamw, sgd"),
    ("data=mnist", "data=mnist", "unknown", "one of fashion_mnist"),
    ("trainer=fast", "trainer=fast", "unknown", "one of default"),
    ("tracking=cloud", "tracking=cloud", "unknown", "local"),
    ("job=test", "job=test", "unknown", "one of evaluate, train"),
    ("debug=nothing", "debug=nothing", "unknown", "one of overfit, smoke"),
    ("trainer=null", "trainer", "null", "one of default"),
    ("model=null", "model", "null", "mlp"),
    ("job=null", "job", "null", "one of evaluate, train"),
    ("data=null", "data", "null", "one of fashion_mnist"),
    ("hydra/launcher=null", "hydra/launcher", "null", "option"),
    ("~trainer", "trainer", "null", "default"),
    ("~model", "model", "null", "one of cnn, deep_mlp, linear, mlp"),
    ("~seed", "seed", "missing", "seed=VALUE"),
    ("model={foo:1}", "model", "{foo:1}", "one of cnn, deep_mlp, linear, mlp"),
    ("+callbacks.foo=1", "callbacks.foo", "1", "+callbacks.foo._target_="),
    ("~trainer.epochs", "trainer.epochs", "missing", "trainer.epochs=VALUE"),
    ("trainer={epochs: 0}", "trainer.epochs", "0", EPOCHS),
    ("optimizer._target_=lion", "optimizer._target_", "'lion'", "dotted name"),
    ("model._target_=3", "model._target_", "3", "dotted name"),
    # what Hydra cannot read
    ("trainer.epochs=1,2", "trainer.epochs", "several values, 1,2", "add -m"),
    ("trainer.epochs=(", "trainer.epochs", "(", "quotes"),
    ("model=mlp,linear", "model", "several values, mlp,linear", "add -m"),
    ("name=ü", "name", "ü", "\"name='ü'\""),
    ("name=it's", "name", "it's", r'''"name='it\\'s'"'''),
    # values that contradict each other
    ("job=evaluate", "model_uri", "null", "runs:/RUN_ID/model"),
    ("model_uri=runs:/1/model", "model_uri", "runs:/1/model", "job=evaluate"),
    ("tracking=server", "tracking.uri", "null", "tracking.uri=http://HOST:5000"),
]


@pytest.mark.parametrize(
    ("override", "key", "received", "expected"), REFUSED, ids=[row[0] for row in REFUSED]
)
def test_a_bad_override_is_one_line_that_says_what_to_do(
    door, tmp_path, override, key, received, expected
):
    said = door.error(override)
    assert said.startswith(f"{key}: ")
    if received not in ("unknown", "missing"):
        assert f"received {received}" in said
    else:
        assert f"{key}: {received}" in said
    assert "expected" in said or "but job=train" in said or "needs quotes" in said
    assert expected in said
    assert left_behind(tmp_path) == []


# Overrides that Hydra itself stumbles over: one line that shows which.
@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("trainer.epochs", "trainer.epochs"),
        ("=5", "=5"),
        ("trainer.epochs=${nope}", "trainer.epochs"),
        ("trainer.epochs=???", "trainer.epochs"),
        ("trainer.epochs=${oc.env:NOPE}", "trainer.epochs"),
        ("+trainer.epochs=3", "leave out the +"),
        ("+trainer=default", "trainer: chosen more than once"),
        ("+experiment=tutorial", "experiment: chosen more than once"),
        ("experiment=[nope]", "experiment=nope: unknown option"),
        ("regularisation=dropout", "example experiment=regularisation regularisation=dropout"),
        ("trainer=5", "trainer"),
        ("trainer=[1]", "trainer"),
        ("experiment=2026", "experiment"),
        ("--config-name=nope", "nope"),
        ("--config-dir=/nonexistent", "/nonexistent"),
        ("hydra.nope=1", "hydra.nope: unknown key; --cfg hydra lists"),
        ("hydra/launcher=nope", "hydra/launcher"),
        ("hydra.run.dir=/proc/nope", "/proc/nope"),
    ],
)
def test_what_hydra_refuses_is_one_line_as_well(door, tmp_path, override, named):
    assert named in door.error(override)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("overrides", "owner"),
    [(("optimizer.momentum=0.9",), "sgd"), (("model=linear", "model.hidden_units=32"), "mlp")],
)
def test_a_key_of_another_option_is_not_offered_as_the_cure(door, overrides, owner):
    """The chosen option does not have it, so the message must not send the user round again."""
    key = overrides[-1].partition("=")[0]
    said = door.error(*overrides)
    assert said.startswith(f"{key}: ")
    assert f"did you mean {key}?" not in said
    assert owner in said


def test_an_unknown_option_of_an_empty_group_does_not_promise_a_list(door):
    said = door.error("experiment=nope")
    assert "experiment=nope" in said
    assert not said.endswith("expected one of ")


def test_of_two_mistakes_one_is_reported(door):
    said = door.error("trainer.epochs=0", "seed=-1")
    assert ("trainer.epochs" in said) != ("seed" in said)


def test_a_sweep_with_a_bad_value_fails_and_says_which(door):
    assert door("-m", "trainer.epochs=1,0") == 2
    assert door.asked == []
    assert "error: trainer.epochs: received 0, expected " in door.capsys.readouterr().err


def test_a_database_is_no_tracking_server(door, tmp_path, monkeypatch):
    said = door.error("tracking=server", "tracking.uri=sqlite:///mlflow.db")
    assert said.startswith("tracking.uri: received 'sqlite:///mlflow.db' with tracking=server")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert "received 'sqlite:///other.db'" in door.error("tracking=server")
    assert left_behind(tmp_path) == []


# What was meant: an override, and the end of the sentence that refuses it.
MEANT = [
    ("epochs=5", "; did you mean trainer.epochs?"),
    ("+epochs=5", "; did you mean trainer.epochs?"),
    ("train.epochs=5", "; did you mean trainer.epochs?"),
    ("lr=0.1", "; did you mean optimizer.learning_rate?"),
    ("limit=1", "; did you mean data.train_limit or data.test_limit?"),
    ("momentum=0.9", "; did you mean optimizer.momentum?"),
    ("trainer.engine=natve", "; did you mean trainer.engine=native?"),
    ("model.activation=ReLU", "; did you mean model.activation=relu?"),
    ("model=MLP", "; did you mean model=mlp?"),
    ("hydra/launcher=local", "; did you mean hydra/launcher=local_cores?"),
    ("optimizer=Adam", "; did you mean optimizer=adam?"),
    ("optimizer=nadam", ": optimizer._target_=keras.optimizers.Nadam"),
    ("optimizer=rmsprop", ": optimizer._target_=keras.optimizers.RMSprop"),
    ("optimizer=keras.optimizers.Lion", ": optimizer._target_=keras.optimizers.Lion"),
    ("model=EfficientNetB0", ": model=own model._target_=my_module.my_model"),
    ("schedule=exponential", ": schedule._target_=my_module.my_schedule"),
    ("callbacks=TensorBoard", ": +callbacks.mine._target_=keras.callbacks.TensorBoard"),
    # the shell has split it
    ("model.hidden_units=[256, 128]", "; write 'model.hidden_units=[256,128]'"),
    ("seed=1 model.hidden_units=[3, 4, 5] name=x", "; write 'model.hidden_units=[3,4,5]'"),
    ("-m trainer.epochs=1, 5", "; write trainer.epochs=1,5"),
    ("trainer.epochs = 5", "; write trainer.epochs=5"),
    ("trainer.epochs= 5", "; write trainer.epochs=5"),
    ("epochs 5 seed=1", "; write trainer.epochs=5"),
    ("name=my run", "; write 'name=my run'"),
    ("seed=1 trainer", "expected key=value, such as trainer.epochs=5"),
    # dashes
    ("--epochs 5", ": write trainer.epochs=5"),
    ("--trainer.epochs=5", ": write trainer.epochs=5"),
    ("-e 5", ": write trainer.epochs=5"),
    ("--hidden-units [3,4]", ": write 'model.hidden_units=[3,4]'"),
    ("seed=1 --learning-rate 0.1", ": write optimizer.learning_rate=0.1"),
    ("--resume", ": write resume=true"),
    ("-model=cnn", ": write model=cnn"),
    ("--=5", ": write key=5, such as trainer.epochs=5"),
    ("--nope", ": write key=VALUE, such as trainer.epochs=5"),
    ("--multi-run seed=1,2", "; did you mean --multirun?"),
]


@pytest.mark.parametrize(("words", "cure"), MEANT, ids=[row[0] for row in MEANT])
def test_a_mistake_is_answered_with_what_was_meant(door, words, cure):
    assert door.error(*words.split()).endswith(cure)


@pytest.mark.parametrize(
    ("word", "received"),
    [
        ("model.hidden_units=8,9", [8, 9]),
        *(
            ("name=" + name, name)
            for name in ("a; b", "it's, mine", 'a "b", $HOME `c` (d)', "e!, f")
        ),
    ],
)
def test_a_cure_can_be_pasted_into_a_shell(door, word, received):
    said = door.error(word)
    (cure,) = re.findall(r"(?:quotes inside quotes:|or write) (.*?)(?: for a list)?$", said)
    typed = subprocess.run(
        ["bash", "-f", "-c", f"printf %s {cure}"], capture_output=True, text=True, check=True
    ).stdout
    config = door.config(typed)
    assert received in (config.name, config.model.arguments().get("hidden_units"))
    unquoted = re.sub(r"'[^']*'|\"(?:[^\"\\]|\\.)*\"", "", cure)
    assert not re.search(r"[^\w@%+=:,./-]", unquoted)  # zsh acts on brackets, bash does not


def test_a_cure_works(door):
    said = door.error("optimizer=rmsprop")
    asked = door.config(said.rpartition(" ")[2])
    assert asked.optimizer.target == "keras.optimizers.RMSprop"


def test_names_of_keras_are_those_that_it_has(backend):
    for group, known in (
        ("optimizer", "SGD"),
        ("schedule", "CosineDecay"),
        ("callbacks", "History"),
    ):
        names = keras_names(group)
        assert known in names
        assert all(callable(pkgutil.resolve_name(dotted)) for dotted in names.values())


# Hydra's own flags, and how the answer begins.
FLAGS_ALONE = [
    ("--version", 0, f"fmnist_lab {metadata.version('fmnist_lab')}, Hydra "),
    ("--cfg job trainer.epochs=7 --package trainer", 0, "# @package trainer\nepochs: 7\n"),
    ("seed=1 --cfg job trainer.epochs=2 -p seed", 0, "1\n"),
    ("--info searchpath seed=1", 0, "\nConfig search path\n"),
    ("seed=1 --info trainer.epochs=2", 0, "Hydra "),
    ("-m --hydra-help trainer.epochs=1", 0, "Hydra ("),
    ("--shell-completion install=fish", 0, "function "),
    (
        "-m --cfg job trainer.epochs=2,3",
        2,
        "--multirun: received together with --cfg, expected one",
    ),
    ("-m --info", 2, "--multirun: received together with --info"),
    ("--cfg nope", 2, "--cfg: received nope, expected one of job, hydra, all"),
    ("--cfg", 2, "--cfg: received no value, expected one of job"),
    ("--config-dir", 2, "--config-dir: received no value, expected a value"),
    ("--resolve", 2, "--resolve: received without --cfg"),
    ("--package trainer", 2, "--package: received without --cfg"),
    ("--cfg job --package nope", 2, "--package: received nope, expected a key of the config"),
    ("--shell-completion", 2, "--shell-completion: received nothing, expected install=SHELL"),
    ("-sc install=nope", 2, "--shell-completion: received install=nope"),
    ("--experimental-rerun job.pickle", 2, "--experimental-rerun: received job.pickle, but"),
    ("--config-dir nope", 2, "--config-dir: received nope, expected a folder that exists"),
    ("--config-name nope", 2, "--config-name: received nope, expected a YAML file"),
    ("--config-name experiment/tutorial", 2, "--config-name: received experiment/tutorial"),
    ("hydra.searchpath=[nope]", 2, "provider=hydra.searchpath in command-line, path=nope is not"),
    ("-m seed=1,2 hydra.launcher=null", 2, "hydra.launcher: received null, expected "),
    ("-m seed=1,2 hydra.sweeper._target_=nope", 2, "hydra.sweeper._target_: received nope, expec"),
]


@pytest.mark.parametrize(
    ("words", "code", "begins"), FLAGS_ALONE, ids=[row[0] for row in FLAGS_ALONE]
)
def test_each_of_hydras_flags_has_an_answer(door, words, code, begins):
    if code:
        assert door.error(*words.split()).startswith(begins)
    else:
        assert door(*words.split()) == 0
        out, err = door.capsys.readouterr()
        assert err == ""
        assert out.startswith(begins)


# A run's own config, given back


@pytest.fixture
def kept(door, tmp_path) -> Config:
    """A config unlike the default one, and its file in `kept/`, under two names."""
    asked = door.config(
        *("model=cnn", "model.filters=[8,16]", "optimizer=sgd", "schedule=one_cycle", "seed=7"),
        *("callbacks=early_stopping", "data.validation_fraction=0.1", "trainer.threads=1"),
        *("name='it is'", "tracking=none"),
    )
    (tmp_path / "kept").mkdir()
    for name in ("config", "mine"):
        text = OmegaConf.to_yaml(OmegaConf.create(asked.to_dict()))
        (tmp_path / "kept" / f"{name}.yaml").write_text(text)
    return asked


@pytest.mark.parametrize(
    "words",
    [
        *("--config-dir kept --config-name config", "--config-dir kept", "--config-path kept"),
        *("--config-dir=kept --config-name=mine", "--config-name kept/config.yaml"),
        "--config-path {here}/kept --config-name mine.yaml",
    ],
)
def test_a_runs_own_config_trains_that_run(door, tmp_path, kept, words):
    again = door.config(*words.format(here=tmp_path).split())
    assert again == kept
    assert again.identity() == kept.identity()
    # And is forgotten afterwards.
    assert door.config().model.target == "fmnist_lab.models.mlp"


def test_a_runs_own_config_may_be_changed_and_swept(door, kept):
    changed = door.config(
        "seed=8", "--config-dir", "kept", "model=linear", "optimizer.momentum=0.5"
    )
    assert (changed.seed, changed.model.target) == (8, "fmnist_lab.models.linear")
    assert changed.optimizer.arguments()["momentum"] == 0.5
    assert changed.callbacks == kept.callbacks
    assert "expected one of filters, dense_units" in door.error(
        "--config-dir=kept", "model.hidden_units=3"
    )
    assert (door("-m", "--config-dir=kept", "seed=1,2"), door.swept) == (0, True)


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("a: [1", "--config-dir other", "other/config.yaml cannot be read: "),
        ("[3]", "--config-name other/config", "other/config.yaml: received no keys"),
        ("defaults: [config]", "--config-dir other", "give it a name that is not in conf"),
        ("defaults: [config]", "--config-path other", "the defaults list of a config names itself"),
        ("trainer: {epoch: 1}", "--config-dir other", "did you mean trainer.epochs?"),
    ],
)
def test_a_config_that_cannot_be_used_is_not_passed_over(door, tmp_path, text, words, said):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text(text)
    assert said in door.error(*words.split())


def test_overrides_may_stand_on_both_sides_of_a_flag(door):
    shapes = Path(config.__file__).parents[2] / "examples" / "conf"
    asked = door.config("trainer.epochs=1", "--config-dir", str(shapes), "data=shapes", "seed=3")
    assert (asked.trainer.epochs, asked.data.name, asked.seed) == (1, "shapes", 3)
    assert door("--help", "--config-dir", str(shapes), "data=shapes") == 0
    assert "name: shapes" in door.capsys.readouterr().out


SWEEPS = {
    "": "trainer.epochs=1,5,20 model.hidden_units=32,128,512",
    "trainer.epochs=2 name=mine resume=true": "trainer.epochs=1,2,8 model.hidden_units=32,128,512",
    "model=cnn seed=7": "model=cnn seed=7,8,9",
    "model.hidden_units=[8,9]": "'model.hidden_units=[8,9]' seed=0,1,2",
    "experiment=tutorial seed=3 trainer.threads=1": "experiment=tutorial trainer.threads=1",
    "tracking.uri=sqlite:///a model=linear": "tracking.uri=sqlite:///a model=linear seed=0,1,2",
    "--config-dir kept": "--config-dir=kept seed=7,8,9",
    "job=evaluate model_uri=x": None,
}


@pytest.mark.parametrize(("words", "sweep"), SWEEPS.items(), ids=SWEEPS)
def test_the_suggested_sweep_is_around_the_run(door, kept, monkeypatch, words, sweep):
    told = []
    monkeypatch.setattr(door, "job", lambda config, _: told.append(sweep_around(config)))
    assert door(*words.split()) == 0
    assert told == [f"python -m fmnist_lab.run -m {sweep}" if sweep else ""]
    # A suggestion is a command that works.
    assert not sweep or (door("-m", *shlex.split(sweep)), door.swept) == (0, True)


# What is accepted


def test_a_tracking_server_is_known_by_the_environment_or_by_its_address(door, monkeypatch):
    by_address = door.config("tracking=server", "tracking.uri=https://lab.example")
    assert by_address.tracking.uri == "https://lab.example"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert door.config("tracking=server").tracking.kind == "server"


def test_the_defaults_are_the_tutorials(door):
    asked = door.config()
    assert asked.model.target == "fmnist_lab.models.mlp"
    assert asked.model.arguments() == {
        "hidden_units": 128,
        "activation": "relu",
        "batch_norm": False,
        "dropout": 0.0,
    }
    assert asked.optimizer.target == "keras.optimizers.Adam"
    assert asked.optimizer.arguments() == {"learning_rate": 0.001}
    assert (asked.trainer.epochs, asked.trainer.batch_size, asked.seed) == (5, 32, 0)
    assert (asked.data.train_limit, asked.data.test_limit) == (None, None)
    assert asked.data.validation_fraction == 0
    assert (asked.job.name, asked.tracking.kind) == ("train", "local")


OPTIONS = [(group, option) for group in GROUPS for option in config.options(group)]


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=["=".join(row) for row in OPTIONS])
def test_every_option_composes_into_a_valid_config(door, monkeypatch, group, option):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")  # for tracking=server
    needed = {
        "job": ["model_uri=somewhere"] if option == "evaluate" else [],
        "callbacks": ["data.validation_fraction=0.1"],
        "knowing": ["experiment=knowing"],
        "regularisation": ["experiment=regularisation"],
        "data": ["data.name=x", "data.dir=x", "data.class_names=2"] if option == "idx" else [],
        "model": ["model._target_=own.model"] if option == "own" else [],
    }
    asked = door.config(f"{group}={option}", *needed.get(group, []))
    values = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml"))
    values.pop("defaults", None)
    values.pop("hydra", None)  # how to sweep it, which is no part of a run
    if group == "experiment":  # a value may be that of the seed
        with_seed = OmegaConf.create({"seed": asked.seed, **values})
        values = OmegaConf.to_container(with_seed, resolve=True)
    values = {key: value for key, value in values.items() if value != "???"}  # to be given
    whole = group in ("debug", "experiment", "knowing", "regularisation")
    chosen = asked.to_dict() if whole else asked.to_dict()[group]
    for key, value in values.items():
        if isinstance(value, dict):
            assert chosen[key].items() >= value.items()
        else:
            assert chosen[key] == value


def test_the_smoke_test_keeps_nothing(door):
    assert door.config("debug=smoke").tracking.kind == "none"


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("model.hidden_units=[256,128,100]", ("model", "hidden_units"), [256, 128, 100]),
        ("model.hidden_units=1", ("model", "hidden_units"), 1),
        ("model.dropout=0", ("model", "dropout"), 0.0),
        ("model.dropout=0.999", ("model", "dropout"), 0.999),
        ("optimizer.learning_rate=1", ("optimizer", "learning_rate"), 1.0),
        ("optimizer.learning_rate=1e-4", ("optimizer", "learning_rate"), 1e-4),
        ("optimizer.weight_decay=0", ("optimizer", "weight_decay"), 0.0),
        ("data.validation_fraction=0.1", ("data", "validation_fraction"), 0.1),
        ("seed=4294967295", ("seed",), 2**32 - 1),
        ("trainer.epochs=${trainer.batch_size}", ("trainer", "epochs"), 32),
        ("name='h 128'", ("name",), "h 128"),
        ("data.dir=null", ("data", "dir"), None),
    ],
)
def test_good_values_arrive_as_they_are(door, override, path, value):
    found = door.config(override).to_dict()
    for key in path:
        found = found[key]
    assert (found, type(found)) == (value, type(value))


def test_another_keras_optimizer_may_have_arguments_of_its_own(door):
    asked = door.config(
        "optimizer._target_=keras.optimizers.Lion", "+optimizer.rho=0.9", "optimizer.beta_1=0.8"
    )
    assert asked.optimizer.target == "keras.optimizers.Lion"
    assert asked.optimizer.arguments() == {"learning_rate": 0.001, "beta_1": 0.8, "rho": 0.9}


@pytest.mark.parametrize("bad", ["optimizer.learning_rate=-1", "optimizer.clipnorm=0"])
def test_another_keras_optimizer_is_still_held_to_the_common_bounds(door, bad):
    assert "expected a finite number above 0" in door.error(
        "optimizer._target_=keras.optimizers.Lion", bad
    )


def test_a_config_cannot_be_changed(door):
    asked = door.config()
    with pytest.raises(ValueError, match="frozen"):
        asked.seed = 1
    with pytest.raises(ValueError, match="frozen"):
        asked.trainer.epochs = 1


def test_a_config_survives_being_written_and_read(door):
    asked = door.config("model.hidden_units=[3,4]", "optimizer=sgd", "name=mine")
    again = config.validate(
        OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(asked.to_dict())))
    )
    assert again == asked
    assert again.identity() == asked.identity()


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    database=None,
)
@given(words=LINES)
def test_no_command_line_gives_a_traceback(door, words):
    folders_of_configs()
    check_answered(door, words)


# What a config is to the rest of the program


def test_activations_are_keras_own(backend):
    import keras

    for name in get_args(dense.Activation):
        assert keras.activations.get(name) is getattr(keras.activations, name)


def test_identity_ignores_where_things_are(door):
    elsewhere = door.config(
        *("tracking=none", "name=mine", "data.dir=/x", "data.cache_dir=/x", "data.download=false")
    )
    assert elsewhere != door.config()
    assert elsewhere.identity() == door.config().identity()


DECIDING = [
    "seed=1",
    "model=linear",
    "model.hidden_units=129",
    "model.hidden_units=[128]",
    "model.activation=tanh",
    "optimizer=sgd",
    "optimizer.learning_rate=0.002",
    "optimizer.amsgrad=true",
    "trainer.epochs=6",
    "trainer.engine=graph",
    "trainer.threads=1",
    "data.train_limit=1000",
    "data.validation_fraction=0.1",
    "job=evaluate model_uri=a",
    "job=evaluate model_uri=b",
]


@pytest.mark.slow
def test_identity_depends_on_what_decides_the_outcome(door):
    hashes = [door.config(*override.split()).identity() for override in ["", *DECIDING]]
    assert len(set(hashes)) == len(DECIDING) + 1
    assert all(re.fullmatch("[0-9a-f]{16}", text) for text in hashes)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_identity_counts_every_key_that_is_not_named_here(door):
    """Whoever adds a key that does not decide the outcome has to say so."""
    before = door.config()

    def differs(**changes: object) -> bool:
        return before.model_copy(update=changes).identity() != before.identity()

    ignored = set()
    for name in type(before).model_fields:
        group = getattr(before, name)
        if not isinstance(group, Section):
            ignored |= set() if differs(**{name: "changed"}) else {name}
            continue
        for key in type(group).model_fields:
            changed = group.model_copy(update={key: "changed"})
            ignored |= set() if differs(**{name: changed}) else {f"{name}.{key}"}
    assert ignored == {
        *("name", "tracking.kind", "tracking.uri", "tracking.experiment"),
        *("data.dir", "data.cache_dir", "data.download"),
        *("resume", "dry_run", "pause_after", "checkpoint.every"),
    }


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ((), "h128 e5 s0"),
        (("model.hidden_units=256", "trainer.epochs=15", "seed=3"), "h256 e15 s3"),
        (("model.hidden_units=[256,128,100]",), "h256-128-100 e5 s0"),
        (("model=linear",), "linear e5 s0"),
        (("name='my own'",), "my own"),
    ],
)
def test_run_names_put_what_differs_first(door, overrides, name):
    assert naming.run_name(door.config(*overrides)) == name


def test_params_are_flat_and_few(door):
    expected = {
        "model": "mlp",
        "optimizer": "Adam",
        "seed": 0,
        "model.hidden_units": 128,
        "model.activation": "relu",
        "model.dropout": 0.0,
        "optimizer.learning_rate": 0.001,
        "trainer.epochs": 5,
        "trainer.batch_size": 32,
        "data.validation_fraction": 0.0,
    }
    params = naming.params(door.config())
    assert params.items() >= expected.items()
    assert len(params) < 20
    assert all(isinstance(value, str | int | float) for value in params.values())


def test_params_hold_what_was_chosen(door):
    chosen = naming.params(
        door.config(
            *("optimizer=sgd", "optimizer.clipnorm=1", "data.train_limit=10", "trainer.threads=1")
        )
    )
    assert chosen["optimizer"] == "SGD"
    assert chosen["optimizer.clipnorm"] == 1
    assert chosen["optimizer.nesterov"] is False
    assert chosen["data.train_limit"] == 10
    assert chosen["trainer.threads"] == 1
    assert "optimizer.weight_decay" not in chosen


def test_params_hold_the_arguments_of_callbacks(door):
    chosen = naming.params(
        door.config(
            *("callbacks=early_stopping", "data.validation_fraction=0.1"),
            "callbacks.early_stopping.patience=7",
        )
    )
    assert chosen["callbacks"] == "early_stopping"
    assert chosen["callbacks.early_stopping.patience"] == 7


def test_the_example_of_a_key_is_its_value_among_all_keys():
    every = files.whole_keys()
    assert len(every) > 50
    assert {key: files.example(key) for key in every} == every
    for key in ("trainer", "defaults", "hydra", "hydra.launcher.workers", "nope"):
        assert files.example(key) is None


# Where the configs are


def test_conf_is_found_beside_the_package():
    assert CONF.is_absolute()
    assert (CONF / "config.yaml").is_file()


def test_conf_inside_the_package_comes_first(monkeypatch, tmp_path):
    package = tmp_path / "fmnist_lab"
    monkeypatch.setattr(files, "__file__", str(package / "config" / "files.py"))
    with pytest.raises(UserError, match="reinstall fmnist_lab"):
        config.conf_dir()
    for folder in (tmp_path / "conf", package / "conf"):
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
        assert config.conf_dir() == folder


# What answering costs: TensorFlow, Keras and MLflow take seconds to import

CHEAP = """
import contextlib, io, json, sys
from fmnist_lab import run
said = {}
for words in json.loads(sys.argv[1]):
    sys.argv = ["run", *words]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try:
            run.main()
        except SystemExit as end:
            pass
    said[" ".join(words)] = out.getvalue()
print(json.dumps([said, sorted(sys.modules)]))
"""


def test_help_and_config_errors_import_nothing_heavy(doors, tmp_path):
    asked = [
        ["--help"],
        ["--cfg", "job"],
        *([override] for override in ("trainer.epochs=0", "+a=1", "trainer=null", "model=nope")),
        ["job=evaluate"],
    ]
    process = doors.python(tmp_path, CHEAP, json.dumps(asked))
    said, modules = json.loads(process.out)
    assert "trainer.epochs=20" in said["--help"]
    assert "hidden_units: 128" in said["--cfg job"]
    assert said["trainer.epochs=0"].startswith("error: trainer.epochs: ")
    assert {name.partition(".")[0] for name in modules} & {
        *("tensorflow", "keras", "mlflow", "matplotlib", "pandas", "sklearn", "scipy")
    } == set()
    assert left_behind(tmp_path) == []


DOORS = ["run", "runs", "predict", "audit", "benchmark"]


def test_the_package_says_which_doors_it_has_and_opens_them(doors, tmp_path):
    for words in ([], ["--help"]):
        process = doors.package(tmp_path, *words)
        assert (process.code, process.err) == (0, "")
        assert re.findall(r"^  python -m fmnist_lab\.(\w+) ", process.out, re.M) == DOORS
    assert "did you mean runs?" in doors.package(tmp_path, "rums").error
    assert "overrides are for python -m fmnist_lab.run" in doors.package(tmp_path, "seed=1").error
    process = doors.package(tmp_path, "run", "--cfg", "job", "seed=3", "-p", "seed")
    assert (process.code, process.err, process.out) == (0, "", "3\n")
    assert "did you mean trainer.epochs?" in doors.package(tmp_path, "run", "epochs=3").error


@pytest.mark.parametrize("door", ["", *(f".{name}" for name in DOORS)])
def test_a_system_that_is_not_supported_is_told_so_by_every_door(doors, tmp_path, door):
    """As on Windows, where Python has no fcntl."""
    text = "import sys\nsys.platform = 'win32'\nsys.modules['fcntl'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(text)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    process = doors.package(tmp_path, "trainer.epochs=1", door=door, PYTHONPATH=path)
    assert "does not work on this system (win32)" in process.error
    assert "Linux, macOS, Google Colab, and on Windows in WSL" in process.error


@pytest.mark.parametrize("module", ["run", "runs", "predict"])
def test_help_of_every_door(doors, tmp_path, module):
    process = doors(module, tmp_path, "--help")
    assert (process.code, process.err) == (0, "")
    assert f"python -m fmnist_lab.{module}" in process.out
    assert list(tmp_path.iterdir()) == []


def test_a_last_epoch_that_a_longer_run_would_not_evaluate_is_no_prefix(door):
    assert door.config("trainer.epochs=10", "trainer.evaluate_every=5").prefix_identity()
    assert door.config("trainer.epochs=7", "trainer.evaluate_every=5").prefix_identity() is None


@pytest.mark.parametrize(
    "text",
    ["", "plain", "it's", "a\\b", "a\\\\b", "\\'", "\\\\'x", "end\\", "end\\\\", "'", "''", "é #%"],
)
def test_a_quoted_text_is_what_hydra_reads(text):
    override = OverridesParser.create().parse_override(f"key={overrides.quoted(text)}")
    assert override.value() == text
