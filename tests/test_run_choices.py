"""What may be chosen for a run, each in a process of its own."""

import importlib
import re

import numpy as np
import pytest
from doors import QUICK
from tracked import FIGURES, Tracked, check_quiet, strays, suggestion

from fmnist_lab import config


@pytest.mark.slow
def test_eight_processes_at_once_in_an_empty_folder(doors, tmp_path):
    processes = [
        doors.start("run", tmp_path, *QUICK[:2], "trainer.epochs=1", f"seed={seed}")
        for seed in range(8)
    ]
    assert [process.code for process in processes] == [0] * 8, [each.err for each in processes]
    for process in processes:
        check_quiet(process)
    found = Tracked(tmp_path).runs()
    assert {each.info.status for each in found} == {"FINISHED"}
    assert sorted(each.data.params["seed"] for each in found) == [str(n) for n in range(8)]
    assert {each.info.experiment_id for each in found} == {found[0].info.experiment_id}
    assert all(Tracked(tmp_path).files(each) >= FIGURES for each in found)
    assert strays(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "optimizer", "name"),
    [
        (["optimizer._target_=keras.optimizers.Lion"], "Lion", "h128 e1 Lion"),
        (["model=linear", "optimizer=sgd"], "SGD", "linear e1 sgd"),
        (["model.hidden_units=[32,16]", "model.dropout=0.2"], "Adam", "h32-16 e1 dropout0.2"),
        (["data.validation_fraction=0.2", "trainer.engine=graph"], "Adam", "h128 e1"),
    ],
)
def test_other_choices_run_as_well(doors, tmp_path, overrides, optimizer, name):
    process = doors("run", tmp_path, *QUICK[:2], "trainer.epochs=1", *overrides)
    assert process.code == 0, process.err
    check_quiet(process)
    found = Tracked(tmp_path).one()
    validated = "data.validation_fraction=0.2" in overrides
    name += " train1000 test500 val0.2 s0" if validated else " train1000 test500 s0"
    assert (found.info.status, found.info.run_name) == ("FINISHED", name)
    assert found.data.params["optimizer"] == optimizer
    assert ("accuracy/validation" in found.data.metrics) == validated


@pytest.mark.slow
def test_not_every_epoch_need_be_evaluated(doors, tmp_path):
    process = doors("run", tmp_path, *QUICK[:2], "trainer.epochs=5", "trainer.evaluate_every=2")
    assert process.code == 0, process.err
    store = Tracked(tmp_path)
    for name, epochs in (("accuracy/test", [2, 4, 5]), ("accuracy/fit", [1, 2, 3, 4, 5])):
        assert [step for step, _ in store.history(store.one(), name)] == epochs
    gaps = [line for line in process.out.splitlines() if re.match(r" +\d/5 .*[+-]0\.", line)]
    assert [line.split()[0] for line in gaps] == ["2/5", "4/5", "5/5"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["data.train_limit=1", "data.test_limit=1", "trainer.epochs=1"],
        ["data.train_limit=40", "data.test_limit=13", "trainer.batch_size=1000"],
        ["debug=overfit", "data.test_limit=20"],
    ],
    ids=["one image", "one batch", "by heart"],
)
def test_few_images_are_enough_for_every_figure(doors, tmp_path, overrides):
    process = doors("run", tmp_path, *overrides)
    assert process.code == 0, process.err
    check_quiet(process)
    found = Tracked(tmp_path).one()
    assert found.info.status == "FINISHED"
    assert Tracked(tmp_path).files(found) >= FIGURES - {"prediction_12.png"}


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "warmup"])
def test_a_schedule_makes_no_noise(doors, tmp_path, schedule):
    process = doors(
        *("run", tmp_path, *QUICK[:2], "trainer.epochs=8", f"schedule={schedule}", "tracking=none")
    )
    assert process.code == 0
    check_quiet(process)


