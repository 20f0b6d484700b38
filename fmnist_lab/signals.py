"""Ctrl-C and SIGTERM, acted on where it does no harm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from fmnist_lab.errors import Terminated


def terminate(number: int, frame: object) -> NoReturn:
    """Handle SIGTERM by an exception, so that what was begun is ended in order.

    Raises:
        Terminated: Always.
    """
    raise Terminated


@contextmanager
def noted() -> Iterator[Callable[[], None]]:
    """Turn Ctrl-C and SIGTERM into an exception at the next good place, or at once if repeated.

    An exception raised by the handler itself is lost if Python happens to be in a callback of
    its garbage collector, and the run would go on.

    Yields:
        A function that raises if there was a signal; it is called once more at the end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    received: list[type[KeyboardInterrupt]] = []

    def check() -> None:
        if received:
            raise received[0]

    def note(number: int, _: object) -> None:
        check()
        received.append(Terminated if number == signal.SIGTERM else KeyboardInterrupt)

    before = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    # One that came after the last look is not to be forgotten: a sweep would go on.
    check()
