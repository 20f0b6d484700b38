"""Command lines of `fmnist_lab.run` in this process, and how they are answered."""

import logging
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from doors import one_line
from hypothesis import strategies as st

from fmnist_lab import jobs, run
from fmnist_lab.config.schema import Config


class Door:
    """`python -m fmnist_lab.run` in this process, with a job that only says what it was asked."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.asked: list[Config] = []
        self.swept = False

    def __call__(self, *words: str) -> int:
        self.asked.clear()
        self.swept = False
        self.capsys.readouterr()
        root = logging.getLogger()
        level, handlers = root.level, root.handlers[:]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["run", *words])
            patch.setattr(jobs, "run", self.job)
            # A sweep ends where it would open its parent run, or begin its first job.
            for begun in ("tracking.SweepRun.open", "sweep.driver.SweepDriver"):
                patch.setattr(f"fmnist_lab.{begun}", self.sweep)
            try:
                run.main()
            except SystemExit as end:
                return end.code or 0
            finally:
                # What --info has added.
                root.handlers[:] = handlers
                root.setLevel(level)
        return 0

    def job(self, config: Config, _: object) -> None:
        self.asked.append(config)

    def sweep(self, *_: object, **__: object) -> NoReturn:
        self.swept = True
        raise SystemExit(0)

    def config(self, *overrides: str) -> Config:
        assert self(*overrides) == 0
        (asked,) = self.asked
        return asked

    def error(self, *overrides: str) -> str:
        """Return the one line that refuses these overrides."""
        code = self(*overrides)
        out, err = self.capsys.readouterr()
        assert (code, out, self.asked) == (2, "", [])
        return one_line(err)


KEYS = st.sampled_from(
    [
        *("trainer.epochs", "trainer.batch_size", "trainer.engine", "trainer", "model", "seed"),
        *("model.hidden_units", "model.dropout", "model.activation", "optimizer", "name", "job"),
        *("optimizer.learning_rate", "optimizer._target_", "data.validation_fraction", "nope"),
        *("data.dir", "tracking", "tracking.kind", "experiment", "debug", "model_uri", "a.b.c"),
    ]
)


VALUES = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        [
            *(
                "null",
                "true",
                "abc",
                "",
                "[]",
                "[1]",
                "[1,[2]]",
                "{}",
                "{a: 1}",
                "{epochs: 3}",
                "'x'",
            ),
            *("mlp", "linear", "sgd", "default", "none", "evaluate", "smoke", "relu", "a,b", "1,2"),
            *("${seed}", "${nope}", "${trainer}", "???", "${model.", "1e-3", "range(3)", "a=b"),
            *(
                "keras.optimizers.Lion",
                "runs:/1/model",
                "../x",
                "é",
                "[",
                '"',
                "\\",
                "1_000",
                "0x10",
            ),
        ]
    ),
)


OVERRIDES = st.builds(
    "{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~"]), KEYS, VALUES
) | st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=8)


NAMES = st.sampled_from(["config", "own", "own/config.yaml", "broken/config", "nope", "/", "", "."])


FLAGS = st.one_of(
    st.sampled_from(
        [
            *("-m", "-m", "--multirun", "-r", "--run", "-mr", "--resolve", "--version", "--", "-h"),
            *("--help", "--hydra-help", "-sc install=bash", "--shell-completion", "-sc query=fish"),
            *("-c job", "--cfg job", "--cfg=all", "--cfg hydra", "-cjob", "--cfg nope", "--cfg"),
            *("-i", "--info", "--info defaults", "--info=plugins", "--info nope", "-i searchpath"),
            *("-p trainer", "--package=nope", "--package", "--experimental-rerun own/config.yaml"),
            *("-m hydra/launcher=local_cores", "hydra/sweeper=nope", "-m hydra.sweeper=null"),
            *("hydra.mode=MULTIRUN", "hydra.mode=RUN", "hydra.searchpath=[nope]", "hydra.nope=1"),
            *("--epochs 5", "-e 5", "--trainer.epochs=5", "--model cnn", "--nope", "-x", "---"),
            *("model.hidden_units=[256, 128]", "trainer.epochs = 5", "trainer.epochs 5"),
            *("seed=0,1", "trainer.epochs=1,2", "seed=range(3)", "name=my run"),
        ]
    ).map(str.split),
    st.builds(
        lambda flag, name: [flag, name],
        st.sampled_from(
            [
                *("--config-path", "-cp", "--config-dir", "-cd", "--config-name", "-cn"),
                *("--config-dir", "--config-name"),
            ]
        ),
        NAMES,
    ),
)


LINES = st.lists(OVERRIDES.map(lambda word: [word]) | FLAGS, min_size=1, max_size=4).map(
    lambda parts: [word for part in parts for word in part]
)


def folders_of_configs() -> None:
    """Make what `NAMES` names: a file of values, one that is no YAML, a defaults list in a ring."""
    for name, text in {
        "own/config.yaml": "trainer: {epochs: 3}\nmodel: cnn\n",
        "own.yaml": "defaults: [own]\n",
        "broken/config.yaml": "a: [1\n",
    }.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)


def check_answered(door: Door, words: list[str]) -> bool:
    """Have a command line carried out; return whether it was refused, in one line."""
    code = door(*words)
    out, err = door.capsys.readouterr()
    assert code in (0, 2)
    if code:
        assert door.asked == []
        one_line(err)
    else:
        assert err == ""
        # It is a job, or a sweep, or something to read.
        assert len(door.asked) == 1 or door.swept or out
    return bool(code)
