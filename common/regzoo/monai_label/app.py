"""MONAI Label's own server, closed to web pages of other addresses.

Start it with ``monailabel start_server --uvicorn_app regzoo.monai_label.app:app …``. MONAI Label alone lets every web
page read its answers, and its setting against that, ``MONAI_LABEL_CORS_ORIGINS``, keeps version 0.8.5 from starting.
This server answers only pages of the addresses in ``REGZOO_ORIGINS``, separated by commas; by default, its own on this
machine. It refuses other host names, too, because a page can make its own name point here, and trainings that name a
file of tracking settings. It drops the requests of clients that have hung up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from typing import Any
from urllib.parse import urlsplit

from monailabel.config import settings
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse

_OWN = ",".join(f"http://{host}:{settings.MONAI_LABEL_SERVER_PORT}" for host in ("127.0.0.1", "localhost"))
ORIGINS = [origin.strip() for origin in os.environ.get("REGZOO_ORIGINS", _OWN).split(",")]
settings.MONAI_LABEL_CORS_ORIGINS = ORIGINS

#: Rounds of the event loop after which it knows who has hung up: it reads the end, then closes the connection.
ROUNDS = 5
#: The values of a training's ``tracking`` that name no file.
TRACKING = (None, "", "None", "none", "mlflow")

from monailabel.app import app as _monai_label  # noqa: E402 - it reads the settings once, when it is imported


async def _known_origins_only(scope: Any, receive: Any, send: Any) -> None:
    """Refuse requests from pages of other addresses; browsers say in ``Origin`` where a page is from."""
    origin = dict(scope.get("headers", ())).get(b"origin", b"").decode("latin-1")
    if origin and origin not in ORIGINS:
        detail = "web pages of other addresses may not ask this server"
        await JSONResponse({"detail": detail}, status_code=403)(scope, receive, send)
    elif scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith("/train"):
        await _with_known_tracking(scope, receive, send)
    elif scope["type"] == "http" and scope["path"].startswith("/infer/"):
        await _while_connected(scope, receive, send)
    else:
        await _monai_label(scope, receive, send)


async def _with_known_tracking(scope: Any, receive: Any, send: Any) -> None:
    """Refuse a training whose request names a file of tracking settings.

    MONAI takes every other name for such a file, and writes the configuration to any path that the file names before
    the bundle is asked.
    """
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return
        body, more = body + message.get("body", b""), message.get("more_body", False)
    if not all(value in TRACKING for value in _tracking(body)):
        detail = "tracking: not a known value; use mlflow or None"
        return await JSONResponse({"detail": detail}, status_code=400)(scope, receive, send)
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def received() -> Any:
        return next(messages, None) or await receive()

    await _monai_label(scope, received, send)


def _tracking(body: bytes) -> list[Any]:
    """All values of ``tracking`` in a request; MONAI Label takes the first one of a list."""
    found: list[Any] = []

    def collect(read: dict[str, Any]) -> dict[str, Any]:
        if "tracking" in read:
            value = read["tracking"]
            found.extend(value[:1] if isinstance(value, list) else [value])
        return read

    with contextlib.suppress(ValueError, RecursionError):  # MONAI Label refuses these itself
        json.loads(body or b"null", object_hook=collect)
    return found


_turn = asyncio.Lock()


async def _while_connected(scope: Any, receive: Any, send: Any) -> None:
    """Answer a request when it is its turn, unless its client has hung up by then.

    MONAI Label answers in the event loop, which notices nothing meanwhile. So a request that has arrived takes its
    turn, and lets the loop look at the connections first. The turn ends before anything is sent to the client.
    """
    answering = has_turn = False

    async def received() -> Any:
        nonlocal has_turn
        message = await receive()
        complete = message["type"] == "http.request" and not message.get("more_body")
        if complete and not answering and not has_turn:
            await _turn.acquire()
            has_turn = True
            for _ in range(ROUNDS):
                await asyncio.sleep(0)
            if getattr(getattr(receive, "__self__", None), "disconnected", False):  # of uvicorn's connection
                return {"type": "http.disconnect"}
        return message

    def release() -> None:
        nonlocal answering, has_turn
        if has_turn:
            _turn.release()
        answering, has_turn = True, False

    async def sent(message: Any) -> None:
        release()
        await send(message)

    try:
        await _monai_label(scope, received, sent)
    finally:
        release()


app = TrustedHostMiddleware(_known_origins_only, allowed_hosts=[urlsplit(origin).hostname for origin in ORIGINS])
