"""The load maker: pictures that are real and all different, gateways that forget on a receipt only, and a whole run."""

import json
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from cloud.admission import check_sample
from cloud.broker import EmbeddedBroker
from cloud.service import Service
from cloud.settings import CloudSettings, IngestSettings
from common import codec, topics
from common.errors import OperatorError
from common.messages import Receipt, Refusal, Sample, State
from simulations.fleet.cli import app
from simulations.lightclient import LightClient
from simulations.load.check import read_freshness
from simulations.load.gateway import VirtualGateway
from simulations.load.pictures import Pictures
from simulations.load.run import LoadPlan


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return Pictures(20_000)


class Wire(LightClient):
    """A client that is always up and keeps what is published."""

    def __init__(self) -> None:
        super().__init__("wire")
        self.up, self.sent = True, []

    def publish(self, topic: str, payload: bytes, **_: object) -> bool:
        self.sent.append((topic, codec.decode(payload)))
        return True


def make_gateway(pictures: Pictures) -> tuple[VirtualGateway, Wire, list[float]]:
    latencies: list[float] = []
    gateway = VirtualGateway("load-1", pictures, latencies.append, resend_s=10)
    wire = Wire()
    gateway.client = wire
    return gateway, wire, latencies


def test_pictures_are_about_the_size_decode_and_are_all_different(pictures: Pictures) -> None:
    made = [pictures.jpeg(number) for number in range(40)]
    assert len(set(made)) == 40
    assert pictures.bytes_mean == pytest.approx(20_000, rel=0.35)
    width, height = pictures.size
    for jpeg in made:
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        assert image.shape == (height, width, 3)


def test_what_it_sends_is_what_the_centre_admits(pictures: Pictures) -> None:
    gateway, wire, _ = make_gateway(pictures)
    name = gateway.accept(7)
    gateway.send(0.0)
    ((topic, sample),) = wire.sent
    assert topic == topics.up("load-1", "sample")
    assert isinstance(sample, Sample)
    assert sample.sample_id == name
    check_sample(sample, "load-1", IngestSettings())


def test_a_sample_is_sent_again_until_its_receipt_and_forgotten_then(pictures: Pictures) -> None:
    gateway, wire, latencies = make_gateway(pictures)
    first, second = gateway.accept(1), gateway.accept(2)
    for now_s in (0.0, 5.0, 13.0):
        gateway.send(now_s)
    assert [message.sample_id for _, message in wire.sent] == [first, second, first, second]
    assert [message.sequence for _, message in wire.sent] == [1, 2, 1, 2]
    receipt = codec.encode(Receipt(stored=(first,), refused=(Refusal(second, "why"),)))
    for _ in range(2):  # the second says nothing new
        gateway.on_message(topics.down("load-1", "receipt"), receipt)
    gateway.send(30.0)
    assert len(wire.sent) == 4
    assert (gateway.receipted, gateway.refused, gateway.unreceipted, gateway.resent) == (1, 1, 0, 2)
    assert latencies == [0.0, 0.0]


def test_its_state_says_what_it_holds(pictures: Pictures) -> None:
    gateway, wire, _ = make_gateway(pictures)
    gateway.accept(1)
    assert gateway.report(42)
    ((topic, state),) = wire.sent
    assert topic == topics.up("load-1", "state")
    assert isinstance(state, State)
    assert (state.at_ns, state.spool_rows, state.accepted, state.online) == (42, 1, 1, True)
    assert (state.epochs[0].head, state.epochs[0].tail, state.epochs[0].waiting) == (1, 1, 1)


def test_a_load_that_no_machine_can_make_is_refused() -> None:
    with pytest.raises(OperatorError, match="26000 gateways"):
        LoadPlan(gateways=26_000).check()
    with pytest.raises(OperatorError, match="bytes"):
        Pictures(10)


def test_a_fleet_is_stored_exactly_once_and_fresh(tmp_path: Path) -> None:
    embedded = EmbeddedBroker(tmp_path / "broker", "127.0.0.1", 0)
    embedded.start()
    service = Service(CloudSettings(data_dir=tmp_path / "centre"), embedded.broker)
    service.start()
    service.link.wait_connected(20)
    ended = threading.Event()

    def step() -> None:
        while not ended.wait(0.1):
            service.step()

    stepping = threading.Thread(target=step)
    stepping.start()
    database = tmp_path / "centre" / "headframe.db"
    arguments = [
        "load", "--gateways", "30", "--samples", "90", "--rate", "200", "--heartbeat", "1", "--json",
        "--broker", f"127.0.0.1:{embedded.broker.port}", "--database", str(database),
    ]  # fmt: skip
    done = CliRunner().invoke(app, arguments)
    ended.set()
    stepping.join(10)
    service.stop()
    embedded.stop()
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert [figures[name] for name in ("connected", "accepted", "receipted", "stored")] == [30, 90, 90, 90]
    assert [figures[name] for name in ("lost", "duplicates", "refused", "waiting")] == [0, 0, 0, 0]
    assert figures["fresh"] == 30
    after = read_freshness(database, "load")
    assert (after.known, after.online, after.fresh) == (30, 30, 30)
    assert after.age_s_max < 30
