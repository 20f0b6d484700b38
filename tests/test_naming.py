"""What runs and sweeps are called, and that no two settings are called the same."""

import shlex

import hydra
import pytest
from composing import composed
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from fmnist_lab import config
from fmnist_lab.config import files, naming
from fmnist_lab.sweep import plan as planning

# The table of docs/questions.md, and more.
NAMES = {
    "": "h128 e5 s0",
    "trainer.epochs=20": "h128 e20 s0",
    "model.hidden_units=512": "h512 e5 s0",
    "model.hidden_units=[256,128]": "h256-128 e5 s0",
    "optimizer=sgd": "h128 e5 sgd s0",
    "optimizer=sgd optimizer.learning_rate=0.1": "h128 e5 sgd lr0.1 s0",
    "optimizer=sgd optimizer.momentum=0.9 seed=3": "h128 e5 sgd momentum0.9 s3",
    "optimizer.learning_rate=1e-5": "h128 e5 lr1e-5 s0",
    "optimizer.beta_1=0.95": "h128 e5 beta_1=0.95 s0",
    "optimizer._target_=keras.optimizers.Lion": "h128 e5 Lion s0",
    "model.dropout=0.3": "h128 e5 dropout0.3 s0",
    "model.batch_norm=true": "h128 e5 batch_norm s0",
    "model.activation=tanh": "h128 e5 activation=tanh s0",
    "trainer.batch_size=128": "h128 e5 b128 s0",
    "trainer.label_smoothing=0.1": "h128 e5 label_smoothing0.1 s0",
    "trainer.precision=bfloat16": "h128 e5 precision=bfloat16 s0",
    "optimizer=adamw": "h128 e5 adamw s0",
    "optimizer=adamw optimizer.weight_decay=0.1": "h128 e5 adamw weight_decay0.1 s0",
    "optimizer=adamw optimizer.weight_decay=null": "h128 e5 adamw weight_decay=none s0",
    "augmentation=flip": "h128 e5 flip s0",
    "augmentation=standard": "h128 e5 flip shift2 erase0.5 s0",
    "callbacks=early_stopping data.validation_fraction=0.1 trainer.epochs=50": (
        "h128 e50 early_stopping val0.1 s0"
    ),
    "callbacks=early_stopping callbacks.early_stopping.patience=7 data.validation_fraction=0.1": (
        "h128 e5 early_stopping patience7 val0.1 s0"
    ),
    "schedule=one_cycle": "h128 e5 one_cycle s0",
    "schedule=cosine": "h128 e5 cosine s0",
    "schedule=cosine schedule.warmup=0.1": "h128 e5 cosine warmup0.1 s0",
    "model=linear": "linear e5 s0",
    "model=cnn": "cnn e5 s0",
    "model=cnn model.filters=[8,16]": "cnn e5 filters8-16 s0",
    "model=resnet": "resnet e5 s0",
    "model=wide_resnet": "wide_resnet e5 s0",
    "model=own model._target_=mine.patches +model.units=32 +model.mode=fast": (
        "patches e5 units32 mode=fast s0"
    ),
    "model=own model._target_=mine.patches +model.units=0": "patches e5 units0 s0",
    "model=own model._target_=mine.wide +model.hidden_units=64": "wide h64 e5 s0",
    "data=idx data.name=shapes data.dir=x data.class_names=3": "h128 e5 shapes s0",
    "debug=smoke": "h128 e2 train2000 test500 s0",
}


@pytest.fixture(scope="module", autouse=True)
def _composer():
    with hydra.initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        yield


def planned(words: str):
    """A sweep: the composed config, its plan, and the jobs that are checked."""
    loader = GlobalHydra.instance().config_loader()
    whole = loader.load_configuration("config", shlex.split(words), RunMode.MULTIRUN)
    plan = planning.plan(whole)
    return whole, plan, planning.check(whole, plan)


def test_a_run_is_named_by_what_differs_from_the_defaults():
    made = {words: naming.run_name(composed(words)) for words in NAMES}
    assert made == NAMES
    assert len(set(made.values())) == len(made)


def test_what_a_store_keeps_of_a_run_differs_in_the_same_as_its_config():
    for words in NAMES:
        params = naming.params(composed(words))
        kept = naming.differences({name: str(value) for name, value in params.items()})
        assert naming.spoken(kept) == naming.spoken(naming.differences(params)), words


def test_every_option_is_told_by_its_name_alone():
    for group in ("model", "optimizer", "schedule"):
        for option in set(config.options(group)) - {"own"}:
            found = naming.differences(naming.params(composed(f"{group}={option}")))
            assert found in ({}, {group: option}), option


def test_the_defaults_are_those_of_the_files(monkeypatch, tmp_path):
    """Another default in `conf/` needs no change anywhere else."""
    for file in config.conf_dir().rglob("*.yaml"):
        copy = tmp_path / file.relative_to(config.conf_dir())
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text().replace("dropout: 0.0", "dropout: 0.25"))
    before = composed("")
    monkeypatch.setattr(files, "conf_dir", lambda: tmp_path)
    naming._option.cache_clear()
    try:
        assert naming.run_name(before) == "h128 e5 dropout0 s0"
    finally:
        monkeypatch.undo()
        naming._option.cache_clear()


