"""What an attacker does to a layer on its way: the message that names it is honest, its bytes are not."""

import random
from collections.abc import Callable, Iterator
from typing import Final

import msgspec
import zstandard

from common.delta import VERSION, WINDOW_BYTES_MAX
from common.messages import Fetch, LayerPart
from simulations.bench._yard import PART_BYTES

Parts = list[LayerPart]
Tamper = Callable[["Wire", random.Random], Parts]
FAR: Final = 2**40


class Wire:
    """The parts of the layer that a gateway has just asked for.

    Args:
        data: the layer's bytes.
        old: another layer, that was sent earlier.
    """

    def __init__(self, fetch: Fetch, data: bytes, old: bytes) -> None:
        self.fetch, self.data, self.old = fetch, data, old

    @property
    def parts(self) -> Parts:
        """As the centre would send them from where the gateway is."""
        return [
            LayerPart(
                layer=self.fetch.layer,
                offset=offset,
                total_bytes=len(self.data),
                data=self.data[offset : offset + PART_BYTES],
            )
            for offset in range(self.fetch.offset, len(self.data), PART_BYTES)
        ]

    def delta(self, packed: bytes) -> Parts:
        """Something sent as a delta of a layer that the gateway holds."""
        base = self.fetch.bases[0] if self.fetch.bases else ""
        return [LayerPart(layer=self.fetch.layer, offset=0, total_bytes=len(packed), data=packed, base=base)]


def _flipped(wire: Wire, rng: random.Random) -> Parts:
    parts = wire.parts
    at = rng.randrange(len(parts))
    data = bytearray(parts[at].data)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return [*parts[:at], msgspec.structs.replace(parts[at], data=bytes(data)), *parts[at + 1 :]]


def _truncated(wire: Wire, rng: random.Random) -> Parts:
    parts = wire.parts
    kept = parts[: rng.randrange(len(parts))]
    last = parts[len(kept)]
    cut = msgspec.structs.replace(last, data=last.data[: rng.randrange(len(last.data))])
    total = wire.fetch.offset + sum(len(part.data) for part in kept) + len(cut.data)
    return [
        *(msgspec.structs.replace(part, total_bytes=total) for part in kept),
        msgspec.structs.replace(cut, total_bytes=total),
    ]


def _ends_early(wire: Wire, rng: random.Random) -> Parts:
    return wire.parts[: rng.randrange(len(wire.parts))]


def _reordered(wire: Wire, rng: random.Random) -> Parts:
    """Each part once, not in order: what comes too early is asked for again, and never comes."""
    parts = wire.parts
    return [*parts[1:], parts[0]] if len(parts) < 3 else [*rng.sample(parts[1:], len(parts) - 1), parts[0]]


def _relabelled(wire: Wire, rng: random.Random) -> Parts:
    """The right parts under each other's offsets."""
    del rng
    parts = wire.parts
    mixed = [part.data for part in parts if len(part.data) == PART_BYTES]
    mixed = mixed[1:] + mixed[:1] if len(mixed) > 1 else [bytes(reversed(mixed[0]))] if mixed else []
    spare = iter(mixed)
    return [
        msgspec.structs.replace(part, data=next(spare) if len(part.data) == PART_BYTES else part.data[::-1])
        for part in parts
    ]


def _duplicated(wire: Wire, rng: random.Random) -> Parts:
    """The first part, again and again, and nothing else."""
    return [wire.parts[0]] * rng.randrange(2, 20)


def _duplicated_data(wire: Wire, rng: random.Random) -> Parts:
    """One part's bytes at every offset."""
    parts = wire.parts
    one = rng.choice(parts).data
    return [msgspec.structs.replace(part, data=(one * 2)[: len(part.data)]) for part in parts]


def _replayed(wire: Wire, rng: random.Random) -> Parts:
    """Parts of an earlier layer under the new one's name."""
    del rng
    old = (wire.old * (1 + len(wire.data) // len(wire.old)))[: len(wire.data)]
    return [msgspec.structs.replace(part, data=old[part.offset : part.offset + len(part.data)]) for part in wire.parts]


def _replayed_whole(wire: Wire, rng: random.Random) -> Parts:
    """Another layer, whole and under its own name: it is not the one that was asked for."""
    del rng
    return [LayerPart(layer="0" * 64, offset=0, total_bytes=len(wire.old), data=wire.old)]


def _oversize(wire: Wire, rng: random.Random) -> Parts:
    part = wire.parts[0]
    size = rng.choice([len(wire.data) + 1, 2 * len(wire.data), 2**31, FAR])
    more = part.data + bytes(rng.choice([0, 1, 4096]))
    return [msgspec.structs.replace(part, total_bytes=size, data=more)]


def _gone(wire: Wire, rng: random.Random) -> Parts:
    del rng
    return [LayerPart(layer=wire.fetch.layer, offset=wire.fetch.offset, total_bytes=0, data=b"")]


def _bomb(wire: Wire, rng: random.Random) -> Parts:
    """A few hundred bytes that say, or do not say, that they unpack to far more than the layer."""
    declared = rng.choice([64, len(wire.data), WINDOW_BYTES_MAX, FAR])
    payload = zstandard.ZstdCompressor(level=19, write_content_size=rng.random() < 0.5).compress(
        bytes(rng.choice([1, 8, 32]) * 1024 * 1024)
    )
    places = [(0, b""), (0, b""), (0, b""), (0, b"")]
    places[rng.randrange(4)] = (declared, payload)
    empty = zstandard.compress(msgspec.msgpack.encode([]))
    streams = [item if item[1] else ((1, empty) if at == 0 else item) for at, item in enumerate(places)]
    packed = msgspec.msgpack.encode((VERSION, len(wire.data), *streams))
    return wire.delta(packed[: len(wire.data)])


def _noise_delta(wire: Wire, rng: random.Random) -> Parts:
    return wire.delta(rng.randbytes(rng.randrange(1, len(wire.data))))


def _foreign_delta(wire: Wire, rng: random.Random) -> Parts:
    """A delta of a layer that is not here."""
    data = rng.randbytes(100)
    return [LayerPart(layer=wire.fetch.layer, offset=0, total_bytes=len(data), data=data, base=rng.randbytes(32).hex())]


TAMPERS: Final[dict[str, tuple[Tamper, ...]]] = {
    "layer: truncated": (_truncated, _ends_early),
    "layer: bit-flipped": (_flipped,),
    "layer: reordered": (_reordered, _relabelled),
    "layer: duplicated": (_duplicated, _duplicated_data),
    "layer: replayed": (_replayed, _replayed_whole),
    "layer: other sizes": (_oversize, _gone),
    "delta: bomb": (_bomb,),
    "delta: noise, or of another base": (_noise_delta, _foreign_delta),
}


def tamper(kind: str, wire: Wire, rng: random.Random) -> Parts:
    """The parts that reach the gateway."""
    return rng.choice(TAMPERS[kind])(wire, rng)


def kinds() -> Iterator[str]:
    """All kinds."""
    yield from TAMPERS
