"""Every model: what goes in and out, what it weighs, that it learns, and that it comes back."""

import inspect

import numpy as np
import pytest
from doors import Process
from omegaconf import OmegaConf

from fmnist_lab import config
from fmnist_lab.config.functions import function_section
from fmnist_lab.errors import UserError
from fmnist_lab.models.size import size

pytestmark = pytest.mark.usefixtures("backend")

SHAPE, CLASSES = (20, 24), 7
# Small ones of each kind.
BUILT = {
    "linear": {},
    "mlp": {"hidden_units": [16, 8], "batch_norm": True, "dropout": 0.1},
    "deep_mlp": {"width": 12, "depth": 3, "batch_norm": True, "dropout": 0.1},
    "cnn": {"filters": [6, 8], "batch_norm": True, "dense_units": 16, "dropout": 0.1},
    "resnet": {"filters": [4, 8, 12], "blocks": 2, "dropout": 0.1, "flip_average": True},
    "wide_resnet": {"depth": 10, "width": 1, "dropout": 0.1, "flip_average": True},
}


def build(name: str, shape=SHAPE, classes=CLASSES, **options):
    """Build a model as a run does: from its YAML, checked."""
    values = OmegaConf.to_container(OmegaConf.load(config.conf_dir() / f"model/{name}.yaml"))
    section = function_section("model", values["_target_"])
    model = section.model_validate({**values, **options})
    return model.build(image_shape=shape, classes=classes)


def weigh(weights) -> int:
    return sum(int(np.prod(weight.shape)) for weight in weights)


def probabilities(model, images) -> np.ndarray:
    return model(images, training=False).numpy()


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (6, *SHAPE), np.uint8)


@pytest.fixture(scope="module")
def models():
    return {name: build(name, **options) for name, options in BUILT.items()}


def test_every_option_is_tried_here():
    # The user's own is in test_own.py.
    assert config.options("model") == sorted([*BUILT, "own"])


@pytest.mark.parametrize("name", BUILT)
def test_the_size_is_known_without_building_the_model(models, name):
    options = {key: value for key, value in BUILT[name].items() if key != "flip_average"}
    plain = build(name, **options)
    known = size(name, BUILT[name], SHAPE, CLASSES)
    assert known.parameters == weigh(plain.weights) == weigh(models[name].weights)
    weights = {layer.name: layer.weights[0].shape for layer in plain.layers if layer.weights}
    products = 0
    for layer in plain.layers:
        if type(layer).__name__ in ("Dense", "Conv2D"):
            places = int(np.prod(layer.output.shape[1:-1])) if len(layer.output.shape) > 2 else 1
            products += int(np.prod(weights[layer.name])) * places
    assert known.products == products


def test_the_size_of_a_model_of_ones_own_is_not_known():
    assert size("own.network", {}, SHAPE, CLASSES) is None
    assert size("wide_resnet", {"depth": "deep"}, SHAPE, CLASSES) is None


@pytest.mark.parametrize("name", BUILT)
def test_the_yaml_and_the_function_have_the_same_defaults(name):
    from fmnist_lab import models

    values = OmegaConf.to_container(OmegaConf.load(config.conf_dir() / f"model/{name}.yaml"))
    assert values.pop("_target_") == f"fmnist_lab.models.{name}"
    parameters = list(inspect.signature(getattr(models, name)).parameters.values())[2:]
    defaults = {one.name: one.default for one in parameters}
    assert values == {
        key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()
    }


@pytest.mark.parametrize("name", BUILT)
def test_raw_pixels_become_probabilities(models, pixels, name):
    model = models[name]
    assert (model.input_shape, model.output_shape) == ((None, *SHAPE), (None, CLASSES))
    assert model.inputs[0].dtype == "uint8"
    rows = probabilities(model, pixels)
    assert (rows.dtype, rows.shape) == (np.float32, (len(pixels), CLASSES))
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-5)
    assert not np.allclose(rows[0], rows[1], atol=1e-6)


@pytest.mark.parametrize("name", BUILT)
def test_the_same_names_each_time(models, name):
    """Left to itself, Keras would count up: dense, dense_1, dense_2."""
    again = build(name, **BUILT[name])
    assert [weight.path for weight in again.weights] == [
        weight.path for weight in models[name].weights
    ]
    assert len({weight.path for weight in again.weights}) == len(again.weights)


