"""The job that trains a Keras model that no config describes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fmnist_lab import tracking
from fmnist_lab.errors import UserError
from fmnist_lab.jobs import build, outputs
from fmnist_lab.jobs.outcome import Outcome
from fmnist_lab.jobs.screen import Screen, TrainingDisplay
from fmnist_lab.system import provenance, signals

if TYPE_CHECKING:
    import keras

    from fmnist_lab.data.dataset import Dataset
    from fmnist_lab.evaluation.confidence import Scaling
    from fmnist_lab.training.engines import Recipe
    from fmnist_lab.training.loop import Epoch
    from fmnist_lab.training.runtime import Device

ENGINES = ("auto", "native", "xla", "graph")


class _Measured(NamedTuple):
    """Metrics of each epoch; of the last, probabilities by part, calibration, chosen epoch or 0."""

    history: list[dict[str, float]]
    probabilities: Mapping[str, np.ndarray]
    fitted: Scaling | None
    chosen: int


def run(
    model: keras.Model,
    dataset: Dataset,
    optimizer: keras.Optimizer | str,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    callbacks: Sequence[keras.callbacks.Callback],
    engine: str,
    name: str,
    store: tracking.Store | None,
) -> Outcome:
    """Train a model in place, evaluate it after each epoch, and keep everything.

    Args:
        model: A Sequential or functional Keras model from images to probabilities (n, classes).
        dataset: The images, in the scale that the model takes.
        optimizer: A Keras optimizer, or its name.
        epochs: How often the model sees all training images.
        batch_size: Images per step.
        seed: Decides the order of the images.
        callbacks: Keras callbacks that act on epochs.
        engine: One of `ENGINES`.
        name: The run's name.
        store: Where the run is kept; None: nowhere.

    Raises:
        UserError: Model, data and optimizer do not fit together, the training diverged, or the run
            cannot be kept.
    """
    from fmnist_lab.training import loop, runtime

    _check_counts(epochs=epochs, batch_size=batch_size)
    device = runtime.start()
    optimizer = _optimizer(optimizer)
    build.check_model(model, dataset, name)
    recipe = _recipe(model, optimizer, batch_size, engine)
    params = _params(model, optimizer, epochs, batch_size, seed)
    tags = _tags(dataset, device, recipe)
    pictured, divisor = _pictured(dataset), _divisor(dataset.train_images)
    screen = Screen(dataset)
    screen.remark(
        f"{model.name}, {model.count_params():,} parameters, {params['optimizer']}, seed {seed}, "
        f"{recipe.engine} engine, {device.name}\n"
    )
    trained = model, dataset.train_images, dataset.train_labels, optimizer
    loop.compile_ahead(*trained, recipe)
    train = partial(
        loop.train,
        *trained,
        epochs=epochs,
        recipe=recipe,
        seed=seed,
        validation=_held_out(dataset),
        callbacks=callbacks,
    )
    with (
        signals.noted() as check_signals,
        tracking.start(store, None, name, tags) as kept,
    ):
        kept.dataset(pictured.train_images, dataset.name, dataset.digest, dataset.source)
        kept.params(params)
        outputs.keep_versions(kept, tags)
        outputs.draw_data(kept, pictured)
        with screen.training(epochs, len(dataset.train_images)) as display:
            found = _measured(train, model, dataset, kept, display, check_signals)
        outputs.keep_results(kept, found.probabilities["test"], pictured)
        outputs.keep_validation(kept, found.probabilities, dataset)
        outputs.draw_curves(kept, found.history, found.chosen)
        outputs.keep_model(kept, model, dataset, found.fitted, divisor)
    metrics = found.history[-1]
    screen.result(metrics, kept, trained=True)
    return Outcome(
        kept.name,
        "FINISHED",
        store,
        kept.id,
        params,
        metrics,
        found.history,
        found.chosen,
        model,
        pictured,
        found.probabilities["test"],
        divisor,
    )


def _measured(
    train: Callable[..., Iterator[Epoch]],
    model: keras.Model,
    dataset: Dataset,
    kept: tracking.Run,
    display: TrainingDisplay,
    check_signals: Callable[[], None],
) -> _Measured:
    """Train, and measure, keep and show the model after each epoch."""
    history: list[dict[str, float]] = []
    probabilities: Mapping[str, np.ndarray] = {}
    fitted: Scaling | None = None
    chosen = 0

    def advance(epoch: int, seen: int) -> None:
        check_signals()
        display.advance(epoch, seen)

    for epoch in train(on_progress=advance):
        chosen = epoch.chosen.epoch if epoch.chosen else 0
        probabilities = outputs.predict(model, dataset)
        if epoch.last:
            fitted = outputs.scaling(probabilities, dataset)
        metrics, _ = outputs.of_epoch(epoch, probabilities, dataset, fitted)
        history.append(metrics)
        kept.metrics(metrics, step=epoch.number)
        display.finished(epoch, metrics)
    return _Measured(history, probabilities, fitted, chosen)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise UserError(f"{name}: received {count!r}, expected a whole number, 1 or more")


def _optimizer(asked: keras.Optimizer | str) -> keras.Optimizer:
    import keras

    try:
        found = keras.optimizers.get(asked)
    except (ValueError, TypeError):
        found = None
    if found is None:
        raise UserError(
            f"optimizer: received {asked!r}, expected a Keras optimizer or the name of one, such "
            "as adam, sgd or adamw"
        )
    return found


def _recipe(model: keras.Model, optimizer: keras.Optimizer, batch_size: int, engine: str) -> Recipe:
    from fmnist_lab.training import engines

    if engine not in ENGINES:
        raise UserError(f"engine: received {engine!r}, expected one of {', '.join(ENGINES)}")
    recipe = engines.Recipe(batch_size=batch_size, engine=engine)
    return replace(recipe, engine=engines.choose(model, optimizer, recipe))


def _params(
    model: keras.Model, optimizer: keras.Optimizer, epochs: int, batch_size: int, seed: int
) -> dict[str, Any]:
    """Return the params of the run, under the names that configs give them."""
    return {
        "model": model.name,
        "optimizer": type(optimizer).__name__,
        "optimizer.learning_rate": f"{float(optimizer.learning_rate):g}",
        "trainer.epochs": epochs,
        "trainer.batch_size": batch_size,
        "seed": seed,
    }


def _tags(dataset: Dataset, device: Device, recipe: Recipe) -> dict[str, str]:
    return {
        **provenance.tags(),
        "job": "train",
        "data.digest": dataset.digest,
        "device": device.name,
        "threads": str(device.threads),
        "engine": recipe.engine,
    }


def _held_out(dataset: Dataset) -> tuple[np.ndarray, np.ndarray] | None:
    if not len(dataset.validation_images):
        return None
    return dataset.validation_images, dataset.validation_labels


def _divisor(images: np.ndarray) -> float | None:
    """Return what pixels, 0 to 255, are divided by to become a model's images; None: unknown.

    >>> [_divisor(np.array([0, high])) for high in (0.7, 250.0, 16.0)]
    [255, 1, None]
    """
    if images.dtype == np.uint8:
        return 1
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 255:
        return None
    # Floats up to 16, say, are grey levels of other pictures than photographs.
    return 255 if high <= 1 else 1 if high > 127 else None


def _pictured(dataset: Dataset) -> Dataset:
    """Return a data set whose images are the pixels that pictures are drawn of, uint8."""

    def pixels(images: np.ndarray) -> np.ndarray:
        if images.shape[-1:] == (1,):
            images = images[..., 0]
        if images.dtype == np.uint8:
            return images
        low, high = float(images.min()), float(images.max())
        if low < 0 or high > 255:
            return (255 * (images - low) / ((high - low) or 1)).astype(np.uint8)
        return (images * (255 if high <= 1 else 1)).round().astype(np.uint8)

    train, test = pixels(dataset.train_images), pixels(dataset.test_images)
    return replace(dataset, train_images=train, test_images=test)
