"""What travels: codec, chunks, topics and ids. Arbitrary bytes are refused with a reason, never a crash."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import codec, topics
from common.chunks import CHUNKS_MAX, TRANSFERS_MAX, Joiner, split, transfer_id
from common.errors import OperatorError, PeerError, VersionError, WireError
from common.ids import check_name, layer_hash, sample_id
from common.messages import (
    CameraState,
    Chunk,
    Desired,
    Fetch,
    FlowerFrame,
    LayerPart,
    Message,
    Prediction,
    Receipt,
    Refusal,
    ReleaseHealth,
    Sample,
    Scores,
    SpoolEpoch,
    State,
)

names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)


@given(st.data())
def test_every_message_comes_back_as_it_was(data: st.DataObject) -> None:
    floats = st.floats(allow_nan=False, allow_infinity=False)
    integers = st.integers(-(2**63), 2**63 - 1)
    text = st.text(max_size=20)
    st.register_type_strategy(float, floats)
    st.register_type_strategy(int, integers)
    st.register_type_strategy(str, text)
    for kind in (Prediction, Scores, Refusal, CameraState, ReleaseHealth, SpoolEpoch):
        st.register_type_strategy(
            kind, st.builds(kind, **{f.name: st.from_type(f.type) for f in msgspec.structs.fields(kind)})
        )
    kind = data.draw(st.sampled_from([Sample, Chunk, Receipt, State, Desired, Fetch, LayerPart, FlowerFrame]))
    fields = {f.name: data.draw(st.from_type(f.type)) for f in msgspec.structs.fields(kind)}
    message: Message = kind(**fields)
    assert codec.decode(codec.encode(message)) == message


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused_with_a_reason(payload: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        codec.decode(payload)
    assert caught.value.message


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=3))
def test_a_damaged_message_is_refused_or_still_a_message(at: int, damage: bytes) -> None:
    good = codec.encode(State(gateway_id="g", site_id="s", at_ns=1, agent_version="1", release_id="r1"))
    at %= len(good)
    damaged = good[:at] + damage + good[at + len(damage) :]
    try:
        assert isinstance(codec.decode(damaged), msgspec.Struct)
    except PeerError as error:
        assert error.message


def test_another_version_is_refused_and_an_unknown_field_is_not() -> None:
    fetch = {"type": "fetch", "layer": "a", "offset": 0, "length": 1}
    with pytest.raises(VersionError, match="version 2") as caught:
        codec.decode(msgspec.msgpack.encode({"v": 2, "m": {"type": "something new"}}))
    assert "Update the older side" in caught.value.hint
    newer = msgspec.msgpack.encode({"v": 1, "m": {**fetch, "a_field_of_tomorrow": 7}})
    assert codec.decode(newer) == Fetch(layer="a", offset=0, length=1)
    with pytest.raises(WireError):
        codec.decode(msgspec.msgpack.encode({"v": 1, "m": {**fetch, "offset": "no number"}}))


def test_a_payload_over_the_bound_is_not_even_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "PAYLOAD_BYTES_MAX", 10)
    with pytest.raises(WireError, match="over the bound of 10"):
        codec.decode(b"x" * 11)


# --- chunks -----------------------------------------------------------------------------------


@given(st.binary(max_size=3_000), st.integers(1, 700), st.randoms(use_true_random=False))
def test_chunks_join_in_any_order_and_repetition(payload: bytes, size: int, order: random.Random) -> None:
    chunks = list(split(payload, size))
    assert all(len(chunk.data) <= size for chunk in chunks)
    first = chunks[:-1] * 2
    order.shuffle(first)
    joiner = Joiner(10_000)
    found = [joined for chunk in [*first, chunks[-1]] if (joined := joiner.add(chunk)) is not None]
    assert found == [payload]
    assert joiner.pending_bytes == 0


def test_unfinished_transfers_are_bounded_and_the_oldest_goes_first() -> None:
    joiner = Joiner(1_000)
    transfers = [list(split(bytes([number]) * 600, 300)) for number in range(3)]
    for chunks in transfers:
        assert joiner.add(chunks[0]) is None
    assert joiner.pending_bytes <= 1_000
    assert joiner.add(transfers[2][1]) == b"\2" * 600
    for number in range(10 * TRANSFERS_MAX):
        joiner.add(Chunk(transfer_id=number.to_bytes(16, "big"), index=0, count=2, total_bytes=2, data=b"x"))
    assert joiner.pending_bytes <= TRANSFERS_MAX


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk(transfer_id=b"t" * 16, index=2, count=2, total_bytes=4, data=b"x"),
        Chunk(transfer_id=b"t" * 16, index=-1, count=2, total_bytes=4, data=b"x"),
        Chunk(transfer_id=b"t" * 16, index=0, count=2, total_bytes=10**12, data=b"x"),
        Chunk(transfer_id=b"t" * 16, index=0, count=CHUNKS_MAX + 1, total_bytes=4, data=b"x"),
        Chunk(transfer_id=b"t" * 16, index=0, count=2, total_bytes=4, data=b""),
        Chunk(transfer_id=b"t" * 16, index=0, count=1, total_bytes=4, data=b"12345"),
        Chunk(transfer_id=b"t" * 16, index=0, count=1, total_bytes=4, data=b"1234"),
    ],
)
def test_a_chunk_that_cannot_be_true_is_refused_and_nothing_is_held(chunk: Chunk) -> None:
    joiner = Joiner(1_000)
    with pytest.raises(WireError):
        joiner.add(chunk)
    assert joiner.pending_bytes == 0


def test_chunks_that_contradict_each_other_drop_the_transfer() -> None:
    joiner = Joiner(1_000)
    one, two = split(b"x" * 20, 10)
    joiner.add(one)
    with pytest.raises(WireError, match="contradicts"):
        joiner.add(msgspec.structs.replace(two, count=3))
    assert joiner.pending_bytes == 0
    damaged = msgspec.structs.replace(two, data=b"y" * 10)
    joiner.add(one)
    with pytest.raises(WireError, match="hash"):
        joiner.add(damaged)
    assert transfer_id(b"x" * 20) == one.transfer_id


# --- topics and ids ---------------------------------------------------------------------------


@given(names, st.sampled_from(topics.UP_KINDS))
def test_an_up_topic_says_who_and_what(gateway: str, kind: str) -> None:
    topic = topics.up(gateway, kind)
    assert topics.parse_up(topic) == (gateway, kind)
    assert topic.startswith(topics.up_filter(topics.shard(gateway))[: -len("+/+")])


@given(st.one_of(st.text(max_size=60), st.lists(st.text(max_size=8), min_size=5, max_size=5).map("/".join)))
def test_any_other_topic_is_refused(topic: str) -> None:
    try:
        gateway, kind = topics.parse_up(topic)
    except (WireError, OperatorError):
        return
    assert topic == topics.up(gateway, kind)


def test_a_topic_with_another_shard_or_a_strange_name_is_refused() -> None:
    wrong = f"{(topics.shard('north-1') + 1) % 256:02x}"
    with pytest.raises(WireError, match="shard"):
        topics.parse_up(f"headframe/up/{wrong}/north-1/sample")
    for name in ("North", "a b", "+", "#", "", "x" * 64, "-x", "矿"):
        with pytest.raises(OperatorError, match="not valid"):
            check_name("gateway", name)
    with pytest.raises(ValueError, match="unknown up kind"):
        topics.up("north-1", "receipt")


def test_a_sample_is_named_by_its_content_and_where_it_is_from() -> None:
    one = sample_id(b"jpeg", "gateway", "camera", 5)
    assert sample_id(b"jpeg", "gateway", "camera", 5) == one
    others = {
        sample_id(b"jpeg2", "gateway", "camera", 5),
        sample_id(b"jpeg", "gatewa", "ycamera", 5),
        sample_id(b"jpeg", "gateway", "camera2", 5),
        sample_id(b"jpeg", "gateway", "camera", 6),
    }
    assert len(others | {one}) == 5
    assert len(one) == 16
    assert len(layer_hash(b"")) == 64
