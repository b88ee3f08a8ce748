"""The packet ring: whole groups, bounded, and what can be found in it."""

from hypothesis import given
from hypothesis import strategies as st

from edge.ring import Group, Packet, PacketRing

S = 10**9


def packet(at_s: float, *, key: bool = False, size: int = 10) -> Packet:
    return Packet(round(at_s * S), key, size, None)


def stream(seconds: int, group_s: int = 2, fps: int = 5) -> list[Packet]:
    return [packet(n / fps, key=n % (group_s * fps) == 0) for n in range(seconds * fps)]


STREAMS = st.lists(st.tuples(st.booleans(), st.integers(1, 400), st.floats(0.01, 3)), max_size=80)


@given(STREAMS, st.floats(0.5, 20), st.integers(100, 3000))
def test_it_holds_whole_groups_within_its_bounds(rows: list[tuple[bool, int, float]], span_s: float, most: int) -> None:
    ring, at_s, sent = PacketRing(span_s, most), 0.0, []
    for is_key, size, step_s in rows:
        at_s += step_s
        sent.append(packet(at_s, key=is_key, size=size))
        ring.append(sent[-1])
        held = list(ring.between(0, round(at_s * S)))
        assert ring.bytes == sum(item.size for item in held)
        assert not held or held[0].is_key, "decoding can begin"
        assert held == sent[len(sent) - len(held) :], "the newest, without a gap"
        last_group = next((n for n, item in enumerate(reversed(held), 1) if item.is_key), 0)
        assert ring.bytes <= most or len(held) == last_group, "only the group under way may be larger"


def test_the_group_of_an_instant() -> None:
    ring = PacketRing(10, 10**6)
    for item in stream(8):
        ring.append(item)
    group = ring.group(round(3.3 * S))
    assert group is not None
    assert group.packets[0].captured_at_ns == 2 * S
    assert [item.captured_at_ns / S for item in group.until(round(2.5 * S))] == [2.0, 2.2, 2.4]
    assert group.until(0) == (group.packets[0],), "at least the key frame"
    oldest = ring.group(-5 * S)
    assert oldest is not None
    assert oldest.packets[0].captured_at_ns == 0


def test_an_interval_begins_with_a_key_frame() -> None:
    ring = PacketRing(10, 10**6)
    for item in stream(8):
        ring.append(item)
    times = [item.captured_at_ns / S for item in ring.between(3 * S, 5 * S)]
    assert (times[0], times[-1]) == (2.0, 5.0)


def test_packets_before_the_first_key_frame_are_not_kept() -> None:
    ring = PacketRing(10, 10**6)
    assert ring.append(packet(0)) is None
    assert isinstance(ring.append(packet(1, key=True)), Group)
    assert ring.bytes == 10
