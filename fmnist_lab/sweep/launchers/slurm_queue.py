"""The answers of Slurm's own commands: the size of its nodes, and the states of its jobs.

`squeue` is asked rather than `sacct`, so that a cluster without accounting does as well.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from fmnist_lab.errors import UserError
from fmnist_lab.sweep.launchers.checks import check_size

if TYPE_CHECKING:
    from fmnist_lab.sweep.launchers.slurm import SlurmOptions

COMMANDS = ("sbatch", "squeue", "scancel", "sinfo")
OUT_OF_SERVICE = ("down", "drain", "fail", "unk", "inval", "future", "powering_down")
GONE = "GONE"  # from the queue, minutes after its end
# Ends that another try may mend.
ACCIDENTS = ("FAILED", "NODE_FAIL", "BOOT_FAIL", "PREEMPTED", GONE)
# A job that waits for one of these will have its turn.
PATIENCE = ("None", "Resources", "Priority", "JobArrayTaskLimit", "BeginTime", "Dependency")
OVER = ("COMPLETED", "CANCELLED", "DEADLINE", "OUT_OF_MEMORY", "TIMEOUT", *ACCIDENTS)


class Row(NamedTuple):
    """A job in the queue: its state, why it is in it, its nodes, its name."""

    state: str
    reason: str
    nodes: str
    name: str


ROW = "%i|%T|%r|%N|%j"


def check(options: SlurmOptions) -> None:
    """Refuse a request that no node could meet: it would wait in the queue for ever.

    Raises:
        UserError: Slurm is not there or does not answer, or its nodes are too small.
    """
    if missing := [each for each in COMMANDS if not shutil.which(each)]:
        raise UserError(
            f"hydra/launcher=slurm: there is no {', '.join(missing)} here; start the sweep where "
            "Slurm's commands are, such as on a login node"
        )
    words = ["sinfo", "--noheader", "--Node", "--format=%c|%m|%G|%T|%l"]
    where = "the cluster"
    if options.partition:
        words.append(f"--partition={options.partition}")
        where = f"partition {options.partition}"
    try:
        lines = _ask(*words).splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        said = " ".join(str(getattr(error, "stderr", None) or error).split())
        raise UserError(f"hydra/launcher=slurm: Slurm does not answer: {said}") from None
    rows = [line.split("|") for line in lines]
    rows = [row for row in rows if not row[3].lower().startswith(OUT_OF_SERVICE)]
    if not rows:
        raise UserError(f"hydra/launcher=slurm: no node of {where} is in service; see sinfo")
    longest = max(minutes(row[4]) for row in rows)
    if options.timeout_min > longest:
        raise UserError(
            f"hydra.launcher.timeout_min: received {options.timeout_min}, expected at most "
            f"{longest:.0f}, the time limit of {where}"
        )
    wanted = {
        "cpus_per_task": options.cpus_per_task,
        "mem_gb": options.mem_gb or 0,
        "gpus_per_node": options.gpus_per_node or 0,
    }
    nodes = [(int(row[0]), int(row[1]) / 1024, gpus(row[2])) for row in rows]
    check_size(wanted, nodes, f"{where} in service")


def idle(options: SlurmOptions) -> int:
    """Return how many jobs the idle processors of the partition, or of the cluster, can do."""
    words = ["sinfo", "--noheader", "--Node", "--format=%N|%C|%T"]
    if options.partition:
        words.append(f"--partition={options.partition}")
    # A node of several partitions has a line for each. %C: allocated/idle/other/all
    nodes = {
        node: parts for line in _ask(*words).splitlines() for node, *parts in [line.split("|")]
    }
    return sum(
        int(processors.split("/")[1]) // options.cpus_per_task
        for processors, state in nodes.values()
        if not state.lower().startswith(OUT_OF_SERVICE)
    )


def minutes(limit: str) -> float:
    """Return a time limit as Slurm writes it, such as 2-00:00:00, 1:00:00 or infinite."""
    if ":" not in limit:
        return float("inf")
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, rest, seconds = [0] * (3 - len(parts)) + parts
    return (int(days or 0) * 24 + hours) * 60 + rest + seconds / 60


def gpus(gres: str) -> int:
    """Return how many GPUs a node has by its generic resources, such as gpu:a100:4(S:0-1)."""
    return sum(int(count) for count in re.findall(r"\bgpu(?::[\w.-]+)?:(\d+)", gres))


def ended(rows: Mapping[str, Row], jobs: Mapping[int, str]) -> dict[int, str]:
    """Return the states of those jobs that are over.

    Args:
        rows: The result of `listed`.
        jobs: Slurm's ids, such as 17_3, by number.
    """
    states = {number: rows[job].state if job in rows else GONE for number, job in jobs.items()}
    return {number: state for number, state in states.items() if state in OVER}


def obstacles(rows: Mapping[str, Row], jobs: Iterable[str]) -> dict[str, int]:
    """Return why jobs wait that do not just wait for their turn, with how many those are."""
    waiting = (rows[job] for job in jobs if job in rows and rows[job].state == "PENDING")
    return Counter(row.reason for row in waiting if row.reason not in PATIENCE)


def running(name: str) -> list[str]:
    """Return my jobs of a name that are queued or run, such as "17_3 on n1"."""
    return [
        f"{job} on {row.nodes}" if row.nodes else job
        for job, row in sorted((listed() or {}).items())
        if row.name == name and row.state not in OVER
    ]


def cancel(name: str) -> str:
    """Cancel my jobs of a name that have not begun; return a sentence on that and on the others."""
    command = ["scancel", "--quiet", "--me", "--state=PENDING", f"--name={name}"]
    subprocess.run(command, timeout=60, check=False)
    if left := running(name):
        return (
            "What was queued is cancelled. Still running, and left to finish: Slurm job "
            f"{', '.join(left)}; scancel --name={name} ends them."
        )
    return "What was queued is cancelled; Slurm has no more jobs of this sweep."


def listed() -> dict[str, Row] | None:
    """Return my jobs by id, those of the last minutes included; None if Slurm does not answer."""
    try:
        lines = _ask("squeue", "--me", "--states=all", "--array", "--noheader", f"--format={ROW}")
    except (OSError, subprocess.SubprocessError):
        return None
    rows = (line.split("|", 4) for line in lines.splitlines())
    return {job: Row(*row) for job, *row in rows}


def _ask(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", timeout=60, check=True
    )
    return done.stdout
