"""Configs, composed in this process."""

import shlex
from functools import cache
from typing import Any

import hydra
import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

from fmnist_lab import config


@cache
def hydras(*words: str) -> dict[str, Any]:
    return OmegaConf.to_container(hydra.compose("config", list(words)), resolve=True)


def composed(words: str) -> config.Config:
    """What Hydra makes of overrides, for most of which it would take a quarter of a second."""
    chosen = [word for word in shlex.split(words) if word.startswith(("experiment=", "debug="))]
    values = OmegaConf.create(hydras(*chosen))
    for word in shlex.split(words):
        key, _, value = word.lstrip("+").partition("=")
        if word in chosen:
            continue
        file = config.conf_dir() / key / f"{value}.yaml"
        if "." not in key and file.exists():
            values[key] = OmegaConf.load(file)
        else:
            OmegaConf.update(
                values, key, yaml.load(value, Loader=get_yaml_loader()), force_add=True
            )
    return config.validate(OmegaConf.to_container(values))
