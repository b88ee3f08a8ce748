"""The last seconds of a stream as packets, still encoded: for decoding after the fact, and for clips.

Packets are kept in groups, each begun by a key frame, because nothing else can be decoded from its beginning. Bounded
in time and in bytes; the group that is being received is never let go.
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

GROUP_PACKETS_MAX: Final = 1500
"""A minute at 25 fps: an encoder that never sends another key frame must not fill the memory."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One encoded frame; `data` is the `av.Packet`, which counts its own references: nothing is copied."""

    captured_at_ns: int
    is_key: bool
    size: int
    data: Any

    def moved(self, by_ns: int) -> "Packet":
        """The same packet as if captured so much later."""
        return Packet(self.captured_at_ns + by_ns, self.is_key, self.size, self.data)


@dataclass(slots=True, weakref_slot=True, eq=False)
class Group:
    """A key frame and what depends on it, in decoding order."""

    packets: list[Packet] = field(default_factory=list)
    size: int = 0

    def until(self, at_ns: int) -> tuple[Packet, ...]:
        """From the key frame to the last packet not later than `at_ns`; at least the key frame."""
        end = 1
        for end in range(len(self.packets), 1, -1):
            if self.packets[end - 1].captured_at_ns <= at_ns:
                break
        else:
            end = 1
        return tuple(self.packets[:end])


class PacketRing:
    """Whole groups of the last `seconds`, at most `bytes_max`. Written by one thread, read by any."""

    def __init__(self, seconds: float, bytes_max: int) -> None:
        self._span_ns = round(seconds * 1e9)
        self._bytes_max = bytes_max
        self._groups: deque[Group] = deque()
        self._bytes = 0
        self._lock = threading.Lock()

    def bound(self, bytes_max: int) -> None:
        """Another bound on the bytes, from the next packet on."""
        self._bytes_max = bytes_max

    def append(self, packet: Packet) -> Group | None:
        """Take a packet; returns its group. Those before the first key frame, and of a group without end, are not
        kept: None."""
        with self._lock:
            if packet.is_key:
                self._groups.append(Group())
            elif not self._groups or len(self._groups[-1].packets) >= GROUP_PACKETS_MAX:
                return None
            group = self._groups[-1]
            group.packets.append(packet)
            group.size += packet.size
            self._bytes += packet.size
            while len(self._groups) > 1 and self._has_passed(packet.captured_at_ns):
                self._bytes -= self._groups.popleft().size
            return group

    def _has_passed(self, now_ns: int) -> bool:
        """Whether the oldest group can go: the next one alone covers the span, or there are too many bytes."""
        return self._groups[1].packets[0].captured_at_ns <= now_ns - self._span_ns or self._bytes > self._bytes_max

    def group(self, at_ns: int) -> Group | None:
        """The group that was being received at an instant: the last one begun not later, else the oldest."""
        with self._lock:
            for group in reversed(self._groups):
                if group.packets[0].captured_at_ns <= at_ns:
                    return group
            return self._groups[0] if self._groups else None

    def between(self, from_ns: int, to_ns: int) -> Sequence[Packet]:
        """Packets of an interval, begun at the key frame at or before `from_ns`: what a clip is copied from."""
        with self._lock:
            packets = [packet for group in self._groups for packet in group.packets]
        begin = 0
        for index, packet in enumerate(packets):
            if packet.captured_at_ns > to_ns:
                packets = packets[:index]
                break
            if packet.is_key and packet.captured_at_ns <= from_ns:
                begin = index
        return packets[begin:]

    def clear(self) -> None:
        """Forget all: after a reconnect packets of before do not continue into those of after."""
        with self._lock:
            self._groups.clear()
            self._bytes = 0

    @property
    def bytes(self) -> int:
        """Size of the packets held."""
        with self._lock:
            return self._bytes
