"""The sweep that a person may want to make after a single run."""

from __future__ import annotations

import sys

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from fmnist_lab.config import flags
from fmnist_lab.config.schema import Config
from fmnist_lab.system import provenance


def sweep_around(config: Config) -> str:
    """Return the command of a sweep around a run that was typed; "" where that was a sweep's job.

    An experiment says itself which keys to sweep. A network of one width is swept over its width
    and the epochs; any other over three seeds, which tell how much of a result is chance.
    """
    if not HydraConfig.initialized() or config.job.name != "train":
        return ""
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.RUN:
        return ""
    width = config.model.arguments().get("hidden_units")
    axes = {str(key): "" for key in (hydra.sweeper or {}).get("params") or {}}
    if not axes and isinstance(width, int):
        around = {"trainer.epochs": config.trainer.epochs, "model.hidden_units": width}
        spread = {key: sorted({value // 4 or 1, value, 4 * value}) for key, value in around.items()}
        axes = {key: ",".join(map(str, values)) for key, values in spread.items()}
    elif not axes:
        axes = {"seed": ",".join(str((config.seed + more) % 2**32) for more in range(3))}
    dropped = {*axes, "hydra.mode", "name", "resume", "pause_after"}
    words = [
        word
        for word in (*hydra.overrides.hydra, *hydra.overrides.task)
        if word.lstrip("+~").partition("=")[0] not in dropped
    ]
    swept = [f"{key}={values}" for key, values in axes.items() if values]
    return provenance.run_command(["-m", *flags.given(sys.argv[1:]), *words, *swept])
