"""From a checked config to what it describes: data, model, optimizer, recipe, and its names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fmnist_lab import data, sources
from fmnist_lab.config import Config, Data, IdxData
from fmnist_lab.errors import UserError

if TYPE_CHECKING:
    import keras

    from fmnist_lab.engines import Recipe
    from fmnist_lab.sweep import Membership


# What of the data a study may vary; where they lie and how their files are called is none of it.
VARIED_DATA = {"name", "train_limit", "test_limit", "validation_fraction"}


def load_data(config: Config) -> data.Dataset:
    """Load the data set that a config describes."""
    return data.load(
        config.data.dir,
        cache_dir=config.data.cache_dir,
        download=config.data.download,
        train_limit=config.data.train_limit,
        test_limit=config.data.test_limit,
        validation_fraction=config.data.validation_fraction,
        seed=config.seed,
        dataset=_description(config.data),
    )


def _description(chosen: Data) -> sources.IdxDataset:
    """Return the description of the data set that a config names."""
    if not isinstance(chosen, IdxData):
        return data.FASHION_MNIST
    digests: Sequence[str | None] = chosen.sha256 or [None] * 4
    names = (chosen.train_images, chosen.train_labels, chosen.test_images, chosen.test_labels)
    one, two, three, four = map(sources.IdxFile, names, digests)
    return sources.IdxDataset(
        chosen.name, one, two, three, four, class_names=chosen.classes(), image_shape=None
    )


def build_model(config: Config, dataset: data.Dataset) -> keras.Model:
    """Build and check the model that a config describes."""
    import keras

    if config.trainer.precision == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = built(config, dataset)
    finally:
        keras.config.set_dtype_policy("float32")
    check_model(model, dataset, config.model.target)
    return model


def built(config: Config, dataset: data.Dataset) -> keras.Model:
    """Build the model that a config describes, unchecked and in float32."""
    return config.model.build(
        image_shape=dataset.train_images.shape[1:], classes=len(dataset.class_names)
    )


def build_optimizer(config: Config, images: int) -> keras.Optimizer:
    """Build the optimizer that a config describes, with its schedule over the whole run."""
    steps = config.trainer.epochs * -(-images // config.trainer.batch_size)
    rate = config.schedule.build(learning_rate=config.optimizer.learning_rate, steps=steps)
    return config.optimizer.build(learning_rate=rate)


def build_recipe(
    config: Config, model: keras.Model, optimizer: keras.Optimizer, engine_before: str = ""
) -> Recipe:
    """Build what a training step consists of, the engine decided.

    Args:
        config: The whole config.
        model: What is to be trained.
        optimizer: By which.
        engine_before: The engine that an earlier run of this had, which `trainer.engine=auto`
            takes again if it is here.

    Raises:
        UserError: The engine that the config names cannot train this.
    """
    from fmnist_lab import engines
    from fmnist_lab.augmentation import Augmentation

    chosen = config.augmentation.model_dump()
    engine: str = config.trainer.engine
    # The native engine is what "auto" takes anyway, wherever it can.
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
    """Refuse a model that does not turn this data set's images into its classes' probabilities.

    Raises:
        UserError: The input, the output, or a few probabilities are not of the right kind.
    """
    from fmnist_lab import engines

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


def run_name(config: Config, member: Membership | None = None) -> str:
    """Return a run's name: what it is in the fewest characters, such as "h128 e5 s0"."""
    if config.name:
        return config.name
    if member is not None and member.name:
        return member.name
    chosen = config.model.arguments()
    widths = chosen.get("hidden_units")
    if widths is None:
        model = config.model.target.rpartition(".")[2]
    else:
        model = "h" + "-".join(map(str, widths if isinstance(widths, list) else [widths]))
    return f"{model} e{config.trainer.epochs} s{config.seed}"


def params(config: Config) -> dict[str, Any]:
    """Return what distinguishes runs, flat and without what was left at a library's default."""
    flat: dict[str, Any] = {
        "model": config.model.target.removeprefix("fmnist_lab.models."),
        "optimizer": config.optimizer.target.removeprefix("keras.optimizers."),
        "schedule": config.schedule.target.removeprefix("fmnist_lab.schedules."),
        "callbacks": ", ".join(config.callbacks) or None,
        "seed": config.seed,
    }
    groups = {
        "model": config.model.arguments(),
        "optimizer": config.optimizer.arguments(),
        "schedule": config.schedule.arguments(),
        "trainer": config.trainer.model_dump(exclude={"engine"}),
        # Zero or false is the same as not being there.
        "augmentation": {k: v or None for k, v in config.augmentation.model_dump().items()},
        "data": config.data.model_dump(include=VARIED_DATA),
        **{f"callbacks.{name}": each.arguments() for name, each in config.callbacks.items()},
    }
    for group, values in groups.items():
        flat |= {f"{group}.{name}": value for name, value in values.items()}
    return {name: value for name, value in flat.items() if value is not None}
