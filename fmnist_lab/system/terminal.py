"""The console that the programs print on."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape

from fmnist_lab.system import process


def printout(piped: int = 140) -> Console:
    """Return a console on standard output: as wide as the terminal, or as $COLUMNS says.

    In a notebook, too, it writes to standard output. There, rich would otherwise turn each line
    into a display of its own, and a job's lines would not reach the log of a sweep's job. A kernel
    asks for colours by FORCE_COLOR, which rich takes for a terminal: its bars, which go back to an
    earlier line, would pile up below the cell.

    Args:
        piped: The width in characters where there is neither a terminal nor $COLUMNS.
    """
    out = sys.stdout
    is_terminal = out is not None and out.isatty()
    known = is_terminal or "COLUMNS" in os.environ
    return Console(
        file=out,
        width=None if known else piped,
        highlight=False,
        force_jupyter=False,
        force_terminal=False if process.in_ipython() and not is_terminal else None,
    )


def aligned(console: Console, rows: Mapping[str, str]) -> None:
    """Print values under each other, each after its name.

    Args:
        console: Where to print.
        rows: The values by name, at least one.
    """
    width = max(map(len, rows))
    for name, value in rows.items():
        console.print(f"[dim]{name:<{width}}[/dim]  {escape(value)}", soft_wrap=True)
