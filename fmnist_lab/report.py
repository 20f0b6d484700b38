"""Runs in; tables for the terminal, CSV, Markdown with figures, and one HTML page out.

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
import html
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from fmnist_lab import statistics, study_plots
from fmnist_lab.errors import UserError
from fmnist_lab.statistics import Interval
from fmnist_lab.study_plots import (
    METRICS,
    grouped,
    number,
    order_key,
    ordered,
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
    parsed = _parsed(runs)
    parameters = [name for name in parsed if _is_parameter(name)]
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
    parameters, runs = varied(runs), _parsed(runs)
    keys = [*parameters, *(name for name in ("seed", "name", "run_id") if name in runs)]
    rows = [[order_key(value) for value in row] for row in runs[keys].itertuples(index=False)]
    runs = runs.iloc[sorted(range(len(rows)), key=rows.__getitem__)].reset_index(drop=True)
    identity = [name for name in runs if _is_parameter(name) or name == "seed"]
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


def terminal_table(runs: pd.DataFrame) -> Table:
    """Return what a terminal shows of a study: a row a setting, findings, runs without result.

    Args:
        runs: As above.

    Returns:
        A table for rich to print.

    Raises:
        UserError: No run is finished.
    """
    study = take_apart(runs)
    headings, rows = _table(study)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(Text(heading), justify="right")
    for row in rows:
        table.add_row(*map(Text, row))
    page = Table.grid()
    page.add_row(table)
    for sentence in findings(study):
        page.add_row("")
        page.add_row(Text(sentence))
    if study.unused:
        page.add_row("")
        for run in study.unused:
            page.add_row(Text("  ".join(run)))
    return page


def write(
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    folder: Path,
    *,
    title: str,
    command: str,
    axes: Sequence[str] | None = None,
) -> list[Path]:
    """Write `results.csv`, `summary.csv`, `report.md` with its figures, and `report.html`.

    The same runs give the same files, byte for byte, in whatever order they come.

    Args:
        runs: As above.
        curves: As above.
        folder: Where to; made if it is not there.
        title: What the study is called.
        command: The command that ran it.
        axes: The two varied parameters of the heat maps; None: those with the most values.

    Returns:
        The files.

    Raises:
        UserError: No run is finished, or an axis was not varied.
    """
    study = take_apart(runs)
    sides = _sides(study, axes)
    points = gap_curves(study, curves)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "results.csv": _results(study).to_csv(index=False, lineterminator="\n"),
        "summary.csv": _plain(study.summary).to_csv(index=False, lineterminator="\n"),
    }
    figures = _figures(study, sides, points)
    for name, (figure, _) in figures.items():
        figure.savefig(folder / name)
    captions = {name: caption for name, (_, caption) in figures.items()}
    texts["report.md"] = _markdown(study, captions, title, command)
    texts["report.html"] = _html(study, sides, points, title, command)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return [folder / name for name in (*texts, *figures)]


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
    sentences = [f"{_count(len(study.runs), 'run')}: {states}{kept}"]
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


def gap_curves(study: Study, curves: pd.DataFrame) -> pd.DataFrame:
    """Return how the accuracy gap of each setting grows with the epochs.

    From the curves of its runs with the most epochs, as far as all of them go; where there are no
    curves, from the finished runs of settings that differ in their epochs.

    Args:
        study: What `take_apart` returns.
        curves: As above.

    Returns:
        A row a setting and epoch: varied parameters but for the epochs, `epoch`, `runs`, `mean`,
        `low` and `high`. Empty if nothing has more than one epoch.
    """
    group = [name for name in study.parameters if name != EPOCHS]
    columns = [*group, "epoch", "runs", "mean", "low", "high"]
    rows: list[list[Any]] = []
    if len(curves):
        known = curves[(curves["metric"] == "accuracy/gap") & curves["value"].notna()]
        traces = {run: part.set_index("epoch")["value"] for run, part in known.groupby("run_id")}
        for setting, part in grouped(study.used, group).items():
            if EPOCHS in part:
                part = part[part[EPOCHS] == max(part[EPOCHS], key=order_key)]
            found = [traces[run] for run in part["run_id"] if run in traces]
            together = pd.concat(found, axis=1).dropna().sort_index() if found else pd.DataFrame()
            for epoch, values in zip(together.index, together.to_numpy(float), strict=True):
                known_at = _interval(values)
                rows.append(
                    [*setting, int(epoch), len(values), known_at.mean, known_at.low, known_at.high]
                )
    elif EPOCHS in study.parameters:
        ends = [f"accuracy/gap/{end}" for end in ("mean", "low", "high")]
        rows = study.summary[[*group, EPOCHS, "runs", *ends]].to_numpy(object).tolist()
    points = pd.DataFrame(
        {name: _column(row[place] for row in rows) for place, name in enumerate(columns)}
    )
    return points if points["epoch"].nunique() > 1 else points.iloc[:0]


def _parsed(runs: pd.DataFrame) -> pd.DataFrame:
    """Parameters as numbers, texts, tuples of numbers, or None, whatever they came as."""
    parsed = {
        name: _column(map(_value, runs[name])).set_axis(runs.index)
        for name in runs
        if _is_parameter(name) or name == "seed"
    }
    metrics = {name: runs[name].astype(float) for name in runs if "/" in name}
    return runs.assign(**parsed, **metrics)


def _value(value: Any) -> Any:
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return _value(kind(value))
            except ValueError:
                pass
        if value.startswith("["):
            try:
                return _value(ast.literal_eval(value))
            except (ValueError, SyntaxError):
                return value
        return value
    if isinstance(value, list | tuple):
        layers = tuple(_value(layer) for layer in value)
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


def _is_parameter(name: str) -> bool:
    return ("." in name and "/" not in name) or name in CHOICES


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
        f"none of {_count(len(unused), 'run')} finished, so there is nothing to report: {reasons}"
        f"{more}. Mend that and repeat the command with resume=true"
    )


def _summary(used: pd.DataFrame, parameters: Sequence[str]) -> pd.DataFrame:
    settings = grouped(used, parameters)
    columns = {
        name: _column(setting[place] for setting in settings)
        for place, name in enumerate(parameters)
    }
    columns["runs"] = pd.Series([len(part) for part in settings.values()])
    for metric in METRICS:
        known = [_interval(part.get(metric, [math.nan])) for part in settings.values()]
        for end in ("mean", "low", "high"):
            columns[f"{metric}/{end}"] = pd.Series([getattr(one, end) for one in known])
    return pd.DataFrame(columns)


def _interval(values: Any) -> Interval:
    values = [float(value) for value in values]
    if all(map(math.isfinite, values)):
        return statistics.mean_interval(values)
    return Interval(math.nan, math.nan, math.nan, len(values))


def _sides(study: Study, wanted: Sequence[str] | None) -> list[str]:
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
    pairs = sorted(_grids(study), key=lambda pair: sorted(map(most.index, pair)))
    return list(pairs[0]) if pairs else most[:1]


def _grids(study: Study) -> list[tuple[str, str]]:
    """Pairs of varied parameters of which most combinations were run."""
    levels = {name: len(set(study.summary[name])) for name in study.parameters}
    pairs = []
    for x, y in combinations(study.parameters, 2):
        filled = len(set(zip(study.summary[x], study.summary[y], strict=True)))
        longest = max(levels[x], levels[y])
        if filled > LEAST_FILLED * levels[x] * levels[y] and longest <= LONGEST_SIDE:
            pairs.append((x, y))
    return pairs


def _groups(study: Study, sides: Sequence[str]) -> list[str]:
    """The varied parameters but for the epochs, those of the heat maps first."""
    group = [name for name in study.parameters if name != EPOCHS]
    return sorted(group, key=lambda name: name not in sides)


def _roles(summary: pd.DataFrame, sides: Sequence[str]) -> tuple[str, str | None]:
    """Which parameter gives colours, and which one, with an order, gives paths."""
    if len(sides) == 2:
        for path, color in (sides, sides[::-1]):
            if not _has_no_order(summary[path]):
                return color, path
    return sides[0], None


def _has_no_order(levels: Iterable[Any]) -> bool:
    return any(isinstance(level, str | None) for level in levels)


def _growth(study: Study) -> list[str]:
    """Whether the gap differs between the ends of each of the two main parameters.

    The others are at their last values: a setting chosen by its results would bias the test.
    """
    sentences = []
    last = study.summary.iloc[-1]
    parts = grouped(study.used, study.parameters)
    for name in _sides(study, None):
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
            f"{short} {shown(levels[-1])}", f"{short} {shown(levels[0])}", "accuracy/gap"
        )
        rest = [other for other in study.parameters if other != name]
        sentences.append((f"With {_named(last, rest)}: " if rest else "") + f"{words}.")
    return sentences


def _named(row: pd.Series, parameters: Sequence[str]) -> str:
    short = short_names(parameters)
    return ", ".join(f"{short[name]} {shown(row[name])}" for name in parameters)


def _cell(row: pd.Series, metric: str) -> str:
    mean, high = row[f"{metric}/mean"], row[f"{metric}/high"]
    return _text(mean, high - mean)


def _text(mean: float, half: float = math.nan, between: str = " ") -> str:
    if math.isnan(mean):
        return "-"
    return number(mean) if math.isnan(half) else f"{number(mean)}{between}± {number(half)}"


def _table(study: Study) -> tuple[list[str], list[list[str]]]:
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


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Tuples as lists, as a config has them."""
    return frame.map(lambda value: str(list(value)) if isinstance(value, tuple) else value)


