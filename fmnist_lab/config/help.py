"""The help of `python -m fmnist_lab.run`.

Hydra could print it, but copies its whole search path for each group that it looks into, which
takes longer than everything else together.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import OmegaConf

from fmnist_lab.config import files
from fmnist_lab.config.overrides import quoted


def usage(primary_folder: str, name: str, overrides: list[str], added: str | None = None) -> str:
    """Return the help: examples, the groups, and the values that the overrides make.

    Args:
        primary_folder: The folder of the primary config.
        name: Its name.
        overrides: Those of the same command line, each "key=value".
        added: A folder with more configs.

    Raises:
        HydraException: An override names what does not exist, or cannot be read.
    """
    folder = files.conf_dir()
    if added is not None:
        overrides = [*overrides, f"hydra.searchpath=[{quoted(f'file://{Path(added).absolute()}')}]"]
    with hydra.initialize_config_dir(primary_folder, version_base="1.3"):
        composed = hydra.compose(name, overrides, return_hydra_config=True)
    text = composed.hydra.help
    groups = sorted(
        {file.parent.relative_to(folder).as_posix() for file in folder.glob("*/**/*.yaml")}
    )
    lines = [f"{group}: {', '.join(files.options(group))}" for group in groups]
    values = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    parts = (text.header, "== Groups ==", *lines, "", "== Values ==", OmegaConf.to_yaml(values))
    return "\n".join((*parts, text.footer)).rstrip()
