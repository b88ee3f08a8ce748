"""A light MQTT 3.1.1 client: thousands of virtual gateways in one process, a few KB each.

`LightClient` is one connection; `Crowd` connects many at a pace, keeps them alive, and brings back those that fall. All
run on one asyncio loop and nothing here blocks. The gateways' real client is `common.mqtt`; this one speaks the same
packets to any broker, and leaves to its users what the payloads mean.
"""

import asyncio
import contextlib
import heapq
import logging
import random
from collections.abc import Callable, Sequence
from typing import Final, cast

from common.errors import EnvironmentFault, WireError
from common.mqtt import Broker
from simulations import packets
from simulations.packets import Kind, Splitter

log = logging.getLogger(__name__)

CONNECT_S: Final = 20.0
"""A broker under a storm of connections answers late; the real client waits as long as it takes."""
TICK_S: Final = 1.0
AGAIN_S: Final = (1.0, 3.0)
"""As `common.mqtt` draws its first delay; doubled at each failure up to `AGAIN_S_MAX`."""
AGAIN_S_MAX: Final = 30.0
CONNECTING_MAX: Final = 256
"""Connections being made at once: more than a listener's backlog holds only fall."""
PACKET_IDS: Final = 65_535

OnMessage = Callable[[str, bytes], None]
OnAck = Callable[[], None]


