"""The door to runs: `python -m fmnist_lab.run`, where Hydra composes and a job is done.

It imports nothing heavy by itself, so that help, completion and a config error answer at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fmnist_lab import config, process, sweep
from fmnist_lab.errors import UserError, reported
from fmnist_lab.overrides import check_groups, explained
from fmnist_lab.usage import usage

# Whether Hydra has made a config of the command line, so that what fails is no longer that.
_composed = False


def run(composed: DictConfig) -> Any:
    """Check a composed config and do its job."""
    global _composed
    _composed = True
    if HydraConfig.get().mode == RunMode.MULTIRUN and sweep.current:
        return sweep.current.attempt(lambda member: do(composed, member))
    # Hydra adds a line of its own to an exception, but lets SystemExit pass.
    with reported():
        return do(composed)


def do(composed: DictConfig, member: sweep.Membership | None = None) -> Any:
    """Check a composed config and do its job, perhaps as part of a sweep."""
    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(explained(error, sys.argv[1:])) from None
    checked = config.validate(values)  # type: ignore[arg-type]
    from fmnist_lab import jobs

    with _where_it_was_typed():
        return jobs.JOBS[checked.job.name](checked, member)


def _where_it_was_typed() -> contextlib.AbstractContextManager[None]:
    """Undo hydra.job.chdir for a job, so that the store and every relative path stay the same."""
    hydra_config = HydraConfig.get()
    if hydra_config.job.chdir:
        return contextlib.chdir(hydra_config.runtime.cwd)
    return contextlib.nullcontext()


def main() -> None:
    """Compose the config from the command line and run; exit non-zero if it cannot be done."""
    global _composed
    _composed = False
    words = sys.argv[1:]
    # Hydra then lets exceptions through, and one place prints them all.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    door = hydra.main(version_base="1.3", config_path=str(config.conf_dir()), config_name="config")
    with reported(), sweep.conducted():
        try:
            if {"-h", "--help"} & set(words):
                print(usage([word for word in words if not word.startswith("-")]))
            else:
                door(run)()
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explained(error, words)) from None
        except (TypeError, ValueError):
            if not _composed:
                check_groups(words)
            raise


if __name__ == "__main__":
    process.run(main)
