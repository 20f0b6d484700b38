"""Shared by all measurements: checks of their options, and what is left of a measurement."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmnist_lab.errors import UserError

BENCHMARK = (sys.executable, "-m", "fmnist_lab.benchmark")
RUN = (sys.executable, "-m", "fmnist_lab.run")


def require(option: str, value: int, least: int) -> None:
    """Refuse a number that is too small.

    Args:
        option: The option, such as "--rounds".
        value: The number that was received.
        least: The least number that is allowed.

    Raises:
        UserError: The number is smaller.
    """
    if value < least:
        raise UserError(f"{option}: received {value}, expected a whole number, {least} or more")


def keep(output: Path | None, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, whose keys are the columns, to NAME.csv in a folder, if one was named.

    Args:
        output: The folder, made if need be; None: write nothing.
        name: The file's name without ".csv".
        rows: One mapping per row, all with the same keys.
    """
    if output:
        import pandas as pd

        output.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(output / f"{name}.csv", index=False)


def with_store(folder: Path, name: str = "mlflow") -> dict[str, str]:
    """Return this process' environment, with a store in a folder as the one of MLflow's variable.

    Args:
        folder: The folder.
        name: The database's name without ".db".
    """
    return {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/{name}.db"}


def check_ended(process: subprocess.Popen[Any] | subprocess.CompletedProcess[Any]) -> None:
    """Refuse to go on if a process has failed.

    Raises:
        UserError: Its exit status is not 0.
    """
    if process.returncode:
        raise UserError(f"{process.args!r} ended with status {process.returncode}")