class LightClient(asyncio.Protocol):
    """One connection: at most `window` messages at QoS 1 in flight.

    With `clean=False` what was in flight is sent again, as a duplicate, at the next connection; else it is forgotten.
    An exception in `on_message` is counted in `handler_errors` and logged; the message counts as received.

    Args:
        client_id: unique on the broker; a second client of the same id takes over the session.
        subscriptions: topic filters, QoS 1, at each connection.
        on_message: called with (topic, payload).
        will: (topic, payload) that the broker publishes when we vanish.
        on_up: called each time the broker has taken the subscriptions.
    """

    __slots__ = (
        "_acks", "_inflight", "_next_id", "_on_message", "_on_up", "_paused", "_splitter", "_transport", "_waiting",
        "clean", "client_id", "connects", "duplicates", "handler_errors", "heard_s", "keepalive_s", "subscriptions",
        "up", "will", "window", "wrote_s",
    )  # fmt: skip

    def __init__(
        self,
        client_id: str,
        subscriptions: Sequence[str] = (),
        on_message: OnMessage | None = None,
        *,
        will: tuple[str, bytes] | None = None,
        on_up: Callable[[], None] | None = None,
        clean: bool = True,
        keepalive_s: int = 30,
        window: int = 64,
    ) -> None:
        self.client_id, self.subscriptions, self.will = client_id, tuple(subscriptions), will
        self.clean, self.keepalive_s, self.window = clean, keepalive_s, window
        self._on_message, self._on_up = on_message, on_up
        self._splitter = Splitter()
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._inflight: dict[int, bytes] = {}
        self._acks: dict[int, OnAck] = {}
        self._next_id = 1
        self._paused = False
        self.up = False
        self.connects = self.duplicates = self.handler_errors = 0
        self.heard_s = self.wrote_s = 0.0

    @property
    def in_flight(self) -> int:
        """Messages handed to the broker that it has not acknowledged."""
        return len(self._inflight)

    async def connect(self, broker: Broker, timeout_s: float = CONNECT_S) -> None:
        """Connect and subscribe; returns when the broker has taken both.

        Raises:
            EnvironmentFault: no answer in time, or refused.
        """
        loop = asyncio.get_running_loop()
        self._splitter, self._waiting = Splitter(), loop.create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await loop.create_connection(lambda: self, broker.host, broker.port)
                self._write(self._hello(broker))
                await self._waiting
        except (OSError, TimeoutError) as error:
            self.abort()
            raise EnvironmentFault(
                f"{self.client_id} cannot connect to {broker.host}:{broker.port}: {str(error) or 'no answer in time'}",
                "Check that the broker runs, and its limits of connections and open files.",
            ) from error
        finally:
            self._waiting = None

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, on_ack: OnAck | None = None
    ) -> bool:
        """Hand over a message. False when the link is down, slow, or its window is full: try again later."""
        if not self.up or self._paused or (qos and len(self._inflight) >= self.window):
            return False
        number = self._take_id() if qos else 0
        raw = packets.publish(topic, payload, number, retain=retain)
        if qos:
            self._inflight[number] = raw
            if on_ack:
                self._acks[number] = on_ack
        self._write(raw)
        return True

    def subscribe(self, filters: Sequence[str]) -> None:
        """Listen to more, now and at each connection to come."""
        self.subscriptions = (*self.subscriptions, *filters)
        if self.up:
            self._write(packets.subscribe(self._take_id(), filters))

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Listen to these no more."""
        self.subscriptions = tuple(item for item in self.subscriptions if item not in filters)
        if self.up:
            self._write(packets.unsubscribe(self._take_id(), filters))

    def ping(self) -> None:
        """Tell the broker that we live."""
        self._write(packets.PINGREQ)

    def close(self) -> None:
        """Leave in order: the will is not published."""
        if self._transport:
            self._write(packets.DISCONNECT)
            self._transport.close()

    def abort(self) -> None:
        """Vanish, as a gateway does that has lost its power: the broker publishes the will."""
        if self._transport:
            self._transport.abort()
        self.up = False

    # --- asyncio's side -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._paused = cast(asyncio.Transport, transport), False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport, self.up = None, False
        if self.clean:
            self._inflight.clear()
            self._acks.clear()
        self._fail(exc or ConnectionResetError("the broker closed the connection"))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False

    def data_received(self, data: bytes) -> None:
        self.heard_s = asyncio.get_running_loop().time()
        try:
            for packet in self._splitter.feed(data):
                self._take(packet)
        except WireError as error:
            self._fail(ConnectionAbortedError(str(error)))
            self.abort()

    def _take(self, packet: packets.Packet) -> None:
        match packet.kind:
            case Kind.PUBLISH:
                self._receive(packets.read_publish(packet))
            case Kind.PUBACK:
                number = int.from_bytes(packet.body[:2], "big")
                self._inflight.pop(number, None)
                if on_ack := self._acks.pop(number, None):
                    on_ack()
            case Kind.CONNACK:
                self._greeted(packet.body[1])
            case Kind.SUBACK if any(code & 0x80 for code in packet.body[2:]):
                self._fail(ConnectionRefusedError("the broker refused a subscription"))
            case Kind.SUBACK if not self.up:
                self._ready()
            case Kind.SUBACK | Kind.UNSUBACK | Kind.PINGRESP:
                pass
            case _:
                raise WireError(f"a broker does not send {packet.kind.name}")

    def _receive(self, message: packets.Published) -> None:
        self.duplicates += message.duplicate
        if self._on_message:
            try:
                self._on_message(message.topic, message.payload)
            except Exception:  # a message handler: one bad message must not end the connection
                self.handler_errors += 1
                log.exception("handling a message on %s failed", message.topic)
        if message.packet_id:
            self._write(packets.puback(message.packet_id))

    def _hello(self, broker: Broker) -> bytes:
        return packets.connect(
            self.client_id,
            clean=self.clean,
            keepalive_s=self.keepalive_s,
            will=self.will,
            username=broker.username,
            password=broker.password,
        )

    def _greeted(self, code: int) -> None:
        if code:
            self._fail(ConnectionRefusedError(f"the broker refused the connection (code {code})"))
        elif self.subscriptions:
            self._write(packets.subscribe(self._take_id(), self.subscriptions))
        else:
            self._ready()

    def _ready(self) -> None:
        self.up = True
        self.connects += 1
        for raw in self._inflight.values():  # of a persistent session
            self._write(packets.as_duplicate(raw))
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(None)
        if self._on_up:
            self._on_up()

    def _fail(self, error: Exception) -> None:
        if self._waiting and not self._waiting.done():
            self._waiting.set_exception(error if isinstance(error, OSError) else ConnectionError(str(error)))

    def _write(self, data: bytes) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.write(data)
            self.wrote_s = asyncio.get_running_loop().time()

    def _take_id(self) -> int:
        while self._next_id in self._inflight:
            self._next_id = self._next_id % PACKET_IDS + 1
        number = self._next_id
        self._next_id = number % PACKET_IDS + 1
        return number


class Crowd:
    """Many light clients on one broker: connected at a pace, kept alive, brought back with jitter when they fall.

    `run` until it is cancelled; one task and one heap serve them all.

    Args:
        connects_per_s: pace of new connections.
        seed: of the jitter.
    """

    def __init__(
        self, broker: Broker, clients: Sequence[LightClient], *, connects_per_s: float = 500.0, seed: int = 0
    ) -> None:
        self.broker, self.clients = broker, tuple(clients)
        self.failures = 0
        self.last_error = ""
        self._pace_s = 1.0 / connects_per_s
        self._random = random.Random(seed)
        self._tries = dict.fromkeys(range(len(self.clients)), 0)
        self._due: list[tuple[float, int]] = []
        self._connecting: dict[int, asyncio.Task[None]] = {}

    @property
    def up(self) -> int:
        """How many are connected and subscribed."""
        return sum(client.up for client in self.clients)

    async def run(self) -> None:
        """Connect all and keep them, until cancelled; then all leave in order."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        self._due = [(began_s + number * self._pace_s, number) for number in range(len(self.clients))]
        waiting = set(range(len(self.clients)))
        looked_s = began_s
        try:
            while True:
                now_s = loop.time()
                while self._due and self._due[0][0] <= now_s and len(self._connecting) < CONNECTING_MAX:
                    _, number = heapq.heappop(self._due)
                    waiting.discard(number)
                    self._connecting[number] = asyncio.create_task(self._connect(number))
                if now_s - looked_s >= TICK_S:
                    looked_s = now_s
                    self._look_after(now_s, waiting)
                await asyncio.sleep(max(0.002, min(TICK_S, self._due[0][0] - now_s if self._due else TICK_S)))
        finally:
            for task in list(self._connecting.values()):
                task.cancel()
            for client in self.clients:
                client.close()

    async def wait_up(self, timeout_s: float, share: float = 1.0) -> None:
        """Wait until so many are connected.

        Raises:
            EnvironmentFault: not within `timeout_s`; says how many are, and what the last failure was.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.up < share * len(self.clients):
                    await asyncio.sleep(0.1)
                return
        raise EnvironmentFault(
            f"{self.up} of {len(self.clients)} clients are connected after {timeout_s:g} s ({self.last_error})",
            "Check the broker's limits: connections, open files (ulimit -n), memory.",
        )

    async def _connect(self, number: int) -> None:
        try:
            await self.clients[number].connect(self.broker)
            self._tries[number] = 0
        except EnvironmentFault as error:
            self.failures += 1
            self.last_error = str(error)
        finally:
            self._connecting.pop(number, None)

    def _look_after(self, now_s: float, waiting: set[int]) -> None:
        """Ping those that said nothing for half their keep-alive, drop the deaf, plan the return of the fallen."""
        for number, client in enumerate(self.clients):
            if client.up:
                if now_s - client.heard_s > 1.5 * client.keepalive_s:
                    client.abort()
                elif now_s - max(client.wrote_s, client.heard_s) > client.keepalive_s / 2:
                    client.ping()
            elif number not in waiting and number not in self._connecting:
                delay_s = min(AGAIN_S_MAX, self._random.uniform(*AGAIN_S) * 2 ** self._tries[number])
                self._tries[number] = min(self._tries[number] + 1, 5)
                waiting.add(number)
                heapq.heappush(self._due, (now_s + delay_s, number))
