"""Hydra's own flags: which words of a command line are flags, and which flags go together."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from importlib import metadata

from fmnist_lab import compat
from fmnist_lab.config import files, messages
from fmnist_lab.config.nearest import nearest
from fmnist_lab.errors import UserError

# Hydra takes one of these at a time.
COMMANDS = ("run", "multirun", "cfg", "info", "shell_completion")
SHELLS = ("bash", "fish", "zsh")
# Short flags of other programs whose key does not follow from the letter.
LETTERS = {"e": "trainer.epochs", "b": "trainer.batch_size", "s": "seed"}


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return Hydra's flags and the overrides, which may stand before, between and after them.

    Args:
        words: The command line.

    Raises:
        UserError: A word with dashes is no flag, or a flag's value or company is wrong.
        SystemExit: 0 after --version.
    """
    parser = _parser()
    words = [word for word in words if word != "--"]
    # An override after it is not its value.
    for place, after in enumerate(words[1:]):
        if words[place] in ("-i", "--info") and "=" in after:
            words[place] = "--info=all"
    try:
        args, others = parser.parse_known_intermixed_args(words)
    except argparse.ArgumentError as error:
        raise UserError(_refused(parser, error, words)) from None
    for word in (*others, *args.overrides):
        if word.startswith("-") and len(word) > 1:
            raise UserError(_dashed(parser, word, words))
    _check(args)
    if args.hydra_help:
        # Hydra composes its own part alone.
        args.overrides = [word for word in args.overrides if word.lstrip("+~").startswith("hydra")]
        args.resolve = False
    return args


def given(words: Sequence[str]) -> list[str]:
    """Return the flags that say where configs are, for other commands that need the same ones.

    Args:
        words: A command line that `parse` has accepted.

    >>> given(["-m", "--config-dir", "mine", "seed=0,1"])
    ['--config-dir=mine']
    """
    args = parse(words)
    values = {name: getattr(args, name) for name in ("config_path", "config_dir", "config_name")}
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value]


def _parser() -> argparse.ArgumentParser:
    parser = compat.hydra_parser()
    # "--e 5" is a key without its name, not the beginning of --experimental-rerun.
    parser.allow_abbrev = False
    parser.exit_on_error = False
    version = compat.flags_of(parser)["--version"]
    ours = metadata.version("fmnist_lab")
    version.version = f"fmnist_lab {ours}, {version.version}"  # type: ignore[attr-defined]
    return parser


def _refused(
    parser: argparse.ArgumentParser, error: argparse.ArgumentError, words: Sequence[str]
) -> str:
    """Return the sentence about a flag whose value is missing, or one that it does not take."""
    names = str(error.argument_name).split("/")
    action = compat.flags_of(parser)[names[-1]]
    if found := re.search(r"invalid choice: '(.*)' \(", error.message):
        received = found[1]
    elif "expected one argument" in error.message:
        received = "no value"
    else:
        # Such as -model=cnn, which begins with the letter of a flag that takes no value.
        word = next((w for w in words if w.startswith(names[-1])), names[0])
        return _dashed(parser, word, words)
    choices = ", ".join(action.choices or ())
    expected = f"one of {choices}" if choices else f"a value, {names[0]}={(action.dest).upper()}"
    return f"{names[0]}: received {received}, expected {expected}"


def _dashed(parser: argparse.ArgumentParser, word: str, words: Sequence[str]) -> str:
    """Return the sentence about a word with dashes that is no flag: most likely an override."""
    name, equals, value = word.lstrip("-").partition("=")
    after = words[words.index(word) + 1 :] if word in words else []
    if not equals and after and not after[0].startswith("-") and "=" not in after[0]:
        value = after[0]
    known, flags = files.whole_keys(), list(compat.flags_of(parser))
    is_group = re.fullmatch(r"\w+(/\w+)*", name) and files.options(name)
    is_key = name in known or bool(is_group)
    if not is_key and (near := nearest(name, flags, cutoff=0.8)):
        return f"{word}: unknown flag; did you mean {near}?"
    key = name if is_key else LETTERS.get(name)
    meant = [key] if key else messages.meant(name)
    if len(meant) == 1:
        usual = "true" if known.get(meant[0]) is False else "VALUE"
        form = messages.typed(f"{meant[0]}={value or usual}")
    else:
        form = (
            f"{messages.typed(f'key={value}') if value else 'key=VALUE'}, such as trainer.epochs=5"
        )
    return f"{word}: unknown flag; an override has no dashes: write {form}"


def _check(args: argparse.Namespace) -> None:
    """Refuse flags that mean nothing alone, or nothing together."""
    for name in ("config_path", "config_dir", "config_name", "package"):
        if getattr(args, name) == "":
            raise UserError(f"--{name.replace('_', '-')}: received '', expected a name")
    if args.experimental_rerun is not None:
        raise UserError(
            f"--experimental-rerun: received {args.experimental_rerun}, but this program keeps no "
            "pickled configs; a run is done again by python -m fmnist_lab.runs reproduce RUN, or "
            "by --config-name FILE with its config.yaml"
        )
    if args.help or args.hydra_help:
        return
    given = [
        f"--{name.replace('_', '-')}"
        for name in COMMANDS
        if getattr(args, name) not in (None, False)
    ]
    if len(given) > 1:
        cure = "; a config is that of one run, so choose one value per key and leave out -m"
        raise UserError(
            f"{given[0]}: received together with {' and '.join(given[1:])}, expected one of them"
            f"{cure if given[0] == '--multirun' and args.cfg else ''}"
        )
    if args.resolve and not args.cfg:
        raise UserError("--resolve: received without --cfg, expected --cfg job --resolve")
    if args.package is not None and not args.cfg:
        raise UserError(
            f"--package: received without --cfg, expected --cfg job --package {args.package}"
        )
    if args.shell_completion:
        _check_completion(args.overrides)


def _check_completion(overrides: Sequence[str]) -> None:
    forms = [f"{verb}={shell}" for verb in ("install", "uninstall", "query") for shell in SHELLS]
    if len(overrides) != 1 or overrides[0] not in forms:
        received = " ".join(overrides) or "nothing"
        raise UserError(
            f"--shell-completion: received {received}, expected install=SHELL or uninstall=SHELL "
            f"alone, with one of the shells {', '.join(SHELLS)}"
        )
    if overrides[0].startswith("query") and "COMP_LINE" not in os.environ:
        raise UserError(
            f"--shell-completion: {overrides[0]} is a question of a shell while you type; expected "
            "install=SHELL"
        )
