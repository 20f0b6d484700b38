"""A disk that is full from a moment on: one sentence, and with room again the same end."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from doors import one_line
from outcomes import SPEED, outcome

from fmnist_lab import figures, run, tracking
from fmnist_lab.jobs import outputs
from fmnist_lab.tracking import Store, modelfiles, orphans
from fmnist_lab.training import checkpoint

pytestmark = pytest.mark.slow

WORDS = (
    *("data.train_limit=200", "data.test_limit=100", "trainer.epochs=4", "checkpoint.every=1"),
    *("model.hidden_units=8", "model.dropout=0.2", "trainer.engine=graph"),
)


class Disk:
    """A file system of a few megabytes that can be filled to its last byte."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ballast = folder / "ballast"

    def fill(self) -> None:
        with self.ballast.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def make_room(self) -> None:
        self.ballast.unlink()

    @contextmanager
    def full_from(self, moment: str) -> Iterator[None]:
        """Fill the disk at a moment of what is run within."""
        owner, name, when = MOMENTS[moment]()
        with pytest.MonkeyPatch.context() as patch:
            if moment.startswith("after epoch"):
                # The store is there by then, however short the epochs are.
                patch.setattr(tracking.Run, "params", opened(tracking.Run.params))
            real = getattr(owner, name)

            def hooked(*words, **options):
                before = when == "before" or callable(when)
                if before and (not callable(when) or when(*words)):
                    self.fill()
                value = real(*words, **options)
                if when == "after":
                    self.fill()
                return value

            is_static = isinstance(vars(owner).get(name), staticmethod)
            patch.setattr(owner, name, staticmethod(hooked) if is_static else hooked)
            yield
        self.make_room()


def opened(params: Callable) -> Callable:
    def log(run: tracking.Run, *words) -> None:
        params(run, *words)
        run.wait_until_open()

    return log


def epoch(number: int) -> tuple:
    # Each time: a line of the journal may still have fitted into its file's last block.
    return checkpoint.Checkpointer, "after", lambda keeper, *_: len(keeper.history) >= number


def keras_model() -> type:
    import keras

    return keras.Model


# What is called, and whether the disk is full before or after that.
MOMENTS = {
    "before the store is made": lambda: (Store, "_create_database", "before"),
    "at the run's creation": lambda: (Store, "open", "after"),
    "after epoch 1": lambda: epoch(1),
    "after epoch 3": lambda: epoch(3),
    "after training": lambda: (outputs, "keep_results", "before"),
    "while the model is saved": lambda: (keras_model(), "save", "before"),
    "while the model is delivered": lambda: (modelfiles, "log", "before"),
    "while figures are drawn": lambda: (figures, "confusion_matrix", "before"),
    "at the end": lambda: (tracking.Run, "close", "before"),
    "when the sweep is summed up": lambda: (tracking.SweepRun, "members", "before"),
}


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Iterator[Disk]:
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)]
    if not sys.platform.startswith("linux") or os.getuid() or subprocess.call(mount):
        pytest.skip("only root can mount a file system of a given size, and only on Linux")
    try:
        yield Disk(folder)
    finally:
        # SQLite's files are still open in this process.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def command(hydra_here, real_data, backend, monkeypatch, capsys):
    """Call `run` in a folder; return its exit code and what it said on standard error."""

    def call(folder: Path, *words: str) -> tuple[int, str]:
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["run", *words])
        capsys.readouterr()
        code = 0
        try:
            run.main()
        except SystemExit as ended:
            code = ended.code
        return code, capsys.readouterr().err

    return call


@pytest.fixture(scope="module")
def undisturbed() -> dict:
    return {}


@pytest.fixture
def expected(undisturbed, command, disk) -> dict:
    """What the run comes to if nobody disturbs it."""
    if not undisturbed:
        folder = disk.folder / "undisturbed"
        assert command(folder, *WORDS) == (0, "")
        undisturbed.update(outcome(f"sqlite:///{folder}/mlflow.db", folder), id="")
        shutil.rmtree(folder)
    return undisturbed


def check_told(said: tuple[int, str]) -> None:
    code, text = said
    assert code == 2, text
    told = one_line(text)
    assert "make room, and repeat the command" in told
    assert "is full" in told or "No space left on device" in told


@pytest.mark.parametrize("moment", list(MOMENTS)[:-1])
def test_a_run_says_so_and_goes_on_to_the_same_end(expected, command, disk, moment):
    folder = disk.folder / moment.replace(" ", "_")
    with disk.full_from(moment):
        check_told(command(folder, *WORDS))
    assert command(folder, *WORDS, "resume=true") == (0, "")
    found = outcome(f"sqlite:///{folder}/mlflow.db", folder)
    shutil.rmtree(folder)
    assert found | {"id": ""} == expected


@pytest.mark.parametrize(
    "moment",
    [
        *("before the store is made", "after epoch 3", "while the model is delivered"),
        "when the sweep is summed up",
    ],
)
def test_a_sweep_says_so_and_is_finished_to_the_same_end(
    expected, command, disk, moment, monkeypatch
):
    from mlflow import MlflowClient

    # Both commands are of this process, so that the sweep would seem to go on.
    monkeypatch.setattr(orphans, "this_process", dict)
    folder = disk.folder / f"sweep {moment}".replace(" ", "_")
    words = ("-m", "seed=0,1", *WORDS)
    with disk.full_from(moment):
        check_told(command(folder, *words))
    assert command(folder, *words, "resume=true") == (0, "")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    place = client.get_experiment_by_name("fmnist_lab").experiment_id
    # Of a sweep's name, the first word.
    runs = {each.info.run_name.split()[0]: each for each in client.search_runs([place])}
    assert {name: each.info.status for name, each in runs.items()} == dict.fromkeys(
        ["sweep", "s0", "s1"], "FINISHED"
    )
    assert not any(each.data.tags.get("failure") for each in runs.values())
    metrics = {
        name: [(p.step, p.value) for p in client.get_metric_history(runs["s0"].info.run_id, name)]
        for name in runs["s0"].data.metrics
        if name != SPEED
    }
    shutil.rmtree(folder)
    assert metrics == expected["metrics"]
