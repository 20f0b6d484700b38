"""The compiled loop against `keras.Model.fit`, and what it promises beyond that."""

import numpy as np
import pytest

from fmnist_lab import evaluation
from fmnist_lab.errors import UserError
from fmnist_lab.training.checkpoint import Chosen

SHAPE, CLASSES, COUNT = (8, 6), 5, 210
COMPILED = ["xla", "graph"]
ENGINES = ["native", *COMPILED]


def slow_too(*values: object) -> list:
    """Values for the slow suite: TensorFlow takes seconds to compile each."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.fixture(scope="module", autouse=True)
def _started(backend):
    """TensorFlow runs from here on; importing it before would cost every test run its start."""


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (COUNT, *SHAPE), np.uint8)


@pytest.fixture(scope="module")
def labels(images) -> np.ndarray:
    """Labels that can be learnt: the brightest of five pixels, most of the time."""
    found = images[:, 3, :CLASSES].argmax(axis=1).astype(np.uint8)
    found[::7] = np.random.default_rng(2).integers(0, CLASSES, len(found[::7]))
    return found


def mlp(seed: int = 0, **options):
    import keras

    from fmnist_lab import models

    keras.utils.set_random_seed(seed)
    return models.mlp(SHAPE, CLASSES, **{"hidden_units": 16, **options})


def cnn(seed: int = 0, **options):
    import keras

    from fmnist_lab import models

    keras.utils.set_random_seed(seed)
    return models.cnn(SHAPE, CLASSES, **{"filters": [4, 6], "batch_norm": True, **options})


def build(optimizer: dict):
    """A Keras optimizer from its class name and arguments."""
    import keras

    given = dict(optimizer)
    return getattr(keras.optimizers, given.pop("class"))(**given)


SGD = {"class": "SGD", "learning_rate": 0.05}


def run(model, images, labels, optimizer=None, *, epochs=2, seed=0, first_epoch=1, **recipe):
    """Train, and return the epochs."""
    from fmnist_lab.training import engines, loop

    return list(
        loop.train(
            model,
            images,
            labels,
            build(SGD) if optimizer is None else optimizer,
            epochs=epochs,
            seed=seed,
            first_epoch=first_epoch,
            recipe=engines.Recipe(**recipe),
        )
    )


def weights(model) -> list[np.ndarray]:
    return [variable.numpy() for variable in model.weights]


def same_bits(left, right) -> bool:
    return all(
        a.tobytes() == b.tobytes() for a, b in zip(weights(left), weights(right), strict=True)
    )


def check_close(model, oracle, start, tolerance: float) -> None:
    """Check that two trainings went the same way, and that they went anywhere at all."""
    for ours, theirs, before in zip(weights(model), weights(oracle), start, strict=True):
        moved = np.abs(theirs - before).max()
        assert moved > 100 * tolerance
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


# The oracle: Keras' own loop, given the order


def fit(model, images, labels, optimizer, *, epochs, seed, batch_size, loss=None):
    """Train by `fit`, which is told each epoch's order; return the history of loss and accuracy."""
    import keras

    model.compile(
        optimizer, loss or keras.losses.SparseCategoricalCrossentropy(), metrics=["accuracy"]
    )
    history = []
    for epoch in range(1, epochs + 1):
        order = np.random.default_rng([seed, epoch]).permutation(len(images))
        done = model.fit(
            images[order], labels[order], batch_size=batch_size, shuffle=False, verbose=0
        )
        history.append((done.history["loss"][0], done.history["accuracy"][0]))
    return history


OPTIMIZERS = {
    "adam": {"class": "Adam", "learning_rate": 0.003},
    "adamw": {"class": "AdamW", "learning_rate": 0.003, "weight_decay": 0.05},
    "sgd": SGD,
    "momentum": {**SGD, "momentum": 0.9},
    "nesterov": {**SGD, "momentum": 0.9, "nesterov": True, "weight_decay": 0.02},
    "clipped": {**SGD, "global_clipnorm": 0.1},
}
# XLA takes two seconds for each.
ALIKE = ("Adadelta", "Adagrad", "Adamax", "Lion", "Nadam", "RMSprop")


@pytest.mark.parametrize(
    "optimizer",
    [
        {"class": "Adafactor"},
        *slow_too(*({"class": name} for name in ("Ftrl", "Lamb", *ALIKE))),
        # Of two kinds of weight decay.
        {"class": "Muon", "weight_decay": 0.1, "adam_weight_decay": 0.3},
        {"class": "Adam", "amsgrad": True},
        {"class": "SGD", "clipnorm": 0.05},
        {"class": "SGD", "clipvalue": 0.01},
        {"class": "SGD", "loss_scale_factor": 16.0},
        {"class": "Nadam", "gradient_accumulation_steps": 3},
    ],
    ids=lambda optimizer: " ".join(map(str, optimizer.values())),
)
def test_it_is_fit_for_any_optimizer(images, labels, optimizer):
    """With those of their own ways, and what Keras leaves to whoever calls the optimizer."""
    ours, oracle = mlp(), mlp()
    start = weights(ours)
    run(ours, images, labels, build(optimizer), engine="graph")
    fit(*(oracle, images, labels, build(optimizer)), epochs=2, seed=0, batch_size=32)
    check_close(ours, oracle, start, tolerance=1e-8)


def test_the_rate_of_accumulated_batches_is_that_of_fit(images, labels):
    """Keras counts a schedule's steps in batches, and what it calls iterations in updates."""
    import keras

    def optimizer():
        rates = keras.optimizers.schedules.PiecewiseConstantDecay([4, 9], [0.3, 0.1, 0.01])
        return keras.optimizers.SGD(rates, gradient_accumulation_steps=3)

    ours, oracle = mlp(), mlp()
    start = weights(ours)
    run(ours, images, labels, optimizer(), engine="graph")
    fit(*(oracle, images, labels, optimizer()), epochs=2, seed=0, batch_size=32)
    check_close(ours, oracle, start, tolerance=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False])
