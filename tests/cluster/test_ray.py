"""Sweeps on a real Ray of two nodes: they come out as at home, whatever happens to a node."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from doors import Doors, Process

from .ray_nodes import Ray, ray_cluster
from .servers import wait_for
from .sweeps import IN_TWO_PARTS, LIMITS, LONG, SEARCH, TWELVE, TWO, Swept

pytestmark = pytest.mark.cluster

ON_RAY = ("-m", "tracking=server", "hydra/launcher=ray_cluster")
THREE = [(0, "FINISHED"), (1, "FINISHED"), (2, "FINISHED")]


@pytest.fixture(scope="module")
def ray(real_data: Path) -> Iterator[Ray]:
    with ray_cluster() as started:
        yield started


@pytest.fixture
def cluster(ray: Ray) -> Ray:
    ray.complete()
    return ray


def run(doors: Doors, cluster: Ray, folder: Path, *words: str) -> Process:
    """Start a sweep inside the namespace."""
    return doors.start("run", folder, *words, prefix=cluster.inside.enter, **cluster.env)


def test_a_sweep_is_the_same_on_two_nodes(doors: Doors, cluster, baseline, tmp_path):
    done = run(doors, cluster, tmp_path, *ON_RAY, *TWELVE, "tracking.experiment=ray")
    assert done.code == 0, done.err
    swept = Swept(cluster.client, "ray")
    assert swept.parent.info.status == "FINISHED"
    assert swept.states() == [(number, "FINISHED") for number in range(12)]
    assert len(swept.tags("ray.node")) == 2
    assert len(swept.tags("ray.task")) == 12
    assert swept.figures() == baseline


def test_jobs_in_two_parts_are_the_same_on_two_nodes(doors: Doors, cluster, baseline, tmp_path):
    """As a search has them done: paused, and handed to Ray again as places become free."""
    words = (*ON_RAY, *TWO, "tracking.experiment=ray-parts")
    inside = cluster.inside.enter
    done = doors.python(tmp_path, IN_TWO_PARTS, *words, prefix=inside, **cluster.env)
    assert done.code == 0, done.err
    swept = Swept(cluster.client, "ray-parts")
    assert swept.states() == [(number, "FINISHED") for number in range(2)]
    figures = swept.figures()
    assert figures == {each: baseline[each] for each in figures}


def test_a_search_ends_as_at_home_on_two_nodes(doors: Doors, cluster, searched, tmp_path):
    done = run(doors, cluster, tmp_path, *ON_RAY, *SEARCH, "tracking.experiment=ray-search")
    assert done.code == 0, done.err
    swept = Swept(cluster.client, "ray-search")
    assert swept.parent.info.status == "FINISHED"
    assert swept.kinds() == searched.kinds()
    assert swept.trials() == searched.trials()


def test_a_killed_worker_costs_its_job_a_moment(doors: Doors, cluster, tmp_path):
    words = (*ON_RAY, *LONG, "tracking.experiment=ray-worker")
    sweep = run(doors, cluster, tmp_path, *words)
    training = lambda: Swept(cluster.client, "ray-worker").training()  # noqa: E731
    wait_for(training, "a job has trained for an epoch", 240)
    number = Swept(cluster.client, "ray-worker").number(training()[0])
    (victim,) = [each for each, name in cluster.workers().items() if f"job {number}" in name]
    os.kill(victim, signal.SIGKILL)
    assert sweep.wait(300) == 0, sweep.err
    assert "A job whose process or node was lost is started again." in sweep.out
    assert Swept(cluster.client, "ray-worker").states() == THREE


def test_ctrl_c_cancels_what_waits_and_what_runs(doors: Doors, cluster, tmp_path):
    words = (*ON_RAY, *LONG, "tracking.experiment=ray-interrupted")
    sweep = run(doors, cluster, tmp_path, *words)
    running = lambda: len(Swept(cluster.client, "ray-interrupted").training()) == 2  # noqa: E731
    wait_for(running, "two jobs train", 240)
    sweep.kill(signal.SIGINT)
    assert sweep.wait(60) == 130
    assert "were cancelled" in sweep.err
    assert not cluster.workers()
    states = [state for _, state in Swept(cluster.client, "ray-interrupted").states()]
    assert states == ["KILLED", "KILLED"]
    again = run(doors, cluster, tmp_path, *words, "resume=true")
    assert again.code == 0, again.err
    assert Swept(cluster.client, "ray-interrupted").states() == THREE


def test_a_closed_terminal_cancels_what_waits_and_what_runs(doors: Doors, cluster, tmp_path):
    sweep = run(doors, cluster, tmp_path, *ON_RAY, *LONG, "tracking.experiment=ray-hung-up")
    running = lambda: len(Swept(cluster.client, "ray-hung-up").training()) == 2  # noqa: E731
    wait_for(running, "two jobs train", 240)
    sweep.kill(signal.SIGHUP)
    assert sweep.wait(60) == 128 + signal.SIGHUP
    assert "were cancelled" in sweep.err
    assert not cluster.workers()
    swept = Swept(cluster.client, "ray-hung-up")
    assert [state for _, state in swept.states()] == ["KILLED", "KILLED"]
    parent = swept.parent
    assert (parent.info.status, parent.data.tags["failure"]) == ("KILLED", "ended by SIGHUP")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("num_cpus=2", "received num_cpus=2, mem_gb=0, num_gpus=0, which no node of the Ray"),
        ("num_gpus=1", "0 GPUs"),
        ("address=127.0.0.1:6398", "where no Ray cluster answers"),
    ],
)
def test_what_no_node_has_is_refused_at_once(doors: Doors, cluster, tmp_path, asked, said):
    words = (*ON_RAY, "seed=0,1", *LIMITS, f"hydra.launcher.{asked}")
    refused = run(doors, cluster, tmp_path, *words)
    assert refused.code == 2
    # Before it, Ray remarks that there is no network beyond loopback.
    *remarks, line = refused.err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert all("Failed to determine local IP" in remark for remark in remarks)


def test_a_lost_node_costs_its_jobs_a_moment(doors: Doors, cluster, tmp_path):
    words = (*ON_RAY, *LONG, "tracking.experiment=ray-node")
    sweep = run(doors, cluster, tmp_path, *words)
    running = lambda: len(Swept(cluster.client, "ray-node").training()) == 2  # noqa: E731
    wait_for(running, "a job trains on each node", 240)
    cluster.kill_second_node()
    assert sweep.wait(300) == 0, sweep.err
    assert Swept(cluster.client, "ray-node").states() == THREE
