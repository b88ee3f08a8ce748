"""MQTT 3.1.1 packets as bytes (OASIS standard, chapters 2 and 3): what a subscriber that is in a hurry needs. No I/O.

Decides only what the bytes mean. `cloud.link` keeps the connection; edges use paho (`common.mqtt`).
"""

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from common.errors import WireError

CONNECT: Final = 1
CONNACK: Final = 2
PUBLISH: Final = 3
PUBACK: Final = 4
SUBSCRIBE: Final = 8
SUBACK: Final = 9
PINGRESP: Final = 13
PING: Final = b"\xc0\x00"
DISCONNECT: Final = b"\xe0\x00"
REFUSED: Final = 0x80
"""Return code of a SUBACK for a filter that the broker's ACL does not allow."""
HEADER_MAX: Final = 5
_U16 = struct.Struct("!H")
_PUBACK = struct.Struct("!BBH")


class Packet(NamedTuple):
    """Where a packet lies in a buffer; its body may not be there yet."""

    kind: int
    flags: int
    body: int
    end: int


def find_packet(buffer: bytearray | memoryview, start: int, filled: int) -> Packet | None:
    """The packet that begins at `start` of the first `filled` bytes; None while its length is not all there.

    Raises:
        WireError: the length has more than four digits.
    """
    length, shift, at = 0, 0, start + 1
    while at < filled and shift < 28:
        digit = buffer[at]
        at += 1
        length |= (digit & 0x7F) << shift
        if digit < 0x80:
            return Packet(buffer[start] >> 4, buffer[start] & 0x0F, at, at + length)
        shift += 7
    if filled - start >= HEADER_MAX:
        raise WireError("an MQTT packet has a length of more than four digits")
    return None


def read_publish(buffer: memoryview, packet: Packet) -> tuple[str, int, memoryview]:
    """Topic, packet id (0 at QoS 0) and payload of a PUBLISH that is all there.

    Raises:
        WireError: its parts do not fit into it.
    """
    at = packet.body + 2 + int.from_bytes(buffer[packet.body : packet.body + 2], "big")
    payload = at + 2 if packet.flags & 0x06 else at
    if payload > packet.end:
        raise WireError("an MQTT message is shorter than its topic")
    try:
        topic = str(buffer[packet.body + 2 : at], "utf-8")
    except UnicodeDecodeError as error:
        raise WireError("an MQTT topic is no UTF-8") from error
    number = int.from_bytes(buffer[at:payload], "big") if payload > at else 0
    return topic, number, buffer[payload : packet.end]


def connect(client_id: str, keepalive_s: int, username: str | None = None, password: str | None = None) -> bytes:
    """CONNECT with a clean session and no will."""
    flags = 0x02 | (0x80 if username else 0) | (0x40 if username and password is not None else 0)
    body = _text("MQTT") + bytes([4, flags]) + _U16.pack(keepalive_s) + _text(client_id)
    if username:
        body += _text(username) + (_text(password) if password is not None else b"")
    return bytes([CONNECT << 4]) + _length(len(body)) + body


def subscribe(number: int, filters: Iterable[str]) -> bytes:
    """SUBSCRIBE at QoS 1."""
    body = _U16.pack(number) + b"".join(_text(name) + b"\x01" for name in filters)
    return bytes([SUBSCRIBE << 4 | 2]) + _length(len(body)) + body


def publish(topic: str, payload: bytes, number: int, *, retain: bool = False) -> bytes:
    """PUBLISH at QoS 1 under a packet id that is not 0."""
    name = _text(topic)
    head = bytes([PUBLISH << 4 | 2 | retain]) + _length(len(name) + 2 + len(payload))
    return b"".join((head, name, _U16.pack(number), payload))


def acknowledge(number: int) -> bytes:
    """PUBACK."""
    return _PUBACK.pack(PUBACK << 4, 2, number)


def _text(text: str) -> bytes:
    data = text.encode()
    return _U16.pack(len(data)) + data


def _length(length: int) -> bytes:
    digits = bytearray()
    while length >= 0x80:
        digits.append(length & 0x7F | 0x80)
        length >>= 7
    digits.append(length)
    return bytes(digits)
