"""What a sweep is going to do, taken apart and checked before anything is begun."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, cast

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from fmnist_lab import config as configs
from fmnist_lab.errors import UserError

# What a job costs beside its epochs, in epochs: only for the time left.
OVERHEAD_EPOCHS = 3.0


@dataclass(frozen=True)
class Plan:
    """What a sweep is going to do.

    Attributes:
        axes: The swept keys and their values, as they were written.
        jobs: The overrides of each job; empty where a sweeper decides as it goes.
        hash: The same for the same sweep, whatever launches it and wherever it is kept.
    """

    axes: dict[str, str]
    jobs: list[list[str]]
    hash: str

    @property
    def name(self) -> str:
        """Return the parent run's name."""
        return "sweep " + " × ".join(axis.rpartition(".")[2] for axis in self.axes)  # noqa: RUF001

    def work(self, job: int) -> float:
        """Return how much a job is to be reckoned, in epochs."""
        if job >= len(self.jobs):
            return 1.0
        given = dict(override.split("=", 1) for override in self.jobs[job])
        try:
            return OVERHEAD_EPOCHS + float(given.get("trainer.epochs", "5"))
        except ValueError:
            return 1.0


def plan(config: DictConfig) -> Plan:
    """Take a composed sweep apart.

    Raises:
        UserError: Nothing is swept.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    sweeper = config.hydra.sweeper
    known = str(sweeper._target_).endswith(".BasicSweeper")
    params = sweeper.params if known and sweeper.params else {}
    words = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    loader = GlobalHydra.instance().config_loader()
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
    axes = {
        override.get_key_element(): str(override.input_line).partition("=")[2]
        for override in overrides
        if override.is_sweep_override()
    }
    jobs = BasicSweeper.split_arguments(overrides, None)[0] if known else []
    if known and not axes:
        raise UserError(
            "-m: nothing is swept, expected at least one key with several values, for example "
            '-m trainer.epochs=1,5,20 "seed=range(3)"; for a single run leave out -m'
        )
    if known and not jobs:
        empty = ", ".join(f"{axis}={values}" for axis, values in axes.items())
        raise UserError(f"-m: received {empty}, which is no job at all; expected one value or more")
    return Plan({axis.lstrip("+"): values for axis, values in axes.items()}, jobs, _hash(config))


def check(config: DictConfig, planned: Plan) -> configs.Config:
    """Check the first job, and one for each other value of each axis; return the first's config.

    All jobs would be more than a thousand could wait for; a bad value is found all the same.

    Raises:
        UserError: The schema refuses one of them.
    """
    loader = GlobalHydra.instance().config_loader()
    jobs = planned.jobs or [[]]
    first, seen, checked = jobs[0], set(jobs[0]), []
    for job in jobs:
        if job is not first and (seen.issuperset(job) or len(set(job) - set(first)) > 1):
            continue
        seen |= set(job)
        composed = loader.load_sweep_config(config, list(job))
        values = OmegaConf.to_container(_own(composed), resolve=True)
        checked.append(configs.validate(values))  # type: ignore[arg-type]
    return checked[0]


def _hash(config: DictConfig) -> str:
    """Return what makes a sweep the same: 16 hexadecimal digits."""

    def decides(override: str) -> bool:
        key = override.lstrip("+~").partition("=")[0]
        return key != "resume" and key.partition(".")[0].partition("/")[0] not in (
            *("hydra", "tracking", "name"),
        )

    values = cast("dict[str, Any]", OmegaConf.to_container(_own(config), resolve=False))
    for key in ("resume", "tracking", "name"):
        values.pop(key, None)
    deciding = {
        "config": values,
        "overrides": sorted(filter(decides, config.hydra.overrides.task)),
        "threads": config.hydra.launcher.get("threads"),
    }
    text = json.dumps(deciding, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _own(config: DictConfig) -> DictConfig:
    """Return a composed config without Hydra's part."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
