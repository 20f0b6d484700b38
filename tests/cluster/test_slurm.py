"""Sweeps on a real Slurm of two nodes: they come out as at home, whatever happens to a job."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from doors import Doors

from fmnist_lab.sweep.launchers import slurm_queue
from fmnist_lab.sweep.launchers.slurm import SlurmOptions

from .servers import wait_for
from .slurm import Slurm, slurm
from .sweeps import IN_TWO_PARTS, LIMITS, LONG, SEARCH, TWELVE, TWO, Swept

pytestmark = pytest.mark.cluster

ON_SLURM = ("-m", "tracking=server", "hydra/launcher=slurm", "hydra.launcher.mem_gb=2")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    pytest.importorskip("submitit", reason="pip install 'fmnist_lab[slurm]'")
    with slurm(accounting=True) as started:
        yield started


@pytest.fixture
def env(cluster, tracking_server) -> dict[str, str]:
    return cluster.env | tracking_server.env


def worker_of(job: str) -> int:
    """Return the id of the process that does a Slurm job's work."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            mine = f"SLURM_JOB_ID={job}".encode() in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if mine and b"submitit.core._submit" in words and b"python" in words[0]:
            return int(process.name)
    pytest.fail(f"no process does Slurm job {job}")


def test_a_sweep_is_the_same_on_two_nodes(doors: Doors, env, client, baseline, tmp_path):
    done = doors.start("run", tmp_path, *ON_SLURM, *TWELVE, "tracking.experiment=slurm", **env)
    assert (done.wait(900), done.err) == (0, "")
    swept = Swept(client, "slurm")
    assert swept.parent.info.status == "FINISHED"
    assert swept.states() == [(number, "FINISHED") for number in range(12)]
    assert swept.tags("slurm.node").keys() == {"n1", "n2"}
    assert len(swept.tags("slurm.job")) == 12
    assert swept.figures() == baseline
    assert not list(tmp_path.rglob("*.pkl"))


def test_jobs_in_two_parts_are_the_same_on_two_nodes(
    doors: Doors, cluster, env, client, baseline, tmp_path, monkeypatch
):
    """As a search has them done: paused, and submitted again as places become free."""
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    options = SlurmOptions.model_construct(partition="main", cpus_per_task=1)
    # The jobs of the test before may be on their way out.
    end = time.monotonic() + 120
    while slurm_queue.idle(options) < 2 and time.monotonic() < end:
        time.sleep(0.5)
    assert slurm_queue.idle(options) == 2
    words = (*ON_SLURM, *TWO, "tracking.experiment=slurm-parts")
    done = doors.python(tmp_path, IN_TWO_PARTS, *words, **env)
    assert (done.code, done.err) == (0, "")
    swept = Swept(client, "slurm-parts")
    assert swept.states() == [(number, "FINISHED") for number in range(2)]
    assert len(swept.tags("slurm.node")) == 2
    figures = swept.figures()
    assert figures == {each: baseline[each] for each in figures}
    assert not list(tmp_path.rglob("*.pkl"))


def test_a_search_ends_as_at_home_on_two_nodes(doors: Doors, env, client, searched, tmp_path):
    done = doors.start("run", tmp_path, *ON_SLURM, *SEARCH, "tracking.experiment=search", **env)
    assert (done.wait(900), done.err) == (0, "")
    swept = Swept(client, "search")
    assert swept.parent.info.status == "FINISHED"
    assert swept.kinds() == searched.kinds()
    assert swept.trials() == searched.trials()
    assert not list(tmp_path.rglob("*.pkl"))


@pytest.mark.parametrize("accounting", [True, False], ids=["accounting", "no-accounting"])
def test_a_killed_worker_costs_its_job_a_moment(
    doors: Doors, request, tracking_server, client, tmp_path, accounting
):
    experiment = f"slurm-killed-{accounting}"
    if accounting:
        env = request.getfixturevalue("env")
        kill_one(doors, env, client, tmp_path, experiment)
        return
    with slurm(accounting=False) as started:
        kill_one(doors, started.env | tracking_server.env, client, tmp_path, experiment)