def _results(study: Study) -> pd.DataFrame:
    """Every run, in an order of columns that depends on their names alone; ids last."""
    known = list(study.runs)
    metrics = sorted(name for name in known if "/" in name)
    parameters = sorted(name for name in known if _is_parameter(name))
    first = [name for name in ("name", "status", "seed") if name in known]
    last = [name for name in ("job_number", "failure", "run_id") if name in known]
    others = sorted(set(known) - {*first, *parameters, *metrics, *last})
    return _plain(study.runs[[*first, *parameters, *metrics, *others, *last]])


def _figures(
    study: Study, sides: Sequence[str], points: pd.DataFrame
) -> dict[str, tuple[Figure, str]]:
    """Each figure under the name of its file, with its caption."""
    summary, short = study.summary, short_names(study.parameters)
    figures: dict[str, tuple[Figure, str]] = {}
    if len(sides) == 2:
        by = f"by {short[sides[0]]} and {short[sides[1]]}"
        for metric, file in (("accuracy/test", "accuracy"), ("accuracy/gap", "gap")):
            figure = study_plots.heat_map(summary, sides[0], sides[1], metric, METRICS[metric])
            figures[f"heat_map_{file}.png"] = figure, f"{METRICS[metric]} {by}"
    elif sides:
        figure = study_plots.against(summary, sides[0])
        figures["by_parameter.png"] = figure, f"Test accuracy and gap by {short[sides[0]]}"
    else:
        known = {metric: _interval(study.used[metric]) for metric in study_plots.PAIR}
        figures["runs.png"] = study_plots.seeds(study.used, known), "Test accuracy and gap by run"
    if len(points):
        figure = study_plots.gap_against_epochs(points, _groups(study, sides))
        figures["gap_against_epochs.png"] = figure, "Accuracy gap against epoch"
    if study.parameters:
        figure = study_plots.accuracy_against_gap(summary, *_roles(summary, sides))
        figures["accuracy_against_gap.png"] = figure, "Test accuracy against accuracy gap"
    return figures


