"""Experiment-tracked research on Fashion-MNIST and the gap between seen and new images.

Attributes:
    __version__: The installed version, such as "0.1.0".
"""

import sys

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


def __getattr__(name: str) -> str:
    """Return `__version__` when it is asked for, as reading metadata takes its time."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version(__name__)
