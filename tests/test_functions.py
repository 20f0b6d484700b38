"""Functions that describe themselves: the config reads their options from their signatures."""

import sys
from types import ModuleType

import pytest

from fmnist_lab.config import naming
from fmnist_lab.config.fields import Section
from fmnist_lab.config.functions import (
    Buildable,
    Own,
    OwnModel,
    OwnOptimizer,
    function_section,
    is_built_in,
    section_of,
)
from fmnist_lab.config.schema import check_section
from fmnist_lab.errors import UserError

RECURRENT = """
from __future__ import annotations
from typing import TYPE_CHECKING, Literal
from fmnist_lab.config.fields import Count
if TYPE_CHECKING:
    import keras

Kind = Literal["a", "b"]

def lstm(image_shape, classes, units: Count = 64, kind: Kind = "a", n: int = 3) -> keras.Model:
    return image_shape, classes, units, kind, n
"""
TARGET = "fmnist_lab.models.recurrent.lstm"


@pytest.fixture
def lstm(monkeypatch) -> type[Buildable]:
    """The class of a model in a new module, whose annotations are texts and name Keras."""
    module = ModuleType("fmnist_lab.models.recurrent")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(RECURRENT, module.__dict__)
    yield function_section("model", TARGET)
    function_section.cache_clear()


def refusal(section: type[Section], prefix: str = "model.", **node: object) -> str:
    with pytest.raises(UserError) as caught:
        check_section(section, node, prefix)
    return str(caught.value)


def test_options_have_the_types_bounds_and_defaults_of_the_signature(lstm):
    node = check_section(lstm, {"_target_": TARGET, "units": 8}, "model.")
    assert node.arguments() == {"units": 8, "kind": "a", "n": 3}
    assert node.build(image_shape=(28, 28), classes=10) == ((28, 28), 10, 8, "a", 3)
    assert naming._function("model", TARGET) == "lstm"
    assert is_built_in("model", TARGET)
    assert not is_built_in("schedule", TARGET)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"units": 0}, "model.units: received 0, expected a whole number, 1 or more"),
        ({"unit": 8}, "model.unit: unknown key, expected one of _target_, units, kind, n; did you"),
        ({"classes": 8}, "model.classes: unknown key, expected one of _target_, units, kind, n"),
        ({"n": "x"}, "model.n: received 'x', expected a valid integer"),
        ({"kind": "A"}, "did you mean model.kind=a?"),
    ],
)
def test_what_does_not_fit_a_signature_is_refused_in_words(lstm, option, said):
    assert said in refusal(lstm, _target_=TARGET, **option)


@pytest.mark.parametrize(
    "target",
    [
        *("own.model", "fmnist_lab.models.nope", "fmnist_lab.models.dense", "fmnist_lab.models."),
        *("fmnist_lab.models.os.system", "fmnist_lab.run.main", "", "fmnist_lab.models"),
        *("fmnist_lab.models.residual.partial", "fmnist_lab.models.dense.Annotated"),
    ],
)
def test_any_other_function_may_have_any_arguments(target):
    assert function_section("model", target) is OwnModel
    assert function_section("schedule", target) is Own
    assert not is_built_in("model", target)


@pytest.mark.parametrize(
    ("name", "option", "expected"),
    [
        ("Lion", {"beta_1": 1}, "a number from 0 up to, not including, 1, or null"),
        ("RMSprop", {"centered": 1}, "true, false or null"),
        ("Adam", {"epsilon": 0}, "a finite number above 0, or null"),
    ],
)
def test_arguments_of_keras_optimizers_have_the_same_bounds_in_all(name, option, expected):
    target = f"keras.optimizers.{name}"
    node = {"_target_": target, "learning_rate": 0.1, **option}
    section = section_of("optimizer", node)
    assert f"expected {expected}" in refusal(section, "optimizer.", **node)
    assert section_of("optimizer", {**node, "_target_": "own.Lion"}) is OwnOptimizer
