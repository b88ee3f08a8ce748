"""MQTT packets: what paho would write is read, however the bytes are cut, and what we write is MQTT 3.1.1."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import mqtt_packets as packets
from common.errors import WireError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(TEXT, st.binary(max_size=400), st.integers(1, 0xFFFF), st.integers(0, 600))
def test_a_publish_is_found_once_it_is_all_there(topic: str, payload: bytes, number: int, cut: int) -> None:
    data = packets.publish(topic, payload, number)
    buffer = bytearray(data + packets.PING)
    found = packets.find_packet(buffer, 0, min(cut, len(data)))
    if found is None:
        assert cut < 4
        return
    assert found.end == len(data)
    with memoryview(buffer) as view:
        said, ident, body = packets.read_publish(view, found)
        assert (said, ident, bytes(body)) == (topic, number, payload)
        body.release()
    ping = packets.find_packet(buffer, found.end, len(buffer))
    assert ping == packets.Packet(12, 0, len(buffer), len(buffer))


def test_what_we_say_is_what_the_standard_says() -> None:
    assert packets.connect("c", 30, "u", "p") == (b"\x10\x13\x00\x04MQTT\x04\xc2\x00\x1e\x00\x01c\x00\x01u\x00\x01p")
    assert packets.subscribe(1, ["a/+"]) == b"\x82\x08\x00\x01\x00\x03a/+\x01"
    assert packets.publish("t", b"x", 258, retain=True) == b"\x33\x06\x00\x01t\x01\x02x"
    assert packets.acknowledge(258) == b"\x40\x02\x01\x02"
    assert packets.publish("t", bytes(200), 1)[1:3] == b"\xcd\x01", "a length of two digits"


@given(st.binary(min_size=1, max_size=60))
def test_any_bytes_are_a_packet_or_refused(data: bytes) -> None:
    buffer = bytearray(data)
    try:
        found = packets.find_packet(buffer, 0, len(buffer))
        if found and found.end <= len(buffer):
            with memoryview(buffer) as view:
                packets.read_publish(view, found)[2].release()
    except WireError as error:
        assert error.message


def test_a_length_without_end_is_refused() -> None:
    with pytest.raises(WireError, match="four digits"):
        packets.find_packet(bytearray(b"\x30\xff\xff\xff\xff\x01"), 0, 6)
