"""The number of threads that is fastest for a training, found while it runs."""

from __future__ import annotations

import itertools
import math

from fmnist_lab.training.engines.recipe import SLICE_SECONDS

# The system gives a core to another program for about 3 ms; a trial should see some of that.
TRIAL_SECONDS = 0.005
# Times of a trial's length to work between two trials: at first, and after many trials that were no
# faster.
FIRST_PAUSE, LONGEST_PAUSE = 8, 128
# A trial is short, so a small difference may be luck and changes nothing.
CLEARLY_FASTER = 0.95


class ThreadTuner:
    """Finds the number of threads that is fastest at the moment.

    Threads wait for each other several times per step. One that has to share its core, with another
    program or with a thread of this one, keeps all others waiting, so that fewer would be faster.
    Other numbers are tried in turn, each for a moment: one fewer than all, and the powers of two.
    Trials become rarer while none of them is faster.

    Args:
        limit: The greatest number of threads.

    Attributes:
        size: The number that has been fastest so far.
    """

    def __init__(self, limit: int) -> None:
        self.size = limit
        powers = {2**power for power in range(limit.bit_length())}
        self._sizes = sorted({limit, max(1, limit - 1), *powers}, reverse=True)
        self._turns = itertools.cycle(self._sizes)
        self._in_vain = 0
        # The number to try next, and whether its trial is under way.
        self._other, self._trying = limit, False
        self._step_seconds = math.inf
        self._pause = FIRST_PAUSE
        # With one thread there is nothing to try.
        self._planned = TRIAL_SECONDS if limit > 1 else math.inf
        self._steps, self._seconds = 0, 0.0

    def next(self) -> tuple[float, int]:
        """Return for how many seconds to work now, and with how many threads."""
        left = min(SLICE_SECONDS, self._planned - self._seconds)
        return left, self._other if self._trying else self.size

    def took(self, steps: int, seconds: float) -> None:
        """Take note of the steps that `next` led to, and of the seconds that they took."""
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
            # The first steps are slow: they touch their memory for the first time.
            self._step_seconds = step_seconds
            self._plan_trial()
        else:
            self._step_seconds = step_seconds
            self._trying, self._planned = True, TRIAL_SECONDS

    def _plan_trial(self) -> None:
        """Choose the number to try next, and how long to work before that."""
        self._other = next(size for size in self._turns if size != self.size)
        step = self._step_seconds * self.size / self._other
        self._trying, self._planned = False, self._pause * max(TRIAL_SECONDS, step)
