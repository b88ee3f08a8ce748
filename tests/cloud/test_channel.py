"""The channel under attack: real brokers with client certificates, a centre, gateways. The table is in the report."""

import datetime as dt
import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from cloud.attempts import FRESH_S, REPEATS, ROWS_MAX, Attempts, Kind, read_line
from cloud.console.server import ConsoleServer
from cloud.desk import Desk
from common import codec, topics
from common.certificates import read_identity
from common.clock import SystemClock
from common.errors import BoundError, EnvironmentFault, ForgeryError, OperatorError, TrustError, WireError
from common.messages import Certificate, Desired
from common.mqtt import Broker, MqttLink
from common.tls import client_context
from edge.agent import Agent
from edge.doctor import check_tls
from edge.enrolment import FLAG, NEXT_KEY, Renewer, renew_now
from edge.settings import EdgeSettings
from simulations.bench._secured import SecuredCentre, now, secured_centre
from simulations.bench.channel import as_markdown, try_all
from simulations.mosquitto import find_mosquitto

BAD = (Kind.BAD_CERTIFICATE, "unknown", "TLS handshake with a foreign, expired or revoked certificate")
Record = Callable[[str, object], None]


def test_lines_of_the_brokers_logs_say_who_tried_what() -> None:
    for line, found in (
        (
            "1795645181: Denied PUBLISH from north-1 (d0, q1, r0, m3, 'headframe/up/00/south-1/sample', ... (3 bytes))",
            (Kind.TOPIC, "north-1", "headframe/up/00/south-1/sample"),
        ),
        ("1795645181: north-1 1 headframe/down/south-1/+", (Kind.SUBSCRIPTION, "north-1", "headframe/down/south-1/+")),
        ("1795645181: north-1 1 #", (Kind.SUBSCRIPTION, "north-1", "#")),
        ("1795645181: north-1 1 headframe/down/north-1/+", None),
        ("1795645180: headframe-centre 1 headframe/up/+/+/+", None),
        (
            "1795645182: Client north-1 already connected, closing old connection.",
            (Kind.TWICE, "north-1", "one connection ended the other"),
        ),
        *(
            (f"1795645188: {begin} error:0A000086:SSL routines::certificate verify failed", BAD)
            for begin in ("OpenSSL Error[0]:", "Client connection from 10.0.0.7 failed:")
        ),
        ("1795645180: Sending PUBACK to north-1 (m2, rc0)", None),
        ("1795645180: Received PUBLISH from north-1 (d0, q1, r0, m2, 'headframe/up/00/north-1/sample')", None),
    ):
        assert read_line(line) == found


