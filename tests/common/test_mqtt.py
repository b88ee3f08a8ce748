"""The connection to the broker: a thread that dies is noticed, since nothing else would bring it back."""

import threading
import time

import pytest

from common.mqtt import Broker, MqttLink
from simulations.processes import free_port


def test_a_link_is_alive_from_start_to_stop_whether_connected_or_not() -> None:
    link = MqttLink(Broker(port=free_port()), "gw", (), lambda *_: None)
    assert not link.alive
    link.start()
    assert link.alive
    assert not link.connected
    link.stop()
    assert not link.alive


def test_a_network_thread_that_dies_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    link = MqttLink(Broker(port=free_port()), "gw", (), lambda *_: None)

    def fail(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(link._client, "_reconnect_wait", fail)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # it is meant to die
    link.start()
    deadline = time.monotonic() + 10
    while link.alive:
        assert time.monotonic() < deadline
        time.sleep(0.02)
