"""The JSON API under /api/v1, and pictures. Writing routes take JSON only and refuse other origins."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, HTTPException, Query, Response
from fastapi import Path as PathParameter
from pydantic import BaseModel, Field

from cloud.desk import Desk
from cloud.store import StoredSample
from common.errors import HeadframeError
from common.web import check_writer

LABELS_MAX = 1000


class Label(BaseModel):
    """A label given by a person; an empty one takes the last back."""

    sample_id: str = Field(pattern="^[0-9a-f]{32}$")
    scenario: str = Field(min_length=1, max_length=63)
    label: str = Field(max_length=120)
    author: str = Field("console", max_length=120)


class Author(BaseModel):
    """Who asks."""

    author: str = Field("console", max_length=120)


class Order(Author):
    """Who orders something about a rollout, and why."""

    why: str = Field("", max_length=500)


class Launch(Order):
    """Which release is to go out."""

    release_id: str = Field(max_length=80)


def sample_row(sample: StoredSample) -> dict[str, Any]:
    """A sample as JSON values."""
    row: dict[str, Any] = msgspec.to_builtins(sample)
    return row | {"sample_id": sample.sample_id.hex()}


def make_api(desk: Desk) -> APIRouter:
    """The routes."""
    api = APIRouter(prefix="/api/v1")
    writer = [Depends(check_writer)]

    @api.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/states")
    def states() -> Any:
        return msgspec.to_builtins(desk.states())

    @api.get("/counts")
    def counts() -> dict[str, Any]:
        return desk.counts()

    @api.get("/offers")
    def offers(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[dict[str, Any]]:
        return desk.offers(limit)

    @api.get("/offers/{name}.jpg")
    def offer_jpeg(name: Annotated[str, PathParameter(pattern="^[0-9a-f]{32}$")]) -> Response:
        data = desk.offer_jpeg(bytes.fromhex(name))
        if data is None:
            raise HTTPException(404, "there is no such offer")
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    @api.post("/offers/{name}/want", dependencies=writer)
    def want(name: Annotated[str, PathParameter(pattern="^[0-9a-f]{32}$")], who: Author) -> dict[str, str]:
        or_refuse(lambda: desk.want(bytes.fromhex(name), who.author))
        return {"sample_id": name}

    @api.get("/attempts")
    def attempts() -> dict[str, Any]:
        return desk.attempts()

    @api.get("/gaps")
    def gaps() -> Any:
        return msgspec.to_builtins(desk.gaps())

    @api.get("/events")
    def events(limit: Annotated[int, Query(ge=1, le=200)] = 20) -> list[dict[str, Any]]:
        return desk.events(limit)

    @api.get("/events/{gateway_id}/{event_id}.jpg")
    def event_jpeg(gateway_id: str, event_id: str) -> Response:
        data = desk.event_jpeg(gateway_id, event_id)
        if data is None:
            raise HTTPException(404, "there is no such picture")
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    @api.get("/scenarios")
    def scenarios() -> dict[str, list[str]]:
        return desk.scenarios()

    @api.get("/queue")
    def queue(scenario: str, limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> list[dict[str, Any]]:
        return [sample_row(sample) for sample in desk.queue(scenario, limit)]

    @api.get("/samples")
    def samples(
        labelled: bool | None = None, limit: Annotated[int, Query(ge=1, le=10_000)] = 100
    ) -> list[dict[str, Any]]:
        return [sample_row(sample) for sample in desk.samples(labelled, limit)]

    @api.get("/samples/{name}.jpg")
    def jpeg(name: str) -> Response:
        try:
            data = desk.jpeg(bytes.fromhex(name))
        except ValueError:
            data = None
        if data is None:
            raise HTTPException(404, "there is no such sample")
        return Response(
            data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=31536000, immutable"}
        )

    @api.post("/labels", dependencies=writer)
    def label(labels: list[Label]) -> dict[str, int]:
        if len(labels) > LABELS_MAX:
            raise HTTPException(413, f"at most {LABELS_MAX} labels at once")
        new = 0
        for author in dict.fromkeys(item.author for item in labels):
            rows = [(bytes.fromhex(x.sample_id), x.scenario, x.label) for x in labels if x.author == author]
            new += or_refuse(lambda rows=rows, author=author: desk.label(rows, author))
        return {"new": new}

    @api.post("/rounds", dependencies=writer)
    def start_round(who: Author) -> dict[str, str]:
        return {"run_id": or_refuse(lambda: desk.start_round(who.author))}

    @api.get("/runs")
    def runs() -> Any:
        return msgspec.to_builtins(desk.runs())

    @api.get("/releases")
    def releases() -> list[dict[str, Any]]:
        return desk.releases()

    @api.post("/releases/{release_id}/rollback", dependencies=writer)
    def roll_back(release_id: str, who: Author) -> dict[str, str]:
        return {"release_id": or_refuse(lambda: desk.roll_back(release_id, who.author))}

    @api.get("/rollouts")
    def rollouts() -> list[dict[str, Any]]:
        return desk.rollouts()

    @api.get("/rollouts/{rollout_id}")
    def rollout(rollout_id: str) -> dict[str, Any]:
        found: dict[str, Any] = or_refuse(lambda: desk.rollout(rollout_id))
        return found

    @api.post("/rollouts", dependencies=writer)
    def start_rollout(given: Launch) -> dict[str, str]:
        return {"rollout_id": or_refuse(lambda: desk.start_rollout(given.release_id, given.author, given.why))}

    @api.post("/rollouts/{rollout_id}/{kind}", dependencies=writer)
    def order_rollout(rollout_id: str, kind: str, given: Order) -> dict[str, str]:
        or_refuse(lambda: desk.order_rollout(kind, rollout_id, given.author, given.why))
        return {"rollout_id": rollout_id}

    @api.get("/audits")
    def audits(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[dict[str, Any]]:
        return desk.audits(limit)

    return api


def or_refuse(act: Any) -> Any:
    """Our errors become 409 with their sentence."""
    try:
        return act()
    except HeadframeError as error:
        raise HTTPException(409, str(error)) from error
