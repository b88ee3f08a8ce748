"""Decoding a stream only where something happens, and nothing missed for it: a group is decoded after the fact.

While a camera idles, its packets are only kept; of each group the key frame alone is decoded and compared with the
scene. When it shows something new, the group *before* it is decoded from the ring, from where it was last seen on, and
its frames are judged as if nothing had been left out. Price: news wait for the next key frame (a group's length at
most), and something that comes and goes between two key frames is not seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av

from edge.decoding import INTER_CODED, Decoder
from edge.gears import Gear
from edge.motion import Luma, luma_of
from edge.ring import Group, Packet, PacketRing
from edge.sampler import Sampler


@dataclass(frozen=True, slots=True)
class Glimpse:
    """A decoded frame that is worth a look, and the packets it can be decoded from again."""

    captured_at_ns: int
    frame: av.VideoFrame
    luma: Luma
    packets: Group | None
    """None when the packet was not kept (a stream that never sends a key frame)."""
    is_late: bool
    """Decoded after the fact: such frames come in a bunch, and none of them may be replaced by the next."""


class LazyStream:
    """One stream of one camera, from its opening to its end.

    Args:
        stream: the `av.VideoStream`.
        ring: gets every packet.
        sampler: the camera's.
        lazy: False decodes every frame in Idle too.
        loop_filter: False leaves it out (`edge.decoding`).
    """

    def __init__(self, stream: Any, ring: PacketRing, sampler: Sampler, *, lazy: bool, loop_filter: bool) -> None:
        self._decoder = Decoder(stream, loop_filter=loop_filter, on_damage=sampler.health.damage)
        self._lazy = lazy and stream.codec_context.name in INTER_CODED
        self._ring, self._sampler = ring, sampler
        self._group: Group | None = None
        self._last: Packet | None = None  # the packet taken last
        self._fed: Packet | None = None  # the packet that the decoder got last, in unbroken order
        self._seen_ns = -1

    def take(self, packet: Packet) -> Iterator[Glimpse]:
        """The next packet; yields the frames to look at, most often none."""
        before, self._group = self._group, self._ring.append(packet)
        last, self._last = self._last, packet
        if self._lazy and self._group and self._sampler.lean:
            if packet.is_key:
                yield from self._glance_only(packet, self._group)
            elif self._sampler.overdue(packet.captured_at_ns):
                yield from self._catch_up(self._group)
        elif not (self._lazy and self._group) or self._sampler.shift() is not Gear.IDLE:
            yield from self._follow(packet, last)
        elif packet.is_key:
            yield from self._glance(packet, self._group, before, complete=self._fed is last)
        elif self._sampler.overdue(packet.captured_at_ns):
            yield from self._catch_up(self._group)

    def _follow(self, packet: Packet, last: Packet | None) -> Iterator[Glimpse]:
        """Watch and Alert: decode what comes, after what was left out of its group."""
        if self._group and self._fed is not last and not packet.is_key:
            yield from self._catch_up(self._group)
        else:
            if self._fed is not last:
                self._decoder.restart()
            yield from self._decode(packet, self._group)

    def _glance(self, key: Packet, group: Group, before: Group | None, *, complete: bool) -> Iterator[Glimpse]:
        """Idle, at a key frame: when it shows something new, see what led to it."""
        frame = self._decoder.key(key)
        self._fed = None
        if frame is None:
            return
        if self._sampler.sees_motion(luma_of(frame)):
            if before and not complete:
                yield from self._catch_up(before)
            yield from self._catch_up(group, awake=True)
            return
        self._seen_ns = key.captured_at_ns
        length_ns = key.captured_at_ns - before.packets[0].captured_at_ns if before else 0
        luma = self._sampler.judge(key.captured_at_ns, frame, next_in_ns=max(0, length_ns))
        if luma is not None:
            alone = Group([key], key.size)  # a picture of a still scene needs the key frame only
            yield Glimpse(key.captured_at_ns, frame, luma, alone, is_late=False)

    def _glance_only(self, key: Packet, group: Group) -> Iterator[Glimpse]:
        """The box is too small for more (`edge.rationing`): key frames only, whatever moves between them."""
        frame = self._decoder.key(key)
        self._fed = None
        if frame is None:
            return
        self._seen_ns = key.captured_at_ns
        awake = self._sampler.sees_motion(luma_of(frame))
        luma = self._sampler.judge(key.captured_at_ns, frame, awake=awake)
        if luma is not None:
            yield Glimpse(key.captured_at_ns, frame, luma, group, is_late=False)

    def _catch_up(self, group: Group, *, awake: bool = True) -> Iterator[Glimpse]:
        """Decode what was left out of a group: from its key frame, or from where the decoder stands in it."""
        packets = list(group.packets)
        begin = next((index + 1 for index, packet in enumerate(packets) if packet is self._fed), 0)
        if begin == 0 and self._fed is not None:
            self._decoder.restart()
        for packet in packets[begin:]:
            yield from self._decode(packet, group, awake=awake, is_late=True)

    def _decode(
        self, packet: Packet, group: Group | None, *, awake: bool = False, is_late: bool = False
    ) -> Iterator[Glimpse]:
        self._fed = packet
        for at_ns, frame in self._decoder.decode(packet):
            if is_late and at_ns <= self._seen_ns:
                continue
            self._seen_ns = at_ns
            luma = self._sampler.judge(at_ns, frame, awake=awake)
            if luma is not None:
                yield Glimpse(at_ns, frame, luma, group, is_late=is_late)
