"""Runs in; tables for the terminal, CSV, Markdown with figures, and one HTML page out.

`runs` and `curves` are as in `frames`. The same runs give the same files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path

import pandas as pd

from fmnist_lab.studies import bias
from fmnist_lab.studies.crossed import samples
from fmnist_lab.studies.design import (
    as_changes,
    groups,
    heat_map_pairs,
    heat_map_sides,
    is_mixed,
    most_common,
    one_at_a_time,
    roles,
)
from fmnist_lab.studies.findings import common_values, findings, settings_table
from fmnist_lab.studies.frames import (
    CLEAN_GAP,
    EPOCHS,
    GAP,
    MEMORISED,
    METRICS,
    TRAINED,
    VALIDATED,
    draws_of,
    is_parameter,
    mean_text,
    ordered,
    short_names,
    shown,
)
from fmnist_lab.studies.screen import terminal_table
from fmnist_lab.studies.summary import (
    Study,
    Unused,
    best,
    interval,
    mean_curves,
    summarize,
    take_apart,
    varied,
)
from fmnist_lab.studies.vega import MOST_GROUPS
from fmnist_lab.studies.writing import Figure, Table, csv, drawn, keep, page, section
from fmnist_lab.texts import counted

__all__ = [
    "Study",
    "Unused",
    "best",
    "figures",
    "findings",
    "mean_curves",
    "summarize",
    "take_apart",
    "terminal_table",
    "varied",
    "write",
]

# Columns of runs that no file has.
NOT_WRITTEN = ("sweeps", "trial_values", "search")
# What is drawn, by settings and against the epochs, and in which files; with wrong labels alone,
# how they are learnt.
FILES = {
    "accuracy/validation": "validation",
    "accuracy/test": "accuracy",
    GAP: "gap",
    CLEAN_GAP: "gap_on_true_labels",
    MEMORISED: "memorised",
    TRAINED: "training",
}
CURVES = tuple(FILES)
LEAST_LINE = 6  # Values of a parameter that make a line.
MOST_PAIRS = 10  # Of parameters, whose heat maps a page has.


def write(
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    folder: Path,
    *,
    title: str,
    command: str,
    axes: Sequence[str] | None = None,
    remarks: Sequence[str] = (),
    error_parts: pd.DataFrame | None = None,
) -> list[Path]:
    """Write `results.csv`, `summary.csv`, `report.md` with its figures, and `report.html`.

    Where there are curves, `curves.csv` has their means and 95 % intervals for every epoch; where
    there are parts of the error, they are in `bias_variance.csv`. The same runs give the same
    files, byte for byte, in whatever order they come.

    Args:
        runs: As in `frames`.
        curves: As in `frames`.
        folder: Where to; made if it is not there.
        title: What the study is called.
        command: The command that ran it.
        axes: The two varied parameters of the heat maps; None: those with the most values.
        remarks: More sentences than those that the table gives rise to.
        error_parts: What `bias.by_setting` returns.

    Returns:
        The files.

    Raises:
        UserError: No run is finished, or an axis was not varied.
    """
    study = take_apart(runs)
    sides = heat_map_sides(study, axes)
    points = _points(study, curves)
    shown, others = _figures(study, sides, points, is_chosen=axes is not None)
    texts = {"results.csv": csv(_results(study)), "summary.csv": csv(study.summary)}
    if len(points[GAP]):
        texts["curves.csv"] = csv(_curves(points))
    if error_parts is not None:
        texts["bias_variance.csv"] = csv(error_parts)
        shown += _bias_variance(study, error_parts)
    said = [*findings(study), *remarks]
    texts["report.md"] = _markdown(study, shown, said, title, command)
    pictures = drawn([*shown, *others])
    texts["report.html"] = page(
        title,
        {"": command},
        said,
        pictures[: len(shown)],
        [*_tables(study), _every(study)],
        pictures[len(shown) :],
    )
    return keep(folder, texts, shown, pictures)


def figures(study: Study, curves: pd.DataFrame, axes: Sequence[str] | None = None) -> list[Figure]:
    """Return the figures of a report.

    Args:
        study: The runs, taken apart.
        curves: As in `frames`.
        axes: The two varied parameters of the heat maps; None: those with the most values.

    Raises:
        UserError: An axis was not varied.
    """
    sides = heat_map_sides(study, axes)
    return _figures(study, sides, _points(study, curves), is_chosen=axes is not None)[0]


def _points(study: Study, curves: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the points against epochs of each metric that is drawn."""
    from fmnist_lab.studies import charts

    metrics = list(charts.charted(study.summary))
    if CLEAN_GAP in metrics:
        metrics.append(TRAINED)
    return {metric: mean_curves(study, curves, metric) for metric in metrics}


