"""How long a run, a sweep or a search takes, in words; `estimate` knows the costs of one job."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from fmnist_lab.config.schema import Config
from fmnist_lab.sweep.estimate import makespan
from fmnist_lab.sweep.known import FINISHED, KnownJobs, Planned
from fmnist_lab.sweep.search import rungs
from fmnist_lab.sweep.search.control import Search
from fmnist_lab.texts import counted, duration
from fmnist_lab.tracking import history

EXAMPLES = 12  # trials that tell how long the trials of a search take on average

# Seconds until a run begins, and of a sweep beside its jobs: Hydra, MLflow, TensorFlow, the report.
START_SECONDS = 5.0
SWEEP_START_SECONDS = 2.5  # until its parent run is there
BEFORE_SECONDS, AFTER_SECONDS, BETWEEN_SECONDS = 3.5, 2.5, 0.4
COMPOSED_SECONDS = 0.08  # of each job's config, which Hydra composes before the first job
ANSWERED_SECONDS = 0.5  # of a job whose result is taken over


@dataclass(frozen=True)
class Left:
    """What is left of a search's budget.

    Attributes:
        trials: All trials; None: no limit.
        seconds: Seconds until its time is up; None: no limit.
        begun: Trials that have been begun before.
        finished: Those of them that have come to their end.
    """

    trials: int | None
    seconds: float | None
    begun: int = 0
    finished: int = 0

    def after(self, begun: int, finished: int, spent: float) -> Left:
        """Return what is left after so many trials and seconds."""
        seconds = None if self.seconds is None else max(self.seconds - spent, 0.0)
        return Left(self.trials, seconds, begun, finished)

    @property
    def begins(self) -> int:
        """How many trials are to be begun; 0 if nobody knows."""
        return max((self.trials or 0) - self.begun, 0)

    @property
    def unfinished(self) -> int:
        """How many trials may still come to their end; 0 if nobody knows."""
        return max((self.trials or 0) - self.finished, 0)


def of_run(job: Planned) -> str:
    """Return the time of a single run in words."""
    return f"about {duration(START_SECONDS + job.seconds)}; {source([job])}"


def of_search(
    known: KnownJobs,
    search: Search,
    dearest: Planned,
    left: Left,
    workers: int | None,
) -> str:
    """Return the time of a search in words: the likely one, and the longest that it may take.

    Args:
        known: All that is known of jobs.
        search: The search.
        dearest: The trial that takes longest.
        left: What is left of its budget.
        workers: Jobs at once; None if a cluster decides that.
    """
    options, side_by_side = search.options, workers or 1

    def took(job: Planned, entered: Sequence[float]) -> float:
        """Return the seconds of workers per trial, if so many per trial come to each rung."""
        assert job.cost is not None
        steps = options.rungs(job.epochs)
        epochs = [step - before for before, step in itertools.pairwise((0, *steps))]
        # A trial that is paused is a job of its own at each rung.
        trained = sum(share * each for share, each in zip(entered, epochs, strict=True))
        return sum(entered) * (job.cost.fixed + BETWEEN_SECONDS) + trained * job.cost.epoch

    def whole(
        jobs: Sequence[Planned], entered: Sequence[float], trials: int, share: float
    ) -> float:
        """Return the seconds of a search; a share of a trial follows when its time is up."""
        trial = mean(took(job, entered) for job in jobs)
        limits = [trial * -(-trials // side_by_side)] if left.trials is not None else []
        limits += [left.seconds + share * trial] if left.seconds is not None else []
        final = mean(known.job("", _on_all_images(job)).seconds for job in jobs) + BETWEEN_SECONDS
        around = SWEEP_START_SECONDS + BEFORE_SECONDS + AFTER_SECONDS
        return around + min(limits) + final * -(-options.finals // side_by_side)

    steps = options.rungs(dearest.epochs)
    usual = [known.job("", config) for config in search.examples(EXAMPLES)]
    count = left.trials or rungs.MOST_TRIED
    entered = rungs.entrants(count, steps, options.pruning, options.reduction)
    most = whole([dearest], [1.0] * len(steps), left.unfinished, 1.0)
    likely = whole(usual or [dearest], [each / count for each in entered], left.begins, 0.5)
    how = f"on {counted(workers, 'worker')}" if workers else "if one job ran at a time"
    finals = options.finals
    more = f", {counted(finals, 'training')} of the winner included" if finals else ""
    return f"about {duration(min(likely, most))}, and at most about {duration(most)} {how}{more}"


def _on_all_images(job: Planned) -> Config:
    """Return the config of a trial as its winner is trained."""
    assert job.config is not None
    data = job.config.data.model_copy(update={"validation_fraction": 0.0})
    return job.config.model_copy(update={"data": data})


def of_sweep(
    jobs: Sequence[Planned], known: KnownJobs, workers: int | None, resume: bool, shared: bool
) -> str:
    """Return the time of a sweep in words; with `shared`, jobs go on from shorter ones' epochs."""
    past = history.past_sweeps(known.store, known.host) if known.store else []

    usual = median([job.seconds for job in jobs if job.cost] or [0.0])

    def part(job: Planned, resumed: bool) -> tuple[float, float, int, str | None]:
        if resumed and job.state == FINISHED:
            return ANSWERED_SECONDS, 0.0, 0, None
        if job.config is None or job.cost is None:
            return usual, 0.0, 0, None
        prefix = job.config.prefix_identity() if shared else None
        return job.cost.fixed, job.cost.epoch, job.epochs, prefix

    def whole(resumed: bool) -> float:
        todo = [part(job, resumed) for job in jobs]
        same = [each for each in past if each.workers == workers] or past
        composed = COMPOSED_SECONDS * len(jobs)
        before, after, between = BEFORE_SECONDS, AFTER_SECONDS, BETWEEN_SECONDS
        if same:
            before = median(max(s.before - COMPOSED_SECONDS * s.runs, 0.5) for s in same)
            after, between = (median(s.after for s in same), median(s.between for s in same))
        after = after if known.store else 0.0
        took = makespan(todo, workers or 1, between)
        return SWEEP_START_SECONDS + composed + before + took + after

    finished = any(job.state == FINISHED for job in jobs)
    how = "one job at a time" if workers == 1 else f"{workers} jobs at a time"
    if workers is None:
        how = "if one job ran at a time; the cluster decides how many do"
    more = f"; with resume=true {duration(whole(True))}" if finished and not resume else ""
    return f"about {duration(whole(resume))}, {how}{more}; {source(jobs)}"


def source(jobs: Sequence[Planned]) -> str:
    """Say where the estimates of jobs come from."""
    costs = [job.cost for job in jobs if job.cost]
    runs = {run for cost in costs for run in cost.runs}
    modelled = [cost for cost in costs if not cost.runs]
    if any(not cost.known for cost in modelled):
        return "a guess: this machine's runs in the store have no model of this kind"
    if not runs:
        return "from a cost model, because the store has no run of this kind on this machine"
    told = f"from {counted(len(runs), 'earlier run')} on this machine"
    return told + (" and, for other models, a cost model" if modelled else "")
