"""The door to runs: `python -m fmnist_lab.run`, where Hydra composes and a job is done.

It imports nothing heavy by itself, so that help, completion and a config error answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from hydra import version
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fmnist_lab import Door, compat
from fmnist_lab.config import flags, primary
from fmnist_lab.config.help import usage
from fmnist_lab.config.overrides import check_groups, explained
from fmnist_lab.errors import UserError, raised, reported
from fmnist_lab.sweep import pairs
from fmnist_lab.sweep.task import Task
from fmnist_lab.system import process

TOO_DEEP = "the overrides are nested too deeply, or the defaults list of a config names itself"


def main(*overrides: str) -> None:
    """Compose the config and do its job; exit non-zero if it cannot be done.

    Args:
        overrides: The words after `python -m fmnist_lab.run`, such as "trainer.epochs=3"; without
            any, those of the command line count, unless they started a notebook's kernel.

    Raises:
        SystemExit: It cannot be done, as `errors.reported` has said.
    """
    with _called(overrides) as typed, process.left_as_found(), reported():
        _carry_out(typed, Task())


def call(overrides: Sequence[str], task: Task) -> None:
    """Do what `main` does for a caller in Python, whom errors reach as exceptions.

    Args:
        overrides: The words of a command line.
        task: The task, which afterwards knows its sweep.

    Raises:
        UserError: It cannot be done, for the reason that `main` would print.
        SystemExit: 1 if a job of a sweep has failed.
    """
    with _called(overrides, own=True) as typed, process.left_as_found(), raised():
        try:
            _carry_out(typed, task)
        except SystemExit:
            if task.failure is None:
                raise
            raise task.failure from task.failure.__cause__


def _carry_out(typed: Sequence[str], task: Task) -> None:
    """Compose the config of a command line, and do what it asks for.

    Raises:
        UserError: It cannot be done.
    """
    compat.pass_over_byte_order_marks()
    pairs.add_zip()
    args = flags.parse(typed)
    words = list(args.overrides)
    try:
        folder, name = primary.choose(args, _kept(args))
        if args.help:
            print(usage(folder, name, words, args.config_dir))
        else:
            _hydra(args, folder, name, task)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explained(error, words)) from None
    except (RecursionError, TypeError, ValueError, UserWarning) as error:
        # Hydra has made a config of the command line, so the error is about something else.
        if task.called:
            raise
        if isinstance(error, RecursionError):
            raise UserError(TOO_DEEP) from None
        if isinstance(error, UnicodeDecodeError):
            raise UserError(
                f"a config file of yours is no text in UTF-8 ({error.reason} "
                f"0x{error.object[error.start]:02x} at {error.start}); save it as UTF-8"
            ) from None
        check_groups(words)
        if not _is_hydras(error):
            raise
        raise UserError(explained(error, words)) from None
    finally:
        primary.forget()


def _kept(args: argparse.Namespace) -> dict[str, Any] | None:
    """Return the values of the config that --config-name=runs:/RUN asks for; None if it does not.

    Raises:
        UserError: There is no such run, or its config cannot be used.
    """
    if not str(args.config_name or "").startswith("runs:"):
        return None
    from fmnist_lab.jobs import kept

    places = [word.partition("=")[2] for word in args.overrides if word.startswith("tracking.uri=")]
    return kept.look_up(args.config_name, places[-1].strip("'\"") if places else None)


def _is_hydras(error: Exception) -> bool:
    """Return True if Hydra itself has raised an exception, which is then about the words."""
    place = error.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    module = str(place.tb_frame.f_globals.get("__name__")) if place else ""
    return module.partition(".")[0] in ("hydra", "omegaconf")


def _hydra(args: argparse.Namespace, folder: str, name: str, task: Task) -> None:
    """Have Hydra do what its flags say with a primary config: run, sweep or show it."""
    # Both have been looked up; Hydra would do so again, beside this module.
    args.config_path = args.config_name = None
    version.setbase("1.3")
    if args.hydra_help:
        # Composed without our config, which leaves logging as it is.
        args.overrides = ["hydra/hydra_logging=none", *args.overrides]
    # For a package that is not there, we have a message of our own.
    quiet = contextlib.redirect_stderr(io.StringIO()) if args.package else contextlib.nullcontext()
    try:
        with quiet, warnings.catch_warnings():
            # A folder of configs that is not there, and -m against hydra.mode.
            for about in ("provider=", r"\s+Running Hydra app"):
                warnings.filterwarnings("error", about, UserWarning)
            if args.cfg or args.info or args.hydra_help or args.shell_completion:
                compat.show_hydra(args, folder, name)
            else:
                compat.run_hydra(args, folder, name, task, _driven, pairs.jobs)
    except SystemExit as end:
        if not args.package or not end.code:
            raise
        raise UserError(
            f"--package: received {args.package}, expected a key of the config, for example "
            "--package trainer"
        ) from None


def _driven(composed: DictConfig, task: Task) -> contextlib.AbstractContextManager[None] | None:
    """Return a context in which a driver watches a sweep; None if it is only to be shown."""
    pairs.check_sweeper(composed)
    if composed.get("dry_run"):
        from fmnist_lab.sweep import preview

        preview.show_sweep(composed)
        return None
    from fmnist_lab.sweep.driver import driving

    return driving(composed, task)


@contextlib.contextmanager
def _called(overrides: Sequence[str], *, own: bool = False) -> Iterator[list[str]]:
    """Put the overrides where Hydra looks for them, and put Hydra's own state aside meanwhile.

    Args:
        overrides: The overrides; without any, those of the command line count.
        own: Whether that of the command line is somebody else's in any case.

    Yields:
        The overrides that count.
    """
    argv, hydra_before = sys.argv, GlobalHydra.instance().hydra
    if (
        own
        or overrides
        or (process.in_ipython() and argv[1:] == sys.orig_argv[1:][-len(argv[1:]) :])
    ):
        sys.argv = [__file__, *overrides]
    # A notebook may have called `hydra.initialize`, and there is only one instance of Hydra.
    GlobalHydra.instance().clear()
    with process.variables_kept("HYDRA_FULL_ERROR"):
        # Hydra then lets exceptions through, and one place prints them all.
        os.environ["HYDRA_FULL_ERROR"] = "1"
        try:
            yield sys.argv[1:]
        finally:
            sys.argv = argv
            GlobalHydra.instance().hydra = hydra_before


if __name__ == "__main__":
    process.run(main, keeps=True)
else:
    # `%run -m fmnist_lab.run` in a notebook that has imported this module does no harm.
    found = r"'fmnist_lab\.run' found in sys\.modules"
    warnings.filterwarnings("ignore", found, RuntimeWarning, "runpy")
    sys.modules[__name__].__class__ = Door
