"""Which engine a training gets, and what the native one promises beyond the others."""

import functools
import itertools
import platform
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference

from fmnist_lab.errors import UserError

SHAPE, CLASSES, COUNT = (9, 7), 5, 230


@pytest.fixture(scope="module", autouse=True)
def _started(backend):
    """TensorFlow runs from here on; importing it before would cost every test run its start."""


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (COUNT, *SHAPE), np.uint8)


@pytest.fixture(scope="module")
def labels(images) -> np.ndarray:
    return images[:, 3, :CLASSES].argmax(axis=1).astype(np.uint8)


def mlp(*hidden_units: int, **options):
    import keras

    from fmnist_lab import models

    keras.utils.set_random_seed(3)
    return models.mlp(SHAPE, CLASSES, hidden_units=hidden_units, **options)


def cnn(*filters: int, **options):
    import keras

    from fmnist_lab import models

    keras.utils.set_random_seed(3)
    return models.cnn(SHAPE, CLASSES, filters=filters, **options)


def adam(**options):
    import keras

    return keras.optimizers.Adam(0.003, **options)


def trained(model, images, labels, optimizer=None, *, epochs=2, **recipe):
    """Train; return the epochs' figures, and the weights and the optimizer's memory as bytes."""
    from fmnist_lab.training import engines, loop

    optimizer = optimizer or adam()
    figures = [
        (epoch.loss, epoch.accuracy)
        for epoch in loop.train(
            *(model, images, labels, optimizer), epochs=epochs, recipe=engines.Recipe(**recipe)
        )
    ]
    return figures, [each.numpy().tobytes() for each in (*model.weights, *optimizer.variables)]


# The choice


def choice(model, optimizer=None, **recipe) -> str:
    from fmnist_lab.training import engines

    return engines.choose(model, optimizer or adam(), engines.Recipe(**recipe))


def check_left_to(engine: str, models: dict) -> None:
    """Check that `auto` takes an engine for models, and the native one refuses them in words."""
    for words, model in models.items():
        assert choice(model) == engine
        with pytest.raises(UserError, match=words) as caught:
            choice(model, engine="native")
        assert "trainer.engine=auto" in str(caught.value)


def test_plain_networks_take_the_native_engine_and_other_convolutions_the_graph():
    import keras

    assert choice(mlp()) == choice(mlp(8, 6)) == "native"
    assert choice(mlp(8), keras.optimizers.SGD(0.1, momentum=0.9)) == "native"
    assert choice(mlp(8), engine="graph") == "graph"
    assert choice(cnn(2)) == choice(cnn(2, 3, dense_units=4)) == "native"
    assert choice(cnn(2, batch_norm=True)) == choice(cnn(2, dropout=0.5)) == "graph"


def test_a_gpu_takes_everything_by_xla(monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    assert choice(mlp(8)) == choice(cnn(2)) == choice(cnn(2, batch_norm=True)) == "xla"
    with pytest.raises(UserError, match="received a machine with a GPU"):
        choice(mlp(8), engine="native")


def unusual_models():
    import keras
    from keras import layers

    def stack(*middle, head=None, activation="softmax", **options):
        head = head or [layers.Rescaling(1 / 255, name="rescale"), layers.Flatten(name="flatten")]
        end = layers.Dense(CLASSES, activation=activation, name="end", **options)
        return keras.Sequential([keras.Input(SHAPE, dtype="uint8"), *head, *middle, end])

    class Own(layers.Dense):
        pass

    inputs = keras.Input(SHAPE, dtype="uint8")
    hidden = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    branched = keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(hidden))
    frozen = stack(layers.Dense(4, activation="relu", name="frozen"))
    frozen.layers[2].trainable = False
    return {
        r"received dropout_1 \(Dropout\) as layer 4, not Dense": mlp(8, dropout=0.5),
        r"received norm_1 \(BatchNormalization\) as layer 4": mlp(8, batch_norm=True),
        "received the layer hidden_1 with another activation": mlp(8, activation="tanh"),
        r"received own \(Own\) as layer 3": stack(Own(4, activation="relu", name="own")),
        "received the layer end with another activation": stack(activation="sigmoid"),
        "received the layer end without a kernel and a bias": stack(use_bias=False),
        "received the layer end with kernel_regularizer": stack(kernel_regularizer="l2"),
        "received the layer end with bias_constraint": stack(bias_constraint="non_neg"),
        "received the layer frozen without a kernel and a bias to train": frozen,
        "received a Functional model": branched,
        r"received flat \(Flatten\) as layer 1, not Rescaling": stack(
            head=[layers.Flatten(name="flat"), layers.Dense(3, activation="relu", name="x")]
        ),
        "received a Rescaling by other than two numbers": stack(
            head=[layers.Rescaling([0.1] * SHAPE[1]), layers.Flatten()]
        ),
        "received a Flatten of channels_first": stack(
            head=[layers.Rescaling(1 / 255), layers.Flatten(data_format="channels_first")]
        ),
        "received a model without a dense layer": keras.Sequential(
            [keras.Input((CLASSES,), dtype="uint8"), layers.Rescaling(1 / 255), layers.Flatten()]
        ),
        "received the layer end in mixed_bfloat16": stack(dtype="mixed_bfloat16"),
    }


