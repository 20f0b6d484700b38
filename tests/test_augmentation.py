"""Random changes to images: what may come out, how often, and that it can be repeated."""

import numpy as np
import pytest

from fmnist_lab.errors import UserError

COUNT = 400


@pytest.fixture(scope="module", autouse=True)
def _started(backend):
    """TensorFlow runs from here on."""


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    # No black pixel, so that whatever is black afterwards was made so.
    return np.random.default_rng(3).integers(1, 256, (COUNT, 9, 7), np.uint8)


def augmented(images, seed=(1, 2), engine="graph", **options):
    import tensorflow as tf

    from fmnist_lab.training.augmentation import Augmentation

    augment = tf.function(Augmentation(**options), jit_compile=engine == "xla")
    return augment(tf.constant(images), tf.constant(seed, tf.int32)).numpy()


def test_nothing_chosen_changes_nothing(images):
    np.testing.assert_array_equal(augmented(images), images)


def test_half_of_the_images_are_mirrored_and_no_other_is_touched(images):
    changed = augmented(images, flip=True)
    same = (changed == images).all(axis=(1, 2))
    mirrored = (changed == images[:, :, ::-1]).all(axis=(1, 2))
    assert (same ^ mirrored).all()
    # Five standard deviations of 400 fair coins.
    assert abs(mirrored.sum() - COUNT / 2) < 50


def test_images_move_by_up_to_so_many_pixels_over_black(images):
    changed = augmented(images, shift=2)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    moves = {(row, column): 0 for row in range(5) for column in range(5)}
    for before, after in zip(padded, changed, strict=True):
        found = [
            (row, column)
            for row, column in moves
            if (before[row : row + 9, column : column + 7] == after).all()
        ]
        assert len(found) == 1
        moves[found[0]] += 1
    assert min(moves.values()) > 0


def test_rectangles_are_blackened_in_the_share_of_images(images):
    changed = augmented(images, erase=0.25)
    kept = changed == images
    assert (changed[~kept] == 0).all()
    touched = np.flatnonzero(~kept.all(axis=(1, 2)))
    assert abs(len(touched) - COUNT / 4) < 45
    for index in touched:
        rows, columns = np.nonzero(~kept[index])
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert area == len(rows)
        assert area <= 0.5 * 9 * 7


def test_the_channels_of_an_image_are_changed_together(images):
    options = {"flip": True, "shift": 2, "erase": 0.5}
    coloured = np.stack([images, images, images], axis=-1)
    changed = augmented(coloured, **options)
    np.testing.assert_array_equal(changed, augmented(images, **options)[..., None].repeat(3, -1))


def test_what_is_no_image_is_refused(images):
    with pytest.raises(UserError, match=r"received images of shape \(63,\), expected \(height"):
        augmented(images.reshape(COUNT, -1), flip=True)


@pytest.mark.parametrize("engine", [pytest.param("xla", marks=pytest.mark.slow), "graph"])
def test_a_training_sees_the_changed_images(images, engine):
    """Keras' own steps, on images that were changed beforehand by each step's draw."""
    import keras

    from fmnist_lab import models
    from fmnist_lab.training import engines, loop
    from fmnist_lab.training.augmentation import Augmentation

    labels, options, seed = np.arange(COUNT) % 4, {"flip": True, "shift": 1, "erase": 0.5}, 3

    def model():
        keras.utils.set_random_seed(0)
        return models.mlp((9, 7), 4, hidden_units=8)

    ours, oracle, start = model(), model(), model()
    recipe = engines.Recipe(
        batch_size=100, engine=engine, augmentation=Augmentation(flip=True, shift=1, erase=0.5)
    )
    sgd = keras.optimizers.SGD(0.05)
    list(loop.train(ours, images, labels, sgd, epochs=1, recipe=recipe, seed=seed))
    oracle.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
    order = np.random.default_rng([seed, 1]).permutation(COUNT)
    for step in range(4):
        batch = order[100 * step : 100 * (step + 1)]
        # The engine decides the draws.
        changed = augmented(images[batch], seed=(seed, step), engine=engine, **options)
        oracle.train_on_batch(changed, labels[batch])
    for mine, theirs, before in zip(ours.weights, oracle.weights, start.weights, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=0, atol=2e-5)
        assert np.abs(mine.numpy() - before.numpy()).max() > 1e-3


@pytest.mark.parametrize("engine", [pytest.param("xla", marks=pytest.mark.slow), "graph"])
def test_the_draws_depend_on_both_parts_of_the_seed_alone(images, engine):
    options = {"flip": True, "shift": 1, "erase": 0.5, "engine": engine}
    once = augmented(images, **options)
    np.testing.assert_array_equal(augmented(images, **options), once)
    assert (augmented(images, seed=(1, 3), **options) != once).any()
    assert (augmented(images, seed=(2, 2), **options) != once).any()


@pytest.mark.slow
def test_an_augmented_training_can_be_repeated_and_continued(images):
    import keras

    from fmnist_lab import models
    from fmnist_lab.training import engines, loop
    from fmnist_lab.training.augmentation import Augmentation

    labels = np.arange(COUNT) % 4
    recipe = engines.Recipe(augmentation=Augmentation(flip=True, shift=1, erase=0.5))

    def trained(*parts):
        keras.utils.set_random_seed(0)
        model, optimizer = models.mlp((9, 7), 4, hidden_units=8), keras.optimizers.Adam()
        for first, last in parts:
            list(
                loop.train(
                    model, images, labels, optimizer, epochs=last, first_epoch=first, recipe=recipe
                )
            )
        return np.concatenate([weight.numpy().ravel() for weight in model.weights])

    whole = trained((1, 4))
    np.testing.assert_array_equal(trained((1, 4)), whole)
    np.testing.assert_array_equal(trained((1, 2), (3, 4)), whole)
