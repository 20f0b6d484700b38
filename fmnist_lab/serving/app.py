"""The server: one model behind HTTP, and a page that shows a photograph as the model sees it.

It takes requests and gives answers as MLflow's own server does for the same model, but says why in
JSON whatever is wrong with a request, and bounds what it reads.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from fmnist_lab.serving.answers import TOP_K, Answerer, RefusedRequest

MOST_BYTES = 32_000_000  # Of a request: the whole test set as JSON, or a photograph of 24 MB.
# A client that does not listen while it sends would never read its refusal, so more is thrown away.
MOST_DISCARDED = 512_000_000
TYPE = "application/json"
PAGE = Path(__file__).with_name("page.html")
# The page loads nothing from elsewhere, and no other page may show it in a frame.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:; media-src blob:; connect-src 'self'; frame-ancestors 'none'"
)


def app(answerer: Answerer, title: str) -> Starlette:
    """Return the application that serves a model, for an ASGI server.

    Args:
        answerer: The model.
        title: The model's name, for the page.
    """
    # One at a time: a large photograph takes hundreds of megabytes, and TensorFlow has all cores.
    limiter = anyio.CapacityLimiter(1)
    page = _page(answerer, title)

    async def invocations(request: Request) -> Response:
        body = await _body(request)
        told = await to_thread.run_sync(_answer, answerer, body, limiter=limiter)
        return Response(told, media_type=TYPE)

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "model": title})

    async def show(_: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    return Starlette(
        routes=[
            Route("/", show),
            Route("/invocations", invocations, methods=["POST"]),
            Route("/health", health),
            Route("/ping", health),
        ],
        exception_handlers={HTTPException: _refuse, RefusedRequest: _refuse, Exception: _fail},
    )


async def _refuse(request: Request, error: Exception) -> Response:
    """Return the reason why a request is refused, as JSON."""
    if isinstance(error, HTTPException):
        status, headers = error.status_code, dict(error.headers or {})
        reason = error.detail
        if status == 405:
            reason = f"{request.url.path} takes {headers.get('Allow', 'no')} requests"
        elif status == 404:
            reason = f"there is no {request.url.path[:100]}; POST images to /invocations"
    else:
        status, headers, reason = 400, {}, str(error)
    return JSONResponse({"error": reason}, status, headers)


async def _fail(_: Request, error: Exception) -> Response:
    """Return that the server is to blame; its traceback goes to the standard error output."""
    return JSONResponse({"error": f"the model failed: {str(error)[:200]}"}, 500)


async def _body(request: Request) -> bytes:
    """Return the body of a request.

    Raises:
        HTTPException: It is of another type, or too large.
    """
    received = _header(request, "type")
    kind, *options = (part.strip().lower() for part in received.split(";"))
    if kind != TYPE or any(each not in ("", "charset=utf-8") for each in options):
        raise HTTPException(415, f"received Content-Type {received or 'none'}, expected {TYPE}")
    if (encoding := _header(request, "encoding")) not in ("", "identity"):
        raise HTTPException(415, f"received Content-Encoding {encoding}, expected none")
    length = _header(request, "length")
    size = int(length) if length.isdecimal() else 0
    if size <= MOST_BYTES:
        body, size = bytearray(), 0
        async for part in request.stream():
            size += len(part)
            if size > MOST_BYTES:
                body.clear()
                break
            body += part
        else:
            return bytes(body)
    # Curl asks first, and then sends nothing.
    elif "expect" not in request.headers:
        await _discard(request.stream())
    raise HTTPException(
        413,
        f"received more than {MOST_BYTES:,} bytes, expected at most as many; send fewer images at "
        "once or smaller files",
        {"Connection": "close"},
    )


async def _discard(parts: AsyncIterator[bytes]) -> None:
    size = 0
    async for part in parts:
        size += len(part)
        if size > MOST_DISCARDED:
            return


def _header(request: Request, name: str) -> str:
    return request.headers.get(f"content-{name}", "").strip()[:100]


def _answer(answerer: Answerer, body: bytes) -> bytes:
    """Return the answer to a request's body, both JSON.

    Raises:
        RefusedRequest: The body is none that the model can answer.
    """
    try:
        asked: Any = json.loads(body)
    except RecursionError:
        raise RefusedRequest("received JSON that nests too deep, expected images") from None
    except ValueError as error:
        raise RefusedRequest(
            f'received no JSON ({str(error)[:100]}), expected {{"instances": [image, …]}}'
        ) from None
    if not isinstance(asked, dict):
        raise RefusedRequest('expected a JSON object, {"instances": [image, …]}')
    # MLflow's clients call the same thing by either name.
    names = [name for name in ("instances", "inputs") if name in asked]
    unknown = [name for name in asked if name not in ("instances", "inputs", "params")]
    if len(names) != 1 or unknown:
        received = ", ".join(repr(name[:30]) for name in list(asked)[:5]) or "nothing"
        raise RefusedRequest(f"received an object with {received}, expected instances and params")
    params = asked.get("params")
    told = answerer.answer(asked[names[0]], {} if params is None else params)
    return json.dumps({"predictions": told}, allow_nan=False).encode()


def _page(answerer: Answerer, title: str) -> str:
    """Return the page, with what it is to know of the model."""
    facts = {
        "title": title,
        "shape": list(answerer.shape),
        "classes": len(answerer.class_names),
        "top_k": TOP_K,
        "most_bytes": MOST_BYTES,
        "threshold": answerer.calibration and answerer.calibration.threshold,
    }
    # A name of a class or of a run must not end the script.
    told = json.dumps(facts).replace("<", "\\u003c")
    return PAGE.read_text("utf-8").replace("/*FACTS*/ null", told)
