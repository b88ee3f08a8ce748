"""The gateway's own page: its state for the site operator, and labelling where pixels may not leave the site.

Serves what the agent reports; decides nothing. Listens on the loopback unless told otherwise.
"""

import socket
import threading
from collections.abc import Callable
from html import escape

import msgspec
import uvicorn
from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import HTMLResponse, PlainTextResponse

from common.messages import State
from edge.exemplars import Exemplars

_PAGE = """<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=5><title>{gateway}</title>
<style>body{{font:15px system-ui,"Noto Sans CJK SC",sans-serif;margin:2rem;color:#222}}td,th{{padding:.3rem .9rem;
text-align:left;border-bottom:1px solid #ddd}}.live{{color:#176b3a}}.failed,.dark,.frozen{{color:#b3261e}}</style>
<h1>{gateway} <small>{site}</small></h1>
<p>release <b>{release}</b> · {install}</p>
<p>spool {rows} samples, {bytes} bytes · accepted {accepted} · receipted {receipted} · evicted {evicted}</p>
<table><tr><th>camera<th>state<th>frames<th>looks<th>dropped<th>detail</tr>{cameras}</table>"""


class StatusPage:
    """A small web server in a thread of its own; port 0 takes a free one, known from `port` at once."""

    def __init__(self, host: str, port: int, state: Callable[[], State], exemplars: Exemplars) -> None:
        self._socket = socket.create_server((host, port))
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            make_status_app(state, exemplars), log_config=None, access_log=False, lifespan="off", ws="none"
        )
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


def make_status_app(state: Callable[[], State], exemplars: Exemplars) -> FastAPI:
    """Routes: `/`, `/api/state`, `/api/to-label`, `/api/labels`, `/pictures/<id>.jpg`, `/metrics`."""
    app = FastAPI(title="headframe gateway", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(_render(state()))

    @app.get("/api/state")
    def state_json() -> Response:
        return Response(msgspec.json.encode(state()), media_type="application/json")

    @app.get("/api/to-label")
    def to_label(scenario: str, limit: int = 20) -> list[str]:
        return [name.hex() for name, _ in exemplars.to_label(scenario, min(limit, 200))]

    @app.get("/pictures/{name}.jpg")
    def picture(name: str, scenario: str) -> Response:
        for sample, jpeg in exemplars.to_label(scenario, 200):
            if sample.hex() == name:
                return Response(jpeg, media_type="image/jpeg")
        raise HTTPException(404, "no such picture waits for a label")

    @app.post("/api/labels")
    def label(labels: dict[str, dict[str, str]]) -> dict[str, int]:
        try:
            by_id = {bytes.fromhex(name): given for name, given in labels.items()}
        except ValueError as error:
            raise HTTPException(422, "sample ids are hex digits") from error
        return {"known": exemplars.label(by_id)}

    @app.get("/metrics")
    def metrics() -> PlainTextResponse:
        return PlainTextResponse(_metrics(state()))

    return app


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
