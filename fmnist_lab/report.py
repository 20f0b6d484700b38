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
from fmnist_lab.study_plots import METRICS, grouped, order_key, ordered, short_names, shown

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

    name: str
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
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
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
            page.add_row(Text(f"{run.name}  {run.status}  {run.reason}"))
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
    #    texts["report.html"] = _html(study, sides, points, title, command)
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
    sentences = [f"{_count(len(study.runs), 'run')}: {states}; {len(study.used)} in the means."]
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
    return runs.assign(
        **{
            name: _column(map(_value, runs[name])).set_axis(runs.index)
            for name in runs
            if _is_parameter(name) or name == "seed"
        }
    )


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
        failure = run.get("failure")
        return " ".join(failure.split())[:300] if isinstance(failure, str) else "no reason recorded"
    for metric in ("accuracy/test", "accuracy/gap"):
        if not math.isfinite(run.get(metric, math.nan)):
            return f"has no {metric}"
    return ""


def _nothing(unused: Sequence[Unused]) -> str:
    if not unused:
        return "there are no runs to report on: expected at least one that is FINISHED"
    reasons = "; ".join(f"{run.name} {run.status}: {run.reason}" for run in unused[:3])
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
        known = [
            _interval(part[metric] if metric in part else [math.nan]) for part in settings.values()
        ]
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
    """Whether the gap differs between the ends of each of the two main parameters."""
    sentences = []
    top = best(study.summary).iloc[0]
    parts = grouped(study.used, study.parameters)
    for name in _sides(study, None):
        levels = ordered(study.summary[name])
        if _has_no_order(levels):
            continue
        settings = [
            tuple(level if other == name else top[other] for other in study.parameters)
            for level in (levels[-1], levels[0])
        ]
        if len(set(settings)) < 2 or not all(setting in parts for setting in settings):
            continue
        high, low = (parts[setting] for setting in settings)
        seeds = [list(part["seed"]) for part in (high, low)] if "seed" in high else [[None]]
        paired = seeds[0] == seeds[-1] and None not in seeds[0]
        gaps = [part["accuracy/gap"].to_numpy(float) for part in (high, low)]
        found = statistics.compare_groups(*gaps, paired=paired)
        if math.isnan(found.p_value):
            continue
        short = short_names(study.parameters)[name]
        words = found.sentence(
            f"{short} {shown(levels[-1])}", f"{short} {shown(levels[0])}", "accuracy/gap"
        )
        rest = [other for other in study.parameters if other != name]
        sentences.append((f"With {_named(top, rest)}: " if rest else "") + f"{words}.")
    return sentences


def _named(row: pd.Series, parameters: Sequence[str]) -> str:
    short = short_names(parameters)
    return ", ".join(f"{short[name]} {shown(row[name])}" for name in parameters)


def _cell(row: pd.Series, metric: str) -> str:
    mean, high = row[f"{metric}/mean"], row[f"{metric}/high"]
    return _text(mean, high - mean)


def _text(mean: float, half: float, between: str = " ") -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:.4f}" if math.isnan(half) else f"{mean:.4f}{between}± {half:.4f}"


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
        rows = [list(run) for run in study.unused]
        table = _pipes(["run", "status", "reason"], rows, right=False)
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

    charts = _charts(study, sides, points)
    config = {"displaylogo": False, "responsive": True}
    sections = [
        f"<section><h2>{html.escape(heading)}</h2><p>{html.escape(note)}</p>"
        + chart.to_html(
            full_html=False, include_plotlyjs=False, div_id=f"chart-{place}", config=config
        )
        + "</section>"
        for place, (heading, note, chart) in enumerate(charts)
    ]
    short = short_names(study.parameters)
    metrics = [metric for metric in METRICS if metric in study.runs]
    headings = ["run", "status", *short.values(), "seed", *(METRICS[m].lower() for m in metrics)]
    runs = [
        [
            str(run["name"]),
            str(run["status"]),
            *(shown(run[name]) for name in study.parameters),
            shown(run.get("seed")),
            *("" if math.isnan(run[metric]) else f"{run[metric]:.4f}" for metric in metrics),
        ]
        for run in study.runs.to_dict("records")
    ]
    sections.append(f"<section><h2>Settings</h2>{_html_table(*_table(study))}</section>")
    if study.unused:
        table = _html_table(["run", "status", "reason"], [list(run) for run in study.unused])
        sections.append(f"<section><h2>Runs that are in no mean</h2>{table}</section>")
    sections.append(
        f"<section><details><summary>All {_count(len(runs), 'run')}</summary>"
        f"{_html_table(headings, runs)}</details></section>"
    )
    return _PAGE.substitute(
        title=html.escape(title),
        command=html.escape(command),
        findings="".join(f"<p>{html.escape(sentence)}</p>" for sentence in findings(study)),
        sections="\n".join(sections),
        plotly=get_plotlyjs(),
    )