def test_what_is_excluded_from_decay_does_not_decay(images, labels, named):
    import keras

    def model():
        made = mlp()
        for variable in made.trainable_variables:
            variable.assign(variable + 1)
        return made

    def optimizer(model):
        made = keras.optimizers.AdamW(0.003, weight_decay=5.0)
        biases = [each for each in model.trainable_variables if each.name == "bias"]
        made.exclude_from_weight_decay(*([None, ["bias"]] if named else [biases]))
        return made

    ours, oracle, all_decay = model(), model(), model()
    start = weights(ours)
    # One program is not taken for the other.
    run(all_decay, images, labels, keras.optimizers.AdamW(0.003, weight_decay=5.0), engine="graph")
    run(ours, images, labels, optimizer(ours), engine="graph")
    fit(*(oracle, images, labels, optimizer(oracle)), epochs=2, seed=0, batch_size=32)
    check_close(ours, oracle, start, tolerance=1e-7)
    assert not np.allclose(weights(ours)[-1], weights(all_decay)[-1], atol=0.01)


def test_an_optimizer_whose_config_lacks_an_argument_is_refused(images, labels):
    """What is compiled is another of the same config, which would train otherwise."""
    import keras

    class Own(keras.optimizers.SGD):
        def __init__(self, learning_rate=0.1, factor=1.0, **rest):
            super().__init__(learning_rate, **rest)
            self.factor = factor

    with pytest.raises(UserError, match=r"Own cannot be rebuilt .* leaves out factor"):
        run(mlp(), images, labels, Own(factor=0.5), engine="graph")

    class Whole(Own):
        def __init__(self, learning_rate=0.1, **rest):
            super().__init__(learning_rate, **rest)
            self.base_rate = float(learning_rate)
            self.steps = 0

        def get_config(self):
            return {**super().get_config(), "factor": self.factor}

    whole = Whole(factor=0.5)
    whole.steps = 3
    run(mlp(), images, labels, whole, engine="graph")


def test_an_optimizer_around_another_is_refused(images, labels):
    import keras

    scaled = keras.optimizers.LossScaleOptimizer(build(SGD))
    with pytest.raises(UserError, match="LossScaleOptimizer has no learning rate of its own"):
        run(mlp(), images, labels, scaled, engine="graph")


@pytest.mark.slow
def test_losses_that_layers_add_are_summed_as_by_fit(images, labels):
    import keras

    class Adding(keras.layers.Layer):
        def call(self, inputs):
            self.add_loss(0.01 * keras.ops.square(inputs))
            return inputs

    def model():
        keras.utils.set_random_seed(0)
        inputs = keras.Input(SHAPE, dtype="uint8")
        hidden = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
        hidden = Adding()(keras.layers.Dense(6, activation="relu")(hidden))
        return keras.Model(inputs, keras.layers.Dense(CLASSES, activation="softmax")(hidden))

    ours, oracle = model(), model()
    start = weights(ours)
    run(ours, images, labels, engine="graph")
    fit(*(oracle, images, labels, build(SGD)), epochs=2, seed=0, batch_size=32)
    check_close(ours, oracle, start, tolerance=2e-5)


@pytest.mark.parametrize(
    ("optimizer", "engine"),
    [
        *((name, "native") for name in OPTIMIZERS if name != "clipped"),
        ("adam", "xla"),
        ("clipped", "xla"),
        ("adam", "graph"),
        *(
            pytest.param(name, engine, marks=pytest.mark.slow)
            for name, engine in (
                *((name, "xla") for name in ("adamw", "sgd", "momentum", "nesterov")),
                ("nesterov", "graph"),
            )
        ),
    ],
)
def test_it_is_fit_for_the_dense_model(images, labels, optimizer, engine):
    """With batches of 32, the seventh is one of 18 images."""
    ours, oracle = mlp(), mlp()
    start = weights(ours)
    expected = fit(
        *(oracle, images, labels, build(OPTIMIZERS[optimizer])), epochs=3, seed=5, batch_size=32
    )
    epochs = run(
        *(ours, images, labels, build(OPTIMIZERS[optimizer])),
        epochs=3,
        seed=5,
        batch_size=32,
        engine=engine,
    )
    check_close(ours, oracle, start, tolerance=2e-5)
    assert [epoch.number for epoch in epochs] == [1, 2, 3]
    assert [epoch.loss for epoch in epochs] == pytest.approx([loss for loss, _ in expected], 1e-5)
    assert [epoch.accuracy for epoch in epochs] == pytest.approx([right for _, right in expected])


@pytest.mark.slow
def test_it_is_fit_for_a_convolutional_model_with_batch_normalization(images, labels):
    ours, oracle = cnn(), cnn()
    start = weights(ours)
    expected = fit(*(oracle, images, labels, build(SGD)), epochs=2, seed=0, batch_size=32)
    epochs = run(ours, images, labels, batch_size=32)
    check_close(ours, oracle, start, tolerance=2e-5)
    assert [epoch.loss for epoch in epochs] == pytest.approx([loss for loss, _ in expected], 1e-4)


@pytest.mark.parametrize("optimizer", ["adam", *slow_too("sgd", "nesterov")])
@pytest.mark.parametrize("engine", ["native", "graph"])
def test_it_is_fit_for_a_convolutional_model(images, labels, optimizer, engine):
    """Adam with a larger epsilon: the real one makes steps of nothing but rounding."""
    optimizer = OPTIMIZERS[optimizer]
    if optimizer["class"] == "Adam":
        optimizer = {**optimizer, "epsilon": 1e-3}
    ours, oracle = cnn(batch_norm=False), cnn(batch_norm=False)
    start = weights(ours)
    expected = fit(*(oracle, images, labels, build(optimizer)), epochs=3, seed=2, batch_size=32)
    epochs = run(
        *(ours, images, labels, build(optimizer)), epochs=3, seed=2, batch_size=32, engine=engine
    )
    check_close(ours, oracle, start, tolerance=2e-5)
    assert [epoch.loss for epoch in epochs] == pytest.approx([loss for loss, _ in expected], 1e-4)
    assert [epoch.accuracy for epoch in epochs] == pytest.approx([right for _, right in expected])


