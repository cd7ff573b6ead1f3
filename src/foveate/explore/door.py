"""Who may ask the server for what: this machine's own page, and what that page needs."""

import re
from collections.abc import Callable
from typing import Any

import fastapi
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foveate.explore import page
from foveate.explore.looking import Explorer
from foveate.explore.pictures import MOST_BYTES, Album

MOST_BODY = 4 * (MOST_BYTES // 3 + 1) + 2**20
"""An image in base64, and what stands around it."""
_ASKED = {
    "GET": re.compile(
        r"/|/(config|theme\.css|favicon\.ico)|/(assets|static)/.*"
        r"|/gradio_api/(startup-events|queue/data|heartbeat/\w+)"
    ),
    "POST": re.compile(r"/gradio_api/(queue/join|cancel|reset)"),
}
"""No route that takes, keeps or serves files: images travel inside events, and stay in memory."""
_OWN = "'self' data: blob: 'unsafe-inline' 'unsafe-eval'"
_HEADERS = {
    # The browser itself refuses to ask anyone else, whatever a library tries.
    "content-security-policy": f"default-src {_OWN}; frame-ancestors 'none'; form-action 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


def application(explorer: Explorer, album: Album | None, host: str) -> fastapi.FastAPI:
    """The page behind its door.

    Args:
        explorer: The networks.
        album: Images to pick from.
        host: Address and port under which the page is asked for, and no other name.
    """
    import gradio

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Door, host=host)
    # Each is given, so that no variable of the environment decides it.
    return gradio.mount_gradio_app(
        app,
        page.build(explorer, album),
        path="/",
        root_path="",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=0,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        **page.look(),
    )


class Door:
    """Refuses other hosts, other origins, other routes, and bodies that are too large."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        reason = self._refused(scope)
        if reason is not None:
            await PlainTextResponse(reason[1], reason[0])(scope, receive, send)
            return
        await self._app(scope, receive, _with_headers(send))

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        # A page elsewhere may give this machine a name of its own, or post to it unasked.
        if headers.get("host") != self._host:
            return 421, f"this page is served as http://{self._host} only"
        if headers.get("origin", f"http://{self._host}") != f"http://{self._host}":
            return 403, "another page may not ask"
        asked = _ASKED.get(scope.get("method", ""))
        if asked is None or not asked.fullmatch(scope["path"]):
            return 404, "there is no such thing here"
        if scope["method"] == "POST":
            length = headers.get("content-length", "")
            if not length.isdecimal():
                return 411, "the length of a body has to be told"
            if int(length) > MOST_BODY:
                return 413, f"accepted: up to {MOST_BYTES >> 20} MB"
        return None


def _with_headers(send: Send) -> Callable[[Message], Any]:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(_HEADERS)
        await send(message)

    return sending
