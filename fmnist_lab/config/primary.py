"""The primary config: our own `config.yaml`, or a file of the user's such as a run's own config."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from fmnist_lab.config import files
from fmnist_lab.errors import UserError

OURS = "config"
GIVEN = "fmnist_lab_given"  # under this name Hydra finds the values of a user's file


def choose(args: argparse.Namespace, kept: dict[str, Any] | None = None) -> tuple[str, str]:
    """Return the folder and the name of the primary config that Hydra's flags ask for.

    A user's file without a defaults list holds values, as the config.yaml of a run does. It takes
    the place of ours, whatever its name; Hydra by itself would take ours if the names are the same.

    Args:
        args: Hydra's flags, and the overrides.
        kept: The values of the config that the flags name, if it is a run's in the store.

    Raises:
        UserError: There is no such file, or it cannot be read, or ours would hide it.
    """
    path, folder = args.config_path, str(files.conf_dir())
    if kept is not None:
        _keep(kept, args.overrides)
        return folder, GIVEN
    name = str(args.config_name or OURS).removesuffix(".yaml")
    if path is not None and path.startswith("pkg://"):
        return path, name
    for flag, place in (("--config-path", path), ("--config-dir", args.config_dir)):
        if place is not None and not Path(place).is_dir():
            raise UserError(f"{flag}: received {place}, expected a folder that exists")
    file = _find(args, name)
    if file is None:
        _check_ours(path, name)
        return folder, name
    values = _read(file)
    if "defaults" not in values:
        _keep(values, args.overrides)
        return folder, GIVEN
    if path is not None:
        return str(Path(path).absolute()), name
    if args.config_dir is None or (files.conf_dir() / file.name).is_file():
        raise UserError(
            f"{file}: received a config with a defaults list, which Hydra looks for by its "
            "name, after our own; give it a name that is not in conf, and write "
            f"--config-dir {shlex.quote(str(file.parent))} --config-name NAME"
        )
    return folder, name


def _check_ours(path: str | None, name: str) -> None:
    """Refuse to look for a config that neither the user nor we have."""
    if path is not None:
        raise UserError(
            f"--config-path: received {path}, expected a folder with {name}.yaml; to add a folder "
            f"to our own configs, write --config-dir {shlex.quote(str(path))}"
        )
    if name == OURS:
        return
    group, _, option = name.rpartition("/")
    if ".." not in group and option in files.options(group):
        raise UserError(
            f"--config-name: received {name}, expected a whole config; write {group}={option}"
        )
    raise UserError(
        f"--config-name: received {name}, expected a YAML file: its path, or its name in the "
        "folder that --config-dir says"
    )


def forget() -> None:
    """Forget the user's file: the command line has been carried out."""
    ConfigStore.instance().repo.pop(f"{GIVEN}.yaml", None)


def defaults() -> list[dict[str, Any]]:
    """Return the defaults list of the primary config: each group with its option, or None."""
    given = ConfigStore.instance().repo.get(f"{GIVEN}.yaml")
    whole = given.node if given else files.values(OURS)
    return [entry for entry in whole["defaults"] if entry != "_self_"]


def _find(args: argparse.Namespace, name: str) -> Path | None:
    """Return the user's own file that the flags ask for, if there is one."""
    places = [args.config_path, args.config_dir, "." if args.config_name else None]
    files = [Path(place, f"{name}.yaml") for place in places if place is not None]
    return next((file for file in files if file.is_file()), None)


def _read(file: Path) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except Exception as error:
        # The parser of YAML raises exceptions of many types.
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: received no keys, expected a config in YAML")
    return {str(key): value for key, value in values.items()}


def _keep(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Keep a file's values where Hydra finds them, on top of the options that they belong to."""
    ours = dict(files.values(OURS))
    chosen = {key for key, value in map(_parts, overrides) if not value.startswith("{")}
    entries = []
    for entry in ours.pop("defaults"):
        group = next(iter(entry)) if isinstance(entry, dict) else ""
        given = values.get(group)
        if isinstance(given, dict):
            entry = {group: _option(group, given, entry[group])}
        elif group in values:
            entry = {group: values.pop(group)}
        entries.append(entry)
        # An option of the command line takes the place of the file's values.
        if group in chosen:
            values.pop(group, None)
    node = OmegaConf.merge({"defaults": entries}, ours, values)
    ConfigStore.instance().store(GIVEN, node)


def _parts(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def _option(group: str, given: dict[str, Any], usual: str | None) -> str | None:
    """Return the option of a group that given values belong to, or None if they stand alone."""
    fitting = {}
    for option in files.options(group):
        known = files.values(f"{group}/{option}")
        if set(known) <= set(given) and known.get("_target_") == given.get("_target_"):
            fitting[option] = len(known)
    if fitting:
        return max(fitting, key=lambda option: fitting[option])
    return None if "_target_" in given else usual
