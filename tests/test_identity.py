"""A config has the hashes that commit 59861f2 gave it, by which older stores find their runs.

The last rows have keys that are younger, and the hashes that they had at first.
"""

import shlex
from collections.abc import Iterator
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

from fmnist_lab import config
from fmnist_lab.sweep.plan import hash_of

DIGESTS = ",".join(["0" * 64] * 4)
# The hash of all that decides the outcome, that without the number of epochs, and the overrides.
COMPOSED = f"""
6b231bafb4ae013f 3e1ccf87ac757cab
afd03f9f2bb4eca6 a734d019f2eee29d model=linear
1476a7d32b79f5df 35a048364ea53c37 model=cnn
e05b8a075d30dbaf 5e8d9f5f8d080096 model=deep_mlp
4b4ddbdbdd877030 c59458d65524ac41 model=resnet
cd7fa1678c7c8de9 2f312f46d7e1e0e4 model=wide_resnet
a4423cdbb0a718a5 b4ed160bc6db58ef model=own model._target_=own.model +model.units=3
23978073f55b181c d1d830553629a15c model.hidden_units=[256,128] model.dropout=0 model.batch_norm=true
a585f88b428ab21d dd2c960d50e3669e model=cnn model.filters=[8] model.dense_units=64 model.dropout=0.5
7d9cbe3daee5c4db None             optimizer=adamw schedule=cosine augmentation=standard
ac1cc95e219bbeaa None             optimizer=sgd optimizer.momentum=0.9 optimizer.nesterov=true schedule=warmup
c325a45abda77acc 7a9b71fd05689c0c optimizer._target_=keras.optimizers.Lion optimizer.beta_1=0.8
5bdaee59005f8b7a None             optimizer._target_=keras.optimizers.RMSprop +optimizer.rho=0.9 schedule=one_cycle
235a9ab5d4eb15cf None             schedule._target_=own.schedule +schedule.rate=2
1228e7f1e2b33f38 None             callbacks=early_stopping data.validation_fraction=0.1
7d96679c8acb6d9d None             +callbacks.mine._target_=keras.callbacks.TensorBoard +callbacks.mine.log_dir=x
661723fedc20b84c 022cbe5ddc4d8d56 data=idx data.name=x data.dir=y data.class_names=[a,b]
239715b46193b946 6df27fb7bc70b1e7 data=idx data.name=x data.dir=y data.class_names=2 data.sha256=[{DIGESTS}]
e0b52dcf06901c3d None             experiment=cnn_budget
a858610f4fee9b47 a7c13d47e5844a54 experiment=regularisation regularisation=weight_decay
e7d41f370281456a cd910655a9d160ce experiment=tutorial trainer.threads=1
b317ef97a93a4ac9 None             trainer.epochs=7 trainer.evaluate_every=2 trainer.precision=bfloat16 seed=3
425b15fd92c76628 None             job=evaluate model_uri=runs:/1/model
5ec27f9b8de853d0 1588638e0903e9e0 debug=smoke
5006f6a25eba65cd 7f77557787d80145 data.label_noise=0.2 data.noise_seed=1
31a4a223e1056fc5 d996e62d64534682 data.random_labels=true
1f22f69881ff0374 9297536a4cf509dc data.train_limit=1000 data.split_seed=0 data.exclude=[3,5]
131cd4f253a98f7c f2afb5ee42b7d85e experiment=double_descent
"""  # noqa: E501
# An optimizer of a user's own file, with its learning rate alone.
OPTIMIZERS = {
    "Adam": "0eb3553238df12c8",
    "AdamW": "541faf78cced4323",
    "SGD": "e495fcd6d72ef78c",
    "Lion": "60a38da38db1ba71",
}


@pytest.fixture(scope="module", autouse=True)
def _composer() -> Iterator[None]:
    with hydra.initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        yield


def composed(*words: str) -> dict[str, Any]:
    return OmegaConf.to_container(hydra.compose("config", [*words]), resolve=True)


def test_every_model_is_among_them():
    assert {f"model={name}" for name in config.options("model")} <= {*COMPOSED.split(), "model=mlp"}


@pytest.mark.parametrize("row", COMPOSED.strip().splitlines())
def test_hashes_stay(row):
    identity, prefix, *words = shlex.split(row)
    checked = config.validate(composed(*words))
    assert (checked.identity(), str(checked.prefix_identity())) == (identity, prefix)


def sweep_hash(*words: str) -> str:
    return hash_of(hydra.compose("config", [*words], return_hydra_config=True))


def test_the_hash_of_a_sweep_stays():
    assert sweep_hash("trainer.epochs=1") == "03008dfb83ee8c77"


def test_a_sweep_without_other_images_is_another_sweep(tmp_path):
    hashes = []
    for indices in ("1\n2\n", "1\n3\n"):
        (tmp_path / "listed.txt").write_text(indices)
        hashes.append(sweep_hash(f"data.exclude={tmp_path / 'listed.txt'}"))
    assert len({sweep_hash(), *hashes}) == 3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_left_out_counts_as_null(name):
    values = composed()
    values["optimizer"] = {"_target_": f"keras.optimizers.{name}", "learning_rate": 1}
    assert config.validate(values).identity() == OPTIMIZERS[name]
