"""The centre's connection to the broker: a lean MQTT 3.1.1 client for one that reads much and in order.

Decides how fast to read: a packet is taken up, and acknowledged, only while `has_room` says so; until then the bytes
stay with the broker. What is published is at QoS 1 towards the broker but not kept for another connection: everything
that the centre says is asked for again by who misses it (docs/decisions/0047). paho, with its locks and callbacks
around each packet, took most of the time of a whole ingest; edges still use it (`common.mqtt`).
"""

import asyncio
import contextlib
import logging
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence

from common import mqtt_packets as packets
from common.codec import PAYLOAD_BYTES_MAX
from common.errors import EnvironmentFault, WireError
from common.mqtt import Broker, Handler
from common.tls import client_context
from common.topics import RELEASE

log = logging.getLogger(__name__)

KEEPALIVE_S = 30
CONNECT_S = 20.0
RETRY_S = (1.0, 4.0)
"""Between two attempts to connect, drawn anew each time."""
ROOM_S = 0.005
"""How soon to ask again when there was no room."""
READ_BYTES = 1 << 20
OUTBOX_BYTES_MAX = 32 << 20
"""Bytes published and not yet taken by the broker; above it `publish` says no."""
TOPIC_BYTES_MAX = 64 * 1024


class CentreLink:
    """Connects, subscribes again on every connect, and comes back by itself. Offers what `common.mqtt.Link` asks for.

    Args:
        on_message: called on the link's thread with (topic, payload). An exception is counted in `handler_errors`,
            logged with its traceback, and the connection goes on.
        has_room: asked before each message is taken up.
        on_oversize: called with (topic, bytes) for a message over the bound of payloads, which is skipped.
    """

    def __init__(
        self,
        broker: Broker,
        client_id: str,
        filters: Sequence[str],
        on_message: Handler,
        *,
        has_room: Callable[[], bool] = lambda: True,
        on_oversize: Callable[[str, int], None] = lambda _topic, _size: None,
    ) -> None:
        self.broker, self.client_id, self.filters = broker, client_id, tuple(filters)
        self.on_message, self.has_room, self.on_oversize = on_message, has_room, on_oversize
        self.handler_errors = self.connects = 0
        self.last_error = ""
        self.bytes_out: Counter[str] = Counter()
        """Of messages handed to the broker, topics and headers too, by kind."""
        self.outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._number = 0
        self._lock = threading.Lock()
        self._up = threading.Event()
        self._stopping = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: _Session | None = None
        self._context = client_context(broker.ca_file, broker.cert_file, broker.key_file) if broker.ca_file else None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="centre-link", daemon=True)

    @property
    def connected(self) -> bool:
        return self._up.is_set()

    @property
    def alive(self) -> bool:
        """Whether the thread that reads runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to connect, and go on trying until `stop`. Does not wait."""
        self._thread.start()

    def wait_connected(self, timeout_s: float) -> None:
        """Raises:
        EnvironmentFault: not connected, or not allowed to subscribe, within `timeout_s`.
        """
        if not self._up.wait(timeout_s):
            raise EnvironmentFault(
                f"no connection to the broker at {self.broker.host}:{self.broker.port} in {timeout_s:g} s"
                f"{f' ({self.last_error})' if self.last_error else ''}",
                "Check that it runs, the address, and the firewall; `headframe doctor` tests each.",
            )

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Any thread. False when the link is down or too much waits for the broker: try again later."""
        loop = self._loop
        with self._lock:
            if not self.connected or loop is None or self._outbox_bytes > OUTBOX_BYTES_MAX:
                return False
            self._number = self._number % 0xFFFF + 1
            packet = packets.publish(topic, payload, self._number, retain=retain)
            self.bytes_out["release" if topic.startswith(RELEASE) else topic.rpartition("/")[2]] += len(packet)
            idle = not self.outbox
            self.outbox.append(packet)
            self._outbox_bytes += len(packet)
        if idle:
            with contextlib.suppress(RuntimeError):  # the loop has just ended
                loop.call_soon_threadsafe(self._flush)
        return True

    def stop(self, timeout_s: float = 10.0) -> None:
        """Send what waits, disconnect, and end the thread."""
        self._stopping.set()
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._leave)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def set_up(self, *, up: bool, error: str = "") -> None:
        """Called by the session on the link's thread."""
        if error:
            self.last_error = error
            log.warning("broker: %s", error)
        if up:
            self.connects += 1
            self._up.set()
            return
        self._up.clear()
        with self._lock:
            self.outbox.clear()
            self._outbox_bytes = 0

    def _flush(self) -> None:
        session = self._session
        with self._lock:
            data = b"".join(self.outbox)
            self.outbox.clear()
            self._outbox_bytes = session.write(data) if session else 0

    def _leave(self) -> None:
        if self._session:
            self._flush()
            self._session.leave()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            try:
                await self._connect(self._loop)
            except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
                self.last_error = str(error) or type(error).__name__
            until_s = self._loop.time() + random.uniform(*RETRY_S)
            while not self._stopping.is_set() and self._loop.time() < until_s:
                await asyncio.sleep(0.05)

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> None:
        """One connection, to its end."""
        async with asyncio.timeout(CONNECT_S):
            _, session = await loop.create_connection(
                lambda: _Session(self, loop), self.broker.host, self.broker.port, ssl=self._context
            )
        self._session = session
        try:
            if self._stopping.is_set():
                session.leave()
            await session.closed
        finally:
            self._session = None
            self.set_up(up=False)


