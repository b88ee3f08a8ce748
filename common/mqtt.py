"""The one home of paho: a connection that comes back by itself, with jitter so that a fleet does not in lockstep.

Decides how to connect and reconnect; leaves to its users what the payloads mean.
"""

import logging
import random
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from common.errors import EnvironmentFault
from common.tls import client_context, show_certificate

log = logging.getLogger(__name__)

Handler = Callable[[str, bytes], None]


class Link(Protocol):
    """What the senders of this project need of a connection; simulations supply another."""

    @property
    def connected(self) -> bool: ...

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Hand over at QoS 1. False when the link is down or its window is full: try again later."""
        ...


@dataclass(frozen=True, slots=True)
class Broker:
    """Where the broker is and how to show who we are. Files are PEM."""

    host: str = "127.0.0.1"
    port: int = 1883
    username: str | None = None
    password: str | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def __repr__(self) -> str:  # the password stays out of logs and tracebacks
        return f"Broker({self.host}:{self.port}, tls={self.ca_file is not None})"


class MqttLink:
    """A paho client with its network thread. Subscribes again on every connect; refuses more than `window` in flight.

    Args:
        client_id: unique on the broker; a second client of the same id takes over the session.
        subscriptions: topic filters, QoS 1.
        on_message: called on the network thread with (topic, payload); must not block for long. An exception is
            counted in `handler_errors`, logged with its traceback, and the connection goes on.
        will: (topic, payload) that the broker publishes when we vanish, retained with `retain_will`.
        clean: False keeps a persistent session on the broker.
        keep: whether what the broker has not acknowledged is sent again after a reconnect. Whoever repeats what has no
            answer, and counts its bytes, wants False.
    """

    def __init__(
        self,
        broker: Broker,
        client_id: str,
        subscriptions: tuple[str, ...],
        on_message: Handler,
        *,
        will: tuple[str, bytes] | None = None,
        retain_will: bool = False,
        on_connect: Callable[[], None] | None = None,
        clean: bool = True,
        window: int = 64,
        keep: bool = True,
    ) -> None:
        self._broker, self._on_message = broker, on_message
        self._subscriptions = dict.fromkeys(subscriptions)
        self._on_connect_hook, self._keep = on_connect, keep
        self._up = threading.Event()
        self.handler_errors = 0
        self.last_error = ""
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=clean, protocol=paho.MQTTv311
        )
        client.max_inflight_messages_set(window)
        client.max_queued_messages_set(window)
        client.reconnect_delay_set(min_delay=1, max_delay=30)
        if broker.username:
            client.username_pw_set(broker.username, broker.password)
        self._tls: ssl.SSLContext | None = None
        if broker.ca_file:
            self._tls = client_context(broker.ca_file, broker.cert_file, broker.key_file)
            client.tls_set_context(self._tls)
        if will:
            client.will_set(will[0], will[1], qos=1, retain=retain_will)
        client.on_connect, client.on_disconnect = self._connected_now, self._disconnected_now
        client.on_connect_fail = self._connect_failed
        client.on_message = self._received
        self._client = client

    @property
    def connected(self) -> bool:
        return self._up.is_set()

    @property
    def alive(self) -> bool:
        """False when the network thread has died of an exception (or was not started): nothing brings it back."""
        thread = self._client._thread  # paho has no public word for it
        return thread is not None and thread.is_alive()

    def start(self) -> None:
        """Begin to connect, and go on trying until `stop`. Does not wait."""
        delay_s = random.uniform(1.0, 3.0)  # each client draws its own: paho's doubling has no jitter
        self._client.reconnect_delay_set(min_delay=delay_s, max_delay=delay_s * 15)  # type: ignore[arg-type]
        self._client.connect_async(self._broker.host, self._broker.port, keepalive=30)
        self._client.loop_start()

    def wait_connected(self, timeout_s: float) -> None:
        """Raises:
        EnvironmentFault: not connected within `timeout_s`.
        """
        if not self._up.wait(timeout_s):
            raise EnvironmentFault(
                f"no connection to the broker at {self._broker.host}:{self._broker.port} in {timeout_s:g} s"
                f"{f' ({self.last_error})' if self.last_error else ''}",
                "Check that it runs, the address, and the firewall; `headframe doctor` tests each.",
            )

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        if not self.connected:
            return False
        # No lock of ours around this: paho calls back with its own held. It refuses what exceeds the window.
        return self._client.publish(topic, payload, qos=1, retain=retain).rc == MQTTErrorCode.MQTT_ERR_SUCCESS

    def subscribe(self, topics: Sequence[str]) -> None:
        """Listen to more topics, now and after every connect. Broker and centre repeat what matters: a subscription
        that a dying connection takes with it is made again at the next."""
        self._subscriptions |= dict.fromkeys(topics)
        if self.connected:
            self._client.subscribe([(topic, 1) for topic in topics])

    def unsubscribe(self, topics: Sequence[str]) -> None:
        """Listen to these no more."""
        for topic in topics:
            self._subscriptions.pop(topic, None)
        if self.connected:
            self._client.unsubscribe(list(topics))

    def reload_certificate(self) -> None:
        """Show the certificate that is in the file now, from the next connection on.

        Raises:
            OperatorError: the file does not hold a certificate and its key.
        """
        if self._tls and self._broker.cert_file:
            show_certificate(self._tls, self._broker.cert_file, self._broker.key_file)

    def stop(self) -> None:
        """Disconnect cleanly (the will is not published) and end the network thread."""
        self._client.disconnect()
        self._client.loop_stop()

    def _connected_now(self, client: paho.Client, _user: Any, _flags: Any, reason: ReasonCode, _props: Any) -> None:
        if reason.is_failure:
            self.last_error = str(reason)
            log.warning("the broker refused the connection: %s", reason)
            return
        for topic_filter in list(self._subscriptions):
            client.subscribe(topic_filter, qos=1)
        self._up.set()
        if self._on_connect_hook:
            self._on_connect_hook()

    def _connect_failed(self, _client: paho.Client, _user: Any) -> None:
        self.last_error = "connection refused or no route"

    def _disconnected_now(self, _client: paho.Client, _user: Any, _flags: Any, reason: ReasonCode, _props: Any) -> None:
        self._up.clear()
        if not self._keep:
            _drop_unacknowledged(_client)
        if reason.is_failure:
            log.info("broker connection lost: %s", reason)

    def _received(self, _client: paho.Client, _user: Any, message: paho.MQTTMessage) -> None:
        try:
            self._on_message(message.topic, bytes(message.payload))
        except Exception:  # a message handler: one bad message must not end the connection
            self.handler_errors += 1
            log.exception("handling a message on %s failed", message.topic)


def _drop_unacknowledged(client: paho.Client) -> None:
    """paho offers no way to let go of what it would send again by itself (read in 2.1 and 2.2; a test watches it)."""
    with client._out_message_mutex:
        client._out_messages.clear()
        client._inflight_messages = 0
