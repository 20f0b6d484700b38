"""`python -m fmnist_lab` and `fmnist-lab`: lists the commands, and runs the one that is named."""

from __future__ import annotations

import os
import runpy
import sys

from fmnist_lab.errors import UserError, reported

COMMANDS = {
    "run": "train a network, or many with -m, and keep all about it",
    "runs": "list, compare, report on and look at the runs that were kept",
    "predict": "classify images with the model of a run",
    "audit": "look for near duplicates and wrong labels in a data set",
    "benchmark": "measure how fast all this is on this machine",
}
COMPLETION = ("-sc", "--shell-completion")


def main() -> None:
    """List the commands, or run the one that the first word names."""
    with reported():
        words = sys.argv[1:]
        if not words or words[0] in ("-h", "--help"):
            lines = (f"  python -m fmnist_lab.{name:<11}{does}" for name, does in COMMANDS.items())
            print("fmnist_lab is used by these commands, each of which has --help:\n")
            print("\n".join(lines))
            print('\n"fmnist-lab run" is short for "python -m fmnist_lab.run", and so on.')
        elif words[0] == "run" and words[1:2] and words[1] in COMPLETION:
            del sys.argv[1]
            _complete()
        elif words[0] in COMMANDS:
            # The command receives the words after its name.
            del sys.argv[1]
            runpy.run_module(f"fmnist_lab.{words[0]}", run_name="__main__", alter_sys=True)
        elif words[0] in COMPLETION:
            _complete()
        else:
            raise UserError(_unknown(words[0]))


def _unknown(word: str) -> str:
    from fmnist_lab.config.nearest import nearest  # not for --help, as it imports the schema

    near = nearest(word, COMMANDS)
    cure = f"did you mean {near}?" if near else "overrides are for python -m fmnist_lab.run"
    return f"received {word}, expected one of {', '.join(COMMANDS)}; {cure}"


def _complete() -> None:
    """Answer a shell that completes `fmnist-lab run …`, or print the code that makes it ask.

    Hydra expects the overrides right after the program's name, so `run` is taken out of the line.
    The arguments of the other commands are not completed.
    """
    typed = os.environ.get("COMP_LINE")
    if typed is not None:
        program, _, rest = typed.partition(" ")
        command, space, overrides = rest.lstrip().partition(" ")
        if not space:
            print(" ".join(COMMANDS))
            return
        if command != "run":
            return
        os.environ["COMP_LINE"] = f"{program} {overrides}"
    from fmnist_lab.run import main as run

    run()


if __name__ == "__main__":
    main()
