"""What a config says arrives in what trains."""

import hydra
import numpy as np
import pytest
from omegaconf import OmegaConf

from fmnist_lab import config
from fmnist_lab.data.dataset import Dataset
from fmnist_lab.jobs import build


@pytest.fixture(scope="module", autouse=True)
def _started(backend):
    """TensorFlow runs from here on."""


def composed(*overrides: str) -> config.Config:
    with hydra.initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        found = hydra.compose("config", list(overrides))
    return config.validate(OmegaConf.to_container(found, resolve=True))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (40, 28, 28), np.uint8)
    labels = (np.arange(40) % 10).astype(np.uint8)
    return Dataset(
        name="x",
        source="x",
        digest="x",
        train_images=images,
        train_labels=labels,
        validation_images=images[:0],
        validation_labels=labels[:0],
        test_images=images,
        test_labels=labels,
        class_names=tuple("abcdefghij"),
    )


def recipe(dataset: Dataset, *overrides: str):
    asked = composed("model.hidden_units=4", *overrides)
    model = build.build_model(asked, dataset)
    return build.build_recipe(asked, model, build.build_optimizer(asked, 40))


def test_the_trainers_settings_are_the_recipes(dataset):
    found = recipe(dataset, "trainer.batch_size=7", "trainer.label_smoothing=0.2")
    assert (found.batch_size, found.label_smoothing) == (7, 0.2)
    assert found.loss_function().label_smoothing == 0.2
    assert recipe(dataset, "trainer.engine=graph").engine == "graph"
    assert recipe(dataset).augmentation is None


def test_the_augmentation_is_the_recipes(dataset):
    chosen = recipe(
        *(dataset, "augmentation.flip=true", "augmentation.shift=2", "augmentation.erase=0.3")
    ).augmentation
    assert (chosen.flip, chosen.shift, chosen.erase) == (True, 2, 0.3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_precision_is_the_models(dataset, precision):
    import keras

    asked = composed("model.hidden_units=4", f"trainer.precision={precision}")
    model = build.build_model(asked, dataset)
    hidden = next(layer for layer in model.layers if isinstance(layer, keras.layers.Dense))
    assert (hidden.compute_dtype, hidden.variable_dtype) == (precision, "float32")
    assert keras.config.dtype_policy().name == "float32"


def test_a_schedule_is_over_the_whole_run(dataset):
    """Three epochs of six batches, the last of them smaller."""
    asked = composed("schedule=cosine", "trainer.epochs=3", "trainer.batch_size=7")
    rate = build.build_optimizer(asked, 40)._learning_rate
    assert float(rate(0)) == pytest.approx(asked.optimizer.learning_rate)
    assert 0 < float(rate(17)) < 0.01 * asked.optimizer.learning_rate
    assert float(rate(18)) == pytest.approx(0, abs=1e-9)


def test_clipping_averaging_and_decay_are_the_optimizers(dataset):
    asked = composed(
        "optimizer=adamw",
        *("optimizer.clipnorm=0.5", "optimizer.use_ema=true", "optimizer.weight_decay=0.02"),
    )
    found = build.build_optimizer(asked, 40)
    assert (found.clipnorm, found.use_ema, found.weight_decay) == (0.5, True, 0.02)