@pytest.mark.slow
def test_what_the_native_engine_cannot_train_is_left_to_xla_or_refused_in_words():
    check_left_to("xla", unusual_models())


def convolutional(*blocks, shape=(*SHAPE, 1)):
    """A network of one's own: some layers between the channel dimension and a softmax."""
    import keras
    from keras import layers

    head = [keras.Input(shape, dtype="uint8"), layers.Rescaling(1 / 255)]
    last = layers.Dense(CLASSES, activation="softmax", name="end", dtype="float32")
    end = [layers.Flatten(), last]
    return keras.Sequential([*head, *blocks, *end])


def unusual_convolutions():
    from keras import layers

    def one(size=3, padding="same", activation="relu", **options):
        options = {"padding": padding, "activation": activation, "name": "odd", **options}
        return layers.Conv2D(4, size, **options)

    def pooled(size=2, **options):
        return convolutional(one(), layers.MaxPooling2D(size, name="pool", **options))

    frozen = convolutional(one())
    frozen.get_layer("odd").trainable = False
    return {
        r"received norm_1 \(BatchNormalization\) as layer 4, not Act": cnn(2, batch_norm=True),
        r"received dropout \(Dropout\) as layer 7, not Dense": cnn(2, dropout=0.5),
        r"received after \(MaxPooling2D\) as layer 3, not Activation": convolutional(
            *(one(activation=None), layers.MaxPooling2D(name="after"), layers.Activation("relu"))
        ),
        r"received average \(AveragePooling2D\) as layer 3, not Flatten": convolutional(
            one(), layers.AveragePooling2D(2, name="average")
        ),
        "received the layer odd with a kernel of 2x2": convolutional(one(2)),
        "received the layer odd with a kernel of 3x1": convolutional(one((3, 1))),
        "received the layer odd with padding=valid": convolutional(one(padding="valid")),
        r"received the layer odd with strides=\(2, 2\)": convolutional(one(strides=2)),
        r"received the layer odd with dilation_rate=\(2, 2\)": convolutional(one(dilation_rate=2)),
        "received the layer odd with groups=2": convolutional(one(groups=2), shape=(*SHAPE, 2)),
        "received the layer odd with another activation": convolutional(one(activation="tanh")),
        "received the layer odd without a kernel and a bias": convolutional(one(use_bias=False)),
        "received the layer odd without a kernel and a bias to train": frozen,
        "received the layer odd with kernel_regularizer": convolutional(
            one(kernel_regularizer="l2")
        ),
        "received the layer after with activity_regularizer": convolutional(
            *(
                one(activation=None),
                layers.Activation("relu", activity_regularizer="l2", name="after"),
            )
        ),
        "received the layer late with another activation": convolutional(
            one(activation=None, name="late"), layers.Activation("tanh")
        ),
        "received a MaxPooling2D of channels_first": pooled(data_format="channels_first"),
        "received the layer pool with windows of 16x16": convolutional(
            *(one(), layers.MaxPooling2D(16, name="pool")), shape=(16, 16, 1)
        ),
        "received the layer pool with windows that overlap": pooled(2, strides=1),
        "received the layer pool with padding=same": pooled(2, padding="same"),
        "received the layer pool with windows of 1x2": pooled((1, 2)),
    }


def test_convolutions_that_it_cannot_train_are_left_to_the_graph_or_refused_in_words():
    check_left_to("graph", unusual_convolutions())


@pytest.mark.parametrize(
    ("words", "name", "options"),
    [
        ("the optimizer RMSprop", "RMSprop", {}),
        ("an optimizer with clipnorm", "Adam", {"clipnorm": 1.0}),
        ("an optimizer with global_clipnorm", "SGD", {"global_clipnorm": 1.0}),
        ("an optimizer with clipvalue", "AdamW", {"clipvalue": 1.0}),
        ("an optimizer with use_ema", "Adam", {"use_ema": True}),
        ("an epsilon of 0", "Adam", {"epsilon": 0.0}),
        ("an optimizer with amsgrad", "Adam", {"amsgrad": True}),
        ("gradient_accumulation_steps", "Adam", {"gradient_accumulation_steps": 2}),
    ],
)
def test_other_optimizers_are_left_to_xla_or_refused_in_words(words, name, options):
    import keras

    optimizer = getattr(keras.optimizers, name)(**options)
    assert choice(mlp(8), optimizer) == "xla"
    with pytest.raises(UserError, match=words):
        choice(mlp(8), optimizer, engine="native")


