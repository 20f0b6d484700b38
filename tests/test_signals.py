"""Signals to end are acted on once, where it does no harm, and never forgotten."""

import os
import signal

import pytest

from fmnist_lab.errors import Terminated, ended_by, reported
from fmnist_lab.system import signals


def signalled(number: signal.Signals, done: list[str], error: Exception | None = None) -> None:
    with signals.noted() as check:
        check()
        os.kill(os.getpid(), number)
        done.append("what comes after")
        if error:
            raise error


@pytest.mark.parametrize(
    ("number", "raised"),
    [
        (signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, Terminated),
        (signal.SIGHUP, Terminated),
    ],
)
def test_a_signal_after_the_last_look_is_acted_on_at_the_end(number, raised):
    done: list[str] = []
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(raised) as caught:
        signalled(number, done)
    with pytest.raises(SystemExit) as end, reported():
        raise caught.value
    assert end.value.code == 128 + number
    assert (
        ended_by(caught.value) == f"ended by {'Ctrl-C' if number == signal.SIGINT else number.name}"
    )
    assert done == ["what comes after"]
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)] == before


def test_a_failure_is_not_hidden_by_a_signal():
    with pytest.raises(ValueError, match="this"):
        signalled(signal.SIGINT, [], ValueError("this"))


def test_a_closed_window_that_is_told_twice_is_no_impatience():
    """By the kernel, and by the shell that was told as well."""
    done: list[str] = []
    with pytest.raises(Terminated):
        hung_up_twice(done)
    assert len(done) == 2


def hung_up_twice(done: list[str]) -> None:
    with signals.noted():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
            done.append("a step of the ending")


def test_what_is_ignored_at_the_start_stays_ignored():
    """By nohup, or by a shell for what it starts in the background."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in signals.ENDING}
    try:
        with signals.handled(signals.terminate), signals.noted():
            for number in signals.ENDING:
                os.kill(os.getpid(), number)
                assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
