"""Paired axes: `zip(…)` makes axes of a sweep advance together."""

import csv
import json
from contextlib import nullcontext

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from test_sweep import LOCAL_CORES, TINY, Kept

from fmnist_lab import jobs as jobs_room
from fmnist_lab import run
from fmnist_lab.config.naming import sweep_name
from fmnist_lab.errors import UserError
from fmnist_lab.sweep import pairs

PAIR = ("trainer.epochs=zip(1,5,20)", "model.hidden_units=zip(32,128,512)")


@pytest.fixture(autouse=True)
def _zip() -> None:
    pairs.add_zip()


def jobs(*words: str) -> list[str]:
    return [" ".join(job) for job in pairs.jobs(OverridesParser.create().parse_overrides([*words]))]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a=zip(1,5)", "b=zip(3,4)"], ["a=1 b=3", "a=5 b=4"]),
        (
            # Ordinary axes multiply, each word stays in its place, and the last changes fastest.
            ["a=zip(1,5)", "s=0,1", "+b=zip([2,3],null)", "c=x"],
            [
                *("a=1 s=0 +b=[2,3] c=x", "a=1 s=1 +b=[2,3] c=x"),
                *("a=5 s=0 +b=null c=x", "a=5 s=1 +b=null c=x"),
            ],
        ),
        (["a=zip(range(2))", "b=zip('x y',z)"], [r"a=0 b=x\ y", "a=1 b=z"]),
        (
            # Hydra's tags tell pairs from other pairs.
            ["a=tag(p,zip(1,2))", "b=tag(p,zip(3,4))", "c=zip(5,6)", "d=zip(7,8)"],
            [
                *("a=1 b=3 c=5 d=7", "a=1 b=3 c=6 d=8"),
                *("a=2 b=4 c=5 d=7", "a=2 b=4 c=6 d=8"),
            ],
        ),
        # Of a key that is given twice, such as by an experiment, the later word counts.
        (["a=zip(1,5)", "b=zip(3,4)", "a=7", "b=8,9"], ["a=7 b=8", "a=7 b=9"]),
        (["a=1,2", "b=3"], ["a=1 b=3", "a=2 b=3"]),
    ],
)
def test_values_that_are_zipped_go_together(words, expected):
    assert jobs(*words) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a=zip(1,5)", "b=zip(1,2,3)"], "received a with 2, b with 3 values, expected as many"),
        (["a=zip(1,5)", "b=3,4"], "a: received zip(1,5), but no other key has a zip(…)"),
        (["a=zip()", "b=zip()"], "a: received zip(), expected its values"),
        (["a=int(zip(1,2))", "b=zip(1,2)"], "a: received int(zip(1,2)), expected zip(…) around"),
        (["a=shuffle(zip(1,2))", "b=zip(1,2)"], "a: received shuffle(zip(1,2)), expected zip("),
        (["a=zip(1,choice(1,2))", "b=zip(1,2)"], "a: received zip(1,choice(1,2)), expected zip("),
    ],
)
def test_values_that_cannot_go_together_are_refused(words, said):
    with pytest.raises(UserError) as refused:
        jobs(*words)
    assert said in str(refused.value)


def test_a_sweep_is_named_by_what_goes_together():
    axes = {"trainer.epochs": ["1", "5"], "seed": ["0", "1"], "model.hidden_units": ["32", "64"]}
    together = [("trainer.epochs", "model.hidden_units")]
    name = "sweep epochs 1,5 with hidden_units 32,64 × 2 seeds"  # noqa: RUF001
    assert sweep_name(axes, together=together) == name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-m", "trainer.epochs=zip(1,2)", "seed=zip(1,2,3)"], "zip: received trainer.epochs with"),
        (PAIR, "trainer.epochs: received zip(1,5,20), which is several values, expected one"),
        # All values are checked, although each of these jobs differs from the first in two.
        (["-m", "seed=zip(0,1,2)", "trainer.epochs=zip(1,2,x)"], "trainer.epochs: received 'x'"),
        (
            ["-m", *PAIR, "hydra.sweeper._target_=mine.Sweeper"],
            "trainer.epochs: received zip(1,5,20), but only hydra/sweeper=basic lets axes",
        ),
    ],
)
def test_the_command_line_refuses_it_in_a_sentence(door, words, said):
    assert said in door.error(*words)


@pytest.mark.parametrize("size", ["null", "3"])
def test_the_sweeper_does_the_jobs_that_were_planned(hydra_here, monkeypatch, size):
    done = []
    monkeypatch.setattr(jobs_room, "run", lambda config, _: done.append(config))
    monkeypatch.setattr(run, "_driven", lambda *_: nullcontext())
    run.main("-m", *PAIR, "seed=0,1", f"hydra.sweeper.max_batch_size={size}")
    assert [(each.trainer.epochs, each.model.hidden_units, each.seed) for each in done] == [
        *((1, 32, 0), (1, 32, 1), (5, 128, 0), (5, 128, 1), (20, 512, 0), (20, 512, 1)),
    ]


@pytest.mark.slow
def test_a_paired_sweep_of_an_experiment_is_tracked_resumed_and_reported(doors, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "pairs.yaml").write_text(
        "# @package _global_\n"
        "hydra: {sweeper: {params: {trainer.epochs: 'zip(1,2)', model.hidden_units: 'zip(8,16)'}}}"
    )
    words = ("-m", "--config-dir", "mine", "experiment=pairs", "seed=0,1", *TINY, LOCAL_CORES)
    first = doors("run", tmp_path, *words)
    assert (first.code, first.err) == (0, "")
    kept = Kept(tmp_path)
    names = ["h8 e1 s0", "h8 e1 s1", "h16 e2 s0", "h16 e2 s1"]
    assert list(kept.states()) == names
    assert json.loads(kept.parent.data.tags["sweep.axes"]) == [
        *("trainer.epochs", "model.hidden_units", "seed"),
    ]
    assert "epochs 1,2 with hidden_units 8,16" in kept.parent.info.run_name
    rows = list(csv.DictReader(kept.text(kept.parent, "summary.csv").splitlines()))
    assert [(row["trainer.epochs"], row["model.hidden_units"]) for row in rows] == [
        *(("1", "8"), ("2", "16")),
    ]
    # The same sweep is found again, and all of its jobs are answered.
    second = doors("run", tmp_path, *words, "resume=true")
    assert second.code == 0
    assert second.out.count("from before") == 4
    assert len(Kept(tmp_path).runs) == 5
