"""The config that a run has kept in the store, which anyone may have written.

Nothing in it is built, read or written but what is trusted or was allowed by the user.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from fmnist_lab import tracking
from fmnist_lab.config import files, listings
from fmnist_lab.config.functions import is_built_in
from fmnist_lab.config.schema import Config
from fmnist_lab.errors import UserError

URI = "runs:/"
# The files that say with which code and libraries a run was made.
CHANGES, PACKAGES = "code.diff", "packages.txt"
# The targets that a config from a store may name unasked. Anyone may have written the config, so
# none of these reads, writes or runs what its arguments say, although Keras has such callbacks.
TRUSTED = {
    "model": r"fmnist_lab\.models\.\w+",
    "optimizer": r"keras\.optimizers\.[A-Z]\w*",
    "schedule": r"fmnist_lab\.schedules\.\w+|keras\.optimizers\.schedules\.[A-Z]\w*",
    "callbacks": (
        r"keras\.callbacks\.(EarlyStopping|ReduceLROnPlateau|SwapEMAWeights|TerminateOnNaN)"
    ),
}


ALLOW = "add --allow {}"
SAVE = "save its config in a file and give that with --config-name FILE"


def look_up(uri: str, store: str | None) -> dict[str, Any]:
    """Return the values of a run's config, for a new run in the same experiment.

    Args:
        uri: runs:/RUN, with the run's id, the beginning of its id, or its name.
        store: MLflow's tracking URI; None: $MLFLOW_TRACKING_URI, or mlflow.db in this folder.

    Raises:
        UserError: There is no such run, its config cannot be read, or it names a target that is
            not trusted.
    """
    place = tracking.Store.locate(store, for_writing=False)
    old = tracking.look_up(place, uri.removeprefix(URI).strip("/"))
    values = read(place, old, mend=SAVE)
    # Hydra's own keys and a list of defaults would be taken over as well.
    if unknown := sorted(set(values) - set(Config.model_fields)):
        raise UserError(
            f"run {old.run_id}: its config.yaml does not fit this version of fmnist_lab: "
            f"{unknown[0]}: unknown key"
        )
    here = {**files.values("tracking/local"), "experiment": old.experiment}
    return values | {"tracking": here}


def read(
    store: tracking.Store,
    old: tracking.RunRef,
    allowed: Sequence[str] | None = (),
    mend: str = ALLOW,
) -> dict[str, Any]:
    """Return the values in a run's config.yaml, without what says where to read and write.

    Args:
        store: Where the run is.
        old: The run.
        allowed: Targets beyond `TRUSTED` that may be built; None: none will be, so that any may be
            named.
        mend: What a user can do about another target, with {} for its name.

    Raises:
        UserError: The run has not trained a model or keeps no config, or its config cannot be
            read or names a target that is not allowed.
    """
    tracking.check_trains(old)
    try:
        text = tracking.read_file(store, old.run_id, "config.yaml")
    except UserError:
        if "config.hash" in tracking.facts(store, old.run_id)["tags"]:
            raise
        raise UserError(
            f"received '{old.name}' ({old.run_id}), which keeps no config, as it is of lab.train, "
            "with a model and data of your own; expected a run of python -m fmnist_lab.run or "
            "lab.run"
        ) from None
    where = f"run {old.run_id}: its config.yaml"
    try:
        tracking.check_yaml(text)
        # Unresolved: an interpolation is text here, and asks nothing of this machine.
        values: Any = OmegaConf.to_container(OmegaConf.create(text.decode()), resolve=False)
    except Exception as error:
        # The parser of YAML may raise anything.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where} cannot be read: {reason}") from None
    if not isinstance(values, dict) or not isinstance(values.get("data"), dict):
        raise UserError(f"{where} is no config of fmnist_lab")
    for key, value in _texts(values):
        if "${" in value:
            # Hydra would fill it in: with a variable of this machine, or with what a call returns.
            raise UserError(
                f"{where} has {key}={value}, expected plain values, as a run keeps them"
            )
    if allowed is not None:
        check_targets(values, allowed, where, mend)
    for key in listings.KEYS:
        if isinstance(values["data"].get(key), str):
            raise UserError(f"{where} names a file as data.{key}, expected what was in it")
    # Nothing from a store decides where to write.
    values["data"]["cache_dir"] = None
    return values | {"resume": False, "pause_after": None, "name": None}


def check_targets(
    values: Mapping[str, Any], allowed: Sequence[str], where: str, mend: str = ALLOW
) -> None:
    """Refuse a config that would have anything built but what is trusted or allowed.

    Args:
        values: A config from a store.
        allowed: Targets beyond `TRUSTED` that may be built.
        where: The place of the config, for the message.
        mend: What a user can do about another target, with {} for its name.

    Raises:
        UserError: The config names another target.
    """
    for key, target in _targets(values):
        group = key.partition(".")[0]
        trusted = re.fullmatch(TRUSTED.get(group, ""), str(target))
        if target not in allowed and not trusted and not is_built_in(group, str(target)):
            raise UserError(
                f"{where} has {key}={target}, which could do anything on this machine; if you "
                f"know what it does, {mend.format(shlex.quote(str(target)))}"
            )


def _targets(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield each `_target_` of a config, at any depth, with its key."""
    for key, each in _leaves(value):
        if key.rpartition(".")[2] == "_target_":
            yield key, each


def _texts(value: Any) -> Iterator[tuple[str, str]]:
    """Yield each text of a config, at any depth, and each key that is one, with its key."""
    for key, each in _leaves(value):
        yield key, key
        if isinstance(each, str):
            yield key, each


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of a config, at any depth, with its key."""
    yield key, value
    listed = dict(enumerate(value)) if isinstance(value, list) else value
    for name, each in listed.items() if isinstance(listed, dict) else ():
        yield from _leaves(each, f"{key}.{name}" if key else str(name))
