"""The two sides of a comparison, and what one was made with and the other was not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fmnist_lab.studies.frames import (
    SEEDS,
    is_parameter,
    ordered,
    shown,
)
from fmnist_lab.studies.summary import Study

MISSING = "-"  # A parameter or tag that a run does not have.
# Tags that say what a run was made with, under the names that are shown.
KINDS = {
    "code": {
        "mlflow.source.git.commit": "commit",
        "git.dirty": "uncommitted changes",
        "version.fmnist_lab": "fmnist_lab",
    },
    "libraries": {
        f"version.{name}": name for name in ("python", "tensorflow", "keras", "numpy", "mlflow")
    },
    "machine": {"host": "host", "device": "device"},
    "threads": {"threads": "threads", "threads.before": "threads before"},
    "engine": {"engine": "engine", "engine.before": "engine before"},
    "data": {"data.digest": "data digest"},
}
# Differences that leave two settings the same; a validation split, and so the digest of the data,
# depends on the seed.
BESIDE_THE_POINT = (*SEEDS, "data digest", "host", "uncommitted changes")


@dataclass(frozen=True)
class Side:
    """One of the two groups.

    Attributes:
        study: Its runs, taken apart.
        tags: The tags of each run that counts, by its id.
    """

    study: Study
    tags: Mapping[str, Mapping[str, str]]

    @property
    def ids(self) -> list[str]:
        """The runs that count."""
        return list(self.study.used["run_id"])


class Difference(NamedTuple):
    """What A was made with and B was not."""

    kind: str
    name: str
    a: str
    b: str


def differences_of(a: Side, b: Side, within: Sequence[str]) -> tuple[list[Difference], list[str]]:
    """Return what differs between two sides.

    Args:
        a: The first side.
        b: The second.
        within: Parameters that differ inside a side, by which its runs are matched.

    Returns:
        Parameters that differ, then code, libraries and so on; and the kinds of the latter in which
        nothing does.
    """
    names = [name for name in (*a.study.used, *b.study.used) if is_parameter(name)]
    values = {
        name: [values_in_words(side.study.used.get(name, [None])) for side in (a, b)]
        for name in (*sorted(set(names) - set(within)), *SEEDS)
    }
    found = [
        Difference("config", name, *sides) for name, sides in values.items() if sides[0] != sides[1]
    ]
    same = []
    for kind, tags in KINDS.items():
        sides = {
            shown_as: [
                values_in_words(_tag(each, tag) for each in side.tags.values()) for side in (a, b)
            ]
            for tag, shown_as in tags.items()
        }
        differing = [
            Difference(kind, name, *each) for name, each in sides.items() if each[0] != each[1]
        ]
        found += differing
        if not differing and any(each[0] != MISSING for each in sides.values()):
            same.append(kind)
    return found, same


def _tag(tags: Mapping[str, str], name: str) -> str | None:
    value = tags.get(name)
    long = name in ("mlflow.source.git.commit", "data.digest")
    return value[:10] if value and long else value


def values_in_words(values: Iterable[Any]) -> str:
    """Return values in words."""
    return ", ".join(MISSING if value is None else shown(value) for value in ordered(values))
