"""`fmnist-lab`, the one command for all doors, as the shell sees it."""

import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import fmnist_lab
from fmnist_lab import __main__


@pytest.fixture
def fmnist_lab_command(hydra_here, capsys, monkeypatch):
    """A function that runs the command in this process and returns what it prints."""

    def call(*words: str, typed: str | None = None) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["/usr/bin/fmnist-lab", *words])
            if typed is not None:
                patch.setenv("COMP_LINE", typed)
            __main__.main()
        return capsys.readouterr().out

    return call


def test_the_script_is_the_one_that_is_tested():
    project = Path(fmnist_lab.__file__).parents[1] / "pyproject.toml"
    if not project.exists():
        pytest.skip("the tests do not run from a checkout")
    scripts = tomllib.loads(project.read_text())["project"]["scripts"]
    assert scripts == {"fmnist-lab": "fmnist_lab.__main__:main"}
    entry = metadata.EntryPoint("fmnist-lab", scripts["fmnist-lab"], "console_scripts")
    assert entry.load() is __main__.main


@pytest.mark.parametrize("words", [["-sc"], ["run", "-sc"], ["run", "--shell-completion"]])
def test_the_shell_is_told_to_ask_the_command(fmnist_lab_command, words):
    said = fmnist_lab_command(*words, "install=bash")
    assert said.endswith("complete -o nospace -o default -F hydra_bash_completion fmnist-lab\n")


@pytest.mark.parametrize(
    ("typed", "completions"),
    [
        ("fmnist-lab ", "run runs predict audit benchmark"),
        ("fmnist-lab ru", "run runs predict audit benchmark"),
        ("fmnist-lab run trainer.ep", "trainer.epochs="),
        ("fmnist-lab run seed=1 model=c", "model=cnn"),
        ("fmnist-lab runs li", ""),
    ],
)
def test_what_is_typed_is_completed(fmnist_lab_command, typed, completions):
    assert fmnist_lab_command("-sc", "query=bash", typed=typed).strip() == completions
