"""Runs as tables: which columns are parameters or metrics, what values are called, their order.

`runs` has one row per run: `run_id`, `name`, `status`, `seed`, parameters (`trainer.epochs` and the
like, and the choices `model`, `optimizer`, `schedule`, `callbacks`), metrics (`accuracy/test` and
the like), and perhaps `job_number`, `sweeps` and `failure`. Parameters may be texts, as MLflow
stores them, and are missing where a run has none. `curves` has one row per run, epoch and metric:
`run_id`, `epoch`, `metric`, `value`; it may be empty.

A setting is a combination of parameter values; its runs differ in nothing but their seeds: `seed`,
and those that draw the images or the wrong labels, if any (`SEEDS`). A summary has one row per
setting: a column for each varied parameter, `runs` (their number), and for each metric
`METRIC/mean`, `METRIC/low` and `METRIC/high`, nan where there is no interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import pandas as pd

from fmnist_lab.config.identity import YOUNGER
from fmnist_lab.config.naming import SPOKEN

EPOCHS, THREADS, DIGEST = "trainer.epochs", "trainer.threads", "data_digest"
CHOICES = ("model", "optimizer", "schedule", "callbacks", "model_uri")
NOISE = "data.label_noise"
SEEDS = ("seed", "data.split_seed", "data.noise_seed")
# Settings that differ in these were tested on different images.
TEST_SETS = ("data.name", "data.test_limit", "data.exclude_test", DIGEST)
# What decides which images and labels a run is trained on; the seed does so where it draws a split.
TRAINING_SETS = (
    *("data.train_limit", "data.validation_fraction"),
    *(name for name in (f"data.{key}" for key in YOUNGER) if name not in TEST_SETS),
)
VALIDATED, TRAINED = "accuracy/validation", "accuracy/train"
GAP, CLEAN_GAP, MEMORISED = "accuracy/gap", "accuracy/gap_clean", "mislabelled/memorised"
# The metric to choose a setting by comes first. Few runs have it; the others do without it.
METRICS = {
    VALIDATED: "Validation accuracy",
    "accuracy/test": "Test accuracy",
    GAP: "Accuracy gap",
    "loss/validation": "Validation loss",
    "loss/test": "Test loss",
    "loss/gap": "Loss gap",
    CLEAN_GAP: "Gap on true labels",
    MEMORISED: "Wrong labels memorised",
}
# Few runs have these; tables leave them out where none has.
RARE = (VALIDATED, "loss/validation", CLEAN_GAP, MEMORISED)
ACCURACIES = (VALIDATED, "accuracy/test", GAP)
# What charts show; of runs without wrong labels, only those that all runs have.
DRAWN = (*ACCURACIES, CLEAN_GAP, MEMORISED)
MOST_SHOWN = 60  # Letters of a value.
MOST_DIGITS = 64


def is_parameter(name: str) -> bool:
    """Return whether a column holds a parameter, rather than a metric, a seed or an id."""
    return ("." in name and "/" not in name and name not in SEEDS) or name in CHOICES


def parameters_of(summary: pd.DataFrame) -> list[str]:
    """Return the varied parameters of a summary: all columns but the results."""
    return [name for name in summary if name != "runs" and "/" not in name]


def metrics_of(summary: pd.DataFrame) -> list[str]:
    """Return the metrics of a summary, in the order in which they are shown."""
    return [metric for metric in METRICS if f"{metric}/mean" in summary]


def parsed(runs: pd.DataFrame) -> pd.DataFrame:
    """Return runs with parameters as `value_of` has them and metrics as floats."""
    columns = {
        name: column(map(value_of, runs[name])).set_axis(runs.index)
        for name in runs
        if is_parameter(name) or name in SEEDS
    }
    if NOISE in columns:
        # A run without noise has no such parameter; one that has no other either never began.
        begun = pd.DataFrame(columns).drop(columns=[*SEEDS], errors="ignore").notna().any(axis=1)
        shares = zip(columns[NOISE], begun, strict=True)
        columns[NOISE] = column(
            0 if share is None and has_begun else share for share, has_begun in shares
        ).set_axis(runs.index)
    metrics = {name: runs[name].astype(float) for name in runs if "/" in name}
    if {CLEAN_GAP, GAP} <= metrics.keys():
        # Only runs with wrong labels have it; the labels of the others are all true.
        metrics[CLEAN_GAP] = metrics[CLEAN_GAP].fillna(metrics[GAP])
    return runs.assign(**columns, **metrics)


def deciding_parameters(runs: pd.DataFrame) -> list[str]:
    """Return the parameters that can tell settings apart.

    The number of threads, which a launcher may have set, does so only if it varies within a sweep,
    or among runs of no sweep; the digest of the data only if runs that ask for the same images
    have different ones.

    Args:
        runs: What `parsed` returns.
    """
    found = [name for name in runs if is_parameter(name)]
    if THREADS in runs and not _varies(runs[THREADS], _sweeps(runs)):
        found.remove(THREADS)
    if DIGEST in runs:
        # A run that failed before its data were there has none.
        asked = [
            [_images(run)] if isinstance(run[DIGEST], str) else []
            for run in runs.to_dict("records")
        ]
        if _varies(runs[DIGEST], asked):
            found.append(DIGEST)
    return found


def trained_on(run: Mapping[Any, Any]) -> list[Any]:
    """Return the values that decide which images and labels a run is trained on."""
    drawn_by_seed = run.get("data.validation_fraction") and run.get("data.split_seed") is None
    seed = [run.get("seed")] if drawn_by_seed else []
    return [*(run.get(name) for name in TRAINING_SETS), *seed]


def _images(run: Mapping[Any, Any]) -> str:
    """Return the images that a run asks for."""
    return str([*(run.get(name) for name in TEST_SETS if name != DIGEST), *trained_on(run)])


def seeds_of(runs: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Return the values of `SEEDS` of each run, None for one that it does not have."""
    return _values(runs, SEEDS)


