"""The fields of a protobuf message as places in its bytes, and large ones cut out uncopied. No I/O, no protobuf.

Parsing 6 MB of weights with protobuf copies them, and reading the field copies them again. So the large fields are cut
out first: what is left (the skeleton, a few hundred bytes) is parsed as usual, and the pieces stay views of the bytes
that came from the network. Wire format: https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterator, Sequence
from typing import Final

from common.errors import WireError

VARINT: Final = 0
BYTES: Final = 2
_FIXED64, _FIXED32 = 1, 5
_VARINT_BYTES_MAX = 10


def fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, wire type, begin, end) of the value of each field of the message in `data[at:end]`.

    Raises:
        WireError: not the wire format of protobuf.
    """
    while at < end:
        tag, at = varint(data, at, end)
        start, at = _value(data, at, end, tag & 7)
        yield tag >> 3, tag & 7, start, at


def varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A number of variable length and the place behind it.

    Raises:
        WireError: it does not end.
    """
    if at < end and data[at] < 0x80:  # most are one byte
        return data[at], at + 1
    number = 0
    for position in range(min(_VARINT_BYTES_MAX, end - at)):
        byte = data[at + position]
        number |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return number, at + position + 1
    raise WireError("a protobuf number does not end")


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
        tag, at = varint(data, at, end)
        start, at = _value(data, at, end, tag & 7)
        if tag >> 3 != path[0] or tag & 7 != BYTES:
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
    if kind == VARINT:
        return at, varint(data, at, end)[1]
    if kind == BYTES:
        length, start = varint(data, at, end)
    elif kind in (_FIXED64, _FIXED32):
        length, start = (8 if kind == _FIXED64 else 4), at
    else:
        raise WireError(f"protobuf wire type {kind} is not known")
    if start + length > end:
        raise WireError("a protobuf field ends after its message")
    return start, start + length


def _as_varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
