"""A store that holds as many runs as a paper would, without training them: for measurements."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

from fmnist_lab.tracking import Store, member_tag

# What is known of a run, and the column that says of which.
TABLES = {
    "runs": "run_uuid",
    "params": "run_uuid",
    "tags": "run_uuid",
    "metrics": "run_uuid",
    "latest_metrics": "run_uuid",
    "inputs": "destination_id",
}
ROWS_AT_ONCE = 500


def multiply(store: Store, run_id: str, sweep: str, settings: dict[str, list[Any]]) -> int:
    """Add a copy of a run for each combination of settings to a sweep, as if it had been its job.

    The copies differ in those parameters, in their configuration's hash, and a little in their
    accuracy; they have no files.

    Args:
        store: A store with a database that this process can open.
        run_id: A finished run.
        sweep: Id of the parent run.
        settings: Values by parameter.

    Returns:
        How many there are.
    """
    import sqlalchemy as sql

    engine = sql.create_engine(store.uri)
    known = sql.MetaData()
    known.reflect(engine, only=list(TABLES))
    with engine.begin() as connection:
        originals = {
            table: [
                dict(row._mapping)
                for row in connection.execute(
                    sql.select(known.tables[table]).where(known.tables[table].c[column] == run_id)
                )
            ]
            for table, column in TABLES.items()
        }
        combinations = list(itertools.product(*settings.values()))
        for start in range(0, len(combinations), ROWS_AT_ONCE):
            part = enumerate(combinations[start:][:ROWS_AT_ONCE], start)
            copies = [
                (number, uuid.uuid4().hex, dict(zip(settings, values, strict=True)))
                for number, values in part
            ]
            for table, column in TABLES.items():
                rows = [
                    _changed(table, {**row, column: id}, number, params, sweep)
                    for number, id, params in copies
                    for row in originals[table]
                ]
                if rows:
                    connection.execute(known.tables[table].insert(), rows)
    engine.dispose()
    return len(combinations)


def megabytes(store: Store) -> float:
    """Return how large a store's database is."""
    import sqlalchemy as sql

    if store.database is not None:
        return store.database.stat().st_size / 1e6
    engine = sql.create_engine(store.uri)
    with engine.connect() as connection:
        size = connection.scalar(sql.text("select pg_database_size(current_database())"))
    engine.dispose()
    return int(size or 0) / 1e6


def _changed(
    table: str, row: dict[str, Any], number: int, params: dict[str, Any], sweep: str
) -> dict[str, Any]:
    """Return a row of a copy."""
    key = row.get("key")
    if table == "runs":
        row["name"] = " ".join(str(value) for value in params.values())
    elif table == "inputs":
        row["input_uuid"] = uuid.uuid4().hex
    elif table == "params" and key in params:
        row["value"] = str(params[key])
    elif table == "tags" and key == member_tag(sweep):
        row["value"] = f"{number:05d}"
    elif table == "tags" and key == "config.hash":
        row["value"] = row["run_uuid"][:16]
    elif key in ("accuracy/test", "accuracy/gap"):
        row["value"] += number % 97 * 1e-5
    return row
