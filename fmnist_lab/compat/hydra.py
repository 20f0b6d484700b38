"""Hydra's private names, and those of argparse, on which its parser of flags builds."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra
    from hydra.core.override_parser.types import Override
    from hydra.core.utils import JobReturn
    from omegaconf import DictConfig


T = TypeVar("T", bound=Callable[..., Any])


def hydra_parser() -> argparse.ArgumentParser:
    """Return the parser of Hydra's flags."""
    from hydra._internal.utils import get_args_parser

    return get_args_parser()


def flags_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Return what a parser does for each of its flags, such as "--multirun" and "-m"."""
    return dict(parser._option_string_actions)


def show_hydra(args: argparse.Namespace, folder: str, name: str) -> None:
    """Print what Hydra's flags ask for: a config, information, its own help or a completion.

    Args:
        args: The flags and overrides, as `hydra_parser` has parsed them.
        folder: The folder with the primary config.
        name: The primary config's name, without ".yaml".
    """
    from hydra._internal.utils import _run_hydra

    _run_hydra(args, hydra_parser(), lambda _: None, config_path=folder, config_name=name)


def run_hydra(
    args: argparse.Namespace,
    folder: str,
    name: str,
    task: T,
    driving: Callable[[DictConfig, T], AbstractContextManager[None] | None],
    jobs: Callable[[list[Override]], list[list[str]]],
) -> None:
    """Do the run or the sweep that a command line asks for.

    Hydra's own multirun calls no callback when a sweep fails or is interrupted; here a context
    manager surrounds it.

    Args:
        args: The flags and overrides, as `hydra_parser` has parsed them.
        folder: The folder with the primary config.
        name: The primary config's name, without ".yaml".
        task: The function to be called with each composed config.
        driving: Called with a sweep's own config and the task; the sweep is done within what it
            returns. None: there is nothing more to be done.
        jobs: Called by the basic sweeper to make the overrides of each job of a command line's.
    """
    from hydra._internal.utils import _run_app, create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra

    search_path = create_config_search_path(folder)
    if args.config_dir is not None:
        added = f"file://{Path(args.config_dir).absolute()}"
        search_path.prepend("command-line", added, SearchPathQuery(provider="schema"))
    hydra = _driven_hydra(task, driving, jobs).create_main_hydra2("run", search_path)
    try:
        mode = hydra.get_mode(name, args.overrides)
        _run_app(not args.multirun, args.multirun, mode, hydra, name, task, args.overrides)
    finally:
        GlobalHydra.instance().clear()


def _driven_hydra(
    task: T,
    driving: Callable[[DictConfig, T], AbstractContextManager[None] | None],
    jobs: Callable[[list[Override]], list[list[str]]],
) -> type[Hydra]:
    """Return a class of Hydra's whose sweeps are as `run_hydra` says."""
    from hydra._internal.callbacks import Callbacks
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra._internal.hydra import Hydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode
    from omegaconf import OmegaConf

    def split(overrides: list[Override], size: int | None) -> list[list[list[str]]]:
        return list(BasicSweeper.split_overrides_to_chunks(jobs(overrides), size))

    class DrivenHydra(Hydra):
        def multirun(
            self,
            config_name: str | None,
            task_function: Callable[[Any], Any],
            overrides: list[str],
            with_log_configuration: bool = True,
        ) -> Any:
            mode = RunMode.MULTIRUN
            config = self.compose_config(config_name, overrides, mode, with_log_configuration)
            driven = driving(config, task)
            if driven is None:
                return None
            callbacks = Callbacks(config)
            callbacks.on_multirun_start(config=config, config_name=config_name)
            with driven:
                sweeper = Plugins.instance().instantiate_sweeper(
                    config=config,
                    hydra_context=HydraContext(self.config_loader, callbacks),
                    task_function=task_function,
                )
                # Hydra has executed the module of its class again, so that it is another class.
                if type(sweeper).__name__ == BasicSweeper.__name__:
                    sweeper.split_arguments = split  # type: ignore[attr-defined]
                words = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
                returned = sweeper.sweep(arguments=words)  # type: ignore[arg-type]
                callbacks.on_multirun_end(config=config, config_name=config_name)
            return returned

    return DrivenHydra


@functools.cache
def add_override_function(name: str, function: Callable[..., Any]) -> None:
    """Have Hydra's parser of overrides know a function more, as in key=NAME(1,2).

    Args:
        name: Its name.
        function: Called with the values between the parentheses.
    """
    from hydra.core.override_parser import overrides_parser

    make = overrides_parser.create_functions

    def extended() -> Any:
        functions = make()
        functions.register(name, function)
        return functions

    overrides_parser.create_functions = extended


def basic_jobs(overrides: list[Override]) -> list[list[str]]:
    """Return the overrides of each job of a sweep, as Hydra's basic sweeper makes them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    return BasicSweeper.split_arguments(overrides, None)[0]


def job_return(overrides: Sequence[str], value: Any) -> JobReturn:
    """Return what a launcher hands to Hydra for a job that has ended with a value.

    Args:
        overrides: The job's overrides.
        value: The value that the job's function returned, or stands for it.
    """
    from hydra.core.utils import JobReturn, JobStatus

    return JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=value)


@functools.cache
def pass_over_byte_order_marks() -> None:
    """Have Hydra read "# @package" in a file that an editor on Windows has begun with a mark.

    If a release moves the name, such a file is read as one without that line.
    """
    from hydra.plugins.config_source import ConfigSource

    header_of = getattr(ConfigSource, "_get_header_dict", None)
    if header_of is not None:
        without_mark = staticmethod(lambda text: header_of(text.removeprefix("\ufeff")))
        ConfigSource._get_header_dict = without_mark  # type: ignore[assignment, method-assign]
