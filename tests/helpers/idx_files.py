"""Tiny data sets in IDX files, and a loopback server that counts what is asked of it."""

import gzip
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_lab.data.dataset import IdxDataset, IdxFile

NAMES = ("train_images", "train_labels", "test_images", "test_labels")


def idx_bytes(array: np.ndarray) -> bytes:
    """The IDX file of a uint8 array."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def tiny_arrays(train: int = 10, test: int = 5, classes: int = 3) -> dict[str, np.ndarray]:
    """Images of 4 x 3 pixels that differ from each other; labels that cycle."""
    rng = np.random.default_rng(7)
    return {
        "train_images": rng.integers(0, 256, (train, 4, 3), np.uint8),
        "train_labels": np.arange(train, dtype=np.uint8) % classes,
        "test_images": rng.integers(0, 256, (test, 4, 3), np.uint8),
        "test_labels": np.arange(test, dtype=np.uint8) % classes,
    }


def describe(
    contents: dict[str, bytes], classes: int = 3, **others: Any
) -> tuple[IdxDataset, dict[str, bytes]]:
    """The description of four contents, and the contents by file name."""
    named = {f"{name}-idx": contents[name] for name in NAMES}
    files = {
        name: IdxFile(f"{name}-idx", hashlib.sha256(contents[name]).hexdigest()) for name in NAMES
    }
    settings: dict[str, Any] = {"name": "tiny", "image_shape": (4, 3)} | others
    class_names = tuple(f"class {number}" for number in range(classes))
    return IdxDataset(**files, class_names=class_names, **settings), named


def tiny(
    train: int = 10, test: int = 5, classes: int = 3, **others: Any
) -> tuple[IdxDataset, dict[str, bytes]]:
    """A whole tiny data set: its description and its files."""
    arrays = tiny_arrays(train, test, classes)
    return describe({name: idx_bytes(array) for name, array in arrays.items()}, classes, **others)


def write(folder: Path, files: dict[str, bytes], packed: bool = False) -> Path:
    """Write files into a folder, gzipped or not."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


def plainly(request: BaseHTTPRequestHandler, body: bytes) -> None:
    """Answer as a good server does."""
    request.send_response(200)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


@contextmanager
def server(files: dict[str, bytes], answer: Answer = plainly) -> Iterator[tuple[str, Counter[str]]]:
    """Serve NAME.gz for each file on loopback; yields the URL and a count of requests by path."""
    asked: Counter[str] = Counter()
    counting = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with counting:
                asked[self.path] += 1
            name = self.path.removeprefix("/files/").removesuffix(".gz")
            answer(self, gzip.compress(files[name]))

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}/files/", asked
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()
