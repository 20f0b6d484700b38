"""A model behind HTTP: how fast it answers, under several clients, and what it refuses."""

from __future__ import annotations

import base64
import http.client
import io
import json
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from fmnist_lab import tracking
from fmnist_lab.benchmark.results import RUN, check_ended, keep, require, with_store
from fmnist_lab.errors import UserError
from fmnist_lab.runs import ui

JSON = {"Content-Type": "application/json"}
TOO_LARGE = 50_000_000  # bytes
WARM_UP = 20  # requests
PATIENCE_SECONDS = 120


@dataclass(frozen=True)
class Request:
    """A request, and the status that answers it."""

    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)
    method: str = "POST"
    path: str = "/invocations"
    status: int = 400

    def send(self, connection: http.client.HTTPConnection) -> tuple[int, Any]:
        """Send it, and return the status and the answer, read from JSON.

        Args:
            connection: A connection to the server, which is closed if the server closes it.
        """
        connection.request(self.method, self.path, self.body, dict(self.headers))
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def asking(*images: Any, **params: Any) -> bytes:
    """Return the body of a request: images, and params if there are any."""
    return json.dumps({"instances": images} | ({"params": params} if params else {})).encode()


def picture(width: int = 28, height: int = 28, form: str = "PNG") -> bytes:
    """Return an image file: a light object on dark, or a dark one on white if it is larger."""
    from PIL import Image, ImageDraw

    large = max(width, height) > 28
    image = Image.new("L", (width, height), 255 if large else 0)
    box = (width // 4, height // 5, 3 * width // 4, 4 * height // 5)
    ImageDraw.Draw(image).rectangle(box, fill=60 if large else 200)
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def in_base64(content: bytes) -> str:
    """Return a file's content in base64."""
    return base64.b64encode(content).decode()


def _bomb() -> bytes:
    """Return a PNG file of a few bytes whose header promises ten gigabytes of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


BLANK: list[Any] = np.zeros((28, 28), int).tolist()


def malformed() -> dict[str, Request]:
    """Return requests that a model for 28x28 grey images has to refuse, by what is wrong."""
    return {
        "an empty body": Request(),
        "no JSON": Request(b"hello"),
        "JSON that breaks off": Request(asking(BLANK)[:-9]),
        "bytes that are no UTF-8": Request(b'{"instances": ["\xff\xfe"]}'),
        "a list instead of an object": Request(b"[1, 2]"),
        "a number instead of an object": Request(b"7"),
        "an object without instances": Request(b'{"images": []}'),
        "instances and inputs": Request(b'{"instances": [], "inputs": []}'),
        "a field whose name is half a character": Request(b'{"\\ud800": 1}'),
        "a field that is not known": Request(b'{"instances": ["x"], "labels": [1]}'),
        "instances that are a text": Request(b'{"instances": "abc"}'),
        "instances that are null": Request(b'{"instances": null}'),
        "top_k of 0": Request(asking(BLANK, top_k=0)),
        "top_k that is a text": Request(asking(BLANK, top_k="three")),
        "top_k that is half a character": Request(asking(BLANK, top_k="\ud800")),
        "top_k that is true": Request(asking(BLANK, top_k=True)),
        "a param that is not known": Request(asking(BLANK, temperature=2)),
        "params that are a list": Request(b'{"instances": ["x"], "params": [1]}'),
        "no content type": Request(asking(BLANK), {}, status=415),
        "CSV": Request(b"0,0", {"Content-Type": "text/csv"}, status=415),
        "a form": Request(
            picture(), {"Content-Type": "multipart/form-data; boundary=x"}, status=415
        ),
        "another character set": Request(
            asking(BLANK), {"Content-Type": "application/json; charset=latin-1"}, status=415
        ),
        "a compressed body": Request(
            zlib.compress(asking(BLANK)), JSON | {"Content-Encoding": "deflate"}, status=415
        ),
        "GET instead of POST": Request(method="GET", status=405),
        "another path": Request(asking(BLANK), path="/predict", status=404),
        "a path out of the server": Request(method="GET", path="/../../etc/passwd", status=404),
        "a body of 50 MB": Request(b"[" + bytes(TOO_LARGE), status=413),
    } | _malformed_images()


def _malformed_images() -> dict[str, Request]:
    png = picture()

    def spoilt(value: Any) -> list[Any]:
        rows = [list(row) for row in BLANK]
        rows[3][4] = value
        return rows

    def raw(value: str) -> bytes:
        return asking(spoilt("HERE")).replace(b'"HERE"', value.encode())

    return {
        "no image": Request(asking()),
        "more than ten thousand images": Request(asking(*["A"] * 10_001)),
        "more than two hundred files": Request(asking(*[in_base64(png)] * 201)),
        "an image that is null": Request(asking(None)),
        "an image that is a number": Request(asking(3)),
        "an image that is an object": Request(asking({"url": "http://127.0.0.1/a.png"})),
        "an image without its list": Request(asking(*BLANK)),
        "27 rows": Request(asking(BLANK[1:])),
        "784 numbers in a row": Request(asking([0] * 784)),
        "rows of different lengths": Request(asking([*BLANK[1:], [0]])),
        "colour for a grey model": Request(asking(np.zeros((28, 28, 3), int).tolist())),
        "pixels divided by 255": Request(asking(spoilt(0.5))),
        "a pixel of 256": Request(asking(spoilt(256))),
        "a pixel of -1": Request(asking(spoilt(-1))),
        "a pixel that is NaN": Request(raw("NaN")),
        "a pixel that is infinite": Request(raw("1e999")),
        "a pixel of a thousand digits": Request(raw("9" * 1000)),
        "a pixel of ten thousand digits": Request(raw("9" * 10_000)),
        "a pixel that is a text": Request(asking(spoilt("7"))),
        "a pixel that is true": Request(asking([[True] * 28] * 28)),
        "a pixel that is null": Request(asking(spoilt(None))),
        "lists that nest too deep": Request(b'{"instances": ' + b"[" * 100_000),
        "a text that is no base64": Request(asking("not base64!")),
        "an empty text": Request(asking("")),
        "base64 of no image": Request(asking(in_base64(b"hello, this is no image"))),
        "an image file that breaks off": Request(asking(in_base64(png[:60]))),
        "an image file that unpacks to gigabytes": Request(asking(in_base64(_bomb()))),
        "a photograph of one colour": Request(asking(in_base64(_plain()))),
    }


def _plain() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (60, 60), "white").save(file, "PNG")
    return file.getvalue()


def serve(
    *,
    requests: int = 1000,
    clients: int = 8,
    mlflow: Annotated[bool, Parameter(negative="")] = False,
    output: Path | None = None,
) -> None:
    """Time a served model on loopback, load it, and send it malformed requests.

    The model is that of the default job after one epoch. The clients are threads of one process,
    which shares the processor's cores with the server. The first request that is not answered as it
    has to be ends the measurement.

    Args:
        requests: Requests of the clients together, and half as many of each kind alone.
        clients: Clients at the same time.
        mlflow: Also time `mlflow models serve` with the same model.
        output: Folder for serve.csv.
    """
    require("--requests", requests, 20)
    require("--clients", clients, 1)
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run_id = _trained(folder)
        rows = []
        with _served(folder, "runs serve", run_id) as port:
            rows += _times(port, "runs serve", requests // 2)
            rows.append(_load(port, requests, clients))
            refused = _refusals(port)
        if mlflow:
            with _served(folder, "mlflow models serve", run_id) as port:
                rows += _times(port, "mlflow models serve", requests // 2)
    table = Table("server", "request", "number", "median ms", "95 % ms", box=None)
    for row in rows:
        times = (f"{row[name]:.1f}" for name in ("p50_ms", "p95_ms"))
        table.add_row(*(str(row[name]) for name in ("server", "request", "number")), *times)
    console.print(table)
    console.print(
        f"Every request was answered; {clients} clients together got "
        f"{requests / rows[3]['seconds']:,.0f} answers per second."
    )
    console.print(
        f"{len(refused)} kinds of malformed requests: each refused with its reason, and the next "
        "request answered."
    )
    for kind, (status, reason) in refused.items():
        console.print(f"  {status}  {kind}: {reason[:110]}", style="dim", markup=False)
    keep(output, "serve", rows)


def _trained(folder: Path) -> str:
    """Train a model in a folder, and return its run's id."""
    done = subprocess.run(
        [*RUN, "trainer.epochs=1"], cwd=folder, env=with_store(folder), stdout=subprocess.DEVNULL
    )
    check_ended(done)
    store = tracking.Store.locate(with_store(folder)["MLFLOW_TRACKING_URI"])
    return next(tracking.finished_runs(store)).run_id


@contextmanager
def _served(folder: Path, server: str, run_id: str) -> Iterator[int]:
    """Serve a run's model in a process of its own, and yield the port."""
    port = ui.free_port(5001)
    where = [f"--host={ui.HOST}", f"--port={port}"]
    words = ["fmnist_lab.runs", "serve", run_id, *where]
    if server != "runs serve":
        words = ["mlflow", "models", "serve", "-m", f"runs:/{run_id}/model", *where]
        words += ["--env-manager", "local"]
    with (folder / "notes.txt").open("wb") as notes:
        process = subprocess.Popen(
            [sys.executable, "-m", *words], env=with_store(folder), stdout=notes, stderr=notes
        )
        with ui.answering(process, port, notes.fileno()):
            yield port


def _connection(port: int) -> closing[http.client.HTTPConnection]:
    return closing(http.client.HTTPConnection(ui.HOST, port, timeout=PATIENCE_SECONDS))


def _answer(connection: http.client.HTTPConnection, body: bytes) -> tuple[str, float]:
    """Return the label that answers a request, and the milliseconds until it was there.

    Raises:
        UserError: The request was refused.
    """
    start = time.perf_counter()
    status, told = Request(body).send(connection)
    milliseconds = 1000 * (time.perf_counter() - start)
    if status != 200:
        raise UserError(f"the server refused a request with status {status}: {told}")
    return told["predictions"][0]["label"], milliseconds


def _bodies() -> dict[str, bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28))
    return {
        "pixels": asking(pixels.tolist()),
        "28x28 PNG file": asking(in_base64(picture())),
        "1600x1200 JPEG file": asking(in_base64(picture(1600, 1200, "JPEG"))),
    }


