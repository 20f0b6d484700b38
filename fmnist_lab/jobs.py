"""What can be done with a config: a job leads it through the rooms, from data to tracking."""

from __future__ import annotations

import dataclasses
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import OmegaConf

from fmnist_lab import data, evaluation, provenance, tracking
from fmnist_lab.config import Config
from fmnist_lab.errors import Terminated, UserError

if TYPE_CHECKING:
    import keras

    from fmnist_lab.backend import Device
    from fmnist_lab.sweep import Membership
    from fmnist_lab.training import Recipe

History = dict[str, list[float]]


def train(config: Config, member: Membership | None = None) -> dict[str, float]:
    """Train a model as configured, evaluate it, and keep everything.

    Args:
        config: What to do.
        member: What this job is in a sweep, if it is part of one.

    Returns:
        The last epoch's metrics.

    Raises:
        UserError: Something in the config cannot be done, and no run is left behind; or the
            training diverged, and the run is marked FAILED with the epochs before.
    """
    from fmnist_lab import backend

    store = None if config.tracking.kind == "none" else tracking.Store.locate(config.tracking.uri)
    dataset = load_data(config)
    device = backend.start(config.trainer.threads, lean=True)

    import keras

    from fmnist_lab import console, memory, training

    memory.check(
        lambda: _built(config, dataset), build_optimizer(config, len(dataset.train_images))
    )
    keras.utils.set_random_seed(config.seed)
    model = build_model(config, dataset)
    optimizer = build_optimizer(config, len(dataset.train_images))
    callbacks = [callback.build() for callback in config.callbacks.values()]
    validation = _validation(dataset)
    training.check_callbacks(callbacks, validation is not None)
    recipe = build_recipe(config, model)

    screen = console.Screen()
    screen.heading(config, dataset, device, model, recipe.engine)
    tags = {
        **_identity(config, dataset, device),
        **(member.tags() if member else {}),
        "job": "train",
        "engine": recipe.engine,
    }
    name = config.name or (member.name if member else run_name(config))
    with (
        _signals() as check_signals,
        tracking.start(store, config.tracking.experiment, name, tags) as run,
    ):
        run.params(params(config))
        run.text(OmegaConf.to_yaml(OmegaConf.create(config.to_dict())), "config.yaml")
        run.dataset(dataset.train_images, dataset.name, dataset.digest, dataset.source)
        _draw_data(run, dataset)
        images, labels = dataset.train_images, dataset.train_labels
        training.compile_ahead(model, images, labels, optimizer, recipe)
        check_signals()
        # A server may be out of reach; our own files have been tried already, so need no wait.
        if run.is_remote:
            run.wait_until_open()
        history: History = defaultdict(list)
        with screen.training(config.trainer.epochs, len(images)) as display:

            def advance(epoch: int, seen: int) -> None:
                check_signals()
                display.advance(epoch, seen)

            for epoch in training.train(
                model,
                images,
                labels,
                optimizer,
                epochs=config.trainer.epochs,
                recipe=recipe,
                seed=config.seed,
                validation=validation,
                callbacks=callbacks,
                on_progress=advance,
            ):
                probabilities = _predict(model, dataset)
                metrics = {
                    **_metrics(probabilities, dataset),
                    "accuracy/fit": epoch.accuracy,
                    "loss/fit": epoch.loss,
                    "learning_rate": epoch.learning_rate,
                    "images_per_second": epoch.images / epoch.seconds,
                }
                run.metrics(metrics, step=epoch.number)
                for name, value in {"epoch": epoch.number, **metrics}.items():
                    history[name].append(value)
                display.finished(epoch, metrics)
        if epoch.number < config.trainer.epochs:
            screen.stopped(epoch.number)
        _keep_results(run, probabilities["test"], dataset)
        _draw_curves(run, history)
        run.model(model, dataset.class_names)
        check_signals()
    screen.result(metrics, history, run)
    return metrics


