"""What a store knows: models to reload, runs as a table, links into MLflow's UI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_lab.errors import UserError
from fmnist_lab.tracking.store import DEFAULT_EXPERIMENT, Store, client_of, use

if TYPE_CHECKING:
    import keras
    import pandas as pd


def load_model(uri: str, store: Store) -> tuple[keras.Model, tuple[str, ...] | None]:
    """Reload a logged Keras model in Keras' safe mode, which runs no code from the file.

    Args:
        uri: runs:/RUN_ID/model, models:/NAME/VERSION or a folder.
        store: The store that the first two refer to.

    Returns:
        The model, and the names of its classes if they were logged with it.

    Raises:
        UserError: There is no such model, or it is no Keras model.
    """
    import mlflow.keras
    from mlflow.exceptions import MlflowException

    use(store)
    try:
        # Asking a database that does not exist would create it.
        if store.database and not store.database.exists() and not Path(uri).exists():
            raise FileNotFoundError(f"there is no store {store.database}")
        model = mlflow.keras.load_model(uri)
        # `get_model_info` would ask the store, which a folder may have been copied from.
        metadata = mlflow.models.Model.load(uri).metadata or {}
    except (MlflowException, ImportError, OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"model_uri: received '{uri}', which cannot be loaded as a Keras model: {reason}; "
            "expected runs:/RUN_ID/model, models:/NAME/VERSION or a folder that MLflow wrote"
        ) from None
    names = metadata.get("class_names")
    return model, tuple(names) if names else None


def origin(uri: str) -> dict[str, str]:
    """Return a tag that names the run a model came from, where its URI tells."""
    parts = uri.removeprefix("runs:/").split("/")
    return {"evaluated_run": parts[0]} if uri.startswith("runs:/") else {}


def members_of(sweep: str) -> str:
    """Return MLflow's filter for the runs that a sweep's parent run, by its id, is answered by.

    Each bears a tag of the sweep's own with its job number, because a run that an earlier sweep
    has made may answer a later one, too, and MLflow knows only one parent.
    """
    return f"tags.`{member_tag(sweep)}` != ''"


def member_tag(sweep: str) -> str:
    """Return the tag that holds a run's job number in a sweep."""
    return f"sweep.{sweep}"


def links(store: Store, experiment: str, run_id: str | None = None) -> dict[str, str]:
    """Return links into MLflow's UI, without the server's address: a title and a path.

    A fresh browser shows an experiment in a view for language models, with nothing of ours in
    it, so every link names the view.

    Raises:
        UserError: There is no such run or experiment.
    """
    from mlflow.exceptions import MlflowException

    client, experiment_id = _look_into(store, experiment)
    view = "?workflowType=machine_learning"
    if not run_id:
        return {"all runs": f"/#/experiments/{experiment_id}/runs{view}"}
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise UserError(f"run '{run_id}' is not in {store.uri}: {error.message}") from None
    page = f"/#/experiments/{run.info.experiment_id}/runs"
    return {f"run {run.info.run_name}": f"{page}/{run_id}{view}", "all runs": f"{page}{view}"}


def find(
    store: Store, experiment: str = DEFAULT_EXPERIMENT, where: str = "", *, curve: str = ""
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return runs as a table, the newest first.

    Args:
        store: Where to look.
        experiment: The experiment they are in.
        where: MLflow's filter, for example "params.model = 'mlp'".
        curve: A metric to return for every epoch as well.

    Returns:
        A row a run: `run_id`, `name`, `status`, `started` (UTC), `failure` and `job` where there
        are any, then params and last metrics under their own names; and a row an epoch: `run_id`,
        `epoch`, `metric`, `value`.

    Raises:
        UserError: The store or the experiment is not there, or MLflow refuses the filter.
    """
    import pandas as pd
    from mlflow.exceptions import MlflowException

    client, experiment_id = _look_into(store, experiment)
    rows, points, token = [], [], None
    try:
        while token != "":
            page = client.search_runs([experiment_id], where, max_results=1000, page_token=token)
            for run in page:
                tags = run.data.tags
                rows.append(
                    {
                        "run_id": run.info.run_id,
                        "name": run.info.run_name,
                        "status": run.info.status,
                        "started": pd.Timestamp(run.info.start_time, unit="ms", tz="UTC"),
                        **{tag: tags[tag] for tag in ("job", "failure") if tag in tags},
                        **run.data.params,
                        **run.data.metrics,
                    }
                )
                if curve in run.data.metrics:
                    points += [
                        (run.info.run_id, point.step, curve, point.value)
                        for point in client.get_metric_history(run.info.run_id, curve)
                    ]
            token = page.token or ""
    except MlflowException as error:
        raise UserError(
            f"--filter: received '{where}', which MLflow refuses: {error.message}"
        ) from None
    return pd.DataFrame(rows), pd.DataFrame(points, columns=["run_id", "epoch", "metric", "value"])


def _look_into(store: Store, experiment: str) -> tuple[Any, str]:
    """Return a client of a store and an experiment's id, if there are any runs to look at."""
    if store.database is not None and not store.database.exists():
        raise UserError(
            f"no runs: {store.database} does not exist; make a run with python -m fmnist_lab.run, "
            "go to the folder you made one in, or name a store with --store"
        )
    client = client_of(store)
    known = client.get_experiment_by_name(experiment)
    if known is None:
        raise UserError(
            f"experiment '{experiment}' is not in {store.uri}; name one with --experiment"
        )
    return client, known.experiment_id


def newest_run(store: Store) -> str | None:
    """Return the id of the newest finished training run, in any experiment, or None."""
    if store.database is not None and not store.database.exists():
        return None
    client = client_of(store)
    runs = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()],
        "attributes.status = 'FINISHED' and tags.job = 'train'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return runs[0].info.run_id if runs else None