@pytest.mark.parametrize("name", BUILT)
def test_a_saved_model_comes_back_to_the_last_bit(models, pixels, name, tmp_path):
    import keras

    models[name].save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert [layer.name for layer in again.layers] == [layer.name for layer in models[name].layers]
    said = [probabilities(model, pixels).tobytes() for model in (models[name], again)]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if "resnet" in name else name for name in BUILT],
)
def test_a_few_steps_make_it_better(name):
    """On the images themselves: with random weights none of these does better than chance."""
    import keras

    from fmnist_lab.training import engines, loop

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    labels = np.arange(64, dtype=np.uint8) % CLASSES
    patterns = rng.integers(0, 256, (CLASSES, *SHAPE))
    images = (0.5 * patterns[labels] + rng.integers(0, 128, (64, *SHAPE))).astype(np.uint8)
    model = build(name, **{**BUILT[name], **({} if name == "linear" else {"dropout": 0.0})})
    epochs = list(
        loop.train(
            *(model, images, labels, keras.optimizers.Adam(0.01)),
            epochs=10,
            recipe=engines.Recipe(batch_size=16),
        )
    )
    assert epochs[-1].loss < 0.6 * epochs[0].loss
    assert epochs[-1].accuracy > epochs[0].accuracy


def test_the_published_sizes():
    assert weigh(build("linear", (28, 28), 10).weights) == 7850
    assert weigh(build("mlp", (28, 28), 10).weights) == 101_770  # the tutorial's
    assert weigh(build("cnn", (28, 28), 10).weights) < 100_000
    assert 280_000 <= weigh(build("resnet", (28, 28), 10).weights) <= 320_000


@pytest.mark.parametrize(
    ("depth", "width", "published"), [(40, 4, 8_949_210), (28, 10, 36_479_194)]
)
def test_a_wide_residual_network_has_the_published_topology(depth, width, published):
    model = build("wide_resnet", (28, 28), 10, depth=depth, width=width)
    # The published networks take three channels.
    assert weigh(model.trainable_weights) == published - 2 * 9 * 16
    convolutions = [each for each in model.layers if "_convolution" in each.name]
    assert len(convolutions) == depth  # the three projections count
    stages = [model.get_layer(f"stage_{stage}_block_1_add").output.shape for stage in (1, 2, 3)]
    assert stages == [(None, side, side, k * width) for side, k in ((28, 16), (14, 32), (7, 64))]


@pytest.mark.parametrize("name", ["resnet", "wide_resnet"])
def test_a_mirrored_look_counts_half_and_only_when_not_training(models, pixels, name):
    model = models[name]
    single = model.get_layer("flip_average").layer
    mirrored = pixels[:, :, ::-1]
    expected = (single(pixels) + single(mirrored)) / 2
    np.testing.assert_allclose(probabilities(model, pixels), expected, atol=1e-6)
    np.testing.assert_allclose(probabilities(model, mirrored), expected, atol=1e-6)
    assert np.abs(single(pixels) - single(mirrored)).max() > 1e-4


def test_a_mirrored_look_trains_the_same_weights(pixels):
    """Batch normalisation in training mode shows which images were looked at."""
    import keras

    seen = []
    for flip_average in (False, True):
        keras.utils.set_random_seed(1)
        model = build("resnet", filters=[4, 8], flip_average=flip_average)
        seen.append(model(pixels, training=True).numpy())
    np.testing.assert_array_equal(*seen)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_normalisation_goes_before_the_activation(name):
    model = build(name, **BUILT[name])
    kinds = [type(layer).__name__ for layer in model.layers]
    place = kinds.index("BatchNormalization")
    assert kinds[place - 1] in ("Dense", "Conv2D")
    assert not model.layers[place - 1].use_bias
    assert kinds[place + 1] == "Activation"


@pytest.mark.parametrize("name", ["cnn", "resnet", "wide_resnet"])
def test_half_precision_ends_in_full(name, pixels):
    import keras

    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build(name, **BUILT[name])
    finally:
        keras.config.set_dtype_policy("float32")
    assert probabilities(model, pixels).dtype == np.float32


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("wide_resnet", {"depth": 12}, "another 6n + 4. Received: 12"),
        ("cnn", {"filters": [4, 4, 4, 4, 4]}, "20x24 can be halved"),
    ],
)
def test_what_cannot_be_built_is_refused_in_words(name, options, said):
    with pytest.raises(UserError, match=r"refuses its arguments") as caught:
        build(name, **options)
    assert said in str(caught.value)


@pytest.mark.slow
def test_a_model_with_our_own_layer_loads_where_nothing_was_built(tmp_path):
    file = tmp_path / "model.keras"
    build("resnet", filters=[4, 8], flip_average=True).save(file)
    code = (
        "import sys\nfrom pathlib import Path\nfrom fmnist_lab.models import saved\n"
        "print(saved.load(Path(sys.argv[1])).name)"
    )
    process = Process(tmp_path, "-c", code, str(file))
    assert process.wait() == 0, process.err
    assert process.out == "resnet_flip_average\n"
