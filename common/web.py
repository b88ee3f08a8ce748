"""What the gateway's page and the centre's console share: headers that guard a page, and who may write."""

import urllib.parse

from fastapi import FastAPI, HTTPException, Request, Response
from starlette.middleware.base import RequestResponseEndpoint


def guard_pages(app: FastAPI, policy: str) -> None:
    """Send the headers that keep a page to itself with every answer.

    Args:
        policy: its Content-Security-Policy.
    """
    headers = {
        "Content-Security-Policy": policy,
        "Cross-Origin-Resource-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }

    @app.middleware("http")
    async def guard(request: Request, call_next: RequestResponseEndpoint) -> Response:
        reply = await call_next(request)
        reply.headers.update(headers)
        return reply


def check_writer(request: Request) -> None:
    """A page of another origin must not write: JSON only, and an Origin that is ours when there is one.

    Raises:
        HTTPException: 415 or 403.
    """
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise HTTPException(415, "send application/json")
    origin = request.headers.get("origin")
    if origin and urllib.parse.urlsplit(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, "this origin may not write")