def evaluate(config: Config, member: Membership | None = None) -> dict[str, float]:
    """Reload a logged model, evaluate it, and keep that as a run which points at the model.

    Args:
        config: What to do.
        member: What this job is in a sweep, if it is part of one.

    Returns:
        The metrics, of the same names as after training.

    Raises:
        UserError: There is no such model, or it does not classify this data set.
    """
    from fmnist_lab import backend

    assert config.model_uri is not None
    kept = config.tracking.kind != "none"
    store = tracking.Store.locate(config.tracking.uri, for_writing=kept)
    dataset = load_data(config)
    device = backend.start(config.trainer.threads, lean=True)

    from fmnist_lab import console

    model, _ = tracking.load_model(config.model_uri, store)
    check_model(model, dataset, config.model_uri)
    screen = console.Screen()
    screen.heading(config, dataset, device, model, engine=None)
    tags = {
        **_identity(config, dataset, device),
        **(member.tags() if member else {}),
        "job": "evaluate",
        "model_uri": config.model_uri,
        **tracking.origin(config.model_uri),
    }
    name = config.name or (member.name if member else f"evaluate {config.model_uri}")
    with (
        _signals() as check_signals,
        tracking.start(store if kept else None, config.tracking.experiment, name, tags) as run,
    ):
        run.params({"model_uri": config.model_uri})
        run.dataset(dataset.train_images, dataset.name, dataset.digest, dataset.source)
        probabilities = _predict(model, dataset)
        metrics = _metrics(probabilities, dataset)
        run.metrics(metrics, step=0)
        _keep_results(run, probabilities["test"], dataset)
        check_signals()
    screen.result(metrics, {}, run)
    return metrics


JOBS: dict[str, Callable[[Config, Membership | None], dict[str, float]]] = {
    "train": train,
    "evaluate": evaluate,
}


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
    )


def build_model(config: Config, dataset: data.Dataset) -> keras.Model:
    """Build and check the model that a config describes."""
    import keras

    if config.trainer.precision == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = _built(config, dataset)
    finally:
        keras.config.set_dtype_policy("float32")
    check_model(model, dataset, config.model.target)
    return model


def _built(config: Config, dataset: data.Dataset) -> keras.Model:
    return config.model.build(
        image_shape=dataset.train_images.shape[1:], classes=len(dataset.class_names)
    )


def build_optimizer(config: Config, images: int) -> keras.Optimizer:
    """Build the optimizer that a config describes, with its schedule over the whole run."""
    steps = config.trainer.epochs * -(-images // config.trainer.batch_size)
    rate = config.schedule.build(learning_rate=config.optimizer.learning_rate, steps=steps)
    return config.optimizer.build(learning_rate=rate)


def build_recipe(config: Config, model: keras.Model) -> Recipe:
    """Build what a training step consists of, the engine decided."""
    from fmnist_lab import training
    from fmnist_lab.augmentation import Augmentation

    chosen = config.augmentation.model_dump()
    engine = config.trainer.engine
    return training.Recipe(
        batch_size=config.trainer.batch_size,
        engine=training.choose_engine(model) if engine == "auto" else engine,
        label_smoothing=config.trainer.label_smoothing,
        augmentation=Augmentation(**chosen) if any(chosen.values()) else None,
    )


def check_model(model: keras.Model, dataset: data.Dataset, name: str) -> None:
    """Refuse a model that does not turn this data set's images into its classes' probabilities.

    Raises:
        UserError: The input, the output, or a few probabilities are not of the right kind.
    """
    from fmnist_lab import training

    expected = f"images {dataset.train_images.shape[1:]} to {len(dataset.class_names)} classes"
    try:
        shapes = [tuple(model.input_shape[1:]), tuple(model.output_shape[1:])]
        probabilities = training.predict(model, dataset.train_images[:32])
        sums = probabilities.sum(axis=-1)
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


def run_name(config: Config) -> str:
    """Return a run's name: what it is in the fewest characters, such as "h128 e5 s0"."""
    if config.name:
        return config.name
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
        "data": config.data.model_dump(exclude={"dir", "cache_dir", "download"}),
    }
    for group, values in groups.items():
        flat |= {f"{group}.{name}": value for name, value in values.items()}
    return {name: value for name, value in flat.items() if value is not None}


