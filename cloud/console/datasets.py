"""The JSON API of datasets: versions, labels in conflict with their pictures, and what people decide."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Response
from fastapi import Path as PathParameter
from pydantic import BaseModel, Field

from cloud.console.api import LABELS_MAX, or_refuse
from cloud.desk import Desk
from common.web import check_writer


class Decision(BaseModel):
    """What a person decides about pictures in conflict: id -> label."""

    scenario: str = Field(min_length=1, max_length=63)
    labels: dict[Annotated[str, Field(pattern="^[0-9a-f]{32}$")], Annotated[str, Field(max_length=120)]] = Field(
        min_length=1, max_length=LABELS_MAX
    )
    author: str = Field("console", max_length=120)


def make_datasets(desk: Desk) -> APIRouter:
    """The routes."""
    api = APIRouter(prefix="/api/v1")

    @api.get("/datasets")
    def datasets(scenario: str, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> dict[str, Any]:
        return desk.datasets(scenario, limit)

    @api.get("/pictures/{name}.jpg")
    def picture(name: Annotated[str, PathParameter(pattern="^[0-9a-f]{32}$")], scenario: str) -> Response:
        data = desk.picture(scenario, bytes.fromhex(name))
        if data is None:
            raise HTTPException(404, "there is no such picture")
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    @api.post("/decisions", dependencies=[Depends(check_writer)])
    def decide(given: Decision) -> dict[str, int]:
        rows = [(bytes.fromhex(name), label) for name, label in given.labels.items()]
        or_refuse(lambda: desk.decide(given.scenario, rows, given.author))
        return {"decided": len(rows)}

    return api
