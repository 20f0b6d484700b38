"""Launchers and the sources that give out jobs one after the other."""

import pytest
from fake_jobs import FakeRunner
from hydra.core.utils import JobReturn, JobStatus

from fmnist_lab import compat
from fmnist_lab.sweep.launchers import base
from fmnist_lab.sweep.launchers.local_cores import LocalCores
from fmnist_lab.sweep.launchers.ray_cluster import RayOptions


class Source:
    """Gives out jobs; `after` says which become known when a job is over."""

    def __init__(self, jobs, after=(), width=None) -> None:
        self.ready, self.after, self.width = list(jobs), dict(after), width
        self.given, self.ended = [], []

    def next(self):
        if not self.ready:
            return None
        self.given.append(self.ready.pop(0))
        return self.given[-1]

    def over(self, number, result) -> None:
        self.ended.append((number, result.return_value))
        then = self.after.pop(len(self.ended), ())
        for each in then() if callable(then) else then:
            self.ready.append(each)

    def exhausted(self) -> bool:
        return not self.ready


@pytest.fixture
def local_cores(tmp_path, monkeypatch):
    """The launcher with two workers that do fake jobs."""
    launcher = LocalCores(workers=2, threads=1)
    launcher.runner = FakeRunner.of(tmp_path)
    launcher.task = launcher.runner.task
    monkeypatch.chdir(tmp_path)
    return launcher


def test_a_free_worker_goes_on_while_another_is_busy(local_cores, tmp_path):
    """The long job ends only after all short ones, of which one is a second part."""

    def let_the_long_one_end():
        (tmp_path / "go").touch()
        return [(5, ["kill="]), (6, ["value=6"])]

    source = Source(
        [(0, ["wait=go"]), (1, ["value=1"])],
        {1: [(2, ["value=2"])], 2: [(1, ["value=1.5"])], 3: let_the_long_one_end},
    )
    local_cores.stream(source)
    numbers = [number for number, _ in source.ended]
    assert numbers[:3] == [1, 2, 1]
    assert sorted(numbers[3:]) == [0, 5, 6]
    ended = dict(source.ended)  # the second part of job 1
    assert [ended[number]["value"] for number in (0, 1, 2, 6)] == [0.0, 1.5, 2.0, 6.0]
    assert "SIGKILL" in ended[5]["failure"]
    short = {value["worker"] for number, value in source.ended[:3]}
    assert len(short) == 1
    assert short != {ended[0]["worker"]}


def test_a_source_without_jobs_starts_no_worker(local_cores, monkeypatch):
    monkeypatch.setattr("fmnist_lab.sweep.launchers.local_cores._Worker", None)
    local_cores.stream(Source([]))
    source = base.JobList({})
    local_cores.stream(source)
    assert source.results == {}


class OneByOne:
    """A launcher of somebody else's, which takes lists; its job 2 raises."""

    def __init__(self) -> None:
        self.calls = []

    def launch(self, job_overrides, initial_job_idx):
        self.calls.append((initial_job_idx, job_overrides))
        (overrides,) = job_overrides
        if initial_job_idx == 2:
            failed = ValueError("no such model")
            return [JobReturn(overrides=overrides, status=JobStatus.FAILED, _return_value=failed)]
        return [compat.job_return(overrides, {"value": 1.0})]


def test_a_foreign_launcher_gets_lists_of_one(monkeypatch):
    monkeypatch.setattr(base, "ASK_AGAIN_SECONDS", 0.0)
    source = Source([(7, ["a=1"])], {1: [(2, ["a=2"])], 2: [(7, ["a=3"])]})
    nothing_yet = [None, None]
    give = source.next
    monkeypatch.setattr(source, "next", lambda: nothing_yet.pop() if nothing_yet else give())
    launcher = OneByOne()
    base.stream(launcher, source)
    assert launcher.calls == [(7, [["a=1"]]), (2, [["a=2"]]), (7, [["a=3"]])]
    assert source.ended == [
        (7, {"value": 1.0}),
        (2, {"failure": "ValueError: no such model"}),
        (7, {"value": 1.0}),
    ]


def test_a_list_is_queued_as_a_whole_and_a_search_as_far_as_there_is_room(local_cores):
    local_cores.options = RayOptions.model_construct(workers=None)
    assert local_cores.places(base.JobList({0: [], 1: []}), lambda: 1) == float("inf")
    assert local_cores.places(Source([]), lambda: 8) == 8
    assert local_cores.places(Source([], width=3), lambda: 8) == 3
    assert local_cores.places(Source([]), lambda: 0) == 1
    local_cores.options = RayOptions.model_construct(workers=2)
    assert local_cores.places(base.JobList({0: [], 1: [], 2: []}), lambda: 8) == 2
