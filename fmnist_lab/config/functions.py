"""Nodes of a config that name a function or class: models, schedules, optimizers, callbacks.

The options of our models and schedules are read from the signatures of their functions, so that a
new one is a function and a YAML file. Keras' optimizers share the names of their arguments.
"""

from __future__ import annotations

import functools
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, create_model

from fmnist_lab.config.fields import (
    OptionalFlag,
    OptionalPositive,
    OptionalShare,
    Positive,
    Section,
    Target,
)
from fmnist_lab.errors import UserError


class Buildable(Section):
    """A node that names a function in `_target_` and holds its arguments."""

    target: Target
    hint: ClassVar[str] = ""  # a likely cause, for when the function refuses its arguments

    def arguments(self) -> dict[str, Any]:
        """Return the given arguments; null stands for the function's own default."""
        given = self.model_dump(exclude={"target"})
        return {name: value for name, value in given.items() if value is not None}

    def build(self, **context: Any) -> Any:
        """Call the function with its arguments and those that only the program knows.

        Raises:
            UserError: There is no such function, or it does not take these arguments.
        """
        try:
            function = pkgutil.resolve_name(self.target)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(
                f"_target_: received '{self.target}', which cannot be imported ({error}); "
                "expected the dotted name of a function or class that Python can find here"
            ) from None
        given = {**self.arguments(), **context}
        try:
            inspect.signature(function).bind(**given)
            return function(**given)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{self.target} refuses its arguments {given}: {' '.join(str(error).split())}"
                f"{self.hint}"
            ) from error


class Own(Buildable):
    """Any function from outside; `build` checks its arguments against its signature."""

    model_config = ConfigDict(extra="allow")


class OwnModel(Own):
    """A function of the user's that builds a model."""

    hint: ClassVar[str] = "; every option but model=own brings arguments of its own along"


# Groups with functions of ours, the packages of these functions, and the class for other targets.
FUNCTIONS: dict[str, tuple[str, type[Own]]] = {
    "model": ("fmnist_lab.models.", OwnModel),
    "schedule": ("fmnist_lab.schedules.", Own),
}


def is_built_in(group: str, target: str) -> bool:
    """Return whether a target is a function of ours that describes itself.

    Args:
        group: A group of the config, such as "model".
        target: The dotted name of a function.
    """
    return group in FUNCTIONS and not issubclass(function_section(group, target), Own)


@functools.cache
def function_section(group: str, target: str) -> type[Buildable]:
    """Return the class for a node of a group whose functions describe themselves.

    The options of a built-in function are its parameters that have a default, with their types and
    bounds: `dropout: Share = 0.0` is an option. The others are the program's to give.

    Args:
        group: "model" or "schedule".
        target: The function's dotted name. A function that is not ours is not imported, because
            that may take seconds; it may have any arguments.
    """
    package, own = FUNCTIONS[group]
    try:
        function = pkgutil.resolve_name(target) if target.startswith(package) else None
    except (ImportError, AttributeError, ValueError):
        return own
    if not inspect.isfunction(function) or not f"{function.__module__}.".startswith(package):
        return own
    options: dict[str, Any] = {
        name: (parameter.annotation, parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty
    }
    return create_model(target, __base__=Buildable, __module__=function.__module__, **options)


class Optimizer(Buildable):
    """Arguments that every Keras optimizer takes (keras.optimizers.Optimizer)."""

    target: Target = Field(alias="_target_", examples=["keras.optimizers.Lion"])
    learning_rate: Positive
    weight_decay: Annotated[
        float | None, Field(ge=0, description="a finite number, 0 or more, or null")
    ] = None
    clipnorm: OptionalPositive = None
    global_clipnorm: OptionalPositive = None
    clipvalue: OptionalPositive = None
    use_ema: OptionalFlag = None
    ema_momentum: OptionalShare = None


class OwnOptimizer(Optimizer):
    """An optimizer whose other arguments are checked by itself."""

    model_config = ConfigDict(extra="allow")


# Arguments that only some Keras optimizers take, with the same meaning in all of them.
KERAS_ARGUMENTS: dict[str, Any] = {
    **dict.fromkeys(("beta_1", "beta_2", "momentum", "rho"), OptionalShare),
    "epsilon": OptionalPositive,
    **dict.fromkeys(("amsgrad", "centered", "nesterov"), OptionalFlag),
}
ADAM = ("beta_1", "beta_2", "epsilon", "amsgrad")
# The optimizers of our own YAML files take these arguments, and no others.
KNOWN = {"Adam": ADAM, "AdamW": ADAM, "SGD": ("momentum", "nesterov")}


def section_of(group: str, node: Mapping[str, Any]) -> type[Buildable]:
    """Return the class for a node that names a function.

    Args:
        group: "model", "schedule" or "optimizer".
        node: Its values.
    """
    target = str(node.get("_target_", ""))
    if group in FUNCTIONS:
        return function_section(group, target)
    package, _, name = target.rpartition(".")
    if package != "keras.optimizers":
        return OwnOptimizer
    known = KNOWN.get(name, sorted(KERAS_ARGUMENTS.keys() & node))
    return _keras_section(Optimizer if name in KNOWN else OwnOptimizer, tuple(known))


@functools.cache
def _keras_section(base: type[Optimizer], names: tuple[str, ...]) -> type[Optimizer]:
    options: dict[str, Any] = {name: (KERAS_ARGUMENTS[name], None) for name in names}
    return create_model("KerasOptimizer", __base__=base, **options)
