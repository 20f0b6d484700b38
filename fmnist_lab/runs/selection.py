"""The runs that a command line asks for."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fmnist_lab import tracking
from fmnist_lab.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

Since = Annotated[str, Parameter(name="--since")]
TRAINING = "tags.job = 'train'"
SECONDS = {"m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}


@dataclass(frozen=True)
class Selection:
    """The runs that a command line asks for.

    Attributes:
        runs: At least one run, as `tracking.find` returns them; with `job_number` if they are the
            runs of a single sweep.
        named: The sweeps and runs that were named, if any.
    """

    runs: pd.DataFrame
    named: list[tracking.RunRef]


def begun_since(since: str) -> str:
    """Return MLflow's filter for runs begun since some time ago, or since a date; "" for "".

    Args:
        since: An age such as 7d, 12h, 90m or 2w, or a date, with a time of day or without:
            2026-11-28, "2026-11-28 14:30". The time zone is this machine's if there is none.

    Raises:
        UserError: The text is neither.
    """
    if not since:
        return ""
    if ago := re.fullmatch(r"(\d{1,6})\s*([mhdw])", since.strip()):
        moment = time.time() - int(ago[1]) * SECONDS[ago[2]]
    else:
        try:
            moment = datetime.fromisoformat(since.strip()).timestamp()
        except (ValueError, OverflowError):
            raise UserError(
                f"--since: received '{since}', expected how long ago or a date, for example "
                "--since 7d, --since 12h or --since 2026-11-28"
            ) from None
    return f"attributes.start_time >= {max(round(1000 * moment), 0)}"


def both(*filters: str) -> str:
    """Return MLflow's filter for runs that fit all of some filters; any of them may be empty.

    >>> both("", "tags.job = 'train'")
    "tags.job = 'train'"
    """
    return " and ".join(filter(None, filters))


def select(
    store: tracking.Store, words: Sequence[str], experiment: str | None, where: str = ""
) -> Selection:
    """Return the runs that answer the named sweeps, the named runs, or all runs that trained.

    Args:
        store: Where to look.
        words: Sweeps and runs as `tracking.run_named` understands them; none: the experiment's runs
            that trained.
        experiment: Where to look if nothing is named; None: see `tracking.experiment_name`.
        where: MLflow's filter, which all of them have to fit as well.

    Raises:
        UserError: A word means no run, or no run fits.
    """
    import pandas as pd

    experiment = tracking.experiment_name(store, experiment)
    named = [tracking.run_named(store, word) for word in words]
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
        runs, _ = tracking.find(store, place, both(where, which))
        parts.append(runs)
    runs = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    if runs.empty:
        asked = f" of {', '.join(words)}" if words else f" in experiment '{experiment}'"
        raise UserError(
            f"no run{asked} in {store.uri} fits{f' the filter {where}' if where else ''}; "
            f"{store.command('runs', 'list')} shows all"
        )
    # Sweeps may share runs, as a later one takes over what an earlier one has finished.
    runs = runs.drop_duplicates("run_id", ignore_index=True)
    if len(named) == 1 and named[0].job == "sweep":
        runs = tracking.numbered(runs, named[0].run_id)
    return Selection(runs, named)
