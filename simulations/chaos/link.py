"""A bad link between a gateway and its broker: a TCP proxy that knows enough MQTT to lose, repeat and swap messages.

`Weather` says what the link does; it can change at any time. Bytes are delayed, paced, sliced; connections are reset or
fall silent (half-open: both ends think that they are connected); single messages are lost though their receiver has
acknowledged them, doubled, or come in another order. All links run on one loop in one thread.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from common.errors import WireError
from simulations import packets
from simulations.packets import Kind, Packet, Splitter

READ_BYTES: Final = 65_536
QUEUE_MAX: Final = 64
"""Packets under way in one direction; above it the proxy stops reading, as a full pipe does."""
LOOK_S: Final = 0.1
SWAP_S: Final = 0.5
"""A message that was held back goes after so long when no other overtakes it."""
CONNECT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Weather:
    """What a link does. Probabilities are per message."""

    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    """Uniform around the latency."""
    bits_per_s: float = 0.0
    """0 is without limit."""
    reset_s: tuple[float, float] | None = None
    """Every connection is reset after a time drawn from this range."""
    silent: bool = False
    slice_bytes: int = 0
    """Written in pieces of so many bytes; 0 writes what has come."""
    lost_receipts: float = 0.0
    doubled: float = 0.0
    swapped: float = 0.0


CLEAR: Final = Weather()


class Links:
    """The links of a run, by name. `start`, `add`, `set`, `stop`.

    Args:
        seed: of every random choice.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._weather: dict[str, Weather] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter()
        """Resets, and messages lost, doubled and swapped, since the start."""

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def add(self, name: str, port: int) -> int:
        """A link to a port of the loopback; returns its own port."""
        self._weather[name] = CLEAR
        return asyncio.run_coroutine_threadsafe(self._serve(name, port), self._loop).result(CONNECT_S)

    def set(self, name: str, weather: Weather) -> None:
        """Change the weather of a link, of open connections too."""
        self._weather[name] = weather

    def clear(self) -> None:
        """Good weather everywhere."""
        self._weather = dict.fromkeys(self._weather, CLEAR)

    def stop(self) -> None:
        """Close everything and end the thread."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(2 * CONNECT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CONNECT_S)
        self._loop.close()

    async def _serve(self, name: str, port: int) -> int:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            if task:
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            with contextlib.suppress(OSError, TimeoutError, WireError, asyncio.CancelledError):
                await self._connection(name, port, reader, writer)
            _reset(writer)

        server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=READ_BYTES)
        self._servers.append(server)
        own: int = server.sockets[0].getsockname()[1]
        return own

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(
        self, name: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async with asyncio.timeout(CONNECT_S):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port, limit=READ_BYTES)
        up, down = _Direction(far_writer), _Direction(writer)
        works = [
            self._take(name, reader, up, down, to_broker=True),
            self._take(name, far_reader, down, up, to_broker=False),
            self._give(name, up),
            self._give(name, down),
            self._reset_later(name),
        ]
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            _reset(far_writer)

    async def _take(
        self, name: str, reader: asyncio.StreamReader, onward: "_Direction", back: "_Direction", *, to_broker: bool
    ) -> None:
        """Read packets, do to them what the weather says, put them under way. Ends with the connection."""
        splitter = Splitter()
        held: bytes | None = None
        while True:
            try:
                async with asyncio.timeout(SWAP_S if held else None):
                    data = await reader.read(READ_BYTES)
            except TimeoutError:
                data = None
            if data is None:
                await self._put(name, onward, held or b"")
                held = None
                continue
            if not data:
                return
            for packet in splitter.feed(data):
                for raw in self._mangle(self._weather[name], packet, back, to_broker=to_broker):
                    if held is None and self._happens(self._weather[name].swapped, packet):
                        held = raw
                        continue
                    await self._put(name, onward, raw)
                    if held is not None:
                        self.counts["swapped"] += 1
                        await self._put(name, onward, held)
                        held = None

    def _mangle(self, weather: Weather, packet: Packet, back: "_Direction", *, to_broker: bool) -> Iterator[bytes]:
        """None, one or two packets instead of this one."""
        if not to_broker and self._happens(weather.lost_receipts, packet):
            message = packets.read_publish(packet)
            if message.topic.endswith("/receipt"):
                self.counts["receipts lost"] += 1
                if message.packet_id:  # the broker must believe that it has arrived
                    back.queue.put_nowait((0.0, packets.puback(message.packet_id)))
                return
        yield packet.raw
        if self._happens(weather.doubled, packet):
            self.counts["doubled"] += 1
            yield packets.as_duplicate(packet.raw) if packet.flags & 0x06 else packet.raw

    def _happens(self, probability: float, packet: Packet) -> bool:
        return packet.kind is Kind.PUBLISH and probability > 0 and self._random.random() < probability

    async def _put(self, name: str, onward: "_Direction", raw: bytes) -> None:
        weather = self._weather[name]
        delay_s = (weather.latency_ms + self._random.uniform(-1, 1) * weather.jitter_ms) / 1000
        onward.last_due_s = max(onward.last_due_s, self._loop.time() + delay_s)  # TCP keeps the order
        while onward.queue.qsize() >= QUEUE_MAX:
            await asyncio.sleep(LOOK_S)
        onward.queue.put_nowait((onward.last_due_s, raw))

    async def _give(self, name: str, onward: "_Direction") -> None:
        """Write what is due, as fast and in such pieces as the weather allows."""
        while True:
            due_s, raw = await onward.queue.get()
            if (wait_s := due_s - self._loop.time()) > 0:
                await asyncio.sleep(wait_s)
            at = 0
            while at < len(raw):
                while self._weather[name].silent:
                    await asyncio.sleep(LOOK_S)
                weather = self._weather[name]
                size = weather.slice_bytes or (
                    max(64, int(weather.bits_per_s / 80)) if weather.bits_per_s else len(raw)
                )
                piece = raw[at : at + size]
                onward.writer.write(piece)
                await onward.writer.drain()
                at += len(piece)
                if weather.bits_per_s:
                    await asyncio.sleep(8 * len(piece) / weather.bits_per_s)
                elif weather.slice_bytes:
                    await asyncio.sleep(0)  # so that each piece is a segment of its own, others in between

    async def _reset_later(self, name: str) -> None:
        """Ends, and with it the connection, when the weather says so."""
        while True:
            limits = self._weather[name].reset_s
            if limits is None:
                await asyncio.sleep(LOOK_S)
                continue
            await asyncio.sleep(self._random.uniform(*limits))
            if self._weather[name].reset_s is not None:
                self.counts["resets"] += 1
                return


class _Direction:
    """What is under way to one end."""

    __slots__ = ("last_due_s", "queue", "writer")

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()  # bounded by `_put`; a faked PUBACK may pass
        self.last_due_s = 0.0
        found: socket.socket = writer.get_extra_info("socket")
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST: what was under way is gone on both sides."""
    found = writer.get_extra_info("socket")
    if found is not None:
        with contextlib.suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
