"""A Slurm cluster of two nodes on loopback, with or without accounting."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from .servers import folder, free_ports, listens, need, output, server, succeeds, wait_for

CONFIGURATION = """
ClusterName=fmnist_lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=1,sched_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=1 RealMemory=5000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=1 RealMemory=5000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""

ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting}
AccountingStoragePass={folder}/munge.socket
JobAcctGatherType=jobacct_gather/linux
"""

DATABASE_DAEMON = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoInAddrAny
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounting}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass=slurm
"""


@dataclass(frozen=True)
class Slurm:
    """A cluster of two nodes, n1 and n2, of one processor each."""

    env: dict[str, str]

    def command(self, *words: str) -> str:
        """Return what one of Slurm's commands prints."""
        return output(*words, env=os.environ | self.env)


@contextmanager
def slurm(*, accounting: bool) -> Iterator[Slurm]:
    """Start munged, slurmctld, two slurmd and, for accounting, MariaDB and slurmdbd."""
    need("slurmctld slurmd slurm-client munge", "slurmctld", "slurmd", "sbatch", "munged")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons are started by root only")
    with ExitStack() as stack:
        home = stack.enter_context(folder())
        names = ("controller", "n1", "n2", "accounting", "database")
        values = dict(zip(names, free_ports(len(names)), strict=True))
        filled = {"folder": home, "host": socket.gethostname().partition(".")[0], **values}
        configuration = home / "slurm.conf"
        text = CONFIGURATION + (ACCOUNTING if accounting else "")
        configuration.write_text(text.format(**filled))
        env = {"SLURM_CONF": str(configuration)}

        def start(*command: object) -> None:
            log = home / f"{Path(str(command[0])).name}.log"
            stack.enter_context(server(*command, log=log, env=os.environ | env))

        (home / "munge.key").write_bytes(os.urandom(1024))
        (home / "munge.key").chmod(0o600)
        files = [f"--{each}={home}/munge.{each}" for each in ("socket",)]
        files += [f"--{each}-file={home}/munge.{each}" for each in ("key", "pid", "log", "seed")]
        start("munged", "--foreground", "--force", *files)
        wait_for((home / "munge.socket").exists, "munged is up")
        if accounting:
            _start_accounting(home, filled, start)
        for each in ("state", "n1", "n2"):
            (home / each).mkdir()
        start("slurmctld", "-D")
        for node in ("n1", "n2"):
            start("slurmd", "-D", "-N", node)
        cluster = Slurm(env)
        idle = ("sinfo", "--noheader", "--states=idle", "--format=%D")
        ready = lambda: succeeds(*idle, env=os.environ | env) and "2" in cluster.command(*idle)  # noqa: E731
        wait_for(ready, "two nodes are idle", log=home / "slurmctld.log")
        try:
            yield cluster
        finally:
            # Jobs are no children of the daemons, and would outlive them.
            succeeds("scancel", "--me", env=os.environ | env)
            empty = lambda: not cluster.command("squeue", "--noheader").strip()  # noqa: E731
            wait_for(empty, "no job runs")


def _start_accounting(home: Path, filled: Mapping[str, object], start: Callable[..., None]) -> None:
    need("slurmdbd mariadb-server", "slurmdbd", "mariadbd", "mariadb-install-db")
    data = home / "mariadb"
    as_root = ["--no-defaults", "--user=root", f"--datadir={data}"]
    output("mariadb-install-db", *as_root, "--auth-root-authentication-method=normal")
    (home / "init.sql").write_text(
        "create user slurm@'127.0.0.1' identified by 'slurm';\n"
        "grant all on slurm_acct_db.* to slurm@'127.0.0.1';\n"
    )
    port = int(str(filled["database"]))
    start(
        "mariadbd",
        *as_root,
        "--bind-address=127.0.0.1",
        f"--port={port}",
        f"--socket={home}/mariadb.socket",
        f"--init-file={home}/init.sql",
        "--innodb-flush-log-at-trx-commit=0",
    )
    wait_for(lambda: listens(port), "MariaDB answers", log=home / "mariadbd.log")
    daemon = home / "slurmdbd.conf"
    daemon.write_text(DATABASE_DAEMON.format(**filled))
    daemon.chmod(0o600)
    start("slurmdbd", "-D")
    port = int(str(filled["accounting"]))
    wait_for(lambda: listens(port), "slurmdbd answers", log=home / "slurmdbd.log")
