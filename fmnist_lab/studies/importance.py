"""How much each hyperparameter of a search mattered; the only study that imports Optuna."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import pandas as pd

from fmnist_lab.studies.trials import Parameter, Search

LEAST_TRIALS = 8


class Importance(NamedTuple):
    """How much hyperparameters mattered for an objective.

    Attributes:
        metric: The objective.
        epochs: The number of epochs after which it was measured.
        trials: How many trials that is computed from; where they are too few, there are no shares.
        shares: Of the variance over the searched space, by key, the largest first; they sum to 1.
        reason: Why there are none, or "".
    """

    metric: str
    epochs: int
    trials: int
    shares: dict[str, float]
    reason: str


def importances(search: Search) -> list[Importance]:
    """Return the importance of the hyperparameters for each objective.

    With pruning the values are those of the first rung, which every trial has come to. Trials that
    have come further are picked by their results: among those that have a good learning rate, the
    learning rate hardly seems to matter.
    """
    if search.is_pruned:
        first = search.rungs[0].epochs
        at = search.values[first].to_numpy(float) if first in search.values else math.nan
        values = pd.Series(at, search.trials.index)
        return [_importance(search, search.trials, values, search.objective, first)]
    over = search.trials[search.trials["status"] == "FINISHED"]
    return [
        _importance(search, over, over[metric], metric, search.rungs[-1].epochs)
        for metric in search.objectives
    ]


def _importance(
    search: Search, trials: pd.DataFrame, values: pd.Series, metric: str, epochs: int
) -> Importance:
    """Compute the importance from the trials whose values are finite.

    It is that of fANOVA (Hutter, Hoos, Leyton-Brown 2014, "An efficient approach for assessing
    hyperparameter importance", ICML): the share of each parameter alone in the variance of a random
    forest's prediction.
    """
    scaled = [each.key for each in search.parameters if not each.levels]
    kept = trials[values.map(math.isfinite) & trials[scaled].notna().all(axis="columns")]
    known = values[kept.index]
    count = len(kept)
    varied = [each for each in search.parameters if len(set(kept[each.key])) > 1]
    if count < LEAST_TRIALS:
        return Importance(metric, epochs, count, {}, f"that takes {LEAST_TRIALS} trials")
    if not varied or known.min() == known.max():
        return Importance(metric, epochs, count, {}, "nothing differs between the trials")
    try:
        import optuna
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    except ModuleNotFoundError:
        reason = "that takes Optuna: pip install 'fmnist_lab[search]'"
        return Importance(metric, epochs, count, {}, reason)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study()
        distributions = {each.key: _distribution(optuna, each) for each in varied}
        for row, value in zip(kept.to_dict("records"), known, strict=True):
            chosen = {each.key: _chosen(each, row[each.key]) for each in varied}
            study.add_trial(
                optuna.trial.create_trial(
                    params=chosen, distributions=distributions, value=float(value)
                )
            )
        with warnings.catch_warnings():
            # Optuna's own experimental features, and scikit-learn's advice to it.
            warnings.simplefilter("ignore")
            found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    finally:
        optuna.logging.set_verbosity(verbosity)
    shares = {str(key): float(share) for key, share in found.items()}
    shares |= {each.key: 0.0 for each in search.parameters if each.key not in shares}
    return Importance(metric, epochs, count, shares, "")


def _distribution(optuna: Any, parameter: Parameter) -> Any:
    """Return a parameter as Optuna has it; numbers in a list keep their order, as their places."""
    distributions = optuna.distributions
    if not parameter.levels:
        return distributions.FloatDistribution(parameter.low, parameter.high, log=parameter.is_log)
    if any(isinstance(level, str | None) for level in parameter.levels):
        return distributions.CategoricalDistribution(range(len(parameter.levels)))
    return distributions.IntDistribution(0, len(parameter.levels) - 1)


def _chosen(parameter: Parameter, value: Any) -> Any:
    return parameter.levels.index(value) if parameter.levels else float(value)
