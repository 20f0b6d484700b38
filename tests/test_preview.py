"""A dry run: nothing is started or written, answers are found, and estimates are near the truth."""

import json
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from mlflow import MlflowClient

from fmnist_lab import run
from fmnist_lab.config import naming
from fmnist_lab.config.schema import Config
from fmnist_lab.sweep import estimate
from fmnist_lab.sweep.estimate import Estimator, makespan
from fmnist_lab.sweep.search.trials import LOG, TrialLog
from fmnist_lab.tracking import Store, history
from fmnist_lab.tracking.history import PastRun

SWEEP = ("-m", "model.hidden_units=32,128", "seed=0,1", "trainer.epochs=4")
TIMES = {"fixed": 2.0, "epoch": 0.5}


class Searching(Sweeper):
    """A sweeper that chooses its jobs one by one."""

    def setup(self, **_: object) -> None:
        raise AssertionError

    def sweep(self, arguments: list[str]) -> None:
        raise AssertionError


class Kept:
    """A store in which runs are made by hand."""

    def __init__(self, folder: Path) -> None:
        self.store = Store.locate(f"sqlite:///{folder}/mlflow.db")
        self.experiment = self.store.open(None)
        self.client = MlflowClient(self.store.uri)
        self.began = 1_700_000_000_000

    def run(self, config: Config, *, engine: str = "native", **tags: str) -> str:
        """Keep a finished training that has taken `TIMES`."""
        self.began += 3_600_000
        facts = {"job": "train", "host": socket.gethostname(), "threads": "2", "engine": engine}
        facts |= {"config.hash": config.identity(), "config.hash.native": config.native_identity()}
        made = self.client.create_run(self.experiment, self.began, facts | tags, "a run")
        run_id = made.info.run_id
        for key, value in naming.params(config).items():
            self.client.log_param(run_id, key, value)
        for epoch in range(1, config.trainer.epochs + 1):
            moment = self.began + round(1000 * (1 + TIMES["epoch"] * epoch))
            self.client.log_metric(run_id, "images_per_second", 600_000, moment, epoch)
        seconds = TIMES["fixed"] + TIMES["epoch"] * config.trainer.epochs
        self.client.set_terminated(run_id, "FINISHED", self.began + round(1000 * seconds))
        return run_id


@pytest.fixture
def kept(hydra_here) -> Kept:
    return Kept(hydra_here)


def contents(folder: Path) -> dict[str, tuple[float, int]]:
    found = ((file, file.stat()) for file in folder.rglob("*"))
    return {str(file): (now.st_mtime_ns, now.st_size) for file, now in found}


def shown(capsys, *words: str) -> str:
    capsys.readouterr()
    run.main(*words, "dry_run=true")
    return capsys.readouterr().out


