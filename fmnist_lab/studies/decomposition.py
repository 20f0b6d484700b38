"""Runs of one setting in; which share of their variance comes from which of its sources, out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fmnist_lab.errors import UserError
from fmnist_lab.evaluation.variance import IMAGE, Component, components
from fmnist_lab.studies import vega
from fmnist_lab.studies.beyond import GAP, TESTED, Correct, Predictions, correct_of
from fmnist_lab.studies.frames import METRICS as FULL
from fmnist_lab.studies.frames import SEEDS, draws_of, grouped, ordered, short_names, shown
from fmnist_lab.studies.summary import Study
from fmnist_lab.studies.vega import ENDS, Chart
from fmnist_lab.studies.writing import Figure, csv, drawn, keep

METRICS = (TESTED, GAP)
# Why a seed of the data draws nothing.
IDLE = {
    "data.split_seed": "they have neither data.train_limit nor data.validation_fraction",
    "data.noise_seed": "they have neither data.label_noise nor data.random_labels",
}


def decompose(
    study: Study, factors: Sequence[str], predictions: Predictions
) -> dict[str, list[Component]]:
    """Return the components of the variance of test accuracy and of its gap.

    They are those of one run with new levels of all factors on as many new test images.

    Args:
        study: Runs of one setting: a full grid of the factors, one run in each cell.
        factors: What differs between the runs, such as `seed`.
        predictions: Returns what a run has predicted for the test set.

    Returns:
        By metric, a component for each factor, the test images among them, and each interaction.

    Raises:
        UserError: The runs are no such grid, or one has no predictions.
    """
    _check(study, factors)
    used = study.used
    levels = [ordered(used[name]) for name in factors]
    cells = grouped(used, factors)
    ids = [runs["run_id"].iloc[0] for runs in (cells[key] for key in _product(levels))]
    correct = correct_of(ids, predictions)
    at = used.set_index("run_id").loc[ids]
    shape = [*map(len, levels), correct.shape[1]]
    names = [*short_names(factors).values(), IMAGE]
    return {
        metric: components(_values(at[metric], correct, metric).reshape(shape), names, over=IMAGE)
        for metric in METRICS
    }


def write(found: dict[str, list[Component]], folder: Path, runs: int) -> list[Path]:
    """Write `variance.csv`, and `variance.png` with the share of each source.

    Args:
        found: What `decompose` returns.
        folder: Where to; made if it is not there.
        runs: The number of runs.

    Returns:
        The files.
    """
    rows: list[dict[str, Any]] = []
    for sources in zip(*found.values(), strict=True):
        row: dict[str, Any] = {"source": " x ".join(sources[0].factors)}
        for metric, source in zip(found, sources, strict=True):
            ends = zip(ENDS, (source.share, source.share_low, source.share_high), strict=True)
            row |= {f"{metric}/{end}": share for end, share in ends}
            row |= {f"{metric}/deviation": math.sqrt(source.variance)}
        rows.append(row)
    table = pd.DataFrame(rows)
    note = f"Bars: 95 % intervals, from {runs} runs."
    figure = Figure("variance.png", "Sources of variance", _chart(table, list(found), note))
    return keep(folder, {"variance.csv": csv(table)}, [figure], drawn([figure]))


def _chart(table: pd.DataFrame, metrics: Sequence[str], note: str) -> Chart:
    """Draw the share of each source, a panel for each metric."""
    bare = {"ticks": False, "domain": False, "labelPadding": 8}
    axis = {"format": ".0%", "tickCount": 5, "labelFlush": False}
    y = vega.field("source", "ordinal", title=None, sort=None, axis=bare)
    panels = []
    for metric in metrics:
        title = f"Share of the variance of {FULL[metric].lower()}"
        low, mean = (
            vega.field(end, title=title, axis=axis) | {"scale": {"domain": [0, 1]}}
            for end in ("low", "mean")
        )
        records = [
            {end: row[f"{metric}/{end}"] for end in ENDS}
            | {"source": row["source"]}
            | {"tip": f"{row['source']}\n{row[f'{metric}/mean']:.1%} of the variance"}
            for row in table.to_dict("records")
        ]
        bar = vega.mark("bar", x=mean, y=y, description=vega.TIP, style={"opacity": 0.35})
        layers = [bar, vega.mark("rule", x=low, x2={"field": "high"}, y=y)]
        layers.append(vega.mark("circle", x=mean, y=y, style={"size": 36, "opacity": 1}))
        sizes = {"width": 200, "height": {"step": 22}}
        hue = {"color": {"value": vega.RED if metric == GAP else vega.BLUE}}
        panels.append({"data": vega.data(records), "encoding": hue, "layer": layers} | sizes)
    return vega.finished({"hconcat": panels}, "Where the variance comes from", note, 320)


def _values(results: pd.Series, correct: Correct, metric: str) -> NDArray[np.float64]:
    """Return values of each run and image whose means over the images are the run's results."""
    # An image that is right adds to the test accuracy, and takes from the gap.
    sign = -1 if metric == GAP else 1
    each = sign * (correct - correct.mean(axis=1, keepdims=True))
    return np.asarray(each + results.to_numpy(float)[:, None])


def _product(levels: Sequence[Sequence[object]]) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = [()]
    for each in levels:
        found = [(*start, level) for start in found for level in each]
    return found


def _check(study: Study, factors: Sequence[str]) -> None:
    used = study.used
    if unknown := [name for name in factors if name not in used]:
        raise UserError(f"--by: received {unknown[0]}, which no run has")
    draws = dict(zip(SEEDS, zip(*draws_of(used), strict=True), strict=True))
    idle = {name for name in SEEDS[1:] if not any(value is not None for value in draws[name])}
    for name in factors:
        if name in idle:
            raise UserError(
                f"--by: received {name}, which changes nothing in these runs, expected what does, "
                f"such as seed: {IDLE[name]}"
            )
    drawn = [
        name for name in SEEDS if name in used and name not in idle and len(ordered(used[name])) > 1
    ]
    others = [name for name in (*study.parameters, *drawn) if name not in factors]
    if others:
        values = ", ".join(f"{others[0]}={shown(value)}" for value in ordered(used[others[0]]))
        raise UserError(
            f"the runs differ in {', '.join(others)} as well, expected one setting: name one of "
            f"{values}"
        )
    levels = [ordered(used[name]) for name in factors]
    for name, each in zip(factors, levels, strict=True):
        if len(each) < 2:
            raise UserError(
                f"all runs have {name}={shown(each[0])}, expected several values: "
                f'-m "{name}=range(5)" runs them'
            )
    held = set(grouped(used, factors))
    if math.prod(map(len, levels)) > len(held):
        missing = next(key for key in _product(levels) if key not in held)
        told = " ".join(f"{n}={shown(v)}" for n, v in zip(factors, missing, strict=True))
        raise UserError(
            f"{len(held)} runs have {' x '.join(str(len(each)) for each in levels)} values of "
            f"{', '.join(factors)}, expected one for each combination: none has {told}"
        )
