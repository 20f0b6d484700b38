"""What a run's screens say, from figures made up for it."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from fmnist_lab import data
from fmnist_lab.evaluation.metrics import Scores
from fmnist_lab.jobs import screen
from fmnist_lab.jobs import verdict as verdicts
from fmnist_lab.training.checkpoint import Chosen


def dataset(train: int, test: int, validation: int = 0) -> data.Dataset:
    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((count, 28, 28), np.uint8), (np.arange(count) % 10).astype(np.uint8)

    names = data.FASHION_MNIST.class_names
    return data.Dataset(*part(train), *part(validation), *part(test), names, "some", "", "")


def verdict(train: tuple[int, int], test: tuple[int, int]) -> str:
    """What is said of so many right of so many."""
    shares = [hits / count for hits, count in (train, test)]
    metrics = {
        "accuracy/train": shares[0],
        "accuracy/test": shares[1],
        "accuracy/gap": shares[0] - shares[1],
    }
    return verdicts.verdict(metrics, dataset(train[1], test[1]))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ((96, 1_000), (41, 500)),  # untrained
        ((6_000, 60_000), (1_000, 10_000)),  # diverged to one class
        ((5, 64), (4, 64)),
        ((1, 10), (0, 10)),
    ],
)
def test_a_model_that_has_learnt_nothing_does_not_overfit(train, test):
    said = verdict(train, test)
    usual = -(-train[1] // 10)
    assert said.startswith(
        f"It is right for {train[0]:,} of {train[1]:,} training images; always answering "
        f"'T-shirt/top' would be right for {usual:,}."
    )
    assert "it overfits" not in said


@pytest.mark.parametrize(("train", "test"), [((50, 64), (47, 64)), ((800, 1_000), (395, 500))])
def test_a_gap_that_chance_makes_is_no_evidence(train, test):
    said = verdict(train, test)
    gap = train[0] / train[1] - test[0] / test[1]
    assert said.startswith(
        f"There is no evidence of overfitting: the gap is {gap:+.4f}, with a 95 %"
    )
    assert said.endswith(f"for {train[1]:,} training and {test[1]:,} test images.")


def test_a_gap_beyond_chance_is_said_with_its_interval():
    assert verdict((54_075, 60_000), (8_757, 10_000)) == (
        "In 100 images it gets 2.6 more right (95 % interval 1.9 to 3.3) among those it has seen "
        "than among new ones: it overfits by that much."
    )


def test_a_training_figure_of_wrong_labels_is_not_taken_for_the_absence_of_overfitting():
    said = verdict((700, 1_000), (830, 1_000))
    assert "the gap is -0.1300" in said
    assert "this gap does not tell whether the model overfits" in said


@pytest.mark.parametrize(
    ("memorised", "clean", "said"),
    [
        (0.9, 0.7, "and the difference is learnt by heart. It sees through 5.0 %"),
        (0.03, 0.9, "so there is no evidence that it has learnt any by heart. It sees through"),
        (0.9, 0.7, "it gets 10.0 fewer of 100 right (95 % interval 6.2 to 13.7) among those than"),
        (0.03, 0.9, "it gets 10.0 more of 100 right (95 % interval 6.9 to 13.1) among those than"),
        (0.03, 0.81, "the gap is +0.0100, with a 95 % interval from -0.0247 to +0.0447: no evid"),
    ],
)
def test_of_wrong_labels_it_is_said_what_the_figures_are_of(memorised, clean, said):
    true = (np.arange(1_000) % 10).astype(np.uint8)
    some = dataset(1_000, 1_000)
    noisy = replace(some, train_labels=np.where(true < 2, true + 1, true), clean_train_labels=true)
    metrics = {
        "accuracy/train": 0.95,
        "accuracy/test": 0.8,
        "accuracy/gap": 0.15,
        "accuracy/train_clean": clean,
        "accuracy/gap_clean": clean - 0.8,
        "mislabelled/memorised": memorised,
        "mislabelled/seen_through": 0.05,
        "mislabelled/by_mistake": 0.025,
    }
    told = screen.verdict(metrics, noisy)
    assert told.startswith(
        "The training figure, and so the gap, is by the labels that the model was trained on, and "
        "200 of those 1,000 were made wrong. Of these 200 images it predicts "
        f"{100 * memorised:.1f} % as the wrong label that they have; on test images of the same "
        "classes, that mistake happens in 2.5 %, "
    )
    assert said in told


@pytest.mark.usefixtures("backend")
def test_the_chosen_epoch_has_a_line_of_its_own():
    from fmnist_lab.training.loop import Epoch

    scores = Scores(0.81, 0.5)
    epoch = Epoch(5, 0.25, 0.95, scores, 0.001, 100, 1.0, True, Chosen(2, "val_loss", 0.4))
    metrics = {"accuracy/validation": 0.83, "accuracy/test": 0.82, "accuracy/gap": 0.05}
    file = io.StringIO()
    with screen.TrainingDisplay(Console(file=file, width=80), 9, 100, validated=True) as display:
        display.finished(epoch, metrics)
    header, last, chosen = file.getvalue().splitlines()[:3]
    assert header.split()[:5] == ["epoch", "loss", "accuracy", "validation", "test"]
    assert last.split()[:5] == ["5/9", "0.2500", "0.9500", "0.8100", "100"]
    assert chosen.split() == ["2/9", "0.8300", "0.8200", "+0.0500", "chosen"]
    assert max(map(len, (header, last, chosen))) < 80


@pytest.mark.parametrize(
    ("stopped", "chosen", "said"),
    [
        (False, None, ""),
        (True, None, "A callback stopped the training after epoch 5.\n"),
        (
            True,
            Chosen(2, "val_loss", 0.4),
            "A callback stopped the training after epoch 5 and put back the weights of epoch 2, "
            "whose validation loss, 0.4000, was the best; all that follows is of the model with "
            "those.\n",
        ),
        (
            False,
            Chosen(),
            "At the end of the training a callback put back weights of its own; all that follows "
            "is of the model with those.\n",
        ),
    ],
)
def test_the_end_of_a_training_says_whose_weights_the_model_has(stopped, chosen, said):
    shown = screen.Screen(dataset(10, 10))
    shown.console = Console(file=io.StringIO(), width=400)
    shown.ended(5, stopped, str(chosen or ""))
    assert shown.console.file.getvalue() == said


@pytest.mark.parametrize(
    ("temperature", "said"),
    [
        (1.52, "too sure of itself (temperature 1.52)"),
        (1.01, "about as sure of itself as it should be (temperature 1.01)"),
        (0.8, "not sure enough of itself (temperature 0.80)"),
    ],
)
def test_a_temperature_is_told_by_what_it_means(temperature, said):
    figures = {"temperature": temperature, "ece": 0.04, "ece_scaled": 0.01}
    told = verdicts.on_confidence(
        {f"calibration/{name}": each for name, each in figures.items()}, 500
    )
    assert f"it is {said}. With that temperature" in told
    assert told.endswith("on the test images is 0.0100 instead of 0.0400.")


def test_too_few_images_for_a_temperature_are_told():
    figures = {"temperature": 1.0, "ece": 0.04, "ece_scaled": 0.04}
    metrics = {f"calibration/{name}": each for name, each in figures.items()}
    told = verdicts.on_confidence(metrics, 60)
    assert "60 validation images are too few to fit a temperature" in told
