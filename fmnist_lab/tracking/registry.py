"""Registered models: the versions that runs have made of a model, and the aliases of these.

MLflow's registry has no transactions. Where the store is on this machine, a lock takes the place of
one; a server is asked again after an alias was set.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from filelock import FileLock, Timeout

from fmnist_lab.errors import UserError
from fmnist_lab.system import durable
from fmnist_lab.texts import line
from fmnist_lab.tracking.client import client_of
from fmnist_lab.tracking.failures import asks
from fmnist_lab.tracking.files import models_of
from fmnist_lab.tracking.store import Store

PATIENCE_SECONDS = 120  # The wait for another promotion, which takes seconds.
VERSIONS_TAG = "mlflow.modelVersions"  # Of a logged model, in JSON.
MOST_DESCRIBED = 5000  # Characters of a description, the width of MLflow's column.


@dataclass(frozen=True)
class RegisteredModel:
    """A version of a registered model.

    Attributes:
        name: The model's name.
        version: The version's number, as MLflow writes it.
        run_id: The run that has made it; "" if that is not known.
    """

    name: str
    version: str
    run_id: str

    @property
    def uri(self) -> str:
        """Its place, as `load_model` takes it."""
        return f"models:/{self.name}/{self.version}"


@asks
def registered(
    store: Store, name: str, *, alias: str | None = None, version: str | None = None
) -> RegisteredModel | None:
    """Return a version of a registered model; None if there is none.

    Args:
        store: The store.
        name: The model's name.
        alias: The alias that points at the version.
        version: The version's number, if there is no alias.
    """
    from mlflow.exceptions import MlflowException

    client = client_of(store)
    try:
        if alias is not None:
            found = client.get_model_version_by_alias(name, alias)
        else:
            found = client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
    return _version(found)


@asks
def aliases(store: Store) -> dict[str, list[str]]:
    """Return the aliases of registered models, as NAME@ALIAS, by the runs that made the models."""
    client = client_of(store)
    found: dict[str, list[str]] = {}
    for model in client.search_registered_models():
        for alias, version in model.aliases.items():
            run_id = client.get_model_version(model.name, str(version)).run_id
            found.setdefault(run_id or "", []).append(f"{line(model.name)}@{line(alias)}")
    return found


@contextmanager
def promoting(store: Store) -> Iterator[None]:
    """Let one promotion at a time go on, where the store is on this machine.

    Raises:
        UserError: Another one does not come to its end.
    """
    if store.artifacts is None:
        yield
        return
    lock = store.artifacts / ".promote.lock"
    try:
        with FileLock(lock, timeout=PATIENCE_SECONDS):
            yield
    except Timeout:
        raise UserError(
            f"another promotion has held {lock} for {PATIENCE_SECONDS} seconds; end that program, "
            "and repeat the command"
        ) from None


@asks
def register(store: Store, run_id: str, name: str) -> RegisteredModel:
    """Register the model of a run, unless it is registered under this name already.

    Args:
        store: The store.
        run_id: A finished run.
        name: The registered model's name; it is made if it is not there.

    Raises:
        UserError: MLflow does not take the name.
    """
    from mlflow.exceptions import MlflowException

    client = client_of(store)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code == "INVALID_PARAMETER_VALUE":
            raise UserError(
                f"--name: received '{line(name)}', which MLflow refuses: {error.message}"
            ) from None
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    run = client.get_run(run_id)
    model = next(each for each in models_of(client, run) if each.status == "READY")
    for known in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
        if known.source == model.artifact_location:
            return _version(known)
    # A models:/ID source would be looked up in the store that MLflow's functions use by then.
    made = client.create_model_version(
        name, model.artifact_location, run_id, model_id=model.model_id
    )
    # A server does so itself; MLflow's interface shows the versions of a model by this tag.
    versions = json.loads(model.tags.get(VERSIONS_TAG) or "[]")
    if (version := {"name": name, "version": str(made.version)}) not in versions:
        client.set_logged_model_tags(
            model.model_id, {VERSIONS_TAG: json.dumps([*versions, version])}
        )
    return _version(made)


@asks
def describe(store: Store, model: RegisteredModel, card: str, file: str) -> None:
    """Keep a model's card with the run that has made it, and as the version's description.

    Args:
        store: The store.
        model: The version.
        card: Its model card, in Markdown.
        file: The name of the card's file among the run's.
    """
    client = client_of(store)
    client.log_text(model.run_id, card, file)
    if folder := durable.local_path(client.get_run(model.run_id).info.artifact_uri):
        durable.sync_file(folder / file)
        durable.sync_folder(folder)
    client.update_model_version(model.name, model.version, _short(card, file))


@asks
def set_alias(store: Store, model: RegisteredModel, alias: str, card: str) -> None:
    """Point an alias at a version, whose card becomes the description of the registered model.

    Args:
        store: The store.
        model: The version.
        alias: The alias; MLflow takes letters, digits, dashes and underscores.
        card: Its model card, in Markdown.
    """
    client = client_of(store)
    client.set_registered_model_alias(model.name, alias, model.version)
    client.update_registered_model(model.name, _short(card, "the version's description"))


def _short(card: str, file: str) -> str:
    """Return as much of a card as MLflow's column has room for, in whole lines."""
    if len(card) <= MOST_DESCRIBED:
        return card
    rest = f"\n\n(The rest is in {file}.)"
    return card[: MOST_DESCRIBED - len(rest)].rpartition("\n")[0] + rest


def _version(found: Any) -> RegisteredModel:
    return RegisteredModel(found.name, str(found.version), found.run_id or "")
