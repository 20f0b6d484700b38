"""Runs in; what was varied, which runs count, means with intervals, and findings in words out.

`runs` is a frame with a row a run: `run_id`, `name`, `status`, `seed`, parameters (`trainer.epochs`
and the like, and the choices `model`, `optimizer`, `schedule`, `callbacks`), metrics
(`accuracy/test` and the like), and perhaps `job_number` and `failure`. Parameters may be texts, as
MLflow stores them, and missing where a run has none. `curves` has a row a run, epoch and metric:
`run_id`, `epoch`, `metric`, `value`; it may be empty.

A setting is what runs have in common that differ in nothing but the seed. Means are over its
FINISHED runs; of runs that repeat setting and seed only one counts, as a second look at the same
thing would make the mean seem better known than it is.
"""

import ast
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any, NamedTuple

import pandas as pd

from fmnist_lab import statistics
from fmnist_lab.errors import UserError
from fmnist_lab.statistics import Interval
from fmnist_lab.study_plots import (
    METRICS,
    grouped,
    number,
    order_key,
    ordered,
    rows_of,
    short_names,
    shown,
)

EPOCHS = "trainer.epochs"
CHOICES = ("model", "optimizer", "schedule", "callbacks", "model_uri")
FIRST = (EPOCHS, "model.hidden_units", *CHOICES)
NOT_CHOSEN = (
    "This describes what was measured; it is no selection. A setting picked by its test accuracy "
    "is fitted to the test set and looks better than it is: to choose one, use a validation split."
)
# A grid with more holes than this, or longer, is no heat map.
LEAST_FILLED, LONGEST_SIDE = 0.5, 40


class Unused(NamedTuple):
    """A run that is in no mean, and why."""

    run: str
    status: str
    reason: str


@dataclass(frozen=True)
class Study:
    """Runs, taken apart.

    Attributes:
        runs: All of them, parameters parsed, ordered by setting and seed.
        used: Those that the means are over.
        unused: The others.
        parameters: What `varied` returns.
        summary: What `summarize` returns.
    """

    runs: pd.DataFrame
    used: pd.DataFrame
    unused: list[Unused]
    parameters: list[str]
    summary: pd.DataFrame


def varied(runs: pd.DataFrame) -> list[str]:
    """Return the parameters that differ among runs, but for `seed`; epochs and widths first.

    A parameter that only some choices of its group have, with a single value, goes without saying:
    AdamW among other optimizers brings its `optimizer.weight_decay` along.

    Args:
        runs: As above.

    Returns:
        Names of columns.
    """
    return _varied(_parsed(runs))


def _varied(parsed: pd.DataFrame) -> list[str]:
    parameters = [name for name in parsed if is_parameter(name)]
    # A run that failed before it logged its parameters does not make them all vary.
    begun = parsed[parsed[parameters].notna().any(axis=1)] if parameters else parsed
    values = {name: begun[name].tolist() for name in parameters}
    found = [name for name in parameters if len(set(values[name])) > 1]
    found = [name for name in found if not _goes_without_saying(name, values)]
    return sorted(found, key=lambda n: (FIRST.index(n) if n in FIRST else len(FIRST), n))


def take_apart(runs: pd.DataFrame) -> Study:
    """Sort runs into those that count and those that do not, and summarize the former.

    Args:
        runs: As above.

    Returns:
        The parts.

    Raises:
        UserError: No run is finished.
    """
    runs = _parsed(runs)
    parameters = _varied(runs)
    keys = [*parameters, *(name for name in ("seed", "name", "run_id") if name in runs)]
    rows = [[order_key(value) for value in row] for row in runs[keys].itertuples(index=False)]
    runs = runs.iloc[sorted(range(len(rows)), key=rows.__getitem__)].reset_index(drop=True)
    identity = [name for name in runs if is_parameter(name) or name == "seed"]
    chosen: list[int] = []
    unused: list[Unused] = []
    first: dict[tuple[Any, ...], str] = {}
    for row, run in enumerate(runs.to_dict("records")):
        reason = _lack(run)
        setting = tuple(run[name] for name in identity)
        if not reason and run.get("seed") is not None:
            if setting in first:
                reason = f"repeats setting and seed of {first[setting]}"
            first.setdefault(setting, f"{run['name']} ({run['run_id']})")
        if reason:
            unused.append(Unused(str(run["name"]), str(run["status"]), reason))
        else:
            chosen.append(row)
    if not chosen:
        raise UserError(_nothing(unused))
    used = runs.iloc[chosen]
    return Study(runs, used, unused, parameters, _summary(used, parameters))


