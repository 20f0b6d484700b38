"""How many threads take the steps, on machines that are only imagined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

STEP = 40e-6


@pytest.fixture
def crews(backend):
    """The module, which TensorFlow is imported with."""
    from fmnist_lab.engines import crew

    return crew


def quiet(threads: int) -> float:
    """Seconds a step where every thread has a core of its own."""
    return STEP * 1.1**threads * 8 / threads


def crowded(free: int) -> Callable[[int], float]:
    """Seconds a step where more threads than there are free cores wait for each other."""
    return lambda threads: quiet(threads) if threads <= free else 15 * STEP * threads


class Machine:
    """Takes a crew's steps, at a pace that can change."""

    def __init__(
        self, crew: Any, pace: Callable[[int], float], steps_an_epoch: int = 10**9
    ) -> None:
        self.crew, self.pace, self.epoch = crew, pace, steps_an_epoch
        self.left = steps_an_epoch
        self.slices: list[tuple[int, float]] = []

    def run(self, seconds: float) -> None:
        """Work for so long, epoch after epoch."""
        while seconds > 0:
            granted, threads = self.crew.next()
            assert granted > 0
            assert 1 <= threads <= self.crew.most
            step = self.pace(threads)
            steps = min(int(granted / step) + 1, self.left)
            self.crew.took(steps, steps * step)
            self.slices.append((threads, steps * step))
            self.left = (self.left - steps) or self.epoch
            seconds -= steps * step

    def share(self, threads: int) -> float:
        """Of the time so far, how much was worked with so many threads."""
        total = sum(seconds for _, seconds in self.slices)
        return sum(seconds for with_, seconds in self.slices if with_ == threads) / total


@pytest.mark.parametrize("cores", [2, 3, 8])
def test_where_nothing_is_in_the_way_all_threads_work_nearly_all_the_time(crews, cores):
    machine = Machine(crews.Crew(cores), quiet)
    machine.run(0.2)
    assert machine.share(cores) > 0.85
    machine.run(20)
    assert machine.share(cores) > 0.985


@pytest.mark.parametrize(("cores", "free"), [(2, 1), (8, 7), (8, 3), (4, 1)])
def test_where_cores_are_taken_there_are_soon_no_more_threads_than_are_free(crews, cores, free):
    machine = Machine(crews.Crew(cores), crowded(free))
    machine.run(0.3)
    assert machine.crew.size == free
    machine.slices.clear()
    machine.run(10)
    assert machine.share(free) > 0.9


def test_threads_come_back_when_the_cores_do(crews):
    machine = Machine(crews.Crew(4), quiet)
    machine.run(2)
    for free in (1, 4, 2, 3):
        machine.pace = crowded(free)
        machine.run(4)
        assert machine.crew.size == free


def test_a_single_moment_of_disturbance_is_over_soon(crews):
    machine = Machine(crews.Crew(2), quiet)
    machine.run(2)
    machine.pace = crowded(1)
    machine.run(0.03)
    machine.pace = quiet
    machine.run(0.6)
    assert machine.crew.size == 2


@pytest.mark.parametrize("epoch", [1, 7, 1875])
@pytest.mark.parametrize("free", [1, 2])
def test_epochs_shorter_than_a_trial_are_no_hindrance(crews, epoch, free):
    machine = Machine(crews.Crew(2), crowded(free), epoch)
    machine.run(2)
    assert machine.crew.size == free
    assert machine.share(free) > 0.95


@pytest.mark.parametrize("step", [1e-5, 0.02, 3.0])
def test_no_slice_keeps_a_person_waiting_longer_than_a_step_does(crews, step):
    machine = Machine(crews.Crew(2), lambda threads: step / threads)
    machine.run(20 * max(step, 0.1))
    assert max(seconds for _, seconds in machine.slices) <= crews.SLICE_SECONDS + step


def test_one_thread_is_not_compared_with_anything(crews):
    machine = Machine(crews.Crew(1), quiet)
    machine.run(3)
    assert {threads for threads, _ in machine.slices} == {1}
    assert machine.slices[0][1] == pytest.approx(crews.SLICE_SECONDS, rel=0.01)
