"""Questions about many runs that load few of them: sweeps in short, and what has finished."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from fmnist_lab import compat
from fmnist_lab.texts import whole_number
from fmnist_lab.tracking import query, tables
from fmnist_lab.tracking.client import client_of
from fmnist_lab.tracking.events import Status
from fmnist_lab.tracking.failures import asks
from fmnist_lab.tracking.reading import facts
from fmnist_lab.tracking.store import Store

MOST_QUESTIONS = 10  # to a server, before a sweep begins
# So many sweeps fit into a filter; the runs of older ones are sorted out here.
MOST_EXCLUDED = 100
# So many runs of a sweep tell what its runs have in common.
SAMPLE = 20
# Parts of an SQL question about the tags of finished runs that hold the hash of a config.
OF = "FROM tags JOIN runs ON runs.run_uuid = tags.run_uuid"
ANSWERS = (
    "(tags.key = 'config.hash' OR tags.key = 'config.hash.native' AND EXISTS "
    "(SELECT 1 FROM tags of WHERE of.run_uuid = tags.run_uuid "
    "AND of.key = 'engine' AND of.value = 'native')) "
    # A run that was made to be compared with another answers nothing.
    "AND NOT EXISTS (SELECT 1 FROM tags of WHERE of.run_uuid = tags.run_uuid "
    "AND of.key = 'reproduces') AND runs.status = 'FINISHED' AND runs.lifecycle_stage = 'active'"
)


@dataclass(frozen=True)
class SweepSummary:
    """The runs of a sweep in short.

    Attributes:
        states: How many of its runs are in which state.
        more: Whether there are more runs, beyond `query.PAGE` of them on a server.
        sample: Some of its runs, as `tables.row_of` returns them.
    """

    states: Counter[str]
    more: bool
    sample: list[dict[str, Any]]


def own_rows(store: Store, experiment: str, where: str, page: int) -> Iterator[dict[str, Any]]:
    """Yield sweeps and the runs that belong to none of these, the newest first.

    Args:
        store: Where to look.
        experiment: The experiment's name.
        where: MLflow's filter, which the sweeps and the runs have to fit.
        page: How many runs to ask for at once.

    Raises:
        UserError: The store or the experiment is not there, or MLflow refuses the filter.
    """
    only = [where] if where else []
    sweeps = [
        row["run_id"]
        for row in tables.rows(store, experiment, " and ".join([*only, "tags.job = 'sweep'"]))
    ]
    none = [f"tags.`{query.member_tag(sweep)}` IS NULL" for sweep in sweeps[:MOST_EXCLUDED]]
    older = set(sweeps[MOST_EXCLUDED:])
    for row in tables.rows(store, experiment, " and ".join([*only, *none]), page=page):
        if older.isdisjoint(row["sweeps"]):
            yield row


def member_rows(store: Store, experiment: str, sweep: str, where: str) -> Iterator[dict[str, Any]]:
    """Yield the runs of a sweep in the order of its jobs, a hundred jobs at a time.

    Args:
        store: Where to look.
        experiment: The experiment's name.
        sweep: The id of the sweep's parent run.
        where: MLflow's filter, which the runs have to fit as well.
    """
    tags = facts(store, sweep)["tags"]
    jobs = whole_number(tags.get("sweep.jobs")) or 0
    # Job numbers have five digits, those of a winner's trainings six. A database takes seconds to
    # order thousands of runs by a tag.
    hundreds = [f"{each:03d}__" for each in range(-(-jobs // 100))]
    if hundreds and query.SEARCH_TAG in tags:
        hundreds.append("______")
    for hundred in hundreds or ["%"]:
        some = f"tags.`{query.member_tag(sweep)}` LIKE '{hundred}'"
        found = tables.rows(store, experiment, " and ".join(filter(None, [where, some])))
        yield from sorted(found, key=lambda row: row["sweeps"].get(sweep, 0))


@asks
def sweep_summaries(
    store: Store, experiment: str, sweeps: Sequence[str]
) -> dict[str, SweepSummary]:
    """Return the runs of sweeps in short, in one question per sweep and one for all of them.

    Args:
        store: Where to look.
        experiment: The experiment's name.
        sweeps: The ids of the sweeps' parent runs.
    """
    client = client_of(store)
    place = query.experiment_id_of(client, store, experiment)
    counted = _states(client, place, sweeps)
    most = query.PAGE if counted is None else SAMPLE
    found = {}
    for sweep in sweeps:
        where = query.members_of(sweep)
        page = client.search_runs([place], where, max_results=most)
        states = Counter(map(query.status_of, page)) if counted is None else counted[sweep]
        runs = list(page)
        if page.token:
            # The first job differs from the last ones in each parameter that a grid varies.
            first = query.search(
                client, [place], where, order=["attributes.start_time ASC"], page=1
            )
            runs += islice(first, 1)
        more = counted is None and bool(page.token)
        found[sweep] = SweepSummary(states, more, [tables.row_of(run) for run in runs])
    return found


def _states(
    client: Any, experiment_id: str, sweeps: Sequence[str]
) -> dict[str, Counter[str]] | None:
    """Return how many runs of each sweep are in which state; None if the store is a server."""
    question = (
        "SELECT tags.key, runs.status, count(*) FROM tags "
        "JOIN runs ON runs.run_uuid = tags.run_uuid "
        "WHERE tags.key IN :tags AND tags.value != '' AND runs.lifecycle_stage = 'active' "
        "AND runs.experiment_id = :experiment GROUP BY tags.key, runs.status"
    )
    tags = {query.member_tag(sweep): sweep for sweep in sweeps}
    answer = _ask_database(client, question, experiment_id, tags=list(tags))
    if answer is None:
        return None
    found: dict[str, Counter[str]] = {sweep: Counter() for sweep in sweeps}
    for tag, status, number in answer:
        # Only we make members, so those that wait are paused.
        state = Status.PAUSED.name if status == Status.PAUSED else status
        found[tags[tag]][state] = number
    return found


def _ask_database(
    client: Any, question: str, experiment_id: str, **lists: list[str]
) -> list[Any] | None:
    """Return the rows that answer an SQL question; None if the store behind a client is a server.

    Args:
        client: MLflow's client.
        question: The question about :experiment and the lists.
        experiment_id: The id of an experiment.
        lists: Lists of values by their names in the question.
    """
    engine = getattr(compat.store_behind(client), "engine", None)
    if engine is None:
        return None
    import sqlalchemy

    expanding: Any = (sqlalchemy.bindparam(name, expanding=True) for name in lists)
    asked = sqlalchemy.text(question).bindparams(*expanding)
    with engine.connect() as connection:
        return list(connection.execute(asked, {"experiment": int(experiment_id), **lists}))


@asks
def finished(
    store: Store, experiment_id: str, hashes: Sequence[tuple[str, str]]
) -> tuple[set[str], bool]:
    """Return which of the configs have a run that trained or evaluated them to the end.

    A database answers all in one question. A server, which can be asked for one config at a time,
    is asked for a few of them.

    Args:
        store: Where to look.
        experiment_id: The id of the experiment to look into.
        hashes: The values of `Config.identity` and `Config.native_identity` of each config. Only a
            database is asked for the latter.

    Returns:
        The hashes that were found, and whether all configs were looked for.
    """
    client = client_of(store)
    question = (
        f"SELECT DISTINCT tags.value {OF} WHERE {ANSWERS} AND runs.experiment_id = :experiment"
    )
    answer = _ask_database(client, question, experiment_id)
    if answer is not None:
        return {value for (value,) in answer} & {each for pair in hashes for each in pair}, True
    distinct = list(dict.fromkeys(identity for identity, _ in hashes))
    some = distinct[:: -(-len(distinct) // MOST_QUESTIONS) or 1]
    same = "tags.`config.hash` = '{}' and attributes.status = 'FINISHED'"
    found = {
        each
        for each in some
        if any(islice(query.search(client, [experiment_id], same.format(each), page=1), 1))
    }
    return found, len(some) == len(distinct)
