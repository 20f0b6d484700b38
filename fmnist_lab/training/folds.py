"""Predictions for images by models that have not seen them: cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np
from numpy.typing import NDArray

from fmnist_lab.training import engines
from fmnist_lab.training.loop import train

FOLD_STREAM = 0xF01D  # keeps the folds' random numbers apart from other uses of the same seed


def out_of_fold(
    build: Callable[[], tuple[keras.Model, keras.Optimizer]],
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    others: NDArray[np.uint8],
    *,
    folds: int,
    seeds: Sequence[int],
    epochs: int,
    batch_size: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean probabilities of every image by models that were trained without it.

    For each seed the images are dealt into folds, and a model is trained for each fold on all the
    others. No model has seen `others`, so that all of them predict these.

    Args:
        build: Makes a new model and its optimizer.
        images: The training images, uint8 (n, height, width[, 3]).
        labels: Their labels, (n,).
        others: More images, of the same shape each.
        folds: Folds, from 2 to n.
        seeds: Each decides the folds, the initial weights and the order of the images once more.
        epochs: Epochs of each model.
        batch_size: Images per step.
        on_progress: Called after each epoch with (epochs done, epochs of all models).

    Returns:
        Float32 (n, classes) and (others, classes).

    Raises:
        DivergedError: A training has diverged.
    """
    inside: NDArray[np.float32] | None = None
    outside: NDArray[np.float32] | None = None
    recipe = engines.Recipe(batch_size=batch_size)
    done, total = 0, len(seeds) * folds * epochs
    for seed in seeds:
        fold_of = np.random.default_rng([seed, FOLD_STREAM]).permutation(len(images)) % folds
        for fold in range(folds):
            out = fold_of == fold
            # A seed of its own for each model, so that none begins as another does.
            own = seed * folds + fold
            keras.utils.set_random_seed(own)
            model, optimizer = build()
            training = train(
                *(model, images[~out], labels[~out], optimizer),
                epochs=epochs,
                recipe=recipe,
                seed=own,
            )
            for _ in training:
                done += 1
                if on_progress:
                    on_progress(done, total)
            if inside is None or outside is None:
                classes = int(model.output_shape[-1])
                inside, outside = (
                    np.zeros((len(each), classes), np.float32) for each in (images, others)
                )
            held_out, new = (
                engines.predict(model, each, engines.FAST_PREDICTION_BATCH)
                for each in (images[out], others)
            )
            inside[out] += held_out / len(seeds)
            outside += new / (len(seeds) * folds)
    assert inside is not None
    assert outside is not None
    return inside, outside
