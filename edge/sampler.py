"""Which decoded frames are worth a look, and the place where they wait for it: one slot a camera, never a queue."""

import threading
from collections import OrderedDict, deque
from typing import Final

import av

from edge.frames import Frame
from edge.gears import Gear, Gears, Pace
from edge.health import Health
from edge.motion import Luma, Scene, changed_share, luma_of
from edge.rationing import STEPS
from edge.settings import CameraSettings
from edge.sources import is_live

LEAN: Final = 0.5**STEPS
"""Share of its looks from which on a camera decodes key frames only: an eighth of five a second is about as many."""


class Ticks:
    """Evenly spaced instants of video time, at a rate that may change. Pure."""

    def __init__(self) -> None:
        self._last_ns: float | None = None

    def due(self, at_ns: int, per_s: float) -> bool:
        """True for the first frame of each period; time that jumps (a loop, a reconnect, a gap) begins anew."""
        period_ns = 1e9 / per_s
        last_ns = self._last_ns
        if last_ns is None or at_ns < last_ns - 2 * period_ns or at_ns - last_ns > 3 * period_ns:
            self._last_ns = at_ns
            return True
        # half a millisecond of slack: time stamps of files are rounded
        if at_ns + 500_000 < last_ns + period_ns:
            return False
        self._last_ns = last_ns + period_ns
        return True


class Sampler:
    """Decides frame by frame for one camera: due in its gear, and different from what was looked at last.

    `strike`, `share` and `gear` are for other threads too; everything else is the camera thread's.
    """

    def __init__(self, settings: CameraSettings) -> None:
        gears = settings.gears
        self._settings = gears
        self._floor_ns = round(gears.floor_s * 1e9)
        steady = min(gears.steady_looks_per_s, settings.looks_per_s)
        self._pace = Pace(settings.looks_per_s, steady, max(gears.alert_looks_per_s, settings.looks_per_s))
        self._gears = Gears(gears)
        self._ticks = Ticks()
        self._scene = Scene(gears.motion_min, gears.background_s)
        self._looked: Luma | None = None
        self._looked_ns = 0
        self._seen_ns = 0
        self.health = Health(can_freeze=is_live(settings.substream or settings.source))
        self.share = 1.0
        """Of the looks that the gear asks for (`edge.rationing`); set from another thread."""
        self._strikes: deque[tuple[int, bool, bool]] = deque(maxlen=8)
        self.insists = False
        """The next look must not wait for a change in the picture: an event is undecided. Set from another thread."""

    @property
    def lean(self) -> bool:
        """Looks are so few that key frames alone will do: nothing else need be decoded."""
        return self.share <= LEAN

    @property
    def gear(self) -> Gear:
        """As it was decided last; from any thread."""
        return self._gears.gear

    def shift(self) -> Gear:
        """The gear after the looks that have come back since."""
        while self._strikes:
            at_ns, striking, told = self._strikes.popleft()
            # a look ends later than newer frames were seen: its news is as new as they are
            self._gears.on_look(max(at_ns, self._seen_ns), striking=striking, told=told)
        gear = self._gears.gear
        return Gear.WATCH if self.insists and gear is Gear.IDLE else gear

    def strike(self, at_ns: int, *, striking: bool, told: bool) -> None:
        """What the model said of a frame of this camera: was it unusually unsure, or novel? Did an event begin?"""
        self._strikes.append((at_ns, striking, told))

    def sees_motion(self, luma: Luma) -> bool:
        """Whether something is in the picture that is not of the scene; nothing is remembered."""
        return self._scene.differs(luma)

    def overdue(self, at_ns: int) -> bool:
        """A frame is to be decoded now, key frame or not: the last look is as long ago as it may be, or the last
        picture is."""
        return at_ns - self._looked_ns >= self._floor_ns or self.health.starved(at_ns)

    def due(self, at_ns: int) -> bool:
        """Whether a look is due at Watch's pace, whatever the picture shows: for folders of pictures."""
        return self._ticks.due(at_ns, self._pace.watch)

    def judge(self, at_ns: int, frame: av.VideoFrame, *, awake: bool = False, next_in_ns: int = 0) -> Luma | None:
        """Whether to look at a decoded frame: its luma if so, else None. Moves the gear.

        Args:
            next_in_ns: how long the next chance to look may take: an idle camera looks before the floor has passed.
            awake: judge at Watch's pace at least: for frames that are decoded because something moved.
        """
        gear = self.shift()
        if self.health.wants(at_ns, is_key=bool(frame.key_frame)):
            self.health.observe(at_ns, luma_of(frame))
        if awake and gear is Gear.IDLE:
            gear = Gear.WATCH
        if gear is not Gear.IDLE:
            per_s = self._pace.of(gear, steady=self._gears.is_steady(at_ns) and not awake) * self.share
            if not self._ticks.due(at_ns, per_s) and 0 <= at_ns - self._looked_ns < self._floor_ns:
                return None
            next_in_ns = round(1e9 / per_s)
        luma = luma_of(frame)
        self._seen_ns = at_ns
        self._gears.on_motion(at_ns, moved=self._scene.moves(luma, at_ns))
        waited_ns = at_ns - self._looked_ns
        if 0 <= waited_ns + next_in_ns < self._floor_ns and (
            gear is Gear.IDLE or not (self.insists or self._differs(luma))
        ):
            return None
        self._looked, self._looked_ns = luma, at_ns
        return luma

    def _differs(self, luma: Luma) -> bool:
        """From the last look: otherwise the model would only repeat what it said."""
        last = self._looked
        return last is None or last.shape != luma.shape or changed_share(luma, last) >= self._settings.gate


