"""What gateways tell about events, from a look to the fleet page."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from cloud.desk import Desk
from cloud.events import EVENTS_MAX, Events
from cloud.service import Service
from cloud.settings import CloudSettings
from common import codec, topics
from common.clock import SystemClock
from common.errors import WireError
from common.messages import Event
from common.mqtt import Broker, MqttLink
from edge.settings import UplinkSettings
from edge.spool import Spool
from edge.uplink import Uplink


def event(number: int = 0, phase: str = "enter", at_ns: int = 10, jpeg: bytes = b"") -> Event:
    return Event(
        event_id=f"{number:016x}",
        gateway_id="gw-1",
        site_id="north",
        camera_id="yard",
        scenario="people",
        phase=phase,
        label="person",
        peak=0.9,
        began_at_ns=1,
        at_ns=at_ns,
        release_id="r1-0",
        jpeg=jpeg,
    )


def test_what_is_said_twice_or_late_changes_nothing() -> None:
    events = Events()
    events.add(event(jpeg=b"picture"))
    events.add(event(jpeg=b"picture"))
    events.add(event(phase="clear", at_ns=20))
    events.add(event(phase="persist", at_ns=15))
    (known,) = events.latest(10)
    assert (known.phase, known.jpeg, events.told) == ("clear", b"", 1)
    assert events.jpeg("gw-1", known.event_id) == b"picture", "kept from when it entered"
    assert events.jpeg("gw-2", known.event_id) is None


def test_memory_is_bounded_and_nonsense_is_refused() -> None:
    events = Events()
    for number in range(2 * EVENTS_MAX):
        events.add(event(number))
    assert len(events.latest(10_000)) == EVENTS_MAX
    assert events.latest(1)[0].event_id == f"{2 * EVENTS_MAX - 1:016x}"
    for wrong in (event(phase="explode"), event(jpeg=b"x" * 1_000_000)):
        with pytest.raises(WireError):
            events.add(wrong)


@pytest.fixture
def service(broker: Broker, tmp_path: Path) -> Iterator[Service]:
    made = Service(CloudSettings(data_dir=tmp_path / "centre"), broker)
    made.start()
    made.link.wait_connected(15)
    yield made
    made.stop()


def wait_until(condition: Callable[[], bool], step: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        step()
        time.sleep(0.02)


@pytest.mark.parametrize(("share", "has_jpeg"), [("samples", True), ("updates", False)])
def test_an_event_reaches_the_fleet_page_and_its_picture_only_where_pixels_may_leave(
    service: Service, broker: Broker, tmp_path: Path, share: str, has_jpeg: bool
) -> None:
    link = MqttLink(broker, "gw", (), lambda topic, payload: None)
    link.start()
    spool = Spool.open(tmp_path / "spool.db", 10**7)
    uplink = Uplink(link, spool, "gw-1", UplinkSettings(), SystemClock(), share)
    picture = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    uplink.tell(event(jpeg=picture))  # before the link is up: it waits
    try:
        wait_until(lambda: service.events.told == 1, uplink.step)
        (row,) = Desk(service).events(10)
        assert (row["scenario"], row["phase"], row["has_jpeg"]) == ("people", "enter", has_jpeg)
        assert (Desk(service).event_jpeg("gw-1", row["event_id"]) == picture) == has_jpeg
        forged = msgspec.structs.replace(event(1), gateway_id="gw-2")
        link.publish(topics.up("gw-1", "event"), codec.encode(forged))
        wait_until(lambda: int(service.store.counts()["quarantined"]) == 1, service.step)
        assert service.events.told == 1, "nobody speaks for another gateway"
    finally:
        link.stop()
        spool.close()
