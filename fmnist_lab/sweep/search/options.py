"""The options of a search, and why some of them are refused."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from fmnist_lab.config.fields import Count, OptionalCount, Section, Target
from fmnist_lab.config.schema import Config
from fmnist_lab.errors import UserError
from fmnist_lab.sweep.search.rungs import rungs
from fmnist_lab.sweep.search.space import Space
from fmnist_lab.sweep.search.trials import MOST_FINALS
from fmnist_lab.texts import counted
from fmnist_lab.tracking.choice import is_better_higher

Direction = Literal["maximize", "minimize"]
# The metrics of the images that are held out; all others are no measure to choose by. Those of
# `AT_TIMES` exist only after an epoch whose model was evaluated on all images.
VALIDATION, GAP, CLEAN = "validation", "gap_validation", "validation_clean"
METRICS = [f"{kind}/{part}" for part in (VALIDATION, GAP, CLEAN) for kind in ("accuracy", "loss")]
AT_TIMES = (GAP, CLEAN)
ACCURACY = f"accuracy/{VALIDATION}"
LONGEST_VALUE = 40  # in a message; a list of images is long
# Every trial is measured on the same images, from the same random numbers, and for as long.
NEVER = {
    "seed": (
        "a search that chooses the seed chooses luck; leave it out: hydra.sweeper.finals=5 trains "
        "the winner with fresh seeds"
    ),
    "data": (
        "trials can be compared on the same held-out images only, after learning from the same "
        "others; expected one value for all of them"
    ),
    "pause_after": "the search itself says when a trial is paused",
    "resume": "it is an option of the whole search",
    "job": "a search trains",
}


class SearchOptions(Section):
    """`hydra.sweeper` with hydra/sweeper=optuna."""

    target: Target
    params: dict[str, Any] | None
    objective: Annotated[
        str | Annotated[list[str], Field(min_length=1)],
        Field(
            description="a metric of the held-out images, or a list of them", examples=[ACCURACY]
        ),
    ]
    direction: Annotated[
        Direction | list[Direction] | None,
        Field(
            description="maximize, minimize, a list of them, or null to go by the metric's name",
            examples=["maximize"],
        ),
    ]
    n_trials: OptionalCount = Field(
        description="a whole number, 1 or more, or null for no limit", examples=[60]
    )
    timeout: Annotated[
        float | None,
        Field(gt=0, description="a number of minutes above 0, or null for no limit", examples=[15]),
    ]
    sampler: Literal["tpe", "random", "grid", "cmaes", "gp"]
    seed: Annotated[int, Field(ge=0, lt=2**32, description="a whole number from 0 to 4294967295")]
    pruning: Literal["asha", "median", "none"]
    reduction: Annotated[int, Field(ge=2, description="a whole number, 2 or more", examples=[3])]
    first_rung: Count
    finals: Annotated[
        int,
        Field(ge=0, le=MOST_FINALS, description=f"a whole number from 0 to {MOST_FINALS}"),
    ]
    max_parameters: OptionalCount = Field(
        description="a whole number, 1 or more, or null for no limit", examples=[100_000]
    )

    @property
    def objectives(self) -> dict[str, Direction]:
        """The direction of each objective, by its name."""
        names = [self.objective] if isinstance(self.objective, str) else self.objective
        given = self.direction
        directions = given if isinstance(given, list) else [given] * len(names)
        return {
            name: direction or ("maximize" if is_better_higher(name) else "minimize")
            for name, direction in zip(names, directions, strict=False)
        }

    @property
    def signs(self) -> list[int]:
        """1 for each objective that is to be large, -1 for each that is to be small."""
        return [1 if each == "maximize" else -1 for each in self.objectives.values()]

    def rungs(self, epochs: int) -> tuple[int, ...]:
        """Return the epochs after which trials are compared; the last is that of a whole trial."""
        if self.pruning == "none":
            return (epochs,)
        return rungs(self.first_rung, self.reduction, epochs)

    def deciding(self) -> dict[str, Any]:
        """Return the options that make two searches the same; a longer one is the same."""
        aside = {"n_trials", "timeout", "finals"}
        return {key: value for key, value in self.model_dump().items() if key not in aside}


def check(options: SearchOptions, space: Space) -> None:
    """Refuse a search that would fool itself, or could not be done.

    Raises:
        UserError: The reason, and what to ask for instead.
    """
    _check_objectives(options)
    for axis in space.axes:
        if reason := NEVER.get("data" if axis.name.startswith("data.") else axis.name):
            raise UserError(f"{axis.name}: received {axis.text}, but {reason}")
        if axis.name == "trainer.epochs" and options.pruning != "none":
            raise UserError(
                f"trainer.epochs: received {axis.text} with hydra.sweeper.pruning="
                f"{options.pruning}, but pruning compares trials after equal numbers of epochs and "
                "chooses how long each is trained; expected one number, or "
                "hydra.sweeper.pruning=none"
            )
    if options.n_trials is None and options.timeout is None and options.sampler != "grid":
        raise UserError(
            "hydra.sweeper.n_trials: received null with hydra.sweeper.timeout=null, expected the "
            "end of the search; for example hydra.sweeper.n_trials=60 or hydra.sweeper.timeout=15 "
            "(minutes)"
        )
    _check_sampler(options, space)


def _check_objectives(options: SearchOptions) -> None:
    names = [options.objective] if isinstance(options.objective, str) else options.objective
    for name in names:
        if name.endswith(("/test", "/gap")):
            measured = "the test set" if name.endswith("/test") else "the training and the test set"
            other = f"{name}_{VALIDATION}"
            if name.endswith("/test"):
                other = name.replace("/test", f"/{VALIDATION}")
            raise UserError(
                f"hydra.sweeper.objective: received {name}, which is measured on {measured}; a "
                "search that chooses on the test set leaves no figure to judge its winner by; "
                f"expected a metric of the held-out images, for example {other}"
            )
        if name not in METRICS:
            raise UserError(
                f"hydra.sweeper.objective: received {name}, which is no metric of the held-out "
                f"images; expected one of {', '.join(METRICS)}"
            )
    if len(set(names)) < len(names):
        raise UserError(
            f"hydra.sweeper.objective: received {', '.join(names)}, expected each metric once"
        )
    if isinstance(options.direction, list) and len(options.direction) != len(names):
        raise UserError(
            f"hydra.sweeper.direction: received {counted(len(options.direction), 'direction')} for "
            f"{counted(len(names), 'objective')}, expected one for each, or null"
        )
    if len(names) > 1 and options.pruning != "none":
        raise UserError(
            f"hydra.sweeper.objective: received {len(names)} objectives with "
            f"hydra.sweeper.pruning={options.pruning}, but no rung can rank trials by several "
            "figures at once; expected one objective, or hydra.sweeper.pruning=none"
        )


def _check_sampler(options: SearchOptions, space: Space) -> None:
    received = f"hydra.sweeper.sampler: received {options.sampler}"
    if options.sampler == "grid":
        for axis in space.axes:
            if axis.points is None:
                raise UserError(
                    f"{received} with {axis.key}={axis.text}, which has no end of values; expected "
                    "a list or a range of each key, or hydra.sweeper.sampler=tpe"
                )
    if options.sampler == "cmaes":
        numeric = sum(not axis.choices for axis in space.axes)
        if numeric < 2:
            raise UserError(
                f"{received} with {counted(numeric, 'numeric key')}, but it learns how two or more "
                "depend on each other; expected intervals or ranges of at least two keys, or "
                "hydra.sweeper.sampler=tpe"
            )
        if len(options.objectives) > 1:
            raise UserError(
                f"{received} with {len(options.objectives)} objectives, expected one; or "
                "hydra.sweeper.sampler=tpe"
            )
    if options.sampler == "gp" and importlib.util.find_spec("torch") is None:
        raise UserError(f"{received}, which needs torch, which is not installed; pip install torch")


def check_config(options: SearchOptions, config: Config) -> None:
    """Refuse a trial's config that has nothing to be compared by, or that could not be paused.

    Args:
        options: The checked options.
        config: The checked config of a trial.

    Raises:
        UserError: The reason, and what to ask for instead.
    """
    if config.job.name != "train":
        raise UserError(
            f"job: received {config.job.name} with hydra/sweeper=optuna, expected job=train"
        )
    if config.data.validation_fraction == 0:
        raise UserError(
            "data.validation_fraction: received 0, but a search chooses by images that are held "
            "out of the training, and never on the test set; expected a share above 0, for "
            "example data.validation_fraction=0.1"
        )
    if config.pause_after is not None:
        raise UserError(
            f"pause_after: received {config.pause_after}, but {NEVER['pause_after']}; leave it out"
        )
    _check_measured(options, config)
    if config.checkpoint.every is None and options.pruning != "none":
        raise UserError(
            f"checkpoint.every: received null with hydra.sweeper.pruning={options.pruning}, but a "
            "paused trial goes on from its checkpoint; leave out checkpoint.every=null, or add "
            "hydra.sweeper.pruning=none"
        )
    if config.tracking.kind == "none" and options.pruning != "none":
        raise UserError(
            f"tracking: received none with hydra.sweeper.pruning={options.pruning}, but then "
            "nothing is kept that a paused trial could go on from; add hydra.sweeper.pruning=none"
        )


def _check_measured(options: SearchOptions, config: Config) -> None:
    """Refuse an objective that a trial does not have when it is compared by it."""
    data, every = config.data, config.trainer.evaluate_every
    for name in options.objectives:
        received = f"hydra.sweeper.objective: received {name}"
        wrong = data.label_noise or data.noise_table or data.random_labels
        if name.endswith(CLEAN) and not (data.noisy_validation and wrong):
            raise UserError(
                f"{received}, but no held-out image has a wrong label; expected "
                f"{name.replace(CLEAN, VALIDATION)}, or data.noisy_validation=true with wrong "
                "labels, for example data.label_noise=0.2"
            )
        if not name.endswith(AT_TIMES):
            continue
        for rung in options.rungs(config.trainer.epochs)[:-1]:
            if rung % every:
                raise UserError(
                    f"{received} with trainer.evaluate_every={every}, but trials are compared "
                    f"after {counted(rung, 'epoch')}, when it is not measured; expected "
                    f"trainer.evaluate_every=1, hydra.sweeper.first_rung={every}, or "
                    "hydra.sweeper.pruning=none"
                )


def check_same(configs: Sequence[Config]) -> None:
    """Refuse trials that would not have the same images and the same seed.

    A key may depend on another one that is searched over, or come from an experiment's file.

    Args:
        configs: The checked configs of the trials that show whether all others are possible.

    Raises:
        UserError: Two of them differ in such a key.
    """
    first, *others = [{"seed": each.seed, **_data(each)} for each in configs]
    for other in others:
        for key in first | other:
            one, two = first.get(key), other.get(key)
            if one != two:
                reason = NEVER["seed" if key == "seed" else "data"]
                raise UserError(
                    f"{key}: received {_short(one)} in one trial and {_short(two)} in another, but "
                    f"{reason}"
                )


def _data(config: Config) -> dict[str, Any]:
    return {f"data.{key}": value for key, value in config.data.model_dump().items()}


def _short(value: Any) -> str:
    """Return a value as a config spells it, or its beginning."""
    text = json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def left_out(config: Config) -> Mapping[str, str]:
    """Return the callbacks that cannot be had without held-out images, with what they watch."""
    watched = {
        name: str(callback.arguments().get("monitor", _watched_by_default(callback.target)))
        for name, callback in config.callbacks.items()
    }
    return {name: metric for name, metric in watched.items() if metric.startswith("val_")}


def _watched_by_default(target: str) -> str:
    """Return the metric that a callback watches if it is not told which."""
    watching = ("EarlyStopping", "ReduceLROnPlateau", "ModelCheckpoint")
    return "val_loss" if target.rpartition(".")[2] in watching else ""