def test_biases_that_do_not_decay_are_left_to_xla():
    import keras

    optimizer = keras.optimizers.AdamW()
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    assert choice(mlp(8), optimizer) == "xla"


def test_augmentation_and_other_losses_are_left_to_xla():
    import keras

    from fmnist_lab.training.augmentation import Augmentation

    assert choice(mlp(8), augmentation=Augmentation(flip=True)) == "xla"
    assert choice(mlp(8), loss=keras.losses.SparseCategoricalCrossentropy()) == "xla"


# The native engine


def slow_too(*values: object) -> list:
    """Values for the slow suite: TensorFlow takes a second or two to compile each."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


SLOW_BATCHES = slow_too(1, 32, 500)


@pytest.mark.parametrize(
    "hidden_units", [(), (33, 64, 7), *slow_too((1,), (16,), (40, 24), (130,))]
)
@pytest.mark.parametrize("batch_size", [7, *SLOW_BATCHES])
def test_it_agrees_with_xla_for_any_shape(images, labels, hidden_units, batch_size):
    """Widths and batches that fill its tiles and panels, and such that do not."""
    ours, theirs = mlp(*hidden_units), mlp(*hidden_units)
    found, _ = trained(ours, images, labels, batch_size=batch_size, engine="native")
    expected, _ = trained(theirs, images, labels, batch_size=batch_size, engine="xla")
    for mine, other in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=0, atol=2e-4)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("network", ["softmax", "dense", "convolution", "convolutions"])
@pytest.mark.parametrize(
    ("name", "options", "smoothing"),
    [
        ("SGD", {}, 0.0),
        ("SGD", {"weight_decay": 0.1}, 0.3),
        ("SGD", {"momentum": 0.9}, 0.0),
        ("SGD", {"momentum": 0.8, "nesterov": True}, 0.1),
        ("Adam", {"beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-3}, 0.0),
        ("AdamW", {"beta_1": 0.9, "beta_2": 0.9, "epsilon": 1e-3, "weight_decay": 0.1}, 0.2),
    ],
)
def test_two_epochs_are_what_the_formulas_say(network, name, options, smoothing):
    """Another rate each step, and a smaller last batch; compared with float64, without a trick."""
    import keras
    from keras import layers

    from fmnist_lab.training import engines

    keras.utils.set_random_seed(5)
    conv = {"padding": "same", "activation": "relu"}
    blocks = {
        "softmax": [],
        "dense": [],
        "convolution": [layers.Conv2D(3, 3, **conv)],
        "convolutions": [
            *(layers.Conv2D(4, 5, **conv), layers.MaxPooling2D(2)),
            *(layers.Conv2D(18, 3, **conv), layers.Conv2D(2, 1, **conv), layers.MaxPooling2D(2)),
        ],
    }[network]
    pools = {"convolution": [1], "convolutions": [2, 1, 2]}.get(network, [])
    hidden = [layers.Dense(n, activation="relu") for n in ((7, 35) if network == "dense" else ())]
    model = keras.Sequential(
        [
            *(keras.Input((5, 6, 2), dtype="uint8"), layers.Rescaling(1 / 255, -0.3), *blocks),
            *(layers.Flatten(), *hidden, layers.Dense(CLASSES, activation="softmax")),
        ]
    )
    optimizer = getattr(keras.optimizers, name)(**options)
    weights = [each.numpy() for each in model.trainable_variables]
    expected = [
        reference.Layer(kernel, bias, pool)
        for kernel, bias, pool in itertools.zip_longest(
            *(weights[::2], weights[1::2], pools), fillvalue=1
        )
    ]
    random = np.random.default_rng(6)
    images = random.integers(0, 256, (13, 5, 6, 2), np.uint8)
    labels = random.integers(0, CLASSES, 13)
    rates = np.linspace(0.05, 0.02, 4, dtype=np.float32)
    recipe = engines.Recipe(batch_size=4, engine="native", label_smoothing=smoothing)
    trainer = engines.trainer(model, optimizer, recipe)
    held = trainer.hold(images, labels)
    trainer.load(model, optimizer)
    for epoch in range(2):
        order = random.permutation(13)
        loss, correct = reference.train(
            *(expected, images / 255 - 0.3, labels, order, 4, rates, options),
            smoothing=smoothing,
            steps_before=4 * epoch,
        )
        found = trainer.run(held, order, rates, 0, None)
        assert found == (pytest.approx(loss, rel=1e-5), correct)
    trainer.store(model, optimizer)
    found = [each.numpy() for each in (*model.trainable_variables, *optimizer.variables[2:])]
    variables = [each for layer in expected for each in (layer.kernel, layer.bias)]
    states = [layer.state[part] for layer in expected for part in ("kernel", "bias")]
    if options.get("momentum"):
        variables += [state["m"] for state in states]
    elif name != "SGD":
        found[len(weights) :] = [each.numpy() for each in optimizer._momentums]
        found += [each.numpy() for each in optimizer._velocities]
        variables += [state[kind] for kind in "mv" for state in states]
    for mine, other in zip(found, variables, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("size", [1, 5, 11, 64, 65, 150])
def test_batches_of_any_size_are_what_the_formulas_say(size):
    """Of one tile, of tiles of two heights, and of several parts."""
    check_by_formulas(size)


def check_by_formulas(size: int) -> None:
    """Train two steps of a network with two hidden layers, and compare it with the formulas."""
    import keras

    from fmnist_lab.training import engines

    model, optimizer = mlp(33, 40), keras.optimizers.SGD(momentum=0.5)
    weights = [each.numpy() for each in model.trainable_variables]
    expected = [
        reference.Layer(kernel, bias)
        for kernel, bias in zip(weights[::2], weights[1::2], strict=True)
    ]
    random = np.random.default_rng(6)
    images = random.integers(0, 256, (300, *SHAPE), np.uint8)
    labels = random.integers(0, CLASSES, 300)
    order, rates = random.permutation(300)[: 2 * size], np.array([0.1, 0.05], np.float32)
    trainer = engines.trainer(model, optimizer, engines.Recipe(batch_size=size, engine="native"))
    trainer.load(model, optimizer)
    found = trainer.run(trainer.hold(images, labels), order, rates, 0, None)
    pixels = images[..., None] / 255
    loss, correct = reference.train(expected, pixels, labels, order, size, rates, {"momentum": 0.5})
    assert found == (pytest.approx(loss, rel=1e-5), correct)
    trainer.store(model, optimizer)
    for variable, layer, part in zip(
        model.trainable_variables, np.repeat(expected, 2), ("kernel", "bias") * 3, strict=True
    ):
        np.testing.assert_allclose(variable.numpy(), getattr(layer, part), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("batch_size", [7, *SLOW_BATCHES])
@pytest.mark.parametrize(
    ("filters", "dense_units"), [((2,), 0), ((32,), 7), ((5, 33), 0), ((3, 16, 20), 16)]
)
def test_it_agrees_with_the_graph_for_any_convolutions(
    images, labels, filters, dense_units, batch_size
):
    """Images of 16 by 17, so that a pooling leaves a column out, and narrow ones in the end."""
    import keras

    from fmnist_lab import models

    wide = np.pad(images, [(0, 0), (3, 4), (4, 6)])
    results = []
    for engine in ("native", "graph"):
        keras.utils.set_random_seed(3)
        model = models.cnn(wide.shape[1:], CLASSES, filters=filters, dense_units=dense_units)
        optimizer = keras.optimizers.SGD(0.05, momentum=0.5)
        found, _ = trained(model, wide, labels, optimizer, batch_size=batch_size, engine=engine)
        results.append((found, [each.numpy() for each in model.weights]))
    (found, ours), (expected, theirs) = results
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=2e-5)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("shape", [(9, 7, 3), *slow_too((9, 7, 1), (2, 40, 1), (16, 31, 1))])
def test_convolutions_of_ones_own(labels, shape):
    """Two in a row, kernels of 5, 3 and 1, windows of 2, 3 and 15, channels of colour."""
    import keras
    from keras import layers

    images = np.random.default_rng(2).integers(0, 256, (COUNT, *shape), np.uint8)
    results = []
    for engine in ("native", "graph"):
        keras.utils.set_random_seed(3)
        model = convolutional(
            layers.Conv2D(6, 5, padding="same", activation="relu"),
            layers.Conv2D(18, 3, padding="same"),
            layers.Activation("relu"),
            layers.MaxPooling2D(15 if shape[0] > 15 else min(3, shape[0])),
            layers.Conv2D(4, 1, padding="same", activation="relu"),
            shape=shape,
        )
        trained(model, images, labels, engine=engine)
        results.append([each.numpy() for each in model.weights])
    for mine, other in zip(*results, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=2e-4)


def test_a_layer_that_was_first_called_on_images_of_another_size(images, labels):
    """Its `output` is that of the first call."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(3)
    convolution = layers.Conv2D(4, 3, padding="same", activation="relu")
    convolution(keras.Input((28, 28, 1)))
    model = convolutional(convolution, layers.MaxPooling2D(2))
    start = model.get_weights()
    trained(model, images[..., None], labels, engine="native")
    ours = model.get_weights()
    model.set_weights(start)
    trained(model, images[..., None], labels, engine="graph")
    for mine, other in zip(ours, model.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("gcc") is None,
    reason="needs an x86-64 processor, and GCC, which can be told to do without its widest vectors",
)
@pytest.mark.parametrize("without", ["-mno-avx", "-mno-avx512f"])
def test_vectors_of_other_widths(images, labels, without, unkept, monkeypatch):
    """Those of processors that have no wider ones, with other tiles and panels."""
    from fmnist_lab.training.engines.native import build

    def train(engine: str):
        model = cnn(5, 40, dense_units=20)
        trained(model, images, labels, batch_size=100, engine=engine)
        return model.get_weights(), build.library().fmnist_lab_panel()

    monkeypatch.setenv("CC", f"gcc {without}")
    ours, panel = train("native")
    assert panel == (8 if without == "-mno-avx" else 16)
    theirs, _ = train("graph")
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("gcc") is None,
    reason="needs an x86-64 processor, and GCC, which can be told to do without its widest vectors",
)
@pytest.mark.parametrize("without", ["-mno-avx", "-mno-avx512f"])
def test_batches_of_any_size_by_vectors_of_other_widths(without, unkept, monkeypatch):
    """Of tiles of all heights, between two hidden layers as well."""
    monkeypatch.setenv("CC", f"gcc {without}")
    for size in (1, 2, 3, 4, 5, 7, 11, 64, 65, 150):
        check_by_formulas(size)


