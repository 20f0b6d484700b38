"""What `python -m fmnist_lab.run --help` says.

Hydra can say it too, but copies its whole search path once for each group it looks into, which
takes longer than everything else together.
"""

from __future__ import annotations

import hydra
from omegaconf import OmegaConf

from fmnist_lab import config


def usage(overrides: list[str]) -> str:
    """Return the help: what to type, the groups, and the values that the overrides make.

    Args:
        overrides: Of the same command line, "key=value" each.

    Raises:
        HydraException: An override names what does not exist, or cannot be read.
    """
    folder = config.conf_dir()
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        composed = hydra.compose("config", overrides, return_hydra_config=True)
    text = composed.hydra.help
    groups = sorted(
        {file.parent.relative_to(folder).as_posix() for file in folder.glob("*/**/*.yaml")}
    )
    lines = [f"{group}: {', '.join(config.options(group))}" for group in groups]
    values = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    parts = (text.header, "== Groups ==", *lines, "", "== Values ==", OmegaConf.to_yaml(values))
    return "\n".join((*parts, text.footer)).rstrip()
