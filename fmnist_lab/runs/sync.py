"""`sync`: the events that a store has missed while it was away."""

from __future__ import annotations

from fmnist_lab import tracking
from fmnist_lab.errors import reported
from fmnist_lab.texts import counted


def sync(*, store: str | None = None) -> None:
    """Send the events that runs have kept on this machine while their store was away.

    Nothing is doubled, however often it is sent. The folder of a finished run in mlruns/unfinished
    is then removed; that of an interrupted run stays for resume=true. The exit code is 1 if
    something could not be sent.

    Args:
        store: MLflow's tracking URI; left out, every store that something here waits for.
    """
    with reported():
        place = tracking.Store.locate(store, for_writing=False)
        uris = [place.uri] if store else tracking.awaited(place.unfinished)
        outcomes = []
        for uri in uris:
            for sent in tracking.sync(tracking.Store.locate(uri), place.unfinished):
                print(_told(sent, uri))
                outcomes.append(sent)
        if not outcomes:
            print(f"Nothing to send: no run waits in {place.unfinished}.")
        if any(sent.problem for sent in outcomes):
            raise SystemExit(1)


def _told(sent: tracking.Sent, uri: str) -> str:
    """Return the sentence that tells what became of a run's folder."""
    said = f"Run '{sent.name}', id {sent.run_id}: {counted(sent.events, 'event')} sent to {uri}"
    if sent.problem:
        return f"{said}; the rest waits, as it did not take them: {sent.problem}"
    if sent.status == "FINISHED":
        return f"{said}; it is complete."
    return f"{said}; the run is unfinished, and goes on if its command is repeated with resume=true"