@pytest.mark.parametrize("engine", ["native", "xla"])
def test_it_is_fit_for_a_schedule(images, labels, engine):
    import keras

    from fmnist_lab import schedules

    def optimizer():
        return keras.optimizers.SGD(schedules.cosine(0.1, steps=21, warmup=0.3, start=0.1))

    ours, oracle = mlp(), mlp()
    start = weights(ours)
    fit(*(oracle, images, labels, optimizer()), epochs=3, seed=0, batch_size=32)
    run(ours, images, labels, optimizer(), epochs=3, batch_size=32, engine=engine)
    check_close(ours, oracle, start, tolerance=2e-5)


def test_rates_are_those_of_the_schedule_wherever_the_training_is(images, labels):
    import keras

    from fmnist_lab import schedules

    cosine = schedules.cosine(0.1, steps=21, warmup=0.3, start=0.1, final=0.02)
    epochs = run(mlp(), images, labels, keras.optimizers.SGD(cosine), epochs=3, batch_size=32)
    # That of each epoch's last step.
    expected = [float(cosine(step)) for step in (6, 13, 20)]
    assert [epoch.learning_rate for epoch in epochs] == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["native", "xla"])
def test_it_is_fit_for_smoothed_labels(images, labels, engine):
    import keras

    ours, oracle = mlp(), mlp()
    start = weights(ours)
    one_hot = np.eye(CLASSES, dtype=np.float32)[labels]
    smoothed = keras.losses.CategoricalCrossentropy(label_smoothing=0.2)
    expected = fit(
        *(oracle, images, one_hot, build(SGD)), epochs=2, seed=0, batch_size=32, loss=smoothed
    )
    epochs = run(ours, images, labels, batch_size=32, label_smoothing=0.2, engine=engine)
    check_close(ours, oracle, start, tolerance=2e-5)
    assert [epoch.loss for epoch in epochs] == pytest.approx([loss for loss, _ in expected], 1e-5)


def test_it_is_fit_for_averaged_weights(images, labels):
    """`fit` puts the averages in place at its end, so the oracle gets both epochs as one."""
    optimizer = {**SGD, "use_ema": True, "ema_momentum": 0.8}
    ours, oracle = mlp(), mlp()
    start = weights(ours)
    order = np.concatenate([np.random.default_rng([0, n]).permutation(COUNT) for n in (1, 2)])
    oracle.compile(build(optimizer), "sparse_categorical_crossentropy")
    oracle.fit(images[order], labels[order], batch_size=30, shuffle=False, verbose=0)
    run(ours, images, labels, build(optimizer), batch_size=30)
    check_close(ours, oracle, start, tolerance=2e-5)


@pytest.mark.slow
def test_an_epoch_that_is_broken_off_leaves_the_averages_in_place(images, labels):
    from fmnist_lab.training import loop

    averaged = {**SGD, "use_ema": True, "ema_momentum": 0.8}
    model, optimizer, expected = mlp(), build(averaged), mlp()
    epochs = loop.train(
        *(model, images, labels, optimizer),
        epochs=2,
        on_progress=lambda epoch, _: 1 / (2 - epoch),
    )
    next(epochs)
    left = weights(model)
    with pytest.raises(ZeroDivisionError):
        next(epochs)
    assert all(np.array_equal(a, b) for a, b in zip(weights(model), left, strict=True))
    run(model, images, labels, optimizer, first_epoch=2)
    run(expected, images, labels, build(averaged))
    assert same_bits(model, expected)


# The order, and every image once


def test_the_order_depends_on_seed_and_epoch_alone(images, labels):
    """Neither on what was drawn before, nor on where the training was begun."""
    through, halves, other = mlp(), mlp(), mlp()
    run(through, images, labels, epochs=2, seed=3)
    optimizer = build(SGD)
    run(halves, images, labels, optimizer, epochs=1, seed=3)
    np.random.default_rng().random(5)
    np.random.seed(99)
    run(halves, images, labels, optimizer, epochs=2, first_epoch=2, seed=3)
    run(other, images, labels, epochs=2, seed=4)
    assert same_bits(through, halves)
    assert not same_bits(through, other)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch_size", [32, *slow_too(1, 1000)])
def test_every_image_counts_once(images, labels, batch_size, engine):
    """With a rate too small to change a weight, the epoch's mean is the model's own loss."""
    from fmnist_lab.training import engines

    model = mlp()
    start = weights(model)
    (epoch,) = run(
        *(model, images, labels, build({**SGD, "learning_rate": 1e-30})),
        epochs=1,
        batch_size=batch_size,
        engine=engine,
    )
    for now, before in zip(weights(model), start, strict=True):
        np.testing.assert_allclose(now, before, rtol=0, atol=1e-20)  # a bias of 0 does move
    whole = evaluation.scores(engines.predict(model, images), labels)
    assert epoch.images == COUNT
    assert epoch.loss == pytest.approx(whole.loss, rel=1e-5)
    assert epoch.accuracy == pytest.approx(whole.accuracy)


@pytest.mark.parametrize("engine", ENGINES)
def test_slices_change_no_bit(images, labels, engine, monkeypatch):
    """However an epoch is cut for the display, and with dropout, which draws as it goes."""
    from fmnist_lab.training import engines, loop
    from fmnist_lab.training.engines import native
    from fmnist_lab.training.engines import recipe as recipes

    seen = {}
    options = {} if engine == "native" else {"dropout": 0.5}

    def train(model, first: int, seconds: float) -> list:
        monkeypatch.setattr(recipes, "FIRST_SLICE", first)
        monkeypatch.setattr(recipes, "SLICE_SECONDS", seconds)

        class Cut(native.ThreadTuner):
            def next(self) -> tuple[float, int]:
                return seconds, self.size

        monkeypatch.setattr(native, "ThreadTuner", Cut)
        seen[first] = []
        epochs = loop.train(
            *(model, images, labels, build(OPTIMIZERS["adam"])),
            epochs=2,
            recipe=engines.Recipe(batch_size=32, engine=engine),
            on_progress=lambda epoch, count: seen[first].append((epoch, count)),
        )
        return [(epoch.loss, epoch.accuracy) for epoch in epochs]

    small, large = mlp(**options), mlp(**options)
    assert train(small, 1, 0.0) == train(large, 10**6, 10.0)
    assert same_bits(small, large)
    steps = [*range(32, COUNT, 32), COUNT]
    assert seen[1] == [(epoch, count) for epoch in (1, 2) for count in steps]
    # One slice for the full batches and one for the last.
    assert seen[10**6] == [(epoch, count) for epoch in (1, 2) for count in (192, COUNT)]


