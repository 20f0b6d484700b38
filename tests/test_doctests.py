"""The examples in the package's docstrings.

Pytest's --doctest-modules would import every module of the package, TensorFlow with them, to see
whether it has any; here the text tells.
"""

import doctest
import importlib
from pathlib import Path

import pytest

import fmnist_lab

ROOT = Path(fmnist_lab.__file__).parent
WITH_EXAMPLES = sorted(
    file.relative_to(ROOT.parent).with_suffix("").as_posix().replace("/", ".")
    for file in ROOT.rglob("*.py")
    if ">>> " in file.read_text()
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_give_what_they_say(name):
    module = importlib.import_module(name.removesuffix(".__init__"))
    failed, tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert tried
    assert not failed
