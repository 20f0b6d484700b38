"""`reproduce`: make a run again from its config in the store, and compare the two."""

from __future__ import annotations

import re
import shlex
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fmnist_lab import config as configs
from fmnist_lab import tracking
from fmnist_lab.config.schema import Config
from fmnist_lab.errors import UserError, reported
from fmnist_lab.jobs import kept, outputs, resume
from fmnist_lab.system import provenance
from fmnist_lab.system.terminal import printout
from fmnist_lab.texts import whole_number
from fmnist_lab.training import runtime

if TYPE_CHECKING:
    from fmnist_lab.training.runtime import Device

# The tags of what may change a result, with a person's names for them.
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
COMMIT = "mlflow.source.git.commit"
LIBRARIES = [tag for tag in CIRCUMSTANCES if tag.startswith("version.")]
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
        run: The run: its id, the beginning of its id, its name, or models:/NAME@ALIAS.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        allow: A function or class of your own that the config names; may be repeated.
        threads: Threads to train with; left out, as many as the run had, if this machine has them.
    """
    with reported():
        place = tracking.Store.locate(store)
        with tracking.asking(place):
            old = tracking.run_named(place, run)
            if lost := tracking.damage(place, old.run_id):
                raise UserError(
                    f"run '{old.name}' ({old.run_id}) cannot be compared with: it {lost}; its "
                    "command with resume=true makes them again"
                )
            tags = tracking.facts(place, old.run_id)["tags"]
        config = with_threads(
            rebuild(place, old, allow), threads, resume.values(tags, "threads")[-1]
        )
        console = printout(piped=120)
        command = tags.get("mlflow.source.name", "an unknown command")
        made = f"Reproducing run '{old.name}', id {old.run_id}, which was made by\n  {command}\n"
        console.print(escape(made), soft_wrap=True)
        changed = _warn(console, tags, runtime.start(config.trainer.threads))
        for sentence in _to_have_the_same(place, old.run_id, tags, changed):
            console.print(escape(sentence), soft_wrap=True)
        again = _train(place, config, old, resume.values(tags, "engine")[-1])
        with tracking.asking(place):
            differences = compare(place, old.run_id, again.run_id)
        _judge(console, old, differences)
        if told := _on_engines(tags, again.tags):
            console.print(f"\n{escape(told)}", soft_wrap=True)
        if differences:
            raise SystemExit(1)


def _train(
    store: tracking.Store, config: Config, old: tracking.RunRef, engine: str
) -> tracking.RunRecord:
    """Train a run's config again, with its engine if that is here, and return the new run."""
    from fmnist_lab.jobs import train

    try:
        train.run(config, reproduces=old.run_id, engine_before=engine)
    except UserError as error:
        # The advice of a training; this command has no such option, and begins again.
        raise UserError(str(error).replace(" with resume=true", "")) from error
    with tracking.asking(store):
        return tracking.known(store, old.experiment, f"tags.reproduces = '{old.run_id}'")[0]


def rebuild(store: tracking.Store, old: tracking.RunRef, allowed: Sequence[str]) -> Config:
    """Return the config that a run was made with, to be trained again into the same experiment.

    Args:
        store: Where the run is, and the new one will be.
        old: The run.
        allowed: Targets beyond `kept.TRUSTED` that may be built.

    Raises:
        UserError: The run has not trained a model, or its config is not what this version
            understands, or names a target that is not allowed.
    """
    values = kept.read(store, old, allowed)
    here = {"kind": "local", "uri": store.uri, "experiment": old.experiment}
    values |= {"tracking": here, "name": f"{old.name} again"}
    try:
        return configs.validate(values)
    except UserError as error:
        raise UserError(
            f"run {old.run_id}: its config.yaml does not fit this version of fmnist_lab: {error}; "
            "use the version that made it, which runs ui shows"
        ) from None


def with_threads(config: Config, wanted: int | None, recorded: str) -> Config:
    """Return a config with the threads that were asked for, or that a run had, if they are here.

    The engines of TensorFlow add the same numbers up in another order with other threads.

    Args:
        config: A run's config.
        wanted: The number that was asked for; None: that of the run.
        recorded: The number that the run had, as its tag says.
    """
    here, had = runtime.usable_cores(), whole_number(recorded) or 0
    if wanted is None and 1 <= had <= here:
        wanted = had
    if wanted is None or (wanted == here and config.trainer.threads is None):
        return config
    values = config.to_dict()
    values["trainer"]["threads"] = wanted
    return configs.validate(values)


class Difference(NamedTuple):
    """Something in which two runs differ.

    Attributes:
        name: A metric, the weights or the predictions.
        size: The largest difference, as a person reads it.
        epoch: The epoch of that, if it has one.
    """

    name: str
    size: str
    epoch: str = ""


