"""Parcels: bytes that a whole fleet may need, cut into pieces, each published once under the hash of its bytes. Pure.

A piece is a retained message on `headframe/release/<hash>`. Because its name is its hash, nothing but the right bytes
can pass for it: what is forged, mixed up or of yesterday is known before anything is done with it, and a piece that is
here already is never asked for again. A small parcel is one piece and is named by it; a larger one is named by its
index, a piece that lists the hashes of the others. What a parcel is good for is not decided here: whoever asked for it
verifies what it makes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from common.errors import WireError
from common.ids import layer_hash
from common.messages import Parcel

PIECE_BYTES: Final = 256 * 1024
"""As a chunk of a sample: small enough that a bad link gets one through, large enough that its topic costs nothing."""
HASH_BYTES: Final = 32
PARCEL_BYTES_MAX: Final = PIECE_BYTES * (PIECE_BYTES // HASH_BYTES)
"""2 GiB: what the index of one piece can list."""
WINDOW: Final = 4
"""Pieces asked for at once: 1 MiB under way keeps 10 MB/s busy at a round trip of 100 ms."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A parcel as its publisher knows it."""

    parcel: Parcel
    names: tuple[str, ...]
    """Of the pieces, in order."""

    @property
    def index(self) -> bytes:
        """The piece that lists the others; empty when there is one only."""
        return b"".join(map(bytes.fromhex, self.names)) if len(self.names) > 1 else b""


def pack(pieces: Iterable[bytes]) -> Packed:
    """Name the pieces of some bytes: each of `PIECE_BYTES`, the last one of what is left.

    Raises:
        ValueError: they are cut otherwise, or empty, or too many.
    """
    sizes, names = [], []
    for piece in pieces:
        sizes.append(len(piece))
        names.append(layer_hash(piece))
    if not sizes or not 0 < sizes[-1] <= PIECE_BYTES or {*sizes[:-1]} - {PIECE_BYTES} or sum(sizes) > PARCEL_BYTES_MAX:
        raise ValueError("these are not the pieces of a parcel")
    packed = Packed(Parcel(b"", sum(sizes)), tuple(names))
    root = layer_hash(packed.index) if packed.index else names[0]
    return Packed(Parcel(bytes.fromhex(root), sum(sizes)), packed.names)


def cut(data: bytes) -> Iterator[bytes]:
    """The pieces of bytes in memory."""
    return (data[begin : begin + PIECE_BYTES] for begin in range(0, len(data), PIECE_BYTES))


class Unpacking:
    """A parcel on its way here: which pieces are wanted now, and what has come of it, in order.

    Holds at most a window of pieces; whoever takes them keeps the rest.

    Raises:
        WireError: no parcel can be like this.
    """

    def __init__(self, parcel: Parcel) -> None:
        if len(parcel.root) != HASH_BYTES or not 0 < parcel.total_bytes <= PARCEL_BYTES_MAX:
            raise WireError(f"a parcel of {parcel.total_bytes} bytes, named by {len(parcel.root)}")
        self.parcel = parcel
        self._count = -(-parcel.total_bytes // PIECE_BYTES)
        self._names: tuple[str, ...] = (parcel.root.hex(),) if self._count == 1 else ()
        self._next = 0
        self._early: dict[str, bytes] = {}
        """Pieces of the window that came before the one that is next."""

    @property
    def is_known(self) -> bool:
        """Whether the names of the pieces are known: `skip` may be told what is here already."""
        return bool(self._names)

    @property
    def done(self) -> bool:
        """Everything was given out."""
        return self._next == self._count

    @property
    def offset(self) -> int:
        """Bytes given out, or skipped."""
        return min(self._next * PIECE_BYTES, self.parcel.total_bytes)

    def skip(self, pieces: Iterable[bytes]) -> int:
        """Go on behind what is here already, as far as it is right; returns how many bytes that are."""
        for name, piece in zip(self._names[self._next :], pieces, strict=False):
            if layer_hash(piece) != name:
                break
            self._next += 1
        return self.offset

    def wanted(self, window: int = WINDOW) -> frozenset[str]:
        """Names of the pieces to be asked for now."""
        if not self._names:
            return frozenset((self.parcel.root.hex(),))
        return frozenset(self._names[self._next : self._next + window]) - self._early.keys()

    def take(self, name: str, data: bytes) -> bytes:
        """Take a piece that is wanted; anything else is passed over (late or twice).

        Returns:
            What follows on what was given out before: the piece, and those that had come too early.

        Raises:
            WireError: these are not the bytes of that name; or they are, and the parcel is not what it was said to be.
        """
        if name not in self.wanted():
            return b""
        if len(data) > PIECE_BYTES or layer_hash(data) != name:
            raise WireError(f"a piece of {len(data)} bytes is not what its name {name[:12]} says")
        if not self._names:
            self._read_index(data)
            return b""
        self._early[name] = data
        return b"".join(self._in_order())

    def _read_index(self, data: bytes) -> None:
        if len(data) != self._count * HASH_BYTES:
            raise WireError(f"an index of {len(data)} bytes is not of {self._count} pieces")
        ends = range(0, len(data) + 1, HASH_BYTES)
        self._names = tuple(data[begin:end].hex() for begin, end in pairwise(ends))

    def _in_order(self) -> Iterator[bytes]:
        while not self.done and (name := self._names[self._next]) in self._early:
            piece = self._early[name]
            if len(piece) != min(PIECE_BYTES, self.parcel.total_bytes - self.offset):
                raise WireError(f"piece {name[:12]} is of {len(piece)} bytes, which no parcel has there")
            self._next += 1
            if name not in self._names[self._next : self._next + WINDOW]:  # the same bytes may be next once more
                del self._early[name]
            yield piece