class _Session(asyncio.BufferedProtocol):
    """One connection, on the thread of its loop. Packets are read in place from one buffer."""

    def __init__(self, link: CentreLink, loop: asyncio.AbstractEventLoop) -> None:
        self._link, self._loop = link, loop
        self.closed: asyncio.Future[None] = loop.create_future()
        self._buffer = bytearray(READ_BYTES)
        self._start = self._filled = 0
        self._skip = 0
        """Bytes that are still to come of a message over the bound."""
        self._paused = False
        self._heard = True
        self._timer: asyncio.TimerHandle | None = None

    def write(self, data: bytes) -> int:
        """Hand bytes to the transport; returns how many wait there."""
        if self._transport.is_closing():
            return 0
        self._transport.write(data)
        return self._transport.get_write_buffer_size()

    def leave(self) -> None:
        """Disconnect after what was written."""
        self.write(packets.DISCONNECT)
        self._transport.close()

    # --- asyncio calls these -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  what a stream connection has
        self._transport = transport
        broker = self._link.broker
        self.write(packets.connect(self._link.client_id, KEEPALIVE_S, broker.username, broker.password))
        self._timer = self._loop.call_later(KEEPALIVE_S / 2, self._beat)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        if exc:
            log.info("broker connection lost: %s", exc)
        if not self.closed.done():
            self.closed.set_result(None)

    def get_buffer(self, _sizehint: int) -> memoryview:
        if self._start:
            waiting = self._buffer[self._start : self._filled]
            self._buffer[: len(waiting)] = waiting
            self._start, self._filled = 0, len(waiting)
        if self._filled == len(self._buffer):
            self._buffer.extend(bytes(len(self._buffer)))  # one message is larger; at most PAYLOAD_BYTES_MAX
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._heard = True
        skipped = min(self._skip, nbytes)
        if skipped:  # what is skipped lies at the end of the buffer; what comes after it moves there
            self._skip -= skipped
            after = self._buffer[self._filled + skipped : self._filled + nbytes]
            self._buffer[self._filled : self._filled + len(after)] = after
            nbytes -= skipped
        self._filled += nbytes
        self._take_up()

    # --- packets -------------------------------------------------------------------------------

    def _take_up(self) -> None:
        """All packets that are there and have room; then acknowledge them at once."""
        answers: list[bytes] = []
        try:
            with memoryview(self._buffer) as view:
                while self._take_one(view, answers):
                    pass
        except WireError as error:
            self._give_up(str(error))
        if answers:
            self.write(b"".join(answers))
        if self._start == self._filled:
            self._start = self._filled = 0
            if len(self._buffer) > READ_BYTES:
                self._buffer = bytearray(READ_BYTES)

    def _take_one(self, view: memoryview, answers: list[bytes]) -> bool:
        packet = packets.find_packet(view, self._start, self._filled)
        if packet is None or self._transport.is_closing():
            return False
        if packet.end - packet.body > PAYLOAD_BYTES_MAX + TOPIC_BYTES_MAX:
            return self._take_oversize(view, packet, answers)
        if packet.end > self._filled:
            return False
        if packet.kind == packets.PUBLISH:
            if not self._link.has_room():
                self._pause()
                return False
            topic, number, payload = packets.read_publish(view, packet)
            self._handle(topic, bytes(payload))
            payload.release()
            if number:
                answers.append(packets.acknowledge(number))
        else:
            self._answer(packet, bytes(view[packet.body : packet.end]))
        self._start = packet.end
        return True

    def _take_oversize(self, view: memoryview, packet: packets.Packet, answers: list[bytes]) -> bool:
        """Its topic is read and it is acknowledged, or the broker would send it for ever; the rest is skipped."""
        if packet.kind != packets.PUBLISH:
            raise WireError("an MQTT packet is over every bound")
        if self._filled - packet.body < TOPIC_BYTES_MAX + 4:
            return False
        head = packets.Packet(packet.kind, packet.flags, packet.body, self._filled)
        topic, number, rest = packets.read_publish(view, head)
        rest.release()
        self._link.on_oversize(topic, packet.end - packet.body)
        if number:
            answers.append(packets.acknowledge(number))
        self._skip = packet.end - self._filled
        self._start = min(packet.end, self._filled)
        self._skip = max(0, self._skip)
        return True

    def _handle(self, topic: str, payload: bytes) -> None:
        try:
            self._link.on_message(topic, payload)
        except Exception:  # a message handler: one bad message must not end the connection
            self._link.handler_errors += 1
            log.exception("handling a message on %s failed", topic)

    def _answer(self, packet: packets.Packet, body: bytes) -> None:
        if packet.kind == packets.CONNACK:
            if body[1:2] != b"\x00":
                self._give_up(f"the broker refused the connection (code {body[1:2].hex()})")
                return
            self.write(packets.subscribe(1, self._link.filters))
        elif packet.kind == packets.SUBACK:
            if any(code >= packets.REFUSED for code in body[2:]):
                self._give_up("the broker does not take our subscriptions; see its access list, and its bound of them")
                return
            self._link.set_up(up=True)

    def _give_up(self, reason: str) -> None:
        self._link.set_up(up=False, error=reason)
        self._transport.close()

    def _pause(self) -> None:
        """No room: leave the bytes with the broker, and ask again soon."""
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._loop.call_later(ROOM_S, self._resume)

    def _resume(self) -> None:
        if self._transport.is_closing() or not self._paused:
            return
        if not self._link.has_room():
            self._loop.call_later(ROOM_S, self._resume)
            return
        self._paused = False
        self._take_up()
        if not self._paused:
            self._transport.resume_reading()

    def _beat(self) -> None:
        """Twice per keep-alive: a ping, and the end of a connection on which nothing was heard since the last."""
        if not self._heard and not self._paused:
            self._give_up(f"the broker has been silent for {KEEPALIVE_S / 2:g} s")
            return
        self._heard = False
        self.write(packets.PING)
        self._timer = self._loop.call_later(KEEPALIVE_S / 2, self._beat)
