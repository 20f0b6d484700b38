"""Where a result came from: code version, library versions, machine."""

from __future__ import annotations

import getpass
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

LIBRARIES = ("fmnist_lab", "tensorflow", "keras", "numpy", "mlflow")

# Tags about a job's place in a cluster, and the environment variables that tell it.
CLUSTER = {
    "slurm.job": "SLURM_JOB_ID",
    "slurm.node": "SLURMD_NODENAME",
    "ray.task": "FMNIST_LAB_RAY_TASK",
    "ray.node": "FMNIST_LAB_RAY_NODE",
}


def tags() -> dict[str, str]:
    """Return the tags that identify the code, the libraries and the machine.

    They have the names that MLflow's own UI understands, where there are any. The commit is that of
    the checkout that the package is imported from; an installed wheel has none.
    """
    found = {
        "mlflow.source.name": command(),
        # For a LOCAL source, MLflow's UI shows only the words after the last slash.
        "mlflow.source.type": "JOB",
        "mlflow.user": user(),
        "host": socket.gethostname(),
        "version.python": platform.python_version(),
        **{f"version.{library}": metadata.version(library) for library in LIBRARIES},
        **{tag: os.environ[name] for tag, name in CLUSTER.items() if os.environ.get(name)},
    }
    commit = _git("rev-parse", "HEAD")
    if commit:
        found["mlflow.source.git.commit"] = commit
        # The code and its configs alone: other files change no result.
        code = ("--", ".", ":/conf")
        found["git.dirty"] = str(bool(_git("status", "--porcelain", *code))).lower()
    return found


def user() -> str:
    """Return the user's name, or number where a container has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def command(*more: str, without: str = "") -> str:
    """Return the command line that started this process, ready to be pasted.

    Args:
        more: Words to be added, if the command line has not got them.
        without: A key whose override is left out.
    """
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    # A package is run by its __main__, which nobody types.
    name = spec.name.removesuffix(".__main__") if spec else ""
    if Path(sys.argv[0]) == Path(__file__).parents[1] / "run.py":
        # Called from a notebook or a script, with words of its own.
        name = "fmnist_lab.run"
    program = ["python", "-m", name] if name else ["python", sys.argv[0]]
    added = [word for word in more if word not in sys.argv]
    given = [word for word in sys.argv[1:] if not without or word.partition("=")[0] != without]
    return shlex.join([*program, *given, *added])


def run_command(words: Sequence[str]) -> str:
    """Return the command line that makes a run, ready to be pasted.

    Args:
        words: Hydra's flags and overrides.
    """
    return shlex.join(["python", "-m", "fmnist_lab.run", *words])


def _git(*arguments: str) -> str | None:
    package = Path(__file__).resolve().parents[1]
    if not (package.parent / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(package), *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
