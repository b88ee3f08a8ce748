"""Events for the people at the site: a broker of their own, topics that any dashboard reads, Home Assistant on request.

Decides how an event looks there; when something is an event is `edge.events`'. Nothing here leaves the site: what goes
to the centre is the uplink's.

Topics under `outputs.topic`, `<place>` being `<gateway>/<camera>/<scenario>`:

- `<place>/state`: ON or OFF, retained: what is so now, for who comes later.
- `<place>/event`: JSON, each time an event enters, persists or is clear; not retained.
- `<place>/snapshot`: JPEG of the moment it entered, boxes drawn in, retained.
- `<gateway>/status`: online or offline, retained, by the broker's will.
"""

import json
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from common.messages import Box, Event
from common.mqtt import MqttLink
from edge.settings import OutputSettings

log = logging.getLogger(__name__)

WAITING_MAX: Final = 256
"""Events held while the site's broker is away; the oldest go first. Retained topics are made anew on connecting."""
PLACES_MAX: Final = 4096
SNAPSHOT_PX: Final = 960
"""Width of a snapshot at most: a telephone shows no more, and it travels with the event."""
SNAPSHOT_QUALITY: Final = 80
SNAPSHOT_BYTES_MAX: Final = 200_000
_RED: Final = (40, 40, 230)


@dataclass(frozen=True, slots=True)
class Publication:
    """One message for the site's broker."""

    topic: str
    payload: bytes
    retain: bool


Place = tuple[str, str]
"""Camera and scenario (or detector)."""


def snapshot(picture: NDArray[np.uint8], boxes: Iterable[Box]) -> bytes:
    """JPEG of a picture uint8 (H, W, 3) BGR with boxes drawn in; empty when it would be too large."""
    scale = min(1.0, SNAPSHOT_PX / picture.shape[1])
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    drawn = cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if scale < 1 else picture.copy()
    height, width = drawn.shape[:2]
    for box in boxes:
        low = round(box.left * width), round(box.top * height)
        high = round(box.right * width), round(box.bottom * height)
        cv2.rectangle(drawn, low, high, _RED, 2)
        text = f"{box.label} {box.score:.2f}"
        cv2.putText(drawn, text, (low[0], max(12, low[1] - 4)), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _RED, 1, cv2.LINE_AA)
    ok, encoded = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, SNAPSHOT_QUALITY])
    data = encoded.tobytes() if ok else b""
    return data if len(data) <= SNAPSHOT_BYTES_MAX else b""


def publications(settings: OutputSettings, event: Event) -> Iterator[Publication]:
    """What an event says on the site's topics."""
    place = f"{settings.topic}/{event.gateway_id}/{event.camera_id}/{event.scenario}"
    yield Publication(f"{place}/state", b"OFF" if event.phase == "clear" else b"ON", True)
    said = {
        "id": event.event_id,
        "phase": event.phase,
        "camera": event.camera_id,
        "scenario": event.scenario,
        "label": event.label,
        "peak": round(event.peak, 4),
        "began_at_ns": event.began_at_ns,
        "at_ns": event.at_ns,
        "release": event.release_id,
        "cause": event.cause,
        "boxes": [
            {"label": box.label, "score": round(box.score, 4), "box": [box.left, box.top, box.right, box.bottom]}
            for box in event.boxes
        ],
    }
    yield Publication(f"{place}/event", json.dumps(said, ensure_ascii=False).encode(), False)
    if event.jpeg and settings.snapshots:
        yield Publication(f"{place}/snapshot", event.jpeg, True)


def discovery(settings: OutputSettings, gateway_id: str, site_id: str, place: Place) -> Publication:
    """Home Assistant's MQTT discovery of one place: a binary sensor that is on while an event is open."""
    camera, scenario = place
    name = f"{gateway_id}_{camera}_{scenario}"
    topic = f"{settings.topic}/{gateway_id}"
    said = {
        "name": f"{camera} {scenario}",
        "unique_id": f"headframe_{name}",
        "object_id": f"headframe_{name}",
        "device_class": "problem",
        "state_topic": f"{topic}/{camera}/{scenario}/state",
        "json_attributes_topic": f"{topic}/{camera}/{scenario}/event",
        "availability_topic": f"{topic}/status",
        "device": {"identifiers": [f"headframe_{gateway_id}"], "name": gateway_id, "suggested_area": site_id},
    }
    return Publication(
        f"{settings.discovery_topic}/binary_sensor/headframe/{name}/config", json.dumps(said).encode(), True
    )


