"""The pages: a frame rendered here, filled and kept live by `static/console.js` from the JSON API."""

import json
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, select_autoescape

from cloud.console.texts import choose_language, texts
from cloud.desk import Desk

PAGES = {"/": "fleet", "/review": "review", "/datasets": "datasets", "/releases": "releases"}


def make_pages(desk: Desk) -> APIRouter:
    """The routes `/`, `/review`, `/datasets` and `/releases`."""
    router = APIRouter()
    folder = Path(__file__).with_name("templates")
    templates = Environment(loader=FileSystemLoader(folder), autoescape=select_autoescape(["html"]))

    def show(request: Request, page: str) -> HTMLResponse:
        accepted = request.headers.get("accept-language", "")
        language = choose_language(request.query_params.get("lang"), request.cookies.get("lang"), accepted)
        words = texts(language)
        html = templates.get_template("page.html").render(
            page=page,
            language=language,
            other="zh" if language == "en" else "en",
            t=words,
            pages=PAGES,
            words_json=json.dumps(words, ensure_ascii=False),
            scenarios_json=json.dumps(desk.scenarios(), ensure_ascii=False),
        )
        response = HTMLResponse(html)
        response.set_cookie("lang", language, max_age=31_536_000, samesite="strict", httponly=True)
        return response

    @router.get("/")
    def fleet(request: Request) -> HTMLResponse:
        return show(request, "fleet")

    @router.get("/review")
    def review(request: Request) -> HTMLResponse:
        return show(request, "review")

    @router.get("/datasets")
    def datasets(request: Request) -> HTMLResponse:
        return show(request, "datasets")

    @router.get("/releases")
    def releases(request: Request) -> HTMLResponse:
        return show(request, "releases")

    return router
