"""Checkpoints: saved whole or not at all, and a training goes on from one to the same bits."""

import numpy as np
import pytest

from fmnist_lab.errors import UserError
from fmnist_lab.training import checkpoint
from fmnist_lab.training.checkpoint import Checkpoint, Checkpointer, load, newest, save

SHAPE, CLASSES = (8, 6), 5


def state(epoch: int = 1, **others) -> Checkpoint:
    random = np.random.default_rng(epoch)
    return Checkpoint(
        epoch=epoch,
        stopped=False,
        history=[{"loss/test": 1 / number} for number in range(1, epoch + 1)],
        model=[random.random((7, 3), np.float32), np.uint32(epoch), np.zeros((0, 2))],
        optimizer=[np.int64(2**40 + epoch)],
        **others,
    )


def same(left: Checkpoint, right: Checkpoint) -> bool:
    def arrays(each: Checkpoint) -> list[tuple]:
        values = map(np.asarray, (*each.model, *each.optimizer))
        return [(value.dtype, value.shape, value.tobytes()) for value in values]

    plain = ("epoch", "stopped", "history")
    return arrays(left) == arrays(right) and all(
        getattr(left, name) == getattr(right, name) for name in plain
    )


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_comes_back_to_the_last_bit(tmp_path):
    callbacks = [
        {
            "best": np.float32(0.1),
            "wait": 3,
            "best_weights": [np.eye(2), np.ones(1)],
            "mode": "min",
        },
        {"nothing": None, "nested": {"a": [1.5, True]}, "huge": float("inf")},
        {},
    ]
    before = state(3, callbacks=callbacks)
    after = load(save(before, tmp_path))
    assert same(before, after)
    first, second, third = after.callbacks
    assert (type(first["best"]), first["best"]) == (np.float32, np.float32(0.1))
    assert first["wait"] == 3
    np.testing.assert_array_equal(first["best_weights"][0], np.eye(2))
    assert (second, third) == (callbacks[1], {})


def test_the_newest_two_are_kept(tmp_path):
    for epoch in (1, 2, 9, 10):
        save(state(epoch), tmp_path)
    assert names(tmp_path) == ["epoch-000009.npz", "epoch-000010.npz"]
    assert newest(tmp_path).epoch == 10
    assert newest(tmp_path, most=9).epoch == 9
    assert newest(tmp_path, most=8) is None
    save(state(11), tmp_path, keep=None)
    assert len(names(tmp_path)) == 3


def test_of_a_damaged_checkpoint_and_the_one_before_the_latter_is_used(tmp_path):
    save(state(1), tmp_path)
    file = save(state(2), tmp_path)
    content = file.read_bytes()
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        assert load(file) is None
        assert same(newest(tmp_path), state(1))
    file.write_bytes(content)
    assert same(newest(tmp_path), state(2))


def test_no_changed_byte_goes_unnoticed(tmp_path):
    """It is refused, or (in what zip files note beside the content) it changes nothing."""
    file = save(state(2), tmp_path)
    content = file.read_bytes()
    refused = 0
    for at in range(0, len(content), 3):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        file.write_bytes(changed)
        found = load(file)
        refused += found is None
        assert found is None or same(found, state(2)), at
    assert refused > len(content) / 3 / 2


def test_a_full_disk_leaves_the_earlier_ones_alone(tmp_path, monkeypatch):
    save(state(1), tmp_path)

    def full(stream, **_: object) -> None:
        stream.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        save(state(2), tmp_path)
    assert names(tmp_path) == ["epoch-000001.npz"]
    assert same(newest(tmp_path), state(1))


# Keeping a training's state now and then


class Trained:
    """Something with variables, as far as a keeper looks at it."""

    def __init__(self) -> None:
        self.variables: list = []


def kept_epochs(folder, every, epochs=5, callbacks=()) -> list[int]:
    """Note epochs, and return after which of them the state was saved."""
    keeper = Checkpointer(folder, every, Trained(), Trained(), callbacks)
    found = []
    for number in range(1, epochs + 1):
        keeper.after({"loss/test": 1.0}, last=number == epochs, epochs=epochs)
        if (folder / f"epoch-{number:06d}.npz").exists():
            found.append(number)
    return found


@pytest.mark.parametrize(
    ("every", "after"),
    [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), ("0s", [1, 2, 3, 4, 5]), ("1000s", [5]), (None, [])],
)
def test_the_state_is_saved_as_often_as_was_asked_and_at_the_end(tmp_path, every, after):
    assert kept_epochs(tmp_path, every) == after