@pytest.mark.slow
def test_several_callbacks_watch_a_training(doors, tmp_path):
    words = ("callbacks=[early_stopping,reduce_on_plateau]", "data.validation_fraction=0.2")
    small = ("data.train_limit=1000", "data.test_limit=500", "trainer.epochs=40")
    steep = ("optimizer.learning_rate=0.01", "trainer.evaluate_every=100", "trainer.threads=1")
    process = doors("run", tmp_path, *words, *small, *steep)
    assert (process.code, process.err) == (0, "")
    assert ", 1 thread\n" in process.out
    store = Tracked(tmp_path)
    found = store.one().data
    assert found.params["callbacks"] == "early_stopping, reduce_on_plateau"
    assert found.tags["threads"] == "1"
    # Callbacks choose by the validation of every epoch; the last one's figures are those kept.
    losses = [value for _, value in store.history(store.one(), "loss/validation")]
    best = int(np.argmin(losses[:-1])) + 1
    assert len(losses) == best + 3 < 40
    assert losses[best - 1] == pytest.approx(losses[-1], abs=1e-9)
    assert found.tags["chosen.epoch"] == str(best)
    assert found.tags["chosen.by"] == "val_loss"
    assert f"epoch {best}, whose validation loss, {losses[-1]:.4f}, was the best" in " ".join(
        process.out.split()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["[red]x", "a[/b]", "ü & 'x'"])
def test_a_run_may_have_any_name(doors, tmp_path, name):
    folder = tmp_path / "fol[d]er"
    folder.mkdir()
    quoted = "name='" + name.replace("'", "\\'") + "'"
    process = doors("run", folder, *QUICK[:2], "trainer.epochs=1", quoted)
    assert process.code == 0, process.err
    assert f"Run '{name}', id " in process.out
    assert f"{folder}/mlflow.db" in process.out
    assert Tracked(folder).one().info.run_name == name


@pytest.mark.slow
def test_hydras_change_of_folder_does_not_move_the_store(doors, tmp_path):
    process = doors("run", tmp_path, *QUICK[:2], "trainer.epochs=1", "hydra.job.chdir=true")
    assert process.code == 0, process.err
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("mlflow.db")] == [
        "mlflow.db"
    ]


@pytest.mark.slow
def test_the_suggested_sweep_works(tracked, doors, tmp_path):
    module, *words = suggestion(tracked, "sweep")
    assert {"-m", *QUICK[:2]} < set(words)
    process = doors(module.removeprefix("fmnist_lab."), tmp_path, *words)
    assert process.code == 0, process.err
    assert process.err == ""
    assert "retracing" not in process.out
    found = Tracked(tmp_path).runs()
    assert {each.info.status for each in found} == {"FINISHED"}
    # A parent and its children.
    assert len({each.info.run_name for each in found}) == len(found) == 1 + 9
    assert strays(tmp_path) == []


@pytest.mark.slow
def test_a_run_outlives_the_reader_of_its_lines(doors, tmp_path):
    piped = """
import subprocess, sys
words = [sys.executable, "-m", "fmnist_lab.run", *sys.argv[1:]]
process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
process.stdout.readline()
process.stdout.close()
print(process.stderr.read(), process.wait())
"""
    process = doors.python(tmp_path, piped, *QUICK)
    assert process.out == " 0\n"
    (only,) = Tracked(tmp_path).runs()
    assert only.info.status == "FINISHED"
    process = doors.python(tmp_path, piped, "--help")
    assert process.out == " 0\n"


@pytest.mark.slow
def test_a_new_users_home_makes_no_noise(doors, tmp_path, real_data):
    """No matplotlib cache, no Keras folder, no compiled programs, and none of it writable."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o555)
    folder = tmp_path / "work"
    folder.mkdir()
    process = doors(
        *("run", folder, *QUICK, f"data.dir={real_data}"),
        HOME=str(home),
        KERAS_HOME=str(home / ".keras"),
        FMNIST_LAB_CACHE=str(home / "cache"),
        MPLCONFIGDIR=str(tmp_path / "matplotlib"),
    )
    assert process.code == 0, process.err
    check_quiet(process)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "kept"), [("xla", "*.pb"), ("native", "*.so")])
def test_a_cache_of_compiled_programs_that_broke_is_no_obstacle(
    doors, tmp_path, real_data, engine, kept
):
    """As when a process was killed while it wrote there."""
    cache = tmp_path / "cache"
    words = ["run", tmp_path, *QUICK, "tracking=none", f"data.dir={real_data}"]
    words.append(f"trainer.engine={engine}")
    assert doors(*words, FMNIST_LAB_CACHE=str(cache)).code == 0
    programs = list((cache / engine).rglob(kept))
    assert programs
    for program in programs:
        program.write_bytes(program.read_bytes()[:100])
    process = doors(*words, FMNIST_LAB_CACHE=str(cache))
    assert process.code == 0, process.err
    check_quiet(process)


def test_there_is_a_module_for_each_job_that_the_configs_offer():
    for name in config.options("job"):
        assert callable(importlib.import_module(f"fmnist_lab.jobs.{name}").run)
