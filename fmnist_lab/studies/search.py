"""A search in; its report in files, its closing screen and its figures out.

`runs`, `curves` and the facts are as in `trials`. The same runs give the same files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import RenderableType
from rich.table import Table as Screen
from rich.text import Text

from fmnist_lab.studies.frames import VALIDATED, mean_text
from fmnist_lab.studies.importance import Importance, importances
from fmnist_lab.studies.search_findings import (
    BEST_SHOWN,
    failures_table,
    finals_table,
    findings,
    ranked,
    rungs_table,
    trials_table,
    values_text,
)
from fmnist_lab.studies.search_marks import named, spoken
from fmnist_lab.studies.trials import Search, facts_of, take_apart
from fmnist_lab.studies.writing import Figure, Table, csv, drawn, keep, page, section
from fmnist_lab.texts import counted

__all__ = ["best_means", "curves_of", "facts_of", "terminal", "write"]

BEST_ON_SCREEN = 5
WINNER = "The winner, trained on all training images:"


def curves_of(facts: Mapping[str, Any]) -> list[str]:
    """Return the metrics whose curves a report needs."""
    return list(facts["objectives"])


def write(
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    facts: Mapping[str, Any],
    folder: Path,
    *,
    title: str,
    command: str,
) -> list[Path]:
    """Write the report of a search.

    `trials.csv` has every trial, `rungs.csv` the cost of each rung, `importance.csv` that of the
    hyperparameters, `finals.csv` the winner's runs, `pareto.csv` the trials of the front, and
    `best.yaml` the winner; those that a search has nothing for are left out. `report.md` has the
    figures, and `report.html` is for a browser.

    Args:
        runs: The runs of the search.
        curves: What `curves_of` names, of each epoch.
        facts: What the search tells of itself.
        folder: Where to; made if it is not there.
        title: What the search is called.
        command: The command that ran it.

    Returns:
        The files.

    Raises:
        UserError: No trial has a value yet.
    """
    search = take_apart(runs, curves, facts)
    found = importances(search)
    figures = _figures(search, found)
    texts = _data(search, found)
    sentences = findings(search, found)
    commands = {"": command}
    if winner := _winner(search):
        commands[WINNER] = winner
    tables = _tables(search)
    texts["report.md"] = _markdown(title, commands, sentences, tables, figures, list(texts))
    pictures = drawn(figures)
    every = trials_table(
        search,
        search.trials.to_dict("records"),
        f"All {counted(len(search.trials), 'trial')}",
    )
    texts["report.html"] = page(
        title, commands, sentences, pictures, [*tables, every._replace(is_folded=True)]
    )
    return keep(folder, texts, figures, pictures)


def terminal(
    runs: pd.DataFrame, curves: pd.DataFrame, facts: Mapping[str, Any]
) -> list[RenderableType]:
    """Return what a terminal shows of a search: its best trials, its rungs, and the findings.

    Args:
        runs: The runs of the search.
        curves: What `curves_of` names, of each epoch.
        facts: What the search tells of itself.

    Raises:
        UserError: No trial has a value yet.
    """
    search = take_apart(runs, curves, facts)
    best = Screen(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("trial", "state", "epochs", *map(spoken, search.objectives)):
        # One below the other are the words of a heading, which are wider than any value.
        words = Text(heading.replace(" ", "\n"))
        best.add_column(words, justify="left" if heading == "state" else "right", no_wrap=True)
    best.add_column("with", overflow="fold", ratio=1)
    for row in ranked(search)[:BEST_ON_SCREEN]:
        best.add_row(
            *map(Text, (str(row["trial"]), row["status"], str(row["epochs"]))),
            *(Text(mean_text(row[metric])) for metric in search.objectives),
            Text(values_text(search, row["trial"])),
        )
    lines: list[RenderableType] = [best]
    if search.is_pruned:
        lines += ["", _screen(rungs_table(search))]
    for told in findings(search, importances(search)):
        lines += ["", Text(told)]
    failed = failures_table(search)
    if failed:
        lines += ["", *(Text("  ".join(row)) for row in failed.rows[:BEST_ON_SCREEN])]
    return lines


def best_means(
    runs: pd.DataFrame, curves: pd.DataFrame, facts: Mapping[str, Any]
) -> dict[str, float]:
    """Return the figures of a search by metric: the best trial's, and on test images its finals'.

    Args:
        runs: The runs of the search.
        curves: What `curves_of` names, of each epoch.
        facts: What the search tells of itself.

    Raises:
        UserError: No trial has a value yet.
    """
    search = take_apart(runs, curves, facts)
    means = {}
    if search.best is not None:
        row = search.row(search.best)
        means = {metric: float(row[metric]) for metric in (*search.objectives, VALIDATED)}
    for metric in ("accuracy/test", "accuracy/gap"):
        # Without finals an objective may be the best trial's gap.
        if mean := search.mean_of_finals(metric):
            means[metric] = mean.mean
    return {metric: value for metric, value in means.items() if math.isfinite(value)}


def _winner(search: Search) -> str:
    """Return the command that trains the winner, or "" if there is none yet."""
    command = search.facts.get("winner_command")
    return command if isinstance(command, str) and search.front else ""


def _screen(table: Table) -> Screen:
    screen = Screen(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in table.headings:
        screen.add_column(Text(heading.replace(" ", "\n", 1)), justify="right")
    for row in table.rows:
        screen.add_row(*map(Text, row))
    return screen


def _figures(search: Search, found: Sequence[Importance]) -> list[Figure]:
    from fmnist_lab.studies import parallel, search_charts

    metrics = " and ".join(spoken(metric) for metric in search.objectives)
    first = named(search.objective)
    figures = []
    if len(search.objectives) > 1 and search.front:
        chart = search_charts.front(search)
        figures.append(Figure("pareto.png", f"Pareto front of {metrics}", chart))
    figures += [
        Figure("history.png", f"Trials by {metrics}", search_charts.history(search)),
        Figure(
            "parallel_coordinates.png",
            f"Hyperparameters and {metrics}, in parallel coordinates",
            parallel.parallel(search),
        ),
    ]
    shares = [each for each in found if each.shares]
    if shares:
        chart = search_charts.importance(shares)
        figures.append(Figure("importance.png", "Importance of hyperparameters", chart))
    figures.append(
        Figure("by_parameter.png", f"{first} by hyperparameter", search_charts.slices(search))
    )
    if search.values.shape[1] > 1:
        chart = search_charts.curves(search)
        figures.append(Figure("trials_against_epochs.png", f"{first} against epoch", chart))
    if tested := search.tested:
        chart = search_charts.finals(search, tested)
        figures.append(Figure("finals.png", "The winner, retrained", chart))
    return figures


def _tables(search: Search) -> list[Table]:
    is_single = len(search.objectives) == 1
    most = BEST_SHOWN if is_single else max(BEST_SHOWN, len(search.front))
    rows = ranked(search)[: most if is_single else len(search.front) or most]
    tables = [trials_table(search, rows, "Best trials" if is_single else "Pareto front")]
    if search.is_pruned:
        tables.append(rungs_table(search))
    if len(search.finals):
        tables.append(finals_table(search))
    if failed := failures_table(search):
        tables.append(failed)
    return tables


def _data(search: Search, found: Sequence[Importance]) -> dict[str, str]:
    """Return the texts of the files for programs, by name."""
    texts = {"trials.csv": csv(search.trials)}
    if search.best is not None:
        texts = {"best.yaml": _yaml(search, search.best), **texts}
    if len(search.objectives) > 1:
        rows = [search.row(trial) for trial in search.front]
        texts["pareto.csv"] = csv(pd.DataFrame(rows, columns=list(search.trials)))
    if search.is_pruned:
        texts["rungs.csv"] = csv(pd.DataFrame(search.rungs))
    shares = [
        {"metric": each.metric, "parameter": key, "share": share}
        | {"epochs": each.epochs, "trials": each.trials}
        for each in found
        for key, share in each.shares.items()
    ]
    if shares:
        texts["importance.csv"] = csv(pd.DataFrame(shares))
    if len(search.finals):
        metrics = sorted(name for name in search.finals if "/" in name)
        columns = [
            name
            for name in ("name", "status", "seed", *metrics, "failure", "run_id")
            if name in search.finals
        ]
        texts["finals.csv"] = csv(search.finals[columns])
    return texts


def _yaml(search: Search, trial: int) -> str:
    """Return the winner as YAML: its values, what the search and the finals say, the command."""
    import yaml

    row, tested = search.row(trial), search.tested
    values = {each.key: row[each.key] for each in search.parameters}
    told: dict[str, Any] = {
        "trial": trial,
        "values": {
            key: list(value) if isinstance(value, tuple) else value for key, value in values.items()
        },
        "search": {metric: float(row[metric]) for metric in search.objectives},
    }
    if tested:
        ends = {"low": tested.low, "high": tested.high} if tested.count > 1 else {}
        told["finals"] = {"accuracy/test": {"mean": tested.mean, **ends, "runs": tested.count}}
    if winner := _winner(search):
        told["command"] = winner
    text: str = yaml.safe_dump(told, sort_keys=False, width=1000, allow_unicode=True)
    return text


def _markdown(
    title: str,
    commands: Mapping[str, str],
    sentences: Sequence[str],
    tables: Sequence[Table],
    figures: Sequence[Figure],
    data: Sequence[str],
) -> str:
    blocks = [f"# {title}"]
    for words, command in commands.items():
        blocks += filter(None, [words, f"```\n{command}\n```"])
    files = ", ".join(f"[{name}]({name})" for name in data)
    blocks += [*sentences, *map(section, tables)]
    blocks.append(
        f"In full precision: {files}. An interactive version: [report.html](report.html)."
    )
    blocks += [f"![{figure.caption}]({figure.file})" for figure in figures]
    return "\n\n".join(blocks) + "\n"