def summarize(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row a setting: varied parameters, number of runs, and means with 95 % intervals.

    Args:
        runs: As above.

    Returns:
        A column for each varied parameter, `runs`, and for each of `METRICS` `METRIC/mean`,
        `METRIC/low` and `METRIC/high`: nan where there is no interval, or a run without the metric.

    Raises:
        UserError: No run is finished.
    """
    return take_apart(runs).summary


def best(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the settings with the highest mean test accuracy; several if they tie.

    To describe a study with, not to choose a model by: reports add `NOT_CHOSEN`.

    Args:
        summary: What `summarize` returns.

    Returns:
        Rows of the summary.
    """
    accuracy = summary["accuracy/test/mean"]
    return summary[accuracy == accuracy.max()]


def findings(study: Study) -> list[str]:
    """Return in plain words how many runs there are, what stands out, and what that is worth.

    Args:
        study: What `take_apart` returns.

    Returns:
        Sentences.
    """
    counts = Counter(study.runs["status"].astype(str))
    states = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    kept = "." if not study.unused else f"; {len(study.used)} in the means."
    sentences = [f"{counted(len(study.runs), 'run')}: {states}{kept}"]
    fewest, most = int(study.summary["runs"].min()), int(study.summary["runs"].max())
    if most == 1:
        sentences.append("One seed a setting: no intervals, so differences may be chance.")
    else:
        some = " Settings with a single run have none." if fewest == 1 else ""
        sentences.append(
            "± is half the width of the 95 % interval (Student's t) of the mean over the runs of a "
            f"setting, which differ in their seed.{some}"
        )
    if study.parameters:
        top = best(study.summary).iloc[0]
        sentences.append(
            f"Highest mean test accuracy: {_cell(top, 'accuracy/test')} with "
            f"{_named(top, study.parameters)}. {NOT_CHOSEN}"
        )
    return sentences + _growth(study)


def mean_curves(study: Study, curves: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return how a metric of each setting comes along with the epochs.

    From the curves of its runs with the most epochs, as far as all of them go; where there are no
    curves, from the finished runs of settings that differ in their epochs.

    Args:
        study: What `take_apart` returns.
        curves: As above.
        metric: Its name.

    Returns:
        A row a setting and epoch: varied parameters but for the epochs, `epoch`, `runs`, `mean`,
        `low` and `high`. Empty if nothing has more than one epoch.
    """
    group = [name for name in study.parameters if name != EPOCHS]
    columns = [*group, "epoch", "runs", "mean", "low", "high"]
    rows: list[list[Any]] = []
    if len(curves):
        known = curves[(curves["metric"] == metric) & curves["value"].notna()]
        traces = known.pivot(index="run_id", columns="epoch", values="value")
        for setting, wanted in longest(study).items():
            found = traces.loc[[run for run in wanted if run in traces.index]]
            together = found.dropna(axis=1) if len(found) else found.iloc[:, :0]
            for epoch, values in zip(together, together.to_numpy(float).T, strict=True):
                known_at = interval(values)
                rows.append(
                    [*setting, int(epoch), len(values), known_at.mean, known_at.low, known_at.high]
                )
    elif EPOCHS in study.parameters:
        ends = [f"{metric}/{end}" for end in ("mean", "low", "high")]
        rows = study.summary[[*group, EPOCHS, "runs", *ends]].to_numpy(object).tolist()
    points = pd.DataFrame(
        {name: _column(row[place] for row in rows) for place, name in enumerate(columns)}
    )
    return points if points["epoch"].nunique() > 1 else points.iloc[:0]


def longest(study: Study) -> dict[tuple[Any, ...], list[str]]:
    """Return the ids of the runs that went on for the most epochs, of each setting but for these.

    They are all that the curves in a report are of, so no others need to be read from a store.

    Args:
        study: What `take_apart` returns.

    Returns:
        Ids by the values of the varied parameters but for the epochs.
    """
    group = [name for name in study.parameters if name != EPOCHS]
    if EPOCHS not in study.parameters:
        ids = study.used["run_id"].tolist()
        return {key: [ids[row] for row in rows] for key, rows in rows_of(study.used, group).items()}
    found: dict[tuple[Any, ...], list[str]] = {}
    ids, epochs = study.used["run_id"].tolist(), study.used[EPOCHS].tolist()
    for key, rows in rows_of(study.used, group).items():
        most = max((epochs[row] for row in rows), key=order_key)
        found[key] = [ids[row] for row in rows if epochs[row] == most]
    return found


def is_parameter(name: str) -> bool:
    """Return whether a column holds a parameter, rather than a metric or an id."""
    return ("." in name and "/" not in name) or name in CHOICES


def interval(values: Any) -> Interval:
    """Return mean and interval of a metric over runs; nan where a run lacks it."""
    values = [float(value) for value in values]
    if all(map(math.isfinite, values)):
        return statistics.mean_interval(values)
    return Interval(math.nan, math.nan, math.nan, len(values))


def heat_map_sides(study: Study, wanted: Sequence[str] | None) -> list[str]:
    """The two parameters of a heat map, or one, or none, if that is all there is to show."""
    if wanted is not None:
        if len(set(wanted)) != 2 or not set(wanted) <= set(study.parameters):
            raise UserError(
                f"axes: received {', '.join(wanted)}; expected two of the varied parameters: "
                f"{', '.join(study.parameters) or 'none was varied'}"
            )
        return list(wanted)
    levels = {name: len(set(study.summary[name])) for name in study.parameters}
    most = sorted(levels, key=lambda name: -levels[name])
    # The pair of the most values each, not of the largest product.
    pairs = sorted(heat_map_pairs(study), key=lambda pair: sorted(map(most.index, pair)))
    return list(pairs[0]) if pairs else most[:1]


def heat_map_pairs(study: Study) -> list[tuple[str, str]]:
    """Pairs of varied parameters of which most combinations were run."""
    levels = {name: len(set(study.summary[name])) for name in study.parameters}
    pairs = []
    for x, y in combinations(study.parameters, 2):
        filled = len(set(zip(study.summary[x], study.summary[y], strict=True)))
        longest = max(levels[x], levels[y])
        if filled > LEAST_FILLED * levels[x] * levels[y] and longest <= LONGEST_SIDE:
            pairs.append((x, y))
    return pairs


def one_at_a_time(study: Study) -> dict[str, Any] | None:
    """Return what is common to all settings, if each differs from that in one parameter at most.

    None where they differ in more, or where only one or two parameters were varied.
    """
    if len(study.parameters) < 3:
        return None
    rows = study.summary[study.parameters]
    common = {name: Counter(rows[name]).most_common(1)[0][0] for name in rows}
    differing = [
        sum(row[name] != common[name] for name in common) for row in rows.to_dict("records")
    ]
    return common if max(differing) <= 1 else None


def as_changes(frame: pd.DataFrame, common: dict[str, Any]) -> pd.DataFrame:
    """Return a frame with a column `change` instead of its parameters: "dropout 0.5", or "(none)".

    Args:
        frame: A row a setting, perhaps without some of the parameters.
        common: What `one_at_a_time` returns.
    """
    names = short_names([name for name in common if name in frame])
    changes = [
        ", ".join(
            f"{short} {shown(row[name])}"
            for name, short in names.items()
            if row[name] != common[name]
        )
        for row in frame.to_dict("records")
    ]
    rest = frame.drop(columns=list(names))
    rest.insert(0, "change", [change or "(none)" for change in changes])
    return rest


def groups(study: Study, sides: Sequence[str]) -> list[str]:
    """The varied parameters but for the epochs, those of the heat maps first."""
    group = [name for name in study.parameters if name != EPOCHS]
    return sorted(group, key=lambda name: name not in sides)


def roles(summary: pd.DataFrame, sides: Sequence[str]) -> tuple[str, str | None]:
    """Which parameter gives colours, and which one, with an order, gives paths."""
    if len(sides) == 2:
        for path, color in (sides, sides[::-1]):
            if not _has_no_order(summary[path]):
                return color, path
    return sides[0], None


def mean_text(mean: float, half: float = math.nan, between: str = " ") -> str:
    """Return a mean as tables have it, with the half-width of its interval if there is one."""
    if math.isnan(mean):
        return "-"
    return number(mean) if math.isnan(half) else f"{number(mean)}{between}± {number(half)}"


def settings_table(study: Study) -> tuple[list[str], list[list[str]]]:
    """The summary as a reader sees it, wherever that is."""
    short = short_names(study.parameters)
    headings = [*short.values(), "runs", *(title.lower() for title in METRICS.values())]
    rows = [
        [
            *(shown(row[name]) for name in study.parameters),
            str(int(row["runs"])),
            *(_cell(row, metric) for metric in METRICS),
        ]
        for _, row in study.summary.iterrows()
    ]
    return headings, rows


def sentence(words: str) -> str:
    """Return words as a sentence, with a capital and a full stop."""
    return f"{words[0].upper()}{words[1:]}."


def counted(number: int, noun: str) -> str:
    """Return such as `1 run` or `1,200 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _parsed(runs: pd.DataFrame) -> pd.DataFrame:
    """Parameters as numbers, texts, tuples of numbers, or None, whatever they came as."""
    parsed = {
        name: _column(map(value_of, runs[name])).set_axis(runs.index)
        for name in runs
        if is_parameter(name) or name == "seed"
    }
    metrics = {name: runs[name].astype(float) for name in runs if "/" in name}
    return runs.assign(**parsed, **metrics)


@lru_cache(maxsize=4096)
def _of_text(text: str) -> Any:
    for kind in (int, float):
        try:
            return value_of(kind(text))
        except ValueError:
            pass
    if text.startswith("["):
        try:
            return value_of(ast.literal_eval(text))
        except (ValueError, SyntaxError):
            return text
    return text


def value_of(value: Any) -> Any:
    """Return a parameter as a number, a text, a tuple of numbers, or None, whatever it came as."""
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


def _column(values: Iterable[Any]) -> pd.Series:
    # Left to itself, pandas would turn None into nan and widths into floats.
    return pd.Series(list(values), dtype=object)


def _goes_without_saying(name: str, values: dict[str, list[Any]]) -> bool:
    choice = values.get(name.partition(".")[0])
    if choice is None:
        return False
    pairs = set(zip(choice, values[name], strict=True))
    levels = {value for _, value in pairs}
    return None in levels and len(levels) == 2 and len(pairs) == len(set(choice))


def _lack(run: dict[str, Any]) -> str:
    """Why a run counts for nothing; empty if it does count."""
    if run["status"] != "FINISHED":
        if run["status"] in ("RUNNING", "SCHEDULED"):
            return "has not ended"
        failure = run.get("failure")
        return " ".join(failure.split())[:300] if isinstance(failure, str) else "no reason recorded"
    for metric in ("accuracy/test", "accuracy/gap"):
        if not math.isfinite(run.get(metric, math.nan)):
            return f"has no {metric}"
    return ""


def _nothing(unused: Sequence[Unused]) -> str:
    if not unused:
        return "there are no runs to report on: expected at least one that is FINISHED"
    reasons = "; ".join(f"{run.run} {run.status}: {run.reason}" for run in unused[:3])
    more = f"; and {len(unused) - 3} more" if len(unused) > 3 else ""
    return (
        f"none of {counted(len(unused), 'run')} finished, so there is nothing to report: {reasons}"
        f"{more}. Mend that and repeat the command with resume=true"
    )


def _summary(used: pd.DataFrame, parameters: Sequence[str]) -> pd.DataFrame:
    settings = rows_of(used, parameters)
    columns = {
        name: _column(setting[place] for setting in settings)
        for place, name in enumerate(parameters)
    }
    columns["runs"] = pd.Series([len(rows) for rows in settings.values()])
    for metric in METRICS:
        values = used.get(metric, pd.Series(math.nan, used.index)).to_numpy(float)
        known = [interval(values[rows]) for rows in settings.values()]
        for end in ("mean", "low", "high"):
            columns[f"{metric}/{end}"] = pd.Series([getattr(one, end) for one in known])
    return pd.DataFrame(columns)


def _has_no_order(levels: Iterable[Any]) -> bool:
    return any(isinstance(level, str | None) for level in levels)


def _growth(study: Study) -> list[str]:
    """Whether the gap differs between the ends of each of the two main parameters.

    The others are at their last values: a setting chosen by its results would bias the test.
    """
    sentences = []
    last = study.summary.iloc[-1]
    needed = [name for name in (*study.parameters, "seed", "accuracy/gap") if name in study.used]
    parts = grouped(study.used[needed], study.parameters)
    for name in heat_map_sides(study, None):
        levels = ordered(study.summary[name])
        if _has_no_order(levels):
            continue
        settings = [
            tuple(level if other == name else last[other] for other in study.parameters)
            for level in (levels[-1], levels[0])
        ]
        if len(set(settings)) < 2 or not all(setting in parts for setting in settings):
            continue
        high, low = (parts[setting] for setting in settings)
        seeds = [list(part["seed"]) for part in (high, low)] if "seed" in high else [[None]]
        paired = seeds[0] == seeds[-1] and None not in seeds[0]
        gaps = [part["accuracy/gap"].to_numpy(float) for part in (high, low)]
        found = statistics.compare_groups(gaps[0], gaps[1], paired=paired)
        if math.isnan(found.p_value):
            continue
        short = short_names(study.parameters)[name]
        words = found.sentence(
            f"{short} {shown(levels[-1])}", f"{short} {shown(levels[0])}", "accuracy gap"
        )
        rest = [other for other in study.parameters if other != name]
        sentences.append(f"With {_named(last, rest)}: {words}." if rest else sentence(words))
    return sentences


def _named(row: pd.Series, parameters: Sequence[str]) -> str:
    short = short_names(parameters)
    return ", ".join(f"{short[name]} {shown(row[name])}" for name in parameters)


def _cell(row: pd.Series, metric: str) -> str:
    mean, high = row[f"{metric}/mean"], row[f"{metric}/high"]
    return mean_text(mean, high - mean)
