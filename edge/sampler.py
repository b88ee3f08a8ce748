"""Which frames are worth a look, and the place where they wait for it: one slot a camera, never a queue."""

import threading
from collections import OrderedDict, deque

from edge.frames import Frame


class Sampler:
    """Picks frames by capture time, `looks_per_s` of them per second of video. Pure."""

    def __init__(self, looks_per_s: float) -> None:
        self._period_ns = 1e9 / looks_per_s
        self._due_ns: float | None = None

    def wants(self, captured_at_ns: int) -> bool:
        """True for the first frame of each period; time that jumps back (a loop, a reconnect) begins anew."""
        jumped = self._due_ns is not None and captured_at_ns < self._due_ns - 2 * self._period_ns
        if self._due_ns is None or jumped or captured_at_ns - self._due_ns > 2 * self._period_ns:
            self._due_ns = captured_at_ns + self._period_ns
            return True
        # half a millisecond of slack: time stamps of files are rounded
        if captured_at_ns + 500_000 < self._due_ns:
            return False
        self._due_ns += self._period_ns
        return True


class FrameSlots:
    """Between the cameras and the model. A newer frame of a camera takes the place of the one still waiting."""

    def __init__(self) -> None:
        self._frames: OrderedDict[str, Frame] = OrderedDict()
        self._order: deque[str] = deque()
        self._dropped: dict[str, int] = {}
        self._changed = threading.Condition()

    def put(self, frame: Frame, *, wait: bool, timeout_s: float = 30) -> bool:
        """Offer a frame.

        Args:
            wait: True waits until the camera's slot is free, so nothing is dropped (unpaced files); False replaces
                the frame that waits and counts it as dropped.

        Returns:
            False only when waiting took longer than `timeout_s`: the frame was not taken.
        """
        name = frame.camera_id
        with self._changed:
            if wait and not self._changed.wait_for(lambda: name not in self._frames, timeout_s):
                return False
            if name in self._frames:
                self._dropped[name] = self._dropped.get(name, 0) + 1
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
