"""The gateway's own page: its state for the site operator, and labelling where pixels may not leave the site.

Serves what the agent reports; decides nothing. Listens on the loopback unless told otherwise: whoever reaches it sees
what the cameras see.
"""

import socket
import threading
from pathlib import Path
from typing import Protocol

import msgspec
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST

from common.errors import OperatorError
from common.messages import State
from common.web import check_writer, guard_pages
from edge.board import Language, render_board, render_page
from edge.exemplars import Exemplars
from edge.metrics import render_metrics

PAGES = Path(__file__).with_name("pages")
POLICY = "default-src 'self'; frame-ancestors 'none'"
LABEL_CHARACTERS_MAX = 120


class Gateway(Protocol):
    """What the page shows: `edge.agent.Agent`, as far as it concerns this."""

    @property
    def exemplars(self) -> Exemplars:
        """Own samples, with their labels."""
        ...

    @property
    def linked(self) -> bool:
        """Whether the broker of the centre is connected."""
        ...

    def state(self) -> State:
        """As reported to the centre."""
        ...

    def scenarios(self) -> dict[str, tuple[str, ...]]:
        """Scenario -> classes of what runs now."""
        ...

    def last_look(self, camera_id: str) -> bytes | None:
        """A small JPEG of what was looked at last."""
        ...


class StatusPage:
    """A small web server in a thread of its own; port 0 takes a free one, known from `port` at once."""

    def __init__(self, host: str, port: int, gateway: Gateway) -> None:
        try:
            self._socket = socket.create_server((host, port))
        except OSError as error:
            raise OperatorError(
                f"the status page cannot listen on {host}:{port} ({error.strerror})", "Set status.port to a free one."
            ) from error
        self.port: int = self._socket.getsockname()[1]
        app = make_status_app(gateway)
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="status", daemon=True
        )

    def start(self) -> None:
        """Begin to serve; does not wait."""
        self._thread.start()

    def stop(self, timeout_s: float = 3.0) -> None:
        """End within `timeout_s`, open connections or not."""
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(timeout_s)
        self._socket.close()


def make_status_app(gateway: Gateway) -> FastAPI:
    """Routes: `/`, `/board`, `/label`, `/health`, `/metrics`, `/api/…`, `/cameras/<id>.jpg`, `/pictures/<id>.jpg`."""
    app = FastAPI(title="headframe gateway", docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/pages", StaticFiles(directory=PAGES), name="pages")
    guard_pages(app, POLICY)

    @app.get("/")
    def page(request: Request, lang: str | None = None) -> HTMLResponse:
        return HTMLResponse(render_page(gateway.state(), _language(request, lang), linked=gateway.linked))

    @app.get("/board")
    def board(request: Request, lang: str | None = None) -> HTMLResponse:
        return HTMLResponse(render_board(gateway.state(), _language(request, lang), linked=gateway.linked))

    @app.get("/cameras/{camera_id}.jpg")
    def last_look(camera_id: str) -> Response:
        jpeg = gateway.last_look(camera_id)
        if not jpeg:
            raise HTTPException(404, "there is no such camera, or nothing was looked at yet")
        return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    @app.get("/favicon.ico")
    def icon() -> Response:
        return Response(status_code=204)  # browsers ask by themselves

    @app.get("/label")
    def label_page() -> FileResponse:
        return FileResponse(PAGES / "label.html")

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/api/state")
    def state_json() -> Response:
        return Response(msgspec.json.encode(gateway.state()), media_type="application/json")

    @app.get("/api/scenarios")
    def scenarios_json() -> dict[str, tuple[str, ...]]:
        return gateway.scenarios()

    @app.get("/api/to-label")
    def to_label(scenario: str, limit: int = 20) -> list[str]:
        return [name.hex() for name in gateway.exemplars.waiting(scenario, min(max(limit, 1), 200))]

    @app.get("/pictures/{name}.jpg")
    def picture(name: str) -> Response:
        try:
            jpeg = gateway.exemplars.picture(bytes.fromhex(name))
        except ValueError:
            jpeg = None
        if jpeg is None:
            raise HTTPException(404, "there is no such picture")
        return Response(jpeg, media_type="image/jpeg")

    @app.post("/api/labels")
    def label(request: Request, labels: dict[str, dict[str, str]]) -> dict[str, int]:
        check_writer(request)
        try:
            by_id = {bytes.fromhex(name): given for name, given in labels.items()}
        except ValueError as error:
            raise HTTPException(422, "sample ids are hex digits") from error
        for given in by_id.values():
            if not all(_is_line(scenario) and _is_line(text or "-") for scenario, text in given.items()):
                raise HTTPException(422, f"a label is one line of at most {LABEL_CHARACTERS_MAX} characters")
        return {"known": gateway.exemplars.label(by_id)}

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(render_metrics(gateway.state(), linked=gateway.linked), media_type=CONTENT_TYPE_LATEST)

    return app


def _language(request: Request, asked: str | None) -> Language:
    return Language.choose(asked, request.headers.get("accept-language", ""))


def _is_line(text: str) -> bool:
    return 0 < len(text) <= LABEL_CHARACTERS_MAX and text.isprintable() and text == text.strip()