class Audits:
    """Remembers what was written down."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, object]] = []

    def __call__(self, actor: str, action: str, detail: object, _at_ns: int) -> None:
        self.rows.append((actor, action, detail))


def test_a_flood_costs_one_row_and_an_audit_at_each_doubling() -> None:
    audits = Audits()
    attempts = Attempts(audits)
    for number in range(1000):
        attempts.refused("north-1", ForgeryError("south"), number)
    for number in range(2 * ROWS_MAX):
        attempts.record(Kind.TOPIC, f"g-{number}\n", "x\x1b[31m", 10**6 + number)
    fresh = attempts.fresh(2 * 10**6)
    assert len(fresh) == ROWS_MAX
    assert len([row for row in audits.rows if row[1] == "attempt: identity"]) == 10
    assert attempts.counts()["identity"] == 1000
    assert all(row["who"].isprintable() and row["detail"].isprintable() for row in fresh)
    assert attempts.fresh(int(2 * FRESH_S * 1e9)) == []


def test_each_error_is_an_attempt_of_its_kind() -> None:
    attempts = Attempts(Audits())
    for error in (ForgeryError("a"), BoundError("b"), TrustError("c"), WireError("d")):
        attempts.refused("north-1", error, 1)
    assert {kind for kind, number in attempts.counts().items() if number} == {
        "identity", "size", "renewal", "malformed",
    }  # fmt: skip


def test_a_sample_that_is_receipted_again_and_again_is_an_alarm_and_now_and_then_is_none() -> None:
    attempts = Attempts(Audits())
    for _ in range(REPEATS):
        attempts.receipted([("north-1", b"a" * 16)], 1)
    assert attempts.fresh(2) == []
    attempts.receipted([("north-1", b"a" * 16)], 1)
    assert attempts.fresh(2)[0]["kind"] == "replay"


def test_a_box_that_takes_over_its_own_session_once_is_no_alarm() -> None:
    attempts = Attempts(Audits())
    line = "1: Client north-1 already connected, closing old connection."
    for at_s in (0, 1000, 2000, 2001):
        attempts.logged(line, at_s * 10**9)
    assert attempts.fresh(3 * 10**12) == []
    attempts.logged(line, 2002 * 10**9)
    assert attempts.fresh(3 * 10**12)[0]["who"] == "north-1"


@pytest.mark.parametrize("broker", ["mosquitto", "embedded"])
def test_every_attempt_is_refused_counted_and_alarmed(tmp_path: Path, broker: str, record_property: Record) -> None:
    if broker == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    rows = try_all(tmp_path, broker)
    record_property("attempts", as_markdown(rows))
    print(as_markdown(rows))  # noqa: T201  into the report
    theft = "takes another gateway's session by its client id"
    not_refused = [row.attempt for row in rows if not row.refused]
    assert not_refused == ([theft] if broker == "embedded" else [])  # nats-server knows sessions by client id only
    assert [row for row in rows if not (row.counted and row.alarmed and row.audited)] == []
    assert len(rows) > 15


@pytest.fixture
def centre(tmp_path: Path, request: pytest.FixtureRequest) -> object:
    with secured_centre(tmp_path, "embedded") as made:
        yield made


def test_a_certificate_is_renewed_over_the_channel_and_the_next_connection_shows_it(
    centre: SecuredCentre, tmp_path: Path
) -> None:
    cert_file = centre.identity("north-1", at=now() - dt.timedelta(days=300))  # two thirds of its life are over
    before = read_identity(cert_file).certificate
    flag, renewers = tmp_path / FLAG, list[Renewer]()

    def on_message(topic: str, payload: bytes) -> None:
        message = codec.decode(payload)
        if isinstance(message, Certificate):
            renewers[0].on_certificate(message)

    broker = Broker(centre.broker.host, centre.broker.port, ca_file=centre.broker.ca_file, cert_file=cert_file)
    link = MqttLink(broker, "headframe-north-1", (topics.down_filter("north-1"),), on_message)
    centre.links.append(link)
    assert broker.ca_file is not None
    send = lambda renewal: link.publish(topics.up("north-1", "renew"), codec.encode(renewal))  # noqa: E731
    renewers.append(Renewer(cert_file, broker.ca_file, flag, SystemClock(), send, link.reload_certificate))
    link.start()
    link.wait_connected(10)
    time.sleep(0.2)  # SUBACK
    renewers[0].step()
    deadline = time.monotonic() + 10
    while not renewers[0].outcome and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "renewed until" in renewers[0].outcome
    after = read_identity(cert_file).certificate
    assert after.serial_number != before.serial_number
    assert after.not_valid_after_utc > before.not_valid_after_utc + dt.timedelta(days=299)
    assert not (cert_file.with_name(NEXT_KEY)).exists()
    centre.authority.revoke_serial(before.serial_number, now())
    link._client.reconnect()
    link.wait_connected(10)
    centre.service.guard.step()
    assert centre.service.guard.admits("north-1")


def test_an_answer_that_does_not_fit_leaves_the_old_certificate(centre: SecuredCentre, tmp_path: Path) -> None:
    cert_file = centre.identity("north-1")
    sent: list[object] = []
    ca_file = centre.broker.ca_file
    assert ca_file is not None
    flag = tmp_path / FLAG
    renewer = Renewer(cert_file, ca_file, flag, SystemClock(), lambda r: not sent.append(r), lambda: None)
    renewer.step()
    assert sent == []  # nothing is due
    flag.touch()
    renewer.step()
    assert len(sent) == 1
    held = cert_file.read_bytes()
    for wrong in (b"", b"x" * 100_000, centre.identity("north-1").read_bytes()):
        renewer.on_certificate(Certificate(certificate=wrong))
        assert "renewal refused" in renewer.outcome
    assert cert_file.read_bytes() == held


def test_a_gateway_does_not_speak_to_a_broker_of_another_name_or_authority(
    centre: SecuredCentre, tmp_path: Path
) -> None:
    cert_file = centre.identity("north-1")
    broker = centre.broker
    wrong_name = Broker("127.0.0.2", broker.port, ca_file=broker.ca_file, cert_file=cert_file)
    link = MqttLink(wrong_name, "x", (), lambda *_: None)
    centre.links.append(link)
    link.start()
    with pytest.raises(EnvironmentFault):
        link.wait_connected(1.5)


def test_tls_is_1_2_at_least_and_names_are_checked(centre: SecuredCentre) -> None:
    assert centre.broker.ca_file is not None
    context = client_context(centre.broker.ca_file, centre.broker.cert_file)
    assert context.minimum_version.name == "TLSv1_2"
    assert context.check_hostname
    assert context.verify_mode.name == "CERT_REQUIRED"
    lost = client_context(centre.broker.ca_file, centre.broker.cert_file, wall_s=0.0)  # an empty battery: 1970
    assert lost.verify_flags & 0x200000
    assert lost.check_hostname
    assert not context.verify_flags & 0x200000


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as reply:
        text: str = reply.read().decode()
        return text


def test_metrics_and_console_show_what_was_tried(centre: SecuredCentre) -> None:
    centre.service.guard.refused("north-1", ForgeryError("says that it is south-1"))
    console = ConsoleServer("127.0.0.1", 0, Desk(centre.service))
    console.start()
    try:
        metrics = fetch(f"http://127.0.0.1:{console.port}/metrics")
        fresh = json.loads(fetch(f"http://127.0.0.1:{console.port}/api/v1/attempts"))["fresh"]
    finally:
        console.stop()
    assert 'headframe_attempts{kind="identity"} 1.0' in metrics
    assert [(row["who"], row["kind"], row["times"]) for row in fresh] == [("north-1", "identity", 1)]
    assert centre.service.store.audits(1)[0]["action"] == "attempt: identity"


def test_a_message_for_a_gateway_is_not_for_the_centre(centre: SecuredCentre) -> None:
    centre.service._on_message(topics.up("north-1", "state"), codec.encode(Desired(manifest=b"", signature=b"")))
    centre.service._on_message("headframe/up/zz/north-1/state", b"")
    assert centre.service.guard.attempts.counts()["malformed"] == 2
    assert len(centre.service.store.quarantined()) == 2


@pytest.fixture
def enrolled(centre: SecuredCentre, tmp_path: Path) -> EdgeSettings:
    """Of a gateway with a camera that shows a folder of pictures."""
    camera = tmp_path / "camera"
    camera.mkdir()
    cv2.imwrite(str(camera / "0.png"), np.zeros((12, 16, 3), np.uint8))
    root = tmp_path / "root.json"
    root.write_bytes(centre.service.repository.root())
    return EdgeSettings.model_validate(
        {
            "gateway_id": "north-1",
            "site_id": "north",
            "release_root": root,
            "data_dir": tmp_path / "gateway",
            "broker": {
                "host": centre.broker.host,
                "port": centre.broker.port,
                "ca_file": centre.broker.ca_file,
                "cert_file": centre.identity("north-1"),
            },
            "cameras": [{"id": "belt", "source": str(camera)}],
        }
    )


def test_an_enrolled_gateway_reports_and_renews_while_it_runs(centre: SecuredCentre, enrolled: EdgeSettings) -> None:
    cert_file = enrolled.broker.cert_file
    assert cert_file is not None
    before = read_identity(cert_file).certificate.serial_number
    agent = Agent(enrolled)

    def turn(condition: Callable[[], bool], timeout_s: float = 20) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "not in time"
            agent.step()
            time.sleep(0.05)

    flag = enrolled.data_dir / FLAG
    agent.start()
    try:
        turn(lambda: "north-1" in centre.service.online())
        flag.touch()  # what `headframe edge renew` does beside a running agent
        turn(lambda: read_identity(cert_file).certificate.serial_number != before)
    finally:
        agent.stop()
    assert not flag.exists()
    assert centre.service.guard.attempts.fresh(time.time_ns()) == []
    assert check_tls(enrolled.broker, "north-1", now()).ok


def test_a_gateway_renews_by_command_when_no_agent_runs(centre: SecuredCentre, enrolled: EdgeSettings) -> None:
    cert_file = enrolled.broker.cert_file
    assert cert_file is not None
    before = read_identity(cert_file).certificate
    until = renew_now(enrolled, SystemClock())
    after = read_identity(cert_file).certificate
    assert after.serial_number != before.serial_number
    assert until == f"{after.not_valid_after_utc:%Y-%m-%d}"
    with pytest.raises(OperatorError, match="another authority"):
        renew_now(
            enrolled.model_copy(update={"broker": enrolled.broker.model_copy(update={"key_file": cert_file})}),
            SystemClock(),
        )