@pytest.fixture
def bf16(monkeypatch):
    """A processor that multiplies bfloat16, or one that does as if."""
    from fmnist_lab.training.engines.native import build

    monkeypatch.setattr(build.library(), "fmnist_lab_has_bf16", lambda: 1)


def in_bfloat16(make):
    import keras

    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return make()
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("shape", [(9, 7, 1), (6, 16, 3)])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_step_in_bfloat16_is_one_in_float32_but_for_rounding(labels, shape, size, bf16):
    """Of one image, since many cancel out; with all units on, as rounding may turn one off."""
    import keras
    from keras import layers

    def convolution(units, size):
        on = keras.initializers.Constant(3)
        return layers.Conv2D(units, size, padding="same", activation="relu", bias_initializer=on)

    def make():
        keras.utils.set_random_seed(4)
        blocks = convolution(5, 3), convolution(40, size), convolution(20, size)
        return convolutional(*blocks, shape=shape)

    image = np.random.default_rng(2).integers(0, 256, (1, *shape), np.uint8)
    start = [each.numpy() for each in make().weights]
    moved = []
    for model in (in_bfloat16(make), make()):
        sgd = keras.optimizers.SGD(0.1)
        trained(model, image, labels[:1], sgd, epochs=1, engine="native")
        moved.append([now.numpy() - old for now, old in zip(model.weights, start, strict=True)])
    for rounded, exact in zip(*moved, strict=True):
        assert 0 < np.linalg.norm(rounded - exact) < 0.1 * np.linalg.norm(exact)


