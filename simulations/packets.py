"""MQTT 3.1.1 packets as bytes: what a light client sends, and how a stream of bytes falls apart into packets.

No I/O. Knows only what this project uses: no QoS 2. The fault proxy cuts streams into packets by it,
the light client speaks it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from common.errors import WireError

PACKET_BYTES_MAX: Final = 64 * 1024 * 1024 + 64 * 1024
"""A message at the bound of `common.codec` and its topic."""
_LEVEL: Final = b"\x00\x04MQTT\x04"
_CLEAN, _WILL, _WILL_QOS_1, _WILL_RETAIN = 0x02, 0x04, 0x08, 0x20
_RETAIN, _DUP = 0x01, 0x08


class Kind(IntEnum):
    """The type of a packet: its first four bits."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet; `raw` is all of it as it came."""

    kind: Kind
    flags: int
    body: bytes
    raw: bytes


@dataclass(frozen=True, slots=True)
class Published:
    """What a PUBLISH says; `packet_id` is 0 at QoS 0."""

    topic: str
    payload: bytes
    packet_id: int
    retain: bool
    duplicate: bool


class Splitter:
    """Cuts what arrives into packets, however the network has sliced it."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()

    @property
    def held_bytes(self) -> int:
        """Of a packet that has begun and not ended."""
        return len(self._held)

    def feed(self, data: bytes) -> Iterator[Packet]:
        """The packets that are whole now. Consume all of it: what is not taken stays held.

        Raises:
            WireError: no MQTT, or a packet over the bound.
        """
        self._held += data
        at = 0
        try:
            while head := _read_head(self._held, at):
                begin, end = head
                if end > len(self._held):
                    break
                raw = bytes(self._held[at:end])
                try:
                    kind = Kind(raw[0] >> 4)
                except ValueError as error:
                    raise WireError(f"a packet of type {raw[0] >> 4} is no MQTT 3.1.1") from error
                body, at = raw[begin - at :], end
                yield Packet(kind, raw[0] & 0x0F, body, raw)
        finally:
            del self._held[:at]


def _read_head(held: bytearray, at: int) -> tuple[int, int] | None:
    """Where the body of the packet at `at` begins and ends; None when the length is not all there."""
    length = 0
    for number in range(4):
        place = at + 1 + number
        if place >= len(held):
            return None
        length |= (held[place] & 0x7F) << (7 * number)
        if held[place] < 0x80:
            if length > PACKET_BYTES_MAX:
                raise WireError(f"a packet of {length} bytes is over the bound of {PACKET_BYTES_MAX}")
            return place + 1, place + 1 + length
    raise WireError("the length of a packet has more than four bytes")


def connect(
    client_id: str,
    *,
    clean: bool = True,
    keepalive_s: int = 60,
    will: tuple[str, bytes] | None = None,
    will_retain: bool = False,
    username: str | None = None,
    password: str | None = None,
) -> bytes:
    """CONNECT; the will goes at QoS 1."""
    flags = _CLEAN if clean else 0
    parts = [_text(client_id)]
    if will:
        flags |= _WILL | _WILL_QOS_1 | (_WILL_RETAIN if will_retain else 0)
        parts += [_text(will[0]), len(will[1]).to_bytes(2, "big"), will[1]]
    if username is not None:
        flags |= 0x80
        parts.append(_text(username))
        if password is not None:
            flags |= 0x40
            parts.append(_text(password))
    return _packet(Kind.CONNECT, 0, _LEVEL, bytes([flags]), keepalive_s.to_bytes(2, "big"), *parts)


def publish(topic: str, payload: bytes, packet_id: int = 0, *, retain: bool = False, duplicate: bool = False) -> bytes:
    """PUBLISH at QoS 1 with a packet id, else at QoS 0."""
    flags = (0x02 if packet_id else 0) | (_RETAIN if retain else 0) | (_DUP if duplicate else 0)
    number = packet_id.to_bytes(2, "big") if packet_id else b""
    return _packet(Kind.PUBLISH, flags, _text(topic), number, payload)


def read_publish(packet: Packet) -> Published:
    """What a PUBLISH says.

    Raises:
        WireError: it is cut off, or of QoS 2.
    """
    qos = packet.flags >> 1 & 3
    end = 2 + int.from_bytes(packet.body[:2], "big")
    payload_at = end + (2 if qos else 0)
    if qos > 1 or len(packet.body) < max(2, payload_at):
        raise WireError("a PUBLISH is cut off, or of a quality of service that was not asked for")
    try:
        topic = packet.body[2:end].decode()
    except UnicodeDecodeError as error:
        raise WireError("a topic is not UTF-8") from error
    return Published(
        topic=topic,
        payload=packet.body[payload_at:],
        packet_id=int.from_bytes(packet.body[end:payload_at], "big"),
        retain=bool(packet.flags & _RETAIN),
        duplicate=bool(packet.flags & _DUP),
    )


def puback(packet_id: int) -> bytes:
    """PUBACK."""
    return _packet(Kind.PUBACK, 0, packet_id.to_bytes(2, "big"))


def subscribe(packet_id: int, filters: Iterable[str], qos: int = 1) -> bytes:
    """SUBSCRIBE to topic filters."""
    return _packet(Kind.SUBSCRIBE, 2, packet_id.to_bytes(2, "big"), *(_text(item) + bytes([qos]) for item in filters))


def unsubscribe(packet_id: int, filters: Iterable[str]) -> bytes:
    """UNSUBSCRIBE from topic filters."""
    return _packet(Kind.UNSUBSCRIBE, 2, packet_id.to_bytes(2, "big"), *map(_text, filters))


def as_duplicate(raw: bytes) -> bytes:
    """The same PUBLISH at QoS 1, said to be a repetition."""
    return bytes([raw[0] | _DUP]) + raw[1:]


PINGREQ: Final = b"\xc0\x00"
PINGRESP: Final = b"\xd0\x00"
DISCONNECT: Final = b"\xe0\x00"


def _packet(kind: Kind, flags: int, *parts: bytes) -> bytes:
    length = left = sum(map(len, parts))
    if length > PACKET_BYTES_MAX:
        raise WireError(f"a packet of {length} bytes is over the bound of {PACKET_BYTES_MAX}")
    head = bytearray([kind << 4 | flags])
    while True:
        left, digit = left >> 7, left & 0x7F
        head.append(digit | (0x80 if left else 0))
        if not left:
            return b"".join((head, *parts))


def _text(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(2, "big") + data
