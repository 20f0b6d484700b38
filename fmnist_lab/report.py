"""Runs in; tables for the terminal, CSV, Markdown with figures, and one HTML page out.

`runs` and `curves` are as in `study`, which sorts and sums up the runs; the HTML page is made in
`report_page`. The same runs give the same files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fmnist_lab import report_page, study_plots
from fmnist_lab.study import (
    Study,
    Unused,
    as_changes,
    best,
    findings,
    groups,
    heat_map_sides,
    interval,
    is_parameter,
    mean_curves,
    one_at_a_time,
    roles,
    settings_table,
    summarize,
    take_apart,
    varied,
)
from fmnist_lab.study_plots import METRICS, short_names

__all__ = [
    "Study",
    "Unused",
    "best",
    "findings",
    "mean_curves",
    "summarize",
    "take_apart",
    "terminal_table",
    "varied",
    "write",
]

# What is drawn, by settings and against the epochs, and in which files.
FILES = {"accuracy/test": "accuracy", "accuracy/gap": "gap"}
CURVES = tuple(FILES)


def terminal_table(runs: pd.DataFrame) -> RenderableType:
    """Return what a terminal shows of a study: a row a setting, findings, runs without result.

    Args:
        runs: As in `study`.

    Returns:
        What rich can print.

    Raises:
        UserError: No run is finished.
    """
    study = take_apart(runs)
    headings, rows = settings_table(study)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(Text(heading), justify="right")
    for row in rows:
        table.add_row(*map(Text, row))
    lines = [text for sentence in findings(study) for text in ("", Text(sentence))]
    if study.unused:
        lines += ["", *(Text("  ".join(run)) for run in study.unused)]
    return Group(table, *lines)


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

    Where there are curves, `curves.csv` has their means and 95 % intervals for every epoch.

    The same runs give the same files, byte for byte, in whatever order they come.

    Args:
        runs: As in `study`.
        curves: As in `study`.
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
    sides = heat_map_sides(study, axes)
    points = {metric: mean_curves(study, curves, metric) for metric in CURVES}
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "results.csv": _results(study).to_csv(index=False, lineterminator="\n"),
        "summary.csv": _plain(study.summary).to_csv(index=False, lineterminator="\n"),
    }
    if len(points["accuracy/gap"]):
        texts["curves.csv"] = _curves(points).to_csv(index=False, lineterminator="\n")
    common = one_at_a_time(study) if axes is None else None
    if common is None:
        figures = _figures(study, sides, points)
    else:
        # No two parameters cross; what was changed is then the one that was varied.
        changed = {metric: as_changes(each, common) for metric, each in points.items()}
        summary = as_changes(study.summary, common)
        one = replace(study, parameters=["change"], summary=summary)
        figures = _figures(one, ["change"], changed)
    for name, (figure, _) in figures.items():
        figure.savefig(folder / name)
    captions = {name: caption for name, (_, caption) in figures.items()}
    texts["report.md"] = _markdown(study, captions, title, command)
    texts["report.html"] = report_page.html_page(
        study, sides, points["accuracy/gap"], title, command
    )
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return [folder / name for name in (*texts, *figures)]


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Tuples as lists, as a config has them."""
    return frame.map(lambda value: str(list(value)) if isinstance(value, tuple) else value)


def _results(study: Study) -> pd.DataFrame:
    """Every run, in an order of columns that depends on their names alone; ids last."""
    known = list(study.runs)
    metrics = sorted(name for name in known if "/" in name)
    parameters = sorted(name for name in known if is_parameter(name))
    first = [name for name in ("name", "status", "seed") if name in known]
    last = [name for name in ("job_number", "failure", "run_id") if name in known]
    others = sorted(set(known) - {*first, *parameters, *metrics, *last, "sweeps"})
    return _plain(study.runs[[*first, *parameters, *metrics, *others, *last]])


def _curves(points: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """All metrics' points side by side, a row a setting and epoch."""
    ends = ["mean", "low", "high"]
    named = [
        each.rename(columns={end: f"{metric}/{end}" for end in ends})
        for metric, each in points.items()
        if len(each)
    ]
    keys = [name for name in named[0] if "/" not in name]
    return _plain(reduce(lambda left, right: left.merge(right, on=keys, how="left"), named))


def _figures(
    study: Study, sides: Sequence[str], points: Mapping[str, pd.DataFrame]
) -> dict[str, tuple[Figure, str]]:
    """Each figure under the name of its file, with its caption."""
    summary, short = study.summary, short_names(study.parameters)
    figures: dict[str, tuple[Figure, str]] = {}
    if len(sides) == 2:
        by = f"by {short[sides[0]]} and {short[sides[1]]}"
        for metric, file in FILES.items():
            figure = study_plots.heat_map(summary, sides[0], sides[1], metric, METRICS[metric])
            figures[f"heat_map_{file}.png"] = figure, f"{METRICS[metric]} {by}"
    elif sides:
        figure = study_plots.against(summary, sides[0])
        figures["by_parameter.png"] = figure, f"Test accuracy and gap by {short[sides[0]]}"
    else:
        known = {metric: interval(study.used[metric]) for metric in study_plots.PAIR}
        figures["runs.png"] = study_plots.seeds(study.used, known), "Test accuracy and gap by run"
    for metric, part in points.items():
        if len(part):
            figure = study_plots.against_epochs(part, groups(study, sides), metric)
            file = f"{FILES[metric]}_against_epochs.png"
            figures[file] = figure, f"{METRICS[metric]} against epoch"
    if study.parameters:
        figure = study_plots.accuracy_against_gap(summary, *roles(summary, sides))
        figures["accuracy_against_gap.png"] = figure, "Test accuracy against accuracy gap"
    return figures


def _markdown(study: Study, captions: dict[str, str], title: str, command: str) -> str:
    headings, rows = settings_table(study)
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
