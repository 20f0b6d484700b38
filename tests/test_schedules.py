"""Learning-rate schedules: the rate of each step, by hand."""

import math

import numpy as np
import pytest

from fmnist_lab import schedules


@pytest.fixture(scope="module", autouse=True)
def _started(backend):
    """TensorFlow runs from here on."""


def rates(schedule, steps: int) -> list[float]:
    return [float(schedule(np.int64(step))) for step in range(steps)]


def test_a_constant_rate_stays():
    assert schedules.constant(0.3, steps=10) == 0.3


def test_a_cosine_falls_from_the_peak_towards_its_end():
    """The last step is three quarters of the way; a fifth would be there."""
    found = rates(schedules.cosine(0.2, steps=4, final=0.1), 5)
    half = [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(5)]
    assert found == pytest.approx([0.2 * (0.9 * each + 0.1) for each in half], rel=1e-5)
    assert found[0] == pytest.approx(0.2)
    assert found[4] == pytest.approx(0.02)


def test_one_cycle_rises_in_a_line_before_it_falls():
    found = rates(schedules.cosine(1.0, steps=10, warmup=0.4, start=0.2), 10)
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8], rel=1e-5)
    half = [(1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert found[4:] == pytest.approx(half, rel=1e-5)


def test_a_warm_up_rises_in_a_line_and_stays():
    found = rates(schedules.warmup(0.8, steps=40, warmup=0.1), 7)
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8], rel=1e-6)