def _charts(study: Study, sides: Sequence[str], points: pd.DataFrame) -> list[tuple[str, str, Any]]:
    """Heading, note and plotly figure of each chart."""
    from plotly import graph_objects as go

    short = short_names(study.parameters)
    charts: list[tuple[str, str, Any]] = []
    if len(sides) == 2:
        grids = [tuple(sides), *(pair for pair in _grids(study) if set(pair) != set(sides))]
        for metric in study_plots.PAIR:
            chart, note = _heat_maps(study.summary, grids, metric)
            charts.append((METRICS[metric], note, chart))
    elif sides:
        charts += [_against(study.summary, sides[0], metric) for metric in study_plots.PAIR]
    if len(points):
        charts.append(_gap_lines(study, sides, points))
    color = _roles(study.summary, sides)[0] if sides else None
    chart = go.Figure(layout=_LAYOUT)
    levels = ordered(study.used[color]) if color else [None]
    for level, hue in zip(levels, study_plots.palette(levels), strict=True):
        part = (
            study.used[study.used[color].map(lambda v, at=level: v == at)] if color else study.used
        )
        chart.add_scatter(
            x=part["accuracy/gap"],
            y=part["accuracy/test"],
            text=part["name"].astype(str).map(html.escape),
            name=html.escape(shown(level)),
            mode="markers",
            marker={"color": hue, "size": 9, "line": {"color": "white", "width": 0.5}},
            hovertemplate="<b>%{text}</b><br>test %{y:.4f}<br>gap %{x:.4f}<extra></extra>",
        )
    chart.update_layout(
        xaxis_title="Accuracy gap",
        yaxis_title="Test accuracy",
        showlegend=1 < len(levels) <= study_plots.MOST_GROUPS,
        legend_title=short[color] if color else None,
    )
    charts.append(("Test accuracy against the gap", "Each point is a run.", chart))
    return charts


def _heat_maps(
    summary: pd.DataFrame, grids: Sequence[Sequence[str]], metric: str
) -> tuple[Any, str]:
    """A heat map for each pair of parameters, one to be seen at a time, and a note on the first."""
    from plotly import graph_objects as go

    names = short_names(study_plots.parameters_of(summary))
    hue, depths = study_plots.PAIR[metric], np.linspace(0, 1, 21)
    scale = [
        [float(depth), "rgb({:.0f},{:.0f},{:.0f})".format(*(255 * color))]
        for depth, color in zip(depths, study_plots.shades(depths, hue), strict=True)
    ]
    chart = go.Figure(layout=_LAYOUT)
    notes, buttons = [], []
    for place, (x, y) in enumerate(grids):
        columns, rows = ordered(summary[x]), ordered(summary[y])
        means, halves, note = study_plots.cells(summary, x, y, metric)
        low, high = study_plots.span(means, pad=0)
        texts = [
            [_text(mean, half, "<br>") for mean, half in zip(*line, strict=True)]
            for line in zip(means, halves, strict=True)
        ]
        written = max(len(columns), len(rows)) <= study_plots.MOST_CELLS
        chart.add_heatmap(
            x=[html.escape(shown(value)) for value in columns],
            y=[html.escape(shown(value)) for value in rows],
            z=means,
            zmin=low,
            zmax=high,
            text=texts,
            texttemplate="%{text}" if written else "",
            hovertemplate=f"{names[x]} %{{x}}<br>{names[y]} %{{y}}<br>%{{text}}<extra></extra>",
            colorscale=scale,
            colorbar={"thickness": 12, "outlinewidth": 0},
            xgap=2,
            ygap=2,
            hoverongaps=False,
            visible=place == 0,
        )
        titles = {
            "xaxis.title.text": names[x].capitalize(),
            "yaxis.title.text": names[y].capitalize(),
        }
        seen = {"visible": [place == other for other in range(len(grids))]}
        label = f"{names[x]} and {names[y]}"
        buttons.append({"label": label, "method": "update", "args": [seen, titles]})
        notes.append(note)
    chart.update_layout(buttons[0]["args"][1])
    chart.update_layout(height=max(360, min(900, 140 + 52 * len(ordered(summary[grids[0][1]])))))
    # Else plotly takes "32" for a number and spaces widths by their size.
    chart.update_xaxes(type="category", showgrid=False)
    chart.update_yaxes(type="category", showgrid=False)
    if len(grids) > 1:
        place = {"x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"}
        chart.update_layout(updatemenus=[{"buttons": buttons, **place}], margin_t=60)
    return chart, notes[0]


