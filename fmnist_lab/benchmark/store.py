"""The speed of a store: short jobs of several clients at once, and thousands of runs."""

from __future__ import annotations

import io
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fmnist_lab import tracking
from fmnist_lab.benchmark.results import BENCHMARK, keep
from fmnist_lab.config.schema import Config
from fmnist_lab.errors import UserError

EPOCHS = 15
GRID = 10  # values of each of three parameters
METRICS = (
    *(f"{figure}/{part}" for figure in ("accuracy", "loss") for part in ("test", "train", "gap")),
    *("accuracy/fit", "loss/fit", "learning_rate", "images_per_second"),
)


def store(
    *,
    uri: str | None = None,
    clients: int = 4,
    jobs: int = 200,
    train: bool = False,
    runs: int = 10_000,
    output: Path | None = None,
) -> None:
    """Time a store: short jobs of several clients at once, and questions about thousands of runs.

    A job here does all the writing of a real one but for its pictures and its model, and no
    training, unless it is told to. The many runs are copies of one, written into the database
    itself.

    Args:
        uri: A store to be compared with a new SQLite file; the runs stay there.
        clients: Processes that do jobs at the same time.
        jobs: How many jobs they do together.
        train: Have them do real jobs: an epoch of 1,000 images, with all pictures and the model.
        runs: How many runs are simulated, in thousands; 0 for none, as behind a server.
        output: Folder for store.csv.
    """
    with tempfile.TemporaryDirectory() as folder:
        if runs % GRID**3 or runs < 0:
            raise UserError(f"--runs: received {runs}, expected a multiple of {GRID**3}, or 0")
        if not 0 < clients <= jobs:
            raise UserError(f"--clients: received {clients}, expected 1 to --jobs, {jobs}")
        if output:
            output = output.absolute()
        with chdir(folder):
            experiment = f"benchmark {time.strftime('%Y-%m-%d %H:%M:%S')}"
            rows: list[dict[str, Any]] = []
            for address in filter(None, ("sqlite:///mlflow.db", uri)):
                place = tracking.Store.locate(address)
                place.open(experiment)
                name = "a server" if place.database is None else "SQLite"
                rows += _short_jobs(place, experiment, clients, jobs, train, name)
            if runs:
                rows += _many_runs(place, experiment, runs)
        table = Table("", "seconds", box=None, pad_edge=False)
        for row in rows:
            table.add_row(row["what"], f"{row['seconds']:.3g}")
        Console(highlight=False).print(table)
        keep(output, "store", rows)


def store_client(uri: str, experiment: str, first: int, jobs: int, *, train: bool = False) -> None:
    """Be a client: do jobs, after a line on standard input."""
    place = tracking.Store.locate(uri)
    short = {"data.train_limit": 1000, "data.test_limit": 1000}
    short |= {"trainer.epochs": 1, "trainer.threads": 1}
    known = {"tracking.uri": uri, "tracking.experiment": f"'{experiment}'"}
    config = _config(**(short | known if train else {}))
    place.open(experiment)
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(first, first + jobs):
        if train:
            from fmnist_lab.jobs import train as real

            with redirect_stdout(io.StringIO()):
                real.run(_config(**short, **known, seed=number))
        else:
            job(place, experiment, config, f"job {number}", {})


def job(
    place: tracking.Store, experiment: str, config: Config, name: str, tags: dict[str, str]
) -> str:
    """Write what a run writes, and return its id."""
    from fmnist_lab.config import naming
    from fmnist_lab.system import provenance

    known = {**provenance.tags(), "config.hash": config.identity(), "job": "train", **tags}
    known |= {"engine": "xla", "device": "none", "threads": "1"}
    with tracking.start(place, experiment, name, known) as run:
        run.params(naming.params(config))
        for epoch in range(1, EPOCHS + 1):
            # Below 1, as accuracies are.
            run.metrics({name: math.log1p(epoch) / 3 for name in METRICS}, step=epoch)
        run.text("simulated", "config.yaml")
        run.json({"simulated": True}, "evaluation.json")
    return run.id