def _values(runs: pd.DataFrame, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return the values of columns for each run, None for a column that there is not."""
    columns = (runs[name] if name in runs else [None] * len(runs) for name in names)
    return list(zip(*columns, strict=True))


def draws_of(runs: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Return the values of `SEEDS` that each run was drawn by, None for one that draws nothing.

    The noise seed draws wrong labels, and the split seed the images of a limit and those held out;
    a run without any of these is the same for all values. Without a split seed, `seed` holds out.

    Args:
        runs: What `parsed` returns.
    """
    needed = ("data.train_limit", "data.validation_fraction", NOISE, "data.random_labels")
    found = []
    for seed, split, noise, limit, held_out, share, is_random in _values(runs, (*SEEDS, *needed)):
        if split is None and held_out:
            split = (None, seed) if limit else seed  # Both hold out the same images of all.
        is_noisy = share or is_random == "True"
        found.append((seed, split if limit or held_out else None, noise if is_noisy else None))
    return found


def _sweeps(runs: pd.DataFrame) -> list[list[str]]:
    """Return the sweeps that each run is in; runs of none, or of unknown ones, are together."""
    if "sweeps" not in runs:
        return [[""]] * len(runs)
    return [list(each) if isinstance(each, dict) and each else [""] for each in runs["sweeps"]]


def _varies(values: pd.Series, groups: Sequence[Sequence[str]]) -> bool:
    """Return whether a parameter has several values within any group of runs."""
    seen: dict[str, set[Any]] = {}
    for value, names in zip(values, groups, strict=True):
        for name in names:
            seen.setdefault(name, set()).add(value)
    return any(len(each) > 1 for each in seen.values())


def value_of(value: Any) -> Any:
    """Return a parameter as a number, a text, a tuple of numbers, or None, however it is stored.

    >>> [value_of(text) for text in ("5", "1e-3", "[256, 128]", "[8]", "Adam")]
    [5, 0.001, (256, 128), 8, 'Adam']
    """
    if isinstance(value, str):
        return _of_text(value)
    if isinstance(value, list | tuple):
        layers = tuple(value_of(layer) for layer in value)
        if all(isinstance(layer, int | float) for layer in layers):
            return layers[0] if len(layers) == 1 else layers
        return str(value)
    if isinstance(value, bool) or not pd.api.types.is_number(value):
        return None if pd.isna(value) else str(value)
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else float(value)


@lru_cache(maxsize=4096)
def _of_text(text: str) -> Any:
    if text.startswith("[") and text.endswith("]"):
        # Python's own parser would fail on a text of very many brackets.
        layers = [_number_of(layer) for layer in text[1:-1].split(",")] if text != "[]" else []
        return text if None in layers else value_of(layers)
    found = _number_of(text)
    return text if found is None else value_of(found)


def _number_of(text: str) -> int | float | None:
    for kind in (int, float):
        # A config's own numbers are far shorter.
        with suppress(ValueError):
            return kind(text) if len(text) <= MOST_DIGITS else None
    return None


def column(values: Iterable[Any]) -> pd.Series:
    """Return a column of objects; pandas' own would turn None into nan and widths into floats."""
    return pd.Series(list(values), dtype=object)


def order_key(value: Any) -> tuple[Any, ...]:
    """Return the key that parameter values are sorted by: numbers, layers, texts, then None."""
    if value is None:
        return (2,)
    if isinstance(value, str):
        return (1, value)
    layers = value if isinstance(value, tuple) else (value,)
    return (0, len(layers), *layers)


def ordered(values: Iterable[Any]) -> list[Any]:
    """Return the distinct values of a parameter in order.

    >>> ordered([128, "SGD", (256, 128), 8, None])
    [8, 128, (256, 128), 'SGD', None]
    """
    return sorted(set(values), key=order_key)


def rows_of(frame: pd.DataFrame, parameters: Sequence[str]) -> dict[tuple[Any, ...], list[int]]:
    """Return the positions of each setting's rows, from 0, in the order of their first.

    Args:
        frame: A column for each parameter; unlike in pandas' groups, tuples and None are values.
        parameters: Those that make up a setting; without any, all rows are of one setting.
    """
    if not parameters:
        return {(): list(range(len(frame)))}
    places: dict[tuple[Any, ...], list[int]] = {}
    for place, key in enumerate(zip(*(frame[name] for name in parameters), strict=True)):
        places.setdefault(key, []).append(place)
    return places


def grouped(frame: pd.DataFrame, parameters: Sequence[str]) -> dict[tuple[Any, ...], pd.DataFrame]:
    """Return the rows of each setting; arguments as in `rows_of`."""
    return {key: frame.iloc[rows] for key, rows in rows_of(frame, parameters).items()}


def short_names(parameters: Sequence[str]) -> dict[str, str]:
    """Return the names of parameters in tables and charts: `trainer.epochs` is "epochs"."""
    short = [SPOKEN.get(name, name.rpartition(".")[2]) for name in parameters]
    return {
        name: (last if short.count(last) == 1 else name).replace("_", " ")
        for name, last in zip(parameters, short, strict=True)
    }


def shown(value: Any, name: str = "") -> str:
    """Return a parameter's value as run names have it.

    Args:
        value: As `value_of` returns it.
        name: The parameter; a limit that is None lets all images in.

    >>> [shown(value) for value in (0.001, (256, 128), "True", None)]
    ['0.001', '256-128', 'true', 'none']
    >>> shown(None, "data.test_limit")
    'all'
    """
    if value is None or value == "":
        return "all" if name.endswith("_limit") else "none"
    if value in ("True", "False"):  # As MLflow has stored them.
        return str(value).lower()
    if isinstance(value, tuple):
        return "-".join(map(shown, value))
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 1]}…"


def number(value: float) -> str:
    """Return a metric to four decimals, and never -0.0000."""
    return f"{round(float(value), 4) + 0.0:.4f}"


def mean_text(mean: float, half: float = math.nan) -> str:
    """Return a mean as tables have it, with the half-width of its interval if there is one."""
    if math.isnan(mean):
        return "-"
    return number(mean) if math.isnan(half) else f"{number(mean)} ± {number(half)}"


def cell(row: Any, metric: str) -> str:
    """Return a metric of a summary's row, with half of its interval if there is one."""
    mean = row[f"{metric}/mean"]
    return mean_text(mean, row[f"{metric}/high"] - mean)


def listed(names: Sequence[str]) -> str:
    """Return such as "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def percent(share: float) -> str:
    """Return a share in whole percent."""
    return f"{100 * share:.0f} %"


def sentence(words: str) -> str:
    """Return words as a sentence, with a capital and a full stop."""
    return f"{words[0].upper()}{words[1:]}."
