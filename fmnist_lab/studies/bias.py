"""Runs on training images of their own in; bias² and variance of each setting's predictions, out.

Where each seed of a study draws its own training images (`data.split_seed=${seed}` with a limit),
the squared error of the predictions has two parts: bias², which all of a setting's networks have
in common, and variance, which depends on the images, the order and the initial weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from fmnist_lab.errors import UserError
from fmnist_lab.evaluation.variance import bias_variance
from fmnist_lab.studies.beyond import Predictions
from fmnist_lab.studies.frames import TEST_SETS, column, draws_of, rows_of
from fmnist_lab.studies.summary import Study
from fmnist_lab.studies.vega import ENDS

NAMES = {"error": "Squared error", "bias": "Bias²", "variance": "Variance"}
LEAST_RUNS, MOST_RUNS = 3, 600


def by_setting(study: Study, predictions: Predictions) -> pd.DataFrame | None:
    """Return error, bias² and variance of each setting, as a summary has its metrics.

    Args:
        study: The runs, taken apart.
        predictions: Returns what a run has predicted for the test set.

    Returns:
        None where it cannot be told: a setting has fewer than three runs or two on the same images,
        settings were tested on different images, or a run has no predictions.
    """
    used, parameters = study.used, study.parameters
    settings = rows_of(used, parameters)
    drawn = [split for _, split, _ in draws_of(used)]
    own = all(
        len(rows) >= LEAST_RUNS and len({drawn[row] for row in rows} - {None}) == len(rows)
        for rows in settings.values()
    )
    if not own or not parameters or len(used) > MOST_RUNS or {*parameters} & {*TEST_SETS}:
        return None
    ids = used["run_id"].tolist()
    found: list[dict[str, Any]] = []
    for key, rows in settings.items():
        try:
            read = [predictions(ids[row]) for row in rows]
        except UserError:
            return None
        labels = read[0][1]
        if not all(np.array_equal(labels, each) for _, each in read):
            return None
        parts = vars(bias_variance(np.stack([each for each, _ in read]), labels))
        ends = {f"{n}/{end}": getattr(each, end) for n, each in parts.items() for end in ENDS}
        found.append(dict(zip(parameters, key, strict=True)) | {"runs": len(rows)} | ends)
    return pd.DataFrame({name: column(each[name] for each in found) for name in parameters}).join(
        pd.DataFrame(found).drop(columns=parameters)
    )
