"""How many threads take the steps, on machines that are only imagined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

STEP = 40e-6


@pytest.fixture
def tuners(backend):
    """The module, which TensorFlow is imported with."""
    from fmnist_lab.training.engines.native import threads

    return threads


Cost = Callable[[int], float]


def quiet(step: float = STEP) -> Cost:
    """Seconds a step where every thread has a core of its own; each costs a little."""
    return lambda threads: step * (1 / threads + threads / 10_000)


def crowded(free: int) -> Cost:
    """Seconds a step where more threads than there are free cores wait for each other."""
    return lambda threads: quiet()(threads) if threads <= free else 15 * STEP


class Machine:
    """Takes a tuner's steps, at a cost that can change."""

    def __init__(self, tuner: Any, cost: Cost, steps_an_epoch: int = 10**9) -> None:
        self.tuner, self.cost, self.epoch = tuner, cost, steps_an_epoch
        self.left = steps_an_epoch
        self.slices: list[tuple[int, int, float]] = []

    def run(self, seconds: float) -> None:
        """Work for so long, epoch after epoch."""
        while seconds > 0:
            granted, threads = self.tuner.next()
            assert granted > 0
            step = self.cost(threads)
            # None is begun after the time that is granted.
            steps = min(int(granted / step) + 1, self.left)
            self.tuner.took(steps, steps * step)
            self.slices.append((threads, steps, steps * step))
            self.left = (self.left - steps) or self.epoch
            seconds -= steps * step

    def efficiency(self, threads: int) -> float:
        """Of the time so far, how much the same steps would take with so many threads."""
        steps = sum(steps for _, steps, _ in self.slices)
        return steps * self.cost(threads) / sum(seconds for *_, seconds in self.slices)


@pytest.mark.parametrize("step", [40e-6, 8e-3, 0.1, 1.0])
@pytest.mark.parametrize("cores", [2, 3, 8, 64])
def test_where_nothing_is_in_the_way_trials_cost_next_to_nothing(tuners, cores, step):
    """However long a step is: a trial is at least one."""
    machine = Machine(tuners.ThreadTuner(cores), quiet(step))
    best = min(range(1, cores + 1), key=machine.cost)
    long = max(1.0, 20 * step)
    machine.run(long)
    assert machine.efficiency(best) > 0.8
    machine.run(100 * long)
    machine.slices.clear()
    machine.run(100 * long)
    assert machine.efficiency(best) > 0.95


@pytest.mark.parametrize(
    ("cores", "free"), [(2, 1), (3, 2), (4, 1), (8, 7), (8, 4), (8, 1), (16, 8), (64, 2), (64, 63)]
)
def test_where_cores_are_taken_there_are_soon_no_more_threads_than_are_free(tuners, cores, free):
    machine = Machine(tuners.ThreadTuner(cores), crowded(free))
    machine.run(2)
    assert free / 2 < machine.tuner.size <= free


@pytest.mark.parametrize("cores", [2, 4, 6, 8, 16, 64])
def test_threads_come_back_when_the_cores_do(tuners, cores):
    machine = Machine(tuners.ThreadTuner(cores), quiet())
    for free in (1, cores, cores // 2, cores - 1, cores):
        machine.cost = crowded(free)
        machine.run(30)
        machine.slices.clear()
        machine.run(10)
        # Half of the cores need not be a power of two.
        assert machine.efficiency(free) > (0.6 if free == cores // 2 else 0.9)


def test_a_single_moment_of_disturbance_is_over_soon(tuners):
    machine = Machine(tuners.ThreadTuner(2), quiet())
    machine.run(2)
    machine.cost = crowded(1)
    machine.run(0.05)
    machine.cost = quiet()
    machine.run(1)
    assert machine.tuner.size == 2


@pytest.mark.parametrize("epoch", [1, 7, 1875])
@pytest.mark.parametrize("free", [1, 2])
def test_epochs_shorter_than_a_trial_are_no_hindrance(tuners, epoch, free):
    machine = Machine(tuners.ThreadTuner(2), crowded(free), epoch)
    machine.run(2)
    assert machine.tuner.size == free
    assert machine.efficiency(free) > 0.9


@pytest.mark.parametrize("step", [1e-5, 0.02, 3.0])
def test_no_slice_keeps_a_person_waiting_longer_than_a_step_does(tuners, step):
    machine = Machine(tuners.ThreadTuner(2), lambda threads: step / threads)
    machine.run(200 * max(step, 0.1))
    assert max(seconds for *_, seconds in machine.slices) <= tuners.SLICE_SECONDS + step


def test_one_thread_is_not_compared_with_anything(tuners):
    machine = Machine(tuners.ThreadTuner(1), quiet())
    machine.run(3)
    assert {threads for threads, *_ in machine.slices} == {1}
    for _, _, seconds in machine.slices:
        assert seconds == pytest.approx(tuners.SLICE_SECONDS, rel=0.01)


def test_a_first_step_that_is_slow_for_once_is_not_held_against_the_threads(tuners):
    """It touches its memory for the first time."""
    tuner = tuners.ThreadTuner(2)
    tuner.took(1, 10.0)
    for _ in range(20):
        _, threads = tuner.next()
        tuner.took(1, quiet(0.02)(threads))
    assert tuner.size == 2
