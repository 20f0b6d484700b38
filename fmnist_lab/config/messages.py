"""The sentences that refuse a value or a key of a config: "key: received X, expected Y; do Z".

`overrides` has those about what Hydra refuses. They are apart because Hydra's parser takes 0.2 s to
import, which commands without overrides need not wait for.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from fmnist_lab.config import files
from fmnist_lab.config.nearest import nearest


def no_group(group: str, node: Any) -> str:
    """Return the sentence about a group, or a callback, that holds no keys.

    Args:
        group: Its key.
        node: Its value.
    """
    received = f"{group}: received {_shown(node)}"
    if not (names := files.options(group)):
        return (
            f"{received}, expected a _target_ and its arguments; for example "
            f"+{group}._target_=keras.callbacks.EarlyStopping"
        )
    return (
        f"{received}, expected a group of options; choose one of {', '.join(names)}, for example "
        f"{group}={names[0]}"
    )


def wrong_value(
    section: type[BaseModel], node: Mapping[str, Any], prefix: str, fault: ErrorDetails
) -> str:
    """Return the sentence about a key of a node that does not fit its class.

    Args:
        section: The class.
        node: The values of the node.
        prefix: The node's key with a dot after it, or "" for the whole config.
        fault: One of the faults that Pydantic has found.
    """
    name = str(fault["loc"][0])
    key = prefix + name
    fields = {field.alias or each: field for each, field in section.model_fields.items()}
    if fault["type"] == "extra_forbidden":
        return unknown_key(key, list(fields))
    if fault["type"] == "missing":
        return missing(key)
    field, choices = fields[name], _choices(fields[name].annotation)
    expected = fault["msg"].lower().removeprefix("input should be ")
    if field.description or choices:
        expected = field.description or f"one of {', '.join(choices)}"
    (example,) = field.examples or [files.example(key)]
    if near := nearest(str(node[name]), choices):
        hint = f"; did you mean {key}={near}?"
    elif choices or example in (None, "???") or isinstance(example, bool):
        hint = ""
    else:
        whole = f"{key}={str(example).replace(' ', '')}"
        hint = f"; for example {typed(whole)}"
    return f"{key}: received {_shown(node[name])}, expected {expected}{hint}"


def _choices(annotation: Any) -> list[str]:
    """Return the texts that a field may be, if they are counted."""
    inner = get_args(annotation)
    if get_origin(annotation) is Literal:
        return list(inner)
    return [text for each in inner for text in _choices(each)]


def _shown(value: Any) -> str:
    """Return a value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"'{value}'" if isinstance(value, str) else str(value)


def typed(word: str) -> str:
    """Return a word as one types it for a shell: zsh takes brackets for a file's name.

    >>> print(typed("seed=1"), typed("units=[256,128]"), typed("name='my run'"))
    seed=1 'units=[256,128]' "name='my run'"
    """
    if "'" not in word or "!" in word:
        return shlex.quote(word)
    escaped = re.sub(r'(["$`\\])', r"\\\1", word)
    return f'"{escaped}"'


def missing(key: str) -> str:
    """Return the sentence about a key that needs a value and has none."""
    return f"{key}: missing, expected a value; add {key}=VALUE"


def unknown_key(key: str, known: list[str]) -> str:
    """Return the sentence about a key that does not exist, with the nearest that does.

    Args:
        key: The whole key.
        known: The names that exist in its place.
    """
    parent, _, name = key.rpartition(".")
    near = nearest(name, known)
    if near:
        hint = f"; did you mean {'.'.join(filter(None, [parent, near]))}?"
    else:
        elsewhere = [each for each in meant(key) if each != key]
        hint = f"; did you mean {' or '.join(elsewhere)}?" if elsewhere else ""
    if not known:
        return f"{key}: unknown key, expected none under {parent}{hint}"
    return f"{key}: unknown key, expected one of {', '.join(known)}{hint}"


def meant(key: str) -> list[str]:
    """Return the whole keys that a wrong one may have been meant for, at most three.

    A bare name such as "epochs" is looked for in all groups.
    """
    known = files.whole_keys()
    if near := nearest(key, known, cutoff=0.8):
        return [near]
    name = key.rpartition(".")[2]
    parts = {each: each.rpartition(".")[2].split("_") for each in known}
    found = [each for each in known if each.rpartition(".")[2] == name]
    found = found or [each for each in known if name in parts[each]]
    if not found and len(name) > 1:
        found = [each for each in known if "".join(part[:1] for part in parts[each]) == name]
    if not found and (near := nearest(name, map("_".join, parts.values()), cutoff=0.7)):
        found = [each for each in known if "_".join(parts[each]) == near]
    return found[:3]