# The same again


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_seed_gives_the_same_bits(images, labels, engine):
    options = {"seed": 7} if engine == "native" else {"seed": 7, "dropout": 0.3}
    first, second = mlp(**options), mlp(**options)
    assert [(e.loss, e.accuracy) for e in run(first, images, labels, engine=engine)] == [
        (e.loss, e.accuracy) for e in run(second, images, labels, engine=engine)
    ]
    assert same_bits(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("make", [mlp, *slow_too(cnn)])
def test_models_that_share_a_program_share_nothing_else(images, labels, make):
    """Dropout's generator, averages of a normalization, an optimizer's moments: all their own."""
    adam = OPTIMIZERS["adam"]
    alone = make(seed=1, dropout=0.5)
    run(alone, images, labels, build(adam))
    between = make(seed=2, dropout=0.5)
    run(between, images[::-1].copy(), labels, build(adam), epochs=1)
    after = make(seed=1, dropout=0.5)
    run(after, images, labels, build(adam))
    assert same_bits(alone, after)
    assert not same_bits(alone, between)


def test_two_trainings_may_take_turns(images, labels):
    """As when a notebook steps through two generators of one architecture."""
    from fmnist_lab.training import engines, loop

    alone = mlp(seed=1)
    run(alone, images, labels, build(SGD))
    one, two = mlp(seed=1), mlp(seed=2)
    turns = [
        loop.train(model, images, labels, build(SGD), epochs=2, recipe=engines.Recipe())
        for model in (one, two)
    ]
    for _ in range(2):
        for turn in turns:
            next(turn)
    assert same_bits(one, alone)


# What the caller holds


def test_the_callers_model_and_optimizer_hold_the_state_after_each_epoch(images, labels):
    from fmnist_lab.training import engines, loop

    model, optimizer = mlp(), build(OPTIMIZERS["adam"])
    states = []
    for epoch in loop.train(model, images, labels, optimizer, epochs=3):
        assert int(optimizer.iterations.numpy()) == 7 * epoch.number
        # The caller's own model, by Keras' own means.
        scores = evaluation.scores(model.predict(images, verbose=0), labels)
        ours = engines.predict(model, images)
        assert scores == evaluation.scores(ours, labels)
        states.append(
            (scores.loss, *(variable.numpy().tobytes() for variable in optimizer.variables))
        )
    assert len(set(states)) == 3
    assert states[2][0] < states[0][0]


def test_leaving_early_leaves_the_epoch_that_was_reached(images, labels):
    from fmnist_lab.training import loop

    model, expected = mlp(), mlp()
    for epoch in loop.train(model, images, labels, build(SGD), epochs=100):
        if epoch.number == 2:
            break
    run(expected, images, labels, epochs=2)
    assert same_bits(model, expected)


def test_the_callers_arrays_are_left_alone(images, labels):
    before = images.copy(), labels.copy()
    frozen = images.copy(), labels.copy()
    for array in frozen:
        array.setflags(write=False)
    run(mlp(), *frozen, epochs=1)
    assert np.array_equal(frozen[0], before[0])
    assert np.array_equal(frozen[1], before[1])


@pytest.mark.parametrize("dtype", [np.int64, *slow_too(np.uint8, np.int32)])
def test_labels_may_be_any_integers(images, labels, dtype):
    model, expected = mlp(), mlp()
    run(model, images, labels.astype(dtype), epochs=1)
    run(expected, images, labels, epochs=1)
    assert same_bits(model, expected)


def test_a_continued_training_is_the_training_in_one_go(images, labels):
    """State handed over by Keras' own means: weights, and the optimizer's variables."""
    adam = OPTIMIZERS["adam"]
    whole = mlp()
    run(whole, images, labels, build(adam), epochs=3)
    first, optimizer = mlp(), build(adam)
    run(first, images, labels, optimizer, epochs=2)
    second, again = mlp(seed=9), build(adam)
    second.set_weights(first.get_weights())
    again.build(second.trainable_variables)
    for new, old in zip(again.variables, optimizer.variables, strict=True):
        new.assign(old)
    epochs = run(second, images, labels, again, epochs=3, first_epoch=3)
    assert [epoch.number for epoch in epochs] == [3]
    assert same_bits(second, whole)


# Compiled once


@pytest.fixture
def counted(request):
    """A function that builds a model, and a counter of the times that it was traced."""
    import keras

    @keras.saving.register_keras_serializable("test_training")
    class Counting(keras.layers.Layer):
        traces = 0

        def call(self, inputs):
            Counting.traces += 1
            return inputs

    def make(seed: int = 0):
        keras.utils.set_random_seed(seed)
        return keras.Sequential(
            [
                keras.Input(SHAPE, dtype="uint8", name="image"),
                keras.layers.Rescaling(1 / 255, name="rescale"),
                Counting(name="counting"),
                keras.layers.Flatten(name="flatten"),
                keras.layers.Dense(CLASSES, activation="softmax", name="out"),
            ],
            # No other test's architecture.
            name="".join(filter(str.isalnum, request.node.name)),
        )

    return make, Counting


@pytest.mark.parametrize("engine", ["xla", *slow_too("graph")])
def test_an_architecture_is_traced_once_for_all_seeds_and_rates(images, labels, engine, counted):
    from fmnist_lab import schedules
    from fmnist_lab.training import engines

    make, counter = counted
    first = make()
    run(first, images, labels, engine=engine)
    engines.predict(first, images)
    others = [make(seed) for seed in (1, 2, 3)]
    traced = counter.traces
    assert traced > 0
    run(others[0], images, labels, build({**SGD, "learning_rate": 0.001}), engine=engine, seed=1)
    run(others[1], images, labels, build(SGD), engine=engine, epochs=3, seed=2)
    import keras

    cosine = keras.optimizers.SGD(schedules.cosine(0.1, steps=20))
    run(others[2], images, labels, cosine, engine=engine)
    engines.predict(others[0], images)
    assert counter.traces == traced
    # It does count: another batch size is another program.
    run(others[0], images, labels, engine=engine, batch_size=10)
    assert counter.traces > traced


def test_compiling_ahead_leaves_nothing_to_compile_and_trains_nothing(images, labels, counted):
    from fmnist_lab.training import engines, loop

    make, counter = counted
    model, optimizer, expected = make(), build(OPTIMIZERS["adam"]), make()
    start = weights(model)
    loop.compile_ahead(model, images, labels, optimizer, engines.Recipe())
    assert all(np.array_equal(a, b) for a, b in zip(weights(model), start, strict=True))
    traced = counter.traces
    run(model, images, labels, optimizer)
    assert counter.traces == traced
    run(expected, images, labels, build(OPTIMIZERS["adam"]))
    assert same_bits(model, expected)


@pytest.mark.parametrize("engine", ["graph", *slow_too("xla")])
def test_compiling_parses_no_source(images, labels, engine, monkeypatch):
    """Python 3.11 cannot in two threads at once, and a job imports while it compiles."""
    import ast

    import keras

    from fmnist_lab import schedules

    def refuse(*_, **__):
        raise AssertionError("something parses source")

    monkeypatch.setattr(ast, "parse", refuse)
    run(
        *(mlp(hidden_units=17, dropout=0.1), images, labels),
        keras.optimizers.Adam(schedules.cosine(0.1, steps=20)),
        engine=engine,
        label_smoothing=0.1,
    )


@pytest.mark.slow
@pytest.mark.parametrize("left", ["nothing", "half", "something else", "a block of zeros"])
def test_a_kept_program_that_was_damaged_is_compiled_anew(left, doors, tmp_path):
    """XLA reads them without looking, so that such a file would stop each later run."""
    code = """if True:
        import numpy as np
        from fmnist_lab.training import runtime as backend
        backend.start()
        import keras
        from fmnist_lab import models
        from fmnist_lab.training import engines, loop
        model = models.linear((4, 4), 3)
        images, labels = np.zeros((32, 4, 4), np.uint8), np.zeros(32, np.uint8)
        recipe = engines.Recipe(engine="xla")
        (epoch,) = loop.train(
            model, images, labels, keras.optimizers.SGD(), epochs=1, recipe=recipe
        )
        print(epoch.loss)"""
    first = doors.python(tmp_path, code, FMNIST_LAB_CACHE=str(tmp_path))
    assert first.code == 0, first.err
    (program,) = tmp_path.rglob("xla_compile_cache__*.pb")
    whole = program.read_bytes()
    middle = len(whole) // 2 // 4096 * 4096
    damaged = {
        "half": whole[: len(whole) // 2],
        "nothing": b"",
        "something else": bytes(range(256)),
        "a block of zeros": whole[:middle] + bytes(4096) + whole[middle + 4096 :],
    }
    program.write_bytes(damaged[left])
    again = doors.python(tmp_path, code, FMNIST_LAB_CACHE=str(tmp_path))
    assert again.code == 0, again.err
    assert (again.out, again.err) == (first.out, "")
    assert not program.exists()


def test_different_rates_do_differ(images, labels):
    """They share a program, but not a rate."""
    fast, slow = mlp(), mlp()
    (one,) = run(fast, images, labels, build(SGD), epochs=1)
    (two,) = run(slow, images, labels, build({**SGD, "learning_rate": 0.01}), epochs=1)
    assert (one.learning_rate, two.learning_rate) == pytest.approx((0.05, 0.01))
    assert not same_bits(fast, slow)


@pytest.mark.slow
def test_optimizers_of_one_name_are_not_taken_for_each_other(images, labels):
    import keras

    class SGD(keras.optimizers.SGD):
        def update_step(self, gradient, variable, learning_rate):
            self.assign_sub(variable, keras.ops.sign(gradient) * 0.01)

    theirs, own = mlp(), mlp()
    start = weights(own)
    run(theirs, images, labels, keras.optimizers.SGD(0.05), epochs=1, batch_size=COUNT)
    run(own, images, labels, SGD(0.05), epochs=1, batch_size=COUNT)
    moved = np.abs(weights(own)[-1] - start[-1])
    np.testing.assert_allclose(moved, 0.01, rtol=1e-4)


@pytest.mark.slow
def test_losses_of_one_name_are_not_taken_for_each_other(images, labels):
    """A loss's parameters need not be in its config for the second one to be itself."""
    import keras

    class Scaled(keras.losses.Loss):
        def __init__(self, factor: float) -> None:
            super().__init__(name="scaled")
            self.factor = factor

        def call(self, y_true, y_pred):
            return self.factor * keras.losses.sparse_categorical_crossentropy(y_true, y_pred)

    (once,) = run(
        mlp(), images, labels, build({**SGD, "learning_rate": 1e-30}), epochs=1, loss=Scaled(1)
    )
    (twice,) = run(
        mlp(), images, labels, build({**SGD, "learning_rate": 1e-30}), epochs=1, loss=Scaled(2)
    )
    assert twice.loss == pytest.approx(2 * once.loss, rel=1e-5)


@pytest.mark.slow
def test_losses_are_known_again_by_what_they_hold(images, labels):
    """Of Keras or one's own, with whatever in them, and compiled once if it is the same."""
    import keras

    from fmnist_lab.training.engines import graph

    class Weighted(keras.losses.Loss):
        def __init__(self, weights) -> None:
            super().__init__()
            self.weights = weights

        def call(self, y_true, y_pred):
            loss = keras.losses.sparse_categorical_crossentropy(y_true, y_pred)
            return keras.ops.take(self.weights, keras.ops.cast(y_true, "int32")) * loss

    one, two = np.ones(CLASSES, np.float32), np.full(CLASSES, 2, np.float32)
    first, again, twice = (
        run(mlp(), images, labels, epochs=1, loss=Weighted(weighing))[0].loss
        for weighing in (one, one, two)
    )
    assert first == again
    assert twice > 1.5 * first
    assert graph._loss_key(Weighted(one)) == graph._loss_key(Weighted(one))
    huber = keras.losses.Huber
    assert graph._loss_key(huber()) == graph._loss_key(huber()) != graph._loss_key(huber(delta=2.0))


@pytest.mark.slow
def test_few_trainers_of_an_architecture_stay(images, labels):
    from fmnist_lab.training.engines import graph
    from fmnist_lab.training.engines.replica import replica_of

    for momentum in range(graph.TRAINERS_KEPT + 2):
        optimizer = build({**SGD, "momentum": momentum / 100})
        run(mlp(3), images[:32], labels[:32], optimizer, epochs=1, engine="graph")
    assert len(replica_of(mlp(3)).trainers) == graph.TRAINERS_KEPT


@pytest.mark.slow
def test_a_layer_that_was_written_anew_is_not_taken_for_the_old_one(images):
    """As in a notebook, whose cell with a layer is edited and run again."""
    import keras

    from fmnist_lab.training import engines

    def model(factor: float):
        @keras.saving.register_keras_serializable("test_training")
        class Power(keras.layers.Layer):
            def call(self, inputs):
                return keras.ops.power(inputs, factor)

        return keras.Sequential(
            [
                keras.Input(SHAPE, dtype="uint8", name="image"),
                keras.layers.Rescaling(1 / 255, name="rescale"),
                Power(name="power"),
                keras.layers.Flatten(name="flatten"),
                keras.layers.Dense(CLASSES, activation="softmax", name="out"),
            ],
            name="edited",
        )

    for factor in (1.0, 3.0):
        edited = model(factor)
        ours = engines.predict(edited, images)
        np.testing.assert_allclose(ours, edited.predict(images, verbose=0), rtol=1e-5)


# Predicting


@pytest.mark.parametrize(
    ("make", "count"),
    [(make, count) for make in ("linear", "mlp") for count in (1, 31, 5001)] + [("cnn", 31)],
)
def test_predictions_are_those_of_model_predict_to_the_last_bit(make, count):
    """At the real size, where a matrix product could take another path for another batch."""
    import keras

    from fmnist_lab import models
    from fmnist_lab.training import engines

    keras.utils.set_random_seed(0)
    model = getattr(models, make)((28, 28), 10)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
    ours = engines.predict(model, pixels)
    theirs = model.predict(pixels, verbose=0)
    assert (ours.dtype, ours.shape) == (np.float32, (count, 10))
    assert np.flatnonzero((ours != theirs).any(axis=1)).tolist() == []


def test_predicting_is_inference(images):
    from fmnist_lab.training import engines

    model = mlp(dropout=0.9)
    first = engines.predict(model, images)
    assert first.tobytes() == engines.predict(model, images).tobytes()
    np.testing.assert_allclose(first.sum(axis=1), 1, rtol=1e-5)


def test_no_images_have_no_predictions(images):
    from fmnist_lab.training import engines

    assert engines.predict(mlp(), images[:0]).shape == (0, CLASSES)


# What goes wrong


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_that_is_no_number_stops_at_its_epoch(images, labels, engine):
    """The first epoch is sound; in the second the rate makes the weights overflow."""
    import keras

    from fmnist_lab.training import engines, loop

    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([6], [0.01, 1e38])
    epochs = loop.train(
        *(mlp(), images, labels, keras.optimizers.SGD(schedule)),
        epochs=5,
        recipe=engines.Recipe(engine=engine),
    )
    assert next(epochs).number == 1
    with pytest.raises(loop.DivergedError, match=r"epoch 2 .*optimizer\.learning_rate"):
        next(epochs)
    assert list(epochs) == []


def test_a_model_that_cannot_be_rebuilt_is_refused_in_words(images, labels):
    import keras

    class Untold(keras.layers.Layer):
        def __init__(self, table: object) -> None:
            super().__init__()
            self.table = table

        def call(self, inputs):
            return inputs

    model = keras.Sequential([keras.Input(SHAPE, dtype="uint8"), *mlp().layers, Untold(object())])
    with pytest.raises(
        UserError,
        match=r"Sequential cannot be rebuilt.*`get_config\(\)`\. Give its layers get_conf",
    ):
        run(model, images, labels)


def test_a_model_of_a_class_of_its_own_is_refused_in_words(images, labels):
    import keras

    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.out = keras.layers.Dense(CLASSES, activation="softmax")

        def call(self, inputs):
            return self.out(keras.ops.cast(keras.ops.reshape(inputs, (-1, 48)), "float32"))

    model = Own()
    model(images[:1])
    with pytest.raises(UserError, match=r"Own has no inputs.*keras\.Model\(inputs, outp"):
        run(model, images, labels)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y: (x[:0], y[:0]), r"0 training images and labels of shape \(0,\), expected"),
        (lambda x, y: (x, y[:100]), r"210 training images and labels of shape \(100,\)"),
        (lambda x, y: (x, np.stack([y, y], axis=1)), r"images and labels of shape \(210, 2\)"),
        (lambda x, y: (x[:, :4], y), r"images of shape \(4, 6\), expected \(8, 6\)"),
        (
            lambda x, y: (x / 255, y),
            "type float64 with values from 0 to 1, expected whole numbers from 0 to 255; the model "
            "takes uint8 and rescales it itself, so do not divide by 255",
        ),
        (lambda x, y: (x + np.uint16(1), y), "type uint16 with values from 1 to 256"),
        (lambda x, y: (x, y + 1), "labels from 1 to 5 of type uint8, expected integers from 0 to"),
        (lambda x, y: (x, y - 1.0), "labels from -1.0 to 3.0 of type float64"),
        (lambda x, y: (x, y / 2), "labels from 0.0 to 2.0 of type float64"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(images, labels, change, said, engine):
    """The native program would read beyond them, and the others train on something else."""
    with pytest.raises(UserError, match=said):
        run(mlp(), *change(images, labels), engine=engine)


@pytest.mark.parametrize("engine", ["native", *slow_too(*COMPILED)])
@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: (x[..., None], y[:, None]),
        lambda x, y: (x.astype(np.float64), y.astype(np.float32)),
        lambda x, y: (x.astype(np.int64), list(y)),
    ],
    ids=["axes of one", "floats", "integers"],
)
def test_the_same_values_in_another_guise_are_the_same(images, labels, change, engine):
    """A channel axis, labels in a column, another type: what `fit` takes as well."""
    model, expected = mlp(), mlp()
    run(model, *change(images, labels), epochs=1, engine=engine)
    run(expected, images, labels, epochs=1, engine=engine)
    assert same_bits(model, expected)