def _short_jobs(
    place: tracking.Store, experiment: str, clients: int, jobs: int, train: bool, name: str
) -> Iterator[dict[str, Any]]:
    """Have several clients do jobs at once, and check that all of them are there."""
    shares = [jobs // clients + (each < jobs % clients) for each in range(clients)]
    module = [*BENCHMARK, "store-client", place.uri, experiment]
    processes = [
        subprocess.Popen(
            [*module, str(sum(shares[:number])), str(share), *(["--train"] if train else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number, share in enumerate(shares)
    ]
    for process in processes:
        assert process.stdout
        if process.stdout.readline() != "ready\n":
            raise UserError(f"a client could not start with {place.uri}; it has said why")
    began = time.perf_counter()
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
    seconds = time.perf_counter() - began
    if any(process.returncode for process in processes):
        raise UserError("a client has failed; it has said why")
    with tracking.asking(place) as client:
        found = client.get_experiment_by_name(experiment)
        kept = client.search_runs([found.experiment_id], max_results=jobs + 1)
    whole = [run for run in kept if run.data.metrics.keys() >= set(METRICS)]
    if not len(kept) == len(whole) == sum(run.info.status == "FINISHED" for run in kept) == jobs:
        raise UserError(f"{place.uri} has {len(whole)} whole runs of {len(kept)}, expected {jobs}")
    kind = "real" if train else "short"
    yield {"what": f"{jobs} {kind} jobs, {clients} clients, {name}", "seconds": seconds}
    yield {"what": "one of them", "seconds": seconds * clients / jobs}


def _many_runs(place: tracking.Store, experiment: str, runs: int) -> list[dict[str, Any]]:
    """Simulate a sweep of so many runs, and ask about it what our doors ask."""
    from fmnist_lab.benchmark.simulation import megabytes, multiply

    config = _config()
    tags = {"job": "sweep", "sweep.jobs": str(runs)}
    sweep = tracking.SweepRun.open(place, experiment, "a paper", tags, resume=False)
    member = {tracking.member_tag(sweep.id): "00000", "mlflow.parentRunId": sweep.id}
    original = job(place, experiment, config, "original", member)
    before = megabytes(place)
    settings = {
        "model.hidden_units": [32 * each for each in range(1, GRID + 1)],
        "optimizer.learning_rate": [1e-4 * 2**each for each in range(GRID)],
        "model.dropout": [each / 20 for each in range(GRID)],
        "seed": list(range(1, 1 + runs // GRID**3)),
    }
    multiply(place, original, sweep.id, settings)
    size = megabytes(place) - before
    Console(highlight=False).print(f"{runs} runs of {EPOCHS} epochs take {size:,.0f} MB.")
    sweep.close("FINISHED", "", {}, Path("nothing"))
    same = f"tags.`config.hash` = '{config.identity()}' and tags.job = 'train'"
    here = f"{same} and tags.`{tracking.member_tag(sweep.id)}` = '00007'"
    doors = [sys.executable, "-m", "fmnist_lab.runs"]
    where = [f"--store={place.uri}"]

    def door(*words: str) -> Callable[[], object]:
        return lambda: subprocess.run([*doors, *words, *where], check=True, capture_output=True)

    questions: dict[str, Callable[[], object]] = {
        "is there a run of this configuration (resume=true)": lambda: tracking.known(
            place, experiment, same
        ),
        "has this job of the sweep been begun (each job)": lambda: tracking.known(
            place, experiment, here
        ),
        "what runs, what has ended (the live view)": lambda: sweep.progress(
            round(time.time() * 1000)
        ),
        "runs list": door("list", f"--experiment={experiment}"),
        "runs report": door("report", sweep.id),
        "runs report --output": door("report", sweep.id, "--output=report"),
    }
    rows = []
    for what, ask in questions.items():
        began = time.perf_counter()
        ask()
        rows.append({"what": f"{what}, of {runs} runs", "seconds": time.perf_counter() - began})
    return rows


def _config(**overrides: Any) -> Config:
    """Return the default configuration, or what is made of it."""
    import hydra
    from omegaconf import OmegaConf

    from fmnist_lab import config

    words = [f"{key}={value}" for key, value in overrides.items()]
    with hydra.initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        values = OmegaConf.to_container(hydra.compose("config", words), resolve=True)
    return config.validate(values)  # type: ignore[arg-type]
