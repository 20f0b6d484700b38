"""`promote`: a run's model registered under a name, and made the champion if it is better."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fmnist_lab import tracking
from fmnist_lab.errors import UserError, reported
from fmnist_lab.runs.compare import show
from fmnist_lab.runs.sides import predictions_of, side_of
from fmnist_lab.system.terminal import aligned, printout

if TYPE_CHECKING:
    from rich.console import Console

    from fmnist_lab.studies.card import Described
    from fmnist_lab.tracking import RegisteredModel, RunRef, Store

# MLflow keeps these words, and v1, v2 and so on, for itself.
RESERVED = r"latest|[vV][0-9]+"


def promote(
    run: str | None = None,
    /,
    *,
    alias: Annotated[str, Parameter(show_default=True)] = "champion",
    name: Annotated[str, Parameter(show_default=True)] = "fmnist",
    best: str | None = None,
    anyway: bool = False,
    store: str | None = None,
) -> None:
    """Register a run's model, and point an alias at it if it is better than the model there.

    The two models are compared on the images that both have predicted: on the validation images if
    both runs held out the same ones, else on the test images. The new one is better if McNemar's
    exact test says so (p < 0.05). Its model card is kept with the run and in MLflow's description.

    Args:
        run: The run: its id, the beginning of its id, or its name.
        alias: The alias.
        name: The registered model's name.
        best: Instead of a run, a metric, such as accuracy/validation: the finished run that is best
            by it, of a sweep if one is named.
        anyway: Promote the model although it is not better.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
    """
    with reported():
        _check_names(name, alias)
        if run is None and best is None:
            raise UserError(
                "received no run, expected one, or --best accuracy/validation for the best"
            )
        place = tracking.Store.locate(store, for_writing=False)
        console = printout()
        chosen = tracking.choose_model(place, run, best=best)
        for remark in chosen.remarks:
            console.print(remark, markup=False, soft_wrap=True)
        candidate = tracking.look_up(place, chosen.run_id or str(run))
        tracking.check_finished(place, candidate, model_alone=False)
        tracking.Store.locate(store)  # It has to be written, too.
        with tracking.promoting(place):
            _promote(console, place, candidate, name, alias, anyway)


def _promote(
    console: Console, store: Store, candidate: RunRef, name: str, alias: str, anyway: bool
) -> None:
    """Compare a run with the champion, and put it in its place."""
    title = f"{name}@{alias}"
    before = tracking.registered(store, name, alias=alias)
    if before is not None and before.run_id == candidate.run_id:
        told = (
            f"'{candidate.name}' ({candidate.run_id}) is {title} already, version {before.version}."
        )
        console.print(told, markup=False, soft_wrap=True)
        return
    reason = _judged(console, store, candidate, before, title, anyway)
    model = tracking.register(store, candidate.run_id, name)
    from fmnist_lab.studies import card

    text = card.write(described(store, candidate), promoted=reason)
    _check_still(store, before, name, alias)
    # The card says that the model was promoted.
    tracking.set_alias(store, model, alias, text)
    tracking.describe(store, model, text, card.FILE)
    now = tracking.registered(store, name, alias=alias)
    if now != model:
        version = f"version {now.version}" if now else "nothing"
        raise UserError(
            f"'{candidate.name}' was promoted to {title}, but another promotion has pointed it at "
            f"{version} since; repeat the command, which compares with that"
        )
    was = f"version {before.version}" if before else "there was none"
    aligned(
        console,
        {
            "promoted": f"{title} is version {model.version}, '{candidate.name}'; before: {was}",
            "use it": store.command("predict", "--model", f"models:/{title}"),
            "card": f"{card.FILE} with the run, and the description of version {model.version}",
        },
    )


def _judged(
    console: Console,
    store: Store,
    candidate: RunRef,
    before: RegisteredModel | None,
    title: str,
    anyway: bool,
) -> str:
    """Show how a run compares with the champion, and return why it is promoted.

    Raises:
        UserError: It is not better, or cannot be compared, and is not to be promoted anyway.
    """
    from fmnist_lab.studies import comparison, promotion

    if before is None:
        return f"It is the first {title}."
    stays = f"{title} stays version {before.version}"
    try:
        if not before.run_id:
            raise UserError(f"no run is known of version {before.version}")
        mine, its = (side_of(store, [each], None) for each in (candidate.run_id, before.run_id))
        verdict = comparison.compare(mine, its, predictions_of(store))
        held_out = partial(tracking.read_predictions, store, file=tracking.VALIDATION)
        found = promotion.judge(mine, its, verdict, held_out)
    except UserError as error:
        if anyway:
            return f"It was promoted to {title} without a comparison: {error}."
        raise UserError(
            f"'{candidate.name}' was not promoted, as it cannot be compared with {title}: {error}; "
            f"{stays}; --anyway promotes it all the same"
        ) from None
    show(console, (mine, its), verdict, ("A, the candidate", f"B, {title}"))
    console.print()
    told = f"What decides: {found.words}. {found.basis}".strip()
    console.print(f"{told}\n", markup=False, soft_wrap=True)
    if not found.is_better and not anyway:
        raise UserError(
            f"'{candidate.name}' was not promoted, as it is not shown to be better: {found.words}; "
            f"{stays}; --anyway promotes it all the same"
        )
    how = "" if found.is_better else " anyway"
    return f"It was promoted to {title}{how}: {found.words}. {found.basis}".strip()


def described(store: Store, run: RunRef) -> Described:
    """Return a run as its model card wants it.

    Args:
        store: The store.
        run: A finished run.

    Raises:
        UserError: Its predictions are damaged.
    """
    from fmnist_lab.studies.card import Described

    facts = tracking.facts(store, run.run_id)
    data_name, shape = tracking.trained_on(store, run.run_id)
    try:
        held_out = tracking.read_predictions(store, run.run_id, tracking.VALIDATION)
    except UserError:
        held_out = None
    return Described(
        name=run.name,
        run_id=run.run_id,
        tags=facts["tags"],
        params=facts["params"],
        metrics=facts["metrics"],
        data_name=data_name,
        training_images=shape[0] if shape else None,
        test=tracking.read_predictions(store, run.run_id),
        validation=held_out,
        class_names=_class_names(store, run.run_id),
        image_shape=shape[1:],
        reproduce=store.command("runs", "reproduce", run.run_id),
    )


def _class_names(store: Store, run_id: str) -> list[str]:
    """Return the names of the classes that a run was evaluated on; empty if it does not tell."""
    try:
        kept: Any = json.loads(tracking.read_file(store, run_id, "evaluation.json"))
        return [str(each["name"]) for each in kept["classes"]]
    except (UserError, ValueError, TypeError, KeyError, RecursionError):
        return []


def _check_names(name: str, alias: str) -> None:
    """Refuse names that MLflow, or a models:/ URI, would not take."""
    if not re.fullmatch(r"[\w.-]{1,200}", name):
        raise UserError(
            f"--name: received '{name}', expected letters, digits, dots, dashes and underscores"
        )
    if not re.fullmatch(r"[\w-]{1,200}", alias) or re.fullmatch(RESERVED, alias):
        raise UserError(
            f"--alias: received '{alias}', expected letters, digits, dashes and underscores, and "
            "none of MLflow's own words such as latest or v1"
        )


def _check_still(store: Store, before: RegisteredModel | None, name: str, alias: str) -> None:
    """Refuse to move an alias that another promotion has moved; a server has no lock for them."""
    now = tracking.registered(store, name, alias=alias)
    if now != before:
        raise UserError(
            f"another promotion has pointed {name}@{alias} at "
            f"{f'version {now.version}' if now else 'nothing'} in the meantime; repeat the "
            "command, which compares with that"
        )
