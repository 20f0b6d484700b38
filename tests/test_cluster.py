"""How Hydra finds the launchers, and what these refuse before anything is begun."""

import pickle
import sys

import pytest
from doors import Process
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from fmnist_lab import config
from fmnist_lab.errors import UserError
from fmnist_lab.sweep.job import Sweep
from fmnist_lab.sweep.launchers import MODULES, PLUGINS, base, load, slurm_queue
from fmnist_lab.sweep.task import Task

PRESETS = ("slurm", "ray_cluster")
SERVER = config.Tracking(kind="server", uri="http://127.0.0.1:5000", experiment=None)


def preset(name: str, **values: object) -> DictConfig:
    file = config.conf_dir() / "hydra" / "launcher" / f"{name}.yaml"
    return OmegaConf.merge(OmegaConf.load(file), values)


def refusal(launcher: DictConfig, tracking: config.Tracking = SERVER) -> str:
    with pytest.raises(UserError) as error:
        base.prepare(launcher, tracking)
    return str(error.value)


def test_hydra_finds_each_launcher_under_the_name_in_its_preset():
    found = Plugins.instance().class_name_to_class
    for name, module in MODULES.items():
        assert preset(module)._target_ == f"{PLUGINS}.{name}"
        assert preset(module)._target_ in found
        assert load(name).options_class.model_fields.keys() == {
            "target" if key == "_target_" else key for key in preset(module)
        }


def test_to_find_the_launchers_imports_nothing_heavy(tmp_path):
    code = (
        "import sys, fmnist_lab.run\nfrom hydra.core.plugins import Plugins\nPlugins.instance()\n"
        "assert 'hydra_plugins.fmnist_lab' in sys.modules\n"
        "print({'multiprocessing', 'submitit', 'ray', 'numpy', 'rich', 'fmnist_lab.jobs',"
        " 'fmnist_lab.tracking', 'fmnist_lab.sweep.launchers.base'} & set(sys.modules))"
    )
    process = Process(tmp_path, "-c", code)
    assert (process.wait(), process.err, process.out) == (0, "", "set()\n")


def test_a_task_reaches_another_process_with_its_sweep_but_without_the_screen(tmp_path):
    task = Task()
    task.sweep = Sweep(None, tmp_path / "logs", ("seed",), ("--config-dir=mine",), began=0)
    task.remark = lambda text: None
    there = pickle.loads(pickle.dumps(task))
    assert (there.sweep, there.remark) == (task.sweep, print)
    job = there.sweep.job(3, ["seed=7", "trainer.epochs=1"])
    assert (job.member.job, job.member.name) == (3, "s7")
    command = "python -m fmnist_lab.run --config-dir=mine seed=7 trainer.epochs=1"
    assert job.member.command == command
    assert job.attempt(lambda: {"accuracy/test": 0.5}) == {"accuracy/test": 0.5}
    assert '"status": "FINISHED"' in (tmp_path / "logs" / "outcomes.jsonl").read_text()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("uri", [None, "sqlite:///mlflow.db", "postgresql+psycopg://lab@db/mlflow"])
def test_a_store_out_of_reach_of_other_machines_is_refused(monkeypatch, name, uri):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    local = config.Tracking(kind="local", uri=uri, experiment=None)
    said = refusal(preset(name), local)
    assert said.startswith(f"tracking.uri: received '{uri or 'sqlite:///mlflow.db'}' with hydra/")
    assert "other machines reach neither" in said
    assert "tracking=server tracking.uri=http://HOST:5000" in said


@pytest.mark.parametrize("name", PRESETS)
def test_results_that_nobody_keeps_are_refused(name):
    nowhere = config.Tracking(kind="none", uri=None, experiment=None)
    assert "expected tracking=server" in refusal(preset(name), nowhere)


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [("slurm", "submitit", "slurm"), ("ray_cluster", "ray", "ray")],
)
def test_a_missing_extra_is_named_with_its_command(monkeypatch, name, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    said = refusal(preset(name))
    assert f"pip install 'fmnist_lab[{extra}]'" in said


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("slurm", "cpus_per_task", 0),
        ("slurm", "mem_gb", "much"),
        ("slurm", "setup", "module load cuda"),
        ("ray_cluster", "num_cpus", 0),
        ("ray_cluster", "max_retries", -1),
        ("ray_cluster", "address", None),
    ],
)
def test_an_option_out_of_bounds_is_refused(name, key, value):
    said = refusal(preset(name, **{key: value}))
    assert said.startswith(f"hydra.launcher.{key}: received ")
    assert ", expected " in said


def test_other_launchers_are_left_alone():
    basic = OmegaConf.create(
        {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}
    )
    base.prepare(basic, config.Tracking(kind="local", uri=None, experiment=None))


def test_what_slurm_writes_is_understood():
    limits = {"infinite": float("inf"), "2-00:00:00": 2880, "1:00:00": 60, "30:00": 30}
    assert {limit: slurm_queue.minutes(limit) for limit in limits} == limits
    gres = {"(null)": 0, "gpu:2": 2, "gpu:a100:4(S:0-1)": 4, "gpu:a100:4,gpu:h100.mig:1,nvme:8": 5}
    assert {each: slurm_queue.gpus(each) for each in gres} == gres


def test_a_job_that_is_neither_queued_nor_over_is_not_forgotten():
    def row(state: str, reason: str = "None") -> slurm_queue.Row:
        return slurm_queue.Row(state, reason, "", "fmnist_lab")

    rows = {
        "7_0": row("RUNNING"),
        "7_1": row("PENDING", "Resources"),
        "7_2": row("PENDING", "AssocMaxJobsLimit"),
        "7_3": row("NODE_FAIL"),
        "7_4": row("COMPLETED"),
    }
    jobs = {number: f"7_{number}" for number in range(6)}
    assert slurm_queue.ended(rows, jobs) == {3: "NODE_FAIL", 4: "COMPLETED", 5: "GONE"}
    assert slurm_queue.obstacles(rows, jobs.values()) == {"AssocMaxJobsLimit": 1}


def test_idle_processors_are_counted_once_and_in_whole_jobs(monkeypatch):
    """Node n1 is in two partitions; n4 is out of service."""
    lines = "n1|4/3/0/7|mixed\nn2|0/8/0/8|idle\nn1|4/3/0/7|mixed\nn4|0/8/0/8|drained*\n"
    monkeypatch.setattr(slurm_queue, "_ask", lambda *words: lines)
    options = preset("slurm", cpus_per_task=2)
    assert slurm_queue.idle(options) == 1 + 4