class SiteOutputs:
    """Publishes on the site's own broker. Never blocks who tells it; what cannot be sent waits within bounds.

    Args:
        settings: where, and in which form.
        gateway_id, site_id: of this box.
    """

    def __init__(self, settings: OutputSettings, gateway_id: str, site_id: str) -> None:
        self._settings, self._gateway_id, self._site_id = settings, gateway_id, site_id
        self._status = f"{settings.topic}/{gateway_id}/status"
        self._retained: OrderedDict[str, Publication] = OrderedDict()
        """The last of each retained topic: said again whenever the broker may have forgotten it."""
        self._waiting: deque[Publication] = deque()
        self._lock = threading.Lock()
        self._is_afresh = False
        self.dropped = 0
        """Publications that were let go while the broker was away."""
        self._link = MqttLink(
            settings.broker.to_broker(),
            f"headframe-site-{gateway_id}",
            (),
            lambda _topic, _payload: None,
            will=(self._status, b"offline"),
            retain_will=True,
            on_connect=self._on_connect,
        )

    def start(self) -> None:
        """Begin to connect; does not wait."""
        self._link.start()

    def stop(self) -> None:
        """Say what waits, and good-bye."""
        self.step()
        self._link.publish(self._status, b"offline", retain=True)
        self._link.stop()

    def announce(self, places: Iterable[Place]) -> None:
        """These are watched from now on: each begins with OFF, where nothing is known of it."""
        for place in places:
            topic = f"{self._settings.topic}/{self._gateway_id}/{place[0]}/{place[1]}/state"
            with self._lock:
                known = topic in self._retained
            if known:
                continue
            if self._settings.home_assistant:
                self._put(discovery(self._settings, self._gateway_id, self._site_id, place))
            self._put(Publication(topic, b"OFF", True))
        self.step()

    def withdraw(self, camera_id: str) -> None:
        """A camera is watched no more: nothing of it stays retained, and Home Assistant forgets it."""
        own = (
            f"{self._settings.topic}/{self._gateway_id}/{camera_id}/",
            f"{self._settings.discovery_topic}/binary_sensor/headframe/{self._gateway_id}_{camera_id}_",
        )
        with self._lock:
            gone = [topic for topic in self._retained if topic.startswith(own)]
            for topic in gone:
                del self._retained[topic]
        for topic in gone:
            self._put(Publication(topic, b"", True), remember=False)
        self.step()

    def tell(self, event: Event) -> None:
        """An event entered, persists or is clear."""
        for item in publications(self._settings, event):
            self._put(item)
        self.step()

    def step(self) -> None:
        """Send what waits, in order, as far as the link takes it."""
        with self._lock:
            if self._is_afresh:  # the broker may be a new one: what is comes before what waits
                self._is_afresh = False
                said = Publication(self._status, b"online", True)
                events = [item for item in self._waiting if not item.retain]
                self._waiting = deque([said, *self._retained.values(), *events])
            while self._waiting:
                item = self._waiting[0]
                if not self._link.publish(item.topic, item.payload, retain=item.retain):
                    return
                self._waiting.popleft()

    def _put(self, item: Publication, *, remember: bool = True) -> None:
        with self._lock:
            if item.retain and remember:
                self._retained[item.topic] = item
                self._retained.move_to_end(item.topic)
                while len(self._retained) > PLACES_MAX:
                    self._retained.popitem(last=False)
            self._waiting.append(item)
            while len(self._waiting) > WAITING_MAX:
                self._waiting.popleft()
                self.dropped += 1

    def _on_connect(self) -> None:
        """On the link's thread, which holds a lock of its own: no more than a note for the next step."""
        self._is_afresh = True
