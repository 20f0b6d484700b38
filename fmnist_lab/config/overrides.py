"""The sentences about what Hydra refuses in a command line, in the words of `messages`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException

from fmnist_lab.config import files, messages, primary
from fmnist_lab.config.nearest import keras_names, nearest, same
from fmnist_lab.errors import UserError

CHOSEN_TWICE = "{}: chosen more than once; choose one option, without a + before it"
# The beginnings of messages of Hydra, and our sentences about what they hold.
SENTENCES = {
    r"Could not append to config. An item is already at '([^']+)'": (
        "{}: received with a +, but it is in the config already; leave out the +"
    ),
    r"Multiple values for ([\w/]+)": CHOSEN_TWICE,
    r"([\w/]+) appears more than once": CHOSEN_TWICE,
    r"Ambiguous value for argument '([^'=]+)=(.*?)' 1\. To use": (
        "{0}: received several values, {1}, expected one; add -m to run with each of them, or "
        "write {whole} for a list"
    ),
    r"Sweep parameters '([^'=]+)=(.*)' requires --multirun": (
        "{0}: received {1}, which is several values, expected one; add -m to run with each of them"
    ),
}


def explained(error: Exception, words: Sequence[str]) -> str:
    """Return the sentence about a mistake in a command line.

    Args:
        error: The exception that Hydra or OmegaConf raised.
        words: The command line.
    """
    message = " ".join(str(error).split())
    if isinstance(error, OverrideParseException):
        return _unreadable(str(error.override), words)
    if found := re.match(r"Could not override '([^']+)'", message):
        return _unknown(found[1], words)
    if found := re.match(r"In '.*': Could not (?:find|load) '([\w/]+)/([^/']*)'", message):
        group, option = found.groups()
        return _no_option(group, option, getattr(error, "options", None) or files.options(group))
    if found := re.match(r"Missing mandatory value: .*full_key: (\S+)", message):
        return messages.missing(found[1])
    for pattern, sentence in SENTENCES.items():
        if found := re.match(pattern, message):
            parts = found.groups()
            return sentence.format(*parts, whole=messages.typed(f"{parts[0]}=[{parts[-1]}]"))
    if found := re.match(r"Error merging override (\S*)", message):
        return f"{found[1]}: {str(error.__cause__).partition(chr(10))[0]}"
    key = getattr(error, "full_key", None)
    return message if not key or key in message else f"{key}: {message}"


def check_groups(words: Iterable[str]) -> None:
    """Refuse a value that is no option of its group, where the error of Hydra does not name it.

    Raises:
        UserError: A group was given something that is not the name of an option.
    """
    overrides = [word for word in words if "=" in word and word[0] != "-"]
    for override in OverridesParser.create().parse_overrides(overrides):
        group, received = override.key_or_group, str(override.input_line).partition("=")[2]
        if not group:
            raise UserError(f"'{override.input_line}': received no key, expected key=value")
        is_group = group.startswith("hydra/") or (files.conf_dir() / group).is_dir()
        value = override.value()
        chosen = value if isinstance(value, list) else [value]
        wrong = not chosen or not all(isinstance(each, str) for each in chosen)
        if is_group and (wrong or (override.is_delete() and isinstance(value, list))):
            names = ", ".join(files.options(group))
            expected = f"the name of an option, one of {names}" if names else "an option's name"
            raise UserError(f"{group}: received {received}, expected {expected}")


def _no_option(group: str, option: str, known: Sequence[str]) -> str:
    """Return the sentence about an option that a group does not have, with a likely one."""
    sentence = f"{group}={option}: unknown option, expected one of {', '.join(known)}"
    keras, near = keras_names(group), nearest(option, known)
    # "nadam" is nearer to Keras' class of that name than to our option "adam".
    if near and (not same(option, keras) or nearest(option, [near], cutoff=0.9)):
        return f"{sentence}; did you mean {group}={near}?"
    dotted = option if "." in option.strip(".") else keras.get(nearest(option, keras), "")
    if not dotted:
        return sentence
    if group == "optimizer":
        return f"{sentence}, or another one's full name: optimizer._target_={dotted}"
    if group == "callbacks":
        return f"{sentence}, or another one's full name: +callbacks.mine._target_={dotted}"
    if group == "model":
        return (
            f"{sentence}; {dotted} is taken if a function of yours of (image_shape, classes) "
            "returns it: model=own model._target_=my_module.my_model"
        )
    return (
        f"{sentence}; {dotted} is taken if a function of yours of (learning_rate, steps) returns "
        f"it: {group}._target_=my_module.my_{group}"
    )


def _unreadable(override: str, words: Sequence[str]) -> str:
    """Return the sentence about a word that is no override at all, or whose value needs quotes."""
    if torn := _torn(override, words):
        return torn
    key, equals, value = override.partition("=")
    if not equals:
        return f"'{override}': received no value, expected key=value, such as trainer.epochs=5"
    return (
        f"{key}: received {value}, which Hydra cannot read; a text with spaces, commas or other "
        "special characters needs quotes inside quotes: "
        f"{messages.typed(f'{key}={quoted(value)}')}"
    )


def quoted(value: str) -> str:
    """Return a text in quotes, as an override takes it.

    Hydra takes a backslash as it is, but halves the number of those before a quote.
    """
    escaped = re.sub(r"(\\*)('|\Z)", lambda end: 2 * end[1] + ("\\'" if end[2] else ""), value)
    return f"'{escaped}'"


def _torn(override: str, words: Sequence[str]) -> str:
    """Return the sentence about an override that the shell has split at blanks, or ""."""
    here = words.index(override) if override in words else len(words)
    if here and _goes_on(words[here - 1], override):
        here -= 1
    for end in range(here + 2, len(words) + 1):
        pieces = words[here:end]
        if "=" in pieces[-1].lstrip("="):
            break  # the next override
        key, equals, value = " ".join(pieces).partition("=")
        named = pieces[0][:1].isalpha() and not pieces[-1].isidentifier()
        if not equals and named and (near := messages.meant(pieces[0])):
            key, value = near[0], " ".join(pieces[1:])
        whole = f"{key.strip()}={value.strip()}"
        if not value.strip() or not _readable(whole):
            continue
        if "," in value:
            whole = re.sub(r",\s+", ",", whole)
        return (
            f"{key.strip()}: received {' and '.join(map(repr, pieces))}, because the shell splits "
            f"words at blanks; write {messages.typed(whole)}"
        )
    return ""


def _goes_on(before: str, word: str) -> bool:
    """Return whether a word that is no override is the rest of the one before it."""
    key, equals, value = before.partition("=")
    known = files.whole_keys()
    return bool(equals) and word not in known and (not value or known.get(key, "") is None)


def _readable(override: str) -> bool:
    try:
        OverridesParser.create().parse_overrides([override])
    except (HydraException, ValueError):
        return False
    return True


def _unknown(key: str, words: Sequence[str]) -> str:
    """Return the sentence about a key that the chosen YAML files do not have."""
    group, _, name = key.partition(".")
    if group == "hydra":
        return f"{key}: unknown key; --cfg hydra lists those that Hydra has"
    if not (files.conf_dir() / group).is_dir():
        return messages.unknown_key(key, files.top_keys())
    choices: dict[str, Any] = {
        each: option for entry in primary.defaults() for each, option in entry.items()
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
            f"of an option, one of {', '.join(files.options(group))}"
        )
    known = {option: list(files.values(f"{group}/{option}")) for option in files.options(group)}
    chosen = choices[group]
    if group == "model" and chosen in ("own", None):
        return f"{key}: no argument so far; write +{key}=VALUE to give it to your function"
    first = name.partition(".")[0]
    owners = [option for option, names in known.items() if first in names and option != chosen]
    known_here = [each for each in known.get(chosen, []) if each != "_target_"]
    if owners and known_here:
        expected = f"expected one of {', '.join(known_here)}"
        return f"{key}: unknown key, {expected}; {group}={owners[0]} has it"
    sentence = messages.unknown_key(key, known_here)
    return f"{sentence}; {group}={owners[0]} has it" if owners else sentence
