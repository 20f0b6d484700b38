"""Texts that anyone may have written, such as those of a store, made fit to be shown.

A terminal acts on control characters, and bidirectional marks show a text in another order than it
has; neither belongs in a name. They are removed where a text is read, so that no place that prints
one has to.
"""

from __future__ import annotations

import math
import re
import unicodedata

NAME_LENGTH = 250  # As long as MLflow's own column for names.
# They join letters in scripts that need it, and emoji.
JOINERS = "\u200c\u200d"
INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")


def line(text: object, most: int | None = None) -> str:
    """Return a text as one line without control characters.

    Args:
        text: The text of a store; None counts as empty.
        most: The largest number of characters, an ellipsis among them; None: any.
    """
    found = "" if text is None else str(text)
    if not found.isprintable():
        found = _visible(re.sub(r"[\s\x1c-\x1f\x85]+", " ", found))
    return found if most is None or len(found) <= most else f"{found[: most - 1]}…"


def lines(text: object) -> str:
    """Return a text without control characters; its line breaks stay."""
    found = "" if text is None else str(text)
    if found.isprintable():
        return found
    return "\n".join(_visible(part.expandtabs(4)) for part in found.splitlines())


def whole_number(text: object) -> int | None:
    """Return the number of a text such as "00012", of up to nine digits; None if it is none."""
    return int(text) if isinstance(text, str) and re.fullmatch("[0-9]{1,9}", text) else None


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "thread"), counted(2000, "thread")
    ('1 thread', '2,000 threads')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def in_bytes(count: float) -> str:
    """Return a number of bytes as a person would say it.

    >>> in_bytes(980), in_bytes(84_300_000), in_bytes(1.5e9)
    ('980 B', '84.3 MB', '1.5 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def duration(seconds: float) -> str:
    """Return a duration as a person would say it; "" for nan.

    >>> [duration(seconds) for seconds in (3.21, 245, 7800, 200_000)]
    ['3.2 s', '4 min 05 s', '2 h 10 min', '2 days']
    """
    if math.isnan(seconds):
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // (24 * 60)} days"


def _visible(text: str) -> str:
    return "".join(
        letter
        for letter in text
        if letter in JOINERS or unicodedata.category(letter) not in INVISIBLE
    )
