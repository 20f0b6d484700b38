"""Names of runs and sweeps: what differs from the defaults in `conf/`, in few characters.

A name is made of words such as `dropout0.3`. A run's begins with the model and the epochs and ends
with the seed, `h128 e5 dropout0.3 s0`; in between stands what differs from the defaults. The YAML
files are the only list of defaults that there is.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from fmnist_lab.config import files
from fmnist_lab.config.functions import Optimizer
from fmnist_lab.config.identity import YOUNGER
from fmnist_lab.config.schema import Config
from fmnist_lab.texts import counted

# The keys of the data that a study may vary; the places and names of the files are not among them.
VARIED_DATA = {"name", "train_limit", "test_limit", "validation_fraction", *YOUNGER}

# Keys that everybody knows by a letter or two; others keep their names.
SHORT = {
    "trainer.epochs": "e",
    "trainer.batch_size": "b",
    "model.hidden_units": "h",
    "optimizer.learning_rate": "lr",
    "data.train_limit": "train",
    "data.test_limit": "test",
    "data.validation_fraction": "val",
    "data.label_noise": "noise",
    "seed": "s",
}
# Keys whose values need no name before them.
BARE = ("model", "optimizer", "schedule", "data.name")
SPOKEN = {
    "data.name": "data",
    "data.train_limit": "training images",
    "data.test_limit": "test images",
}
# In the order in which names have them.
BUILT = ("model", "optimizer", "schedule")
GROUPS = ("data", *BUILT, "trainer", "augmentation")
FIRST = ("model", "model.hidden_units", "trainer.epochs")
# The keys of the data that do not come last, as its limits do.
EARLY = ("data.name", "data.label_noise", "data.random_labels")

LONGEST_WORD = 40
LONGEST_NAME = 80
LONGEST_SWEEP = 120
LONGEST_LIST = 20  # Characters of the values of an axis; more become their ends.

TARGETS = {
    "model": "fmnist_lab.models.",
    "optimizer": "keras.optimizers.",
    "schedule": "fmnist_lab.schedules.",
}


def params(config: Config) -> dict[str, Any]:
    """Return the parameters that tell runs apart, flat, without a library's defaults."""
    return {name: value for name, value in _flat(config).items() if value is not None}


def _flat(config: Config) -> dict[str, Any]:
    """Return the same with None where a default of the YAML files was set to null."""
    flat: dict[str, Any] = {
        **{group: _function(group, getattr(config, group).target) for group in BUILT},
        "callbacks": ", ".join(config.callbacks) or None,
        "seed": config.seed,
    }
    data = config.data.model_dump(include=VARIED_DATA)
    groups = {
        **{group: getattr(config, group).model_dump(exclude={"target"}) for group in BUILT},
        "trainer": config.trainer.model_dump(exclude={"engine"}),
        # Zero or false is the same as not being there.
        "augmentation": {k: v or None for k, v in config.augmentation.model_dump().items()},
        "data": {name: _of_data(name, value) for name, value in data.items()},
        **{f"callbacks.{name}": each.arguments() for name, each in config.callbacks.items()},
    }
    for group, values in groups.items():
        flat |= {f"{group}.{name}": value for name, value in values.items()}
    return flat


def _of_data(name: str, value: Any) -> Any:
    """Return a value of the group `data`: None for what changes nothing, a list in short.

    A list of indices, or a table, is told by its size and four bytes of its hash, so that a run is
    not named after the place of a file.
    """
    if name in YOUNGER and value == YOUNGER[name]:
        return None
    if not isinstance(value, list):
        return value
    size = f"{len(value)}x{len(value[0])}" if name == "noise_table" else str(len(value))
    return f"{size}-{hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]}"


def run_name(config: Config, job: str = "") -> str:
    """Return a run's name: what it is in few characters, such as "h128 e5 dropout0.3 s0".

    Args:
        config: The run's config; a name in it is the run's.
        job: What differs from the other jobs of a sweep, such as "h512 e20 s3"; "" outside of one.
    """
    if config.name:
        return config.name
    if job:
        return job
    flat = _flat(config)
    found = differences(flat)
    always = {key: flat[key] for key in FIRST if key in flat}
    if "model" not in found and "model.hidden_units" in always:
        del always["model"]
    elif "model.hidden_units" not in found:
        always.pop("model.hidden_units", None)
    told = always | found
    return fitted(words(told), [word("seed", config.seed)])


def training(config: Config) -> str:
    """Return how a config trains its model, for the screen."""
    return (
        f"{config.optimizer.target.rpartition('.')[2]} "
        f"learning_rate={config.optimizer.learning_rate:g}, "
        f"batches of {config.trainer.batch_size}, {counted(config.trainer.epochs, 'epoch')}, "
        f"seed {config.seed}"
    )


