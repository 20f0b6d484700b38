"""How our programs begin and end: without Python's pauses for tidying up."""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import logging
import os
import sys
from collections.abc import Callable

# TensorFlow, Keras and MLflow are a million objects that stay, and with Python's own (700, 10, 10)
# its collector walks through them time and again as they arrive: a second of the default job.
COLLECT_AFTER = (100_000, 50, 50)


def run(main: Callable[[], object]) -> None:
    """Run a program, and end the process with it.

    Threads are waited for, and what has been registered for the exit since is done, as always. What
    is left out is that Python takes all modules apart, of which nobody sees anything: a second.
    """
    gc.set_threshold(*COLLECT_AFTER)
    status: int | str | None = "not ended"

    def leave() -> None:
        if status is None or isinstance(status, int):
            logging.shutdown()
            try:
                for stream in (sys.stdout, sys.stderr):
                    # Nobody may be reading any more.
                    with contextlib.suppress(BrokenPipeError, ValueError, AttributeError):
                        stream.flush()
            except OSError as error:
                if error.errno != errno.EBADF:
                    # Such as a full disk: Python complains of it in its own way.
                    return
            os._exit(status or 0)

    # What is registered first is done last.
    atexit.register(leave)
    try:
        main()
        status = None
    except SystemExit as end:
        status = end.code
        raise
