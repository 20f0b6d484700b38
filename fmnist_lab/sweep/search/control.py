"""A search as the driver of sweeps knows it: planned and checked, then watched and summed up."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from fmnist_lab import tracking
from fmnist_lab.config import flags, naming
from fmnist_lab.config.schema import Config, check_section
from fmnist_lab.errors import UserError
from fmnist_lab.sweep.launchers import PLUGINS
from fmnist_lab.sweep.plan import Checked, Plan, check, hash_of, job_configs
from fmnist_lab.sweep.search import options as asked
from fmnist_lab.sweep.search import sampler
from fmnist_lab.sweep.search import space as spaces
from fmnist_lab.sweep.search.screen import SearchScreen
from fmnist_lab.sweep.search.source import SearchSource
from fmnist_lab.sweep.search.trials import LOG, MOST_FINALS, Trial, TrialLog
from fmnist_lab.system import provenance
from fmnist_lab.system.terminal import aligned
from fmnist_lab.texts import counted, duration

if TYPE_CHECKING:
    import pandas as pd

SWEEPER = f"{PLUGINS}.OptunaSweeper"
STATES = ("finished", "paused", "unfinished", "failed")


class Search:
    """A search: what it is to do, and once it has begun, how far it is.

    Attributes:
        options: What was asked for.
        space: The keys that it searches over.
        plan: The plan of a sweep whose jobs are not known yet.
        source: Gives out the jobs; there after `begin`.
    """

    config: Config
    source: SearchSource

    def __init__(
        self, options: asked.SearchOptions, space: spaces.Space, plan: Plan, composed: DictConfig
    ) -> None:
        """Take a search that was checked, and the composed sweep that it is."""
        self.options, self.space, self.plan, self._composed = options, space, plan, composed

    @classmethod
    def of(cls, config: DictConfig) -> Search | None:
        """Return the search that a composed sweep asks for, or None if it is a sweep of a list.

        Raises:
            UserError: The search is refused.
        """
        sweeper = config.hydra.sweeper
        if sweeper.get("_target_") != SWEEPER:
            return None
        try:
            import optuna  # noqa: F401
        except ImportError:
            raise UserError(
                "hydra/sweeper=optuna needs optuna, which is not installed; "
                "pip install 'fmnist_lab[search]'"
            ) from None
        values: Any = OmegaConf.to_container(sweeper, resolve=True)
        options = check_section(asked.SearchOptions, values, "hydra.sweeper.")
        params = (options.params or {}).items()
        # Unresolved, because a key may follow another one that is searched over.
        task: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        words = [*(f"{key}={value}" for key, value in params), *task]
        loader = GlobalHydra.instance().config_loader()
        space = spaces.parse(OverridesParser.create(config_loader=loader).parse_overrides(words))
        asked.check(options, space)
        axes = {axis.name: axis.text for axis in space.axes}
        return cls(options, space, Plan(axes, {}, [], hash_of(config, options.deciding())), config)

    @property
    def probes(self) -> Plan:
        """Trials that together show whether all others are possible, as a plan to be checked."""
        return Plan(self.plan.axes, {}, self.space.probes(), "")

    def check(self, checked: Sequence[Checked]) -> None:
        """Take the probes, and refuse those that a search could not compare.

        Raises:
            UserError: One of them.
        """
        self._checked, configs = checked, [one.config for one in checked]
        for config in configs:
            asked.check_config(self.options, config)
        asked.check_same([*configs, *self._further(checked)])
        # The longest one, if they differ in length.
        self.config = max(configs, key=lambda config: config.trainer.epochs)
        seed = self.config.seed
        self.seeds = range(seed + 1, seed + 1 + self.options.finals)

    def _further(self, checked: Sequence[Checked]) -> Iterator[Config]:
        """Return configs whose other keys are the last ones where one key may follow another."""
        if all(one.serves for one in checked):
            return
        last = {axis.name: axis.probes[-1] for axis in self.space.axes}
        others = [{axis.name: value} for axis in self.space.axes for value in axis.probes[:-1]]
        for other in ({}, *others):
            with suppress(UserError):  # Not all values go together.
                yield self._config_of(last | other)

    def dearest(self, cost: Callable[[Config], float]) -> Config:
        """Return the config of the trial that costs most, as far as the probes tell.

        Args:
            cost: Returns what a trial of a config costs.
        """
        costs = {tuple(one.job): cost(one.config) for one in self._checked}
        first = {axis.name: axis.probes[0] for axis in self.space.axes}
        most = dict(first)
        for axis in self.space.axes:
            jobs = {
                value: tuple(self.space.overrides(first | {axis.name: value}))
                for value in axis.probes
            }
            most[axis.name] = max(jobs, key=lambda value: costs.get(jobs[value], 0.0))
        try:
            return self._config_of(most)
        except UserError:  # Not all values go together.
            return max((one.config for one in self._checked), key=cost)

    def examples(self, count: int) -> list[Config]:
        """Return the configs of up to so many trials that are drawn by chance."""
        trials = sampler.drawn(self.options, self.space, count)
        jobs = [self.space.overrides(values) for values in trials]
        drawn = Plan(self.plan.axes, {}, jobs, "")
        found = job_configs(self._composed, drawn, self._checked, composing=count)
        return [config for config in found if config is not None]

    @property
    def epochs(self) -> int:
        """The epochs of a trial that is never paused; 0 if, without pruning, each has its own."""
        return 0 if "trainer.epochs" in self.plan.axes else self.config.trainer.epochs

    @property
    def name(self) -> str:
        """The parent run's name."""
        keys = [axis.name.rpartition(".")[2] for axis in self.space.axes]
        return naming.fitted(["search", *(f"{key}," for key in keys[:-1]), keys[-1]], [])

    @property
    def total(self) -> int:
        """The most jobs that there can be; 0 if nobody knows."""
        size, most = self.space.size(), self.options.n_trials
        limits = [each for each in (size, most) if each is not None]
        return min(limits) if limits else 0

    def tags(self) -> dict[str, str]:
        """Return the tags of the parent run of a search that has not begun."""
        return {tracking.SEARCH_TAG: json.dumps(self._planned)}

    @property
    def _planned(self) -> dict[str, Any]:
        options, config = self.options, self.config
        return {
            "objectives": options.objectives,
            "space": self.plan.axes,
            "sampler": options.sampler,
            "seed": options.seed,
            "pruning": options.pruning,
            "rungs": list(options.rungs(config.trainer.epochs)),
            "epochs": config.trainer.epochs,
            "n_trials": options.n_trials,
            "timeout": options.timeout,
            "best": None,
            "pareto": [],
        }

    def facts(self) -> dict[str, Any]:
        """Return what is known of the search that has begun, for the tag of its parent run."""
        best, trials = self.source.best(), self.source.trials
        return self._planned | {
            "best": best.number if best else None,
            "pareto": self.source.front(),
            "winner_command": self.winner_command() if best else "",
            "seconds": round(trials.seconds, 1),
            "workers": self.source.workers,
            "rung_seconds": [round(trials.took[rung], 1) for rung in self.source.rungs],
        }

    def begin(self, run: tracking.SweepRun | None, folder: Path, began: float) -> None:
        """Begin, or go on where an earlier command was stopped.

        Args:
            run: The parent run, or None if nothing is kept.
            folder: The sweep's folder.
            began: When this command began, in seconds since 1970.
        """
        self.log = TrialLog(folder / LOG if run else None)
        self.source = SearchSource(
            self.options,
            self.space,
            self.log,
            epochs=self.epochs,
            seeds=self.seeds,
            final_words=self._final_words,
            listener=self,
            resumed=bool(self._composed.get("resume")),
        )
        self.screen = SearchScreen(self.total, began, next(iter(self.options.objectives)))

    def _final_words(self, trial: Trial) -> list[str]:
        config = self._config_of(trial.values)
        # Without held-out images there are no labels of theirs to be made wrong.
        noisy = ["data.noisy_validation=false"] if config.data.noisy_validation else []
        dropped = [f"~callbacks.{name}" for name in asked.left_out(config)]
        return ["data.validation_fraction=0", *noisy, *dropped]

    def _config_of(self, values: Mapping[str, spaces.Value]) -> Config:
        """Return the config of a trial, whose callbacks may be others than those of another one."""
        words = self.space.overrides(values)
        (checked,) = check(self._composed, Plan({}, {}, [words], ""))
        return checked.config

    @property
    def heading(self) -> dict[str, str]:
        """The facts that the screen begins with."""
        options = self.options
        ends = []
        if self.total:
            ends.append(counted(self.total, "trial"))
        if options.timeout is not None:
            ends.append(duration(60 * options.timeout))
        axes = "  ".join(f"{axis}={text}" for axis, text in self.plan.axes.items())
        goal = ", ".join(f"{d} {name}" for name, d in options.objectives.items())
        rungs = self.source.rungs
        how = f"{options.sampler}, seed {options.seed}; {goal}"
        if len(rungs) > 1:
            how += f"; paused after {', '.join(map(str, rungs[:-1]))} of {rungs[-1]} epochs unless "
            how += (
                "among the better half"
                if options.pruning == "median"
                else (f"in the best 1/{options.reduction}")
            )
        told = {"search": f"{' or '.join(ends)}: {axes}", "sampler": how}
        if known := len(self.source.trials.all):
            told["before"] = f"{counted(known, 'trial')} in {duration(self.source.trials.seconds)}"
        return told

    def share(self) -> float:
        """Return the share of the search that is done, from 0 to 1, its finals left out."""
        trials, shares = self.source.trials, [0.0]
        if self.source.most:
            shares.append((len(trials.all) - len(self.source.busy)) / self.source.most)
        if self.options.timeout:
            shares.append(self.source.seconds / (60 * self.options.timeout))
        return max(0.0, min(1.0, max(shares)))

    @property
    def over(self) -> int:
        """How many trials are not running now."""
        return sum(not trial.runs for trial in self.source.trials.all)

    @property
    def counts(self) -> Counter[str]:
        """How many trials there are in each state."""
        return Counter(self._state(trial) for trial in self.source.trials.all)

    def _state(self, trial: Trial) -> str:
        if trial.failure:
            return "failed"
        if trial.runs:
            return "unfinished"
        return "finished" if self.source.last in trial.results else "paused"

    # What the source tells.

    def trial_over(self, trial: Trial) -> None:
        """Print a trial that has come to a rung, or has failed."""
        words = self.space.overrides(trial.values)
        name = naming.job_name(words, list(self.plan.axes)) or f"trial {trial.number}"
        figures = trial.last or ()
        best = self.source.best()
        self.screen.trial(
            trial.number,
            name,
            figures[0] if figures else math.nan,
            f"{trial.asked}/{self.source.last}" if self.source.last else "",
            self._state(trial),
            failure=trial.failure,
            is_best=best is trial and len(self.options.objectives) == 1,
        )

    def finals_begin(self, trial: Trial) -> None:
        """Say that the winner is going to be trained on all images."""
        text = (
            f"\nTrial {trial.number} has won. It is trained on all training images now, with "
            f"{counted(self.options.finals, 'fresh seed')}."
        )
        config = self._config_of(trial.values)
        for name, metric in asked.left_out(config).items():
            text += (
                f" {name} is left out, because it watches {metric}, and no images are held out: "
                f"each training has all {config.trainer.epochs} epochs."
            )
        self.screen.console.print(text, markup=False, soft_wrap=True)

    def final_over(self, number: int, metrics: Mapping[str, float], failure: str) -> None:
        """Print a training of the winner that has ended."""
        seed = self.seeds[number % MOST_FINALS]
        self.screen.final(seed, metrics, failure)

    # The end.

    @property
    def curves(self) -> list[str]:
        """The metrics whose curves the report needs."""
        return list(self.options.objectives)

    def next_steps(self) -> dict[str, str]:
        """Return the commands that the screen ends with."""
        return {"train it": self.winner_command()} if self.source.best() else {}

    def winner_command(self) -> str:
        """Return the command that trains the winner on all images."""
        best = self.source.best()
        assert best is not None
        seed = f"seed={self.config.seed + 1}"
        words = self.space.overrides(best.values, [*self._final_words(best), seed])
        threads = self._composed.hydra.launcher.get("threads")
        if threads is not None and self._config_of(best.values).trainer.threads is None:
            words.append(f"trainer.threads={threads}")
        # The command makes a run that is not there yet.
        words = [word for word in words if not word.startswith("resume=")]
        return provenance.run_command([*flags.given(sys.argv[1:]), *words])

    def tell(self) -> None:
        """Print how many trials have come to which end, and the best, where no run was kept."""
        counts, trials = self.counts, self.source.trials
        parts = [f"{counts[state]} {state}" for state in STATES if counts[state]]
        self.screen.console.print(
            f"\n{counted(len(trials.all), 'trial')} in {duration(trials.seconds)}"
            f"{': ' if parts else ''}{', '.join(parts)}."
        )
        best = self.source.best()
        if best is None or best.last is None:
            return
        values = "  ".join(f"{key}={value}" for key, value in best.values.items())
        figures = zip(self.options.objectives, best.last, strict=True)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in figures)
        aligned(self.screen.console, {"best": f"trial {best.number}: {values}", "it had": shown})

    def report(
        self, runs: pd.DataFrame, curves: pd.DataFrame, folder: Path, name: str
    ) -> dict[str, float]:
        """Print the findings, write the report, and return the metrics of the parent run.

        Args:
            runs: One row per job.
            curves: The metrics that `curves` names, of each epoch.
            folder: Takes the files of the report.
            name: The search's name.

        Raises:
            UserError: There is nothing to report.
        """
        from fmnist_lab.studies import search

        facts = search.facts_of(json.dumps(self.facts()))
        self.screen.console.print()
        for part in search.terminal(runs, curves, facts):
            self.screen.console.print(part)
        title, command = f"{name[:1].upper()}{name[1:]}", provenance.command()
        search.write(runs, curves, facts, folder, title=title, command=command)
        means = search.best_means(runs, curves, facts)
        return {tracking.best_mean(metric): mean for metric, mean in means.items()}

    def outcome(self) -> str:
        """Return why the search has not found what it was to find; "" if it has."""
        if self.source.trouble:
            return self.source.trouble
        finals = self.source.trials.finals
        best = self.source.best()
        if best is None:
            return "no trial has come to its last epoch"
        failed = [reason for reason in finals.values() if reason]
        if failed:
            return f"{len(failed)} of {len(finals)} trainings of the winner failed: {failed[0]}"
        return ""
