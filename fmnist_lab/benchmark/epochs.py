"""Seconds per epoch: our engine against `fit`, PyTorch and JAX, each in a process of its own."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from fmnist_lab import data
from fmnist_lab.benchmark import contenders
from fmnist_lab.benchmark.contenders import Case
from fmnist_lab.benchmark.results import BENCHMARK, keep, require
from fmnist_lab.errors import UserError
from fmnist_lab.training import runtime

CASES = (
    Case("mlp", 32),
    Case("mlp", 128),
    Case("cnn", 32),
    Case("cnn", 128),
    Case("cnn", 128, "bfloat16"),
)
BUSY = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
while True:
    pass
"""


def epochs(
    *,
    network: Literal["mlp", "cnn", "all"] = "all",
    rounds: int = 5,
    busy: int = 0,
    slow: bool = False,
    output: Path | None = None,
) -> None:
    """Time epochs of 60,000 images: our engine, fit, and where installed PyTorch and JAX.

    Every contender has a process of its own; in each round each trains one epoch, in turn, after
    a first epoch that does not count.

    Args:
        network: The tutorial's network, a small convolutional one, or both.
        rounds: How many epochs of each contender count.
        busy: How many other processes keep a core busy meanwhile.
        slow: Let JAX train the convolutional network, too, which takes minutes per epoch on a CPU.
        output: Folder for epochs.csv and epochs.png.
    """
    require("--rounds", rounds, 1)
    require("--busy", busy, 0)
    console = Console(highlight=False)
    rows: list[dict[str, Any]] = []
    results: dict[str, dict[str, list[float]]] = {}
    for case in (replace(case, busy=busy) for case in CASES):
        if network in (case.network, "all"):
            with _kept_busy(busy):
                timed = _race(case, _names(case, slow, console), rounds, console)
            rows += _rows(case, timed)
            results[case.title] = timed
            console.print(_table(case, timed))
            if case.network == "mlp":
                console.print(_bound(timed), soft_wrap=True)
    keep(output, "epochs", rows)
    if output:
        from fmnist_lab import figures

        figures.speed(results).savefig(output / "epochs.png")
        console.print(f"written to {output}")


def contender(name: str, network: str, batch_size: int, precision: str) -> None:
    """Be a contender: train an epoch for each line on standard input, print its seconds."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    dataset = data.load()
    if "fit" in name or name.startswith("fmnist_lab") or name in contenders.PRODUCTS:
        runtime.start()
    case = Case(network, batch_size, precision)
    train = (contenders.CONTENDERS | contenders.PRODUCTS)[name]
    try:
        epoch = train(case, dataset.train_images, dataset.train_labels)
    except ImportError as error:
        print(f"absent {error.name}", flush=True)
        return
    epoch()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        epoch()
        print(time.perf_counter() - began, flush=True)


def _names(case: Case, slow: bool, console: Console) -> tuple[str, ...]:
    """Return the names of those who race, and say who does not."""
    if case.network == "mlp":
        return *contenders.CONTENDERS, *contenders.PRODUCTS
    if case.precision != "float32":
        return contenders.WITH_CONVOLUTIONS
    name = contenders.SLOW_WITH_CONVOLUTIONS
    if slow:
        return *contenders.WITH_CONVOLUTIONS, name
    console.print(f"{name} is left out, as it takes minutes per epoch; --slow lets it in")
    return contenders.WITH_CONVOLUTIONS


def _race(
    case: Case, names: tuple[str, ...], rounds: int, console: Console
) -> dict[str, list[float]]:
    """Return the seconds of each contender's epochs, one per round."""
    racing: dict[str, subprocess.Popen[str]] = {}
    timed: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as running:
        for name in names:
            process = running.enter_context(_start_contender(name, case))
            running.callback(process.kill)
            said = _answer(process)
            if said == "ready":
                racing[name] = process
            else:
                console.print(f"{name} is left out: {said}; pip install 'fmnist_lab[bench]'")
        for number in range(rounds):
            for name, process in racing.items():
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
                timed[name].append(float(_answer(process)))
            console.print(f"{case.title}: round {number + 1} of {rounds}", style="dim")
    return timed


@contextmanager
def _kept_busy(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Have so many processes work all the time; they end with this one in any case."""
    with ExitStack() as running:
        processes = []
        for _ in range(count):
            process = subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE)
            processes.append(running.enter_context(process))
            running.callback(process.kill)
        yield processes


def _start_contender(name: str, case: Case) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*BENCHMARK, "contender", name, case.network, str(case.batch_size), case.precision],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise UserError(f"a contender ended without a word: {process.args!r}")
    return line


def _rows(case: Case, timed: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [
        {**asdict(case), "contender": name, "round": number, "seconds": round(seconds, 4)}
        for name, times in timed.items()
        for number, seconds in enumerate(times, 1)
    ]


def _table(case: Case, times: dict[str, list[float]]) -> Table:
    """Return medians and spread, and the ratio to ours."""
    table = Table(
        "seconds per epoch", "median", "lowest", "highest", "of ours", box=None, title=case.title
    )
    for name, each in times.items():
        figures = statistics.median(each), min(each), max(each)
        cells = (*(f"{figure:.3f}" for figure in figures), f"{_of_ours(name, times):.2f}")
        table.add_row(name, *cells)
    return table


def _of_ours(name: str, times: dict[str, list[float]]) -> float:
    """Return the median over the rounds of a contender's ratio to ours.

    A round's epochs are neighbours in time, so a slow moment of the machine slows them all.
    """
    pairs = zip(times[name], times["fmnist_lab"], strict=True)
    return statistics.median(seconds / ours for seconds, ours in pairs)


def _bound(times: dict[str, list[float]]) -> str:
    """Return a sentence that compares our epoch with the machine's matrix products."""
    square, own = (_of_ours(name, times) for name in contenders.PRODUCTS)
    reached = contenders.network_operations(60_000) / statistics.median(times["fmnist_lab"])
    return (
        f"Our epoch's products, {reached / 1e9:.0f} GFLOP/s: {square:.0%} of the rate of large "
        f"square ones, {own:.0%} of the two largest alone"
    )
