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

from fmnist_lab import config as configs
from fmnist_lab.config import listings, naming
from fmnist_lab.config.identity import without_younger
from fmnist_lab.errors import UserError
from fmnist_lab.sweep import pairs

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
        together: The swept keys that advance together, if there are such.
        fixed: The overrides that all jobs share.
    """

    axes: dict[str, str]
    values: dict[str, list[str]]
    jobs: list[list[str]]
    hash: str
    together: tuple[tuple[str, ...], ...] = ()
    fixed: tuple[str, ...] = ()

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
        axes = {axis: self.values.get(axis) or text for axis, text in self.axes.items()}
        return naming.sweep_name(axes, common, self.together)

    def differences(self, one: Sequence[str], other: Sequence[str]) -> int:
        """Return in how many axes two jobs differ; keys that advance together count as one.

        Args:
            one: The overrides of a job.
            other: Those of another job.
        """
        changed = {each.partition("=")[0].lstrip("+") for each in set(one) - set(other)}
        paired = [set(keys) & changed for keys in self.together]
        return len(changed.difference(*paired)) + sum(map(bool, paired))

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
    """A job that was composed and checked.

    Attributes:
        job: Its overrides.
        values: Its plain values.
        config: Its config.
        serves: Whether the values serve other jobs with the same options, because none of them
            follows another one.
    """

    job: Sequence[str]
    values: dict[str, Any]
    config: configs.Config
    serves: bool = True

    @property
    def params(self) -> dict[str, Any]:
        """Return the params that its run will have."""
        return naming.params(self.config)


def plan(config: DictConfig) -> Plan:
    """Take a composed sweep apart.

    Raises:
        UserError: Nothing is swept, or axes do not go together.
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
    together = [keys for keys in pairs.groups(overrides) if len(keys) > 1]
    jobs = pairs.jobs(overrides) if known else []
    values = {
        key.lstrip("+"): list(each.sweep_string_iterator()) for key, each in swept.items() if known
    }
    if known and not axes:
        raise UserError(
            "-m: nothing is swept, expected at least one key with several values, for example "
            '-m trainer.epochs=1,5,20 "seed=range(3)"; for a single run leave out -m'
        )
    if "dry_run" in axes:
        raise UserError(
            f"dry_run: received {axes['dry_run']}, expected true or false for the whole sweep"
        )
    if known and not jobs:
        empty = ", ".join(f"{axis}={values}" for axis, values in axes.items())
        raise UserError(f"-m: received {empty}, which is no job at all; expected one value or more")
    written = {axis.lstrip("+"): text for axis, text in axes.items()}
    joined = tuple(tuple(key.lstrip("+") for key in keys) for keys in together)
    fixed = tuple(str(each.input_line) for each in overrides if not each.is_sweep_override())
    return Plan(written, values, jobs, hash_of(config), joined, fixed)


def check(config: DictConfig, planned: Plan) -> list[Checked]:
    """Check the first job, and one for each other value of each axis, and return them.

    To check all jobs would take too long if they are a thousand; a bad value is found all the same.
    A job is composed only if it has other options than those before, as in `job_configs`.

    Raises:
        UserError: The schema refuses one of them.
    """
    bases: dict[tuple[str, ...], dict[str, Any]] = {}
    jobs = planned.jobs or [list(planned.fixed)]
    first, seen, checked = jobs[0], set(jobs[0]), []
    for job in jobs:
        if job is not first and (seen.issuperset(job) or planned.differences(job, first) > 1):
            continue
        seen |= set(job)
        choices, settings = _split(job)
        if choices in bases:
            values = _changed(bases[choices], settings)
            checked.append(Checked(job, values, configs.validate(values)))
            continue
        checked.append(_composed(config, job))
        if checked[-1].serves:
            bases[choices] = checked[-1].values
    return checked


def _interpolates(config: DictConfig) -> bool:
    """Return whether a value may depend on one that is swept, so that no config serves two jobs."""
    return "${" in json.dumps(OmegaConf.to_container(_own(config), resolve=False), default=str)


def _composed(config: DictConfig, job: Sequence[str]) -> Checked:
    """Compose a job and check it."""
    loader = GlobalHydra.instance().config_loader()
    composed = loader.load_sweep_config(config, list(job))
    values: Any = OmegaConf.to_container(_own(composed), resolve=True)
    return Checked(job, values, configs.validate(values), not _interpolates(composed))


def identities(config: DictConfig, planned: Plan, checked: Sequence[Checked]) -> Identities:
    """Return the hashes of the jobs, by which an earlier run of the same config is found.

    Jobs that `job_configs` leaves out have none.

    Args:
        config: The composed sweep.
        planned: The result of `plan`.
        checked: The result of `check`.

    Returns:
        `Config.identity` and `Config.native_identity` of each job.
    """
    found = filter(None, job_configs(config, planned, checked))
    return [(each.identity(), each.native_identity()) for each in found]


def job_configs(
    config: DictConfig, planned: Plan, checked: Sequence[Checked], *, composing: int = 0
) -> list[configs.Config | None]:
    """Return the configs of the jobs, in their order.

    To compose a config takes a tenth of a second, so a job's values are set in a config that was
    checked already and has the same options. None stands for a job for which that is not enough;
    the list ends after two thousand jobs.

    Args:
        config: The composed sweep.
        planned: The result of `plan`.
        checked: The result of `check`.
        composing: How many of the others may be composed all the same.
    """
    bases = {_split(one.job)[0]: one.values for one in checked if one.serves}
    found: list[configs.Config | None] = []
    for job in planned.jobs[:MOST_IDENTITIES]:
        choices, settings = _split(job)
        try:
            if choices in bases:
                values = _changed(bases[choices], settings)
            elif composing > 0:
                composing -= 1
                made = _composed(config, job)
                values = made.values
                if made.serves:
                    bases[choices] = values
            else:
                found.append(None)
                continue
            if values["trainer"]["threads"] is None:
                trainer = values["trainer"] | {"threads": config.hydra.launcher.get("threads")}
                values = values | {"trainer": trainer}
            found.append(configs.validate(values))
        except (UserError, TypeError, AttributeError):
            found.append(None)  # The job will say for itself what is wrong with it.
    return found


def _changed(values: dict[str, Any], settings: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a config's values with some others by key, such as "trainer.epochs"."""
    values = copy.deepcopy(values)
    for key, value in settings:
        *path, last = key.split(".")
        node = reduce(lambda node, part: node.setdefault(part, {}), path, values)
        node[last] = copy.deepcopy(value)
    return values


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
    aside = {"hydra", "tracking", "name", "resume", "dry_run", "pause_after"}

    def decides(override: str) -> bool:
        return re.split(r"[=./]", override.lstrip("+~"), maxsplit=1)[0] not in aside

    values = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=False))
    data = values["data"]
    deciding = {
        "config": {
            **{key: value for key, value in values.items() if key not in aside},
            "data": without_younger(data),
        },
        "overrides": sorted(filter(decides, config.hydra.overrides.task)),
        "threads": config.hydra.launcher.get("threads"),
        **({} if search is None else {"search": search}),
        **_listed(data),
    }
    text = json.dumps(deciding, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _listed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is in the files that a group `data` names: another list is another sweep.

    Raises:
        UserError: A file cannot be read.
    """
    named = {key: data.get(key) for key in listings.KEYS}
    if not any(isinstance(value, str) for value in named.values()):
        return {}
    if any("${" in str(value) for value in named.values()):
        return {}  # Only the jobs know.
    return {"listings": listings.contents(named)}


def _own(config: DictConfig) -> DictConfig:
    """Return a composed config without Hydra's part."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
