"""Serves the console from a thread of the central process; port 0 takes a free one."""

import socket
import threading
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from cloud.console.api import make_api
from cloud.console.datasets import make_datasets
from cloud.console.metrics import make_metrics
from cloud.console.pages import make_pages
from cloud.desk import Desk
from common.errors import OperatorError
from common.web import guard_pages

POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
"""Scripts from here only; inline styles are the widths of bars."""


def make_console(desk: Desk) -> FastAPI:
    """The application: API, pages, static files."""
    app = FastAPI(title="Headframe", docs_url=None, redoc_url=None)
    guard_pages(app, POLICY)

    app.include_router(make_api(desk))
    app.include_router(make_datasets(desk))
    app.include_router(make_metrics(desk))
    app.include_router(make_pages(desk))
    app.mount("/static", StaticFiles(directory=Path(__file__).with_name("static")), name="static")
    return app


class ConsoleServer:
    """`start`, then `stop`; the port is known from `port` at once.

    Raises:
        OperatorError: the port is taken.
    """

    def __init__(self, host: str, port: int, desk: Desk) -> None:
        try:
            self._socket = socket.create_server((host, port))
        except OSError as error:
            raise OperatorError(
                f"the console cannot listen on {host}:{port} ({error.strerror})", "Set console.port to a free one."
            ) from error
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(make_console(desk), log_config=None, access_log=False, lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="console", daemon=True
        )

    def start(self) -> None:
        """Begin to serve; does not wait."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End within `timeout_s`, open connections or not."""
        self._server.should_exit = self._server.force_exit = True
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._socket.close()
