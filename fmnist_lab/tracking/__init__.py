"""Where runs are kept: the only room that imports MLflow.

A `Run` does its writing on one thread of its own, in order, so that MLflow's import, its database
and its files cost the training nothing. MLflow is imported there, after TensorFlow.
"""

from fmnist_lab.tracking.query import (
    find,
    links,
    load_model,
    member_tag,
    members_of,
    newest_run,
    origin,
)
from fmnist_lab.tracking.run import Run, start
from fmnist_lab.tracking.store import DEFAULT_EXPERIMENT, REMOTE_SCHEMES, Store

__all__ = [
    "DEFAULT_EXPERIMENT",
    "REMOTE_SCHEMES",
    "Run",
    "Store",
    "find",
    "links",
    "load_model",
    "member_tag",
    "members_of",
    "newest_run",
    "origin",
    "start",
]
