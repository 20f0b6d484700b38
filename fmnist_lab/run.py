"""The door to runs: `python -m fmnist_lab.run`, where Hydra composes and a job is done.

It imports nothing heavy by itself, so that help, completion and a config error answer at once.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fmnist_lab import config
from fmnist_lab.errors import UserError, reported


def run(composed: DictConfig) -> Any:
    """Check a composed config and do its job."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return do(composed)
    # Hydra adds a line of its own to an exception, but lets SystemExit pass.
    with reported():
        return do(composed)


def do(composed: DictConfig) -> Any:
    """Check a composed config and do its job."""
    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(_in_one_line(error)) from None
    checked = config.validate(values)  # type: ignore[arg-type]
    from fmnist_lab import jobs

    return jobs.JOBS[checked.job.name](checked, None)


def main() -> None:
    """Compose the config from the command line and run; exit non-zero if it cannot be done."""
    # Hydra then lets exceptions through, and one place prints them all.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    door = hydra.main(version_base="1.3", config_path=str(config.conf_dir()), config_name="config")
    with reported():
        try:
            door(run)()
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_in_one_line(error)) from None
        except (TypeError, ValueError):
            _check_groups([each for each in sys.argv[1:] if "=" in each and each[0] != "-"])
            raise
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}") from None


def _in_one_line(error: Exception) -> str:
    """Return what Hydra found wrong with the command line as our one sentence."""
    message = str(error)
    if unknown := re.match(r"Could not override '([\w.]+)'", message):
        return config.unknown_override(unknown[1], sys.argv[1:])
    if choice := re.match(r"In '.*': Could not find '([\w/]+)/([^/']*)'", message):
        group, option = choice.groups()
        known = ", ".join(config.options(group)) or "none yet"
        return f"{group}={option}: unknown option, expected one of {known}"
    return " ".join(message.split())


def _check_groups(overrides: list[str]) -> None:
    """Refuse what is no option of a group, where Hydra fails without a word on which it was."""
    for override in OverridesParser.create().parse_overrides(overrides):
        group = override.key_or_group
        if (config.conf_dir() / group).is_dir() and not isinstance(override.value(), str):
            known = ", ".join(config.options(group)) or "none yet"
            received = str(override.input_line).partition("=")[2]
            raise UserError(
                f"{group}: received {received}, expected the name of an option, one of {known}"
            )


if __name__ == "__main__":
    main()