def _markdown(study: Study, captions: dict[str, str], title: str, command: str) -> str:
    headings, rows = _table(study)
    blocks = [f"# {title}", f"```\n{command}\n```", *findings(study)]
    blocks.append("## Settings\n\n" + _pipes(headings, rows, right=True))
    blocks.append(
        "Every run is in [results.csv](results.csv), this table in full precision in "
        "[summary.csv](summary.csv), and an interactive version in "
        "[report.html](report.html)."
    )
    blocks += [f"![{caption}]({name})" for name, caption in captions.items()]
    if study.unused:
        table = _pipes(Unused._fields, study.unused, right=False)
        blocks.append(f"## Runs that are in no mean\n\n{table}")
    return "\n\n".join(blocks) + "\n"


def _pipes(headings: Sequence[str], rows: Sequence[Sequence[str]], right: bool) -> str:
    lines = [headings, ["--:" if right else "---"] * len(headings), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def _html(
    study: Study, sides: Sequence[str], points: pd.DataFrame, title: str, command: str
) -> str:
    """One page with everything in it, plotly.js too, for a browser without a network."""
    from plotly.offline import get_plotlyjs

    config = {
        "displaylogo": False,
        "responsive": True,
        "showSendToCloud": False,
        "modeBarButtonsToRemove": ["lasso2d", "select2d"],
    }
    sections = []
    for place, (heading, chart) in enumerate(_charts(study, sides, points)):
        # A name of its own choosing would differ from one writing to the next.
        drawn = chart.to_html(
            config=config, include_plotlyjs=False, full_html=False, div_id=f"chart-{place}"
        )
        sections.append(f"<h2>{html.escape(heading)}</h2>{drawn}")
    sections.append(f"<h2>Settings</h2>{_html_table(*_table(study))}")
    if study.unused:
        table = _html_table(Unused._fields, study.unused)
        sections.append(f"<h2>Runs that are in no mean</h2>{table}")
    short = short_names(study.parameters)
    metrics = [metric for metric in METRICS if metric in study.runs]
    every = [
        [
            *(str(run[name]) for name in ("name", "status")),
            *(shown(run.get(name)) for name in (*short, "seed")),
            *(_text(run[metric]) for metric in metrics),
        ]
        for run in study.runs.to_dict("records")
    ]
    headings = ["run", "status", *short.values(), "seed", *(METRICS[m].lower() for m in metrics)]
    summary = f"<summary>All {_count(len(every), 'run')}</summary>"
    sections.append(f"<details>{summary}{_html_table(headings, every)}</details>")
    return _PAGE.substitute(
        title=html.escape(title),
        command=html.escape(command),
        findings="".join(f"<p>{html.escape(sentence)}</p>" for sentence in findings(study)),
        sections="\n".join(f"<section>{section}</section>" for section in sections),
        plotly=get_plotlyjs(),
        fonts=_FONTS,
    )


def _html_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _charts(study: Study, sides: Sequence[str], points: pd.DataFrame) -> list[tuple[str, Any]]:
    """Heading and plotly figure of each chart."""
    charts: list[tuple[str, Any]] = []
    for metric in study_plots.PAIR:
        if len(sides) == 2:
            grids = [tuple(sides), *(pair for pair in _grids(study) if set(pair) != set(sides))]
            charts.append((METRICS[metric], _heat_maps(study.summary, grids, metric)))
        elif sides:
            charts.append((METRICS[metric], _against(study.summary, sides[0], metric)))
    if len(points):
        charts.append(("Accuracy gap against epoch", _gap_lines(points, _groups(study, sides))))
    color = _roles(study.summary, sides)[0] if sides else None
    charts.append(("Test accuracy against the gap", _run_points(study, color)))
    return charts


def _chart(note: str, x: str, y: str) -> Any:
    from plotly import graph_objects as go

    axis = {"gridcolor": "#e8e8e8", "zeroline": False, "linecolor": "#999999", "automargin": True}
    small = {"size": 13, "color": study_plots.GREY, "weight": "normal"}
    return go.Figure(
        layout={
            "template": "none",
            "font": {"family": _FONTS, "size": 14, "color": study_plots.INK},
            "title": {"text": note, "font": small, "x": 0, "y": 1, "yanchor": "top", "pad_t": 4},
            "height": 460,
            "margin": {"l": 70, "r": 20, "t": 44, "b": 56},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#aaaaaa", "activecolor": "#222222"},
            "legend": {"title": {"font": {"size": 13}}, "font": {"size": 13}},
            "hoverlabel": {"bgcolor": "white", "font": {"family": _FONTS}},
            "xaxis": axis | {"title": {"text": x}},
            "yaxis": axis | {"title": {"text": y}},
        }
    )


def _heat_maps(summary: pd.DataFrame, grids: Sequence[Sequence[str]], metric: str) -> Any:
    """A heat map for each pair of parameters, one to be seen at a time."""
    names = short_names(study_plots.parameters_of(summary))
    depths = np.linspace(0, 1, 21)
    shades = 255 * study_plots.shades(depths, study_plots.PAIR[metric])
    scale = [
        [depth, f"rgb({red:.0f},{green:.0f},{blue:.0f})"]
        for depth, (red, green, blue) in zip(depths.tolist(), shades, strict=True)
    ]
    chart = _chart("", "", "")
    buttons = []
    for place, (x, y) in enumerate(grids):
        means, halves, note = study_plots.cells(summary, x, y, metric)
        low, high = study_plots.span(means, pad=0)
        across, up = ([html.escape(shown(v)) for v in ordered(summary[name])] for name in (x, y))
        texts = np.vectorize(_text, otypes=[object])(means, halves, "<br>")
        chart.add_heatmap(
            x=across,
            y=up,
            z=means,
            zmin=low,
            zmax=high,
            text=texts,
            hovertemplate=f"{names[x]} %{{x}}<br>{names[y]} %{{y}}<br>%{{text}}<extra></extra>",
            colorscale=scale,
            colorbar={"thickness": 12, "outlinewidth": 0},
            xgap=2,
            ygap=2,
            hoverongaps=False,
            visible=place == 0,
        )
        # Written by a trace of its own, as plotly's choice of ink is hard to read on middle tones.
        written = max(means.shape) <= study_plots.MOST_CELLS
        inks = study_plots.inks(means, metric)
        chart.add_scatter(
            x=across * len(up),
            y=np.repeat(up, len(across)),
            text=texts.ravel() if written else None,
            textfont={"color": inks.ravel(), "size": 12},
            mode="text",
            hoverinfo="skip",
            showlegend=False,
            visible=place == 0,
        )
        seen = {"visible": [place == index // 2 for index in range(2 * len(grids))]}
        titles = {
            "title.text": note,
            "xaxis.title.text": names[x].capitalize(),
            "yaxis.title.text": names[y].capitalize(),
            "height": max(320, min(900, 150 + 50 * len(up))),
        }
        label = f"{names[x]} and {names[y]}"
        buttons.append({"label": label, "method": "update", "args": [seen, titles]})
    chart.update_layout(buttons[0]["args"][1])
    # Else plotly takes "32" for a number and spaces widths by their size.
    chart.update_xaxes(type="category", showgrid=False)
    chart.update_yaxes(type="category", showgrid=False)
    if len(grids) > 1:
        menu = {"buttons": buttons, "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"}
        chart.update_layout(updatemenus=[menu], margin_t=80)
    return chart


def _against(summary: pd.DataFrame, x: str, metric: str) -> Any:
    """A metric against one parameter."""
    name = short_names(study_plots.parameters_of(summary))[x]
    mean, _, high = study_plots.mean_low_high(summary, metric)
    note = study_plots.interval_note(summary["runs"], study_plots.BARS)
    chart = _chart(note, name.capitalize(), METRICS[metric])
    numeric = all(isinstance(value, int | float) for value in summary[x])
    order = np.argsort(summary[x].to_numpy(float)) if numeric else np.arange(len(summary))
    chart.add_scatter(
        x=[
            summary[x].iloc[i] if numeric else html.escape(shown(summary[x].iloc[i])) for i in order
        ],
        y=mean[order],
        error_y={"array": (high - mean)[order], "thickness": 1.2},
        mode="lines+markers" if summary[x].is_unique and numeric else "markers",
        marker={"color": study_plots.PAIR[metric], "size": 8},
        hovertemplate=f"{name} %{{x}}<br>%{{y:.4f}}<extra></extra>",
    )
    levels = ordered(summary[x])
    if not numeric:
        chart.update_xaxes(type="category")
    elif study_plots.is_geometric(levels):
        chart.update_xaxes(type="log")
        if len(levels) <= study_plots.MOST_GROUPS:
            chart.update_xaxes(tickvals=levels, ticktext=[shown(level) for level in levels])
    return chart


def _gap_lines(points: pd.DataFrame, group: Sequence[str]) -> Any:
    """The accuracy gap against epochs."""
    levels = ordered(points[group[0]]) if group else [None]
    hues = dict(zip(levels, study_plots.palette(levels), strict=True))
    dashes: dict[Any, str] = {}
    note = study_plots.interval_note(points["runs"], study_plots.BANDS)
    chart = _chart(note, "Epoch", "Accuracy gap")
    for setting, line in grouped(points, group).items():
        line = line.sort_values("epoch")
        hue = hues[setting[0] if setting else None]
        label = html.escape(", ".join(map(shown, setting)))
        # Both traces of a setting are hidden together.
        both: dict[str, Any] = {"legendgroup": label, "name": label, "mode": "lines"}
        back = line[::-1]
        chart.add_scatter(
            x=[*line["epoch"], *back["epoch"]],
            y=[*line["high"], *back["low"]],
            fill="toself",
            fillcolor=hue,
            opacity=0.15,
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            **both,
        )
        halves = line["high"] - line["mean"]
        chart.add_scatter(
            x=line["epoch"].tolist(),
            y=line["mean"].tolist(),
            text=[_text(*row) for row in zip(line["mean"], halves, strict=True)],
            line={
                "color": hue,
                "width": 2.2,
                "dash": dashes.setdefault(setting[1:], _DASHES[len(dashes) % len(_DASHES)]),
            },
            hovertemplate=f"<b>{label}</b><br>epoch %{{x}}<br>%{{text}}<extra></extra>",
            showlegend=bool(group),
            **both,
        )
    names = short_names(group)
    chart.update_layout(legend_title_text=", ".join(names.values()), yaxis_rangemode="tozero")
    chart.update_layout(legend_traceorder="reversed")
    return chart


def _run_points(study: Study, color: str | None) -> Any:
    """Test accuracy against gap, every run."""
    chart = _chart("Each point is a run.", "Accuracy gap", "Test accuracy")
    parts = grouped(study.used, [color] if color else [])
    levels = ordered(level for (level,) in parts) if color else [None]
    for level, hue in zip(levels, study_plots.palette(levels), strict=True):
        part = parts[(level,) if color else ()]
        chart.add_scatter(
            x=part["accuracy/gap"].tolist(),
            y=part["accuracy/test"].tolist(),
            text=[html.escape(str(name)) for name in part["name"]],
            name=html.escape(shown(level)),
            mode="markers",
            marker={"color": hue, "size": 9, "line": {"color": "white", "width": 0.5}},
            hovertemplate="<b>%{text}</b><br>test %{y:.4f}<br>gap %{x:.4f}<extra></extra>",
        )
    chart.update_layout(
        showlegend=1 < len(levels) <= study_plots.MOST_GROUPS,
        legend_title_text=short_names(study.parameters)[color] if color else "",
        legend_traceorder="reversed",
    )
    return chart


_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; }
body { margin: 0; background: #f6f7f9; color: #222;
  font: 16px/1.5 $fonts; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 12px; letter-spacing: -0.01em; }
h2 { font-size: 1.2rem; margin: 0 0 4px; }
p { margin: 6px 0; max-width: 75ch; }
pre { background: #22272e; color: #e6e6e6; padding: 12px 16px; border-radius: 8px;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.85rem; }
section { background: white; border: 1px solid #e2e5e9; border-radius: 10px; padding: 20px;
  margin-top: 20px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.88rem; margin-top: 8px;
  font-variant-numeric: tabular-nums; }
th { border-bottom: 2px solid #ccc; cursor: pointer; white-space: nowrap; }
th, td { padding: 5px 14px 5px 0; text-align: left; }
td:not(:last-child) { white-space: nowrap; }
td { border-bottom: 1px solid #eee; }
tbody tr:hover { background: #f2f6fa; }
summary { cursor: pointer; font-weight: 600; }
</style>
<script>$plotly</script>
</head>
<body>
<main>
<h1>$title</h1>
<pre>$command</pre>
$findings
$sections
</main>
<script>
// A click on a heading sorts by its column; another one turns the order round.
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const place = head.cellIndex, body = head.closest("table").tBodies[0];
  const key = row => row.cells[place].textContent;
  const sign = head.dataset.up ? -1 : 1;
  head.dataset.up = sign > 0 ? "1" : "";
  const order = new Intl.Collator("en", {numeric: true});
  body.append(...[...body.rows].sort((a, b) => sign * order.compare(key(a), key(b))));
});
</script>
</body>
</html>
""")
