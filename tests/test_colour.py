"""Images in colour, n x height x width x 3, wherever grey ones may be."""

import keras
import numpy as np
import pytest
from idx_files import idx_bytes, write
from own_files import FILES
from pictures import make_predictions
from PIL import Image

from fmnist_lab import data, figures, models, predict, run
from fmnist_lab.data import idx
from fmnist_lab.errors import UserError
from fmnist_lab.training import loop

CLASSES = ("red", "green", "blue")


def coloured(count: int, side: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Dark images, each with a square of its class' colour, as bright as those of the others."""
    rng = np.random.default_rng(count)
    labels = rng.integers(0, 3, count).astype(np.uint8)
    images = rng.integers(0, 60, (count, side, side, 3)).astype(np.uint8)
    images[np.arange(count), 3:9, 3:9, labels] = 255
    return images, labels


def arrays_of(train: np.ndarray, test: np.ndarray, **more: object) -> dict[str, np.ndarray]:
    labels = {"train_labels": np.zeros(len(train), np.uint8)}
    labels["test_labels"] = np.zeros(len(test), np.uint8)
    return {"train_images": train, "test_images": test} | labels | more


def load(tmp_path, **arrays: np.ndarray) -> data.Dataset:
    described = idx.IdxDataset(
        "own",
        *(idx.IdxFile(name, None) for name in FILES.values()),
        class_names=CLASSES,
        image_shape=None,
    )
    files = {FILES[name]: idx_bytes(array) for name, array in arrays.items()}
    return data.load(write(tmp_path, files), dataset=described)


def test_colour_is_loaded_as_it_is_and_an_axis_of_one_grey_channel_is_none(tmp_path):
    images = coloured(6)[0]
    loaded = load(tmp_path / "colour", **arrays_of(images, images[:2]))
    assert np.array_equal(loaded.train_images, images)
    assert "12 x 12 pixels in colour" in repr(loaded)
    grey = load(tmp_path / "grey", **arrays_of(images[..., :1], images[:2, ..., :1]))
    assert grey.test_images.shape == (2, 12, 12)


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ((6, 3, 8, 8), (2, 3, 8, 8), "an array of 6 x 3 x 8 x 8, expected images, n x height x "),
        (
            (6, 8, 8, 4),
            (2, 8, 8, 4),
            "6 x 8 x 8 x 4, expected images, .* n x height x width x 3 in",
        ),
        ((6, 8, 8, 3), (2, 8, 8), "2 x 8 x 8, expected images of 8 x 8 x 3"),
    ],
)
def test_other_arrays_are_refused_with_what_is_taken(tmp_path, train, test, said):
    arrays = arrays_of(np.zeros(train, np.uint8), np.zeros(test, np.uint8))
    with pytest.raises(UserError, match=said) as refused:
        load(tmp_path, **arrays)
    assert "original files" not in str(refused.value)
    assert str(refused.value).endswith(idx.OWN_MEND)


def test_a_label_beyond_the_classes_says_how_many_there_are(tmp_path):
    arrays = arrays_of(*[np.zeros((4, 2, 2), np.uint8)] * 2)
    with pytest.raises(UserError, match="label 11, expected 0 to 2") as refused:
        load(tmp_path, **arrays | {"test_labels": np.array([0, 11, 1, 2], np.uint8)})
    assert "there are 12 classes or more: set data.class_names to their number" in str(
        refused.value
    )


@pytest.mark.parametrize(
    "build",
    [
        models.linear,
        models.mlp,
        models.cnn,
        lambda *image: models.resnet(*image, filters=(4, 8), flip_average=True),
        lambda *image: models.wide_resnet(*image, depth=10, width=1),
    ],
)
def test_every_model_takes_colour(build):
    model = build((16, 12, 3), 5)
    assert model.input_shape == (None, 16, 12, 3)
    assert model.output_shape == (None, 5)


@pytest.mark.parametrize("build", [models.mlp, lambda *image: models.cnn(*image, filters=(4, 6))])
def test_engines_agree_on_colour(backend, build):
    images, labels = coloured(40)
    left = []
    for engine in ("native", "graph"):
        keras.utils.set_random_seed(0)
        model = build(images.shape[1:], 3)
        (epoch,) = loop.train(
            model,
            images,
            labels,
            keras.optimizers.Adam(0.01),
            epochs=1,
            recipe=loop.Recipe(batch_size=16, engine=engine),
        )
        left.append([epoch.loss, *(weight.numpy() for weight in model.trainable_variables)])
    for ours, theirs in zip(*left, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-4)


def colours_of(figure) -> set[tuple[int, ...]]:
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    return {tuple(map(int, colour)) for colour in np.unique(pixels.reshape(-1, 3), axis=0)}


def test_figures_show_colours_as_they_are():
    images, labels = coloured(4)
    probabilities, _ = make_predictions(4, classes=3)
    some = images, probabilities, labels, CLASSES
    seen = {tuple(map(int, colour)) for colour in images[:1].reshape(-1, 3)}
    for figure in (
        figures.first_image(images[0], "red"),
        figures.image_grid(images, labels, CLASSES),
        figures.single_prediction(images[0], probabilities[0], labels[0], CLASSES),
        figures.prediction_grid(*some),
        figures.confident_mistakes(*some),
    ):
        assert seen <= colours_of(figure)


@pytest.mark.slow
def test_colours_are_trained_on_kept_and_predicted(backend, hydra_here, capsys):
    arrays = dict(zip(("train_images", "train_labels"), coloured(600), strict=True))
    arrays |= dict(zip(("test_images", "test_labels"), coloured(100), strict=True))
    write(hydra_here / "own", {FILES[name]: idx_bytes(each) for name, each in arrays.items()})
    names = f"data.class_names=[{','.join(CLASSES)}]"
    run.main("data=idx", "data.dir=own", "data.name=own", names, "trainer.epochs=3")
    classifier = predict.load()
    images, labels = arrays["test_images"], arrays["test_labels"]
    assert (classifier.predict(images).argmax(axis=1) == labels).mean() > 0.9
    files = []
    for label in range(3):
        files.append(hydra_here / f"{CLASSES[label]}.png")
        Image.fromarray(images[labels == label][0]).save(files[-1])
    capsys.readouterr()
    predict.predict(*files, plot=hydra_here / "plot.png")
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[-2] for row in rows if ".png" in row] == list(CLASSES)
