"""The door to measurements: `python -m fmnist_lab.benchmark`, our engine against the others."""

from __future__ import annotations

import csv
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cyclopts import App
from rich.console import Console
from rich.table import Table

from fmnist_lab import backend, contenders, data
from fmnist_lab.errors import UserError, reported

app = App(
    name="python -m fmnist_lab.benchmark",
    help="Measure speed: contenders in turn, several rounds in one run, medians and ratios.",
    version_flags=(),
)


@dataclass(frozen=True)
class Case:
    """One network at one batch size and precision."""

    network: str
    batch_size: int
    precision: str = "float32"

    @property
    def title(self) -> str:
        """Return its name as a person would say it."""
        return f"{self.network}, batch {self.batch_size}, {self.precision}"


CASES = (
    Case("mlp", 32),
    Case("cnn", 32),
    Case("cnn", 128),
    Case("cnn", 128, "bfloat16"),
)


@app.command
def epochs(
    *,
    network: Literal["mlp", "cnn", "all"] = "all",
    rounds: int = 5,
    output: Path | None = None,
) -> None:
    """Time epochs of 60,000 images: our engine, fit, and where installed PyTorch and JAX.

    Every contender has a process of its own; in each round each trains one epoch, in turn, after
    a first epoch that does not count.

    Args:
        network: The tutorial's network, a small convolutional one, or both.
        rounds: How many epochs of each contender count.
        output: Folder for epochs.csv and epochs.png.
    """
    with reported():
        if rounds < 1:
            raise UserError(f"--rounds: received {rounds}, expected a whole number, 1 or more")
        console = Console(highlight=False)
        rows: list[dict[str, Any]] = []
        results: dict[str, dict[str, list[float]]] = {}
        for case in CASES:
            if network in (case.network, "all"):
                timed = _race(case, rounds, console)
                rows += _rows(case, timed)
                results[case.title] = timed
                console.print(_table(case, timed))
                if case.network == "mlp":
                    _print_bound(case, timed["fmnist_lab"], console)
        if output:
            output.mkdir(parents=True, exist_ok=True)
            _write_csv(output / "epochs.csv", rows)
            from fmnist_lab import plots

            plots.speed(results).savefig(output / "epochs.png")
            console.print(f"written to {output}")


@app.command
def job(*, rounds: int = 3, output: Path | None = None) -> None:
    """Time whole processes: the default job, tracked and not, against the tutorial as a script.

    Args:
        rounds: How many runs of each count, after one that does not.
        output: Folder for jobs.csv.
    """
    with reported():
        module = [sys.executable, "-m"]
        commands = {
            "default job": [*module, "fmnist_lab.run"],
            "default job, tracking=none": [*module, "fmnist_lab.run", "tracking=none"],
            "tutorial as a script": [*module, "fmnist_lab.benchmark", "tutorial"],
        }
        timed: dict[str, list[float]] = defaultdict(list)
        memory: dict[str, list[float]] = defaultdict(list)
        with tempfile.TemporaryDirectory() as folder:
            for number in range(rounds + 1):
                for name, command in commands.items():
                    seconds, megabytes = _run_process(command, folder)
                    if number:
                        timed[name].append(seconds)
                        memory[name].append(megabytes)
        table = Table("", "seconds", "ratio", "peak MB", "ratio", box=None, pad_edge=False)
        rows = []
        base_seconds = statistics.median(timed["tutorial as a script"])
        base_memory = statistics.median(memory["tutorial as a script"])
        for name in commands:
            seconds, megabytes = statistics.median(timed[name]), statistics.median(memory[name])
            table.add_row(
                name,
                f"{seconds:.1f} ({min(timed[name]):.1f} to {max(timed[name]):.1f})",
                f"{seconds / base_seconds:.2f}",
                f"{megabytes:,.0f}",
                f"{megabytes / base_memory:.2f}",
            )
            rows += [
                {"command": name, "round": i, "seconds": s, "peak_megabytes": m}
                for i, (s, m) in enumerate(zip(timed[name], memory[name], strict=True), 1)
            ]
        Console(highlight=False).print(table)
        if output:
            output.mkdir(parents=True, exist_ok=True)
            _write_csv(output / "jobs.csv", rows)


@app.command(show=False)
def tutorial() -> None:
    """Be the tutorial's plain script."""
    contenders.tutorial()


@app.command(show=False)
def contender(name: str, network: str, batch_size: int, precision: str) -> None:
    """Be a contender: train an epoch for each line on standard input, print its seconds."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    dataset = data.load()
    if "fit" in name or name == "fmnist_lab":
        backend.start(lean=True)
    try:
        epoch = contenders.CONTENDERS[name](
            network, batch_size, dataset.train_images, dataset.train_labels, precision
        )
    except ImportError as error:
        print(f"absent {error.name}", flush=True)
        return
    epoch()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        epoch()
        print(time.perf_counter() - began, flush=True)


def _race(case: Case, rounds: int, console: Console) -> dict[str, list[float]]:
    names = contenders.CONTENDERS if case.network == "mlp" else contenders.WITH_CONVOLUTIONS
    racing: dict[str, subprocess.Popen[str]] = {}
    timed: dict[str, list[float]] = defaultdict(list)
    try:
        for name in names:
            process = _start_contender(name, case)
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
    finally:
        for process in racing.values():
            process.kill()
            process.wait()
    return timed


def _start_contender(name: str, case: Case) -> subprocess.Popen[str]:
    module = [sys.executable, "-m", "fmnist_lab.benchmark", "contender"]
    return subprocess.Popen(
        [*module, name, case.network, str(case.batch_size), case.precision],
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


def _run_process(command: list[str], folder: str) -> tuple[float, float]:
    """Run a command to its end; return its wall seconds and its peak memory in megabytes."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise UserError(f"{' '.join(command)} ended with status {status}")
    unit = 1e6 if platform.system() == "Darwin" else 1e3
    return seconds, usage.ru_maxrss / unit


def _rows(case: Case, timed: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [
        {**asdict(case), "contender": name, "round": number, "seconds": round(seconds, 4)}
        for name, times in timed.items()
        for number, seconds in enumerate(times, 1)
    ]


def _table(case: Case, times: dict[str, list[float]]) -> Table:
    ours = times["fmnist_lab"]
    table = Table(
        "seconds an epoch", "median", "lowest", "highest", "of ours", box=None, title=case.title
    )
    for name, each in times.items():
        ratio = statistics.median(a / b for a, b in zip(each, ours, strict=True))
        figures = statistics.median(each), min(each), max(each)
        table.add_row(name, *(f"{figure:.3f}" for figure in figures), f"{ratio:.2f}")
    return table


def _print_bound(case: Case, ours: list[float], console: Console) -> None:
    """Say how near our epoch comes to the machine's matrix products."""
    backend.start(lean=True)
    rates = contenders.matrix_products(case.batch_size)
    reached = contenders.network_operations(60_000) / statistics.median(ours)
    for name, rate in rates.items():
        what = {
            "square": "one large square product",
            "network": "this network's own two largest products, alone",
        }[name]
        console.print(
            f"{reached / 1e9:.0f} GFLOP/s: {reached / rate:.0%} of the {rate / 1e9:.0f} of {what}"
        )


def _write_csv(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
