"""The identity of a run: hashes of all that decides its outcome.

Stores find the runs of a config by them, so they must stay as they are for every config that a run
was ever made with. `values` are those of `Config.to_dict`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Keys of `data` that are younger than the first stores, with the values that change nothing. A
# config that has these values has the hash that it had before there were such keys.
YOUNGER = {
    "split_seed": None,
    "exclude": None,
    "exclude_test": None,
    "label_noise": 0,
    "noise_seed": 0,
    "noise_table": None,
    "noisy_validation": False,
    "random_labels": False,
}
CONSTANT = "fmnist_lab.schedules.constant"


def identity(values: Mapping[str, Any]) -> str:
    """Return a hash of all that decides the outcome: 16 hexadecimal digits.

    The place of the store, the name of the run, the epoch to pause after and the folder of the
    (verified) data do not decide the outcome, so they do not count. A folder whose content nothing
    verifies does.
    """
    return _digest(_deciding(values))


def native_identity(values: Mapping[str, Any]) -> str:
    """Return a hash of all that decides the outcome of the native engine.

    Unlike those of TensorFlow, its bits are the same for any number of threads.
    """
    deciding = _deciding(values)
    return _digest({**deciding, "trainer": {**deciding["trainer"], "threads": None}})


def prefix_identity(values: Mapping[str, Any]) -> str | None:
    """Return a hash of all that decides the outcome but the number of epochs.

    Of two runs that share it, the shorter one is a prefix of the longer, bit for bit. None where
    this does not hold: a schedule may stretch over the whole run, a callback may know how long the
    run is, and a last epoch is evaluated even where a longer run would not evaluate it.
    """
    trainer = dict(values["trainer"])
    if trainer.pop("epochs") % trainer["evaluate_every"] or values["callbacks"]:
        return None
    if values["schedule"]["_target_"] != CONSTANT or values["job"]["name"] != "train":
        return None
    return _digest({**_deciding(values), "trainer": trainer})


def _deciding(values: Mapping[str, Any]) -> dict[str, Any]:
    elsewhere = ("tracking", "name", "resume", "dry_run", "pause_after", "checkpoint")
    data = values["data"]
    unverified = "sha256" in data and data["sha256"] is None
    places = ("cache_dir", "download", *(() if unverified else ("dir",)))
    return {
        **{key: value for key, value in values.items() if key not in elsewhere},
        "data": {key: value for key, value in without_younger(data).items() if key not in places},
    }


def without_younger(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of `data` without the keys of `YOUNGER` that change nothing.

    Args:
        data: The values of the config's group `data`.
    """
    return {
        key: value for key, value in data.items() if not (key in YOUNGER and value == YOUNGER[key])
    }


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
