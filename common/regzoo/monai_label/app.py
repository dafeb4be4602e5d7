"""MONAI Label's own server, closed to web pages of other addresses.

Start it with ``monailabel start_server --uvicorn_app regzoo.monai_label.app:app …``. By itself, MONAI Label lets every
web page read its answers. Its setting against that, ``MONAI_LABEL_CORS_ORIGINS``, cannot be used: in version 0.8.5
neither the server nor its background trainings start with it. This server answers only pages of the addresses in
``REGZOO_ORIGINS``, separated by commas; by default these are its own addresses on this machine. It refuses requests
from other pages before MONAI Label sees them. It also refuses requests to other host names, because a page can make its
own name point here. And it drops the requests of clients that hung up while they waited.
"""

from __future__ import annotations

import asyncio
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

from monailabel.app import app as _monai_label  # noqa: E402 - it reads the settings once, when it is imported


async def _known_origins_only(scope: Any, receive: Any, send: Any) -> None:
    """Refuse requests from pages of other addresses; browsers say in ``Origin`` where a page is from."""
    origin = dict(scope.get("headers", ())).get(b"origin", b"").decode("latin-1")
    if origin and origin not in ORIGINS:
        refusal = JSONResponse({"detail": "web pages of other addresses may not ask this server"}, status_code=403)
        await refusal(scope, receive, send)
    elif scope["type"] == "http" and scope["path"].startswith("/infer/"):
        await _while_connected(scope, receive, send)
    else:
        await _monai_label(scope, receive, send)


_turn = asyncio.Lock()


async def _while_connected(scope: Any, receive: Any, send: Any) -> None:
    """Answer a request when it is its turn, unless its client has hung up by then.

    MONAI Label answers in the event loop, which notices nothing meanwhile. So a request that has arrived takes its
    turn, and lets the loop look at the connections first. The turn ends before anything is sent to the client.
    """
    waiting = True

    async def received() -> Any:
        message = await receive()
        if waiting and message["type"] == "http.request" and not message.get("more_body") and not mine:
            await _turn.acquire()
            mine.append(True)
            for _ in range(ROUNDS):
                await asyncio.sleep(0)
            if getattr(getattr(receive, "__self__", None), "disconnected", False):  # of uvicorn's connection
                return {"type": "http.disconnect"}
        return message

    async def sent(message: Any) -> None:
        end()
        await send(message)

    mine: list[bool] = []

    def end() -> None:
        nonlocal waiting
        waiting = False
        if mine:
            mine.clear()
            _turn.release()

    try:
        await _monai_label(scope, received, sent)
    finally:
        end()


app = TrustedHostMiddleware(_known_origins_only, allowed_hosts=[urlsplit(origin).hostname for origin in ORIGINS])
