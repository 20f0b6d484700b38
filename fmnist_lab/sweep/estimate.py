"""An estimate of a job's time and disk, from earlier runs of this machine or from a cost model.

The cost model says how long an epoch takes from the model's size, the number of images and the
speed of this processor, which products of matrices measure in a few milliseconds. Where the store
has earlier runs of the same kind of model, their times correct it: the estimate of an epoch is that
of the cost model, times the median of what the nearest runs took in comparison with theirs.
"""

from __future__ import annotations

import ast
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from statistics import median
from typing import Any, NamedTuple

from fmnist_lab.config import naming
from fmnist_lab.config.schema import Config
from fmnist_lab.models.size import Size, size
from fmnist_lab.tracking.history import PastRun
from fmnist_lab.training import runtime

# How fast an engine's own products are in comparison with `speed`, and its seconds per step beside
# them; experiments/speed has the figures that they are from.
ENGINES = {"native": (1.7, 1e-6), "xla": (1.15, 20e-6), "graph": (0.8, 240e-6)}
EVALUATION_SECONDS = 2e-6  # per image, beside the products
EPOCH_SECONDS = 0.03  # beside the images: metrics, and the state that is saved
# The seconds of a run beside its epochs: to compile, to draw pictures, to keep the model.
FIXED_SECONDS = {"native": 0.9, "xla": 2.5, "graph": 4.0}
# A run keeps pictures, predictions, a model of float32, and rows in the database.
FILES_BYTES, IMAGE_BYTES, WEIGHT_BYTES, EPOCH_BYTES = 650_000, 38, 4, 4_000
DATABASE_BYTES = 60_000
NEAREST = 5  # as many earlier runs of the same kind decide
OTHER_ENGINE = 3.0  # is as far away as a model of 20 times the size


class DataSize(NamedTuple):
    """The size of a data set, before any limit."""

    train: int
    test: int
    image_shape: tuple[int, ...]
    classes: int


FASHION_MNIST = DataSize(60_000, 10_000, (28, 28), 10)


