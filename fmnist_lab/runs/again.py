"""`again`: a run made again with some values changed."""

from __future__ import annotations

from fmnist_lab import tracking
from fmnist_lab.errors import UserError, reported
from fmnist_lab.run import main


def again(run: str, /, *overrides: str, store: str | None = None) -> None:
    """Train an earlier run's config with some values changed, as a new run beside it.

    All other values are those that the earlier run had, whatever the defaults are now. It is short
    for python -m fmnist_lab.run --config-name runs:/RUN key=value, which takes -m for a sweep.

    Args:
        run: The earlier run: its id, the beginning of its id, its name, or models:/NAME@ALIAS.
        overrides: What is to be changed, such as optimizer.learning_rate=0.01 or model=cnn.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
    """
    with reported():
        if not overrides:
            raise UserError(
                "received nothing to change, expected key=value; to train the very same config, "
                f"use python -m fmnist_lab.runs reproduce {run}"
            )
        place = tracking.Store.locate(store, for_writing=False)
        old = tracking.run_named(place, run)
    given = [f"tracking.uri={place.uri}"] if store else []
    main("--config-name", f"runs:/{old.run_id}", *overrides, *given)
