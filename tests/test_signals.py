"""Ctrl-C and SIGTERM are acted on once, where it does no harm, and never forgotten."""

import os
import signal

import pytest

from fmnist_lab import signals
from fmnist_lab.errors import Terminated


def signalled(number: signal.Signals, done: list[str], error: Exception | None = None) -> None:
    with signals.noted() as check:
        check()
        os.kill(os.getpid(), number)
        done.append("what comes after")
        if error:
            raise error


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_a_signal_after_the_last_look_is_acted_on_at_the_end(number, raised):
    done: list[str] = []
    with pytest.raises(raised):
        signalled(number, done)
    assert done == ["what comes after"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_failure_is_not_hidden_by_a_signal():
    with pytest.raises(ValueError, match="this"):
        signalled(signal.SIGINT, [], ValueError("this"))
