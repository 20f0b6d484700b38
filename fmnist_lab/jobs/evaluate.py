"""The job that reloads a logged model, and evaluates it on the data that a config describes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fmnist_lab import tracking
from fmnist_lab.config.schema import Config
from fmnist_lab.errors import UserError
from fmnist_lab.jobs import build, outputs
from fmnist_lab.jobs.job import Job
from fmnist_lab.jobs.membership import Membership
from fmnist_lab.jobs.outcome import Keep, Outcome


def run(
    config: Config, member: Membership | None = None, *, keep: Keep | None = None
) -> dict[str, float]:
    """Reload a logged model, evaluate it, and keep the result as a run that points at the model.

    Args:
        config: A checked config.
        member: The job's place in a sweep, if it is in one.
        keep: Called with the job's outcome.

    Returns:
        The metrics, under the same names as after training.

    Raises:
        UserError: There is no such model, or it does not classify the images of this data set.
    """
    uri = config.model_uri
    assert uri is not None
    kept = config.tracking.kind != "none"
    store = tracking.Store.locate(config.tracking.uri, for_writing=kept)
    job = Job(config, member, store if kept else None)
    if job.answered is not None:
        if keep:
            keep(job.answer())
        return dict(job.answered.metrics)
    from fmnist_lab.models import saved

    (model, divisor), _ = tracking.load_model(uri, store, saved.load_with_divisor)
    dataset = job.dataset
    if saved.image_shape(model) == dataset.train_images.shape[1:]:
        parts = ("train_images", "validation_images", "test_images")
        try:
            seen: dict[str, Any] = {
                each: saved.of_pixels(getattr(dataset, each), model, divisor) for each in parts
            }
        except ValueError as error:
            raise UserError(f"the model {uri} cannot be evaluated on pixels: {error}") from None
        dataset = replace(dataset, **seen)
    build.check_model(model, dataset, uri)
    job.screen.heading(config, job.device, model)
    tags = {"job": "evaluate", "model_uri": uri, **tracking.origin(uri)}
    with job.open_run(config.name or f"evaluate {uri}", tags) as (run, check_signals):
        run.params({"model_uri": uri})
        probabilities = outputs.predict(model, dataset)
        metrics = outputs.metrics(probabilities, job.dataset)
        run.metrics(metrics, step=0)
        outputs.keep_results(run, probabilities["test"], job.dataset)
        check_signals()
    job.screen.result(metrics, run)
    if keep:
        params = {"model_uri": uri}
        found = {
            "model": model,
            "dataset": job.dataset,
            "divisor": divisor,
            "probabilities": probabilities["test"],
        }
        keep(Outcome(run.name, "FINISHED", job.store, run.id, params, metrics, **found))
    return metrics
