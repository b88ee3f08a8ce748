"""The centre's link over a real broker: everything arrives, in order, as fast as there is room and no faster."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cloud import link as link_module
from cloud.link import CentreLink
from common import mqtt_packets
from common.errors import EnvironmentFault
from common.mqtt import Broker, MqttLink


def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


@pytest.fixture
def sender(broker: Broker) -> Iterator[MqttLink]:
    made = MqttLink(broker, "gateway", ("down/#",), lambda _t, _p: None, window=2000)
    made.start()
    made.wait_connected(15)
    yield made
    made.stop()


def started(broker: Broker, on_message: Callable[[str, bytes], None], **more: object) -> CentreLink:
    made = CentreLink(broker, "centre", ["up/#"], on_message, **more)  # type: ignore[arg-type]
    made.start()
    made.wait_connected(15)
    return made


def test_messages_of_all_sizes_arrive_in_order_and_answers_go_back(broker: Broker) -> None:
    got: list[tuple[str, bytes]] = []
    back: list[bytes] = []
    link = started(broker, lambda topic, payload: got.append((topic, payload)))
    sender = MqttLink(broker, "gateway", ("down/#",), lambda _t, payload: back.append(payload), window=2000)
    sender.start()
    sender.wait_connected(15)
    sizes = [0, 1, 100, 70_000, 3_000_000, 5, 2_000_000, 17]
    for number, size in enumerate(sizes):
        assert sender.publish(f"up/{number}", bytes([number]) * size)
    wait_until(lambda: len(got) == len(sizes))
    assert got == [(f"up/{number}", bytes([number]) * size) for number, size in enumerate(sizes)]
    time.sleep(0.2)
    threads = [
        threading.Thread(target=lambda at=at: [link.publish("down/x", f"{at}".encode()) for _ in range(200)])
        for at in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: len(back) == 800)
    sender.stop()
    link.stop()


def test_without_room_nothing_is_taken_up_and_nothing_is_lost(broker: Broker, sender: MqttLink) -> None:
    got: list[bytes] = []
    room = threading.Event()
    link = started(broker, lambda _t, payload: got.append(payload), has_room=lambda: room.is_set() or len(got) < 3)
    for number in range(200):
        sender.publish("up/x", number.to_bytes(4, "big") + bytes(20_000))
    wait_until(lambda: len(got) == 3)
    time.sleep(0.3)
    assert len(got) == 3
    assert link.publish("down/x", b"still there"), "reading waits, writing does not"
    room.set()
    wait_until(lambda: len(got) == 200)
    assert [int.from_bytes(payload[:4], "big") for payload in got] == list(range(200))
    link.stop()


def test_a_message_over_the_bound_is_skipped_named_and_never_held(
    broker: Broker, sender: MqttLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "PAYLOAD_BYTES_MAX", 100_000)
    got: list[str] = []
    large: list[tuple[str, int]] = []
    link = started(
        broker, lambda topic, _p: got.append(topic), on_oversize=lambda topic, size: large.append((topic, size))
    )
    for name, size in (("a", 10), ("big", 5_000_000), ("b", 10), ("big2", 200_000), ("c", 90_000)):
        sender.publish(f"up/{name}", bytes(size))
    wait_until(lambda: len(got) == 3)
    assert got == ["up/a", "up/b", "up/c"]
    assert [topic for topic, _ in large] == ["up/big", "up/big2"]
    assert large[0][1] > 5_000_000
    link.stop()


def test_a_handler_that_fails_is_counted_and_the_next_message_comes(broker: Broker, sender: MqttLink) -> None:
    got: list[bytes] = []

    def on_message(_topic: str, payload: bytes) -> None:
        if payload == b"bad":
            raise ValueError(payload)
        got.append(payload)

    link = started(broker, on_message)
    sender.publish("up/x", b"bad")
    sender.publish("up/x", b"good")
    wait_until(lambda: got == [b"good"])
    assert link.handler_errors == 1
    link.stop()


def test_it_comes_back_by_itself_and_subscribes_again(
    broker: Broker, sender: MqttLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "RETRY_S", (0.05, 0.1))
    got: list[bytes] = []
    link = started(broker, lambda _t, payload: got.append(payload))
    thief = CentreLink(broker, "centre", ["other/#"], lambda _t, _p: None)  # the same client id: takes the session over
    monkeypatch.setattr(link_module, "RETRY_S", (0.5, 0.6))
    thief.start()
    wait_until(lambda: not link.connected)
    thief.stop()
    wait_until(lambda: link.connected)
    sender.publish("up/x", b"after")
    wait_until(lambda: b"after" in got)
    link.stop()
    assert not link.publish("down/x", b"too late")


def test_no_broker_is_said_with_the_address(free_port: int) -> None:
    link = CentreLink(Broker(port=free_port), "centre", ["up/#"], lambda _t, _p: None)
    link.start()
    with pytest.raises(EnvironmentFault, match=str(free_port)):
        link.wait_connected(0.3)
    link.stop()


def test_bytes_that_are_no_mqtt_end_the_connection_and_not_the_centre() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        link = CentreLink(Broker(port=server.getsockname()[1]), "centre", ["up/#"], lambda _t, _p: None)
        link.start()
        connection, _ = server.accept()
        with connection:
            assert connection.recv(100).startswith(b"\x10")
            connection.sendall(b"\x30\xff\xff\xff\xff\xff")
            wait_until(lambda: "four digits" in link.last_error)
            assert connection.recv(100) in (b"", mqtt_packets.PING)
        link.stop()
