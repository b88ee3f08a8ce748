"""What people at the site get to see, over a real broker."""

import json
import threading
import time
from collections.abc import Callable

import cv2
import numpy as np

from common.messages import Box, Event
from common.mqtt import Broker, MqttLink
from edge.outputs import SNAPSHOT_BYTES_MAX, SNAPSHOT_PX, WAITING_MAX, SiteOutputs, publications, snapshot
from edge.settings import OutputSettings, SiteBrokerSettings

BOX = Box("people", "person", 0.9, 0.25, 0.25, 0.5, 0.75)


def event(phase: str = "enter", number: int = 0, jpeg: bytes = b"") -> Event:
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
        at_ns=2,
        release_id="r1-0",
        boxes=(BOX,),
        jpeg=jpeg,
    )


class Board:
    """Somebody's dashboard: remembers the last of each topic, and how often it came."""

    def __init__(self, broker: Broker, topic: str = "#") -> None:
        self.last: dict[str, bytes] = {}
        self.seen: list[str] = []
        self._changed = threading.Condition()
        self.link = MqttLink(broker, f"board-{time.monotonic_ns()}", (topic,), self._on)
        self.link.start()
        self.link.wait_connected(15)

    def _on(self, topic: str, payload: bytes) -> None:
        with self._changed:
            self.last[topic] = payload
            self.seen.append(topic)
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, 20), self.last


def test_a_dashboard_sees_what_is_and_what_happens(broker: Broker) -> None:
    board = Board(broker)
    settings = OutputSettings(
        topic="mine", home_assistant=True, broker=SiteBrokerSettings(enabled=True, port=broker.port)
    )
    outputs = SiteOutputs(settings, "gw-1", "north")
    outputs.start()
    try:
        outputs.announce([("yard", "people"), ("yard", "smoke")])
        picture = snapshot(np.full((90, 160, 3), 90, np.uint8), [BOX])
        outputs.tell(event(jpeg=picture))
        state, status = "mine/gw-1/yard/people/state", "mine/gw-1/status"

        def told() -> bool:
            outputs.step()
            return board.last.get(state) == b"ON" and "mine/gw-1/yard/people/snapshot" in board.last

        deadline = time.monotonic() + 20
        while not told():
            assert time.monotonic() < deadline, board.last
            time.sleep(0.05)
        assert board.last[status] == b"online"
        assert board.last["mine/gw-1/yard/smoke/state"] == b"OFF"
        assert board.last["mine/gw-1/yard/people/snapshot"] == picture
        said = json.loads(board.last["mine/gw-1/yard/people/event"])
        assert (said["phase"], said["label"], said["boxes"][0]["label"]) == ("enter", "person", "person")
        (config,) = [json.loads(v) for k, v in board.last.items() if k.startswith("homeassistant/") and "people" in k]
        assert (config["state_topic"], config["availability_topic"]) == (state, status)

        late = Board(broker, "mine/#")  # who comes later sees what is so, and no old news
        late.wait_for(lambda: late.last.get(state) == b"ON")
        assert "mine/gw-1/yard/people/event" not in late.last
        late.link.stop()

        outputs.tell(event("clear"))
        outputs.announce([("yard", "people")])  # the next release: what is known is left as it is
        board.wait_for(lambda: board.last.get(state) == b"OFF")
    finally:
        outputs.stop()
    board.wait_for(lambda: board.last[status] == b"offline")
    board.link.stop()


def test_a_broker_that_is_away_holds_nothing_up_and_memory_is_bounded(free_port: int) -> None:
    settings = OutputSettings(broker=SiteBrokerSettings(enabled=True, port=free_port))
    outputs = SiteOutputs(settings, "gw-1", "north")
    outputs.start()
    began_s = time.monotonic()
    for number in range(WAITING_MAX):
        outputs.tell(event(number=number))
    assert time.monotonic() - began_s < 5
    assert outputs.dropped == WAITING_MAX, "two publications each, half of them let go, the oldest first"
    outputs.stop()


def test_without_snapshots_no_picture_is_published() -> None:
    with_picture = event(jpeg=b"picture")
    assert not [p for p in publications(OutputSettings(snapshots=False), with_picture) if b"picture" in p.payload]
    assert [p.retain for p in publications(OutputSettings(), with_picture)] == [True, False, True]


def test_a_snapshot_is_small_and_shows_the_box() -> None:
    frame = np.full((1080, 1920, 3), 128, np.uint8)
    data = snapshot(frame, [BOX])
    assert 0 < len(data) <= SNAPSHOT_BYTES_MAX
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape[1] == SNAPSHOT_PX
    edge = shown[shown.shape[0] // 2, round(0.25 * SNAPSHOT_PX)].astype(int)
    assert edge[2] - edge[0] > 80, "red at the left edge of the box"
    assert (frame == 128).all(), "the frame itself is left alone"
