"""MONAI Label's own server, closed to web pages of other addresses.

Start it with ``monailabel start_server --uvicorn_app regzoo.monai_label.app:app …``. MONAI Label lets every web page read
its answers, with the user's login. Its own setting against that, ``MONAI_LABEL_CORS_ORIGINS``, cannot be used: in
version 0.8.5 the server does not start with it, nor do its background trainings. Here only the addresses in
``REGZOO_ORIGINS`` may ask, separated by commas; by default these are the server's own on this machine. A request that a
page of another address sends is refused before MONAI Label sees it, and so is one to a host of another name, which a page
could have made to point at this machine.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from monailabel.config import settings
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse

_OWN = ",".join(f"http://{host}:{settings.MONAI_LABEL_SERVER_PORT}" for host in ("127.0.0.1", "localhost"))
ORIGINS = [origin.strip() for origin in os.environ.get("REGZOO_ORIGINS", _OWN).split(",")]
settings.MONAI_LABEL_CORS_ORIGINS = ORIGINS

from monailabel.app import app as _monai_label  # noqa: E402 - it reads the settings once, when it is imported


async def _known_origins_only(scope: Any, receive: Any, send: Any) -> None:
    """Refuse what a page of another address sends; browsers always say which page it is."""
    origin = dict(scope.get("headers", ())).get(b"origin", b"").decode("latin-1")
    if origin and origin not in ORIGINS:
        refusal = JSONResponse({"detail": "web pages of other addresses may not ask this server"}, status_code=403)
        await refusal(scope, receive, send)
    else:
        await _monai_label(scope, receive, send)


app = TrustedHostMiddleware(_known_origins_only, allowed_hosts=[urlsplit(origin).hostname for origin in ORIGINS])