def test_training_in_bfloat16_goes_the_way_that_it_goes_in_the_graph(images, labels, bf16):
    """With poolings that leave a row and a column out, and a smaller last batch."""
    losses = []
    for engine in ("native", "graph"):
        model = in_bfloat16(lambda: cnn(5, 40))
        figures, _ = trained(model, images, labels, epochs=12, engine=engine)
        losses.append([loss for loss, _ in figures])
    ours, theirs = losses
    assert theirs[-1] < 0.95 * theirs[0]
    assert ours == pytest.approx(theirs, rel=0.02)


def test_images_of_as_many_channels_as_a_vector_has(labels, bf16):
    """The first convolution's inputs are floats, even where pairs of them would fit."""
    import keras
    from keras import layers

    from fmnist_lab.training.engines.native import build

    shape = (5, 4, build.library().fmnist_lab_lanes())
    images = np.random.default_rng(2).integers(0, 256, (COUNT, *shape), np.uint8)

    def make():
        keras.utils.set_random_seed(3)
        return convolutional(layers.Conv2D(6, 3, padding="same", activation="relu"), shape=shape)

    rounded, _ = trained(in_bfloat16(make), images, labels, engine="native")
    exact, _ = trained(make(), images, labels, engine="native")
    expected, _ = trained(make(), images, labels, engine="graph")
    # Of one convolution, nothing is in bfloat16.
    assert rounded == exact
    np.testing.assert_allclose(exact, expected, rtol=1e-3)


def test_bfloat16_is_left_to_the_graph_where_the_processor_cannot_multiply_it(bf16, monkeypatch):
    from fmnist_lab.training.engines.native import build

    model = in_bfloat16(lambda: cnn(4))
    assert choice(model) == "native"
    monkeypatch.setattr(build.library(), "fmnist_lab_has_bf16", lambda: 0)
    assert choice(model) == "graph"
    with pytest.raises(UserError, match="received bfloat16, expected a processor that multiplies"):
        choice(model, engine="native")


