"""The contracts about who imports whom: each of them notices an import that breaks it."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fmnist_lab

PACKAGE = Path(fmnist_lab.__file__).parent
PROJECT = PACKAGE.parent / "pyproject.toml"

pytestmark = pytest.mark.skipif(not PROJECT.exists(), reason="the tests do not run from a checkout")


def contracts() -> dict[str, dict]:
    if not PROJECT.exists():
        return {}
    found = tomllib.loads(PROJECT.read_text())["tool"]["importlinter"]["contracts"]
    return {contract["id"]: contract for contract in found}


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the package and its contracts."""
    shutil.copytree(PACKAGE, tmp_path / "fmnist_lab", ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(PROJECT, tmp_path)
    return tmp_path


def lint(folder: Path, contract: str) -> str:
    """Return what lint-imports says of one contract, which is broken."""
    code = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--contract", contract, "--no-cache"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def file_of(folder: Path, module: str) -> Path:
    path = folder.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def add(folder: Path, module: str, imported: str) -> str:
    """Have a module import another within a function, and return how the linter says so."""
    with file_of(folder, module).open("a") as file:
        file.write(f"\n\ndef _broken():\n    import {imported}\n")
    return f"{module} -> {imported} (l."


@pytest.mark.parametrize("identity", contracts())
def test_a_broken_contract_is_noticed(copied, identity):
    contract = contracts()[identity]
    if contract["type"] == "layers":
        top, bottom = (
            f"fmnist_lab.{layer.split('|')[0].strip(' ()')}"
            for layer in (contract["layers"][1], contract["layers"][-1])
        )
        expected = [add(copied, bottom, top)]
    elif contract["type"] == "acyclic_siblings":
        pair = "fmnist_lab.models.broken_a", "fmnist_lab.models.broken_b"
        add(copied, *pair)
        add(copied, *reversed(pair))
        expected = ["allowed in fmnist_lab.models.", "broken_"]
    else:
        expected = [
            add(copied, contract["source_modules"][0], outside)
            for outside in contract["forbidden_modules"]
        ]
    said = lint(copied, identity)
    assert f"{contract['name']} BROKEN" in " ".join(said.split())
    for part in expected:
        assert part in said
