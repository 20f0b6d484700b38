"""`variance`: where the variance between the runs of one setting comes from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from fmnist_lab import tracking
from fmnist_lab.errors import reported
from fmnist_lab.runs.sides import parted, plain, predictions_of, show_sides, side_of
from fmnist_lab.system.terminal import printout

if TYPE_CHECKING:
    from fmnist_lab.evaluation.variance import Component

EXPLAINED = (
    "Shares, with 95 % intervals, of the variance of one more run, with a new value of each source "
    "and as many new test images; in brackets the standard deviation that a source makes. a x b is "
    "what a does differently for each b. Random-effects analysis of variance."
)


def variance(
    *runs: str,
    by: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ("seed",),
    output: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    store: str | None = None,
    experiment: str | None = None,
) -> None:
    """Say which share of the variance between runs of one setting comes from which source.

    The sources are the parameters behind --by, such as the seed, and the test images.

    Args:
        runs: Sweeps, runs, and key=value that narrow them.
        by: The parameters that differ between the runs, with a run for each combination of their
            values; left out, the seed.
        output: Folder for variance.csv and variance.png.
        as_json: Print JSON.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        experiment: The experiment to look into if no run is named; left out, MLflow's
            $MLFLOW_EXPERIMENT_NAME or $MLFLOW_EXPERIMENT_ID, or fmnist_lab.
    """
    with reported():
        place = tracking.Store.locate(store, for_writing=False)

        from fmnist_lab.studies import decomposition

        side = side_of(place, parted(runs), experiment)
        found = decomposition.decompose(side.study, by, predictions_of(place))
        files = decomposition.write(found, output, len(side.ids)) if output else []
        if as_json:
            print(json.dumps({"runs": side.ids, "components": plain(found)}, indent=2))
            return
        console = printout()
        show_sides(console, [side], ["of"])
        console.print()
        console.print(_table(found))
        console.print()
        console.print(Text(EXPLAINED))
        if files:
            console.print(f"written to {output}: {', '.join(file.name for file in files)}")


def _table(found: dict[str, list[Component]]) -> Table:
    from fmnist_lab.studies import frames

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("source")
    for metric in found:
        table.add_column(Text(frames.METRICS[metric].lower()), justify="right", no_wrap=True)
    for sources in zip(*found.values(), strict=True):
        cells = [
            f"{100 * each.share:.0f} % [{100 * each.share_low:.0f}, {100 * each.share_high:.0f}] "
            f"({math.sqrt(each.variance):.4f})"
            for each in sources
        ]
        table.add_row(*map(Text, [" x ".join(sources[0].factors), *cells]))
    totals = [
        f"({math.sqrt(sum(each.variance for each in each_of)):.4f})" for each_of in found.values()
    ]
    table.add_row(*map(Text, ["all", *totals]))
    return table
