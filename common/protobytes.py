"""Cuts large bytes fields out of a protobuf message without copying them. No I/O, no protobuf.

Parsing 6 MB of weights with protobuf copies them, and reading the field copies them again. So the large fields are cut
out first: what is left (the skeleton, a few hundred bytes) is parsed as usual, and the pieces stay views of the bytes
that came from the network. Wire format: https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Sequence

from common.errors import WireError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES_MAX = 10


def cut(data: bytes, path: Sequence[int]) -> tuple[bytes, list[memoryview]]:
    """Take the field at `path` out of every message that leads to it.

    Args:
        data: a whole protobuf message.
        path: field numbers from the outermost message to the bytes field.

    Returns:
        The message with those fields left out, and a view of each, in order; a message that could have the field and
        does not (proto3 leaves empty ones out) gives an empty view, so that views and messages correspond.

    Raises:
        WireError: not the wire format of protobuf, or a field twice where one is allowed.
    """
    pieces: list[memoryview] = []
    skeleton = _cut(data, 0, len(data), tuple(path), pieces)
    return bytes(skeleton), pieces


def _cut(data: bytes, at: int, end: int, path: tuple[int, ...], pieces: list[memoryview]) -> bytearray:
    left = bytearray()
    found = 0
    while at < end:
        begin = at
        tag, at = _varint(data, at, end)
        start, at = _value(data, at, end, tag & 7)
        if tag >> 3 != path[0] or tag & 7 != _BYTES:
            left += data[begin:at]
        elif len(path) == 1:
            found += 1
            pieces.append(memoryview(data)[start:at])
        else:
            inner = _cut(data, start, at, path[1:], pieces)
            left += _as_varint(tag) + _as_varint(len(inner)) + inner
    if len(path) == 1 and found != 1:
        if found:
            raise WireError("a protobuf field came twice")
        pieces.append(memoryview(data)[:0])
    return left


def _value(data: bytes, at: int, end: int, kind: int) -> tuple[int, int]:
    """Begin and end of a field's value whose tag ended at `at`."""
    if kind == _VARINT:
        return at, _varint(data, at, end)[1]
    if kind == _BYTES:
        length, start = _varint(data, at, end)
    elif kind in (_FIXED64, _FIXED32):
        length, start = (8 if kind == _FIXED64 else 4), at
    else:
        raise WireError(f"protobuf wire type {kind} is not known")
    if start + length > end:
        raise WireError("a protobuf field ends after its message")
    return start, start + length


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    if at < end and data[at] < 0x80:  # most are one byte
        return data[at], at + 1
    number = 0
    for position in range(min(_VARINT_BYTES_MAX, end - at)):
        byte = data[at + position]
        number |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return number, at + position + 1
    raise WireError("a protobuf number does not end")


def _as_varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
