"""A check that a model fits into this machine's memory, made before the model is built.

Linux grants more memory than there is, and kills the process that comes to use it.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import keras
import numpy as np

from fmnist_lab.errors import TooLargeError
from fmnist_lab.texts import in_bytes


def check(
    build: Callable[[], keras.Model], optimizer: keras.Optimizer, most: int | None = None
) -> None:
    """Refuse a model whose training needs more memory than the machine has, or that is too large.

    Args:
        build: Builds the model; called once, in a scope in which no weight is allocated.
        optimizer: The optimizer that will train it.
        most: How many parameters it may have; None: any number.

    Raises:
        TooLargeError: There are more parameters, or the weights, the optimizer's state and the
            gradients do not fit.
    """
    parameters = _count_parameters(build)
    if most is not None and parameters > most:
        raise TooLargeError(
            f"model: received {parameters:,} parameters, expected at most {most:,}, as "
            "hydra.sweeper.max_parameters says; choose fewer or smaller layers"
        )
    # The model and the replica that is compiled each have an optimizer beside them.
    copies = 2 * (1 + _slots(optimizer)) + 1
    needed, installed = 4 * parameters * copies, _installed()
    if needed > installed:
        raise TooLargeError(
            f"model: received {parameters:,} parameters, which take {in_bytes(needed)} to train "
            f"with {type(optimizer).__name__}, expected no more than this machine's "
            f"{in_bytes(installed)} of memory; choose fewer or smaller layers"
        )


def _count_parameters(build: Callable[[], keras.Model]) -> int:
    """Return the number of a model's parameters, or 0 if it cannot be built without them."""
    policy, speaks = keras.config.dtype_policy(), keras.config.is_interactive_logging_enabled()
    try:
        with keras.StatelessScope(initialize_variables=False):
            return int(build().count_params())
    except Exception:
        # If the model has a fault, building it in earnest will say so.
        return 0
    finally:
        # Forgets the weights, which Keras would allocate at the end of its next such scope, and
        # the count by which it names layers: the model is then named, and so compiled, like the
        # one of the job before.
        keras.utils.clear_session(free_memory=False)
        # It also forgets what a notebook may have chosen.
        keras.config.set_dtype_policy(policy)
        if not speaks:
            keras.config.disable_interactive_logging()


def _slots(optimizer: keras.Optimizer) -> int:
    """Return how many numbers an optimizer remembers for each parameter."""
    probe = type(optimizer).from_config({**optimizer.get_config(), "learning_rate": 0.0})
    shape = (3,)
    probe.build([keras.Variable(np.zeros(shape, np.float32))])
    return sum(variable.shape == shape for variable in probe.variables)


def _installed() -> int:
    """Return the machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