def compare(store: tracking.Store, old: str, new: str) -> list[Difference]:
    """Return the differences between two runs; none if each bit is the same.

    Args:
        store: The store of both runs.
        old: The id of the one.
        new: The id of the other.
    """
    found, runs = [], (old, new)
    before, after = (tracking.facts(store, run)["metrics"] for run in runs)
    for name in {**before, **after}:
        # Runs of earlier versions lack what is measured at the end.
        younger = name.startswith(outputs.AT_END) and name not in before
        if name not in NOT_OUTCOMES and not younger:
            found += _metric_differs(store, name, old, new)
    from fmnist_lab.models import saved

    uris = (f"runs:/{run}/model" for run in runs)
    weights = (tracking.load_model(uri, store, saved.load)[0].get_weights() for uri in uris)
    if apart := _apart(*weights):
        found.append(Difference("weights", apart))
    first, second = (tracking.read_predictions(store, run)[0] for run in runs)
    if apart := _apart([first], [second]):
        found.append(Difference("predicted probabilities", apart))
        if first.shape == second.shape:
            changed = int((first.argmax(axis=-1) != second.argmax(axis=-1)).sum())
            found.append(Difference("predicted labels", f"{changed:,} of {len(first):,}"))
    return found


def _apart(old: Sequence[np.ndarray], new: Sequence[np.ndarray]) -> str:
    """Return the largest difference between arrays; "" if they are the same, bit for bit."""
    if [array.shape for array in old] != [array.shape for array in new]:
        return "of other shapes"
    pairs = list(zip(old, new, strict=True))
    if all(one.tobytes() == other.tobytes() for one, other in pairs):
        return ""
    return f"{max(np.abs(one.astype(float) - other).max(initial=0) for one, other in pairs):.3g}"


def _metric_differs(store: tracking.Store, name: str, old: str, new: str) -> list[Difference]:
    """Return the largest difference of a metric over the epochs, if it has any."""
    curves = tracking.curves(store, [old, new], name)
    left, right = (
        curves[curves["run_id"] == each].set_index("epoch")["value"] for each in (old, new)
    )
    if list(left.index) != list(right.index):
        return [Difference(name, f"{len(left)} epochs before, {len(right)} now")]
    if np.array_equal(left, right, equal_nan=True):
        return []
    apart = (left - right).abs()
    return [Difference(name, f"{apart.max():.3g}", str(apart.idxmax()))]


def _warn(console: Console, then: Mapping[str, str], device: Device) -> set[str]:
    """Show the circumstances that have changed since a run was made, whose tags are given.

    Returns:
        The tags whose values are other ones now.
    """
    now = {**provenance.tags(), "device": device.name, "threads": str(device.threads)}
    then = {**then, "threads": ", then ".join(resume.values(then, "threads"))}
    table = Table("different from then", "then", "now", box=None, pad_edge=False)
    changed = set()
    for tag, name in CIRCUMSTANCES.items():
        values = [facts.get(tag) or "unknown" for facts in (then, now)]
        if values[0] != values[1]:
            most = 12 if tag.endswith("commit") else None
            table.add_row(name, *(escape(value[:most]) for value in values))
            changed.add(tag)
    if then.get("git.dirty") == now.get("git.dirty") == "true":
        table.add_row("uncommitted changes", "some", "perhaps others")
        changed.add("git.dirty")
    if table.rows:
        console.print(table)
        console.print()
    return changed


def _to_have_the_same(
    store: tracking.Store, run_id: str, then: Mapping[str, str], changed: Container[str]
) -> list[str]:
    """Return the commands that bring back the code and the libraries that a run was made with.

    Args:
        store: Where the run is.
        run_id: The run.
        then: Its tags.
        changed: The tags whose values are other ones now.
    """
    commit = then.get(COMMIT, "")
    wanted, steps = {COMMIT, "git.dirty"}, []
    had = tracking.file_names(store, run_id)
    fetch = (
        f"MLFLOW_TRACKING_URI={shlex.quote(store.uri)} python -m mlflow artifacts download "
        f"--run-id {run_id} --dst-path . --artifact-path"
    )
    if any(tag in changed for tag in wanted) and re.fullmatch("[0-9a-f]{40}", commit):
        steps.append(f"  git checkout {commit}")
        if then.get("git.dirty") == "true" and kept.CHANGES in had:
            steps.append(f"  {fetch} {kept.CHANGES} && git apply {kept.CHANGES}")
    if any(tag in changed for tag in LIBRARIES) and kept.PACKAGES in had:
        steps.append(f"  {fetch} {kept.PACKAGES} && python -m pip install -r {kept.PACKAGES}")
    if steps:
        told = "To have the code and the libraries of then, in a checkout"
        steps = [f"{told}; look at the files first, anyone may have written them:", *steps, ""]
    if then.get("git.dirty") == "true" and kept.CHANGES not in had:
        steps.append("Its code had uncommitted changes, which were not kept.\n")
    return steps


def _judge(console: Console, old: tracking.RunRef, differences: Sequence[Difference]) -> None:
    """Say whether a run was reproduced, and show the differences if it was not."""
    console.print()
    if not differences:
        same = "metrics of every epoch, weights and predictions are the same, bit for bit"
        console.print(f"Identical to run '{escape(old.name)}': {same}.", soft_wrap=True)
        return
    console.print(f"Not identical to run '{escape(old.name)}', id {old.run_id}:\n", soft_wrap=True)
    table = Table("what", "largest difference", "at epoch", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for each in differences:
        table.add_row(*each)
    console.print(table)


def _on_engines(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return a sentence on the engines of two runs, whose tags are given; "" if they are one."""
    engines, engine = resume.values(then, "engine"), now["engine"]
    # Runs of earlier versions do not say which one they had.
    if engines in ([""], [engine]):
        return ""
    gone = "" if engines[-1] == engine else ", which is not here"
    return f"It was trained by the {', then '.join(engines)} engine{gone}; now by {engine}."
