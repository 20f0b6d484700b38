"""Earlier runs, read without a change to the store: the answers to configs, and how long they took.

A local store is read as a database, because the import of MLflow takes as long as everything else
that a dry run does. Any other store is asked through MLflow.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import quote

from fmnist_lab.texts import line
from fmnist_lab.tracking import listing, query
from fmnist_lab.tracking.client import LOCK_SECONDS, asking
from fmnist_lab.tracking.failures import refused
from fmnist_lab.tracking.files import FILES_TAG, has_lost_files
from fmnist_lab.tracking.store import Store

MOST_RUNS = 100  # of each model, the newest
MOST_SWEEPS = 20


@dataclass(frozen=True)
class PastRun:
    """A finished training, with all that tells how long another one takes.

    Attributes:
        run_id: Its id.
        seconds: From its start to its end.
        params: Its params.
        tags: Its tags `engine`, `threads` and `device`.
        bytes: The size of its files; 0 if that is not noted.
        epochs: For each of its epochs, in their order: when it was over, in seconds since the
            start of the run, and its speed in images per second. The last one alone, as (0,
            speed), where the store does not tell all at once.
    """

    run_id: str
    seconds: float
    params: Mapping[str, str]
    tags: Mapping[str, str]
    bytes: int
    epochs: Sequence[tuple[float, float]] = field(default=())


@dataclass(frozen=True)
class PastSweep:
    """How long a finished sweep took beside its runs.

    Attributes:
        before: Seconds from its start to the start of its first run.
        after: Seconds from the end of its last run to its own end.
        between: Seconds of a worker between two runs.
        workers: How many runs went on at once.
        runs: How many runs it had.
    """

    before: float
    after: float
    between: float
    workers: int
    runs: int


@dataclass(frozen=True)
class Answer:
    """A finished run of a config.

    Attributes:
        run_id: Its id.
        name: Its name.
    """

    run_id: str
    name: str


def answers(
    store: Store, experiment: str, hashes: Sequence[tuple[str, str]]
) -> tuple[dict[str, Answer], bool]:
    """Return the runs that `resume=true` would take for the answers to configs.

    Args:
        store: Where to look.
        experiment: The experiment's name, which need not exist.
        hashes: The values of `Config.identity` and `Config.native_identity` of each config.

    Returns:
        The runs by hash, and whether all configs were looked for: a server is asked for a few.
    """
    if not hashes or not store.is_there():
        return {}, True
    if store.database is None:
        with asking(store) as client:
            found = client.get_experiment_by_name(experiment)
        if found is None:
            return {}, True
        known, whole = listing.finished(store, found.experiment_id, hashes)
        return {each: Answer("", "") for each in known}, whole
    wanted = {each for pair in hashes for each in pair}
    question = (
        f"SELECT tags.value, runs.run_uuid, runs.name, runs.artifact_uri, files.value {listing.OF} "
        "LEFT JOIN tags AS files ON files.run_uuid = runs.run_uuid AND files.key = :files "
        f"WHERE {listing.ANSWERS} AND runs.experiment_id IN "
        "(SELECT experiment_id FROM experiments WHERE name = :experiment) ORDER BY start_time"
    )
    rows = _ask(store, question, experiment=experiment, files=FILES_TAG)
    return {
        value: Answer(run_id, line(name))
        for value, run_id, name, place, files in rows
        if value in wanted and not has_lost_files(place, files or "")
    }, True


def past_runs(store: Store, models: Iterable[str], host: str) -> list[PastRun]:
    """Return the newest finished trainings of models on a machine, of all experiments.

    Args:
        store: Where to look.
        models: The values of the runs' param `model`.
        host: The machine's name.
    """
    if not store.is_there():
        return []
    find = _past_runs_asked if store.database is None else _past_runs_read
    return [run for model in models for run in find(store, model, host)]


def _past_runs_read(store: Store, model: str, host: str) -> Iterator[PastRun]:
    question = (
        "SELECT runs.run_uuid, start_time, end_time FROM runs "
        "JOIN tags AS job ON job.run_uuid = runs.run_uuid AND job.key = 'job' "
        "JOIN tags AS host ON host.run_uuid = runs.run_uuid AND host.key = 'host' "
        "JOIN params ON params.run_uuid = runs.run_uuid AND params.key = 'model' "
        "WHERE job.value = 'train' AND host.value = :host AND params.value = :model "
        "AND status = 'FINISHED' AND lifecycle_stage = 'active' AND end_time > start_time "
        "ORDER BY start_time DESC LIMIT :most"
    )
    runs = list(_ask(store, question, host=host, model=model, most=MOST_RUNS))
    some = ", ".join(f"'{run_id}'" for run_id, *_ in runs)
    params: dict[str, dict[str, str]] = defaultdict(dict)
    tags: dict[str, dict[str, str]] = defaultdict(dict)
    epochs: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for table, found in (("params", params), ("tags", tags)):
        asked = f"SELECT run_uuid, key, value FROM {table} WHERE run_uuid IN ({some})"
        for run_id, key, value in _ask(store, asked):
            found[run_id][key] = value or ""
    asked = (
        f"SELECT run_uuid, min(timestamp), value FROM metrics WHERE run_uuid IN ({some}) "
        "AND key = 'images_per_second' GROUP BY run_uuid, step ORDER BY step"
    )
    for run_id, moment, speed in _ask(store, asked):
        epochs[run_id].append((moment, speed))
    for run_id, start, end in runs:
        ends = [((moment - start) / 1000, speed) for moment, speed in epochs[run_id]]
        yield _past_run(run_id, (end - start) / 1000, params[run_id], tags[run_id], ends)


def _past_runs_asked(store: Store, model: str, host: str) -> Iterator[PastRun]:
    where = (
        f"attributes.status = 'FINISHED' and tags.job = 'train' and tags.host = '{host}' "
        f"and params.model = '{model}'"
    )
    with asking(store) as client:
        experiments = [each.experiment_id for each in client.search_experiments()]
        for run in islice(query.search(client, experiments, where, page=MOST_RUNS), MOST_RUNS):
            seconds = (run.info.end_time - run.info.start_time) / 1000
            speed = run.data.metrics.get("images_per_second", 0.0)
            yield _past_run(run.info.run_id, seconds, run.data.params, run.data.tags, [(0, speed)])


def _past_run(
    run_id: str,
    seconds: float,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    epochs: Sequence[tuple[float, float]],
) -> PastRun:
    kept = {name: tags.get(name, "") for name in ("engine", "threads", "device")}
    return PastRun(run_id, seconds, params, kept, _bytes(tags.get(FILES_TAG, "")), epochs)


def _bytes(noted: str) -> int:
    """Return the size of a run's files, as the run has noted them."""
    try:
        return sum(int(each.split()[0]) for each in json.loads(noted or "{}").values())
    except (AttributeError, IndexError, TypeError, ValueError):
        return 0