def test_half_a_state_is_not_saved(tmp_path):
    class Holder:
        def __init__(self) -> None:
            self.opened = object()

    assert kept_epochs(tmp_path, 1, callbacks=[Holder()]) == []


def test_a_training_that_is_interrupted_saves_its_last_epoch(tmp_path):
    keeper = Checkpointer(tmp_path, "1000s", Trained(), Trained(), [])
    for _ in range(2):
        keeper.after({"loss/test": 1.0}, last=False, epochs=5)
    assert names(tmp_path) == []
    keeper.save()
    assert newest(tmp_path).epoch == 2


def test_a_disk_that_is_full_is_said_and_the_last_state_is_intact(tmp_path, monkeypatch):
    keeper = Checkpointer(tmp_path, 1, Trained(), Trained(), [])
    keeper.after({"loss/test": 1.0}, last=False, epochs=5)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.np, "savez", full)
    with pytest.raises(UserError, match=r"state after epoch 2 .*No space .*resume=true"):
        keeper.after({"loss/test": 1.0}, last=False, epochs=5)
    assert newest(tmp_path).epoch == 1


# Exactly on


@pytest.fixture(scope="module")
def pictures(backend) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (96, *SHAPE), np.uint8)
    return images, images[:, 3, :CLASSES].argmax(axis=1).astype(np.uint8)


def early_stopping():
    import keras

    return [keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True)]


def plateau():
    import keras

    return [keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=1)]


def adam():
    import keras

    return keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9)


def falling():
    import keras

    rate = keras.optimizers.schedules.CosineDecay(0.1, 36)
    return keras.optimizers.SGD(rate, momentum=0.9)


def steady():
    import keras

    return keras.optimizers.Adam(0.05)


CASES = {
    "averaged weights, dropout": (adam, list),
    "momentum, a schedule": (falling, list),
    "early stopping": (steady, early_stopping),
    "a rate that a callback lowers": (steady, plateau),
}


class Sitting:
    """As much of a training as one process comes to do."""

    def __init__(self, folder, pictures, optimizer, callbacks, epochs: int, until: int) -> None:
        import keras

        from fmnist_lab import models
        from fmnist_lab.training import engines, loop

        keras.utils.set_random_seed(0)
        images, labels = pictures
        self.model = models.mlp(SHAPE, CLASSES, hidden_units=16, dropout=0.3, batch_norm=True)
        self.optimizer, callbacks = optimizer(), callbacks()
        keeper = Checkpointer(folder, 1, self.model, self.optimizer, callbacks)
        self.resumed = keeper.resume([folder], epochs)
        over = keeper.stopped or len(keeper.history) == epochs
        trained = loop.train(
            self.model,
            images,
            labels,
            self.optimizer,
            epochs=epochs,
            seed=0,
            recipe=engines.Recipe(batch_size=16, engine="graph"),
            validation=(images[:20], labels[:20][::-1]),
            callbacks=callbacks,
            first_epoch=len(keeper.history) + 1,
            on_begin=keeper.begin,
        )
        for epoch in () if over else trained:
            probabilities = engines.predict(self.model, images)
            keeper.after(
                {"sum": float(probabilities[:, 0].sum()), "rate": epoch.learning_rate},
                last=epoch.last,
                epochs=epochs,
                chosen=epoch.chosen,
            )
            if epoch.number == until:
                break  # as a process that is killed between two epochs
        self.history, self.chosen = keeper.history, keeper.chosen

    @property
    def bits(self) -> list[bytes]:
        variables = (*self.model.variables, *self.optimizer.variables)
        return [np.asarray(variable).tobytes() for variable in variables]


@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, pictures, case):
    folders = [tmp_path / "whole", tmp_path / "parts"]
    for folder in folders:
        folder.mkdir()
    whole = Sitting(folders[0], pictures, *CASES[case], epochs=6, until=6)
    ended = len(whole.history)
    for until in (1, 3):
        part = Sitting(folders[1], pictures, *CASES[case], epochs=6, until=until)
        assert part.resumed == (until > 1)
    last = Sitting(folders[1], pictures, *CASES[case], epochs=6, until=6)
    assert last.history == whole.history
    assert last.bits == whole.bits
    # Once more after its end, it has nothing left to do.
    again = Sitting(folders[1], pictures, *CASES[case], epochs=6, until=6)
    assert again.history == whole.history
    assert again.bits == whole.bits
    assert again.chosen == last.chosen == whole.chosen
    if "stopping" in case:
        assert ended < 6
        assert whole.chosen is not None
    if "lowers" in case:
        assert whole.history[-1]["rate"] < whole.history[0]["rate"]