def test_a_channel_axis_that_the_model_has_may_be_missing(images, labels):
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(CLASSES, activation="softmax")]
    model = keras.Sequential([keras.Input((*SHAPE, 1), dtype="uint8"), *layers])
    before = weights(model)
    (epoch,) = run(model, images, labels, epochs=1)
    assert np.isfinite(epoch.loss)
    assert not np.array_equal(weights(model)[0], before[0])


def beyond_xla(which: str):
    """A model with an operation that XLA lacks, or whose gradient it lacks."""
    import keras

    keras.utils.set_random_seed(0)
    layers = {
        "forward": lambda: [keras.layers.RandomRotation(0.1)],
        "gradient": lambda: [
            keras.layers.Flatten(),
            keras.layers.Dense(16),
            keras.layers.Reshape((4, 4, 1)),
            keras.layers.Resizing(8, 8, interpolation="nearest"),
        ],
    }[which]()
    return keras.Sequential(
        [
            keras.Input(SHAPE, dtype="uint8"),
            keras.layers.Reshape((*SHAPE, 1)),
            *layers,
            keras.layers.Flatten(),
            keras.layers.Dense(CLASSES, activation="softmax"),
        ]
    )


@pytest.mark.parametrize("which", ["gradient", *slow_too("forward")])
def test_a_model_that_xla_cannot_compile_is_trained_by_graph(images, labels, monkeypatch, which):
    from fmnist_lab.training import engines, runtime

    assert engines.choose(beyond_xla(which), build(SGD), engines.Recipe()) == "graph"
    assert engines.choose(mlp(dropout=0.1), build(SGD), engines.Recipe()) == "xla"
    (epoch,) = run(beyond_xla(which), images, labels, epochs=1)
    assert np.isfinite(epoch.loss)
    # It is not taken for a program that was kept and is damaged, which would cost all the others.
    monkeypatch.setattr(runtime, "forget_compiled_programs", lambda: 1 / 0)
    with pytest.raises(UserError, match=r"cannot compile .*(Projective|Nearest).*engine=graph"):
        run(beyond_xla(which), images, labels, epochs=1, engine="xla")


