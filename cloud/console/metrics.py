"""`/metrics` for Prometheus: what ingest has counted, what was sent to gateways, what was tried and refused."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from cloud.desk import Desk


def make_metrics(desk: Desk) -> APIRouter:
    """The route. The figures are kept elsewhere: each answer is a registry of its own."""
    router = APIRouter()

    @router.get("/metrics")
    def metrics() -> Response:
        registry = CollectorRegistry()
        attempts = Gauge("headframe_attempts", "Refused since the start, by kind.", ["kind"], registry=registry)
        for kind, number in desk.attempts()["counts"].items():
            attempts.labels(kind).set(number)
        ingest = Gauge(
            "headframe_ingest", "Messages of samples since the start; waiting: now.", ["figure"], registry=registry
        )
        for figure, number in desk.counts()["ingest"].items():
            ingest.labels(figure).set(number)
        sent = desk.sent()
        bytes_out = Gauge("headframe_bytes_out", "Sent to the broker since the start.", ["kind"], registry=registry)
        for kind, number in sent["bytes_out"].items():
            bytes_out.labels(kind).set(number)
        shelf = Gauge("headframe_shelf", "What is published once for all gateways.", ["figure"], registry=registry)
        for figure, number in sent["shelf"].items():
            shelf.labels(figure).set(number)
        link = Gauge(
            "headframe_link",
            "Since the start: connects; handler_errors, defects to report.",
            ["figure"],
            registry=registry,
        )
        for figure, number in desk.link().items():
            link.labels(figure).set(number)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router
