"""Training a Keras model of one's own, which no config describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fmnist_lab import tracking
from fmnist_lab.api.record import Run
from fmnist_lab.errors import UserError, raised
from fmnist_lab.system import process

if TYPE_CHECKING:
    import keras

    from fmnist_lab.data import Dataset


def train(
    model: keras.Model,
    data: Dataset | Sequence[Any],
    optimizer: keras.Optimizer | str = "adam",
    *,
    epochs: int = 5,
    batch_size: int = 32,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    engine: str = "auto",
    name: str | None = None,
    keep: bool = True,
    store: str | None = None,
) -> Run:
    """Train a Keras model as `fmnist_lab.run` trains its own, and keep everything about it.

    The same loop trains it, which takes a fraction of `fit`'s time, and the same measurements are
    made after each epoch. The model is trained in place and need not be compiled; its loss is the
    cross-entropy of the classes. Whoever builds it draws its initial weights: to have the same ones
    again, call `keras.utils.set_random_seed` before that.

    Args:
        model: A Sequential or functional model from images to probabilities (n, classes).
        data: What `load_data` returns; or ((training images, labels), (test images, labels)) as
            Keras' data sets have them, in the scale that the model takes.
        optimizer: A Keras optimizer, or its name.
        epochs: How often the model sees all training images.
        batch_size: Images per step.
        seed: Decides the order of the images.
        class_names: One name per class; None: those of `load_data`, or numbers for arrays.
        callbacks: Keras callbacks that act on epochs.
        engine: auto, native, xla or graph; docs/engines.md has their speeds.
        name: The run's name; None: the model's.
        keep: Whether to keep a run in the store.
        store: MLflow's tracking URI; None: $MLFLOW_TRACKING_URI, or mlflow.db in this folder.

    Returns:
        The run, with the trained model in memory.

    Raises:
        UserError: Model, data and optimizer do not fit together, the training diverged, or the
            run cannot be kept.
    """
    from fmnist_lab.jobs import own

    if not getattr(model, "built", False) or not hasattr(model, "input_shape"):
        raise UserError(
            f"model: received {type(model).__name__}, expected a Keras model that is built, such "
            "as keras.Sequential([keras.Input((28, 28)), …])"
        )
    with process.left_as_found(), raised():
        place = tracking.Store.locate(store) if keep else None
        outcome = own.run(
            model,
            _dataset(model, data, class_names),
            optimizer,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            callbacks=callbacks,
            engine=engine,
            name=name or model.name,
            store=place,
        )
    return Run.of_outcome(outcome)


def _dataset(
    model: keras.Model, given: Dataset | Sequence[Any], class_names: Sequence[str] | None
) -> Dataset:
    """Return data as a data set whose images have the axes that a model takes.

    Raises:
        UserError: The data are none.
    """
    from dataclasses import replace

    from fmnist_lab import data

    if isinstance(given, data.Dataset):
        dataset = replace(given, class_names=tuple(class_names)) if class_names else given
    else:
        try:
            train, test = given
            (train_images, train_labels), (test_images, test_labels) = train, test
        except (TypeError, ValueError):
            raise UserError(
                f"data: received {type(given).__name__}, expected what load_data returns, or "
                "((training images, labels), (test images, labels))"
            ) from None
        dataset = data.of_arrays(
            train_images, train_labels, test_images, test_labels, class_names=class_names
        )
    if tuple(model.input_shape[1:]) == (*dataset.train_images.shape[1:], 1):
        # As in `fit`, a single channel may have an axis or none.
        names = ("train_images", "validation_images", "test_images")
        return replace(dataset, **{name: getattr(dataset, name)[..., None] for name in names})
    return dataset
