"""MQTT packets: whole again however the network slices them, and refused when they are no MQTT."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import WireError
from simulations import packets
from simulations.packets import Kind, Packet, Splitter

TOPICS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0+#"), min_size=1, max_size=40)
MESSAGES = st.tuples(TOPICS, st.binary(max_size=400), st.integers(0, 65_535), st.booleans(), st.booleans())


@given(st.lists(MESSAGES, max_size=6), st.lists(st.integers(1, 300), min_size=1, max_size=20))
def test_packets_are_whole_again_however_they_are_sliced(
    messages: list[tuple[str, bytes, int, bool, bool]], slices: list[int]
) -> None:
    sent = [packets.publish(t, p, number, retain=r, duplicate=d) for t, p, number, r, d in messages]
    stream, splitter, got = b"".join([*sent, packets.PINGREQ]), Splitter(), []
    at = turn = 0
    while at < len(stream):
        size = slices[turn % len(slices)]
        got += list(splitter.feed(stream[at : at + size]))
        at, turn = at + size, turn + 1
    assert [packet.raw for packet in got] == [*sent, packets.PINGREQ]
    assert splitter.held_bytes == 0
    said = [packets.read_publish(packet) for packet in got[:-1]]
    assert [(m.topic, m.payload, m.packet_id, m.retain, m.duplicate) for m in said] == messages


@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_are_split_or_refused_and_nothing_else(data: bytes) -> None:
    splitter = Splitter()
    try:
        found = list(splitter.feed(data))
    except WireError:
        return
    assert b"".join(packet.raw for packet in found) == data[: len(data) - splitter.held_bytes]
    for packet in found:
        if packet.kind is Kind.PUBLISH:
            try:
                packets.read_publish(packet)
            except WireError:
                continue


@pytest.mark.parametrize("data", [b"\x00\x00", b"\xf0\x00", b"\x30\xff\xff\xff\x7f", b"\x30\xff\xff\xff\xff"])
def test_what_is_no_mqtt_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        list(Splitter().feed(data))


def test_a_publish_of_quality_2_is_refused() -> None:
    (packet,) = Splitter().feed(b"\x34\x05\x00\x01a\x00\x01")
    with pytest.raises(WireError, match="quality"):
        packets.read_publish(packet)


def test_a_connect_says_who_what_will_and_how_long() -> None:
    raw = packets.connect("gw", clean=False, keepalive_s=30, will=("up", b"gone"), username="gw", password="pw")
    (packet,) = Splitter().feed(raw)
    assert packet == Packet(
        Kind.CONNECT,
        0,
        b"\x00\x04MQTT\x04\xcc\x00\x1e\x00\x02gw\x00\x02up\x00\x04gone\x00\x02gw\x00\x02pw",
        raw,
    )