def _against(summary: pd.DataFrame, x: str, metric: str) -> tuple[str, str, Any]:
    """Heading, note and chart of a metric against one parameter."""
    from plotly import graph_objects as go

    name = short_names(study_plots.parameters_of(summary))[x]
    mean, low, high = study_plots.mean_low_high(summary, metric)
    text = not all(isinstance(value, int | float) for value in summary[x])
    chart = go.Figure(layout=_LAYOUT)
    chart.add_scatter(
        x=[html.escape(shown(value)) if text else value for value in summary[x]],
        y=mean,
        error_y={"array": high - mean, "arrayminus": mean - low, "thickness": 1.2},
        mode="lines+markers" if summary[x].is_unique and not text else "markers",
        marker={"color": study_plots.PAIR[metric], "size": 8},
        line={"color": study_plots.PAIR[metric]},
        hovertemplate=f"{name} %{{x}}<br>%{{y:.4f}}<extra></extra>",
    )
    chart.update_layout(xaxis_title=name.capitalize(), yaxis_title=METRICS[metric])
    chart.update_xaxes(type="category" if text else "-")
    note = study_plots.interval_note(summary["runs"], study_plots.BARS)
    return f"{METRICS[metric]} by {name}", note, chart


def _gap_lines(study: Study, sides: Sequence[str], points: pd.DataFrame) -> tuple[str, str, Any]:
    """Heading, note and chart of the gap against epochs."""
    from plotly import graph_objects as go

    group = _groups(study, sides)
    names = short_names(study.parameters)
    levels = ordered(points[group[0]]) if group else [None]
    hues = dict(
        zip(levels, study_plots.palette(levels) if group else [study_plots.RED], strict=True)
    )
    dashes: dict[Any, str] = {}
    chart = go.Figure(layout=_LAYOUT)
    for setting, line in grouped(points, group).items():
        line = line.sort_values("epoch")
        level = setting[0] if setting else None
        dash = dashes.setdefault(setting[1:], _DASHES[len(dashes) % len(_DASHES)])
        label = html.escape(", ".join(map(shown, setting)))
        both = {"legendgroup": label, "name": label}
        if line["low"].notna().any():
            around = pd.concat([line["high"], line["low"][::-1]])
            chart.add_scatter(
                x=pd.concat([line["epoch"], line["epoch"][::-1]]),
                y=around.astype(float),
                fill="toself",
                fillcolor=hues[level],
                opacity=0.15,
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                showlegend=False,
                **both,
            )
        chart.add_scatter(
            x=line["epoch"],
            y=line["mean"].astype(float),
            text=[
                _text(*row) for row in zip(line["mean"], line["high"] - line["mean"], strict=True)
            ],
            line={"color": hues[level], "width": 2.2, "dash": dash},
            mode="lines+markers" if len(line) <= 12 else "lines",
            hovertemplate=f"<b>{label}</b><br>epoch %{{x}}<br>%{{text}}<extra></extra>",
            showlegend=bool(group),
            **both,
        )
    chart.update_layout(
        xaxis_title="Epoch",
        yaxis={"title": "Accuracy gap", "rangemode": "tozero"},
        legend_title=", ".join(names[name] for name in group),
    )
    note = study_plots.interval_note(points["runs"], study_plots.BANDS)
    return "Accuracy gap against epoch", f"{note} Click a name to hide its line.", chart


def _html_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'


_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_AXIS = {"gridcolor": "#e8e8e8", "zeroline": False, "linecolor": "#999999", "automargin": True}
_LAYOUT = {
    "template": "none",
    "font": {"family": _FONTS, "size": 14, "color": study_plots.INK},
    "margin": {"l": 70, "r": 20, "t": 16, "b": 56},
    "height": 460,
    "xaxis": _AXIS,
    "yaxis": _AXIS,
    "hoverlabel": {"bgcolor": "white", "font": {"family": _FONTS}},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
}
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; }
body { margin: 0; background: #f6f7f9; color: #222; line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 12px; letter-spacing: -0.01em; }
h2 { font-size: 1.2rem; margin: 0 0 4px; }
p { margin: 6px 0; max-width: 75ch; }
pre { background: #22272e; color: #e6e6e6; padding: 12px 16px; border-radius: 8px;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.85rem; }
section { background: white; border: 1px solid #e2e5e9; border-radius: 10px; padding: 20px;
  margin-top: 20px; }
section > p { color: #6e6e6e; font-size: 0.9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.88rem; margin-top: 8px;
  font-variant-numeric: tabular-nums; }
th { text-align: left; border-bottom: 2px solid #ccc; cursor: pointer; white-space: nowrap; }
th, td { padding: 5px 14px 5px 0; }
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
