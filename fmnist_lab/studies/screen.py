"""A study as a table that fits a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fmnist_lab.studies.findings import common_values, findings, settings_table
from fmnist_lab.studies.summary import Study, take_apart

LEAST_WORDS = 16  # Columns of a terminal that a list of differences needs.


def terminal_table(runs: pd.DataFrame, remarks: Sequence[str] = ()) -> RenderableType:
    """Return what a terminal shows of a study: a row a setting, findings, runs without result.

    Args:
        runs: As in `study`.
        remarks: More sentences than those that the table gives rise to.

    Returns:
        What rich can print.

    Raises:
        UserError: No run is finished.
    """
    study = take_apart(runs)
    lines = [text for sentence in (*findings(study), *remarks) for text in ("", Text(sentence))]
    if study.unused:
        lines += ["", *(Text("  ".join(run)) for run in study.unused)]
    return Group(_Fitted(study), *lines)


class _Fitted:
    """A study's table with as much in it as the terminal has columns for; no result is cut."""

    def __init__(self, study: Study) -> None:
        self.study = study

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        study, room = self.study, options.max_width
        # One below the other are a mean and its interval, and the words of a heading.
        ways = [(False, False, True), (False, True, True)]
        if study.parameters:
            ways += [(True, False, True), (True, True, True)]
        for folded, stacked, losses in [*ways, (bool(study.parameters), True, False)]:
            headings, rows, metrics = settings_table(study, folded=folded)
            kept = len(headings) - len(metrics)
            places = [
                place
                for place in range(len(headings))
                if losses or place < kept or not metrics[place - kept].startswith("loss/")
            ]
            cells = [[row[place] for place in places] for row in [headings, *rows]]
            if stacked:
                cells[0][folded:] = [each.replace(" ", "\n") for each in cells[0][folded:]]
                cells[1:] = [[cell.replace(" ± ", "\n± ") for cell in row] for row in cells[1:]]
            widths = [max(_width(cell) for cell in column) for column in zip(*cells, strict=True)]
            others = sum(widths[folded:]) + 2 * (len(widths) - 1)
            if others + (min(widths[0], LEAST_WORDS) if folded else 0) <= room:
                break
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for place, (heading, width) in enumerate(zip(cells[0], widths, strict=True)):
            told = folded and place == 0
            table.add_column(
                Text(heading),
                justify="left" if told else "right",
                width=max(min(width, room - others), 1) if told else width,
                no_wrap=not told,
                overflow="fold",
            )
        for row in cells[1:]:
            table.add_row(*map(Text, row))
        yield table
        if folded:
            yield Text(f"\n{common_values(study)}")
        if not losses:
            yield Text("\nThe losses need a wider terminal; --output writes them, too.")


def _width(cell: str) -> int:
    return max(map(cell_len, cell.split("\n")))
