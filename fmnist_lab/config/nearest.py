"""The nearest of the names that exist to one that does not, for "did you mean …?"."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

# The modules of Keras with functions and classes that a group takes beside its own options.
KERAS_MODULES = {
    "model": "keras.applications",
    "optimizer": "keras.optimizers",
    "schedule": "keras.optimizers.schedules",
    "callbacks": "keras.callbacks",
}


def letters(name: str) -> str:
    """Return the letters and digits of a name, in lower case."""
    return re.sub(r"[\W_]+", "", name).lower()


def same(name: str, known: Iterable[str]) -> str:
    """Return the known name with the same letters and digits, or ""."""
    return next((each for each in known if letters(each) == letters(name)), "")


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the known name that was probably meant, or "".

    Args:
        name: The name as it was written.
        known: The names that exist.
        cutoff: How similar a name has to be, from 0 to 1, where it does not begin with `name`.
    """
    known = list(known)
    if exact := same(name, known):
        return exact
    by_letters = {letters(each): each for each in reversed(known)}
    near = difflib.get_close_matches(letters(name), by_letters, n=1, cutoff=cutoff)
    if not near and len(letters(name)) >= 3:
        near = [each for each in by_letters if each.startswith(letters(name))][-1:]
    return by_letters[near[0]] if near else ""


def keras_names(group: str) -> dict[str, str]:
    """Return the names that Keras has for a group, each with its dotted name.

    Keras is not imported.

    Args:
        group: A config group, such as "optimizer".
    """
    module = KERAS_MODULES.get(group)
    found = importlib.util.find_spec("keras") if module else None
    if module is None or found is None or not found.submodule_search_locations:
        return {}
    folder = Path(found.submodule_search_locations[0], *module.split(".")[1:])
    try:
        text = (folder / "__init__.py").read_text()
    except OSError:
        return {}
    # Keras' public modules are lists of "from … import Adam as Adam".
    names = re.findall(r"\bimport \(?\s*\w+ as ([A-Z]\w*)", text)
    return {name: f"{module}.{name}" for name in names}
