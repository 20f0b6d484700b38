"""A search on trials that cost nothing: their curves are a formula."""

import json
import math
from collections.abc import Callable
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from fmnist_lab import compat
from fmnist_lab.config.schema import check_section
from fmnist_lab.sweep.search import options as asked
from fmnist_lab.sweep.search import space as spaces
from fmnist_lab.sweep.search.source import SearchSource
from fmnist_lab.sweep.search.trials import FINALS, TrialLog

ACCURACY = "accuracy/validation"
SPACE = ("optimizer.learning_rate=tag(log,interval(1e-4,1e-1))", "model.dropout=interval(0,0.5)")
PRESET = {
    "_target_": "hydra_plugins.fmnist_lab.OptunaSweeper",
    "params": None,
    "objective": ACCURACY,
    "direction": None,
    "n_trials": 20,
    "timeout": None,
    "sampler": "tpe",
    "seed": 0,
    "pruning": "asha",
    "reduction": 3,
    "first_rung": 1,
    "finals": 2,
    "max_parameters": None,
}


def space_of(*words: str) -> spaces.Space:
    return spaces.parse(OverridesParser.create().parse_overrides(list(words)))


def options_of(**changed: object) -> asked.SearchOptions:
    return check_section(asked.SearchOptions, PRESET | changed, "hydra.sweeper.")


class Silent:
    """A listener that counts what it is told."""

    def __init__(self) -> None:
        self.finals: list[int] = []
        self.winners: list[int] = []

    def trial_over(self, trial) -> None:
        pass

    def finals_begin(self, trial) -> None:
        self.winners.append(trial.number)

    def final_over(self, number, metrics, failure) -> None:
        self.finals.append(number)


class Killed(BaseException):
    """The end of the process, as by SIGKILL: nothing runs any more."""


def accuracy(words: dict[str, str], epoch: int) -> float:
    """Best near a learning rate of 0.003 and without dropout; it rises with the epochs."""
    off = abs(math.log10(float(words["optimizer.learning_rate"])) + 2.5)
    return 0.9 - 0.1 * off - 0.05 * float(words["model.dropout"]) - 0.2 / epoch


class Searched:
    """A search, done by one worker or several at once, and what it has asked of them."""

    def __init__(self, folder: Path, *, epochs: int = 9, space=SPACE, **changed: object) -> None:
        self.file = folder / "trials.jsonl"
        self.epochs, self.space = epochs, space_of(*space)
        self.options = options_of(**changed)
        self.trained: dict[int, int] = {}  # epochs by job
        self.spent = 0
        self.given: list[tuple[int, int]] = []
        self.resumed = False
        self.measure: Callable[[dict[str, str], int], float] = accuracy

    def open(self) -> SearchSource:
        self.listener = Silent()
        return SearchSource(
            self.options,
            self.space,
            TrialLog(self.file),
            epochs=self.epochs,
            seeds=range(1, 1 + self.options.finals),
            final_words=lambda trial: ["data.validation_fraction=0"],
            listener=self.listener,
            resumed=self.resumed,
        )

    def run(self, *, workers: int = 1, kill_after: int | None = None) -> SearchSource:
        """Do the search; `kill_after` so many jobs have been given out or have ended, die."""
        source = self.open()
        running: list[tuple[int, list[str]]] = []
        steps = 0

        def step() -> None:
            nonlocal steps
            steps += 1
            if kill_after is not None and steps > kill_after:
                raise Killed

        while True:
            while len(running) < workers and (given := source.next()):
                running.append(given)
                step()
            if not running:
                assert source.exhausted()
                return source
            number, words = running.pop(0)
            result = self.do(number, words)
            step()
            source.over(number, compat.job_return(words, result))

    def do(self, number: int, overrides: list[str]) -> dict[str, float]:
        words = dict(word.split("=", 1) for word in overrides)
        epochs = int(words.get("pause_after", self.epochs))
        self.given.append((number, epochs))
        # Trained epochs are never trained a second time: a trial has its checkpoint.
        self.spent += max(0, epochs - self.trained.get(number, 0)) if number < FINALS else 0
        self.trained[number] = max(epochs, self.trained.get(number, 0))
        return {ACCURACY: self.measure(words, epochs), "epoch": float(epochs)}

    def facts(self) -> list[dict]:
        """Return the lines of the log without its times."""
        lines = [json.loads(line) for line in self.file.read_text().splitlines()]
        return [
            {key: value for key, value in line.items() if key not in ("seconds", "took")}
            for line in lines
        ]
