"""The YAML files of `conf/`: where they are, and which groups, options and keys they have."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from fmnist_lab.errors import UserError


def conf_dir() -> Path:
    """Folder of the Hydra configs: inside the package in a wheel, beside it in a checkout.

    Returns:
        An absolute path, because Hydra resolves a relative one differently under `python -m`,
        from a console script and in a worker process.

    Raises:
        UserError: Neither folder exists, so the installation is damaged.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise UserError(
        f"the configs are missing: expected {package / 'conf'} or {package.parent / 'conf'}; "
        "reinstall fmnist_lab"
    )


def options(group: str) -> list[str]:
    """Return the options of a config group: the names of its YAML files, sorted."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def values(name: str) -> Mapping[str, Any]:
    """Return the values of a YAML file, such as "model/mlp", as they are written there."""
    return _read(conf_dir() / f"{name}.yaml")


@functools.cache
def _read(file: Path) -> Mapping[str, Any]:
    from omegaconf import OmegaConf

    return cast("Mapping[str, Any]", OmegaConf.to_container(OmegaConf.load(file)))


def groups() -> dict[str, str]:
    """Return the groups that every run has, each with its default option."""
    entries = (entry for entry in values("config")["defaults"] if isinstance(entry, dict))
    return {
        group: option
        for entry in entries
        for group, option in entry.items()
        if option is not None and "/" not in group
    }


def top_keys() -> list[str]:
    """Return the keys at the top of a run's config: the groups, then what is in none of them."""
    return [*groups(), *(key for key in values("config") if key not in ("defaults", "hydra"))]


def whole_keys() -> dict[str, Any]:
    """Return every key that the YAML files have for a run, each with one of its values."""
    found: dict[str, Any] = {}
    for group in groups():
        found |= _keys_of(group)
    return found | {key: values("config")[key] for key in top_keys() if key not in groups()}


def example(key: str) -> Any:
    """Return the value that `whole_keys` has for a key, or None; read its group's files alone."""
    group, _, _ = key.partition(".")
    if group in groups():
        return _keys_of(group).get(key)
    return values("config")[key] if key in top_keys() else None


def _keys_of(group: str) -> dict[str, Any]:
    """Return the keys of a group's options, each with one of its values."""
    found: dict[str, Any] = {}
    for option in options(group) if group != "callbacks" else ():
        given = values(f"{group}/{option}")
        found |= {f"{group}.{key}": given[key] for key in given if key != "defaults"}
    return found