def test_a_hidden_layer_in_bfloat16_is_left_to_the_graph(bf16):
    model = in_bfloat16(lambda: cnn(4, dense_units=8))
    assert choice(model) == "graph"
    with pytest.raises(UserError, match="the layer hidden in mixed_bfloat16"):
        choice(model, engine="native")


class Always:
    """A tuner that never tries another number of threads."""

    def __init__(self, size: int) -> None:
        self.size = size

    def next(self) -> tuple[float, int]:
        """Return a time that no test takes."""
        return 60.0, self.size

    def took(self, steps: int, seconds: float) -> None:
        """Learn nothing."""


class Restless(Always):
    """A tuner that tries another number with every step, more than there are cores."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.turns = itertools.cycle((1, 3, 2, 5, 4))

    def next(self) -> tuple[float, int]:
        """Return no time, which is enough for a step."""
        return 0.0, next(self.turns)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 32, COUNT + 1])
@pytest.mark.parametrize("model", [mlp, lambda: mlp(130, 70), lambda: cnn(3, 40, dense_units=9)])
def test_another_number_of_threads_with_each_step_changes_no_bit(
    images, labels, model, batch_size, monkeypatch
):
    from fmnist_lab.training.engines import native

    results = []
    for tuner in (Always(1), Restless(4)):
        monkeypatch.setattr(native, "ThreadTuner", lambda _, tuner=tuner: tuner)
        results.append(trained(model(), images, labels, batch_size=batch_size, engine="native"))
    assert results[0] == results[1]


@pytest.mark.parametrize("batch_size", [32, 100])
@pytest.mark.parametrize("hidden_units", [(), (16,), (130, 70)])
def test_any_number_of_threads_gives_the_same_bits(
    images, labels, hidden_units, batch_size, monkeypatch
):
    """More threads than cores, too, and more than there is work for."""
    from fmnist_lab.training.engines import native

    results = []
    for threads in (1, 2, 3, 7):
        monkeypatch.setattr(native, "ThreadTuner", lambda _, n=threads: Always(n))
        monkeypatch.setattr(native.NativeTrainer, "_threads", lambda self, size, n=threads: n)
        model = mlp(*hidden_units)
        results.append(trained(model, images, labels, batch_size=batch_size, engine="native"))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("batch_size", [5, 32])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_any_number_of_threads_gives_the_same_bits_for_convolutions(
    images, labels, batch_size, policy, bf16, monkeypatch
):
    """More threads than a batch has portions, too."""
    from fmnist_lab.training.engines import native

    results = []
    for threads in (1, 2, 3, 20):
        monkeypatch.setattr(native, "ThreadTuner", lambda _, n=threads: Always(n))
        monkeypatch.setattr(native.NativeTrainer, "_threads", lambda self, size, n=threads: n)
        if policy == "float32":
            model = cnn(3, 40, dense_units=9)
        else:
            model = in_bfloat16(lambda: cnn(3, 40))
        results.append(trained(model, images, labels, batch_size=batch_size, engine="native"))
    assert all(result == results[0] for result in results)


def test_small_networks_get_few_threads_and_none_gets_more_than_were_granted(images, monkeypatch):
    import tensorflow as tf

    from fmnist_lab.training import engines

    def threads(model, granted: int) -> int:
        monkeypatch.setattr(
            tf.config.threading, "get_intra_op_parallelism_threads", lambda: granted
        )
        return engines.trainer(model, adam(), engines.Recipe(batch_size=32))._threads(32)

    assert threads(mlp(8), 64) == 1
    assert threads(mlp(1024), 2) == 2
    assert 2 < threads(mlp(1024), 64) < 64
    assert threads(cnn(2), 64) == 1
    # There are no more portions of a batch to be shared out.
    assert threads(cnn(32, 64), 64) == 16
    assert threads(cnn(32, 64), 2) == 2


def test_other_inputs_than_bytes_by_255(images, labels):
    """A model of one's own may rescale to other numbers than 0 to 1."""
    import keras
    from keras import layers

    def make():
        keras.utils.set_random_seed(0)
        return keras.Sequential(
            [
                keras.Input(SHAPE, dtype="uint8"),
                layers.Rescaling(1 / 127.5, offset=-1),
                layers.Flatten(),
                layers.Dense(12, activation="relu"),
                layers.Dense(CLASSES, activation="softmax"),
            ]
        )

    ours, theirs = make(), make()
    trained(ours, images, labels, engine="native")
    trained(theirs, images, labels, engine="xla")
    for mine, other in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=0, atol=2e-5)


def test_the_callers_processor_state_is_left_alone(images, labels):
    """Denormals are taken for zero while it trains; NumPy must still know them afterwards."""
    trained(mlp(4), images, labels, engine="native")
    assert np.float32(1e-30) * np.float32(1e-10) > 0


