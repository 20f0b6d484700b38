"""Runs as no program of ours would log them, one at a time in a store of healthy ones.

Any client of a store can log a run, and any program can damage a file. `Hostile` draws from a seed
what is wrong with one; the store's database is written to directly, as MLflow's client would refuse
some of it, and is slow.
"""

import io
import os
import random
import shutil
import socket
import sqlite3
import uuid
import zipfile
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from fmnist_lab import tracking
from fmnist_lab.config.schema import Config
from fmnist_lab.tracking import Store

ID = "%032x"
LABELS = np.arange(50) % 10
LONG = "x" * 8000
TEXTS = [
    *(
        "",
        " ",
        "\x1b[31mred\x1b[0m",
        "\x1b]0;title\x07",
        "\x1b[2J\x1b[H",
        "a\nb",
        "a\r\nb\tc",
        "\x00",
    ),
    *(
        "\u202eevil\u202c",
        "\u2066x\u2069",
        "\u2028",
        "\x85",
        "\x9b31m",
        "\ud7ff",
        "\U0001f600",
        LONG,
    ),
    *("[bold]x[/bold]", "[/]", "[", "\\", "[link=x]", "{x}", "%s", "${oc.env:HOME}", "$x^2$", "$"),
    *(
        "=1+1",
        "+1",
        "-1",
        "@x",
        "=cmd|' /C calc'!A0",
        "-0.03",
        "<script>alert(1)</script>",
        "</script>",
    ),
    *(
        "|",
        "a|b",
        "```",
        "# x",
        "'",
        '"',
        "a'b\"c",
        "--help",
        "-",
        "None",
        "nan",
        "../..",
        "/",
        "~",
    ),
]
NUMBERS = [
    *("1", "-1", "0", "-0.0", "1e400", "-1e400", "nan", "inf", "1e308", "9" * 400, "9" * 5000),
    *("1_000", "\u0663", "\u00b2", " 7 ", "0x10", "1e-400", "True", "none"),
]
LISTS = ["[1, 2]", "[]", "[1,", "[[1], [2]]", "[" * 200_000, "[" * 5000 + "]" * 5000]
LISTS += ["[None]", "['a']", "[1e400]", "[nan]", "[" + "1, " * 2000 + "1]", "[-1]", "[True]", "[,]"]
KEYS = [
    *("trainer.epochs", "model.hidden_units", "model", "optimizer", "seed", "trainer.threads"),
    *("evil.x", "evil", "-x.y", "a b.c", "name", "run_id", "status", "started", "ended", "job"),
    *("sweeps", "failure", "commit", "dirty", "job_number", "accuracy/test", "accuracy/gap", "x/y"),
    *("change", "runs", "epoch", "mean", "created", "", ".", "/", "model_uri", "data.train_limit"),
]
METRICS = [
    *(
        "accuracy/test",
        "accuracy/gap",
        "loss/test",
        "loss/gap",
        "accuracy/validation",
        "x/y",
        "evil",
    ),
    *(
        "trainer.epochs",
        "seed",
        "run_id",
        "status",
        "name",
        "sweeps",
        "failure",
        "model",
        "started",
    ),
]
VALUES = [0.0, -1.0, 1e308, -1e308, float("inf"), float("-inf"), 1e-320, 0.5, 2.0**63]
STEPS = [0, -1, -(2**62), 2**62, 1, 7]
TIMES = [None, 0, -1, -(2**62), 2**62, 1, 253402300800000, 1_700_000_000_000]
TAGS = [
    *("mlflow.source.name", "failure", "engine", "threads", "data.digest", "host", "git.dirty"),
    *("mlflow.source.git.commit", "device", "reproduces", "process", "scratch", "sweep.here"),
    *("mlflow.parentRunId", "version.keras", "sweep.command", "sweep.hash", "config.hash", "job"),
    *("mlflow.runName", "mlflow.note.content", "sweep.x", "evil"),
]
FILES = ["config.yaml", "predictions.npz", "evaluation.json"]


def archive(**arrays: object) -> bytes:
    """Return arrays as an .npz."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def zip_of(members: dict[str, bytes]) -> bytes:
    """Return a compressed zip file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return file.getvalue()


def header(shape: str, dtype: str = "<f8") -> bytes:
    """Return the beginning of an .npy that promises an array and holds none of it."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def alias_bomb(levels: int = 12) -> bytes:
    """Return a YAML of a few lines that is 9 ** levels values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    return "\n".join(lines).encode()


