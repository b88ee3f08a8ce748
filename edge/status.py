"""The gateway's own page: its state for the site operator, and labelling where pixels may not leave the site.

Serves what the agent reports; decides nothing. Listens on the loopback unless told otherwise.
"""

import socket
import threading
import urllib.parse
from collections.abc import Callable
from html import escape
from pathlib import Path

import msgspec
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware.base import RequestResponseEndpoint

from common.errors import OperatorError
from common.messages import State
from edge.exemplars import Exemplars

PAGES = Path(__file__).with_name("pages")
GUARD = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
LABEL_CHARACTERS_MAX = 120
Scenarios = Callable[[], dict[str, tuple[str, ...]]]
_PAGE = """<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=5>
<meta name=viewport content="width=device-width, initial-scale=1"><title>{gateway}</title>
<link rel=stylesheet href=/pages/gateway.css>
<h1>{gateway} <small>{site} · 网关状态</small></h1>
<div class=card>release 版本 <b>{release}</b> <span class=soft>{install}</span><br>
spool 待上传 {rows} ({bytes} bytes) · accepted 已接收 {accepted} · receipted 已送达 {receipted} ·
evicted 已淘汰 {evicted}{label}</div>
<div class=card><table><tr><th>camera 摄像头<th>state 状态<th>frames 帧<th>looks 已看<th>dropped 丢弃
<th>detail 说明</tr>{cameras}</table></div>"""
_LABEL_LINK = "<br><a href=/label>Label this site's pictures 现场标注</a>"


class StatusPage:
    """A small web server in a thread of its own; port 0 takes a free one, known from `port` at once."""

    def __init__(
        self, host: str, port: int, state: Callable[[], State], exemplars: Exemplars, scenarios: Scenarios
    ) -> None:
        try:
            self._socket = socket.create_server((host, port))
        except OSError as error:
            raise OperatorError(
                f"the status page cannot listen on {host}:{port} ({error.strerror})", "Set status.port to a free one."
            ) from error
        self.port: int = self._socket.getsockname()[1]
        app = make_status_app(state, exemplars, scenarios)
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


def make_status_app(state: Callable[[], State], exemplars: Exemplars, scenarios: Scenarios) -> FastAPI:
    """Routes: `/`, `/label`, `/health`, `/metrics`, `/api/…`, `/pictures/<id>.jpg`."""
    app = FastAPI(title="headframe gateway", docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/pages", StaticFiles(directory=PAGES), name="pages")

    @app.middleware("http")
    async def guard(request: Request, call_next: RequestResponseEndpoint) -> Response:
        reply = await call_next(request)
        reply.headers.update(GUARD)
        return reply

    @app.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(_render(state()))

    @app.get("/label")
    def label_page() -> FileResponse:
        return FileResponse(PAGES / "label.html")

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/api/state")
    def state_json() -> Response:
        return Response(msgspec.json.encode(state()), media_type="application/json")

    @app.get("/api/scenarios")
    def scenarios_json() -> dict[str, tuple[str, ...]]:
        return scenarios()

    @app.get("/api/to-label")
    def to_label(scenario: str, limit: int = 20) -> list[str]:
        return [name.hex() for name in exemplars.waiting(scenario, min(max(limit, 1), 200))]

    @app.get("/pictures/{name}.jpg")
    def picture(name: str) -> Response:
        try:
            jpeg = exemplars.picture(bytes.fromhex(name))
        except ValueError:
            jpeg = None
        if jpeg is None:
            raise HTTPException(404, "there is no such picture")
        return Response(jpeg, media_type="image/jpeg")

    @app.post("/api/labels")
    def label(request: Request, labels: dict[str, dict[str, str]]) -> dict[str, int]:
        _check_writer(request)
        try:
            by_id = {bytes.fromhex(name): given for name, given in labels.items()}
        except ValueError as error:
            raise HTTPException(422, "sample ids are hex digits") from error
        for given in by_id.values():
            if not all(_is_line(scenario) and _is_line(text or "-") for scenario, text in given.items()):
                raise HTTPException(422, f"a label is one line of at most {LABEL_CHARACTERS_MAX} characters")
        return {"known": exemplars.label(by_id)}

    @app.get("/metrics")
    def metrics() -> PlainTextResponse:
        return PlainTextResponse(_metrics(state()))

    return app


def _check_writer(request: Request) -> None:
    """A page of another origin must not write: JSON only, and an Origin that is ours when there is one."""
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise HTTPException(415, "send application/json")
    origin = request.headers.get("origin")
    if origin and urllib.parse.urlsplit(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, "this origin may not write")


def _is_line(text: str) -> bool:
    return 0 < len(text) <= LABEL_CHARACTERS_MAX and text.isprintable() and text == text.strip()


def _render(now: State) -> str:
    cameras = "".join(
        f"<tr><td>{escape(c.camera_id)}<td class={c.state}>{c.state}<td>{c.frames}<td>{c.looks}<td>{c.dropped}"
        f"<td>{escape(c.detail)}</tr>"
        for c in now.cameras
    )
    return _PAGE.format(
        gateway=escape(now.gateway_id),
        site=escape(now.site_id),
        release=escape(now.release_id or "none yet"),
        install=escape(now.install),
        rows=now.spool_rows,
        bytes=now.spool_bytes,
        accepted=now.accepted,
        receipted=now.receipted,
        evicted=now.evicted,
        cameras=cameras,
        label=_LABEL_LINK if now.share == "updates" else "",
    )


def _metrics(now: State) -> str:
    """Prometheus text format, from the same State that the centre gets."""
    names = (
        "spool_rows",
        "spool_bytes",
        "accepted",
        "receipted",
        "evicted",
        "refused",
        "bytes_up",
        "bytes_down",
        "looks",
    )
    lines = [f"headframe_edge_{name} {getattr(now, name)}" for name in names]
    lines += [
        f'headframe_edge_camera_up{{camera="{c.camera_id}"}} {int(c.state in ("live", "starting"))}'
        for c in now.cameras
    ]
    return "\n".join(lines) + "\n"
