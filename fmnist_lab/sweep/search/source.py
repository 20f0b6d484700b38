"""The jobs of a search, chosen one by one as places become free."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fmnist_lab.sweep.search import rungs, sampler
from fmnist_lab.sweep.search.options import SearchOptions
from fmnist_lab.sweep.search.space import Space
from fmnist_lab.sweep.search.trials import FINALS, Failure, Trial, TrialLog, final_number, trial_of

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn

# A job whose worker was lost is given out so often again.
RETRIES = 1
# After so many jobs in a row that a disk or a store has failed, the others would fail as well.
MOST_IN_TROUBLE = 3


class Listener(Protocol):
    """Whoever wants to know what happens in a search."""

    def trial_over(self, trial: Trial) -> None:
        """A trial has come to a rung, or has failed."""

    def finals_begin(self, trial: Trial) -> None:
        """The winner is going to be trained on all images."""

    def final_over(self, number: int, metrics: Mapping[str, float], failure: str) -> None:
        """The winner was trained once on all images."""


@dataclass(frozen=True)
class Choice:
    """What to do next: a new trial, or a job by its number."""

    kind: Literal["trial", "promoted", "final", "again"]
    number: int = 0
    epochs: int = 0


class SearchSource:
    """A `JobSource` that gives out trials, then the trainings of the winner.

    Attributes:
        width: The most jobs that can be useful at once.
        busy: When each job that runs was given out, by its number.
        workers: The most jobs that have run at once in this command.
        trouble: Why no more jobs are given out before the search is at its end, or "".
    """

    def __init__(
        self,
        options: SearchOptions,
        space: Space,
        log: TrialLog,
        *,
        epochs: int,
        seeds: Sequence[int],
        final_words: Callable[[Trial], Sequence[str]],
        listener: Listener,
        resumed: bool = False,
    ) -> None:
        """Go on where the log ends.

        Args:
            options: The search's.
            space: Its space.
            log: All that has happened before.
            epochs: Epochs of a trial that is never paused; 0 if each has its own.
            seeds: The seeds that the winner is trained with.
            final_words: Returns the overrides of a winner's trainings beside their seeds.
            listener: Is told what happens.
            resumed: Whether the config of a job has resume=true, unless the job says otherwise.
        """
        # A job always finds its own runs. With resume=true it would also take over those of another
        # search, which may be at another epoch and belong to that search's trials.
        self._always = ["resume=false"] if resumed else []
        self.options, self.space, self.log, self.listener = options, space, log, listener
        self.trials = log.trials
        self.rungs = options.rungs(epochs)
        size = space.size()
        limits = [each for each in (options.n_trials, size) if each is not None]
        self.most = min(limits) if limits else None
        self.width = None if self.most is None else max(self.most, options.finals, 1)
        self.seeds, self.final_words = seeds, final_words
        self.busy: dict[int, float] = {}
        self.workers = 0
        self.trouble = ""
        self._in_trouble = 0
        self._lost: Counter[int] = Counter()
        self.trials.reopen()
        # A job that ran when an earlier command was killed goes on first.
        self._again = [number for number in self.trials.open() if self._is_wanted(number)]
        self._began = time.monotonic() - self.trials.seconds

    @property
    def last(self) -> int:
        """The epochs of a trial that is never paused."""
        return self.rungs[-1]

    @property
    def seconds(self) -> float:
        """The time that the search has taken, in this command and those before."""
        return time.monotonic() - self._began

    @property
    def is_late(self) -> bool:
        """Whether the search's time is up."""
        return self.options.timeout is not None and self.seconds >= 60 * self.options.timeout

    def scores(self, rung: int) -> dict[int, float]:
        """Return what all trials have reached on a rung; more is better."""
        return self.trials.scores(rung, self.options.signs)

    def best(self) -> Trial | None:
        """Return the best of the trials that have reached the last rung."""
        front = self.front()
        return self.trials.all[front[0]] if front else None

    def front(self) -> list[int]:
        """Return the trials that are not beaten in every objective, the best in the first first."""
        points = self.trials.points(self.last, self.options.signs)
        if len(self.options.signs) == 1:
            return rungs.ranked({number: point[0] for number, point in points.items()})[:1]
        return rungs.pareto(points)

    def next(self) -> tuple[int, list[str]] | None:
        """Return the next job, or None if there is none at the moment."""
        choice = None if self.trouble else self._choose()
        if choice is None:
            return None
        number = choice.number
        if choice.kind == "again":
            self._again.remove(number)
        elif choice.kind == "trial":
            number = len(self.trials.all)
            values, attrs = sampler.suggest(self.options, self.space, self.trials, self.last)
            self._write("trial", number, epochs=choice.epochs, values=values, attrs=attrs)
        elif choice.kind == "promoted":
            self._write("promoted", number, epochs=choice.epochs)
        else:
            if number == final_number(trial_of(number), 0):
                self.listener.finals_begin(self.trials.all[trial_of(number)])
            self._write("final", number)
        self.busy[number] = time.monotonic()
        self.workers = max(self.workers, len(self.busy))
        return number, self._overrides(number)

    def exhausted(self) -> bool:
        """Return whether there is nothing more to do unless a job ends that runs now."""
        return bool(self.trouble) or self._choose() is None

    def over(self, number: int, result: JobReturn) -> None:
        """Take in how a job has ended.

        Args:
            number: The job's number.
            result: What it has returned.
        """
        took = time.monotonic() - self.busy.pop(number)
        returned: dict[str, Any] = dict(result.return_value or {})
        failure = str(returned.get("failure", ""))
        elsewhere = returned.get("kind") == Failure.ELSEWHERE
        self._in_trouble = self._in_trouble + 1 if elsewhere else 0
        if self._in_trouble == MOST_IN_TROUBLE:
            self.trouble = f"{MOST_IN_TROUBLE} jobs in a row failed for one reason: {failure}"
        if returned.get("lost") and self._lost[number] < RETRIES:
            self._lost[number] += 1
            self._again.append(number)
        elif number >= FINALS:
            self._write("final over", number, reason=failure)
            self.listener.final_over(number, returned, failure)
        else:
            self._trial_over(self.trials.all[number], returned, failure, took)

    def _trial_over(
        self, trial: Trial, metrics: Mapping[str, Any], failure: str, took: float
    ) -> None:
        spent = {"epoch": trial.asked, "took": round(took, 3)}
        kind = str(metrics.get("kind", ""))
        objectives = [float(metrics.get(name, math.nan)) for name in self.options.objectives]
        missing = [
            name
            for name, value in zip(self.options.objectives, objectives, strict=True)
            if not math.isfinite(value)
        ]
        if missing and not failure:
            failure = f"it has no {missing[0]} after its last epoch"
            kind = Failure.LASTING
        if failure:
            self._write("failed", trial.number, reason=failure, kind=kind, **spent)
        else:
            # A trial that has ended by itself, as by early stopping, stays as it is.
            ended = metrics.get("epoch", trial.asked) < trial.asked
            reached = [rung for rung in self.rungs if rung >= trial.asked] if ended else []
            epochs = reached or [trial.asked]
            self._write("result", trial.number, epochs=epochs, objectives=objectives, **spent)
        self.listener.trial_over(trial)

    def _write(self, event: str, number: int, **facts: Any) -> None:
        self.log.write(event, number, self.seconds, **facts)

    def _overrides(self, number: int) -> list[str]:
        trial = self.trials.all[trial_of(number)]
        if number >= FINALS:
            seed = self.seeds[number - final_number(trial.number, 0)]
            more = [*self.final_words(trial), f"seed={seed}"]
        else:
            more = [f"pause_after={trial.asked}"] if trial.asked != self.last else []
        return self.space.overrides(trial.values, [*more, *self._always])

    def _is_wanted(self, number: int) -> bool:
        """Return whether a job is a trial, or a training with one of the seeds asked for now."""
        return number < FINALS or number - final_number(trial_of(number), 0) < len(self.seeds)

    def _choose(self) -> Choice | None:
        if self._again:
            return Choice("again", self._again[0])
        if not self.is_late:
            if choice := self._promotion():
                return choice
            if self.most is None or len(self.trials.all) < self.most:
                return Choice("trial", epochs=self.rungs[0])
        if any(number < FINALS for number in self.busy):
            return None
        if self.best() is None:
            return self._last_promotion()
        return self._final()

    def _promotion(self) -> Choice | None:
        """Return the trial that goes on now: the one that has come furthest, of several."""
        for rung, following in reversed(list(zip(self.rungs, self.rungs[1:], strict=False))):
            scores = self.scores(rung)
            gone = {number for number in scores if self.trials.all[number].asked > rung}
            count = rungs.places(self._entered(rung), self.options.pruning, self.options.reduction)
            number = rungs.promotable(scores, gone, count)
            if number is not None:
                return Choice("promoted", number, following)
        return None

    def _entered(self, rung: int) -> int:
        """Return how many trials have reached a rung, or have failed on the way to it."""
        return sum(
            rung in trial.results or (bool(trial.failure) and trial.asked == rung)
            for trial in self.trials.all
        )

    def _last_promotion(self) -> Choice | None:
        """Return the best trial of the highest rung, if none has come to the last one.

        It takes fewer trials than a promotion to the last rung needs, or less time.
        """
        for rung, following in reversed(list(zip(self.rungs, self.rungs[1:], strict=False))):
            if ranked := rungs.ranked(self.scores(rung)):
                return Choice("promoted", ranked[0], following)
        return None

    def _final(self) -> Choice | None:
        best = self.best()
        assert best is not None
        for place in range(len(self.seeds)):
            number = final_number(best.number, place)
            if number not in self.trials.finals:
                return Choice("final", number)
        return None
