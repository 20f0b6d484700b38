"""The life of a run: opened, written, and closed in the state that it has come to."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fmnist_lab.errors import DivergedError, UserError, cannot_write, ended_by
from fmnist_lab.system import signals
from fmnist_lab.tracking.events import Status
from fmnist_lab.tracking.journal import Journal
from fmnist_lab.tracking.query import PAUSED_TAG
from fmnist_lab.tracking.run import Run
from fmnist_lab.tracking.store import Store


@contextmanager
def start(
    store: Store | None,
    experiment: str | None,
    name: str,
    tags: Mapping[str, str],
    *,
    journal: Journal | None = None,
    run_id: str = "",
) -> Iterator[Run]:
    """Open a run, and close it in the state that it has come to.

    Args:
        store: The store; None: nothing is kept.
        experiment: MLflow's experiment; None: see `experiment_name`.
        name: The run's name.
        tags: Facts to be known from the start.
        journal: The journal that an earlier process has left of the run; None: the run is new.
        run_id: The run to be continued; empty: a new one.

    Yields:
        The run, FINISHED after the block or PAUSED if the block has asked for that, FAILED with the
        reason as tag `failure` if the block raises, KILLED after Ctrl-C, SIGTERM or SIGHUP. A run
        that can be gone on with keeps its journal.

    Raises:
        UserError: The store cannot be used.
    """
    again = journal is not None
    if store is not None and journal is None:
        try:
            journal = Journal.claim(store.unfinished, tags.get("config.hash", "run"))
        except OSError as error:
            raise cannot_write(store.unfinished, error) from error
    run = Run(store, experiment, name, tags, journal, run_id)
    with _temporary_files_in(journal):
        try:
            if run.paused_before:
                run.tags({PAUSED_TAG: ""})
            yield run
            run.wait_until_open()
            if run.failed_before:
                run.tags({"failure": ""})
            run.finish()
        except KeyboardInterrupt as error:
            with signals.ignored():
                run.close(Status.KILLED, ended_by(error))
                run.leave(resumable=True)
            raise
        except BaseException as error:
            why = str(error) if isinstance(error, UserError) else traceback.format_exc()
            with signals.ignored():
                run.close(Status.FAILED, why)
                # The user's own mistake would only be repeated; an earlier journal stays.
                mistake = isinstance(error, UserError) and error.__cause__ is None
                diverged = isinstance(error, DivergedError)
                run.leave(resumable=not diverged and (again or not mistake))
            raise
        else:
            with signals.ignored():
                run.close(Status.PAUSED if run.is_paused else Status.FINISHED)
                run.leave(resumable=run.is_paused)
            run.check_disk()


@contextmanager
def _temporary_files_in(journal: Journal | None) -> Iterator[None]:
    """Have libraries put their temporary files where they are found if this process is killed."""
    if journal is None:
        yield
        return
    before, tempfile.tempdir = tempfile.tempdir, str(journal.temporary)
    try:
        yield
    finally:
        tempfile.tempdir = before