@dataclass(frozen=True)
class Work:
    """Everything about a training that its time depends on.

    Attributes:
        model: The name of the model's function, as params have it.
        data: The name of the data set; "" for Fashion-MNIST.
        size: The model's size; None if that is not known.
        images: Training images.
        evaluated: Images that are evaluated, per epoch.
        batch: Images per step.
        engine: The engine, or the one that is likely.
        threads: Threads of a training.
    """

    model: str
    data: str
    size: Size | None
    images: int
    evaluated: float
    batch: int
    engine: str
    threads: int

    @classmethod
    def of(
        cls, params: Mapping[str, Any], engine: str, threads: int, data: DataSize = FASHION_MNIST
    ) -> Work:
        """Return the work of a run, from its params, as `naming.params` or a store has them.

        Args:
            params: The params.
            engine: The engine; "auto" is replaced by the likely one.
            threads: Threads of a training.
            data: The size of the data set.
        """
        known = {key: _value(value) for key, value in params.items()}
        model = str(known["model"])
        options = {key[6:]: each for key, each in known.items() if key.startswith("model.")}
        train = min(_number(known, "data.train_limit", data.train), data.train)
        test = min(_number(known, "data.test_limit", data.test), data.test)
        held_out = round(train * float(known.get("data.validation_fraction") or 0))
        every = _number(known, "trainer.evaluate_every", 1)
        return cls(
            model=model,
            data=str(known.get("data.name") or ""),
            size=size(model, options, data.image_shape, data.classes),
            images=train - held_out,
            evaluated=held_out + (train - held_out + test) / every,
            batch=_number(known, "trainer.batch_size", 32),
            engine=_likely_engine(known) if engine == "auto" else engine,
            threads=threads,
        )

    def epoch_seconds(self) -> float:
        """Return the time of an epoch and its evaluation by the cost model."""
        products = self.size.products if self.size else Size(0, 100_000).products
        share, step = ENGINES.get(self.engine, ENGINES["graph"])
        rate = speed() * min(self.threads, runtime.usable_cores())
        # A forward pass, and two products of the same size back: of inputs, and of weights.
        training = self.images * 6 * products / (rate * share)
        evaluation = self.evaluated * (2 * products / (rate * ENGINES["graph"][0]))
        return (
            training
            + -(-self.images // self.batch) * step
            + evaluation
            + self.evaluated * EVALUATION_SECONDS
            + EPOCH_SECONDS
        )

    def distance(self, other: Work) -> float:
        """Return how much less another work tells of this one's time than the same work would."""
        if self.size and other.size:
            models = abs(math.log(self.size.products / other.size.products))
        else:
            models = 0.0
        return (
            models
            + abs(math.log(self.batch / other.batch))
            + abs(math.log(self.threads / other.threads))
            + 0.2 * abs(math.log(self.images / other.images))
            + OTHER_ENGINE * (self.engine != other.engine)
        )


class Estimate(NamedTuple):
    """The cost of a job.

    Attributes:
        fixed: Seconds beside the epochs.
        epoch: Seconds per epoch; 0 where there are none.
        bytes: The files that it keeps, and its rows in the database.
        runs: The earlier runs that tell; none if the cost model does.
        known: False if the model is none of ours and has never been trained here.
    """

    fixed: float
    epoch: float
    bytes: int
    runs: tuple[str, ...] = ()
    known: bool = True


class Estimator:
    """Estimates jobs by the earlier runs of this machine.

    Args:
        past: The earlier runs.
        threads: Threads of a job that does not say otherwise.
    """

    def __init__(self, past: Iterable[PastRun], threads: int | None = None) -> None:
        self.threads = threads or runtime.usable_cores()
        self.past = list(past)
        self._works: dict[tuple[str, DataSize], Work] = {}

    def estimate(self, config: Config, data: DataSize = FASHION_MNIST) -> Estimate:
        """Return the cost of a job.

        Args:
            config: Its checked config.
            data: The size of its data set.
        """
        threads = config.trainer.threads or self.threads
        work = Work.of(naming.params(config), config.trainer.engine, threads, data)
        near = self._nearest(work, data, config.trainer.engine == "auto")
        epochs = config.trainer.epochs
        if config.job.name == "evaluate":
            epochs, near = 0, []
        weights = WEIGHT_BYTES * (work.size.parameters if work.size else 0)
        rows = DATABASE_BYTES + epochs * EPOCH_BYTES
        if not near:
            fixed = FIXED_SECONDS.get(work.engine, FIXED_SECONDS["graph"])
            kept = FILES_BYTES + round(IMAGE_BYTES * min(work.evaluated, data.test)) + weights
            if config.job.name == "evaluate":
                trained = replace(work, evaluated=0.0).epoch_seconds()
                return Estimate(fixed + work.epoch_seconds() - trained, 0.0, kept + rows)
            return Estimate(fixed, work.epoch_seconds(), kept + rows, known=work.size is not None)
        if config.trainer.engine == "auto":
            work = replace(work, engine=near[0][1].engine)
        times = [(*_times(run, theirs), theirs) for run, theirs in near]
        ratio = median(epoch / theirs.epoch_seconds() for _, epoch, theirs in times)
        sizes = [
            run.bytes + weights - WEIGHT_BYTES * (theirs.size.parameters if theirs.size else 0)
            for run, theirs in near
            if run.bytes
        ]
        return Estimate(
            fixed=median(fixed for fixed, _, _ in times),
            epoch=ratio * work.epoch_seconds(),
            bytes=round(median(sizes) if sizes else FILES_BYTES + weights) + rows,
            runs=tuple(run.run_id for run, _ in near),
        )

    def _nearest(self, work: Work, data: DataSize, any_engine: bool) -> list[tuple[PastRun, Work]]:
        """Return the earlier runs that tell most of a work's time, the nearest first."""
        found = []
        for place, run in enumerate(self.past):
            theirs = self._work(run, data)
            same = theirs is not None and (theirs.model, theirs.data) == (work.model, work.data)
            if theirs and same and (any_engine or theirs.engine == work.engine):
                # Of runs that are as near, the newest.
                found.append((round(work.distance(theirs), 3), place, run, theirs))
        found.sort(key=lambda each: each[:2])
        # The others' engine is another one because the training was.
        engine = found[0][3].engine if found else ""
        return [
            (run, theirs)
            for distance, _, run, theirs in found[:NEAREST]
            if distance <= found[0][0] + 1 and theirs.engine == engine
        ]

    def _work(self, run: PastRun, data: DataSize) -> Work | None:
        key = run.run_id, data
        if key not in self._works:
            threads = int(run.tags["threads"]) if run.tags["threads"].isdigit() else self.threads
            with suppress(KeyError, TypeError, ValueError):
                self._works[key] = Work.of(run.params, run.tags["engine"], max(threads, 1), data)
        return self._works.get(key)


def _times(run: PastRun, work: Work) -> tuple[float, float]:
    """Return a run's seconds beside its epochs, and its seconds per epoch.

    A run that was resumed, or went on from a shorter one's state, has logged the epochs from before
    all at once; they are not counted.
    """
    ends = [over for over, _ in run.epochs]
    speeds = [speed for _, speed in run.epochs if speed > 0]
    steps = [
        after - before
        for before, after, speed in zip(ends, ends[1:], speeds[1:], strict=False)
        if after - before > 0.5 * work.images / speed
    ]
    # With one epoch alone, or of a server, the speed of the training tells of the evaluation, too.
    trained = work.images / median(speeds) if speeds else work.epoch_seconds()
    pure = replace(work, evaluated=0.0)
    guessed = trained + (work.epoch_seconds() - pure.epoch_seconds()) + EPOCH_SECONDS
    epoch = median(steps) if steps else min(guessed, run.seconds)
    count = len(steps) + 1
    if not run.epochs[1:] and run.epochs[:1] and not run.epochs[0][0]:
        count = _number({k: _value(v) for k, v in run.params.items()}, "trainer.epochs", 1)
    return max(run.seconds - count * epoch, 0.1), max(epoch, 1e-4)


@cache
def speed() -> float:
    """Return one core's operations per second in small products of float32 matrices.

    A thread's own time is measured, so that other programs hardly count, and the products are so
    small that no library shares them out among threads.
    """
    import numpy as np

    one, two = np.ones((100, 64, 64), np.float32), np.ones((64, 64), np.float32)
    product, took = np.empty_like(one), []
    for _ in range(8):
        began = time.thread_time()
        np.matmul(one, two, out=product)
        took.append(time.thread_time() - began)
    return 100 * 2 * 64**3 / max(min(took), 1e-6)


def makespan(
    jobs: Sequence[tuple[float, float, int, str | None]], workers: int, between: float
) -> float:
    """Return the seconds in which workers do jobs, each taking the next one when it is free.

    Args:
        jobs: Of each job its seconds beside the epochs, its seconds per epoch, its epochs, and a
            name that it shares with the jobs whose epochs are its own first ones, or None.
        workers: How many jobs run at once.
        between: Seconds of a worker between two jobs.
    """
    free = [0.0] * max(workers, 1)
    done: dict[str, list[tuple[float, int]]] = {}
    for fixed, epoch, epochs, prefix in jobs:
        worker = min(range(len(free)), key=free.__getitem__)
        begun = free[worker] + between
        known = [count for over, count in done.get(prefix or "", []) if over <= begun]
        left = epochs - max((count for count in known if count <= epochs), default=0)
        free[worker] = begun + fixed + left * epoch
        if prefix:
            done.setdefault(prefix, []).append((free[worker], epochs))
    return max(free)


def _likely_engine(params: Mapping[str, Any]) -> str:
    """Return the engine that `trainer.engine=auto` is likely to choose on a processor."""
    plain = not (params.get("model.dropout") or params.get("model.batch_norm"))
    augmented = any(key.startswith("augmentation.") and params[key] for key in params)
    usual = params.get("optimizer") in ("Adam", "AdamW", "SGD")
    model = params["model"]
    if model in ("linear", "mlp", "cnn") and plain and usual and not augmented:
        return "native"
    return "xla" if model in ("linear", "mlp") else "graph"


def _value(value: Any) -> Any:
    """Return a param's value, which a store has as a text."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _number(params: Mapping[str, Any], key: str, usual: int) -> int:
    value = params.get(key)
    return max(int(value), 1) if isinstance(value, int | float) else usual