def test_a_sweep_is_shown_with_its_answers_and_nothing_is_written(door, kept, capsys):
    sizes = {"config.yaml": "800 0", "../../models/m-1/artifacts/data/model.keras": "1000000 0"}
    for seed in ("seed=0", "seed=1"):
        kept.run(door.config("model.hidden_units=128", "trainer.epochs=4", seed))
    lost = door.config("model.hidden_units=32", "trainer.epochs=4")
    damaged = kept.run(lost, files=json.dumps(sizes))
    kept.run(door.config("model.hidden_units=32", "trainer.epochs=4", "seed=1"), reproduces="1")
    place = kept.client.get_run(damaged).info.artifact_uri.removeprefix("file://")
    Path(place).mkdir(parents=True, exist_ok=True)  # config.yaml is lost
    kept.store.unfinished.joinpath(f"{lost.identity()}-2").mkdir(parents=True)
    before = contents(Path.cwd())
    out = shown(capsys, *SWEEP)
    assert contents(Path.cwd()) == before
    assert "finished  2 of 4 jobs: resume=true takes over their results\n" in out
    assert "begun     1 of 4 jobs: resume=true goes on with them\n" in out
    assert "from 4 earlier runs on this machine" in out
    rows = [line.split() for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert [(row[1], row[2], row[6:]) for row in rows] == [
        *(("h32", "s0", ["begun"]), ("h32", "s1", [])),
        *(("h128", "s0", ["finished"]), ("h128", "s1", ["finished"])),
    ]
    # Its runs took 2 s and half a second per epoch, of 4.
    assert {row[4] for row in rows[2:]} == {"4.0"}
    assert "Nothing was started" in out
    resumed = shown(capsys, *SWEEP, "resume=true")
    assert "finished  2 of 4 jobs: their results are taken over\n" in resumed
    assert contents(Path.cwd()) == before


def test_it_imports_neither_tensorflow_nor_mlflow_and_makes_no_store(doors, tmp_path):
    code = (
        "import sys; from fmnist_lab import run; run.main(*sys.argv[1:]); "
        "heavy = ('tensorflow', 'keras', 'mlflow', 'pandas', 'matplotlib'); "
        "print([each for each in heavy if each in sys.modules])"
    )
    words = ("trainer.epochs=1,5,10,20", "model.hidden_units=32,128,512", "seed=range(12)")
    done = doors.python(tmp_path, code, "-m", *words, "dry_run=true")
    assert (done.code, done.err) == (0, "")
    *_, imported = done.out.splitlines()
    assert imported == "[]"
    assert "sweep     144 jobs: trainer.epochs=1,5,10,20" in done.out
    assert "which does not exist yet" in done.out
    assert " …  and 94 jobs more\n" in done.out
    assert "\n144  h512 e20 s11 " in done.out
    assert list(tmp_path.iterdir()) == []


def test_a_single_run_is_shown_in_short(door, kept, capsys):
    run_id = kept.run(door.config("trainer.epochs=3"))
    out = shown(capsys, "trainer.epochs=3", "trainer.threads=2")
    assert "run       h128 e3 threads2 s0\n" in out
    assert "Adam learning_rate=0.001, batches of 32, 3 epochs, seed 0\n" in out
    assert "from 1 earlier run on this machine" in out
    # The native engine has the same bits with any number of threads.
    assert f"finished  run a run ({run_id}) has answered this config; resume=true would" in out
    assert "finished" not in shown(capsys, "trainer.epochs=2")


def test_a_search_is_shown_with_its_budget(door, kept, capsys):
    Plugins.instance().register(Searching)
    kept.run(door.config("trainer.epochs=4"))
    words = (f"hydra.sweeper._target_={__name__}.Searching", "+hydra.sweeper.n_trials=60")
    rate = "optimizer.learning_rate=interval(0.1,1)"
    out = shown(capsys, "-m", *words, "trainer.epochs=4", rate)
    assert "optimizer.learning_rate=interval(0.1,1)" in out
    assert re.search(r"^budget +60 trials$", out, re.M)
    assert "a trial takes at most about 4.0 s, which is that of h128 e4 s0" in out
    assert "none can be listed" in out


@pytest.mark.slow
def test_a_search_takes_no_longer_than_is_said(door, kept, capsys, monkeypatch):
    hashes = []

    def opened(*arguments: object, **_: object) -> None:
        hashes.append(arguments[3]["sweep.hash"])
        raise SystemExit(0)

    kept.run(door.config("trainer.epochs=4", "data.validation_fraction=0.1"))
    words = ("-m", "hydra/sweeper=optuna", "hydra.sweeper.pruning=none", "hydra.sweeper.finals=3")
    words += ("data.validation_fraction=0.1", "model.hidden_units=32,128", "trainer.epochs=1,4")
    monkeypatch.setattr(door, "sweep", opened)
    assert door(*words, "hydra.sweeper.sampler=grid") == 0
    out = shown(capsys, *words, "hydra.sweeper.sampler=grid")
    # Of the values that go together, too, those that take longest; and a training more often than
    # a trial has the held-out images.
    assert "a trial takes at most about 4.0 s, which is that of h128 e4" in out
    most = re.search(r"at most about ([\d.]+) s on 1 worker, 3 trainings of the winner", out)
    assert 8.5 + 4 * 4.4 + 3 * 4.4 <= float(most[1]) <= 45
    # One trial begins when the time is nearly up, and the winner is trained then.
    out = shown(capsys, *words, "hydra.sweeper.timeout=0.1")
    most = re.search(r"at most about ([\d.]+) s on 1 worker", out)
    assert 8.5 + 6 + 4.4 + 3 * 4.4 <= float(most[1]) <= 36
    search = kept.client.create_run(kept.experiment, tags={"sweep.hash": hashes[0]}).info.run_id
    log = TrialLog(Path("mlruns/hydra", search, LOG))
    for number in (0, 1):
        log.write("trial", number, 0.0, epochs=0, values={}, attrs={})
    log.write("result", 0, 4.0, epochs=[0], objectives=[0.9])
    log.close()
    before = contents(Path.cwd())
    out = shown(capsys, *words, "hydra.sweeper.sampler=grid", "resume=true")
    assert contents(Path.cwd()) == before
    assert "begun    2 trials before, 1 of them finished; it goes on\n" in out


def test_a_search_is_likely_to_take_what_pruning_and_small_trials_leave_of_the_most(
    door, kept, capsys
):
    kept.run(door.config("trainer.epochs=9", "data.validation_fraction=0.1"))
    words = ("-m", "hydra/sweeper=optuna", "trainer.epochs=9", "data.validation_fraction=0.1")
    words += (
        "model.dropout=interval(0,0.5)",
        "hydra.sweeper.n_trials=60",
        "hydra.sweeper.finals=0",
    )
    found = {}
    for pruning in ("asha", "none"):
        out = shown(capsys, *words, f"hydra.sweeper.pruning={pruning}")
        found[pruning] = re.search(
            r"about ([\d.]+) min ([\d.]+) s, and at most about", out
        ).groups()
    pruned, whole = (60 * int(a) + int(b) for a, b in found.values())
    # Of 60 trials 23 come to the third epoch and 12 to the ninth, each in 2 s beside its epochs.
    epochs = 60 + 2 * 23 + 6 * 12
    assert whole == pytest.approx(8.5 + 60 * (2.4 + 9 * 0.5), rel=0.05)
    assert pruned == pytest.approx(8.5 + (60 + 23 + 12) * 2.4 + epochs * 0.5, rel=0.05)


def test_whether_it_is_a_dry_run_is_no_part_of_a_sweep(door, monkeypatch):
    hashes = []

    def opened(*arguments: object, **_: object) -> None:
        hashes.append(arguments[3]["sweep.hash"])
        raise SystemExit(0)

    monkeypatch.setattr(door, "sweep", opened)
    for words in (["seed=0,1"], ["seed=0,1", "dry_run=false"], ["seed=0,2"]):
        assert door("-m", *words) == 0
    assert hashes[0] == hashes[1] != hashes[2]
    assert "dry_run: received true,false, expected" in door.error("-m", "dry_run=true,false")


def test_a_server_tells_the_same_as_a_database(door, kept):
    config = door.config("trainer.epochs=3")
    run_id = kept.run(config, files='{"a": "100 x", "b": "23 x"}')
    hashes = [(config.identity(), config.native_identity()), ("other", "hashes")]
    server = replace(kept.store, database=None)
    (read,) = history.past_runs(kept.store, ["mlp"], socket.gethostname())
    (asked,) = history.past_runs(server, ["mlp"], socket.gethostname())
    assert (read.run_id, read.seconds, read.bytes) == (run_id, 3.5, 123)
    assert replace(asked, epochs=read.epochs) == read
    assert history.past_runs(kept.store, ["mlp"], "elsewhere") == []
    for store in (kept.store, server):
        found, whole = history.answers(store, "fmnist_lab", hashes)
        assert (set(found) & {config.identity()}, whole) == ({config.identity()}, True)
        assert history.answers(store, "another", hashes) == ({}, True)


def past(config: Config, epoch: float, fixed: float, *, inherited: int = 0, engine="native"):
    """Return a run that took so many seconds, of whose epochs some came from before."""
    count = config.trainer.epochs
    ends = [0.9 + max(0, each - inherited) * epoch for each in range(1, count + 1)]
    seconds = fixed + epoch * (count - inherited)
    params = {key: str(value) for key, value in naming.params(config).items()}
    tags = {"engine": engine, "threads": "2", "device": "cpu"}
    epochs = [(end, 120_000 / epoch) for end in ends]
    return PastRun(f"{engine} {config}", seconds, params, tags, 10**6, epochs)


@pytest.fixture
def steady(monkeypatch):
    monkeypatch.setattr(estimate, "speed", lambda: 1e11)


def test_an_estimate_follows_from_earlier_runs(door, steady):
    config = door.config("trainer.epochs=8")
    known = Estimator([past(config, 0.3, 2.0)], threads=2).estimate(config)
    assert (known.fixed, known.epoch) == (pytest.approx(2.0, rel=0.2), pytest.approx(0.3))
    assert known.bytes == pytest.approx(10**6, rel=0.2)
    # Half of its epochs came from a shorter run: the others tell how long one takes.
    left = Estimator([past(config, 0.3, 2.0, inherited=4)], threads=2).estimate(config)
    assert (left.fixed, left.epoch) == (pytest.approx(2.0, rel=0.2), pytest.approx(0.3))
    # Half of the images take half of the time, apart from what an epoch takes in any case.
    half = door.config("data.train_limit=30000", "data.test_limit=5000")
    estimator = Estimator([past(config, 0.3, 2.0)], threads=2)
    assert estimator.estimate(half).epoch == pytest.approx(0.165, rel=0.1)
    # The nearest model counts, and other engines do not for one that is asked for.
    runs = [past(door.config("model.hidden_units=2048"), 3.0, 2.0), past(config, 0.3, 2.0)]
    wide = door.config("model.hidden_units=1024")
    assert Estimator(runs, threads=2).estimate(wide).epoch == pytest.approx(1.6, rel=0.2)
    asked = door.config("trainer.engine=xla")
    assert Estimator(runs, threads=2).estimate(asked).runs == ()
    slow = [past(config, 0.9, 2.0, engine="graph"), past(config, 0.3, 2.0)]
    assert Estimator(slow, threads=2).estimate(config).epoch == pytest.approx(0.3)


def test_without_earlier_runs_a_cost_model_tells(door, steady):
    known = Estimator([], threads=2)
    default, wide = door.config(), door.config("model.hidden_units=[1024,1024]")
    assert 4 < known.estimate(wide).epoch / known.estimate(default).epoch < 20
    more = door.config("data.train_limit=6000", "data.test_limit=1000")
    assert 4 < known.estimate(default).epoch / known.estimate(more).epoch < 10
    own = door.config("model=own", "model._target_=mine.network")
    assert not known.estimate(own).known
    assert known.estimate(default).known


def test_the_jobs_of_a_sweep_share_epochs_and_workers():
    jobs = [(1.0, 0.5, 2, "a"), (1.0, 0.5, 6, "a"), (1.0, 0.5, 4, None)]
    assert makespan(jobs, 1, 0.25) == 3 * 1.25 + 0.5 * (2 + 4 + 4)
    # The second job begins before the first is over, and so trains all of its epochs.
    assert makespan(jobs, 2, 0.0) == max(1 + 3, 1 + 1 + 1 + 2)
    assert makespan(jobs, 3, 0.0) == 4