def _identity(config: Config, dataset: data.Dataset, device: Device) -> dict[str, str]:
    """Return the tags that say what exactly ran where."""
    return {
        **provenance.tags(),
        "config.hash": config.identity(),
        "data.digest": dataset.digest,
        "device": device.name,
        "threads": str(device.threads),
    }


def _predict(model: keras.Model, dataset: data.Dataset) -> dict[str, np.ndarray]:
    """Return the model's probabilities for each part of the data set that has images."""
    from fmnist_lab import training

    parts = {
        "train": dataset.train_images,
        "test": dataset.test_images,
        "validation": dataset.validation_images,
    }
    # Only the test set's are kept, for a reloaded model to give again to the last bit.
    sizes = {"train": training.FAST_PREDICTION_BATCH}
    return {
        part: training.predict(model, images, sizes.get(part, training.PREDICTION_BATCH))
        for part, images in parts.items()
        if len(images)
    }


def _validation(dataset: data.Dataset) -> tuple[np.ndarray, np.ndarray] | None:
    if not len(dataset.validation_images):
        return None
    return dataset.validation_images, dataset.validation_labels


def _metrics(probabilities: Mapping[str, np.ndarray], dataset: data.Dataset) -> dict[str, float]:
    labels = {
        "train": dataset.train_labels,
        "test": dataset.test_labels,
        "validation": dataset.validation_labels,
    }
    scores = {part: evaluation.scores(rows, labels[part]) for part, rows in probabilities.items()}
    return evaluation.epoch_metrics(**scores)


def _draw_data(run: tracking.Run, dataset: data.Dataset) -> None:
    from fmnist_lab import plots

    images, labels, names = dataset.train_images, dataset.train_labels, dataset.class_names
    run.figure("first_image.png", plots.first_image, images[0], names[labels[0]])
    run.figure("training_images.png", plots.image_grid, images[:25], labels[:25], names)


def _draw_curves(run: tracking.Run, history: Mapping[str, Sequence[float]]) -> None:
    from fmnist_lab import plots

    run.figure("learning_curves.png", plots.learning_curves, dict(history))


def _keep_results(run: tracking.Run, probabilities: np.ndarray, dataset: data.Dataset) -> None:
    """Keep what a finished model says of the test set: predictions, figures of merit, pictures."""
    from fmnist_lab import plots

    images, labels, names = dataset.test_images, dataset.test_labels, dataset.class_names
    matrix = evaluation.confusion_matrix(probabilities, labels, len(names))
    calibration = evaluation.calibration(probabilities, labels)
    worst = evaluation.confident_mistakes(probabilities, labels, 15)
    for index in (0, 12):
        if index < len(labels):
            run.figure(
                f"prediction_{index}.png",
                plots.single_prediction,
                images[index],
                probabilities[index],
                labels[index],
                names,
            )
    run.figure(
        "predictions.png",
        plots.prediction_grid,
        images[:15],
        probabilities[:15],
        labels[:15],
        names,
    )
    run.figure("confusion_matrix.png", plots.confusion_matrix, matrix, names)
    run.figure("calibration.png", plots.reliability_diagram, calibration)
    run.figure(
        "confident_mistakes.png",
        plots.confident_mistakes,
        images[worst],
        probabilities[worst],
        labels[worst],
        names,
    )
    run.arrays("predictions.npz", probabilities=probabilities, labels=labels)
    run.json(
        {
            "classes": [
                dataclasses.asdict(row)
                for row in evaluation.per_class(probabilities, labels, names)
            ],
            "confusion_matrix": matrix,
            "calibration": dataclasses.asdict(calibration),
        },
        "evaluation.json",
    )


@contextmanager
def _signals() -> Iterator[Callable[[], None]]:
    """Turn Ctrl-C and SIGTERM into an exception at the next good place, or at once if repeated.

    An exception raised by the handler itself is lost if Python happens to be in a callback of
    its garbage collector, and the run would go on.

    Yields:
        A function that raises if there was a signal.
    """
    received: list[type[KeyboardInterrupt]] = []

    def check() -> None:
        if received:
            raise received[0]

    def note(number: int, _: object) -> None:
        check()
        received.append(Terminated if number == signal.SIGTERM else KeyboardInterrupt)

    before = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