@pytest.mark.parametrize("make", [mlp, cnn])
def test_a_weight_that_is_not_a_number_shows(images, labels, make):
    """Though only one hidden unit has it, and ReLU could make it 0."""
    model = make(6)
    variable = model.trainable_variables[0]
    kernel = variable.numpy()
    kernel.flat[0] = np.nan
    variable.assign(kernel)
    with pytest.raises(UserError, match="nan"):
        trained(model, images, labels, epochs=1, engine="native")


# What it is given


@pytest.fixture(params=["mlp", "cnn"])
def trainer(request):
    """A trainer for batches of 32, loaded, and what a run of it takes."""
    from fmnist_lab.training import engines

    model, optimizer = {"mlp": mlp, "cnn": cnn}[request.param](6), adam()
    made = engines.trainer(model, optimizer, engines.Recipe(batch_size=32, engine="native"))
    made.load(model, optimizer)
    return made


@pytest.mark.parametrize("place", [0, 100, COUNT - 1])
@pytest.mark.parametrize("index", [-1, COUNT, 2**40, -(2**63)])
def test_an_order_beyond_the_images_is_told(trainer, images, labels, index, place):
    """In the first batch, in another, and in the smaller last one."""
    order = np.arange(COUNT)
    order[place] = index
    held = trainer.hold(images, labels)
    words = f"names image {index}, expected images from 0 to {COUNT - 1}"
    with pytest.raises(ValueError, match=words):
        trainer.run(held, order, np.ones(8, np.float32), 0, None)


@pytest.mark.parametrize("label", [-1, CLASSES, 2**31 - 1])
def test_a_label_beyond_the_classes_is_told(trainer, images, labels, label):
    labels = labels.astype(np.int64)
    labels[7] = label
    held = trainer.hold(images, labels)
    words = f"received the label {label}, expected classes from 0 to {CLASSES - 1}"
    with pytest.raises(ValueError, match=words):
        trainer.run(held, np.arange(COUNT), np.ones(8, np.float32), 0, None)


def test_images_labels_and_rates_that_do_not_fit_are_told(trainer, images, labels):
    with pytest.raises(ValueError, match="230 images and 229 labels, expected as many of both"):
        trainer.hold(images, labels[1:])
    with pytest.raises(ValueError, match="images of 54 numbers, expected the model's 63"):
        trainer.hold(images[:, :, 1:], labels)
    wide = labels.astype(np.int64)
    wide[3] = 2**32
    with pytest.raises(ValueError, match="received the label 4294967296, expected classes from 0"):
        trainer.hold(images, wide)
    held = trainer.hold(images, labels)
    for count in (0, 7, 9):
        rates = np.ones(count, np.float32)
        with pytest.raises(ValueError, match=f"{count} learning rates, expected 8, one per step"):
            trainer.run(held, np.arange(COUNT), rates, 0, None)


