"""Where a result came from: code version, library versions, machine."""

from __future__ import annotations

import getpass
import os
import platform
import shlex
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

LIBRARIES = ("fmnist_lab", "tensorflow", "keras", "numpy", "mlflow")

# What a cluster tells a job of where it is.
CLUSTER = {
    "slurm.job": "SLURM_JOB_ID",
    "slurm.node": "SLURMD_NODENAME",
    "ray.task": "FMNIST_LAB_RAY_TASK",
    "ray.node": "FMNIST_LAB_RAY_NODE",
}


def tags() -> dict[str, str]:
    """Return what identifies code, libraries and machine, as MLflow tags.

    The names that MLflow's own UI understands are used where there are any. The commit is that
    of the checkout the package is imported from; an installed wheel has none.
    """
    found = {
        "mlflow.source.name": command(),
        "mlflow.source.type": "LOCAL",
        "mlflow.user": user(),
        "host": socket.gethostname(),
        "version.python": platform.python_version(),
        **{f"version.{library}": metadata.version(library) for library in LIBRARIES},
        **{tag: os.environ[name] for tag, name in CLUSTER.items() if os.environ.get(name)},
    }
    commit = _git("rev-parse", "HEAD")
    if commit:
        found["mlflow.source.git.commit"] = commit
        found["git.dirty"] = str(bool(_git("status", "--porcelain"))).lower()
    return found


def user() -> str:
    """Return the user's name, or number where a container has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def command(*more: str) -> str:
    """Return the command line that started this process, ready to be pasted.

    Args:
        more: Words to be added, unless they are there.
    """
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    # A package is run by its __main__, which nobody types.
    name = spec.name.removesuffix(".__main__") if spec else ""
    program = ["python", "-m", name] if spec else ["python", sys.argv[0]]
    added = [word for word in more if word not in sys.argv]
    return shlex.join([*program, *sys.argv[1:], *added])


def _git(*arguments: str) -> str | None:
    package = Path(__file__).resolve().parent
    if not (package.parent / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(package), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