def kill_one(doors, env, client, folder, experiment) -> None:
    place = f"tracking.experiment={experiment}"
    sweep = doors.start("run", folder, *ON_SLURM, *LONG, place, **env)
    training = lambda: Swept(client, experiment).training()  # noqa: E731
    wait_for(training, "a job has trained for an epoch", 240)
    victim = training()[0]
    os.kill(worker_of(victim.data.tags["slurm.job"]), signal.SIGKILL)
    assert sweep.wait(600) == 0, sweep.err
    assert "is submitted again" in sweep.out
    swept = Swept(client, experiment)
    assert swept.states() == [(0, "FINISHED"), (1, "FINISHED"), (2, "FINISHED")]
    # It went on, under its own id, from where it was.
    assert victim.info.run_id in {child.info.run_id for child in swept.children}


def test_ctrl_c_empties_the_queue_and_resume_finishes_the_sweep(
    doors: Doors, cluster, env, client, tmp_path
):
    words = (*ON_SLURM, *LONG, "tracking.experiment=slurm-interrupted")
    sweep = doors.start("run", tmp_path, *words, **env)
    running = lambda: len(Swept(client, "slurm-interrupted").training()) == 2  # noqa: E731
    wait_for(running, "two jobs train", 240)
    sweep.kill(signal.SIGINT)
    assert sweep.wait(60) == 130
    assert "What was queued is cancelled. Still running, and left to finish: Slurm job" in sweep.err
    assert not cluster.command("squeue", "--noheader", "--states=PENDING").strip()
    again = doors("run", tmp_path, *words, "resume=true", **env)
    assert "jobs of this sweep still run" in again.error
    empty = lambda: not cluster.command("squeue", "--noheader").strip()  # noqa: E731
    wait_for(empty, "the running jobs are over", 240)
    again = doors.start("run", tmp_path, *words, "resume=true", **env)
    assert again.wait(600) == 0, again.err
    swept = Swept(client, "slurm-interrupted")
    assert swept.states() == [(0, "FINISHED"), (1, "FINISHED"), (2, "FINISHED")]


def test_a_closed_terminal_ends_a_sweep_as_killed(doors: Doors, cluster, env, client, tmp_path):
    words = (*ON_SLURM, *LONG, "tracking.experiment=slurm-hung-up")
    sweep = doors.start("run", tmp_path, *words, **env)
    running = lambda: len(Swept(client, "slurm-hung-up").training()) == 2  # noqa: E731
    wait_for(running, "two jobs train", 240)
    sweep.kill(signal.SIGHUP)
    assert sweep.wait(60) == 128 + signal.SIGHUP
    assert "What was queued is cancelled. Still running, and left to finish: Slurm job" in sweep.err
    assert not cluster.command("squeue", "--noheader", "--states=PENDING").strip()
    parent = Swept(client, "slurm-hung-up").parent
    assert (parent.info.status, parent.data.tags["failure"]) == ("KILLED", "ended by SIGHUP")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("cpus_per_task=2", "received cpus_per_task=2, mem_gb=2, gpus_per_node=0, which no node"),
        ("gpus_per_node=1", "expected no more than that"),
        ("partition=night", "partition night"),
        ("timeout_min=61", "received 61, expected at most 60, the time limit of the cluster"),
    ],
)
def test_what_no_node_has_is_refused_at_once(doors: Doors, env, tmp_path, asked, said):
    words = (*ON_SLURM, "seed=0,1", *LIMITS, f"hydra.launcher.{asked}")
    assert said in doors("run", tmp_path, *words, **env).error


def test_what_slurm_itself_refuses_is_said_in_a_line(doors: Doors, env, client, tmp_path):
    words = (*ON_SLURM, "seed=0,1", *LIMITS, "hydra.launcher.constraint=water-cooled")
    done = doors("run", tmp_path, *words, "tracking.experiment=slurm-refused", **env)
    assert done.code == 2
    assert "Slurm refuses the jobs: sbatch: error: " in done.err.splitlines()[-1]
    assert Swept(client, "slurm-refused").parent.info.status == "FAILED"
