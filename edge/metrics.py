"""The gateway's state for Prometheus: the same figures that its page shows and the centre gets. Decides nothing."""

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.messages import CameraState, State
from edge.board import WELL
from edge.gears import Gear

PREFIX: Final = "headframe_edge_"
CAMERA: Final = PREFIX + "camera_"
STATES: Final = ("starting", "live", "ended", "failed", "dark", "frozen", "covered", "moved", "garbled")
"""Each is a series of its own, 0 or 1, so that one that ends is seen to end."""
_OF_GATEWAY: Final = {
    "spool_rows": "Samples that wait for the centre's receipt.",
    "spool_bytes": "Bytes of them.",
    "accepted": "Samples chosen since the spool was made.",
    "receipted": "Samples that the centre has.",
    "evicted": "Samples let go because the spool was full.",
    "refused": "Samples that the centre will not take.",
    "bytes_up": "Bytes of samples and events sent since the start.",
    "bytes_down": "Bytes of releases received since the start.",
    "looks": "Frames looked at since the start.",
    "events": "Events begun since the start.",
}
_OF_CAMERA: Final = {
    "fps": "Frames that arrive per second, over the last seconds.",
    "looks_per_s": "Looks per second, over the last seconds.",
}
_COUNTED: Final = {
    "frames": "Frames that arrived.",
    "looks": "Frames given to the model.",
    "dropped": "Frames replaced by a newer one before the model had time.",
    "reconnects": "Times the stream was opened again.",
    "damaged": "Packets and frames that could not be decoded, or only in parts.",
}


def render_metrics(now: State, *, linked: bool) -> bytes:
    """Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_StateCollector(now, linked))
    return generate_latest(registry)


class _StateCollector(Collector):
    def __init__(self, now: State, linked: bool) -> None:
        self._now, self._linked = now, linked

    def collect(self) -> Iterator[Metric]:
        now = self._now
        for name, meaning in _OF_GATEWAY.items():
            yield GaugeMetricFamily(PREFIX + name, meaning, getattr(now, name))
        yield GaugeMetricFamily(PREFIX + "linked", "Whether the broker of the centre is connected.", int(self._linked))
        yield GaugeMetricFamily(PREFIX + "alarms", "Events that are open now.", len(now.alarms))
        release = GaugeMetricFamily(PREFIX + "release", "The release that runs.", labels=["release"])
        if now.release_id:
            release.add_metric([now.release_id], 1)
        yield release
        yield from _cameras(now.cameras)


def _cameras(cameras: tuple[CameraState, ...]) -> Iterator[Metric]:
    up = GaugeMetricFamily(CAMERA + "up", "Whether the camera is as it should be.", labels=["camera"])
    state = GaugeMetricFamily(CAMERA + "state", "1 for the state that the camera is in.", labels=["camera", "state"])
    gear = GaugeMetricFamily(CAMERA + "gear", "1 for the gear that the camera is in.", labels=["camera", "gear"])
    latency = GaugeMetricFamily(
        CAMERA + "latency_ms",
        "From the arrival of a frame to the end of its look, over the recent looks.",
        labels=["camera", "quantile"],
    )
    for camera in cameras:
        name = camera.camera_id
        up.add_metric([name], int(camera.state in WELL[:2]))
        for one in STATES:
            state.add_metric([name, one], int(camera.state == one))
        for other in Gear:
            gear.add_metric([name, other.value], int(camera.gear == other.value))
        latency.add_metric([name, "0.5"], camera.latency_ms)
        latency.add_metric([name, "0.99"], camera.latency_ms_p99)
    yield from (up, state, gear, latency)
    for key, meaning in _OF_CAMERA.items():
        gauge = GaugeMetricFamily(CAMERA + key, meaning, labels=["camera"])
        for camera in cameras:
            gauge.add_metric([camera.camera_id], getattr(camera, key))
        yield gauge
    for key, meaning in _COUNTED.items():
        counter = CounterMetricFamily(CAMERA + key, meaning, labels=["camera"])
        for camera in cameras:
            counter.add_metric([camera.camera_id], getattr(camera, key))
        yield counter
