"""The plan of a sweep: its axes and jobs, checked before anything is begun."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any, NamedTuple, cast

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from fmnist_lab import compat
from fmnist_lab import config as configs
from fmnist_lab.config import naming
from fmnist_lab.errors import UserError

# The cost of a job beside its epochs, in epochs; it serves the time left only.
OVERHEAD_EPOCHS = 3.0
# Keys of a config that are groups of options.
GROUPS = {"callbacks", *configs.sections({})}
MOST_IDENTITIES = 2000  # Jobs whose configs are worked out to look for earlier runs: half a second.

Identities = list[tuple[str, str]]


@dataclass(frozen=True)
class Plan:
    """The plan of a sweep.

    Attributes:
        axes: The swept keys and their values, as the user wrote them.
        values: The values of each swept key; none if the sweeper chooses them one by one.
        jobs: The overrides of each job; empty if the sweeper chooses them one by one.
        hash: The same for the same sweep, with any launcher and any store.
    """

    axes: dict[str, str]
    values: dict[str, list[str]]
    jobs: list[list[str]]
    hash: str

    def name(self, checked: Sequence[Checked]) -> str:
        """Return the parent run's name: the axes, and what all jobs have in common.

        Args:
            checked: The result of `check`.
        """
        told = [
            {naming.word(*each): each[0] for each in naming.differences(one.params).items()}
            for one in checked
        ]
        common = [
            word
            for word, key in told[0].items()
            if key not in self.axes and all(word in words for words in told)
        ]
        return naming.sweep_name({a: self.values.get(a) or self.axes[a] for a in self.axes}, common)

    def work(self, job: int) -> float:
        """Return the cost of a job, in epochs."""
        if job >= len(self.jobs):
            return 1.0
        given = dict(override.split("=", 1) for override in self.jobs[job])
        try:
            return OVERHEAD_EPOCHS + float(given.get("trainer.epochs", "5"))
        except ValueError:
            return 1.0


class Checked(NamedTuple):
    """A job that was composed and checked: its overrides, its plain values, its config."""

    job: Sequence[str]
    values: dict[str, Any]
    config: configs.Config

    @property
    def params(self) -> dict[str, Any]:
        """Return the params that its run will have."""
        return naming.params(self.config)


def plan(config: DictConfig) -> Plan:
    """Take a composed sweep apart.

    Raises:
        UserError: Nothing is swept.
    """
    sweeper = config.hydra.sweeper
    known = str(sweeper._target_).endswith(".BasicSweeper")
    params = sweeper.params if known and sweeper.params else {}
    words = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    loader = GlobalHydra.instance().config_loader()
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
    swept = {each.get_key_element(): each for each in overrides if each.is_sweep_override()}
    for key, each in swept.items():
        if known and each.is_interval_sweep():
            raise UserError(
                f"{key}: received {str(each.input_line).partition('=')[2]}, which has no end of "
                "values, expected a list or a range; or search it: add hydra/sweeper=optuna "
                "hydra.sweeper.n_trials=30"
            )
    axes = {key: str(each.input_line).partition("=")[2] for key, each in swept.items()}
    jobs = compat.basic_jobs(overrides) if known else []
    values = {
        key.lstrip("+"): list(each.sweep_string_iterator()) for key, each in swept.items() if known
    }
    if known and not axes:
        raise UserError(
            "-m: nothing is swept, expected at least one key with several values, for example "
            '-m trainer.epochs=1,5,20 "seed=range(3)"; for a single run leave out -m'
        )
    if known and not jobs:
        empty = ", ".join(f"{axis}={values}" for axis, values in axes.items())
        raise UserError(f"-m: received {empty}, which is no job at all; expected one value or more")
    written = {axis.lstrip("+"): text for axis, text in axes.items()}
    return Plan(written, values, jobs, hash_of(config))


def check(config: DictConfig, planned: Plan) -> list[Checked]:
    """Check the first job, and one for each other value of each axis, and return them.

    To check all jobs would take too long if they are a thousand; a bad value is found all the same.

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
        values: Any = OmegaConf.to_container(_own(composed), resolve=True)
        checked.append(Checked(job, values, configs.validate(values)))
    return checked


def identities(config: DictConfig, planned: Plan, checked: Sequence[Checked]) -> Identities:
    """Return the hashes of the jobs, by which an earlier run of the same config is found.

    To compose a config takes a fifth of a second, so none is: a job's values are set in a config
    that was checked already and has the same options. Jobs for which that is not enough are left
    out, and so are those after the first two thousand.

    Args:
        config: The composed sweep.
        planned: The result of `plan`.
        checked: The result of `check`.

    Returns:
        `Config.identity` and `Config.native_identity` of each job.
    """
    if "${" in json.dumps(OmegaConf.to_container(_own(config), resolve=False), default=str):
        return []  # A value may depend on one that is swept.
    bases = {_split(one.job)[0]: one.values for one in checked}
    found: Identities = []
    for job in planned.jobs[:MOST_IDENTITIES]:
        choices, settings = _split(job)
        values = copy.deepcopy(bases.get(choices))
        if values is None:
            continue
        try:
            for key, value in settings:
                *path, last = key.split(".")
                node = reduce(lambda node, part: node.setdefault(part, {}), path, values)
                node[last] = copy.deepcopy(value)
            if values["trainer"]["threads"] is None:
                values["trainer"]["threads"] = config.hydra.launcher.get("threads")
            job_config = configs.validate(values)
        except (UserError, TypeError, AttributeError):
            continue  # The job will say for itself what is wrong with it.
        found.append((job_config.identity(), job_config.native_identity()))
    return found


def _split(job: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[str, Any]]]:
    """Return a job's overrides that choose an option, and the keys and values of the others."""
    parsed = {override: _parsed(override) for override in job}
    choices = tuple(override for override in job if parsed[override] is None)
    return choices, [setting for setting in parsed.values() if setting is not None]


@cache
def _parsed(override: str) -> tuple[str, Any] | None:
    """Return the key and value that an override sets; None if it does something else."""
    (parsed,) = OverridesParser.create().parse_overrides([override])
    value, key = parsed.value(), parsed.key_or_group
    plain = not (parsed.is_delete() or isinstance(value, dict) or "${" in override)
    is_value = "." in key or key in configs.Config.model_fields.keys() - GROUPS
    return (key, value) if plain and is_value and not parsed.package else None


def hash_of(config: DictConfig, search: Mapping[str, Any] | None = None) -> str:
    """Return a hash of the parts of a config that make two sweeps the same: 16 hex digits.

    Args:
        config: The composed sweep.
        search: The options of a search that make it the same; None of any other sweep.
    """
    aside = {"hydra", "tracking", "name", "resume", "pause_after"}

    def decides(override: str) -> bool:
        return re.split(r"[=./]", override.lstrip("+~"), maxsplit=1)[0] not in aside

    values = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=False))
    deciding = {
        "config": {key: value for key, value in values.items() if key not in aside},
        "overrides": sorted(filter(decides, config.hydra.overrides.task)),
        "threads": config.hydra.launcher.get("threads"),
        **({} if search is None else {"search": search}),
    }
    text = json.dumps(deciding, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _own(config: DictConfig) -> DictConfig:
    """Return a composed config without Hydra's part."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
