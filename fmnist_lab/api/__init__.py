"""The Python API: the command line's verbs as functions, and its results as objects.

`fmnist_lab` has the same names, so that a program imports that. A function here does what the
command of its name does, raises `UserError` where that ends with an error, and returns what that
leaves in the store: a `Run`, or a collection of them, `Runs`.
"""

from fmnist_lab.api.collection import Runs
from fmnist_lab.api.commands import load_data, run, sweep
from fmnist_lab.api.lookup import runs
from fmnist_lab.api.record import Predictions, Run
from fmnist_lab.api.training import train

__all__ = ["Predictions", "Run", "Runs", "load_data", "run", "runs", "sweep", "train"]