def newest_sweep(store: Store, experiment: str, sweep_hash: str) -> str:
    """Return the id of the sweep that `resume=true` would go on with; "" if none is known.

    Args:
        store: Where to look; only a local store tells.
        experiment: The name of the experiment.
        sweep_hash: The sweep's tag `sweep.hash`.
    """
    if store.database is None or not store.is_there():
        return ""
    question = (
        "SELECT runs.run_uuid FROM runs JOIN experiments "
        "ON experiments.experiment_id = runs.experiment_id AND experiments.name = :experiment "
        "JOIN tags ON tags.run_uuid = runs.run_uuid AND tags.key = 'sweep.hash' "
        "WHERE tags.value = :hash AND runs.lifecycle_stage = 'active' "
        "ORDER BY start_time DESC LIMIT 1"
    )
    found = _ask(store, question, experiment=experiment, hash=sweep_hash)
    return str(found[0][0]) if found else ""


def past_sweeps(store: Store, host: str) -> list[PastSweep]:
    """Return how long the newest finished sweeps of a machine took beside their runs.

    Args:
        store: Where to look; only a local store tells.
        host: The machine's name.
    """
    if store.database is None or not store.is_there():
        return []
    question = (
        "SELECT parent.run_uuid, parent.start_time, parent.end_time, child.start_time, "
        "child.end_time FROM (SELECT runs.* FROM runs "
        "JOIN tags AS job ON job.run_uuid = runs.run_uuid AND job.key = 'job' "
        "JOIN tags AS host ON host.run_uuid = runs.run_uuid AND host.key = 'host' "
        "WHERE job.value = 'sweep' AND host.value = :host AND status = 'FINISHED' "
        "AND lifecycle_stage = 'active' ORDER BY start_time DESC LIMIT :most) AS parent "
        "JOIN tags AS of ON of.key = 'mlflow.parentRunId' AND of.value = parent.run_uuid "
        "JOIN runs AS child ON child.run_uuid = of.run_uuid "
        "WHERE child.end_time IS NOT NULL ORDER BY child.start_time"
    )
    spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
    ends: dict[str, tuple[int, int]] = {}
    for parent, start, end, *span in _ask(store, question, host=host, most=MOST_SWEEPS):
        ends[parent] = start, end
        spans[parent].append((span[0], span[1]))
    return [
        _past_sweep(*ends[parent], runs)
        for parent, runs in spans.items()
        # Runs from before were taken over, or went on after a pause that nobody knows.
        if len(runs) > 1 and runs[0][0] >= ends[parent][0]
    ]


def _past_sweep(start: int, end: int, runs: Sequence[tuple[int, int]]) -> PastSweep:
    """Return a sweep's times from its own and those of its runs, in ms, ordered by their start."""
    last = max(over for _, over in runs)
    workers = max(sum(one <= begun < over for one, over in runs) for begun, _ in runs)
    free: list[int] = []
    gaps = []
    for begun, over in runs:
        # The worker that had been free for the shortest time, as good a guess as any.
        earlier = [each for each in free if each <= begun]
        if earlier:
            gaps.append(begun - max(earlier))
            free.remove(max(earlier))
        free.append(over)
    between = sorted(gaps)[len(gaps) // 2] if gaps else 0
    before, after = runs[0][0] - start, end - last
    return PastSweep(before / 1000, after / 1000, between / 1000, workers, len(runs))


def _ask(store: Store, question: str, **values: Any) -> list[Any]:
    """Return the rows that answer an SQL question to a local store, which stays as it is."""
    place = f"file:{quote(str(store.database))}?mode=ro"
    try:
        with closing(sqlite3.connect(place, uri=True, timeout=LOCK_SECONDS)) as connection:
            return connection.execute(question, values).fetchall()
    except sqlite3.Error as error:
        if "no such table" in str(error):
            # The database is new, or not MLflow's; the run itself will tell.
            return []
        raise refused(store, error) from None
