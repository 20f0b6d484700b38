"""Where a result came from: code version, library versions, machine."""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Container, Sequence
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


PACKAGE = Path(__file__).resolve().parents[1]
# The code and its configs alone: other files change no result.
CODE = ("--", ".", ":/conf")
CHANGED = ("diff", "--name-only", "HEAD")
ADDED = ("ls-files", "--others", "--exclude-standard", "--full-name")
# As `git apply` takes it, whatever the user has configured.
DIFF = (
    *("-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false", "diff", "--binary"),
    *("--no-ext-diff", "--no-textconv", "--no-color"),
)
MOST_CHANGES = 2**20  # characters
SECRET = re.compile(
    r"(^|/)(\.env|\.netrc|id_(rsa|dsa|ecdsa|ed25519))|\.(pem|key|p12|pfx|env)$"
    r"|secret|credential|password|token",
    re.IGNORECASE,
)


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
        found["git.dirty"] = str(bool(_git("status", "--porcelain", *CODE))).lower()
    return found


def code_version() -> str:
    """Return eight bytes of a hash of the package's files, to tell if they have changed meanwhile.

    Python may load some of the files later than others, so a process that runs while they change
    has a mixture.
    """
    found = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*")):
        if file.suffix in (".py", ".c", ".h", ".j2", ".yaml") and file.is_file():
            found.update(f"{file.relative_to(PACKAGE)}\0".encode() + file.read_bytes())
    return found.hexdigest()[:16]


def changes() -> str:
    """Return the uncommitted changes of the code and its configs, as `git apply` takes them.

    Files whose names tell that they hold secrets are left out, and all of it if it is larger than
    `MOST_CHANGES`; the first lines say so.

    Returns:
        A patch; "" if nothing has changed, or the package is no checkout.
    """
    named = [_git(*words, "-z", *CODE) or "" for words in (CHANGED, ADDED)]
    changed, added = ([name for name in each.split("\0") if name] for each in named)
    if not changed and not added:
        return ""
    secret = [name for name in (*changed, *added) if SECRET.search(name)]
    parts = [f"# Uncommitted changes of commit {_git('rev-parse', 'HEAD')}.\n"]
    parts += [f"# Left out, as it may hold a secret: {name}\n" for name in secret]
    patches = []
    if known := [f":/{name}" for name in changed if name not in secret]:
        patches.append(_git(*DIFF, "HEAD", "--", *known, strip=False))
    for name in added:
        if name not in secret:
            new = (*DIFF, "--no-index", "/dev/null", name)
            patches.append(_git("-C", str(PACKAGE.parent), *new, strip=False, codes=(0, 1)))
    if None in patches:
        parts.append("# Not all of it: git has failed on a part.\n")
    parts += filter(None, patches)
    if sum(map(len, parts)) > MOST_CHANGES:
        size = f"{sum(map(len, parts)):,} characters, more than {MOST_CHANGES:,}"
        files = "".join(f"# {name}\n" for name in (*changed, *added))
        return f"{parts[0]}# Not kept: {size}. The files:\n{files}"
    return "".join(parts)


def packages() -> str:
    """Return the installed packages with their versions, as `pip install -r` takes them.

    They are read from the names of their folders, which is fifty times as fast as from their
    metadata (https://packaging.python.org/en/latest/specifications/recording-installed-packages).
    The package itself is not among them: the code's commit says more.
    """
    folders = [name for place in sys.path for name in Path(place).glob("*.dist-info")]
    found = {"==".join(folder.stem.split("-", 1)) for folder in folders}
    ours = f"fmnist_lab=={metadata.version('fmnist_lab')}"
    head = f"# Python {platform.python_version()}, {platform.platform()}\n# {ours}\n"
    return head + "".join(f"{each}\n" for each in sorted(found - {ours}, key=str.lower))


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


def _git(*arguments: str, strip: bool = True, codes: Container[int] = (0,)) -> str | None:
    """Return what git prints in the package's folder; None if there is no checkout, or it fails."""
    if not (PACKAGE.parent / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode not in codes:
        return None
    return done.stdout.strip() if strip else done.stdout
