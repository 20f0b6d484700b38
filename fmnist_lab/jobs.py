"""What can be done with a config: a job leads it through the rooms, from data to tracking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from omegaconf import OmegaConf

from fmnist_lab import assembly, data, provenance, results, resume, signals, tracking
from fmnist_lab.config import Config
from fmnist_lab.errors import DivergedError, UserError

EPOCHS = "trainer.epochs"

if TYPE_CHECKING:
    from fmnist_lab.backend import Device
    from fmnist_lab.checkpoint import Keeper
    from fmnist_lab.console import Screen
    from fmnist_lab.engines import Recipe
    from fmnist_lab.sweep import Membership

# Between what a run's tag said and what is true since it goes on.
THEN = ", then "


def train(
    config: Config,
    member: Membership | None = None,
    *,
    reproduces: str = "",
    engine_before: str = "",
) -> dict[str, float]:
    """Train a model as configured, evaluate it, and keep everything.

    Args:
        config: A checked config.
        member: The job's place in a sweep, if it is in one.
        reproduces: Id of the run that this one is to be compared with, if there is one.
        engine_before: The engine that that run had, which `trainer.engine=auto` takes again if
            it is here.

    Returns:
        The last epoch's metrics.

    Raises:
        UserError: Something in the config cannot be done, and no run is left behind; or the
            training diverged, and the run is marked FAILED with the epochs before.
    """
    from fmnist_lab import backend, checkpoint, console

    store = None if config.tracking.kind == "none" else tracking.Store.locate(config.tracking.uri)
    screen = console.Screen()
    dataset = assembly.load_data(config)
    earlier = _earlier(store, config, member, dataset.digest)
    if isinstance(earlier, resume.Answered):
        screen.answered(earlier)
        return dict(earlier.metrics)
    device = backend.start(config.trainer.threads, lean=True)

    import keras

    from fmnist_lab import memory, training
    from fmnist_lab.callbacks import check as check_callbacks

    memory.check(
        lambda: assembly.built(config, dataset),
        assembly.build_optimizer(config, len(dataset.train_images)),
    )
    keras.utils.set_random_seed(config.seed)
    model = assembly.build_model(config, dataset)
    optimizer = assembly.build_optimizer(config, len(dataset.train_images))
    callbacks = [callback.build() for callback in config.callbacks.values()]
    validation = _validation(dataset)
    check_callbacks(callbacks, optimizer, validation is not None)
    engine_before = engine_before or (earlier.engine.split(THEN)[-1] if earlier else "")
    recipe = assembly.build_recipe(config, model, optimizer, engine_before)
    epochs, images, labels = config.trainer.epochs, dataset.train_images, dataset.train_labels

    screen.heading(config, dataset, device, model, recipe.engine)
    tags = {**_identity(config, dataset, device, member), "job": "train", "engine": recipe.engine}
    if reproduces:
        tags["reproduces"] = reproduces
    with (
        signals.noted() as check_signals,
        tracking.start(
            store,
            config.tracking.experiment,
            assembly.run_name(config, member),
            tags,
            scratch=earlier.scratch if earlier else None,
            run_id=earlier.run_id if earlier else "",
        ) as run,
    ):
        run.params(assembly.params(config))
        run.text(OmegaConf.to_yaml(OmegaConf.create(config.to_dict())), "config.yaml")
        run.dataset(images, dataset.name, dataset.digest, dataset.source)
        results.draw_data(run, dataset)
        folder = run.scratch.checkpoints if run.scratch else None
        keeper = checkpoint.Keeper(folder, config.checkpoint.every, model, optimizer, callbacks)
        shared = _shared_checkpoints(store, config, member)
        if keeper.resume([each for each in (folder, shared) if each], epochs):
            before = _before(earlier, recipe, device)
            screen.resumed(len(keeper.history), epochs, before)
            run.tags({name: f"{was}{THEN}{tags[name]}" for name, was in before.items()})
            for number, metrics in enumerate(keeper.history, 1):
                run.metrics(metrics, step=number)
        elif earlier:
            # It begins anew, and what was true of the run may be other now.
            run.tags(tags)
        over = keeper.stopped or len(keeper.history) == epochs
        if not over:
            training.compile_ahead(model, images, labels, optimizer, recipe)
        check_signals()
        # A server may be out of reach; our own files have been tried already, so need no wait.
        if run.is_remote:
            run.wait_until_open()
        with (
            _saved_if_interrupted(keeper, screen, resumable=store is not None and not reproduces),
            screen.training(epochs, len(images), len(keeper.history)) as display,
        ):

            def advance(epoch: int, seen: int) -> None:
                check_signals()
                display.advance(epoch, seen)

            trained = training.train(
                model,
                images,
                labels,
                optimizer,
                epochs=epochs,
                recipe=recipe,
                seed=config.seed,
                validation=validation,
                callbacks=callbacks,
                first_epoch=len(keeper.history) + 1,
                on_begin=keeper.begin,
                on_progress=advance,
            )
            for epoch in () if over else trained:
                measured: dict[str, float] = {}
                if epoch.last or epoch.number % config.trainer.evaluate_every == 0:
                    probabilities = results.predict(model, dataset)
                    measured = results.metrics(probabilities, dataset)
                metrics = {
                    **measured,
                    "accuracy/fit": epoch.accuracy,
                    "loss/fit": epoch.loss,
                    "learning_rate": epoch.learning_rate,
                    "images_per_second": epoch.images / epoch.seconds,
                }
                run.metrics(metrics, step=epoch.number)
                keeper.after(metrics, last=epoch.last, epochs=epochs)
                display.finished(epoch, metrics)
        if keeper.stopped:
            screen.stopped(len(keeper.history))
        if over:
            probabilities = results.predict(model, dataset)
        if shared and keeper.latest:
            checkpoint.save(keeper.latest, shared, keep=None)
        results.keep_results(run, probabilities["test"], dataset)
        results.draw_curves(run, keeper.history)
        run.model(model, dataset.class_names)
        check_signals()
    if store is not None:
        resume.supersede(store, config)
    screen.result(keeper.history[-1], keeper.history, run)
    return keeper.history[-1]


def evaluate(config: Config, member: Membership | None = None) -> dict[str, float]:
    """Reload a logged model, evaluate it, and keep that as a run which points at the model.

    Args:
        config: A checked config.
        member: The job's place in a sweep, if it is in one.

    Returns:
        The metrics, of the same names as after training.

    Raises:
        UserError: There is no such model, or it does not classify this data set.
    """
    from fmnist_lab import backend

    assert config.model_uri is not None
    kept = config.tracking.kind != "none"
    store = tracking.Store.locate(config.tracking.uri, for_writing=kept)

    from fmnist_lab import console

    screen = console.Screen()
    dataset = assembly.load_data(config)
    earlier = _earlier(store if kept else None, config, member, dataset.digest)
    if isinstance(earlier, resume.Answered):
        screen.answered(earlier)
        return dict(earlier.metrics)
    device = backend.start(config.trainer.threads, lean=True)
    model, _ = tracking.load_model(config.model_uri, store)
    assembly.check_model(model, dataset, config.model_uri)
    screen.heading(config, dataset, device, model, engine=None)
    tags = {
        **_identity(config, dataset, device, member),
        "job": "evaluate",
        "model_uri": config.model_uri,
        **tracking.origin(config.model_uri),
    }
    name = config.name or f"evaluate {config.model_uri}"
    with (
        signals.noted() as check_signals,
        tracking.start(
            store if kept else None,
            config.tracking.experiment,
            name,
            tags,
            scratch=earlier.scratch if earlier else None,
            run_id=earlier.run_id if earlier else "",
        ) as run,
    ):
        run.params({"model_uri": config.model_uri})
        run.dataset(dataset.train_images, dataset.name, dataset.digest, dataset.source)
        probabilities = results.predict(model, dataset)
        metrics = results.metrics(probabilities, dataset)
        run.metrics(metrics, step=0)
        results.keep_results(run, probabilities["test"], dataset)
        check_signals()
    screen.result(metrics, [], run)
    return metrics


JOBS: dict[str, Callable[[Config, Membership | None], dict[str, float]]] = {
    "train": train,
    "evaluate": evaluate,
}


def _earlier(
    store: tracking.Store | None, config: Config, member: Membership | None, digest: str
) -> resume.Answered | resume.Interrupted | None:
    if store is None or not (config.resume or member):
        return None
    return resume.look_up(store, config, member, digest)


@contextmanager
def _saved_if_interrupted(keeper: Keeper, screen: Screen, resumable: bool) -> Iterator[None]:
    """Save the last finished epoch, and say how to go on from it, if a training is cut short."""
    try:
        yield
    except DivergedError:
        raise
    except BaseException as error:
        # If it cannot be saved either, what has come before says more.
        with suppress(UserError):
            keeper.save()
        if resumable and isinstance(error, KeyboardInterrupt):
            screen.interrupted(keeper.saved)
        raise


def _shared_checkpoints(
    store: tracking.Store | None, config: Config, member: Membership | None
) -> Path | None:
    """Return the folder where a sweep's jobs leave their last state for longer ones to go on from.

    A job whose number of epochs alone tells it from a longer one is a prefix of that, bit for
    bit, so that a sweep over epochs trains each setting only once.
    """
    identity = config.prefix_identity()
    if store is None or member is None or identity is None or EPOCHS not in member.axes:
        return None
    folder = store.shared / member.sweep / identity
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _before(earlier: resume.Interrupted | None, recipe: Recipe, device: Device) -> dict[str, str]:
    """Return what decides the last bits, is other now, and was what in an interrupted run."""
    if earlier is None:
        return {}
    now = {"engine": recipe.engine, "threads": str(device.threads)}
    then = {"engine": earlier.engine, "threads": earlier.threads}
    if recipe.engine == then["engine"] == "native":
        # Its bits are the same for any number of threads.
        del then["threads"]
    return {name: was for name, was in then.items() if was.split(THEN)[-1] not in ("", now[name])}


def _identity(
    config: Config, dataset: data.Dataset, device: Device, member: Membership | None
) -> dict[str, str]:
    """Return the tags that say what exactly ran where."""
    return {
        **provenance.tags(),
        "config.hash": config.identity(),
        "data.digest": dataset.digest,
        "device": device.name,
        "threads": str(device.threads),
        **(member.tags() if member else {}),
    }


def _validation(dataset: data.Dataset) -> tuple[np.ndarray, np.ndarray] | None:
    if not len(dataset.validation_images):
        return None
    return dataset.validation_images, dataset.validation_labels
