"""The job that trains a model, evaluates it, and keeps everything about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from fmnist_lab import tracking
from fmnist_lab.config import naming
from fmnist_lab.config.schema import Config
from fmnist_lab.errors import DivergedError, UserError
from fmnist_lab.evaluation.confidence import Scaling
from fmnist_lab.jobs import build, outputs, resume
from fmnist_lab.jobs.job import Job
from fmnist_lab.jobs.membership import Membership
from fmnist_lab.jobs.outcome import Keep, Outcome
from fmnist_lab.system import durable


def run(
    config: Config,
    member: Membership | None = None,
    *,
    reproduces: str = "",
    engine_before: str = "",
    keep: Keep | None = None,
) -> dict[str, float]:
    """Train a model as configured, evaluate it, and keep everything.

    Args:
        config: A checked config.
        member: The job's place in a sweep, if it is in one.
        reproduces: Id of the run that this one is to be compared with, if there is one.
        engine_before: The engine that trained that run, which `trainer.engine=auto` takes again if
            it is here.
        keep: Called with the job's outcome.

    Returns:
        The last epoch's metrics, and its number as `epoch`; with `pause_after` those of that epoch,
        even if an earlier command has trained the run further.

    Raises:
        UserError: Something in the config cannot be done, and no run is left behind; or the
            training diverged, and the run is marked FAILED with the epochs before.
    """
    tracked = config.tracking.kind != "none"
    job = Job(config, member, tracking.Store.locate(config.tracking.uri) if tracked else None)
    if job.answered is not None:
        if keep:
            keep(job.answer())
        return _answer(job.store, job.answered, config.pause_after)
    training = _Training(job, engine_before)
    job.screen.heading(config, job.device, training.model, training.recipe.engine)
    name = naming.run_name(config, member.name if member else "")
    tags = {"job": "train", "engine": training.recipe.engine}
    if reproduces:
        tags["reproduces"] = reproduces
    with job.open_run(name, tags) as (run, check_signals):
        training.keep_inputs(run)
        training.resume(run)
        check_signals()
        # A server may be out of reach; a database's files have been tried already.
        if run.store is not None and run.store.database is None:
            run.wait_until_open()
        if not (training.is_over or training.is_paused):
            with training.saved_if_interrupted(resumable=tracked and not reproduces):
                training.train(run, check_signals)
        if training.is_paused:
            training.pause(run)
        else:
            training.keep_outputs(run)
        check_signals()
    if keep:
        keep(training.outcome(run))
    if training.is_paused:
        job.screen.paused(len(training.history), config.trainer.epochs, run)
        return training.result
    if job.store is not None:
        resume.supersede(job.store, config, member)
    job.screen.result(training.history[-1], run, trained=True)
    return training.result


def _answer(
    store: tracking.Store | None, run: tracking.RunRecord, after: int | None
) -> dict[str, float]:
    """Return what a finished run has to say: its last metrics, or those of an earlier epoch.

    Args:
        store: The run's.
        run: The run.
        after: The epoch after which it was to be paused; None: its last.
    """
    metrics, epoch = run.metrics, run.epoch
    if store is not None and after is not None and after < epoch:
        curves = tracking.curves(store, [run.run_id], *metrics)
        then, epoch = curves[curves["epoch"] == after], after
        metrics = dict(zip(then["metric"], map(float, then["value"]), strict=True))
    return {**metrics, "epoch": float(epoch)}


class _Training:
    """A model with all that trains it, from its first epoch or the one it was left at.

    Raises:
        UserError: The model, the optimizer, the callbacks or the engine cannot be had as
            configured, or the model does not fit into memory.
    """

    def __init__(self, job: Job, engine_before: str) -> None:
        import keras

        from fmnist_lab.training import callbacks, preflight

        config, dataset = job.config, job.dataset
        count = len(dataset.train_images)
        self.job, self.config, self.dataset, self.screen = job, config, dataset, job.screen
        most = job.member.most_parameters if job.member else None
        optimizer = build.build_optimizer(config, count)
        preflight.check(lambda: build.built(config, dataset), optimizer, most)
        keras.utils.set_random_seed(config.seed)
        self.model = build.build_model(config, dataset)
        self.optimizer = build.build_optimizer(config, count)
        self.callbacks = [callback.build() for callback in config.callbacks.values()]
        self.validation: tuple[np.ndarray, np.ndarray] | None = None
        if len(dataset.validation_images):
            self.validation = dataset.validation_images, dataset.validation_labels
        callbacks.check(self.callbacks, self.optimizer, self.validation is not None)
        if job.interrupted:
            engine_before = resume.values(job.interrupted.tags, "engine")[-1]
        self.recipe = build.build_recipe(config, self.model, self.optimizer, engine_before)
        images, labels = dataset.train_images, dataset.train_labels
        self.arguments = self.model, images, labels, self.optimizer
        self.probabilities: dict[str, np.ndarray] = {}
        self.scaling: Scaling | None = None

    @property
    def history(self) -> list[dict[str, float]]:
        """The metrics of each finished epoch."""
        return self.keeper.history

    @property
    def is_over(self) -> bool:
        """Whether no epoch is left to be trained."""
        return self.keeper.stopped or len(self.history) == self.config.trainer.epochs

    @property
    def is_paused(self) -> bool:
        """Whether the epochs that are left are for a later command to train."""
        after = self.config.pause_after
        return not self.is_over and after is not None and len(self.history) >= after

    @property
    def result(self) -> dict[str, float]:
        """The metrics of the last epoch that was asked for, and its number."""
        epoch = min(len(self.history), self.config.pause_after or len(self.history))
        return {**self.history[epoch - 1], "epoch": float(epoch)}

    def outcome(self, run: tracking.Run) -> Outcome:
        """Return what the training leaves behind.

        Args:
            run: Its run, which is closed.
        """
        chosen = self.keeper.chosen
        return Outcome(
            run.name,
            "PAUSED" if self.is_paused else "FINISHED",
            run.store,
            run.id,
            naming.params(self.config),
            self.result,
            self.history,
            chosen.epoch if chosen else 0,
            self.model,
            self.dataset,
            self.probabilities.get("test"),
        )

    def keep_inputs(self, run: tracking.Run) -> None:
        """Keep the config, the versions of code and libraries, and pictures of the data."""
        run.params(naming.params(self.config))
        outputs.keep_versions(run, self.job.tags)
        run.text(OmegaConf.to_yaml(OmegaConf.create(self.config.to_dict())), "config.yaml")
        outputs.draw_data(run, self.dataset)

    def resume(self, run: tracking.Run) -> None:
        """Go on from the newest checkpoint of the run, or of a shorter job of the sweep.

        The training step is compiled here, because the run's own thread can write meanwhile.
        """
        from fmnist_lab.training import checkpoint, loop

        own = run.journal.checkpoints if run.journal else None
        self.shared = self._shared_checkpoints()
        every = self.config.checkpoint.every
        self.keeper = checkpoint.Checkpointer(
            own, every, self.model, self.optimizer, self.callbacks
        )
        left, epochs = self.job.interrupted, self.config.trainer.epochs
        if self.keeper.resume([folder for folder in (own, self.shared) if folder], epochs):
            now = {name: self.job.tags[name] for name in resume.SETTINGS}
            before = left.changed(now) if left else {}
            self.screen.resumed(len(self.history), epochs, before)
            run.tags(resume.tags_of_change(before, now))
            if self.history and not self.is_over:
                # A shorter job's last epoch, which is not this one's, has what only a last one has.
                last = self.history[-1]
                self.history[-1] = {
                    name: last[name] for name in last if not name.startswith(outputs.AT_END)
                }
            for number, metrics in enumerate(self.history, 1):
                run.metrics(metrics, step=number)
        elif left:
            # It begins again, and its tags may no longer be true.
            run.tags(self.job.tags | dict.fromkeys(map(resume.BEFORE.format, resume.SETTINGS), ""))
        if not (self.is_over or self.is_paused):
            loop.compile_ahead(*self.arguments, self.recipe)

    def _shared_checkpoints(self) -> Path | None:
        """Return the folder where a sweep's jobs leave their last state for longer ones.

        A job that differs from a longer one in nothing but its number of epochs is a prefix of the
        longer one, bit for bit, so that a sweep over epochs trains each setting only once.
        """
        store, member, identity = self.job.store, self.job.member, self.config.prefix_identity()
        if not store or not member or not identity or "trainer.epochs" not in member.axes:
            return None
        folder = store.shared / member.sweep / identity
        durable.make_folder(folder)
        return folder

    @contextmanager
    def saved_if_interrupted(self, *, resumable: bool) -> Iterator[None]:
        """Save the last finished epoch if the training is cut short, and say how to go on from it.

        Args:
            resumable: Whether the command can be repeated with `resume=true`.
        """
        try:
            yield
        except DivergedError:
            raise
        except BaseException as error:
            # If it cannot be saved either, the first error says more.
            with suppress(UserError):
                self.keeper.save()
            if resumable and isinstance(error, KeyboardInterrupt):
                self.screen.interrupted(self.keeper.saved)
            raise

    def train(self, run: tracking.Run, check_signals: Callable[[], None]) -> None:
        """Train the epochs that are left, and keep the metrics and the state of each.

        Args:
            run: The run that takes the metrics, and what callbacks log by MLflow's functions.
            check_signals: Raises if a signal has asked the process to end.
        """
        from fmnist_lab.training import callbacks, loop

        trainer, told = self.config.trainer, set[str]()
        images = len(self.dataset.train_images)
        only_watched = all(map(callbacks.only_watches, self.callbacks))
        with (
            nullcontext() if only_watched else run.active(),
            self.screen.training(trainer.epochs, images, len(self.history)) as display,
        ):

            def advance(epoch: int, seen: int) -> None:
                check_signals()
                display.advance(epoch, seen)

            for epoch in loop.train(
                *self.arguments,
                epochs=trainer.epochs,
                recipe=self.recipe,
                seed=self.config.seed,
                validation=self.validation,
                callbacks=self.callbacks,
                first_epoch=len(self.history) + 1,
                on_begin=self._begin,
                on_progress=advance,
            ):
                evaluated = epoch.last or epoch.number % trainer.evaluate_every == 0
                # A run that is paused here must not show the predictions of an earlier epoch.
                predicted = outputs.predict(self.model, self.dataset) if evaluated else {}
                self.probabilities = predicted
                if epoch.last:
                    self.scaling = outputs.scaling(predicted, self.dataset)
                metrics, remarks = outputs.of_epoch(epoch, predicted, self.dataset, self.scaling)
                for name in remarks:
                    if name not in told:
                        self.screen.remark(remarks[name])
                told |= remarks.keys()
                run.metrics(metrics, step=epoch.number)
                last, chosen = epoch.last, epoch.chosen
                self.keeper.after(metrics, last=last, epochs=trainer.epochs, chosen=chosen)
                display.finished(epoch, metrics)
                if self.is_paused:
                    break

    def pause(self, run: tracking.Run) -> None:
        """Save the exact state after the last finished epoch, and have the run PAUSED.

        Args:
            run: The run.

        Raises:
            UserError: The state cannot be saved.
        """
        self.keeper.save()
        if self.keeper.saved < len(self.history):
            raise self._cannot_pause()
        run.pause(len(self.history))

    def _begin(self) -> None:
        """Give the callbacks, which have just begun, their state, and check that it can be kept.

        Raises:
            UserError: The training is to be paused, and the state of a callback cannot be kept.
        """
        self.keeper.begin()
        after = self.config.pause_after
        if after is not None and after < self.config.trainer.epochs and not self.keeper.can_keep():
            raise self._cannot_pause()

    def _cannot_pause(self) -> UserError:
        return UserError(
            f"pause_after: received {self.config.pause_after}, but a callback holds something "
            "other than numbers, texts, arrays and lists of these, so the training's state cannot "
            "be kept; leave out pause_after or that callback"
        )

    def keep_outputs(self, run: tracking.Run) -> None:
        """Keep the trained model, its predictions, and pictures of how it came about."""
        from fmnist_lab.training import checkpoint

        keeper, chosen = self.keeper, self.keeper.chosen
        self.screen.ended(len(self.history), keeper.stopped, str(chosen or ""))
        if chosen:
            run.tags(chosen.tags())
        if not self.probabilities:
            # The run was interrupted after its last epoch.
            self.probabilities = outputs.predict(self.model, self.dataset)
            self.scaling = outputs.scaling(self.probabilities, self.dataset)
        if self.shared and keeper.latest:
            checkpoint.save(keeper.latest, self.shared, keep=None)
        outputs.keep_results(run, self.probabilities["test"], self.dataset)
        outputs.keep_validation(run, self.probabilities, self.dataset)
        outputs.draw_curves(run, self.history, chosen.epoch if chosen else 0)
        outputs.keep_model(run, self.model, self.dataset, self.scaling)