# Callbacks


def callback_run(model, images, labels, callbacks, *, epochs, optimizer=None):
    from fmnist_lab.training import loop

    return list(
        loop.train(
            model,
            images[:140],
            labels[:140],
            build(SGD) if optimizer is None else optimizer,
            epochs=epochs,
            validation=(images[140:], labels[140:]),
            callbacks=callbacks,
        )
    )


def test_early_stopping_ends_the_training_and_hands_out_the_best_weights(images, labels):
    import keras

    from fmnist_lab.training import engines

    stopping = keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    model = mlp()
    # A rate that overfits 140 random images at once.
    optimizer = build({"class": "Adam", "learning_rate": 0.05})
    epochs = callback_run(model, images, labels, [stopping], epochs=40, optimizer=optimizer)
    losses = [epoch.validation.loss for epoch in epochs]
    best = int(np.argmin(losses))
    assert len(epochs) == best + 3 < 40
    left = evaluation.scores(engines.predict(model, images[140:]), labels[140:])
    assert left.loss == pytest.approx(losses[best], abs=1e-12)
    assert model.optimizer is None
    assert [epoch.chosen for epoch in epochs[:-1]] == [None] * (best + 2)
    assert epochs[-1].chosen == Chosen(best + 1, "val_loss", losses[best])


