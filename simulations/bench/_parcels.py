"""What an attacker does where releases are published for all: he writes there, or says that something else lies there.

The message that names the release is honest, and so is the centre's answer unless the kind says otherwise. A broker's
access list lets nobody but the centre write there (`headframe bench channel` tries that); here it has failed.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from common.messages import Fetch, LayerPart, Parcel, Shelved
from common.parcels import PARCEL_BYTES_MAX, PIECE_BYTES, cut, pack
from simulations.bench._tampering import Wire, tamper

Piece = tuple[str, bytes]
Came = Shelved | Piece
FLOOD: Final = 60
SILENT_FLOOD: Final = 400


@dataclass(frozen=True)
class Broker:
    """What a gateway has asked for, and what lies there of it."""

    fetch: Fetch
    data: bytes
    old: bytes
    """An earlier layer."""

    def shelved(self, data: bytes | None = None, base: str = "") -> Shelved:
        """The centre's answer."""
        return Shelved(layer=self.fetch.layer, parcel=pack(cut(data or self.data)).parcel, base=base)

    def pieces(self, data: bytes | None = None) -> list[Piece]:
        data = data or self.data
        packed = pack(cut(data))
        found = list(zip(packed.names, cut(data), strict=True))
        return [*([(packed.parcel.root.hex(), packed.index)] if packed.index else []), *found]

    @property
    def held(self) -> str:
        return self.fetch.bases[0] if self.fetch.bases else ""


Attack = Callable[[Broker, random.Random], Iterator[Came]]


def _forged(broker: Broker, rng: random.Random) -> Iterator[Came]:
    """Other bytes under the name of a piece, once: what is right may still come."""
    yield broker.shelved()
    for name, piece in broker.pieces():
        at = rng.randrange(len(piece))
        flipped = piece[:at] + bytes([piece[at] ^ (1 << rng.randrange(8))]) + piece[at + 1 :]
        yield name, rng.choice([flipped, piece[:at], piece + b"\0", broker.old, b""])


def _forged_again(broker: Broker, rng: random.Random) -> Iterator[Came]:
    """Other bytes under the name of a piece, whenever it is looked at."""
    yield broker.shelved()
    for _ in range(FLOOD):
        for name, piece in broker.pieces():
            yield name, rng.randbytes(len(piece))


def _endless(broker: Broker, rng: random.Random) -> Iterator[Came]:
    """Pieces over every bound, pieces that nobody asked for, and no end of them."""
    yield broker.shelved()
    large = bytes(PIECE_BYTES + 1 + rng.randrange(4096))
    names = [name for name, _ in broker.pieces()]
    for _ in range(SILENT_FLOOD):
        yield rng.randbytes(32).hex(), b"nobody asked for this"
    for _ in range(FLOOD):
        yield rng.choice(names), large


def _mixed_up(broker: Broker, rng: random.Random) -> Iterator[Came]:
    """The right pieces, twice and under each other's names."""
    yield broker.shelved()
    theirs, ours = broker.pieces(broker.old), broker.pieces()
    names, pieces = [name for name, _ in ours + theirs], [piece for _, piece in theirs + ours]
    mixed = list(zip(names, pieces, strict=True)) * 3
    rng.shuffle(mixed)
    yield from mixed


def _stale(broker: Broker, rng: random.Random) -> Iterator[Came]:
    """The centre's word is forged too: it names an earlier layer, with its own pieces, whole and right."""
    del rng
    old = (broker.old * (1 + len(broker.data) // len(broker.old)))[: len(broker.data)]
    yield broker.shelved(old)
    yield from broker.pieces(old)


def _stale_delta(broker: Broker, rng: random.Random) -> Iterator[Came]:
    """A delta of something else, of a bomb, or of a layer that is not here; its pieces are right."""
    wire = Wire(broker.fetch, broker.data, broker.old)
    part: LayerPart = tamper(rng.choice(["delta: bomb", "delta: noise, or of another base"]), wire, rng)[0]
    yield broker.shelved(part.data, part.base)
    yield from broker.pieces(part.data)


def _lying(broker: Broker, rng: random.Random) -> Iterator[Came]:
    """A parcel that cannot be: of another size than the layer, over every bound, without a name; or its own index."""
    honest = broker.shelved()
    sizes = [0, -1, len(broker.data) + 1, len(broker.data) - 1, 2**62, PARCEL_BYTES_MAX]
    parcel = rng.choice(
        [
            *(Parcel(honest.parcel.root, size) for size in sizes),
            Parcel(b"", len(broker.data)),
            Parcel(bytes(40), len(broker.data)),
        ]
    )
    yield msgspec.structs.replace(honest, parcel=parcel, base=rng.choice(["", broker.held, "f" * 64]))
    yield from broker.pieces()


def _never(broker: Broker, rng: random.Random) -> Iterator[Came]:
    """It is said to lie there, after a wait without end or at no speed at all, and nothing comes."""
    wait_s, bytes_per_s = (rng.choice([0.0, -1.0, 1e-300, 1e308, float("inf"), float("nan")]) for _ in range(2))
    yield msgspec.structs.replace(broker.shelved(), wait_s=wait_s, bytes_per_s=bytes_per_s)


ATTACKS: Final[dict[str, tuple[Attack, ...]]] = {
    "shared: forged piece": (_forged, _forged_again),
    "shared: endless pieces": (_endless,),
    "shared: wrong order": (_mixed_up,),
    "shared: stale layer or delta": (_stale, _stale_delta),
    "shared: parcel that cannot be": (_lying,),
    "shared: nothing comes": (_never,),
}


def attack(kind: str, broker: Broker, rng: random.Random) -> Iterator[Came]:
    """What reaches the gateway."""
    return rng.choice(ATTACKS[kind])(broker, rng)
