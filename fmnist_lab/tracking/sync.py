"""Journals whose process is gone, delivered to the stores that have missed their events."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fmnist_lab.tracking.events import Artifact, End, Event, Opened, Opening, Status
from fmnist_lab.tracking.failures import Kind, asks, kind, reason
from fmnist_lab.tracking.journal import Journal, abandoned, clear_half_removed, read_events
from fmnist_lab.tracking.outbox import Outbox
from fmnist_lab.tracking.query import client_to_read
from fmnist_lab.tracking.store import Store


@dataclass(frozen=True)
class Sent:
    """What became of an abandoned journal.

    Attributes:
        run_id: The run.
        name: The run's name.
        events: How many events the store took.
        status: The run's state; None if the run did not come to an end and can be resumed.
        problem: Why the store did not take the rest; "" if it did.
    """

    run_id: str
    name: str
    events: int
    status: Status | None
    problem: str


def awaited(root: Path) -> list[str]:
    """Return the stores that the abandoned journals below a folder hold something for."""
    opened = (_opened(read_events(folder)) for folder in abandoned(root))
    return list(dict.fromkeys(run.store for run in opened if run))


@asks
def sync(store: Store, root: Path | None = None) -> list[Sent]:
    """Deliver what abandoned journals hold for a store; those of finished runs are then removed.

    Args:
        store: A store that exists.
        root: The folder of the journals; None: the store's own.

    Raises:
        UserError: There is no such store, or it cannot be written.
    """
    client_to_read(store)
    root = store.unfinished if root is None else root
    clear_half_removed(root)
    results = []
    for folder in abandoned(root):
        opened = _opened(read_events(folder))
        journal = Journal.reclaim(folder) if opened and store.is_at(opened.store) else None
        if not opened or not journal:
            continue
        try:
            sent = _send(store, journal, opened)
        except Exception:
            journal.release()
            raise
        if sent.status is Status.FINISHED and not sent.problem:
            journal.remove()
        else:
            journal.release()
        results.append(sent)
    return results


def _opened(events: list[Event]) -> Opened | None:
    """Return the last event that says which run a journal is of; each process adds one."""
    return next((event for event in reversed(events) if isinstance(event, Opened)), None)


def _send(store: Store, journal: Journal, opened: Opened) -> Sent:
    """Deliver a journal."""
    events = journal.events()
    outbox = Outbox(store, journal, opened.id, again=True)
    outbox.put(
        *(
            event
            for event in events
            if not isinstance(event, Opening | Opened)
            and not (isinstance(event, Artifact) and not (journal.files / event.name).exists())
        )
    )
    total = len(outbox)
    outbox.flush()
    if outbox.held and kind(outbox.held) is Kind.DISK:
        raise outbox.held
    problems = [*outbox.refused, *([outbox.held] if outbox.held else [])]
    return Sent(
        opened.id,
        opened.name,
        total - len(outbox) - len(outbox.refused),
        events[-1].status if isinstance(events[-1], End) else None,
        reason(problems[-1]) if problems else "",
    )
