"""How many threads share a training's work, found out while they do it."""

from __future__ import annotations

import itertools
import math

from fmnist_lab.engines.recipe import SLICE_SECONDS

# A core that is taken away is given back after about 3 ms; a trial is to see some of that.
TRIAL_SECONDS = 0.005
# How many times a trial's own time is worked before it: at first, and when all have been in vain
# time and again.
FIRST_PAUSE, LONGEST_PAUSE = 8, 128
# A trial is short, and a little luck is not to change anything.
CLEARLY_FASTER = 0.95


class Team:
    """Threads that wait for each other several times a step: as many as are fastest just now.

    One that has to share its core, with another program or with a thread of this one, keeps all
    the others waiting, so that fewer would be faster. Other numbers are tried in turn, each for a
    moment: one fewer than all, and the powers of two; the more rarely, the longer it is of no use.

    Args:
        limit: How many threads there may be.
    """

    def __init__(self, limit: int) -> None:
        self.size = limit
        powers = {2**power for power in range(limit.bit_length())}
        self._sizes = sorted({limit, max(1, limit - 1), *powers}, reverse=True)
        self._turns = itertools.cycle(self._sizes)
        self._in_vain = 0
        # The number to be tried next, and whether that is under way.
        self._other, self._trying = limit, False
        self._step_seconds = math.inf
        self._pause = FIRST_PAUSE
        # With one thread there is nothing to be tried.
        self._planned = TRIAL_SECONDS if limit > 1 else math.inf
        self._steps, self._seconds = 0, 0.0

    def next(self) -> tuple[float, int]:
        """Return how many seconds to work now, and with how many threads."""
        left = min(SLICE_SECONDS, self._planned - self._seconds)
        return left, self._other if self._trying else self.size

    def took(self, steps: int, seconds: float) -> None:
        """Learn how long some steps took, in seconds: those that `next` led to."""
        self._steps += steps
        self._seconds += seconds
        if self._seconds < self._planned:
            return
        step_seconds = self._seconds / self._steps
        self._steps, self._seconds = 0, 0.0
        if self._trying:
            if step_seconds < CLEARLY_FASTER * self._step_seconds:
                self.size, self._step_seconds = self._other, step_seconds
                self._pause, self._in_vain = FIRST_PAUSE, 0
            else:
                self._in_vain += 1
                if self._in_vain % (len(self._sizes) - 1) == 0:
                    self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._plan_trial()
        elif self._step_seconds == math.inf:
            # What comes first is slow: memory is touched for the first time.
            self._step_seconds = step_seconds
            self._plan_trial()
        else:
            self._step_seconds = step_seconds
            self._trying, self._planned = True, TRIAL_SECONDS

    def _plan_trial(self) -> None:
        """Choose what to try next, and how long to work before that."""
        self._other = next(size for size in self._turns if size != self.size)
        step = self._step_seconds * self.size / self._other
        self._trying, self._planned = False, self._pause * max(TRIAL_SECONDS, step)
