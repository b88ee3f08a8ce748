"""Packets into frames, as few as will do: one decoder per stream for looking, a clean one on demand for pictures.

The decoder for looking leaves H.264's loop filter out where told to: a sixth cheaper, and a picture shrunk to the
model's input does not show it. What is sent to people is decoded again with everything on.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any, Final

import av

from edge.ring import Packet

log = logging.getLogger(__name__)

INTER_CODED: Final = {"h264", "hevc"}
"""Codecs with groups worth decoding lazily and packets that can be decoded apart from their container."""
PENDING_MAX: Final = 64
"""Packets whose frame has not come out yet: no codec reorders more."""


class Decoder:
    """Frames of one stream for looking, each with the instant its packet was captured at.

    Args:
        stream: the `av.VideoStream` that the packets are from; its decoder is used, so it must be open.
        loop_filter: False leaves the loop filter out.
        on_damage: is told the instant of each packet that gives no picture, or a damaged one.
    """

    def __init__(self, stream: Any, *, loop_filter: bool, on_damage: Callable[[int], None]) -> None:
        self._context, self._on_damage = stream.codec_context, on_damage
        if not loop_filter and self._context.name in INTER_CODED and not self._context.is_open:
            self._context.options = {"skip_loop_filter": "all"}
        self._instants: dict[int | None, int] = {}

    def decode(self, packet: Packet) -> Iterator[tuple[int, av.VideoFrame]]:
        """Feed a packet; yields (captured_at_ns, frame) of what comes out. Damaged frames are dropped: they would
        look like anomalies."""
        self._instants[packet.data.pts] = packet.captured_at_ns
        if len(self._instants) > PENDING_MAX:
            self._instants.pop(next(iter(self._instants)))
        try:
            frames = self._context.decode(packet.data)
        except av.FFmpegError as error:
            log.debug("a packet cannot be decoded (%s)", error)
            self._on_damage(packet.captured_at_ns)
            return
        for frame in frames:
            if frame.is_corrupt:
                self._on_damage(packet.captured_at_ns)
            else:
                yield self._instants.pop(frame.pts, packet.captured_at_ns), frame

    def key(self, packet: Packet) -> av.VideoFrame | None:
        """A key frame alone, whatever came before; afterwards the decoder is at a beginning."""
        self.restart()
        frame = next((frame for _, frame in self.decode(packet)), None)
        if frame is None:  # the decoder waits for frames to reorder: there are none
            frame = next(iter(self.drain()), None)
        if frame is None:
            self._on_damage(packet.captured_at_ns)
        self.restart()
        return frame

    def drain(self) -> list[av.VideoFrame]:
        """What the decoder still holds back."""
        try:
            frames: list[av.VideoFrame] = [frame for frame in self._context.decode(None) if not frame.is_corrupt]
        except av.FFmpegError:
            return []
        return frames

    def restart(self) -> None:
        """Forget the frames before: the next packet must be a key frame."""
        self._instants.clear()
        if self._context.is_open:
            self._context.flush_buffers()


class Recipe:
    """What it takes to decode a stream's packets later, when the stream itself may be closed."""

    def __init__(self, stream: Any) -> None:
        context = stream.codec_context
        self.name: str = context.name
        self.extradata: bytes = bytes(context.extradata) if context.extradata else b""
        """Parameter sets that the stream sends apart from its packets; empty when it sends them within."""
        self._size: tuple[int, int] = context.width, context.height
        self._time_base: Fraction | None = stream.time_base

    def last(self, packets: Iterable[Packet], pts: int | None) -> av.VideoFrame | None:
        """The frame with time stamp `pts` at the end of a group, decoded with everything on; None if it is damaged.

        Args:
            packets: from a key frame to the frame wanted.
            pts: None takes the last frame that comes out.
        """
        context = av.CodecContext.create(self.name, "r")
        context.thread_count = 1
        if self.extradata:
            context.extradata = self.extradata
        found: av.VideoFrame | None = None
        for data in [*(packet.data for packet in packets), None]:
            try:
                frames = context.decode(data)
            except av.FFmpegError:
                continue
            for frame in frames:
                if not frame.is_corrupt and (pts is None or frame.pts == pts):
                    found = frame
        return found
