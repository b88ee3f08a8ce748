"""Spoils wire messages where it hurts: structure, types, lengths, nesting, pictures, chunks, single bits. Pure.

Most mutations decode the MessagePack, change something at a random place of the tree, and encode it again, so that the
message still looks like one and the checks behind the decoder are reached; some then mend the sample id, so that the
checks behind the content hash are reached too; the rest spoil the bytes.
"""

import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from common.ids import sample_id

LENGTHS = (0, 1, 2, 15, 16, 17, 63, 64, 255, 256, 4096, 70_000, 1_000_000)
NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1,
    0.0, -0.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
TEXTS = (
    "",
    "/",
    "../../etc/passwd",
    "+",
    "#",
    "\x00",
    "a\nb",
    "é",
    "\U0001f600",
    "north-1",
    "%s%n",
    "a" * 64,
    "A" * 5000,
)
DEPTHS = (2, 60, 400, 2000)
_SIZES = (0, 1, 8, 65535, 60_000)


def mutate(payload: bytes, rng: random.Random) -> bytes:
    """A spoiled copy of an encoded message; rarely the same."""
    if rng.random() < 0.25:
        return _spoil_bytes(payload, rng)
    try:
        tree = msgspec.msgpack.decode(payload)
    except msgspec.DecodeError:
        return _spoil_bytes(payload, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        tree = _spoil_tree(tree, rng)
    if rng.random() < 0.5:
        _mend(tree)
    try:
        encoded = msgspec.msgpack.encode(tree)
    except (OverflowError, ValueError, RecursionError, TypeError):
        return _spoil_bytes(payload, rng)
    return _spoil_bytes(encoded, rng) if rng.random() < 0.1 else encoded


def _spoil_tree(tree: Any, rng: random.Random) -> Any:
    """Change one place of the tree."""
    places = list(_places(tree))
    if not places:
        return _junk(rng)
    owner, key = rng.choice(places)
    value = owner[key]
    match rng.randrange(10):
        case 0 | 1:
            owner[key] = _junk(rng)
        case 2 if isinstance(owner, dict):
            del owner[key]
        case 3 if isinstance(owner, dict):
            owner[rng.choice((*TEXTS, f"{key}x"))] = value
        case 4 if isinstance(owner, list):
            owner.extend([value] * (rng.choice((1, 3, 1200)) if isinstance(value, int | float | str) else 2))
        case 5 if isinstance(value, list):
            value.clear()
        case _:
            owner[key] = _near(value, rng)
    return tree


def _near(value: Any, rng: random.Random) -> Any:
    """Of the same type, and wrong."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return rng.choice((*NUMBERS, value + 1, value - 1, -value))
    if isinstance(value, str):
        cut = value[: rng.randrange(len(value) + 1)]
        return rng.choice((*TEXTS, cut, value + "x", value.upper()))
    if isinstance(value, bytes):
        return _spoil_jpeg(value, rng) if value[:2] == b"\xff\xd8" else _spoil_bytes(value, rng)
    return _junk(rng)


def _spoil_jpeg(jpeg: bytes, rng: random.Random) -> bytes:
    """Another size in the header, a segment that lies about its length, a missing end, or spoiled bits."""
    kind = rng.randrange(5)
    at = next((jpeg.find(bytes((0xFF, marker))) for marker in (0xC0, 0xC2) if bytes((0xFF, marker)) in jpeg), -1)
    if kind == 0 and at > 0:
        height, width = rng.choice(_SIZES), rng.choice(_SIZES)
        return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]
    if kind == 1:
        segment = bytes((0xFF, rng.choice((0xE0, 0xFE, 0xC0, 0xC4, 0xDB, 0xDD)))) + struct.pack(
            ">H", rng.choice(_SIZES)
        )
        return jpeg[:2] + segment * rng.choice((1, 100)) + jpeg[2:]
    if kind == 2:
        return jpeg[: rng.randrange(len(jpeg))] + rng.choice((b"", b"\xff\xd9"))
    if kind == 3:
        return jpeg[:2] + b"\xff" * rng.choice((10, 70_000)) + jpeg[2:]
    return _flip(jpeg, rng)


def _spoil_bytes(data: bytes, rng: random.Random) -> bytes:
    """Cut, flip, splice, or a length that is larger than what follows."""
    match rng.randrange(6):
        case 0:
            return data[: rng.randrange(len(data) + 1)]
        case 1:
            return data + rng.randbytes(rng.choice((1, 16, 300)))
        case 2 if data:
            begin = rng.randrange(len(data))
            return data[:begin] + data[rng.randrange(len(data)) :]
        case 3 if data:
            at = rng.randrange(len(data))
            header = rng.choice((b"\xc6", b"\xdb", b"\xdd", b"\xdf", b"\xc9"))  # bin32, str32, array32, map32, ext32
            return (
                data[:at]
                + header
                + rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x10\x00\x00"))
                + data[at:]
            )
        case 4:
            return rng.randbytes(rng.choice(LENGTHS[:9]))
        case _:
            return _flip(data, rng)


def _flip(data: bytes, rng: random.Random) -> bytes:
    spoiled = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 32))):
        if spoiled:
            spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
    return bytes(spoiled)


def _junk(rng: random.Random) -> Any:
    """A value of any type, of any size within reason."""
    makers: tuple[Callable[[], Any], ...] = (
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice(TEXTS),
        lambda: rng.randbytes(rng.choice(LENGTHS[:11])),
        lambda: bytes(rng.choice(LENGTHS)),
        lambda: [rng.choice(NUMBERS)] * rng.choice((0, 1, 5, 20_000)),
        lambda: {rng.choice(TEXTS): rng.choice(NUMBERS)},
        lambda: _nested(rng.choice(DEPTHS)),
    )
    return rng.choice(makers)()


def _nested(depth: int) -> Any:
    value: Any = None
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of the tree, without recursion: mutations nest deeply."""
    waiting = [tree]
    while waiting:
        owner = waiting.pop()
        if isinstance(owner, dict):
            keys: list[Any] = list(owner)
        elif isinstance(owner, list):
            keys = list(range(min(len(owner), 50)))
        else:
            continue
        for key in keys:
            yield owner, key
            waiting.append(owner[key])


def _mend(tree: Any) -> None:
    """Give a spoiled sample the id of its content, where it still has one."""
    message = tree.get("m") if isinstance(tree, dict) else None
    if not isinstance(message, dict) or message.get("type") != "sample":
        return
    jpeg, at_ns = message.get("jpeg"), message.get("captured_at_ns")
    gateway_id, camera_id = message.get("gateway_id"), message.get("camera_id")
    if not isinstance(jpeg, bytes) or not isinstance(gateway_id, str) or not isinstance(camera_id, str):
        return
    if type(at_ns) is not int:
        return
    if -(2**63) <= at_ns < 2**63:
        message["sample_id"] = sample_id(jpeg, gateway_id, camera_id, at_ns)
