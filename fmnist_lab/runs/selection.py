"""Which runs a command line speaks of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fmnist_lab import tracking
from fmnist_lab.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def find(
    store: str | None, experiment: str, where: str, **options: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what `tracking.find` does, at least one run.

    Raises:
        UserError: No run fits.
    """
    place = tracking.Store.locate(store, for_writing=False)
    found = tracking.find(place, experiment, where, **options)
    if found[0].empty:
        raise UserError(
            f"no run in experiment '{experiment}' of {place.uri} fits"
            f"{f' the filter {where}' if where else ''}; python -m fmnist_lab.runs list shows all"
        )
    return found
