"""The next values to try, chosen by Optuna from all that is known.

A sampler is made anew for every trial, with a seed from the search's own and the trial's number,
and is told all trials of the log. So a search that was interrupted goes on to the same trials.
"""

from __future__ import annotations

import hashlib
import random
import warnings
from typing import TYPE_CHECKING, Any

from fmnist_lab.sweep.search.options import SearchOptions
from fmnist_lab.sweep.search.space import Space, Value
from fmnist_lab.sweep.search.trials import Trial, Trials

if TYPE_CHECKING:
    import optuna

# A sampler may choose what was tried already, in a space with few values.
ATTEMPTS = 10


def suggest(
    options: SearchOptions, space: Space, trials: Trials, last: int
) -> tuple[dict[str, Value], dict[str, Any]]:
    """Choose the values of the next trial, other than those of all trials before.

    Args:
        options: The search's.
        space: Its space; there are values left that were not tried.
        trials: All trials so far.
        last: The epochs of a trial that is never paused.

    Returns:
        The value of each key; and what the sampler has to know of it later, as JSON takes it.
    """
    number = len(trials.all)
    if options.sampler == "grid":
        return space.grid(options.seed)[number], {}
    tried = [trial.values for trial in trials.all]
    for attempt in range(ATTEMPTS):
        seed = _seed(options.seed, number, attempt)
        values, attrs = _asked(options, space, trials, last, seed)
        if values not in tried:
            return values, attrs
    if space.size() is None:
        return values, attrs
    left = [values for values in space.grid(options.seed) if values not in tried]
    return random.Random(_seed(options.seed, number, ATTEMPTS)).choice(left), {}


def drawn(options: SearchOptions, space: Space, count: int) -> list[dict[str, Value]]:
    """Return trials that are drawn by chance, whatever the search's sampler is.

    Args:
        options: The search's.
        space: Its space.
        count: The number of trials.
    """
    chance = options.model_copy(update={"sampler": "random"})
    return [_asked(chance, space, Trials(), 0, _seed(0, each, 0))[0] for each in range(count)]


def _seed(search: int, number: int, attempt: int) -> int:
    """Return a seed of 32 bits for a trial."""
    digest = hashlib.sha256(f"{search} {number} {attempt}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _asked(
    options: SearchOptions, space: Space, trials: Trials, last: int, seed: int
) -> tuple[dict[str, Value], dict[str, Any]]:
    """Return what a new sampler chooses."""
    import optuna

    # Of what could be faster, such as another package for `gp`, it warns at every trial.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {axis.name: axis.distribution() for axis in space.axes}
    with warnings.catch_warnings():
        # Optuna says of several of its samplers that they are experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            directions=list(options.objectives.values()), sampler=_sampler(options, seed)
        )
        study.add_trials([_told(options, trial, distributions, last) for trial in trials.all])
        asked = study.ask(distributions)
    values = {axis.name: axis.rounded(asked.params[axis.name]) for axis in space.axes}
    return values, dict(study.get_trials(deepcopy=False)[-1].system_attrs)


def _sampler(options: SearchOptions, seed: int) -> optuna.samplers.BaseSampler:
    from optuna import samplers

    if options.sampler == "random":
        return samplers.RandomSampler(seed)
    if options.sampler == "cmaes":
        return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    if options.sampler == "gp":
        return samplers.GPSampler(seed=seed, warn_independent_sampling=False)
    return samplers.TPESampler(seed=seed)


def _told(
    options: SearchOptions, trial: Trial, distributions: dict[str, Any], last: int
) -> optuna.trial.FrozenTrial:
    """Return a trial as a sampler is to see it.

    A trial that is paused is PRUNED to Optuna, whose TPE puts it after all that have gone further.
    A trial that has failed, or was refused, counts there as the worst. The other samplers learn
    from nothing but COMPLETE trials, and get the latest figure of each.
    """
    from optuna.trial import TrialState, create_trial

    ranks = options.sampler == "tpe" and len(options.objectives) == 1
    values, state = None, TrialState.RUNNING
    if trial.failure:
        state = TrialState.PRUNED if ranks else TrialState.FAIL
    elif trial.last is not None:
        state = TrialState.PRUNED
        if last in trial.results or not ranks:
            state, values = TrialState.COMPLETE, trial.last
    steps = {epochs: each[0] for epochs, each in trial.results.items()} if ranks else {}
    return create_trial(
        state=state,
        values=values,
        params=trial.values,
        distributions=distributions,
        system_attrs=trial.attrs,
        intermediate_values={} if trial.failure else steps,
    )
