"""The objects that a checked config describes: data, model, optimizer, recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

from fmnist_lab import data
from fmnist_lab.config.schema import Config, Data, IdxData
from fmnist_lab.data import idx
from fmnist_lab.errors import UserError

if TYPE_CHECKING:
    import keras

    from fmnist_lab.training.engines import Recipe


def load_data(config: Config) -> data.Dataset:
    """Load the data set that a config describes."""
    return load_section(config.data, config.seed)


def load_section(chosen: Data, seed: int) -> data.Dataset:
    """Load the data set that a config's section `data` describes.

    Args:
        chosen: The section.
        seed: The config's seed.
    """
    return data.load(
        chosen.dir,
        cache_dir=chosen.cache_dir,
        download=chosen.download,
        train_limit=chosen.train_limit,
        test_limit=chosen.test_limit,
        validation_fraction=chosen.validation_fraction,
        seed=seed,
        split_seed=chosen.split_seed,
        # A checked config has the content of its files in the place of their paths.
        exclude=cast("Sequence[int]", chosen.exclude or ()),
        exclude_test=cast("Sequence[int]", chosen.exclude_test or ()),
        noise=data.Noise(
            chosen.label_noise,
            chosen.noise_seed,
            cast("Sequence[Sequence[float]] | None", chosen.noise_table),
            chosen.noisy_validation,
            chosen.random_labels,
        ),
        dataset=_description(chosen),
    )


def _description(chosen: Data) -> idx.IdxDataset:
    """Return the description of the data set that a config names."""
    if not isinstance(chosen, IdxData):
        return data.FASHION_MNIST
    digests: Sequence[str | None] = chosen.sha256 or [None] * 4
    names = (chosen.train_images, chosen.train_labels, chosen.test_images, chosen.test_labels)
    one, two, three, four = map(idx.IdxFile, names, digests)
    return idx.IdxDataset(
        chosen.name, one, two, three, four, class_names=chosen.classes(), image_shape=None
    )


def build_model(config: Config, dataset: data.Dataset) -> keras.Model:
    """Build the model that a config describes, in its precision, and check it.

    Args:
        config: A checked config.
        dataset: The images and classes that the model is for.

    Raises:
        UserError: The model does not classify these images.
    """
    import keras

    before = keras.config.dtype_policy()
    bfloat16 = config.trainer.precision == "bfloat16"
    keras.config.set_dtype_policy("mixed_bfloat16" if bfloat16 else "float32")
    try:
        model = built(config, dataset)
    finally:
        keras.config.set_dtype_policy(before)
    check_model(model, dataset, config.model.target)
    return model


def built(config: Config, dataset: data.Dataset) -> keras.Model:
    """Build the model that a config describes, unchecked and in Keras' present precision.

    Args:
        config: A checked config.
        dataset: The images and classes that the model is for.
    """
    return config.model.build(
        image_shape=dataset.train_images.shape[1:], classes=len(dataset.class_names)
    )


def build_optimizer(config: Config, images: int) -> keras.Optimizer:
    """Build the optimizer that a config describes, with its schedule over the whole run.

    Args:
        config: A checked config.
        images: Training images per epoch.
    """
    steps = config.trainer.epochs * -(-images // config.trainer.batch_size)
    rate = config.schedule.build(learning_rate=config.optimizer.learning_rate, steps=steps)
    return config.optimizer.build(learning_rate=rate)


def build_recipe(
    config: Config, model: keras.Model, optimizer: keras.Optimizer, engine_before: str = ""
) -> Recipe:
    """Build the recipe of a training step, with the engine chosen.

    Args:
        config: A checked config.
        model: The model to be trained.
        optimizer: The optimizer that trains it.
        engine_before: The engine of an earlier run of this config, which `trainer.engine=auto`
            takes again if it is here; "" if there was none.

    Raises:
        UserError: The engine that the config names cannot train this model.
    """
    from fmnist_lab.training import engines
    from fmnist_lab.training.augmentation import Augmentation

    chosen = config.augmentation.model_dump()
    engine: str = config.trainer.engine
    # "auto" takes the native engine anyway, wherever it can.
    if engine == "auto" and engine_before in ("xla", "graph"):
        engine = engine_before
    recipe = engines.Recipe(
        batch_size=config.trainer.batch_size,
        engine=engine,
        label_smoothing=config.trainer.label_smoothing,
        augmentation=Augmentation(**chosen) if any(chosen.values()) else None,
    )
    return replace(recipe, engine=engines.choose(model, optimizer, recipe))


def check_model(model: keras.Model, dataset: data.Dataset, name: str) -> None:
    """Refuse a model that does not turn the images of a data set into probabilities of its classes.

    Args:
        model: Any Keras model.
        dataset: The images and classes.
        name: A person's name for the model, for the message.

    Raises:
        UserError: The input, the output, or a few probabilities are not of the right kind.
    """
    from fmnist_lab.training import engines

    expected = f"images {dataset.train_images.shape[1:]} to {len(dataset.class_names)} classes"
    try:
        probabilities = engines.predict(model, dataset.train_images[:32])
        shapes = [tuple(model.input_shape[1:]), tuple(model.output_shape[1:])]
        sums = probabilities.sum(axis=-1)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{name} is no image classifier: expected a Keras model from {expected}, but it "
            f"cannot take the images: {' '.join(str(error).split())[:300]}"
        ) from error
    if shapes != [dataset.train_images.shape[1:], (len(dataset.class_names),)]:
        raise UserError(
            f"{name}: received a model from {shapes[0]} to {shapes[1]}, expected "
            f"one from {expected}"
        )
    if not np.allclose(sums, 1, atol=1e-3) or (probabilities < 0).any():
        raise UserError(
            f"{name}: received a model whose outputs sum to {sums.min():.3g} … {sums.max():.3g}, "
            "expected probabilities; end it in a softmax"
        )
