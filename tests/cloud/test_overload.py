"""A centre ten times too slow: nothing is lost, nothing grows, and the spools catch up."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloud import ingest as ingest_module
from cloud.ingest import Ingest
from cloud.link import CentreLink
from cloud.settings import IngestSettings
from cloud.store import Store
from common import codec, topics
from common.clock import SystemClock
from common.errors import EnvironmentFault
from common.messages import Message, Receipt, Sample
from common.mqtt import Broker, MqttLink
from edge.settings import UplinkSettings
from edge.spool import Spool
from edge.uplink import Uplink

MakeSample = Callable[..., Sample]
GATEWAYS, EACH, QUEUE = 4, 40, 10


class Gateway:
    """A spool and an uplink with a link of its own."""

    def __init__(self, name: str, broker: Broker, folder: Path) -> None:
        self.spool = Spool.open(folder / name / "spool.db", 10**9)
        self.link = MqttLink(broker, name, (topics.down_filter(name),), self._on_message, keep=False)
        settings = UplinkSettings(window=16, resend_s=0.5)
        self.uplink = Uplink(self.link, self.spool, name, settings, SystemClock(), "samples")
        self.link.start()
        self.link.wait_connected(15)
        self.uplink.start()

    def _on_message(self, _topic: str, payload: bytes) -> None:
        message = codec.decode(payload)
        assert isinstance(message, Receipt)
        self.uplink.on_receipt(message)

    def stop(self) -> None:
        self.uplink.stop(10)
        self.link.stop()
        self.spool.close()


def test_a_store_that_takes_nothing_does_not_hide_who_is_alive(
    broker: Broker, store: Store, make_sample: MakeSample, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(ingest_module, "PATIENCE_S", 0.3)
    monkeypatch.setattr(ingest_module, "RETRY_S", 0.05)
    add, mended = store.add_samples, threading.Event()

    def failing(batch: list[Sample], at_ns: int, alone: Any) -> int:
        if not mended.is_set():
            raise EnvironmentFault("The disk that holds the database is full", "Free space.")
        return add(batch, at_ns, alone)

    monkeypatch.setattr(store, "add_samples", failing)
    alive: set[str] = set()
    made: list[CentreLink] = []
    settings = IngestSettings(queue=2, batch=2, batch_wait_s=0.01)

    def send(topic: str, message: Message) -> bool:
        return made[0].publish(topic, codec.encode(message))

    ingest = Ingest(store, settings, SystemClock(), send)

    def on_message(topic: str, payload: bytes) -> None:
        if topic.endswith("/state"):
            alive.add(topics.parse_up(topic)[0])
        else:
            ingest.on_message(topic, payload)

    made.append(CentreLink(broker, "centre", [topics.up_filter()], on_message, has_room=ingest.has_room))
    ingest.start()
    made[0].start()
    made[0].wait_connected(15)
    gateway = Gateway("gw-0", broker, tmp_path)
    names = {gateway.spool.accept(s) and s.sample_id for s in (make_sample(n, gateway_id="gw-0") for n in range(30))}
    try:
        deadline = time.monotonic() + 20
        while ingest.figures()["overflowed"] == 0:
            assert time.monotonic() < deadline, "the samples wait for ever, and what comes after them"
            time.sleep(0.02)
        gateway.link.publish(topics.up("gw-0", "state"), b"alive")
        while not alive:
            assert time.monotonic() < deadline, "who is alive is not heard"
            time.sleep(0.02)
        assert store.counts()["samples"] == 0
        mended.set()
        while gateway.spool.figures().rows:
            assert time.monotonic() < deadline, "the spool does not drain"
            time.sleep(0.05)
    finally:
        gateway.stop()
        ingest.stop(10)
        made[0].stop()
    assert store.sample_ids() == names


def test_a_centre_that_is_too_slow_loses_nothing_and_is_not_buried(
    broker: Broker, store: Store, make_sample: MakeSample, tmp_path: Path, monkeypatch: Any
) -> None:
    add = store.add_samples

    def slowly(batch: list[Sample], at_ns: int, alone: Any) -> int:
        time.sleep(0.04 * len(batch))  # 25 a second; the gateways would send as many thousands
        return add(batch, at_ns, alone)

    monkeypatch.setattr(store, "add_samples", slowly)
    arrived: Counter[bytes] = Counter()
    fullest = [0]
    made: list[CentreLink] = []

    def send(topic: str, message: Message) -> bool:
        return made[0].publish(topic, codec.encode(message))

    ingest = Ingest(store, IngestSettings(queue=QUEUE, batch=5, batch_wait_s=0.01), SystemClock(), send)

    def on_message(topic: str, payload: bytes) -> None:
        message = codec.decode(payload)
        assert isinstance(message, Sample)
        arrived[message.sample_id] += 1
        ingest.on_message(topic, payload)
        fullest[0] = max(fullest[0], ingest.figures()["waiting"])

    made.append(CentreLink(broker, "centre", [topics.up_filter()], on_message, has_room=ingest.has_room))
    ingest.start()
    made[0].start()
    made[0].wait_connected(15)
    gateways = [Gateway(f"gw-{number}", broker, tmp_path) for number in range(GATEWAYS)]
    names = set()
    for number in range(GATEWAYS * EACH):
        sample = make_sample(number, gateway_id=f"gw-{number % GATEWAYS}", size=(16, 16))
        names.add(sample.sample_id)
        gateways[number % GATEWAYS].spool.accept(sample)
    try:
        deadline = time.monotonic() + 60
        while sum(gateway.spool.figures().rows for gateway in gateways):
            assert time.monotonic() < deadline, "the spools do not drain"
            time.sleep(0.05)
    finally:
        for gateway in gateways:
            gateway.stop()
        ingest.stop(10)
        made[0].stop()
    assert store.sample_ids() == names
    assert store.counts()["samples"] == len(names)
    assert fullest[0] <= QUEUE
    assert ingest.figures()["overflowed"] == 0
    assert sum(arrived.values()) < 3 * len(names), "repetitions die down instead of piling up"
