"""The files that a config names by their path, read so that the config holds what is in them.

A config with the content in the place of the path means the same on every machine, has the same
hash wherever the file lies, and another one when the file has changed.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

from fmnist_lab.errors import UserError

MAX_BYTES = 2**26  # Far above a line for each image of any data set that we can load.
PARTS = {"exclude": "train", "exclude_test": "test"}
KEYS = (*PARTS, "noise_table")
LIST_MEND = "write one index per line, or a CSV file with a column 'index', and perhaps 'split'"
TABLE_MEND = "write a CSV file of numbers alone, one line per true class"


def contents(data: dict[str, Any]) -> dict[str, Any]:
    """Return what is in the files that the values of `data` name, by key.

    Args:
        data: The values of the config's group `data`.

    Returns:
        `exclude` and `exclude_test` as sorted lists of different indices, null if there are none;
        `noise_table` as a list of rows. A list that was given in the place of a path is taken too.

    Raises:
        UserError: A file cannot be read, or holds anything else.
    """
    found: dict[str, Any] = {}
    for key, part in PARTS.items():
        given = data[key]
        listed = _indices(key, given, part) if isinstance(given, str) else given or []
        found[key] = sorted(set(listed)) or None
    table = data["noise_table"]
    found["noise_table"] = _table(table) if isinstance(table, str) else table
    return found


def _indices(key: str, file: str, part: str) -> list[int]:
    """Return the indices in a file: one per line, or those of a CSV file's column `index`.

    Where there is a column `split`, only the rows count that have the name of the part there.
    """
    rows = _rows(key, file)
    if not rows:
        return []
    heading = [cell.lower() for cell in rows[0][1]]
    if "index" not in heading:
        if all(len(cells) == 1 for _, cells in rows):
            return [_index(key, file, number, cells[0]) for number, cells in rows]
        raise _refused(key, f"{file} with the columns {', '.join(rows[0][1])}", LIST_MEND)
    at = heading.index("index")
    split = heading.index("split") if "split" in heading else None
    chosen = []
    for number, cells in rows[1:]:
        if len(cells) != len(heading):
            received = f"{file}, whose line {number} has {len(cells)} cells and not {len(heading)}"
            raise _refused(key, received, LIST_MEND)
        if split is not None and cells[split] not in PARTS.values():
            received = f"{file}, whose line {number} has the split '{cells[split]}'"
            raise _refused(key, received, f"write {' or '.join(PARTS.values())} there")
        index = _index(key, file, number, cells[at])
        if split is None or cells[split] == part:
            chosen.append(index)
    if len(rows) > 1 and not chosen:
        (other,) = (name for name in PARTS if name != key)
        raise _refused(
            key, f"{file}, whose rows are all of another split", f"give it as data.{other}"
        )
    return chosen


def _index(key: str, file: str, number: int, cell: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", cell):
        received = f"{file}, whose line {number} has '{cell[:40]}' in the place of an index"
        raise _refused(key, received, LIST_MEND)
    return int(cell)


def _table(file: str) -> list[list[float]]:
    """Return the numbers of a CSV file, row by row."""
    rows = _rows("noise_table", file)
    try:
        return [[float(cell) for cell in cells] for _, cells in rows]
    except ValueError as error:
        raise _refused("noise_table", f"{file}: {error}", TABLE_MEND) from None


def _rows(key: str, file: str) -> list[tuple[int, list[str]]]:
    """Return the cells of a CSV file's lines, without blank ones and comments, by line number."""
    path = Path(file).expanduser()
    try:
        if path.exists() and not path.is_file():
            raise _refused(key, f"{file}, which is no file", "give the path of one")
        if path.stat().st_size > MAX_BYTES:
            raise _refused(key, f"{file}, which is larger than {MAX_BYTES} bytes", LIST_MEND)
        # As spreadsheets write it, with a mark of the byte order.
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        where = " The path is relative to the current folder." * (not path.is_absolute())
        raise UserError(
            f"data.{key}: received '{file}', which cannot be read ({reason}), expected the path of "
            f"a file, or null.{where}"
        ) from None
    cells = ([cell.strip() for cell in row] for row in csv.reader(text.splitlines()))
    return [(number, row) for number, row in enumerate(cells, 1) if any(row) and row[0][:1] != "#"]


def _refused(key: str, received: str, mend: str) -> UserError:
    expected = "a table of numbers" if key == "noise_table" else "a list of indices of images"
    return UserError(f"data.{key}: received {received}, expected {expected}; {mend}")
