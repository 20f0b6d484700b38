"""The one exception that means "you can mend this", and how every door reports it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input, a missing file, a store out of reach: anything the user can put right.

    Its message is a single paragraph that names what was received, what was expected and how to
    mend it. Every door prints it alone, without a traceback, and exits non-zero.
    """


class DivergedError(UserError):
    """The loss became nan or infinite."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where the process happened to be, so that it can say goodbye."""


@contextmanager
def reported() -> Iterator[None]:
    """Print a `UserError` as one line and exit, and likewise a file that cannot be used.

    Anything else is a bug and keeps its traceback.

    Raises:
        SystemExit: 2 after one of these; 130 after Ctrl-C and 143 after SIGTERM, the shell's
            128 + signal; 0 if nobody wants to read on.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        # Whoever read what was printed, such as `head`, has seen enough. Python's own last flush
        # must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except OSError as error:
        if not error.filename:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None
    except Terminated:
        raise SystemExit(143) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