def differences(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a run that differ from the defaults in `conf/`, but for the seed.

    A model's, optimizer's or schedule's arguments are compared with those of the option that is
    nearest to it, such as `optimizer=sgd`.

    Args:
        params: The result of `params`, as it is or in the texts that a store keeps. A missing
            parameter has its default, because it may be younger than the run.

    Returns:
        Values by name, in the order in which names have them. An option of a group stands under
        the group's name, a callback under its own with the value True.
    """
    chosen = files.groups()
    found: dict[str, Any] = {}
    for group in GROUPS:
        own = {key: value for key, value in params.items() if key.startswith(f"{group}.")}
        usual = _option(group, chosen[group])
        if group in BUILT:
            if params.get(group) is None:
                continue
            option, usual = _nearest(group, str(params[group]), own)
            if option != chosen[group]:
                found[group] = option
        found |= _other(own, usual)
    for name in filter(None, str(params.get("callbacks") or "").split(", ")):
        prefix = f"callbacks.{name}."
        own = {key: value for key, value in params.items() if key.startswith(prefix)}
        options = [_option("callbacks", option) for option in files.options("callbacks")]
        usual = {key: value for each in options for key, value in each.items()}
        found[f"callbacks.{name}"] = True
        found |= _other(own, usual)
    return {key: found[key] for key in sorted(found, key=_place)}


def _place(key: str) -> int:
    """Return the number that sorts parameters: model and epochs first, limits of the data last."""
    if key in FIRST:
        return FIRST.index(key)
    return len(FIRST) + (key.startswith("data.") and key not in EARLY)


def _other(own: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are not the usual ones; 0 and false count as null.

    A `split_seed` of 0 draws images, and null takes the first.
    """

    def is_usual(key: str, value: Any) -> bool:
        pair = {text(value), text(usual[key])}
        return len(pair) == 1 or (pair <= {"none", "0", "false"} and key != "data.split_seed")

    return {
        key: value
        for key, value in own.items()
        if (key not in usual and value is not None) or (key in usual and not is_usual(key, value))
    }


def _nearest(group: str, function: str, own: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the option of a function that differs in the fewest arguments, and its arguments.

    A function of the user's has no option. Arguments that every function of its group takes, such
    as an optimizer's learning rate, are then compared with the default option's.
    """
    options = {name: _option(group, name) for name in files.options(group)}
    known = {name: values for name, values in options.items() if values.get(group) == function}
    if known:
        name = min(known, key=lambda name: len(_other(own, known[name])))
        return name, known[name]
    usual = options[files.groups()[group]]
    shared = {f"{group}.{field}" for field in Optimizer.model_fields if group == "optimizer"}
    return function.rpartition(".")[2], {key: usual[key] for key in shared & usual.keys()}


@cache
def _option(group: str, name: str) -> dict[str, Any]:
    """Return the values of an option's YAML file under the names that `params` has."""
    if group == "callbacks":
        return {
            f"{group}.{callback}.{key}": value
            for callback, node in files.values(f"{group}/{name}").items()
            for key, value in node.items()
            if key != "_target_"
        }
    flat = {f"{group}.{key}": value for key, value in files.values(f"{group}/{name}").items()}
    if target := flat.pop(f"{group}._target_", None):
        flat[group] = _function(group, target)
    return flat


def _function(group: str, target: str) -> str:
    """Return the name of a group's function in params: its own for one of ours or of Keras."""
    return target.rpartition(".")[2] if target.startswith(TARGETS[group]) else target


def words(values: Mapping[str, Any]) -> list[str]:
    """Return parameters and their values as words of a name."""
    return [word(key, value) for key, value in values.items()]


def word(key: str, value: Any) -> str:
    """Return a parameter and its value as a word of a name: `e5`, `dropout0.3`, `activation=tanh`.

    Args:
        key: Its name; a group's, if the value is one of its options.
        value: Its value, perhaps as a text.
    """
    known, last = text(value), key.rpartition(".")[2]
    if last == "_target_":
        return _cut(known.rpartition(".")[2])
    if known == "true" and "." in key:
        return _cut(last)
    if known[:1].isdigit() and key not in BARE:
        name = SHORT.get(key, last)
        return _cut(f"{name}{'=' if name[-1].isdigit() else ''}{known}")
    if "." not in key and known in ("none", "null"):
        return f"no-{key}"
    if key in BARE or "." not in key:
        return _cut(known)
    return _cut(f"{last}={known}")


def spoken(values: Mapping[str, Any]) -> str:
    """Return parameters and their values as a list in words: "optimizer sgd, dropout 0.3"."""
    return ", ".join(
        name if text(value) == "true" else f"{name} {_cut(text(value))}"
        for key, value in values.items()
        for name in [SPOKEN.get(key, key.rpartition(".")[2]).replace("_", " ")]
    )


def text(value: Any) -> str:
    """Return a value in the form of names, be it from a config, a store or a command line.

    >>> [text(value) for value in (0.3, "1e-3", "[256, 128]", "True", None)]
    ['0.3', '0.001', '256-128', 'true', 'none']
    """
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return "-".join(map(text, value))
    known = str(value).strip()
    if known.startswith("["):
        return "-".join(map(_number, known.strip("[] ").split(",")))
    return known.lower() if known in ("True", "False") else _number(known)


def _number(known: str) -> str:
    try:
        value = float(known)
    except ValueError:
        return "-".join("".join(c if c.isprintable() else " " for c in known).split())
    if not math.isfinite(value):
        return known
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.12g}".replace("e-0", "e-")


def job_name(overrides: Sequence[str], axes: Sequence[str]) -> str:
    """Return the name of a sweep's job: its differences from the other jobs, such as "h512 e20 s3".

    Args:
        overrides: The job's own, "key=value" each.
        axes: The keys that differ; the seed comes last, the model first, others as they are.
    """
    values = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    given = {axis: values[axis].strip("'\"") for axis in axes if axis in values}
    seed = [word("seed", given.pop("seed"))] if "seed" in given else []
    order = sorted(given, key=lambda key: FIRST.index(key) if key in FIRST[:2] else len(FIRST))
    return fitted([word(key, given[key]) for key in order], seed)


def sweep_name(
    axes: Mapping[str, Sequence[str] | str],
    common: Sequence[str] = (),
    together: Sequence[Sequence[str]] = (),
) -> str:
    """Return a sweep's name: its keys with their values, and the words common to its jobs.

    Args:
        axes: The values of each swept key, or a text where nobody knows them yet.
        common: Words for the differences from the defaults that all jobs share.
        together: Keys that advance together.

    Returns:
        Such as "sweep epochs 1,5,20, sgd", or "sweep epochs 1,5 with hidden_units 32,128 × 3 seeds"
        where the first two advance together.
    """  # noqa: RUF002
    partners = {first: others for first, *others in together}
    followers = {key for others in partners.values() for key in others}
    joined = [
        " with ".join(_values(key, axes[key]) for key in (axis, *partners.get(axis, ())))
        for axis in axes
        if axis not in followers
    ]
    joined[1:] = [f"× {one}" for one in joined[1:]]  # noqa: RUF001
    if common:
        joined[-1] += ","
    return fitted(["sweep", *joined, *common], [], LONGEST_SWEEP)


def _values(axis: str, values: Sequence[str] | str) -> str:
    """Return a swept key with its values: all of them, or their ends and their number."""
    last = axis.rpartition(".")[2]
    if last == "_target_":
        last = axis.rpartition(".")[0]
        values = [value.rpartition(".")[2] for value in values]
    if isinstance(values, str):
        return f"{last} {_cut(values)}"
    shown = list(dict.fromkeys(text(value.strip("'\"")) for value in values))
    if axis == "seed" and len(shown) > 1:
        return f"{len(shown)} seeds"
    listed = ",".join(shown)
    if len(listed) <= LONGEST_LIST or len(shown) == 1:
        return f"{last} {_cut(listed)}"
    with suppress(ValueError):
        shown.sort(key=float)
    return f"{last} {_cut(shown[0])}…{_cut(shown[-1])} ({len(shown)})"


def fitted(words: Sequence[str], last: Sequence[str], longest: int = LONGEST_NAME) -> str:
    """Return words as a name that is no longer than it may be.

    Words that do not fit are left out. Four digits of their hash stand for them, so that the names
    of different settings stay different.

    Args:
        words: In the order of their importance.
        last: Words that stand at the end in any case.
        longest: How many characters the name may have.
    """
    name = " ".join([*words, *last])
    for count in range(len(words) - 1, 0, -1):
        if len(name) <= longest:
            break
        name = " ".join([*words[:count], f"…{_hash(' '.join(words[count:]))}", *last])
    return name


def _cut(known: str) -> str:
    """Return a word, cut to `LONGEST_WORD` characters with a hash of the whole if it is longer."""
    if len(known) <= LONGEST_WORD:
        return known
    return f"{known[: LONGEST_WORD - 5]}…{_hash(known)}"


def _hash(known: str) -> str:
    return hashlib.sha256(known.encode("utf-8", "replace")).hexdigest()[:4]
