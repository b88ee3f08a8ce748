"""Clips of events: what a camera showed from a little before an event began until a little after.

The seconds after the event must come first, so a clip waits in a bounded list until they have; then its packets are
copied by a thread of its own, and neither the cameras nor the look loop wait for the disk. When something is an event
is for `edge.events`; how a clip is made and the folder kept within its bounds, for `edge.clips`.
"""

import logging
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from common.clock import Clock
from common.errors import HeadframeError
from edge.clips import Evidence
from edge.decoding import Recipe
from edge.ring import PacketRing
from edge.settings import ClipSettings

log = logging.getLogger(__name__)

WAITING_MAX: Final = 32
"""Clips that wait for their last seconds; beyond it a new one is let go and counted: every camera sees the same."""
WAIT_S: Final = 0.5


class Recorded(Protocol):
    """What a clip is copied from: `edge.camera.Camera`."""

    ring: PacketRing

    @property
    def recipe(self) -> Recipe | None:
        """Of the stream whose packets are in the ring; None before it was opened."""


@dataclass(frozen=True, slots=True)
class _Order:
    camera_id: str
    camera: Recorded
    began_ns: int
    ended_ns: int
    due_s: float


class Recorder:
    """Writes clips into a folder. `start`, `order` for each event that begins, `stop`.

    Args:
        settings: how long, and how much is kept.
        folder: for clips alone.
        clock: monotonic, for when the last seconds of a clip have come.
    """

    def __init__(self, settings: ClipSettings, folder: Path, clock: Clock) -> None:
        self._settings, self._clock = settings, clock
        self._evidence = Evidence(folder, settings.files_max, settings.bytes_max)
        self._orders: deque[_Order] = deque()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.written = 0
        self.lost = 0
        """Events without a clip: too many at once, or their packets were gone."""
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        """Begin to write what is ordered."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Write at once what waits, with the seconds that have come, and end."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def order(self, camera_id: str, camera: Recorded, began_ns: int, at_ns: int) -> None:
        """An event began at `began_ns` and was told at `at_ns`. Never waits."""
        clip = _Order(
            camera_id,
            camera,
            began_ns - round(self._settings.before_s * 1e9),
            at_ns + round(self._settings.after_s * 1e9),
            self._clock.monotonic_s() + self._settings.after_s,
        )
        with self._lock:
            if len(self._orders) >= WAITING_MAX:
                self.lost += 1
                return
            self._orders.append(clip)

    def _run(self) -> None:
        while not self._stopping.wait(WAIT_S):
            self._write_due(self._clock.monotonic_s())
        self._write_due(float("inf"))

    def _write_due(self, now_s: float) -> None:
        while True:
            with self._lock:
                if not self._orders or self._orders[0].due_s > now_s:
                    return
                clip = self._orders.popleft()
            self._write(clip)

    def _write(self, clip: _Order) -> None:
        recipe = clip.camera.recipe
        if recipe is None:
            self.lost += 1
            return
        try:
            self._evidence.keep_clip(clip.camera_id, clip.camera.ring, recipe, clip.began_ns, clip.ended_ns)
        except HeadframeError as error:
            self.lost += 1
            log.warning("no clip of camera %s: %s", clip.camera_id, error)
        else:
            self.written += 1
