"""How many threads share a training's work, found out while they do it."""

from __future__ import annotations

import math

# A core that is taken away is given back after about 3 ms; a trial is to see some of that.
TRIAL_SECONDS = 0.005
# Long enough that trials in between cost nothing, short enough for a live display and Ctrl-C.
SLICE_SECONDS = 0.5
# A trial is short, and a little luck is not to change anything.
WORTH_IT = 0.9


class Crew:
    """Threads that wait for each other many times a second: as many as are fastest just now.

    One that has to share its core, with another program or with a thread of this one, keeps all
    the others waiting, so that fewer would be faster. After each slice of time, one thread fewer or
    more is tried for a moment; slices get longer while that is of no use.

    Args:
        most: How many threads there may be.
    """

    def __init__(self, most: int) -> None:
        self.most = self.size = most
        self._slice = TRIAL_SECONDS if most > 1 else SLICE_SECONDS
        self._pace = math.inf
        self._trial = 0
        self._towards = -1
        self._steps, self._seconds = 0, 0.0

    def next(self) -> tuple[float, int]:
        """Return how many seconds to work now, and with how many threads."""
        return self._length() - self._seconds, self._trial or self.size

    def took(self, steps: int, seconds: float) -> None:
        """Learn how many steps were taken, in about the time that `next` said or an epoch's end."""
        self._steps += steps
        self._seconds += seconds
        if self._seconds < self._length():
            return
        pace = self._seconds / self._steps
        self._steps, self._seconds = 0, 0.0
        if not self._trial:
            self._pace = pace
            self._trial = self._neighbour()
            return
        if pace < WORTH_IT * self._pace:
            self.size, self._slice = self._trial, TRIAL_SECONDS
        else:
            self._towards = -self._towards
            self._slice = min(2 * self._slice, SLICE_SECONDS)
        self._trial = 0

    def _length(self) -> float:
        return TRIAL_SECONDS if self._trial else self._slice

    def _neighbour(self) -> int:
        """Return one thread more or fewer, in the direction that was not in vain last time.

        0 if there is only one thread, which nothing can be compared with.
        """
        if self.most == 1:
            return 0
        other = self.size + self._towards
        return other if 1 <= other <= self.most else self.size - self._towards