def test_a_parameter_that_is_younger_than_the_run_has_its_default():
    assert naming.differences({"model": "mlp", "model.hidden_units": "128", "seed": "0"}) == {}
    assert naming.differences({}) == {}


def test_names_are_short_and_stay_apart_even_where_much_differs():
    words = (
        "experiment=cnn_budget model.dropout=0.2 optimizer.clipnorm=1 optimizer.beta_1=0.95 "
        "data.train_limit=2000 seed={seed} optimizer.beta_2={beta}"
    )
    names = {
        naming.run_name(composed(words.format(seed=seed, beta=beta)))
        for seed in (0, 12345)
        for beta in (0.9, 0.99)
    }
    assert len(names) == 4
    for name in names:
        assert len(name) <= naming.LONGEST_NAME
        assert name.startswith("resnet e36 ")
        assert name.endswith((" s0", " s12345"))
    long = f"+model.note='{'very ' * 40}{{end}}'"
    names = {
        naming.run_name(composed(f'model=own model._target_=m.f "{long.format(end=end)}"'))
        for end in ("good", "bad")
    }
    assert len(names) == 2
    assert all(len(name) <= naming.LONGEST_NAME for name in names)
    deep = f"model.hidden_units=[{','.join(['128'] * 60)}]"
    assert len(naming.run_name(composed(deep))) <= naming.LONGEST_NAME


FOUR = ["32", "128", "512", "8"]


@pytest.mark.parametrize(
    ("axes", "common", "name"),
    [
        (
            {"trainer.epochs": ["1", "5"], "model.hidden_units": FOUR[:3], "seed": list("01234")},
            [],
            "epochs 1,5 × hidden_units 32,128,512 × 5 seeds",  # noqa: RUF001
        ),
        ({"trainer.epochs": ["1", "5"]}, ["sgd", "lr0.1"], "epochs 1,5, sgd lr0.1"),
        ({"seed": ["3"]}, [], "seed 3"),
        ({"optimizer._target_": ["keras.optimizers.Lion", "a.B"]}, [], "optimizer Lion,B"),
        ({"model.hidden_units": ["'[100]'", "[100,10]"]}, [], "hidden_units 100,100-10"),
        ({"model.hidden_units": [*FOUR, "1024", "2048"]}, [], "hidden_units 8…2048 (6)"),
        ({"x.rate": ["1e-1", "1e-3", "1e-5", "1e-2", "1e-4"]}, [], "rate 1e-5…0.1 (5)"),
        ({"callbacks": ["none", "early_stopping", "x", "y"]}, [], "callbacks none…y (4)"),
        ({"model.dropout": "interval(0, 1)"}, [], "dropout interval(0, 1)"),
    ],
)
def test_a_sweep_is_named_by_its_values(axes, common, name):
    assert naming.sweep_name(axes, common) == f"sweep {name}"


def test_a_sweeps_name_is_short_and_stays_apart():
    axes = {f"group.a_rather_long_name_{number}": ["1", "2"] for number in range(9)}
    names = {naming.sweep_name({**axes, "seed": [str(n) for n in range(m)]}) for m in (2, 3)}
    assert len(names) == 2
    assert all(len(name) <= naming.LONGEST_SWEEP for name in names)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("trainer.epochs=1,5 model=cnn seed=4", "sweep epochs 1,5, cnn"),
        pytest.param(
            # What only some of the options bring along is no property of all jobs.
            "experiment=regularisation",
            "sweep regularisation none…fewer_epochs (7) × 5 seeds, h512 b128",  # noqa: RUF001
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_sweeps_name_tells_what_all_jobs_have_in_common(words, name):
    _, plan, checked = planned(words)
    assert plan.name(checked) == name


@pytest.mark.parametrize(
    "words",
    [
        "optimizer=sgd,adam model.hidden_units=32,[16,8] hydra/launcher=local_cores",
        *(
            pytest.param(words, marks=pytest.mark.slow)
            for words in (
                "experiment=regularisation regularisation=none,early_stopping seed=0,1",
                "model=mlp,cnn trainer.label_smoothing=0,0.1 name=x",
                "model=own model._target_=m.f +model.units=1,2 resume=true",
            )
        ),
    ],
)
def test_the_identity_of_each_job_is_known_before_it_begins(words):
    whole, plan, checked = planned(words)
    threads = whole.hydra.launcher.get("threads")
    more = [f"trainer.threads={threads}"] if threads else []
    expected = []
    for job in plan.jobs:
        made = GlobalHydra.instance().config_loader().load_sweep_config(whole, [*job, *more])
        values = OmegaConf.to_container(planning._own(made), resolve=True)
        job_config = config.validate(values)
        expected.append((job_config.identity(), job_config.native_identity()))
    assert planning.identities(whole, plan, checked) == expected
    assert len(set(expected)) == len(expected)