def test_whose_weights_are_in_place_is_known_without_a_stop_and_for_any_callback(images, labels):
    import keras

    def chosen(callback) -> Chosen | None:
        adam = build({"class": "Adam", "learning_rate": 0.05})
        return callback_run(mlp(), images, labels, [callback], epochs=20, optimizer=adam)[-1].chosen

    patient = keras.callbacks.EarlyStopping("val_loss", patience=20, restore_best_weights=True)
    found = chosen(patient)
    assert found is not None
    assert (found.epoch, found.value) == (patient.best_epoch + 1, patient.best)
    assert found.epoch < 20
    assert chosen(keras.callbacks.EarlyStopping("val_loss", patience=20)) is None

    class Zeros(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            self.model.set_weights([0 * each for each in self.model.get_weights()])

    assert str(chosen(Zeros())) == "weights of its own"


def test_accuracies_are_better_the_higher_without_being_told(images, labels):
    """Keras would ask the metrics of a compiled model."""
    import keras

    stopping = keras.callbacks.EarlyStopping("val_accuracy", patience=2)
    adam = build({"class": "Adam", "learning_rate": 0.05})
    epochs = callback_run(mlp(), images, labels, [stopping], epochs=40, optimizer=adam)
    accuracies = [epoch.validation.accuracy for epoch in epochs]
    assert len(epochs) == int(np.argmax(accuracies)) + 3 < 40


def test_a_compiled_model_keeps_its_optimizer(images, labels):
    import keras

    model = mlp()
    model.compile("sgd", "sparse_categorical_crossentropy")
    before = model.optimizer
    callback_run(model, images, labels, [keras.callbacks.History()], epochs=1)
    assert model.optimizer is before


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda callbacks: callbacks.EarlyStopping("val_acc"),
            "monitor=val_acc, expected one of loss, accuracy, val_loss, val_accuracy",
        ),
        (lambda callbacks: callbacks.EarlyStopping("learning_rate"), "add mode=max or mode=min"),
        (
            lambda callbacks: callbacks.LambdaCallback(on_train_batch_end=lambda *_: None),
            r"LambdaCallback acts on batches \(on_train_batch_end\)",
        ),
        (
            lambda callbacks: type("Mine", (callbacks.Callback,), {"on_test_batch_end": print})(),
            r"Mine acts on batches \(on_test_batch_end\)",
        ),
        (lambda callbacks: callbacks.SwapEMAWeights(), "averaged weights in place"),
    ],
)
def test_a_callback_that_could_not_be_served_is_refused(images, labels, make, said):
    import keras

    with pytest.raises(UserError, match=said):
        callback_run(mlp(), images, labels, [make(keras.callbacks)], epochs=1)


