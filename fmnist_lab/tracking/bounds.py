"""Limits for files from a store, checked before a file is unpacked.

Anyone may have written the file, and a few kilobytes of zip or YAML can promise gigabytes.
"""

from __future__ import annotations

import io
import zipfile

import numpy as np

MOST_TEXT = 1 << 20  # Bytes of a YAML file.
MOST_DEPTH = 50  # Of what is nested in it.
MOST_ARRAYS = 1 << 28  # Bytes of a run's arrays, packed or not.


def check_yaml(text: bytes | str) -> None:
    """Refuse a YAML text that would take long to parse; ours are short and have no aliases.

    Raises:
        ValueError: The text is too long, nests too deep, or has aliases, which may stand for any
            number of copies.
        yaml.YAMLError: The text is no YAML.
    """
    import yaml

    if len(text) > MOST_TEXT:
        raise ValueError(f"it has {len(text):,} bytes, expected no more than {MOST_TEXT:,}")
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it has an alias, *{event.anchor}, which may stand for many copies")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MOST_DEPTH:
            raise ValueError(f"it nests deeper than {MOST_DEPTH} levels")


def read_arrays(content: bytes, *names: str) -> list[np.ndarray]:
    """Return arrays of an .npz by their names; nothing is unpickled.

    Args:
        content: The file's bytes.
        names: The arrays' names.

    Raises:
        ValueError: The file is damaged, lacks an array, or takes too much memory.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            sizes = [archive.getinfo(f"{name}.npy").file_size for name in names]
            if sum(sizes) > MOST_ARRAYS:
                raise ValueError(
                    f"it unpacks to {sum(sizes):,} bytes, expected no more than {MOST_ARRAYS:,}"
                )
            # NumPy touches no memory for an array whose header promises more than there is.
            files = (io.BytesIO(archive.read(f"{name}.npy")) for name in names)
            return [np.lib.format.read_array(file, allow_pickle=False) for file in files]
    except Exception as error:
        # The readers of zip and of arrays raise anything on a damaged file.
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
