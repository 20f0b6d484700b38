"""Where runs are kept: the only room that imports MLflow.

A `Run` does its writing on one thread of its own, in order, so that MLflow's import, its database
and its files cost the training nothing. MLflow is imported there, after TensorFlow.
"""

from fmnist_lab.tracking.heal import Healed, Sent, awaited, heal, sync
from fmnist_lab.tracking.links import compared, links
from fmnist_lab.tracking.query import (
    Found,
    Known,
    curves,
    end,
    find,
    known,
    look_up,
    member_tag,
    members,
    members_of,
    newest_run,
    tag,
)
from fmnist_lab.tracking.reading import facts, load_model, origin, read_file
from fmnist_lab.tracking.run import Run, start
from fmnist_lab.tracking.store import DEFAULT_EXPERIMENT, REMOTE_SCHEMES, Store, asking
from fmnist_lab.tracking.sweeps import Progress, SweepRun

__all__ = [
    "DEFAULT_EXPERIMENT",
    "REMOTE_SCHEMES",
    "Found",
    "Healed",
    "Known",
    "Progress",
    "Run",
    "Sent",
    "Store",
    "SweepRun",
    "asking",
    "awaited",
    "compared",
    "curves",
    "end",
    "facts",
    "find",
    "heal",
    "known",
    "links",
    "load_model",
    "look_up",
    "member_tag",
    "members",
    "members_of",
    "newest_run",
    "origin",
    "read_file",
    "start",
    "sync",
    "tag",
]
