"""Serve the page: where it listens, who may open it, and what a browser may load."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

# Gradio and the hub's client read these when they are imported.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from zooprune.app.page import CSS, build, theme
from zooprune.app.pictures import MAX_MEGABYTES
from zooprune.app.workbench import Workbench

#: With these a browser loads nothing from elsewhere, shows the page in no other page, and tells no other page of a
#: link, which holds the question. Gradio's own page has scripts and styles in it.
_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises
    ------
    ValueError
        If the port is taken or not allowed, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except socket.gaierror:
        raise ValueError(f"{host} is no address; give --host 127.0.0.1, or 0.0.0.0 for all addresses") from None
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise ValueError(f"cannot listen at {host}, port {port} ({reason}); give another --port or --host") from None


def is_private(listening: socket.socket) -> bool:
    """Return whether only this machine can reach a socket."""
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def serve(bench: Workbench, name: str, listening: socket.socket, *, ready: Callable[[str], object]) -> None:
    """Serve the page until the process is told to stop.

    Uploads lie in a folder of their own, which is deleted at the end.

    Parameters
    ----------
    bench : Workbench
    name : str
        The model that visitors begin with.
    listening : socket.socket
        From `listen`.
    ready : callable
        Called with the address when the page can be opened.
    """
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    with tempfile.TemporaryDirectory(prefix="zooprune-app-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        application = make_application(
            bench, name, private=is_private(listening), ready=lambda: ready(f"http://{shown}:{port}/")
        )
        # Told to stop, uvicorn raises the signal once more when it is done, and the folder must still be deleted.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        server = uvicorn.Server(uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=2))
        server.run(sockets=[listening])


def make_application(bench: Workbench, name: str, *, private: bool, ready: Callable[[], object] = lambda: None) -> Any:
    """Return the page as an ASGI application.

    Parameters
    ----------
    bench : Workbench
    name : str
        The model that visitors begin with.
    private : bool
        Whether only this machine can open it. Otherwise visitors cannot choose the model: they could make the machine
        download any, and would change it for each other.
    ready : callable
        Called when it starts.
    """

    @asynccontextmanager
    async def starting(_: FastAPI):  # type: ignore[no-untyped-def]
        ready()
        yield

    application = FastAPI(openapi_url=None, lifespan=starting)
    application = gr.mount_gradio_app(
        application, build(bench, name, choose_model=private), path="/", theme=theme(), css=CSS, footer_links=[],
        max_file_size=f"{MAX_MEGABYTES}mb", show_error=False, ssr_mode=False, enable_monitoring=False, pwa=False,
    )  # fmt: skip
    if private:
        # A page of somebody else could otherwise lead the browser here under a name of its own.
        application.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])
    return _WithHeaders(application)


class _WithHeaders:
    """An ASGI application whose every response has the headers above."""

    def __init__(self, application: Any) -> None:
        self._application = application

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        await self._application(scope, receive, send_with_headers)
