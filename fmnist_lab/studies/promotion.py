"""A candidate and the champion in; whether the one is better than the other, out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fmnist_lab.errors import UserError
from fmnist_lab.evaluation import statistics
from fmnist_lab.evaluation.statistics import Comparison
from fmnist_lab.studies.beyond import TESTED, Predictions
from fmnist_lab.studies.comparison import Verdict
from fmnist_lab.studies.differences import Side

TEST_SET = (
    "They were compared on the test images, because {reason}: this choice has looked at the test "
    "set, so that the test accuracy of the one that is chosen looks better than it is."
)


@dataclass(frozen=True)
class Judgement:
    """Which of two models is better, on images that both have predicted.

    Attributes:
        found: The candidate's accuracy minus the champion's, with its exact test.
        basis: A sentence on the images, for a choice that has looked at the test set; else "".
        metric: What was compared.
    """

    found: Comparison
    basis: str
    metric: str

    @property
    def is_better(self) -> bool:
        """Whether there is evidence that the candidate is better."""
        return self.found.evidence and self.found.difference > 0

    @property
    def words(self) -> str:
        """The comparison in words, without a full stop."""
        return self.found.sentence("the candidate", "the champion", self.metric)


def judge(candidate: Side, champion: Side, verdict: Verdict, validation: Predictions) -> Judgement:
    """Say whether a candidate is better than the champion.

    The images are the validation images if both runs have held out the same ones, which equal
    digests of the data tell, and have kept their predictions; else the test images.

    Args:
        candidate: The run that is to be promoted.
        champion: The run that is promoted now.
        verdict: What `comparison.compare` says of the two.
        validation: Returns what a run has predicted for its validation images.

    Raises:
        UserError: Their predictions are not there, or of other images.
    """
    runs = [side.ids[0] for side in (candidate, champion)]
    digests = [side.tags[side.ids[0]].get("data.digest") for side in (candidate, champion)]
    reason = "the two runs have not held out the same validation images"
    if digests[0] and digests[0] == digests[1]:
        try:
            (mine, labels), (its, others) = (validation(run) for run in runs)
        except UserError:
            reason = "one of the runs has no predictions of validation images"
        else:
            if np.array_equal(labels, others):
                found = statistics.mcnemar_exact(
                    mine.argmax(axis=1) == labels, its.argmax(axis=1) == labels
                )
                sample = found.sample.replace("test images", "validation images")
                return Judgement(replace(found, sample=sample), "", "validation accuracy")
    for result in verdict.matches[0].results:
        if result.metric == TESTED and result.found is not None:
            return Judgement(result.found, TEST_SET.format(reason=reason), "test accuracy")
    raise UserError(f"runs {runs[0]} and {runs[1]} cannot be compared on the same images")