def test_what_another_callback_measures_may_be_watched(images, labels):
    import keras

    measuring = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: logs.update(mine=-epoch)
    )
    stopping = keras.callbacks.EarlyStopping("mine", mode="max", patience=1)
    epochs = callback_run(mlp(), images, labels, [measuring, stopping], epochs=9)
    assert len(epochs) == 2


def test_a_schedule_that_a_callback_brings_is_obeyed(images, labels):
    import keras

    class Bringing(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            rates = keras.optimizers.schedules.PiecewiseConstantDecay([6], [0.1, 0.02])
            self.model.optimizer.learning_rate = rates
            assert self.params["steps"] == 5

    epochs = callback_run(mlp(), images, labels, [Bringing()], epochs=2)
    assert [epoch.learning_rate for epoch in epochs] == pytest.approx([0.1, 0.02])


@pytest.mark.parametrize("name", ["ReduceLROnPlateau", "LearningRateScheduler"])
def test_two_that_set_the_rate_are_refused_before_the_first_epoch(images, labels, name):
    import keras

    from fmnist_lab import schedules

    made = {
        "ReduceLROnPlateau": lambda: keras.callbacks.ReduceLROnPlateau("loss"),
        "LearningRateScheduler": lambda: keras.callbacks.LearningRateScheduler(lambda _, r: r),
    }[name]()
    scheduled = keras.optimizers.SGD(schedules.cosine(0.1, steps=10))
    with pytest.raises(UserError, match=f"{name} sets the learning rate, which a schedule sets"):
        callback_run(mlp(), images, labels, [made], epochs=1, optimizer=scheduled)
    callback_run(mlp(), images, labels, [made], epochs=1)


def test_a_checkpoint_of_every_epoch_watches_nothing(images, labels, tmp_path):
    import keras

    from fmnist_lab.training import loop

    saving = keras.callbacks.ModelCheckpoint(str(tmp_path / "x.weights.h5"), save_weights_only=True)
    list(loop.train(mlp(), images, labels, build(SGD), epochs=1, callbacks=[saving]))
    assert (tmp_path / "x.weights.h5").exists()


def test_validations_are_announced(images, labels):
    import keras

    heard = []

    class Listening(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            heard.append("begin")

        def on_test_end(self, logs=None):
            heard.append(logs)

    (epoch,) = callback_run(mlp(), images, labels, [Listening()], epochs=1)
    scores = {"loss": epoch.validation.loss, "accuracy": epoch.validation.accuracy}
    assert heard == ["begin", scores]


def test_the_rate_is_lowered_on_a_plateau_and_obeyed(images, labels):
    import keras

    plateau = keras.callbacks.ReduceLROnPlateau(
        "loss", factor=0.5, patience=1, min_delta=1e9, cooldown=0
    )
    epochs = callback_run(mlp(), images, labels, [plateau], epochs=4)
    # The first epoch sets the best; each later one is no better by 1e9.
    assert [epoch.learning_rate for epoch in epochs] == pytest.approx([0.05, 0.05, 0.025, 0.0125])


def test_callbacks_see_epochs_from_zero_with_keras_own_names(images, labels):
    import keras

    class Listening(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.heard = []

        def on_epoch_end(self, epoch, logs=None):
            self.heard.append((epoch, sorted(logs)))

    listening = Listening()
    callback_run(mlp(), images, labels, [listening], epochs=2)
    names = ["accuracy", "learning_rate", "loss", "val_accuracy", "val_loss"]
    assert listening.heard == [(0, names), (1, names)]


def test_callbacks_that_act_on_batches_are_refused_by_name(images, labels):
    import keras

    class Nosy(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise AssertionError("there are no batches to act on")

    with pytest.raises(UserError, match=r"Nosy acts on batches \(on_train_batch_end\)"):
        callback_run(mlp(), images, labels, [Nosy()], epochs=1)


def test_a_checkpoint_at_each_epoch_is_no_batch_callback(images, labels, tmp_path):
    import keras

    saving = keras.callbacks.ModelCheckpoint(
        str(tmp_path / "{epoch}.weights.h5"), "loss", save_weights_only=True
    )
    callback_run(mlp(), images, labels, [saving], epochs=2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1.weights.h5", "2.weights.h5"]


def test_choosing_by_validation_needs_validation_images(images, labels):
    import keras

    from fmnist_lab.training import loop

    with pytest.raises(UserError, match=r"watches val_loss.*data\.validation_fraction"):
        next(
            loop.train(
                mlp(),
                images,
                labels,
                build(SGD),
                epochs=1,
                callbacks=[keras.callbacks.EarlyStopping()],
            )
        )


# Precision


@pytest.mark.slow
def test_bfloat16_keeps_weights_and_probabilities_in_float32(images, labels):
    import keras

    from fmnist_lab.training import engines

    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = cnn()
    finally:
        keras.config.set_dtype_policy("float32")
    epochs = run(model, images, labels, epochs=6)
    assert epochs[-1].loss < epochs[0].loss
    assert {str(variable.dtype) for variable in model.trainable_variables} == {"float32"}
    probabilities = engines.predict(model, images)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
