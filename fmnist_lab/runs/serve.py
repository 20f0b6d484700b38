"""`serve`: a logged model behind HTTP, with a page for photographs."""

from __future__ import annotations

import ipaddress
import socket
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fmnist_lab import data, tracking
from fmnist_lab.errors import UserError, reported
from fmnist_lab.evaluation.scaling import Scaling
from fmnist_lab.runs.ui import HOST, free_port
from fmnist_lab.serving.answers import Answerer
from fmnist_lab.system import signals

if TYPE_CHECKING:
    import keras

FIRST_PORT = 5001  # MLflow's interface is at 5000.
WAITING = 128  # Connections that wait to be accepted.
PATIENCE_SECONDS = 3  # For answers that are on their way when the server is to end.


def serve(
    model: str | None = None,
    /,
    *,
    best: str | None = None,
    store: str | None = None,
    host: str = HOST,
    port: int | None = None,
    open_browser: Annotated[bool, Parameter(name="--open")] = False,
) -> None:
    """Answer requests over HTTP with a model, and show a page that takes photographs.

    POST images to /invocations: {"instances": [image, …], "params": {"top_k": 3}}. An image is
    a list of rows of pixels, or an image file in base64.

    Args:
        model: A run: its id, the beginning of its id, or its name; or models:/NAME@ALIAS,
            models:/NAME/VERSION, a folder or a .keras file; left out, the newest finished run's.
        best: A metric, such as accuracy/validation: the model of the finished run that is best by
            it, of a sweep if the first word names one.
        store: MLflow's tracking URI; left out, $MLFLOW_TRACKING_URI or mlflow.db in this folder.
        host: The address to listen on; others than 127.0.0.1 let other machines in.
        port: The port to listen on; left out, 5001 or the next free port.
        open_browser: Open the page in the browser.
    """
    with reported():
        place = tracking.Store.locate(store, for_writing=False)
        # What is wrong with the words is told before TensorFlow has started.
        chosen = tracking.choose_model(place, model, best=best)
        for remark in chosen.remarks:
            print(remark, file=sys.stderr)
        run = tracking.maker(place, chosen)
        title = f"run '{run.name}'" if run else chosen.uri
        with listening(host, port) as listener:
            answerer = load(place, chosen.uri)
            _serve(answerer, title, listener, open_browser)


def load(store: tracking.Store, uri: str) -> Answerer:
    """Load a model that a run has logged, of this version or an earlier one, to be asked.

    No code that came with the model runs.

    Args:
        store: The store that runs:/ and models:/ refer to.
        uri: runs:/RUN_ID/model, models:/NAME/VERSION, a folder or a .keras file.

    Raises:
        UserError: There is no such model, or it is no Keras model.
    """
    from fmnist_lab.training import runtime

    runtime.start()
    from fmnist_lab.models import saved

    def read(file: Path) -> tuple[tuple[keras.Model, float | None], Scaling | None]:
        folder = file.parent.parent
        described = (folder / "MLmodel").is_file()
        calibration = Scaling.read(folder) if described else None
        return saved.load_with_divisor(file), calibration

    ((model, divisor), calibration), names = tracking.load_model(uri, store, read)
    names = names or data.names_of(int(model.output_shape[-1]))
    try:
        call = saved.compiled(model, divisor)
    except ValueError as error:
        raise UserError(f"the model {uri} cannot be served: {error}") from None
    return Answerer(call, saved.image_shape(model), names, calibration)


def listening(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens, and warn if other machines can reach it.

    Args:
        host: The address, or the name of one.
        port: The port; None: the first free one.

    Raises:
        UserError: The address is none of this machine's, or the port is taken.
    """
    chosen = free_port(FIRST_PORT) if port is None else port
    try:
        family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        # asyncio sends small answers at once (TCP_NODELAY) only where the protocol is named; others
        # wait 40 ms for the client's acknowledgement.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise UserError(
            f"--host: received {host}, which is no address of this machine ({error}); leave it "
            f"out for {HOST}"
        ) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address[0], chosen, *address[2:]))
        listener.listen(WAITING)
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(
            f"cannot listen on {host}, port {chosen} ({error}); name another with --port"
        ) from None
    if not ipaddress.ip_address(address[0]).is_loopback:
        print(
            f"--host {host} lets every machine that reaches this address ask the model, without a "
            "password or encryption.",
            file=sys.stderr,
        )
    return listener


def _serve(answerer: Answerer, title: str, listener: socket.socket, open_browser: bool) -> None:
    """Serve until a signal ends it."""
    import uvicorn

    from fmnist_lab.serving.app import app

    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"{title} answers at {address}/invocations")
    print(f"a page for photographs  {address}/")
    print("\nCtrl-C stops it.", flush=True)
    if open_browser:
        webbrowser.open(address)
    config = uvicorn.Config(
        app(answerer, title),
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=PATIENCE_SECONDS,
    )
    # Once it has ended, uvicorn hands a signal on to those who handled it before.
    with signals.handled(signals.terminate):
        uvicorn.Server(config).run(sockets=[listener])
