"""Jobs without training, for the launchers' workers, which import this module."""

import os
import signal
import time
from pathlib import Path

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from fmnist_lab import compat
from fmnist_lab.sweep.launchers.base import JobRunner
from fmnist_lab.sweep.task import Task

PATIENCE_SECONDS = 60


class FakeRunner(JobRunner):
    """Does jobs of one override each: `wait=FILE`, `kill=` or `value=NUMBER`."""

    @classmethod
    def of(cls, folder: Path) -> "FakeRunner":
        config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})
        return cls(None, Task(), config, None, Singleton.get_state(), folder, {})

    def run(self, number: int, overrides: list[str], job_id: str) -> JobReturn:
        task, _, argument = overrides[0].partition("=")
        if task == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        until = time.monotonic() + PATIENCE_SECONDS
        while task == "wait" and not (self.folder / argument).exists():
            if time.monotonic() > until:
                return compat.job_return(overrides, {"failure": f"{argument} did not come"})
            time.sleep(0.01)
        value = float(argument) if task == "value" else float(number)
        return compat.job_return(overrides, {"value": value, "worker": os.getpid()})
