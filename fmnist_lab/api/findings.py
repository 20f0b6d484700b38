"""What was found of runs: as text, as HTML in a notebook, and as tables."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_lab import tracking

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from fmnist_lab.studies.comparison import Verdict
    from fmnist_lab.studies.differences import Side

WIDTH = 110  # Of a text, in characters.


class Told:
    """Something that the command line would print; a notebook shows the same lines.

    Args:
        show: Prints it.
    """

    def __init__(self, show: Callable[[Console], object]) -> None:
        self._show = show

    @cached_property
    def text(self) -> str:
        """The lines that the command line prints."""
        from rich.console import Console

        out = io.StringIO()
        # A kernel's FORCE_COLOR would put the codes of colours into the text.
        plain: Any = {"force_jupyter": False, "force_terminal": False, "color_system": None}
        self._show(Console(file=out, width=WIDTH, highlight=False, **plain))
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        # Long sentences fold in a narrow notebook.
        return f'<pre style="white-space:pre-wrap">{html.escape(self.text)}</pre>'


class Comparison(Told):
    """The answer of `Runs.compare`.

    Attributes:
        sentences: The answer in plain words, then what it is worth.
        differences: What the sides differ in, as (kind, name, A, B).

    Args:
        sides: A and B.
        verdict: What was found.
    """

    def __init__(self, sides: Sequence[Side], verdict: Verdict) -> None:
        from fmnist_lab.runs import compare

        super().__init__(lambda console: compare.show(console, sides, verdict))
        self.sentences = list(verdict.sentences)
        self.differences = [tuple(each) for each in verdict.differences]
        self._matches = verdict.matches

    def frame(self) -> pd.DataFrame:
        """Return the results: one row per setting that both sides have, and metric.

        Returns:
            The setting, `metric`, `runs_a` and `runs_b`, the means `a` and `b`, and of their
            `difference` the ends `low` and `high` of the 95 % interval and the `p_value`, nan where
            nothing can be tested.
        """
        import pandas as pd

        rows: list[Mapping[str, Any]] = []
        for match in self._matches:
            for result in match.results:
                found = result.found
                tested = [getattr(found, name, None) for name in ("low", "high", "p_value")]
                counts = dict(zip(("runs_a", "runs_b"), match.runs, strict=True))
                means = {"a": result.a.mean, "b": result.b.mean}
                means["difference"] = result.a.mean - result.b.mean
                ends = dict(zip(("low", "high", "p_value"), tested, strict=True))
                rows.append({**match.setting, "metric": result.metric, **counts, **means, **ends})
        return pd.DataFrame(rows)


class Report(Told):
    """The answer of `Runs.report`.

    Attributes:
        files: The files that were written, if any.

    Args:
        show: Prints it.
        files: As above.
    """

    def __init__(self, show: Callable[[Console], object], files: Sequence[Path] = ()) -> None:
        super().__init__(show)
        self.files = list(files)


def report(
    store: tracking.Store,
    runs: pd.DataFrame,
    named: Sequence[tracking.RunRef],
    folder: Path | None,
    *,
    title: str,
    axes: Sequence[str] | None,
) -> Report:
    """Sum runs up, and write that if there is a folder for it; see `Runs.report`.

    Args:
        store: Where they are.
        runs: A table of them, as `tracking.find` returns it.
        named: The sweeps that they are of.
        folder: Where to; None: nowhere.
        title: The report's title.
        axes: The two parameters of the heat maps; None: those with the most values.
    """
    from fmnist_lab.runs import report as door

    found = door.sum_up(store, runs, named, axes)
    command = door.commands(store, named) or "fmnist_lab.runs(…).report(…)"
    files = () if folder is None else found.write(folder, title, command)
    return Report(lambda console: console.print(*found.told, sep="\n"), files)
