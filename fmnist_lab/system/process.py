"""The begin and the end of our programs, and the state of a process that is somebody else's.

Four tricks make our programs start and end sooner. They are used in a process that is `ours`, never
in a notebook or a script that calls this package. The figures are CPU seconds (user and system) on
two cores of an AMD EPYC of the fourth generation (family 25, model 17) under Python 3.11, medians
of interleaved rounds. A run of 2 epochs of 1,000 images takes 8.2 s of them, nearly all for
imports.

- `os._exit` at the end, in `run`: Python does not take thousands of modules apart. It saves 1.7 s
  per program (1.2 to 2.3, 5 rounds).
- `GC_THRESHOLDS`, in `run`: TensorFlow, Keras and MLflow are half a million objects that stay, and
  with the usual thresholds Python's collector walks through them again and again while they arrive.
  It saves 1.3 s per run (0.8 to 2.0, 5 rounds).
- `hidden`, around the import of Keras in `training.runtime`: its optional imports of scikit-learn
  and `matplotlib.pyplot` fail. It saves 0.5 s (0.2 to 0.7, 3 rounds) and 62 MB per run.
- `gc.freeze` after the import of TensorFlow, in `training.runtime`: a full collection takes 0.04 s
  instead of 0.30 s (3 rounds). There is one whenever a process meets another architecture after the
  fourth, as in a sweep over widths.

A fifth trick is for every process, in `training.runtime`: the variable TF_XLA_FLAGS makes XLA keep
its compiled programs. A later run of the same network by the engine `xla` takes 7.9 s instead of
9.4 s and 82 MB less (2 rounds).

Fewer heaps of the C library (`mallopt`) saved nothing: 9 more networks compiled by XLA took 52 MB
with two heaps, and 53 MB without that limit.

The standard streams are replaced too, in `streams.secure`. That saves no time: it keeps a run alive
whose terminal is gone or whose disk is full.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import logging
import os
import random
import sys
import types
from collections.abc import Callable, Iterator

from fmnist_lab import compat
from fmnist_lab.errors import reported
from fmnist_lab.system import cache, streams

# Python's own are (700, 10, 10).
GC_THRESHOLDS = (100_000, 50, 50)

# Whether this process was started for one of our programs, and not for a notebook or a script.
ours = False


def run(main: Callable[[], object], *, keeps: bool = False) -> None:
    """Run a program and end the process with it, unless the process is a notebook's (`%run -m`).

    At the end, threads are waited for and the functions registered with `atexit` are called, as
    always. Only then the process ends, at once.

    Args:
        main: The program.
        keeps: Whether its work is kept elsewhere than on standard output, so that a full disk
            there is a remark and not a failure.

    Raises:
        SystemExit: With the program's exit code; 2 if its work was its output, which is lost.
    """
    global ours
    if in_ipython():
        main()
        return
    ours = True
    gc.set_threshold(*GC_THRESHOLDS)
    streams.secure()
    with reported():
        cache.find_home()
    status: int | str | None = "not ended"

    def leave() -> None:
        if status is None or isinstance(status, int):
            logging.shutdown()
            streams.flush()
            os._exit(status or 0)

    # The function that is registered first is called last.
    atexit.register(leave)
    try:
        main()
        status = None
    except SystemExit as end:
        status = end.code
    if not status and _is_lost(keeps):
        status = 2
    sys.exit(status)


def _is_lost(keeps: bool) -> bool:
    """Return whether a program's work is lost because it could not be printed, and say so."""
    streams.flush()
    fault = streams.faults.get(1)
    # A reader that has left, such as `head`, has seen enough.
    if fault is None or fault.errno in (errno.EPIPE, errno.EBADF):
        return False
    said = f"standard output cannot be written: {fault.strerror}"
    print(f"{said}; the work went on without it" if keeps else f"error: {said}", file=sys.stderr)
    return not keeps


def in_ipython() -> bool:
    """Return whether this process is a notebook's kernel, or IPython in a terminal."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


@contextlib.contextmanager
def hidden(*modules: str, always: bool = False) -> Iterator[None]:
    """Make imports of modules fail for a while, in a process that is `ours`.

    Args:
        modules: Their names.
        always: Whether to do so in a process of another program, too.
    """
    missing = [module for module in modules if (always or ours) and module not in sys.modules]
    sys.modules.update(dict.fromkeys(missing))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for module in missing:
            sys.modules.pop(module, None)


@contextlib.contextmanager
def script_hidden() -> Iterator[None]:
    """Have a process that is spawned meanwhile not execute this process' script again.

    Python would, so that what a script defines can be unpickled there, and a script that makes a
    sweep would make it again in each worker. Workers of ours need nothing of a script.
    """
    main = sys.modules["__main__"]
    if not ours:
        sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def variables_kept(*names: str) -> Iterator[None]:
    """Put environment variables back at the end, whatever has been done to them."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def store_as_found() -> Iterator[None]:
    """Put back at the end which store MLflow's functions use, in a process that is not `ours`."""
    if ours:
        yield
        return
    mlflow = sys.modules.get("mlflow")
    store = mlflow.get_tracking_uri() if mlflow else None
    with variables_kept("MLFLOW_TRACKING_URI"):
        try:
            yield
        finally:
            if (mlflow := sys.modules.get("mlflow")) and mlflow.get_tracking_uri() != store:
                mlflow.set_tracking_uri(store)


@contextlib.contextmanager
def left_as_found() -> Iterator[None]:
    """Put back at the end what a job changes of a process that is not `ours`.

    These are the standard streams, the states of Python's and NumPy's random number generators, the
    store that MLflow's functions use, and the levels of its loggers.
    """
    if ours:
        yield
        return
    streams, drawn = (sys.stdout, sys.stderr), random.getstate()
    numpy, mlflow = sys.modules.get("numpy"), "mlflow" in sys.modules
    drawn_by_numpy = numpy.random.get_state() if numpy else None
    levels = {name: logging.getLogger(name).level for name in compat.MLFLOW_LOGGERS if mlflow}
    with store_as_found(), variables_kept("MLFLOW_EXPERIMENT_ID"):
        # `mlflow.set_experiment` has set it, for the store that MLflow's functions use.
        os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = streams
            random.setstate(drawn)
            if numpy:
                numpy.random.set_state(drawn_by_numpy)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