def _results(study: Study) -> pd.DataFrame:
    """Every run, in an order of columns that depends on their names alone; ids last."""
    known = list(study.runs)
    metrics = sorted(name for name in known if "/" in name)
    parameters = sorted(name for name in known if is_parameter(name))
    first = [name for name in ("name", "status", "seed") if name in known]
    last = [name for name in ("job_number", "failure", "run_id") if name in known]
    others = sorted(set(known) - {*first, *parameters, *metrics, *last, *NOT_WRITTEN})
    return study.runs[[*first, *parameters, *metrics, *others, *last]]


def _curves(points: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """All metrics' points side by side, a row a setting and epoch."""
    ends = ["mean", "low", "high"]
    # First what every run has.
    order = sorted(points, key=lambda metric: metric == VALIDATED)
    named = [
        points[metric].rename(columns={end: f"{metric}/{end}" for end in ends})
        for metric in order
        if len(points[metric])
    ]
    keys = [name for name in named[0] if "/" not in name]
    return reduce(lambda left, right: left.merge(right, on=keys, how="left"), named)


def _figures(
    study: Study,
    sides: Sequence[str],
    points: Mapping[str, pd.DataFrame],
    *,
    is_chosen: bool,
) -> tuple[list[Figure], list[Figure]]:
    """Return the figures of a report, and heat maps by other pairs of parameters for its page.

    Args:
        study: The runs, taken apart.
        sides: The parameters of the heat maps.
        points: What `mean_curves` returns of each metric that is drawn.
        is_chosen: Whether a person has named the sides.
    """
    from fmnist_lab.studies import charts

    common = None if is_chosen else one_at_a_time(study)
    if common is None and not is_chosen and is_mixed(study):
        common = most_common(study)
    if common is not None:
        # Hardly any parameters cross: the one parameter is then what a setting changes.
        points = {metric: as_changes(each, common) for metric, each in points.items()}
        used, summary = (as_changes(each, common) for each in (study.used, study.summary))
        study = replace(study, parameters=["change"], used=used, summary=summary)
        sides = ["change"]
    summary, short = study.summary, short_names(study.parameters)
    metrics = [metric for metric in points if metric != TRAINED]
    titled = charts.titled(METRICS[metric] for metric in metrics)
    figures, others = [], []
    if len(sides) == 2:
        figures = _heat_maps(study, sides, metrics)
        if line := _line(study):
            caption = f"{titled} by {short[line[0]]} and {short[line[1]]}"
            figures.append(Figure("by_parameter.png", caption, charts.against(summary, *line)))
        pairs = [pair for pair in heat_map_pairs(study)[:MOST_PAIRS] if set(pair) != set(sides)]
        others = [figure for pair in pairs for figure in _heat_maps(study, pair, metrics)]
    elif sides:
        caption = f"{titled} by {short[sides[0]]}"
        figures.append(Figure("by_parameter.png", caption, charts.against(summary, sides[0])))
    else:
        by = samples(draws_of(study.used))
        known = {metric: interval(study.used[metric], by) for metric in metrics}
        caption = f"{titled} by run"
        figures.append(Figure("runs.png", caption, charts.runs(study.used, known)))
    for metric, part in points.items():
        if len(part):
            group, is_noisy = groups(study, sides), CLEAN_GAP in metrics
            chart = charts.against_epochs(part, group, metric, is_noisy=is_noisy)
            name = f"{FILES[metric]}_against_epochs.png"
            figures.append(Figure(name, f"{charts.NAMES[metric]} against epoch", chart))
    if study.parameters:
        chart = charts.accuracy_against_gap(summary, *roles(summary, sides), study.used)
        caption = "Test accuracy against accuracy gap"
        figures.append(Figure("accuracy_against_gap.png", caption, chart))
    return figures, others


def _bias_variance(study: Study, error_parts: pd.DataFrame) -> list[Figure]:
    """Return the chart of bias² and variance by the only parameter, or in lines by two."""
    from fmnist_lab.studies import charts

    x, group = _line(study) or (study.parameters[0], "")
    if not group and len(study.parameters) > 1:
        return []
    chart = charts.against(error_parts, x, group, bias.NAMES)
    return [Figure("bias_variance.png", "Bias² and variance of the predictions", chart)]


def _line(study: Study) -> tuple[str, str] | None:
    """Return the parameter with so many numbers that they make a line, and that of the lines."""
    levels = {name: ordered(study.summary[name]) for name in study.parameters}
    if len(levels) != 2 or EPOCHS in levels:  # Curves against the epochs are drawn anyway.
        return None
    x, group = sorted(levels, key=lambda name: -len(levels[name]))
    is_line = len(levels[x]) >= LEAST_LINE and all(isinstance(v, int | float) for v in levels[x])
    return (x, group) if is_line and len(levels[group]) <= MOST_GROUPS else None


def _heat_maps(study: Study, sides: Sequence[str], metrics: Iterable[str]) -> list[Figure]:
    from fmnist_lab.studies import heat_maps

    x, y = sides
    short = short_names(study.parameters)
    return [
        Figure(
            f"heat_map_{FILES[metric]}.png",
            f"{METRICS[metric]} by {short[x]} and {short[y]}",
            heat_maps.heat_map(study.summary, x, y, metric),
        )
        for metric in metrics
    ]


def _tables(study: Study) -> list[Table]:
    folded = is_mixed(study)
    headings, rows, _ = settings_table(study, folded=folded)
    note = common_values(study) if folded else ""
    tables = [Table("Settings", headings, rows, note, is_right=not folded)]
    if study.unused:
        tables.append(Table("Runs that are in no mean", Unused._fields, study.unused))
    return tables


def _every(study: Study) -> Table:
    """Return the table of all runs."""
    short = short_names(study.parameters)
    metrics = [metric for metric in METRICS if metric in study.runs]
    rows = [
        [
            *(str(run[name]) for name in ("name", "status")),
            *(shown(run.get(name), name) for name in (*short, "seed")),
            *(mean_text(run[metric]) for metric in metrics),
        ]
        for run in study.runs.to_dict("records")
    ]
    headings = ["run", "status", *short.values(), "seed", *(METRICS[m].lower() for m in metrics)]
    return Table(f"All {counted(len(rows), 'run')}", headings, rows, is_folded=True)


def _markdown(
    study: Study, figures: Sequence[Figure], said: Sequence[str], title: str, command: str
) -> str:
    settings, *others = map(section, _tables(study))
    blocks = [f"# {title}", f"```\n{command}\n```", *said, settings]
    blocks.append(
        "Every run is in [results.csv](results.csv), this table in full precision in "
        "[summary.csv](summary.csv), and an interactive version in "
        "[report.html](report.html)."
    )
    blocks += [f"![{figure.caption}]({figure.file})" for figure in figures]
    return "\n\n".join([*blocks, *others]) + "\n"
