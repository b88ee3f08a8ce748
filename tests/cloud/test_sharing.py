"""Releases published once, over real brokers with certificates: agents take them, one of before is served as before."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from cloud.link import CentreLink
from cloud.settings import SharingSettings
from cloud.shelf import PROBE_NAME, Shelf
from common.clock import SystemClock
from common.ids import layer_hash
from common.manifest import SHARED, Layer, Scenario
from common.messages import Fetch, Shelved
from common.mqtt import Broker, MqttLink
from common.parcels import PIECE_BYTES, WINDOW
from common.topics import parse_release, release
from edge.agent import Agent
from edge.download import Download, LayerFolder
from edge.settings import EdgeSettings
from edge.shared import Shared
from simulations.bench._secured import SecuredCentre, secured_centre
from simulations.mosquitto import find_mosquitto

Make = Callable[..., bytes]


@contextmanager
def running_agent(centre: SecuredCentre, folder: Path, name: str) -> Iterator[Agent]:
    """A gateway of the site north, with a camera that shows a folder of pictures."""
    folder = folder / name
    (folder / "camera").mkdir(parents=True)
    cv2.imwrite(str(folder / "camera" / "0.png"), np.zeros((12, 16, 3), np.uint8))
    root = folder / "root.json"
    root.write_bytes(centre.service.repository.root())
    broker = {
        "host": centre.broker.host,
        "port": centre.broker.port,
        "ca_file": centre.broker.ca_file,
        "cert_file": centre.identity(name),
    }
    agent = Agent(
        EdgeSettings.model_validate(
            {
                "gateway_id": name,
                "site_id": "north",
                "release_root": root,
                "data_dir": folder / "data",
                "broker": broker,
                "cameras": [{"id": "belt", "source": str(folder / "camera")}],
            }
        )
    )
    agent.start()
    try:
        yield agent
    finally:
        agent.stop()


def turn(centre: SecuredCentre, agents: list[Agent], condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, [agent.installer.outcome for agent in agents]
        centre.service.step()
        for agent in agents:
            agent.step()
        time.sleep(0.05)


@pytest.mark.parametrize("broker", ["mosquitto", "embedded"])
def test_one_publish_serves_every_gateway(tmp_path: Path, broker: str, tiny_backbone: Make, tiny_head: Make) -> None:
    if broker == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    with (
        secured_centre(tmp_path, broker) as centre,
        running_agent(centre, tmp_path, "north-1") as first,
        running_agent(centre, tmp_path, "north-2") as second,
        running_agent(centre, tmp_path, "old-1") as old,
    ):
        old.proofs._back_at_s = float("inf")  # as one that knows nothing of this
        registry, sent = centre.service.registry, centre.service.link.bytes_out
        backbone = registry.put(tiny_backbone())
        head = registry.put(tiny_head(backbone.hash))
        scenario = Scenario("belt", ("normal", "tear"), "normal", {SHARED: head})
        name = registry.publish((scenario,), backbone, {"passed": True}, "the first")
        agents = [first, second, old]
        turn(centre, agents, lambda: all(agent.release_id == name for agent in agents))
        layers = backbone.size_bytes + head.size_bytes
        assert layers < sent["release"] < layers + 8_000, "once, and the proof"
        assert layers < sent["layer"] < layers + 2_000, "for the old one alone"
        assert first.installer.bytes_down == second.installer.bytes_down == layers
        assert [state.shared for state in (first.state(), old.state())] == [True, False]
        turn(centre, agents, lambda: not (first.shared._now or second.shared._now))
        centre.service.guard.step()
        assert centre.service.guard.attempts.fresh(time.time_ns()) == [], "nobody did what it may not"


BIG = random.Random(3).randbytes(20 * PIECE_BYTES + 77)
LAYER = Layer(layer_hash(BIG), len(BIG))


class Box:
    """A download over a real link: what the agent does with pieces, and nothing else."""

    def __init__(self, broker: Broker, folder: Path, centre: Callable[[Fetch], Shelved]) -> None:
        self.received: list[str] = []
        self._lock = threading.Lock()
        self.download = Download((LAYER,), LayerFolder(folder), SystemClock(), self._ask)
        self._centre, self._asked = centre, list[Fetch]()
        self.link = MqttLink(broker, "box", (), self._on_message)
        self.shared = Shared(self.link, self.download.pieces)
        self.link.start()
        self.link.wait_connected(15)

    def _ask(self, fetch: Fetch) -> bool:
        self._asked.append(fetch)
        return True

    def _on_message(self, topic: str, payload: bytes) -> None:
        if payload:
            self.received.append(topic)
            with self._lock:
                self.download.take_piece(parse_release(topic), payload)
            self.shared.settle()

    def run(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not until():
            assert time.monotonic() < deadline, self.received
            with self._lock:
                self.download.step()
                for fetch in self._asked:
                    self.download.take_shelved(self._centre(fetch))
                self._asked.clear()
            self.shared.settle()
            time.sleep(0.005)


@pytest.fixture
def shelf(broker: Broker, tmp_path: Path) -> Iterator[Shelf]:
    """The centre's, over its own link to the broker."""
    made: list[Shelf] = []
    link = CentreLink(broker, "centre", [release(PROBE_NAME)], lambda _topic, payload: made[0].on_message(payload))
    settings = SharingSettings(keep_s=1)

    def publish(topic: str, payload: bytes, retain: bool) -> bool:
        return link.publish(topic, payload, retain=retain)

    made.append(Shelf(tmp_path / "shelf.json", settings, SystemClock(), publish, lambda: link.connects))
    link.start()
    link.wait_connected(15)
    while not made[0].carried:
        made[0].step()
        time.sleep(0.01)
    yield made[0]
    link.stop()


def test_after_a_lost_link_only_what_is_missing_travels_and_then_the_broker_is_cleared(
    broker: Broker, shelf: Shelf, tmp_path: Path
) -> None:
    source = tmp_path / "layer"
    source.write_bytes(BIG)

    def centre(fetch: Fetch) -> Shelved:
        packed = shelf.pack(source)
        assert shelf.lay_out(packed, source, fetch.offset, silent=fetch.silent)
        return Shelved(layer=fetch.layer, parcel=packed.parcel)

    first = Box(broker, tmp_path / "box", centre)
    first.run(lambda: len(first.received) > 10)
    first.link.stop()
    second = Box(broker, tmp_path / "box", centre)
    second.run(lambda: second.download.done)
    second.link.stop()
    assert (tmp_path / "box" / LAYER.hash).read_bytes() == BIG
    assert len(first.received) + len(second.received) <= 2 + 21 + WINDOW, "twice the index, and what was under way"
    time.sleep(1.1)
    shelf.step()
    deadline = time.monotonic() + 20
    while lies_there(broker):  # nats-server clears when it gets to it
        assert time.monotonic() < deadline


def lies_there(broker: Broker) -> list[str]:
    """Pieces that a gateway could still get."""
    late: list[str] = []
    spy = MqttLink(broker, "spy", (release("+"),), lambda topic, payload: late.extend([topic] if payload else []))
    spy.start()
    spy.wait_connected(15)
    time.sleep(0.5)
    spy.stop()
    return late
