"""Ctrl-C, SIGTERM and SIGHUP, acted on where it does no harm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn

from fmnist_lab.errors import Terminated

# SIGHUP tells that the terminal is gone: a closed window, a dropped ssh. Windows has none.
ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


def terminate(number: int, frame: object) -> NoReturn:
    """Handle a signal by an exception, so that a run ends in order.

    Args:
        number: The signal's number.
        frame: The frame in which it arrived, as for `signal.signal`.

    Raises:
        KeyboardInterrupt: `Terminated` for all but Ctrl-C.
    """
    raise _interruption(number)


@contextmanager
def handled(handler: Any) -> Iterator[None]:
    """Handle the signals that end a program by a function, except those that are ignored.

    `nohup` has SIGHUP ignored, and a shell SIGINT in what it starts in the background.

    Args:
        handler: As for `signal.signal`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, handler)
        for number in ENDING
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def ignored() -> AbstractContextManager[None]:
    """Ignore the signals that end a program, while things are left in their right state."""
    return handled(signal.SIG_IGN)


@contextmanager
def noted() -> Iterator[Callable[[], None]]:
    """Turn a signal that ends a program into an exception at the next good place.

    A second signal raises at once.

    An exception raised by the handler itself is lost if Python happens to be in a callback of
    its garbage collector, and the run would go on.

    Yields:
        A function that raises if there was a signal; it is called once more at the end.
    """
    received: list[KeyboardInterrupt] = []

    def check() -> None:
        if received:
            raise received[0]

    def note(number: int, _: object) -> None:
        check()
        received.append(_interruption(number))

    with handled(note):
        yield check
    # A signal after the last look must not be forgotten: a sweep would go on.
    check()


def _interruption(number: int) -> KeyboardInterrupt:
    if number == getattr(signal, "SIGHUP", None):
        # The kernel and the shell both tell that a window was closed, which is no second signal.
        signal.signal(number, signal.SIG_IGN)
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)