def test_layers_that_do_not_fit_the_batch_are_told(trainer, images, labels):
    images, labels = held = trainer.hold(images, labels)
    run = functools.partial(trainer.run, order=np.arange(COUNT), seed=0, report=None)
    run = functools.partial(run, rates=np.ones(8, np.float32))
    with pytest.raises(ValueError, match="32 images, 62 numbers each, and layers that do not fit"):
        run((np.ascontiguousarray(images[:, 1:]), labels))
    for others in ((images, labels.astype(np.uint8)), (images[:, ::2], labels)):
        with pytest.raises(ValueError, match="expected those that `hold` returned"):
            run(others)
    trainer.layers[-1].inputs += 1
    with pytest.raises(ValueError, match="layers that do not fit them"):
        run(held)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sanitizer", "networks", "vectors"),
    [
        ("address,undefined", 100, ""),
        ("address,undefined", 40, "-mno-avx512f"),
        ("address,undefined", 40, "-mno-avx"),
        ("thread", 12, ""),
    ],
)
def test_random_networks_under_a_sanitizer(tmp_path, sanitizer, networks, vectors):
    """Each buffer is allocated on its own; of 0 to 3 convolutions, by 1, 2 and 5 threads."""
    from fmnist_lab.training.engines.native import build

    if vectors and platform.machine() != "x86_64":
        pytest.skip("these vectors are those of x86-64")
    flags = ["-std=gnu11", "-O1", "-g", build.TUNE, *vectors.split(), "-fno-math-errno", "-pthread"]
    flags += [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", f"-I{build.SOURCES}"]
    trivial = tmp_path / "trivial.c"
    trivial.write_text("int main(void) { return 0; }")
    program = tmp_path / "program"

    def compiled(compiler: list[str], source: Path) -> bool:
        command = [*compiler, *flags, str(source), "-o", str(program), "-lm"]
        return subprocess.run(command, check=False).returncode == 0

    for compiler in build.compilers():
        if compiled(compiler, trivial) and not subprocess.run([program], check=False).returncode:
            break
    else:
        pytest.skip(f"no compiler here makes a program with -fsanitize={sanitizer} that runs")
    assert compiled(compiler, Path(__file__).with_name("sanitized.c"))
    ran = subprocess.run(
        [program, "1", str(networks // 4)], capture_output=True, encoding="utf-8", check=False
    )
    assert ran.returncode == 0, ran.stderr


# The compiler


@pytest.fixture
def unkept(tmp_path, monkeypatch):
    """An engine that nothing has been compiled for, and the folder that it will be kept in."""
    from fmnist_lab.training.engines.native import build

    monkeypatch.setenv("FMNIST_LAB_CACHE", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    build.library.cache_clear()
    yield tmp_path
    build.library.cache_clear()


def test_it_is_compiled_once_and_kept(unkept, monkeypatch):
    from fmnist_lab.training.engines.native import build

    assert choice(mlp(4)) == "native"
    (kept,) = unkept.rglob("*.so")
    build.library.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)
    assert choice(mlp(4)) == "native"
    assert list(unkept.rglob("network-*")) == [kept]


def test_on_macos_each_kind_of_processor_has_its_folder(unkept, tmp_path, monkeypatch):
    """There is no /proc/cpuinfo; `sysctl` knows the processor; the library is kept."""
    import ctypes

    from fmnist_lab.training import runtime
    from fmnist_lab.training.engines.native import build

    real = Path.read_text

    def read_text(path: Path, *words, **options) -> str:
        if str(path) == "/proc/cpuinfo":
            raise FileNotFoundError(path)
        return real(path, *words, **options)

    def folder(name: str) -> Path | None:
        sysctl.write_text(f"#!/bin/sh\necho {name}\n")
        return runtime.compiled_folder("native")

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    sysctl = tmp_path / "sysctl"
    sysctl.touch(0o755)
    third, first = folder("machdep.cpu.brand_string: Apple M3"), folder("Apple M1")
    assert third != first
    assert folder("machdep.cpu.brand_string: Apple M3") == third
    assert unkept in third.parents
    with monkeypatch.context() as patch:
        patch.setattr(build, "compile_library", lambda place: place / "network.so")
        patch.setattr(ctypes, "CDLL", str)
        assert build.library() == str(third / "network.so")
    assert folder("") is None
    sysctl.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runtime.compiled_folder("native") is None


def test_without_a_compiler_xla_trains_and_the_native_engine_says_what_to_install(
    unkept, monkeypatch
):
    import importlib.util

    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choice(mlp(4)) == "xla"
    with pytest.raises(UserError, match=r"no C compiler; install one.*fmnist_lab\[native\]"):
        choice(mlp(4), engine="native")


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A compiler that fails is $CC."""
    compiler = tmp_path / "broken-cc"
    compiler.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no such instruction')\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(compiler))


def test_a_compiler_that_fails_is_named_with_its_words(unkept, broken, monkeypatch):
    import importlib.util

    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choice(mlp(4)) == "xla"
    with pytest.raises(
        UserError, match=r"broken-cc cannot compile network\.c: no such instruction"
    ):
        choice(mlp(4), engine="native")


def test_where_one_compiler_fails_the_next_is_taken(unkept, broken):
    assert choice(mlp(4)) == "native"


def test_where_nothing_can_be_kept_it_is_compiled_for_this_process(unkept, monkeypatch):
    from fmnist_lab.training import runtime

    monkeypatch.setattr(runtime, "compiled_folder", lambda kind: unkept / "not there")
    assert choice(mlp(4)) == "native"


@pytest.mark.slow
@pytest.mark.parametrize("left", [b"", b"something else"])
def test_a_damaged_library_is_compiled_anew(unkept, left):
    """Loaded by another process, since a library that is in use must not be written to."""
    from fmnist_lab.training import runtime
    from fmnist_lab.training.engines.native import build

    folder = runtime.compiled_folder("native")
    whole = build.compile_library(folder)
    whole.write_bytes(left)
    assert choice(mlp(4)) == "native"
    assert whole.stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_where_nothing_may_be_run_from_xla_trains(unkept, kept, monkeypatch):
    """A home folder that is mounted noexec."""
    import ctypes

    from fmnist_lab.training import runtime

    def refuse(path):
        raise OSError(f"{path}: failed to map segment")

    if not kept:
        monkeypatch.setattr(runtime, "compiled_folder", lambda kind: None)
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert choice(mlp(4)) == "xla"
    with pytest.raises(UserError, match=r"failed to map segment; use trainer\.engine=auto"):
        choice(mlp(4), engine="native")
