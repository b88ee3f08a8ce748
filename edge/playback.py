"""One playing of one stream: what arrives goes in, frames worth a look come out, each with the still it can become."""

import weakref
from collections.abc import Iterator

import cv2
import numpy as np

from common.clock import Clock
from common.pictures import read_picture
from edge.decoding import Recipe
from edge.frames import FallbackStill, FileStill, Frame, PacketStill, Still
from edge.gears import Gear
from edge.lazy import Glimpse, LazyStream
from edge.mainstream import MainStream
from edge.motion import shrink
from edge.ring import Group, PacketRing
from edge.sampler import Sampler
from edge.settings import CameraSettings
from edge.sources import Arrival


class Playback:
    """From the opening of a camera's stream to its end or fault.

    Args:
        settings: of the camera.
        sampler: of the camera; it outlives the playback.
        ring: for the packets of this stream.
        main: where pictures are taken from when this is the sub-stream; else None.
        held: is told every group of packets that a frame depends on.
    """

    def __init__(
        self,
        settings: CameraSettings,
        sampler: Sampler,
        ring: PacketRing,
        main: MainStream | None,
        held: "weakref.WeakSet[Group]",
        clock: Clock,
    ) -> None:
        self._settings, self._sampler, self._ring, self._main = settings, sampler, ring, main
        self._held, self._clock = held, clock
        self._stream: LazyStream | None = None
        self.recipe: Recipe | None = None
        """How the packets in the ring are decoded; None before the stream was opened."""
        self._frames = 0
        ring.clear()

    def take(self, arrival: Arrival) -> Iterator[Frame]:
        """The next packet or picture; yields the frames to look at, most often none."""
        if arrival.picture is not None:
            yield from self._picture(arrival)
            return
        if arrival.packet is None:
            return
        if self._stream is None:
            self._open(arrival)
        if self._stream is None or self.recipe is None:
            return
        if self._main:
            self._main.advance(arrival.captured_at_ns)
        for glimpse in self._stream.take(arrival.packet):
            yield self._frame(glimpse, arrival.captured_at_ns, self.recipe)

    def _open(self, arrival: Arrival) -> None:
        self.recipe = Recipe(arrival.stream)
        self._stream = LazyStream(
            arrival.stream,
            self._ring,
            self._sampler,
            lazy=self._settings.gears.motion_min > 0,
            # a sub-stream is small and shrunk little: its filter costs hardly anything, and is seen
            loop_filter=self._main is not None,
        )
        if self._main:
            self._main.rewind(arrival.captured_at_ns)

    def _picture(self, arrival: Arrival) -> Iterator[Frame]:
        """Pictures of a folder have no packets to leave out: each one that is due is looked at."""
        if arrival.picture is None or not self._sampler.due(arrival.captured_at_ns):
            return
        image = read_picture(arrival.picture)
        luma = shrink(np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), dtype=np.uint8))
        size = (image.shape[1], image.shape[0])
        yield Frame(
            camera_id=self._settings.id,
            captured_at_ns=arrival.captured_at_ns,
            index=self._count(),
            decided_at_ns=arrival.captured_at_ns,
            ready_s=self._clock.monotonic_s(),
            path=f"main-{size[0]}x{size[1]}",
            size=size,
            is_late=False,
            luma=luma,
            still=FileStill(arrival.picture),
            source=image,
        )

    def _frame(self, glimpse: Glimpse, now_ns: int, recipe: Recipe) -> Frame:
        size = (glimpse.frame.width, glimpse.frame.height)
        return Frame(
            camera_id=self._settings.id,
            captured_at_ns=glimpse.captured_at_ns,
            index=self._count(),
            decided_at_ns=now_ns,
            ready_s=self._clock.monotonic_s(),
            path=f"{'sub' if self._main else 'main'}-{size[0]}x{size[1]}",
            size=size,
            is_late=glimpse.is_late,
            luma=glimpse.luma,
            still=self._still(glimpse, recipe),
            source=glimpse.frame,
        )

    def _still(self, glimpse: Glimpse, recipe: Recipe) -> Still | None:
        """The main stream's packets of the same instant, else this stream's own."""
        own: PacketStill | None = None
        if glimpse.packets is not None:
            own = self._hold(PacketStill(recipe, glimpse.packets, glimpse.captured_at_ns, glimpse.frame.pts))
        key_only = self._sampler.gear is Gear.IDLE
        main = self._main.still(glimpse.captured_at_ns, key_only=key_only) if self._main else None
        if main is None:
            return own
        return self._hold(main) if own is None else FallbackStill(self._hold(main), own)

    def _hold(self, still: PacketStill) -> PacketStill:
        self._held.add(still.group)
        return still

    def _count(self) -> int:
        self._frames += 1
        return self._frames - 1
