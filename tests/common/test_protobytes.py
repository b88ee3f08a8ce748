"""Large protobuf fields are cut out without a copy, and hostile bytes are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import HeadframeError, WireError
from common.flower import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
    message_from_bytes,
    message_to_bytes,
    take_identity,
)
from common.protobytes import cut

take_identity(1)


def message(arrays: list[np.ndarray]) -> Message:
    content = RecordDict(
        {
            "before": ConfigRecord({"text": "x" * 300, "blob": b"\x00\xff"}),
            "arrays": ArrayRecord(arrays),
            "more": ArrayRecord([np.arange(4)]),
            "metrics": MetricRecord({"num-examples": 3}),
        }
    )
    return Message(content, 7, "train", group_id="g")


@given(st.lists(st.lists(st.floats(width=32), max_size=80), max_size=5))
def test_a_message_survives_the_wire_and_the_wire_again(rows: list[list[float]]) -> None:
    arrays = [np.array(row, np.float32) for row in rows]
    first = message_from_bytes(message_to_bytes(message(arrays)))
    again = message_from_bytes(message_to_bytes(first))
    for found in (first, again):
        assert dict(found.content["before"]) == {"text": "x" * 300, "blob": b"\x00\xff"}
        for array, sent in zip(found.content["arrays"].to_numpy_ndarrays(), arrays, strict=True):
            np.testing.assert_array_equal(array, sent)
        assert found.metadata.dst_node_id == 7


def test_arrays_are_views_of_the_bytes_that_came() -> None:
    data = message_to_bytes(message([np.arange(1000.0)]))
    array = message_from_bytes(data).content["arrays"]["0"]
    assert isinstance(array.data, memoryview)
    assert array.data.obj is data


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_wire_error(data: bytes) -> None:
    try:
        message_from_bytes(data)
    except HeadframeError as error:
        assert isinstance(error, WireError)


@given(st.data())
def test_a_damaged_message_never_gives_another_error(data: st.DataObject) -> None:
    sent = bytearray(message_to_bytes(message([np.arange(3.0)])))
    sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    try:
        message_from_bytes(bytes(sent))
    except WireError as error:
        assert str(error)


def test_a_field_that_comes_twice_is_refused() -> None:
    assert cut(b"\x0a\x01a", [1]) == (b"", [memoryview(b"a")])
    with pytest.raises(WireError, match="twice"):
        cut(b"\x0a\x01a\x0a\x01b", [1])
    with pytest.raises(WireError, match="ends after"):
        cut(b"\x0a\x05a", [1])
