"""Experiment-tracked research on Fashion-MNIST and the gap between seen and new images.

The Python API has its names here; each imports what it needs when it is used. docs/python.md
describes it.

    import fmnist_lab as lab

    run = lab.run("model.hidden_units=256", "trainer.epochs=10", seed=1)
    run.gap, run.history, run.figures
    lab.runs("params.model = 'mlp'").frame()

Attributes:
    __version__: The installed version, such as "0.1.0".
"""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmnist_lab import data as data
    from fmnist_lab import figures as figures
    from fmnist_lab import predict as predict
    from fmnist_lab.api import Run as Run
    from fmnist_lab.api import Runs as Runs
    from fmnist_lab.api import load_data as load_data
    from fmnist_lab.api import run as run
    from fmnist_lab.api import runs as runs
    from fmnist_lab.api import sweep as sweep
    from fmnist_lab.api import train as train
    from fmnist_lab.errors import UserError as UserError

try:
    import fcntl  # noqa: F401  # its locks tell a run that goes on from one whose process is gone
except ImportError:
    _REASON = (
        f"fmnist_lab does not work on this system ({sys.platform}), which cannot lock files as it "
        "needs; it works on Linux, macOS, Google Colab, and on Windows in WSL (wsl --install)"
    )
    # While `python -m` looks for a door; an ImportError would be a traceback.
    if sys.argv[:1] == ["-m"]:
        print(f"error: {_REASON}", file=sys.stderr)
        raise SystemExit(2) from None
    raise ImportError(_REASON) from None

# Names of the API, by the modules that they are in; "" for a module of its own.
_NAMES = {
    **dict.fromkeys(("Run", "Runs", "load_data", "train"), "api"),
    "UserError": "errors",
    **dict.fromkeys(("data", "figures", "predict", "run", "runs", "sweep"), ""),
}
__all__ = list(_NAMES)


class Door(ModuleType):
    """A module that is a function of the API as well, under the same name.

    `import fmnist_lab.run` makes that module the package's attribute `run`, whatever was there. So
    that `lab.run(…)` works nevertheless, the module itself can be called.
    """

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function of `fmnist_lab.api` that has the module's name."""
        return self._function(*args, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        """The function's signature, for help in a notebook."""
        return inspect.signature(self._function)

    @property
    def _function(self) -> Any:
        return getattr(importlib.import_module("fmnist_lab.api"), self.__name__.rpartition(".")[2])

    def __reduce__(self) -> tuple[Any, ...]:
        """Have a function that is pickled for another process name the module, not contain it."""
        return importlib.import_module, (self.__name__,)


def __getattr__(name: str) -> Any:
    """Return a name of the API, or `__version__`, when it is asked for: both take their time."""
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    place = _NAMES.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{place or name}")
    return getattr(module, name) if place else module


def __dir__() -> list[str]:
    """Return the names that can be completed."""
    return sorted({*globals(), *_NAMES, "__version__"})
