"""The screen of a search: one line per trial and rung, and on a terminal the jobs that run."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.markup import escape

from fmnist_lab.sweep.screen import Column, SweepScreen, short_reason


class SearchScreen(SweepScreen):
    """A sweep's screen with the objective in place of figures of the test set."""

    noun, last_heading = "trial", "epochs"

    def __init__(self, trials: int, began: float, objective: str) -> None:
        """Take the terminal, or the file, that the search was started with.

        Args:
            trials: The number of trials; 0 if nobody knows it yet.
            began: When this command began, in seconds since 1970.
            objective: The metric that is searched by, or the first of several.
        """
        wide = max(len(objective) + 2, 12)
        super().__init__(trials, began, columns=(Column(objective, objective, wide, ".4f"),))
        # The name of a trial has all its values; on a wide terminal they stand above each other.
        self.name_width = max(self.name_width, min(44, self.console.width - wide - 40))

    def trial(
        self,
        number: int,
        name: str,
        figure: float,
        epochs: str,
        state: str,
        *,
        failure: str = "",
        is_best: bool = False,
    ) -> None:
        """Print a trial that has come to a rung, or has failed.

        Args:
            number: Its number.
            name: Its values in few characters.
            figure: The objective, or nan.
            epochs: How far it has come, such as "3/9".
            state: Its state from now on.
            failure: Why it has failed, or "".
            is_best: Whether it is the best so far of those that have been trained to the end.
        """
        self.pace.job_ended = True
        start = f"{number:>{2 * self.width + 1}}  {escape(f'{name:<{self.name_width}}')}"
        if failure:
            reason = escape(short_reason(failure))
            self.console.print(f"{start} [red]{state.upper()}[/red]  {reason}", soft_wrap=True)
            return
        (column,) = self.columns
        shown = "" if math.isnan(figure) else format(figure, column.spec)
        note = "  [bold]best[/bold]" if is_best else ""
        self.console.print(
            f"{start}{shown:>{column.width}}{epochs:>14}  {state}{note}", soft_wrap=True
        )

    def final(self, seed: int, metrics: Mapping[str, float], failure: str) -> None:
        """Print a training of the winner.

        Args:
            seed: Its seed.
            metrics: Its figures.
            failure: Why it has failed, or "".
        """
        said = f"test accuracy {metrics.get('accuracy/test', math.nan):.4f}"
        if failure:
            said = f"[red]FAILED[/red]  {escape(short_reason(failure))}"
        self.console.print(f"{'·':>{2 * self.width + 1}}  winner, seed {seed}: {said}")
