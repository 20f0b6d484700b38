"""`reproduce`: a run is made again from what the store has of it, and compared with it."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fmnist_lab import backend, tracking
from fmnist_lab import config as configs
from fmnist_lab.config import Config
from fmnist_lab.errors import UserError, reported

if TYPE_CHECKING:
    from fmnist_lab.backend import Device

# What a config from a store may name unasked. It may have been written by anyone, so nothing that
# reads, writes or runs what its arguments say is among these, although Keras has such callbacks.
TRUSTED = {
    "model": r"fmnist_lab\.models\.\w+",
    "optimizer": r"keras\.optimizers\.[A-Z]\w*",
    "schedule": r"fmnist_lab\.schedules\.\w+|keras\.optimizers\.schedules\.[A-Z]\w*",
    "callbacks": (
        r"keras\.callbacks\.(EarlyStopping|ReduceLROnPlateau|SwapEMAWeights|TerminateOnNaN)"
    ),
}
# Tags that say what may change a result, and how a person calls them.
CIRCUMSTANCES = {
    "mlflow.source.git.commit": "code commit",
    "git.dirty": "uncommitted changes",
    "version.fmnist_lab": "fmnist_lab",
    "version.python": "Python",
    "version.tensorflow": "TensorFlow",
    "version.keras": "Keras",
    "version.numpy": "NumPy",
    "version.mlflow": "MLflow",
    "device": "hardware",
    "threads": "threads",
}
NOT_OUTCOMES = ("images_per_second",)


def reproduce(
    run: str,
    /,
    *,
    store: str | None = None,
    allow: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    threads: int | None = None,
) -> None:
    """Train a run's config again, and say whether metrics, weights and predictions are identical.

    The exit code is 0 if they are, 1 if they differ. The new run bears a tag, reproduces, with the
    id of the old one.

    Args:
        run: The run: its id, the beginning of its id, or its name.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        allow: A function or class of your own that the config names; may be repeated.
        threads: Threads to train with; left out, as many as the run had, if this machine has them.
    """
    with reported():
        place = tracking.Store.locate(store)
        with tracking.asking(place):
            old = tracking.look_up(place, run)
            tags = tracking.facts(place, old.run_id)["tags"]
            text = tracking.read_file(place, old.run_id, "config.yaml") if old.job else b""
        config = rebuild(place, old, text, allow)
        console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
        console.print(
            f"Reproducing run '{escape(old.name)}', id {old.run_id}, which was made by\n"
            f"  {escape(tags.get('mlflow.source.name', 'an unknown command'))}\n",
            soft_wrap=True,
        )
        from fmnist_lab import backend, jobs

        config = with_threads(config, threads, tags.get("threads", ""))
        _warn(console, tags, backend.start(config.trainer.threads, lean=True))
        jobs.train(config, reproduces=old.run_id, engine_before=tags.get("engine", ""))
        with tracking.asking(place):
            again = tracking.known(place, old.experiment, f"tags.reproduces = '{old.run_id}'")[0]
            differences = compare(place, old.run_id, again.run_id)
        _judge(console, old, differences)
        engine = again.tags["engine"]
        # Runs of earlier versions do not say which one they had.
        if tags.get("engine", engine) != engine:
            console.print(
                f"\nIt was trained by the {escape(tags['engine'])} engine, which is not here; now "
                f"by {engine}.",
                soft_wrap=True,
            )
        if differences:
            raise SystemExit(1)


def rebuild(
    store: tracking.Store, old: tracking.Found, text: bytes, allowed: Sequence[str]
) -> Config:
    """Return the config that a run was made with, to be trained again into the same experiment.

    Args:
        store: Where the run is, and the new one will be.
        old: The run.
        text: Its config.yaml.
        allowed: Targets beyond `TRUSTED` that may be built.

    Raises:
        UserError: The run has not trained a model, or its config is not what this version
            understands, or names a target that is not allowed.
    """
    from omegaconf import OmegaConf

    if old.job != "train":
        job = f"is a run of job={old.job}" if old.job else "was not made by fmnist_lab"
        raise UserError(
            f"received '{old.name}' ({old.run_id}), which {job}; expected a run that has trained "
            "a model"
        )
    where = f"run {old.run_id}: its config.yaml"
    try:
        # Unresolved: an interpolation is text here, and asks nothing of this machine.
        values: Any = OmegaConf.to_container(OmegaConf.create(text.decode()), resolve=False)
    except Exception as error:
        # Whatever the parser of YAML makes of it.
        raise UserError(f"{where} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not isinstance(values.get("data"), dict):
        raise UserError(f"{where} is no config of fmnist_lab")
    check_targets(values, allowed, where)
    values |= {
        "tracking": {"kind": "local", "uri": store.uri, "experiment": old.experiment},
        "resume": False,
        "name": f"{old.name} again",
    }
    # Nothing from a store says where to write.
    values["data"] |= {"cache_dir": None}
    try:
        return configs.validate(values)
    except UserError as error:
        raise UserError(
            f"{where} does not fit this version of fmnist_lab: {error}; use the version that made "
            "it, which runs ui shows"
        ) from None


def check_targets(values: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    """Refuse a config that would have anything built but what is trusted or allowed.

    Raises:
        UserError: It would.
    """
    for key, target in _targets(values):
        trusted = TRUSTED.get(key.partition(".")[0], "")
        if target not in allowed and not re.fullmatch(trusted, str(target)):
            raise UserError(
                f"{where} has {key}={target}, which could do anything on this machine; if you "
                f"know what it does, add --allow {target}"
            )


def with_threads(config: Config, wanted: int | None, recorded: str) -> Config:
    """Return a config with the threads that were asked for, or that a run had, if they are here.

    With the engines of TensorFlow, another number adds the same numbers up in another order.
    """
    here = backend.usable_cores()
    if wanted is None and recorded.isdecimal() and 1 <= int(recorded) <= here:
        wanted = int(recorded)
    if wanted is None or (wanted == here and config.trainer.threads is None):
        return config
    trainer = config.trainer.model_copy(update={"threads": wanted})
    return configs.validate(config.model_copy(update={"trainer": trainer}).to_dict())


@dataclass(frozen=True)
class Difference:
    """Something in which two runs differ.

    Attributes:
        name: What it is.
        size: By how much, as a person reads it.
        where: At which epoch, if it has any.
    """

    name: str
    size: str
    where: str = ""


def compare(store: tracking.Store, old: str, new: str) -> list[Difference]:
    """Return in what two runs, by their ids, differ; nothing if each bit is the same."""
    found = []
    names = [tracking.facts(store, each)["metrics"] for each in (old, new)]
    for name in dict.fromkeys((*names[0], *names[1])):
        if name not in NOT_OUTCOMES:
            found += _metric_differs(store, name, old, new)
    models = [tracking.load_model(f"runs:/{each}/model", store)[0] for each in (old, new)]
    left, right = ([np.asarray(w) for w in model.get_weights()] for model in models)
    if [array.shape for array in left] != [array.shape for array in right]:
        found.append(Difference("weights", "of other shapes"))
    elif [array.tobytes() for array in left] != [array.tobytes() for array in right]:
        largest = max(
            float(np.abs(a.astype(float) - b).max())
            for a, b in zip(left, right, strict=True)
            if a.size
        )
        found.append(Difference("weights", f"{largest:.3g}"))
    before, after = (_probabilities(store, each) for each in (old, new))
    if before.shape != after.shape:
        found.append(Difference("predictions", "of other shapes"))
    elif before.tobytes() != after.tobytes():
        largest = float(np.abs(before.astype(float) - after).max())
        found.append(Difference("predicted probabilities", f"{largest:.3g}"))
        changed = int((before.argmax(axis=-1) != after.argmax(axis=-1)).sum())
        found.append(Difference("predicted labels", f"{changed:,} of {len(before):,}"))
    return found


def _metric_differs(store: tracking.Store, name: str, old: str, new: str) -> list[Difference]:
    curves = tracking.curves(store, [old, new], name)
    left, right = (
        curves[curves["run_id"] == each].set_index("epoch")["value"] for each in (old, new)
    )
    if list(left.index) != list(right.index):
        return [Difference(name, f"{len(left)} epochs before, {len(right)} now")]
    if np.array_equal(left.to_numpy(), right.to_numpy(), equal_nan=True):
        return []
    apart = (left - right).abs()
    return [Difference(name, f"{apart.max():.3g}", str(apart.idxmax()))]


def _probabilities(store: tracking.Store, run_id: str) -> np.ndarray:
    content = tracking.read_file(store, run_id, "predictions.npz")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return arrays["probabilities"]


def _targets(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each `_target_` of a config, at any depth, with its key."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            inner = f"{key}.{name}" if key else str(name)
            if name == "_target_":
                yield inner, each
            yield from _targets(each, inner)
    elif isinstance(value, (list, tuple)):
        for number, each in enumerate(value):
            yield from _targets(each, f"{key}.{number}")


def _warn(console: Console, then: Mapping[str, str], device: Device) -> None:
    """Say which circumstances are others than those of a run."""
    from fmnist_lab import provenance

    def shown(tag: str, facts: Mapping[str, str]) -> str:
        value = facts.get(tag, "unknown")
        return value[:12] if tag.endswith("commit") else value

    now = {**provenance.tags(), "device": device.name, "threads": str(device.threads)}
    rows = [
        (name, shown(tag, then), shown(tag, now))
        for tag, name in CIRCUMSTANCES.items()
        if then.get(tag) != now.get(tag)
    ]
    if then.get("git.dirty") == now.get("git.dirty") == "true":
        rows.append(("uncommitted changes", "some", "perhaps others"))
    if rows:
        table = Table("different from then", "then", "now", box=None, pad_edge=False)
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
        console.print()


def _judge(console: Console, old: tracking.Found, differences: Sequence[Difference]) -> None:
    console.print()
    if not differences:
        console.print(
            f"Identical to run '{escape(old.name)}': metrics of every epoch, weights and "
            "predictions are the same, bit for bit.",
            soft_wrap=True,
        )
        return
    console.print(f"Not identical to run '{escape(old.name)}', id {old.run_id}:\n", soft_wrap=True)
    table = Table("what", "largest difference", "at epoch", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for each in differences:
        table.add_row(each.name, each.size, each.where)
    console.print(table)
