"""Flower messages in pieces: what was sent arrives, whatever the link refuses meanwhile, and memory is bounded."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import frames as module
from common.chunks import CHUNK_BYTES, split
from common.errors import BoundError, WireError
from common.frames import IDLE_S, Assembly, Courier, Frame, frames
from common.messages import Chunk, FlowerFrame

MB = 1 << 20


def test_what_one_message_carries_travels_as_before() -> None:
    assert list(frames(b"abc")) == [FlowerFrame(message=b"abc")]
    assert all(isinstance(frame, Chunk) for frame in frames(bytes(2 * MB), MB))
    assert module.FRAME_BYTES_MAX < 64 * MB


@given(st.integers(0, 5 * CHUNK_BYTES), st.floats(0.1, 1.0), st.randoms(use_true_random=False))
def test_a_courier_goes_on_where_the_link_said_no(size: int, taken: float, luck: random.Random) -> None:
    data = luck.randbytes(size)
    arrived: list[Frame] = []

    def publish(to: str, frame: Frame) -> bool:
        if luck.random() > taken:
            return False
        arrived.append(frame)
        return True

    courier = Courier(publish, frame_bytes_max=CHUNK_BYTES)
    for _ in range(1000):
        if courier.send("a", data):
            break
    assembly = Assembly(8 * MB, 8 * MB)
    whole = [f.message if isinstance(f, FlowerFrame) else assembly.add("a", f, 0.0) for f in arrived]
    assert whole[-1] == data
    assert len(arrived) == len(list(frames(data, CHUNK_BYTES))), "nothing was sent twice"


def test_another_message_to_the_same_begins_at_its_beginning() -> None:
    sent: list[Frame] = []
    courier = Courier(lambda to, frame: len(sent) < 2 and sent.append(frame) is None, frame_bytes_max=0)
    assert not courier.send("a", b"x" * MB)
    sent.clear()
    courier.send("a", b"y" * MB)
    assert [frame.index for frame in sent if isinstance(frame, Chunk)] == [0, 1]


def test_only_those_are_begun_that_there_is_room_for_and_the_silent_give_way() -> None:
    assembly = Assembly(4 * MB, 4 * MB)
    one, two = list(split(b"1" * 3 * MB)), list(split(b"2" * 3 * MB))
    assert assembly.has_room("a", one[0], 0.0)
    assembly.add("a", one[0], 0.0)
    assert assembly.has_room("a", one[1], 1.0)
    assert not assembly.has_room("b", two[0], 1.0)
    assert assembly.is_receiving("a", 1.0)
    assert assembly.has_room("b", two[0], IDLE_S + 1)
    assert not assembly.is_receiving("a", IDLE_S + 1)
    found = [assembly.add("b", chunk, IDLE_S + 1) for chunk in two]
    assert found[-1] == b"2" * 3 * MB


def test_what_is_too_large_or_contradicts_itself_is_refused() -> None:
    assembly = Assembly(MB, MB)
    with pytest.raises(BoundError):
        assembly.add("a", next(iter(split(bytes(2 * MB)))), 0.0)
    first, second, *_ = split(bytes(MB))
    assembly.add("a", first, 0.0)
    with pytest.raises(WireError):
        assembly.add("a", msgspec.structs.replace(second, count=7), 0.0)
    assert not assembly.is_receiving("a", 0.0)