def _times(port: int, server: str, number: int) -> list[dict[str, Any]]:
    """Time requests of each kind, one after the other."""
    rows = []
    for kind, body in _bodies().items():
        with _connection(port) as connection:
            start = time.perf_counter()
            times = [_answer(connection, body)[1] for _ in range(number + WARM_UP)][WARM_UP:]
            rows.append(_row(server, kind, times, time.perf_counter() - start))
    return rows


def _load(port: int, number: int, clients: int) -> dict[str, Any]:
    """Send requests from several clients, and check that each gets the answer to its own.

    Raises:
        UserError: One did not.
    """
    bodies = list(_bodies().values())[:2]
    with _connection(port) as connection:
        expected = [_answer(connection, body)[0] for body in bodies]

    def client(first: int) -> list[float]:
        times = []
        with _connection(port) as connection:
            for each in range(first, number, clients):
                label, milliseconds = _answer(connection, bodies[each % 2])
                if label != expected[each % 2]:
                    raise UserError(f"received {label}, expected {expected[each % 2]}")
                times.append(milliseconds)
        return times

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        times = [each for some in pool.map(client, range(clients)) for each in some]
    seconds = time.perf_counter() - start
    return _row("runs serve", f"both, {clients} clients", times, seconds)


def _row(server: str, request: str, times: list[float], seconds: float) -> dict[str, Any]:
    return {
        "server": server,
        "request": request,
        "number": len(times),
        "p50_ms": round(statistics.median(times), 2),
        "p95_ms": round(statistics.quantiles(times, n=20)[-1], 2),
        "seconds": round(seconds, 3),
    }


def _refusals(port: int) -> dict[str, tuple[int, str]]:
    """Send malformed requests, a good one after each, and return the statuses and reasons.

    Raises:
        UserError: One of them was not refused as it has to be.
    """
    refused = {}
    good = _bodies()["pixels"]
    for kind, request in malformed().items():
        with _connection(port) as connection:
            status, told = request.send(connection)
        reason = told.get("error", "")
        if status != request.status or not reason:
            raise UserError(f"{kind}: received status {status}, {told}; expected {request.status}")
        with _connection(port) as connection:
            _answer(connection, good)
        refused[kind] = (status, reason)
    return refused
