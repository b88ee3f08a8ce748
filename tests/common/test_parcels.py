"""Parcels: whatever order pieces come in, the bytes come out; whatever else comes, nothing does."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import parcels
from common.errors import WireError
from common.ids import layer_hash
from common.messages import Parcel
from common.parcels import PIECE_BYTES, Unpacking, cut, pack

SIZES = st.one_of(
    st.integers(1, 500), st.sampled_from([PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 7])
)


def filled(size: int, seed: int, *, alike: bool) -> bytes:
    """Random, or with the same bytes in every piece."""
    return bytes(size) if alike else random.Random(seed).randbytes(size)


def broker_of(data: bytes) -> dict[str, bytes]:
    """What lies there: pieces by name."""
    packed = pack(cut(data))
    pieces = {layer_hash(piece): piece for piece in cut(data)}
    return pieces | ({packed.parcel.root.hex(): packed.index} if packed.index else {})


def unpack(unpacking: Unpacking, broker: dict[str, bytes], rng: random.Random) -> bytes:
    """Everything that is wanted comes, in any order, sometimes twice."""
    out = b""
    while not unpacking.done:
        names = sorted(unpacking.wanted())
        rng.shuffle(names)
        for name in [*names, *names[:1]]:
            out += unpacking.take(name, broker[name])
    return out


@given(size=SIZES, seed=st.integers(0, 99), alike=st.booleans(), order=st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_pieces_in_any_order_and_repetition_make_the_bytes(
    size: int, seed: int, alike: bool, order: random.Random
) -> None:
    data = filled(size, seed, alike=alike)
    unpacking = Unpacking(pack(cut(data)).parcel)
    assert unpack(unpacking, broker_of(data), order) == data
    assert unpacking.offset == size


@given(kept=st.integers(0, 6), torn=st.booleans())
@settings(max_examples=20, deadline=None)
def test_what_is_here_already_is_not_wanted_again(kept: int, torn: bool) -> None:
    data, rng = filled(5 * PIECE_BYTES + 11, 3, alike=False), random.Random(1)
    broker, unpacking = broker_of(data), Unpacking(pack(cut(data)).parcel)
    root = unpacking.parcel.root.hex()
    unpacking.take(root, broker[root])
    here = list(cut(data))[:kept]
    if here and torn:
        here[-1] = here[-1][:-1]
    right = max(0, len(here) - torn)
    assert unpacking.skip(here) == min(right * PIECE_BYTES, len(data))
    assert unpack(unpacking, broker, rng) == data[right * PIECE_BYTES :]


def test_a_piece_that_is_not_what_its_name_says_is_refused_and_changes_nothing() -> None:
    data = filled(2 * PIECE_BYTES, 1, alike=False)
    broker, unpacking = broker_of(data), Unpacking(pack(cut(data)).parcel)
    root = unpacking.parcel.root.hex()
    for forged in (b"", b"x", broker[root][:-1], bytes(PIECE_BYTES + 1)):
        with pytest.raises(WireError, match="not what its name"):
            unpacking.take(root, forged)
    assert unpacking.take("0" * 64, data) == b"", "nobody asked for that"
    assert unpack(unpacking, broker, random.Random(1)) == data


def test_an_index_that_lists_another_number_of_pieces_is_refused() -> None:
    index = bytes(3 * parcels.HASH_BYTES)
    unpacking = Unpacking(Parcel(bytes.fromhex(layer_hash(index)), 2 * PIECE_BYTES))
    with pytest.raises(WireError, match="index"):
        unpacking.take(layer_hash(index), index)


def test_a_parcel_that_says_another_size_than_its_pieces_have_gives_nothing_out() -> None:
    unpacking = Unpacking(Parcel(bytes.fromhex(layer_hash(b"abc")), 4))
    with pytest.raises(WireError, match="3 bytes"):
        unpacking.take(layer_hash(b"abc"), b"abc")
    assert unpacking.offset == 0


@pytest.mark.parametrize("parcel", [Parcel(b"", 4), Parcel(bytes(32), 0), Parcel(bytes(32), 2**40)])
def test_no_parcel_is_like_this(parcel: Parcel) -> None:
    with pytest.raises(WireError):
        Unpacking(parcel)


@pytest.mark.parametrize("pieces", [[], [b""], [b"a", b"b"], [bytes(PIECE_BYTES + 1)]])
def test_bytes_that_are_cut_otherwise_are_not_packed(pieces: list[bytes]) -> None:
    with pytest.raises(ValueError, match="pieces"):
        pack(pieces)
