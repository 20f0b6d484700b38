"""What Hydra finds wrong with a command line, said in our one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from fmnist_lab import config
from fmnist_lab.errors import UserError


def explained(error: Exception, words: Sequence[str]) -> str:
    """Return what is wrong with the words of a command line, and how to mend it.

    Args:
        error: What Hydra or OmegaConf raised about them.
        words: The command line.
    """
    message = " ".join(str(error).split())
    if isinstance(error, OverrideParseException):
        return _unreadable(str(error.override))
    if found := re.match(r"Could not override '([^']+)'", message):
        return _unknown(found[1], words)
    if found := re.match(r"Could not append to config. An item is already at '([^']+)'", message):
        return f"{found[1]}: received with a +, but it is in the config already; leave out the +"
    if found := re.match(r"Multiple values for ([\w/]+)", message) or re.match(
        r"([\w/]+) appears more than once", message
    ):
        return f"{found[1]}: chosen more than once; choose one option, without a + before it"
    if found := re.match(r"Ambiguous value for argument '([^'=]+)=(.*?)' 1\. To use", message):
        key, values = found.groups()
        return (
            f"{key}: received several values, {values}, expected one; add -m to run with each of "
            f"them, or write [{values}] for a list"
        )
    if found := re.match(r"In '.*': Could not (?:find|load) '([\w/]+)/([^/']*)'", message):
        group, option = found.groups()
        known = getattr(error, "options", None) or config.options(group)
        return f"{group}={option}: unknown option, expected one of {', '.join(known)}"
    if found := re.match(r"Missing mandatory value: .*full_key: (\S+)", message):
        return config.missing(found[1])
    return message


def check_groups(words: Iterable[str]) -> None:
    """Refuse what is no option of a group, where Hydra fails without a word on which it was.

    Raises:
        UserError: A group was given something that is not the name of an option.
    """
    overrides = [word for word in words if "=" in word and word[0] != "-"]
    for override in OverridesParser.create().parse_overrides(overrides):
        group, received = override.key_or_group, str(override.input_line).partition("=")[2]
        if not group:
            raise UserError(f"'{override.input_line}': received no key, expected key=value")
        is_group = group.startswith("hydra/") or (config.conf_dir() / group).is_dir()
        value = override.value()
        chosen = value if isinstance(value, list) else [value]
        if is_group and not all(isinstance(each, str) for each in chosen):
            names = ", ".join(config.options(group))
            expected = f"the name of an option, one of {names}" if names else "an option's name"
            raise UserError(f"{group}: received {received}, expected {expected}")


def _unreadable(override: str) -> str:
    """Return the sentence about a word that is no override at all, or whose value needs quotes."""
    key, equals, value = override.partition("=")
    if not equals:
        return f"'{override}': received no value, expected key=value, such as trainer.epochs=5"
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    return (
        f"{key}: received {value}, which Hydra cannot read; a text with spaces, commas or other "
        f"special characters needs quotes inside quotes: \"{key}='{quoted}'\""
    )


def _unknown(key: str, words: Sequence[str]) -> str:
    """Return the sentence about a key that the chosen YAML files do not have."""
    group, _, name = key.partition(".")
    if group == "hydra":
        return f"{key}: unknown key; --cfg hydra lists those that Hydra has"
    if not (config.conf_dir() / group).is_dir():
        return config.unknown_key(key, config.keys(config.Config))
    entries = OmegaConf.load(config.conf_dir() / "config.yaml").defaults
    choices = {
        each: option for entry in entries if entry != "_self_" for each, option in entry.items()
    }
    everywhere = set(choices)
    choices |= dict(word.split("=", 1) for word in words if "=" in word)
    if not name and group not in everywhere:
        return (
            f"{group}: received {choices[group]}, but only an experiment has this group; for "
            f"example experiment={group} {group}={choices[group]}"
        )
    if not name:
        # The group was given a mapping, with a key that is unknown.
        return (
            f"{group}: received {choices[group]}, expected keys that the group has, or the name "
            f"of an option, one of {', '.join(config.options(group))}"
        )
    known = {option: _yaml_keys(group, option) for option in config.options(group)}
    chosen = choices[group]
    if (group, chosen) == ("model", "own"):
        return f"{key}: no argument so far; write +{key}=VALUE to give it to your function"
    first = name.partition(".")[0]
    owners = [option for option, names in known.items() if first in names and option != chosen]
    known_here = [each for each in known.get(chosen, []) if each != "_target_"]
    sentence = config.unknown_key(f"{group}.{name}", known_here)
    return f"{sentence}; {group}={owners[0]} has it" if owners else sentence


def _yaml_keys(group: str, option: str) -> list[str]:
    return [str(key) for key in OmegaConf.load(config.conf_dir() / group / f"{option}.yaml")]