GOOD = archive(probabilities=np.eye(10)[LABELS], labels=LABELS)
BROKEN = {
    "predictions.npz": [
        *(
            b"",
            GOOD[:40],
            GOOD[: len(GOOD) // 2],
            b"\x00" * 100,
            b"PK\x03\x04",
            GOOD[:-10] + b"x" * 10,
        ),
        archive(probabilities=np.array([{"a": 1}], object), labels=LABELS),
        *(archive(probabilities=np.eye(10)), archive(labels=LABELS), archive()),
        *(archive(probabilities=3.0, labels=4), archive(probabilities=LABELS, labels=LABELS)),
        archive(probabilities=np.eye(10)[:3], labels=LABELS),
        archive(probabilities=np.full((50, 10), np.nan), labels=LABELS),
        archive(probabilities=np.array([["a"] * 10] * 50), labels=LABELS),
        archive(probabilities=np.zeros((50, 0)), labels=LABELS),
        archive(probabilities=np.zeros((0, 10)), labels=LABELS[:0]),
        zip_of(
            {"probabilities.npy": header("(10**5, 10**5)"), "labels.npy": header("(9,)", "<i8")}
        ),
        zip_of({"probabilities.npy": header("(100000, 100000)"), "labels.npy": header("(9,)")}),
        zip_of({"probabilities.npy": header("(-1, 10)"), "labels.npy": header("(9,)")}),
        zip_of({"probabilities.npy": header("(2,)", "|O") + b"cos\nsystem\n", "labels.npy": b""}),
        zip_of({"probabilities.npy": bytes(80_000_000), "labels.npy": b""}),
    ],
    "config.yaml": [
        *(
            b"",
            b"\x00",
            b"{",
            b"a: b: c",
            b"\xff\xfe",
            b"- 1",
            b"3",
            b"data: 3",
            b"data: {}",
            b"\t",
        ),
        *(alias_bomb(), b"[" * 100_000, b"a: &a [*a]", b"a: !!python/object/apply:os.getcwd []"),
        *(b"data: ${x}\nx: ${data}", b"x: '" + b"y" * 5_000_000 + b"'", b"a: " + b"{a: " * 3000),
    ],
    "evaluation.json": [b"", b"{", b"[" * 100_000],
}


class Healthy:
    """A store with a sweep of four jobs and two runs of their own, all of which must be seen."""

    def __init__(self, folder: Path, asked: Config) -> None:
        self.folder = folder
        self.store = Store.locate(f"sqlite:///{folder}/mlflow.db")
        self.place = self.store.open(tracking.DEFAULT_EXPERIMENT)
        assert self.store.database
        self.database = sqlite3.connect(self.store.database, isolation_level=None)
        self.asked = asked
        self.config = OmegaConf.to_yaml(OmegaConf.create(asked.to_dict()))
        self.number = 0
        self.sweep = self.add("healthy sweep", tags={"job": "sweep", "sweep.axes": "[]"})
        self.jobs = [
            self.add(
                f"e{epochs} s{seed}",
                params={"trainer.epochs": epochs, "seed": seed},
                tags={tracking.member_tag(self.sweep): f"{number:05d}"},
            )
            for number, (epochs, seed) in enumerate([(1, 0), (1, 1), (2, 0), (2, 1)])
        ]
        self.alone = [self.add(f"alone {seed}", params={"seed": seed + 7}) for seed in range(2)]
        self.ids = [*self.jobs, *self.alone]

    def add(self, name="h", params=None, tags=None, metrics=None, status="FINISHED", times=None):
        """Log a run, and return its id."""
        self.number += 1
        run = ID % (0xABC0000 + self.number) if self.number < 100 else uuid.uuid4().hex
        now = 1_750_000_000_000 + self.number
        start, end = times or (now, now + 5000)
        say = self.database.execute
        say("BEGIN")
        say(
            "insert into runs (run_uuid, name, source_type, user_id, status, start_time, end_time, "
            "lifecycle_stage, artifact_uri, experiment_id) "
            "values (?,?,'LOCAL','u',?,?,?,'active',?,?)",
            (run, name, status, start, end, self.artifacts(run).as_uri(), int(self.place)),
        )
        base = {"model": "mlp", "trainer.epochs": 3, "model.hidden_units": 32, "seed": 0}
        for key, value in {**base, **(params or {})}.items():
            say("insert into params (key, value, run_uuid) values (?,?,?)", (key, str(value), run))
        facts = {
            "job": "train",
            "config.hash": "none",
            "data.digest": "d",
            "mlflow.runName": name,
            **(tags or {}),
        }
        for key, value in facts.items():
            say("insert into tags (key, value, run_uuid) values (?,?,?)", (key, value, run))
        measured = {"accuracy/test": (0.8 + self.number / 1000, 3), "accuracy/gap": (0.01, 3)}
        for key, (value, step) in {**measured, **(metrics or {})}.items():
            nan = value != value
            row = (key, 0.0 if nan else value, now, step, nan, run)
            for table in ("metrics", "latest_metrics"):
                say(
                    f"insert into {table} (key, value, timestamp, step, is_nan, run_uuid) "
                    "values (?,?,?,?,?,?)",
                    row,
                )
        say("COMMIT")
        folder = self.artifacts(run)
        folder.mkdir(parents=True)
        (folder / "predictions.npz").write_bytes(GOOD)
        (folder / "config.yaml").write_text(self.config)
        return run

    def artifacts(self, run: str) -> Path:
        return self.folder / "mlruns" / tracking.DEFAULT_EXPERIMENT / run / "artifacts"

    def remove(self, run: str) -> None:
        for table in ("params", "tags", "metrics", "latest_metrics", "runs"):
            self.database.execute(f"delete from {table} where run_uuid = ?", (run,))
        shutil.rmtree(self.artifacts(run).parent, ignore_errors=True)


class Hostile:
    """A run with one to four things wrong, drawn from a seed."""

    def __init__(self, healthy: Healthy, seed: object, victim: Path) -> None:
        """Log it.

        Args:
            healthy: The store.
            seed: Of the draw.
            victim: A folder that nobody may touch, which it points to.
        """
        self.draw = draw = random.Random(f"hostile {seed}")
        self.healthy, self.victim = healthy, victim
        self.name = "hostile"
        self.params, self.tags, self.metrics = {}, {}, {}
        self.status, self.times = "FINISHED", None
        self.files: list[tuple[str, object]] = []
        wrongs = [self._name, self._params, self._tags, self._metrics, self._time, self._file]
        wrongs += [self._member, self._process]
        chosen = draw.sample(wrongs, draw.choice([1, 1, 2, 3, 4]))
        for wrong in chosen:
            wrong()
        # What is resumed looks at it, too.
        self.tags.setdefault("config.hash", healthy.asked.identity())
        self.what = ", ".join(sorted(wrong.__name__.strip("_") for wrong in chosen))
        self.id = healthy.add(
            self.name, self.params, self.tags, self.metrics, self.status, self.times
        )
        for name, content in self.files:
            self._put(healthy.artifacts(self.id) / name, content)

    def __repr__(self) -> str:
        parts = (self.name, self.params, self.tags, self.metrics, self.status, self.times)
        return f"{self.what}: {ascii(parts)[:1500]} {ascii(self.files)[:300]}"

    def _text(self) -> str:
        text = self.draw.choice([*TEXTS, *NUMBERS, *LISTS[:5]])
        return text + self.draw.choice(TEXTS) if self.draw.random() < 0.3 else text

    def _name(self) -> None:
        self.name = self.draw.choice([None, *(self._text() for _ in range(9))])

    def _params(self) -> None:
        for _ in range(self.draw.choice([1, 1, 3, 40])):
            key = self.draw.choice(KEYS)
            self.params[key] = self.draw.choice(
                [self._text(), *self.draw.sample(NUMBERS + LISTS, 3)]
            )

    def _tags(self) -> None:
        for _ in range(self.draw.choice([1, 2, 5])):
            self.tags[self.draw.choice(TAGS)] = self.draw.choice([None, self._text(), self._text()])

    def _metrics(self) -> None:
        for _ in range(self.draw.choice([1, 3])):
            value = self.draw.choice([*VALUES, float("nan")])
            self.metrics[self.draw.choice(METRICS)] = value, self.draw.choice(STEPS)

    def _time(self) -> None:
        self.times = self.draw.choice(TIMES[1:]), self.draw.choice(TIMES)
        self.status = self.draw.choice(["FINISHED", "FAILED", "KILLED", "RUNNING", "SCHEDULED"])

    def _member(self) -> None:
        number = self.draw.choice(
            ["", "x", "-1", "1e9", "9" * 5000, "\u0663", "00001", "\x1b[1m", None]
        )
        self.tags[tracking.member_tag(self.healthy.sweep)] = number

    def _process(self) -> None:
        """It seems to run on this machine, in a folder that is not its own."""
        self.status = "RUNNING"
        self.tags["host"] = socket.gethostname()
        folder = self.draw.choice(
            ["/", "/tmp", str(self.victim), f"{self.victim}/../victim", "", "."]
        )
        self.tags["scratch"] = self.draw.choice([folder, self._text(), "/dev/zero", "\x00", LONG])
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self.tags["process"] = self.draw.choice(
            [
                "",
                "x y z",
                f"{boot} x y",
                f"{boot} 9{'9' * 4999} 1",
                f"{boot} -1 0",
                f"{boot} ../1 0",
                LONG,
            ]
        )

    def _file(self) -> None:
        name = self.draw.choice(FILES)
        self.files.append((name, self.draw.choice([*BROKEN[name], *KINDS])))

    @staticmethod
    def _put(path: Path, content: object) -> None:
        path.unlink(missing_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif callable(content):
            content(path)


def gone(path: Path) -> None:
    """Leave no file."""


def folder(path: Path) -> None:
    """Put a folder where a file is expected."""
    path.mkdir()
    (path / "x").write_text("x")


def endless(path: Path) -> None:
    """Put a file without an end."""
    path.symlink_to("/dev/zero")


def nowhere(path: Path) -> None:
    """Put a link to nothing."""
    path.symlink_to("/nonexistent/x")


def pipe(path: Path) -> None:
    """Put a pipe that nobody writes to."""
    os.mkfifo(path)


KINDS = [gone, folder, endless, nowhere, pipe]
