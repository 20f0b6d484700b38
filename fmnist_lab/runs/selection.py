"""Which runs a command line speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fmnist_lab import tracking
from fmnist_lab.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

Experiment = Annotated[str, Parameter(show_default=True)]
TRAINING = "tags.job = 'train'"


@dataclass(frozen=True)
class Selection:
    """Runs that were asked for.

    Attributes:
        runs: As `tracking.find` returns them, at least one; with `job_number` if they are those of
            a single sweep.
        named: The sweeps and runs that were named, if any.
    """

    runs: pd.DataFrame
    named: list[tracking.Found]


def select(
    store: tracking.Store, words: Sequence[str], experiment: str, where: str = ""
) -> Selection:
    """Return the runs that answer the named sweeps, the named runs, or all runs that trained.

    Args:
        store: Where to look.
        words: Sweeps and runs as `tracking.look_up` understands them; none: the experiment's runs
            that trained.
        experiment: Where to look if nothing is named.
        where: MLflow's filter, which all of them have to fit as well.

    Raises:
        UserError: A word means no run, or no run fits.
    """
    import pandas as pd

    named = [tracking.look_up(store, word) for word in words]
    places = [
        (
            each.experiment,
            tracking.members_of(each.run_id)
            if each.job == "sweep"
            else f"attributes.run_id = '{each.run_id}'",
        )
        for each in named
    ]
    parts = []
    for place, which in places or [(experiment, TRAINING)]:
        runs, _ = tracking.find(store, place, " and ".join(filter(None, [where, which])))
        parts.append(runs)
    runs = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    if runs.empty:
        asked = f" of {', '.join(words)}" if words else f" in experiment '{experiment}'"
        raise UserError(
            f"no run{asked} in {store.uri} fits{f' the filter {where}' if where else ''}; "
            "python -m fmnist_lab.runs list shows all"
        )
    # Sweeps may share runs, as a later one takes over what an earlier one has finished.
    runs = runs.drop_duplicates("run_id", ignore_index=True)
    if len(named) == 1 and named[0].job == "sweep":
        numbers = [int(sweeps[named[0].run_id]) for sweeps in runs["sweeps"]]
        runs = runs.assign(job_number=numbers)
    return Selection(runs, named)