class FrameSlots:
    """Between the cameras and the model. A newer frame of a camera takes the place of the one still waiting."""

    def __init__(self) -> None:
        self._frames: OrderedDict[str, Frame] = OrderedDict()
        self._order: deque[str] = deque()
        self._dropped: dict[str, int] = {}
        self.replaced = 0
        """Frames that a newer one replaced, of all cameras there ever were."""
        self._changed = threading.Condition()

    def put(self, frame: Frame, *, wait: bool, timeout_s: float = 30) -> bool:
        """Offer a frame.

        Args:
            wait: True waits until the camera's slot is free, so nothing is dropped (unpaced files, and frames decoded
                after the fact); False replaces the frame that waits and counts it as dropped.

        Returns:
            False only when waiting took longer than `timeout_s`: the frame was not taken.
        """
        name = frame.camera_id
        with self._changed:
            if wait and not self._changed.wait_for(lambda: name not in self._frames, timeout_s):
                return False
            if name in self._frames:
                self._dropped[name] = self._dropped.get(name, 0) + 1
                self.replaced += 1
            else:
                self._order.append(name)
            self._frames[name] = frame
            self._changed.notify_all()
            return True

    def take(self, timeout_s: float) -> Frame | None:
        """The frame of the camera that has waited longest, or None after `timeout_s`."""
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._frames), timeout_s):
                return None
            frame = self._frames.pop(self._order.popleft())
            self._changed.notify_all()
            return frame

    def discard(self, camera_id: str) -> None:
        """Forget a camera: the frame that waits, and what was counted."""
        with self._changed:
            if self._frames.pop(camera_id, None) is not None:
                self._order.remove(camera_id)
            self._dropped.pop(camera_id, None)
            self._changed.notify_all()

    def dropped(self, camera_id: str) -> int:
        """Frames of a camera that a newer one replaced."""
        with self._changed:
            return self._dropped.get(camera_id, 0)

    def waits(self, camera_id: str) -> bool:
        """True while a frame of this camera has not been taken."""
        with self._changed:
            return camera_id in self._frames

    @property
    def pending(self) -> int:
        """Frames that wait now, one per camera at most."""
        with self._changed:
            return len(self._frames)
