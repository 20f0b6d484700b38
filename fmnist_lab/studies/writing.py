"""Figures, tables and sentences in; the page, the Markdown and the files of a report out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

if TYPE_CHECKING:
    from fmnist_lab.studies.vega import Chart

FORMULA = ("=", "+", "-", "@")


class Figure(NamedTuple):
    """A chart under the name of its file, with its caption."""

    file: str
    caption: str
    chart: Chart


class Drawn(NamedTuple):
    """A figure as the page has it; `width` is the most that it is shown at, in pixels."""

    caption: str
    svg: str
    width: float


class Table(NamedTuple):
    """A table of texts.

    Attributes:
        title: Its heading.
        headings: One per column.
        rows: The cells.
        note: A sentence below it, or "".
        is_folded: Whether the page shows it only on demand.
        is_right: Whether Markdown aligns its cells to the right.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    is_folded: bool = False
    is_right: bool = False


def drawn(figures: Sequence[Figure]) -> list[Drawn]:
    """Draw figures for a page, which tells their parts apart by their places."""
    from fmnist_lab.studies import vega

    found = []
    for place, figure in enumerate(figures):
        svg = vega.svg(figure.chart, f"figure{place}")
        width = re.search(r'width="([\d.]+)"', svg)
        assert width is not None
        found.append(Drawn(figure.caption, svg, round(1.5 * float(width[1]))))
    return found


def keep(
    folder: Path,
    texts: Mapping[str, str],
    figures: Sequence[Figure],
    pictures: Sequence[Drawn],
) -> list[Path]:
    """Write texts, and figures as PNGs, into a folder, which is made if it is not there.

    Args:
        folder: Where to.
        texts: Texts by the names of their files.
        figures: The figures.
        pictures: What `drawn` returns of them; further ones are of the page alone.

    Returns:
        The files.
    """
    from fmnist_lab.studies import vega

    folder.mkdir(parents=True, exist_ok=True)
    for figure, picture in zip(figures, pictures, strict=False):
        (folder / figure.file).write_bytes(vega.png(picture.svg))
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return [folder / name for name in (*texts, *(figure.file for figure in figures))]


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table that any program reads alike.

    Tuples become lists, as a config has them. A program for spreadsheets takes a text that begins
    with one of `FORMULA` for a formula, which may start other programs; an apostrophe before it
    keeps it a text.
    """

    def cell(value: Any) -> Any:
        if isinstance(value, tuple):
            return str(list(value))
        return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value

    return frame.map(cell).rename(columns=cell)


def csv(frame: pd.DataFrame) -> str:
    """Return a table as CSV, see `plain`."""
    text: str = plain(frame).to_csv(index=False, lineterminator="\n")
    return text


def page(
    title: str,
    commands: Mapping[str, str],
    sentences: Sequence[str],
    figures: Sequence[Drawn],
    tables: Sequence[Table],
    others: Sequence[Drawn] = (),
) -> str:
    """Return an HTML page. It holds everything it needs, so it can be read without a network.

    Args:
        title: Its title.
        commands: Commands by the words above them.
        sentences: What was found.
        figures: The charts.
        tables: The tables below them.
        others: Charts that are shown on demand.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = files("fmnist_lab.studies").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        title=title,
        commands=commands,
        findings=sentences,
        figures=figures,
        others=others,
        tables=tables,
    )


def section(table: Table) -> str:
    """Return a table in Markdown, under its heading."""
    lines = [
        table.headings,
        ["--:" if table.is_right else "---"] * len(table.headings),
        *table.rows,
    ]
    pipes = "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )
    return "\n\n".join(filter(None, [f"## {table.title}", pipes, table.note]))
