"""What results are worth beyond these seeds and these test images: in numbers, and in words.

The interval over seeds tells what other seeds would do on the same test images. These are a sample
as well; which of them each run gets right tells what other images would do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fmnist_lab.errors import UserError
from fmnist_lab.evaluation import statistics, variance
from fmnist_lab.evaluation.statistics import Comparison, Superiority
from fmnist_lab.evaluation.variance import FiniteTestSet
from fmnist_lab.studies.frames import METRICS, TEST_SETS, grouped, percent
from fmnist_lab.studies.summary import Study
from fmnist_lab.texts import counted

# Probabilities float (n, classes) and labels int (n,) of a run, by its id.
Predictions = Callable[[str], tuple[np.ndarray, np.ndarray]]
Correct = NDArray[np.bool_]

TESTED, GAP = "accuracy/test", "accuracy/gap"
# Runs whose predictions are read, at some 0.02 s each: for a comparison, and for a report.
MOST_COMPARED, MOST_REPORTED = 200, 60


class OnNewImages(NamedTuple):
    """Two settings on other test images: each side's part, and the difference's interval."""

    a: FiniteTestSet
    b: FiniteTestSet
    low: float
    high: float


class Beyond(NamedTuple):
    """What a difference is worth beyond the runs; None where that cannot be told."""

    superiority: Superiority | None
    images: OnNewImages | None


def correct_of(run_ids: Sequence[str], predictions: Predictions) -> Correct:
    """Return which test images each run gets right, bool (runs, images).

    Args:
        run_ids: The runs.
        predictions: Returns what a run has predicted for the test set.

    Raises:
        UserError: A run has no predictions, or was tested on other images than the first.
    """
    found: list[Correct] = []
    known: np.ndarray | None = None
    for run in run_ids:
        probabilities, labels = predictions(run)
        known = labels if known is None else known
        if not np.array_equal(labels, known):
            raise UserError(f"runs {run_ids[0]} and {run} were tested on different images")
        found.append(probabilities.argmax(axis=1) == labels)
    return np.stack(found)


class Correctness:
    """Which test images each run gets right, for as many runs as are read within seconds.

    Attributes:
        fault: Why it cannot be told of some runs; empty if it can be told of all that were asked.
    """

    def __init__(self, predictions: Predictions, most: int = MOST_COMPARED) -> None:
        self.fault = ""
        self._predictions = predictions
        self._left = most

    def of(self, run_ids: Sequence[str]) -> Correct | None:
        """Return bool (runs, images), in the order of the runs; None if it cannot be told."""
        if self.fault or len(run_ids) > self._left:
            return None
        self._left -= len(run_ids)
        try:
            return correct_of(run_ids, self._predictions)
        except UserError as error:
            self.fault = str(error)
            return None


def beyond(
    metric: str,
    found: Comparison,
    sides: tuple[pd.DataFrame, pd.DataFrame],
    correct: tuple[Correct | None, Correct | None],
    paired: bool,
) -> Beyond | None:
    """Return what a difference in an accuracy or its gap is worth beyond the runs.

    Args:
        metric: The metric.
        found: Its difference over the seeds.
        sides: The runs of A and those of B.
        correct: What `Correctness.of` returns of them.
        paired: Whether the sides' runs belong together in pairs.

    Returns:
        None if the difference has no interval.
    """
    if np.isnan(found.p_value):
        return None
    mine, its = (side[metric].to_numpy(float) for side in sides)
    wins = None if metric == GAP else statistics.superiority(mine, its, paired)
    a, b = correct
    images = None
    if metric in (TESTED, GAP) and a is not None and b is not None and a.shape[1] > 1:
        low, high = variance.on_new_images(found, a, b, paired=paired)
        parts = (variance.finite_test_set(a, mine), variance.finite_test_set(b, its))
        images = OnNewImages(*parts, low, high)
    return Beyond(wins, images)


def of_one(results: Iterable[tuple[str, Beyond]], paired: bool) -> list[str]:
    """Return sentences on one pair of settings, for the metrics of which there is something to say.

    Args:
        results: The metrics, with what their differences are worth.
        paired: Whether the sides' runs belong together in pairs.
    """
    known = dict(results)
    sentences = []
    if TESTED in known and (wins := known[TESTED].superiority):
        times = f"{wins.share * wins.pairs:g} of {counted(wins.pairs, 'pair')}"
        sentences.append(
            f"With {'a new seed for both' if paired else 'new seeds'}, A beats B in test accuracy "
            f"with probability {wins.probability:.2f} [{wins.low:.2f}, {wins.high:.2f}] (normal "
            f"model; A was higher in {times} of runs)."
        )
    told = {metric: found.images for metric, found in known.items() if found.images}
    if told:
        intervals = " and ".join(
            f"{_signed(images.low)} to {_signed(images.high)} for {METRICS[metric].lower()}"
            for metric, images in told.items()
        )
        sentences.append(
            "With other test images as well as other seeds, the 95 % interval of A - B is "
            f"{intervals}."
        )
    if tested := told.get(TESTED):
        shares = " and ".join(
            f"{percent(part.share)} [{percent(part.low)}, {percent(part.high)}] in {name}"
            for name, part in (("A", tested.a), ("B", tested.b))
            if not np.isnan(part.share)
        )
        if shares:
            sentences[-1] += (
                f" The {tested.a.images:,} test images make {shares} of the variance of test "
                "accuracy between runs."
            )
    return sentences


def of_several(results: Sequence[Beyond | None]) -> list[str]:
    """Return sentences on the test accuracy of several pairs of settings.

    Args:
        results: What `beyond` returns of each.
    """
    known = [each for each in results if each]
    sentences = []
    wins = [each.superiority for each in known if each.superiority]
    if wins:
        chances = [each.probability for each in wins]
        least, most = min(each.low for each in wins), max(each.high for each in wins)
        sentences.append(
            f"With new seeds, the probability that A beats B in test accuracy is {_range(chances)} "
            f"in {len(wins)} of {counted(len(results), 'setting')}; their 95 % intervals reach "
            f"from {least:.2f} to {most:.2f}."
        )
    parts = [part for each in known if each.images for part in each.images[:2]]
    made = _shares(parts, f"The {parts[0].images:,} test images make") if parts else []
    return [*sentences, *made]


def of_study(study: Study, predictions: Predictions) -> list[str]:
    """Return what the finite test set does to the test accuracies of a study, in a sentence.

    It is told from the predictions of settings with several runs, as far as these can be read;
    else by the binomial distribution, of which one run's predictions tell the number of images.
    """
    if any(name in study.parameters for name in TEST_SETS):
        return []
    correctness, parts = Correctness(predictions, MOST_REPORTED), []
    for runs in grouped(study.used, study.parameters).values():
        correct = correctness.of(runs["run_id"].tolist()) if len(runs) > 1 else None
        if correct is not None and correct.shape[1] > 1:
            parts.append(variance.finite_test_set(correct, None))
    if parts:
        images = parts[0].images
        moved = 1.96 * max(part.error for part in parts)
        whence, rest = "", _shares(parts, "They also make")
    else:
        one = Correctness(predictions).of(study.used["run_id"].tolist()[:1])
        if one is None:
            return []
        images, shares = one.shape[1], study.used[TESTED].to_numpy(float)
        moved = 1.96 * float(np.sqrt(shares * (1 - shares) / images).max())
        whence, rest = " (binomial)", []
    sample = (
        f"The {images:,} test images are a sample as well: others would move each mean by up to ± "
        f"{moved:.4f}{whence}; `runs compare` tells how much of that two settings share."
    )
    return [" ".join([sample, *rest])]


def _shares(parts: Sequence[FiniteTestSet], they_make: str) -> list[str]:
    shares = [100 * part.share for part in parts if not np.isnan(part.share)]
    if not shares:
        return []
    middle = ""
    if len(shares) > 2:
        middle = f" (median {median(shares):.0f} %, {counted(len(shares), 'setting')})"
    return [
        f"{they_make} {_range(shares, '.0f')} %{middle} of the variance of test accuracy between "
        "runs that differ only in their seed."
    ]


def _range(values: Sequence[float], form: str = ".2f") -> str:
    low, high = (format(each, form) for each in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _signed(value: float) -> str:
    # Rounded first, and 0 added, so that there is no -0.0000.
    return f"{round(value, 4) + 0.0:+.4f}"
