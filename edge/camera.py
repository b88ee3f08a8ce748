"""One camera: a thread that keeps its source open, paces it, picks frames worth a look, and reports its state.

A camera that fails, freezes or goes dark is a state with a sentence, never an exception that leaves this module.
"""

import logging
import random
import threading

import numpy as np
from numpy.typing import NDArray

from common.clock import Clock
from common.errors import HeadframeError, OperatorError
from common.messages import CameraState
from edge.frames import Frame
from edge.ring import PacketRing
from edge.sampler import FrameSlots, Sampler
from edge.settings import CameraSettings
from edge.sources import Shot, is_live, open_source

log = logging.getLogger(__name__)

BACK_OFF_S = (1.0, 60.0)
DARK_LUMA = 10.0
"""Mean luma (0..255) under which a picture shows nothing: covered lens, no light."""
FROZEN_S = 5.0
WAIT_S = 0.5
RING_S, RING_BYTES_MAX = 10.0, 8_000_000


class Camera:
    """Runs until `stop`, or until a file or folder that does not loop has been played."""

    def __init__(self, settings: CameraSettings, slots: FrameSlots, clock: Clock) -> None:
        self._settings, self._slots, self._clock = settings, slots, clock
        self._live = is_live(settings.source)
        self.ring = PacketRing(RING_S, RING_BYTES_MAX)
        """The last seconds, still encoded: clips are copied from it. Empty for a folder of pictures."""
        self._stopping = threading.Event()
        self._played = False
        self._state, self._detail = "starting", ""
        self._frames = self._looks = self._reconnects = 0
        self._last_picture: NDArray[np.uint8] | None = None
        self._changed_at_s = 0.0
        self._thread = threading.Thread(target=self._run, name=f"camera-{settings.id}", daemon=True)

    def start(self) -> None:
        """Begin; does not wait for the first frame."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the camera to end; `join` waits for it."""
        self._stopping.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread; a source that blocks longer is left to end with the process."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def ended(self) -> bool:
        """True when a file or folder was played to its end and each of its frames was taken."""
        return self._played and not self._slots.waits(self._settings.id)

    @property
    def state(self) -> CameraState:
        """For the heartbeat and the status page."""
        return CameraState(
            camera_id=self._settings.id,
            state=self._state,
            detail=self._detail,
            frames=self._frames,
            looks=self._looks,
            dropped=self._slots.dropped(self._settings.id),
            reconnects=self._reconnects,
        )

    def _run(self) -> None:
        """The camera loop: play, and after a fault try again, ever more slowly, until told to stop."""
        delay_s = BACK_OFF_S[0]
        while not self._stopping.is_set():
            before = self._frames
            try:
                self._play()
                if self._live:
                    self._fail(f"camera {self._settings.id}: the stream has ended", "It is opened again.")
                elif not self._settings.loop:
                    break
                else:
                    continue
            except HeadframeError as error:
                self._fail(error.message, error.hint)
            except Exception as error:  # the camera loop: a fault of one camera must not reach the others
                log.exception("camera %s", self._settings.id)
                self._fail(f"camera {self._settings.id}: {error}", "See the log.")
            delay_s = BACK_OFF_S[0] if self._frames > before else min(delay_s * 2, BACK_OFF_S[1])
            self._stopping.wait(delay_s * random.uniform(0.5, 1.5))
            self._reconnects += 1
        if not self._stopping.is_set():
            self._state, self._detail, self._played = "ended", "played to its end", True

    def _fail(self, message: str, hint: str) -> None:
        detail = f"{message}. {hint}"
        if detail != self._detail:
            log.warning("%s", detail)
        self._state, self._detail = "failed", detail

    def _play(self) -> None:
        """Play the source once from its beginning."""
        sampler = Sampler(self._settings.looks_per_s)
        self.ring.clear()
        began_s = self._clock.monotonic_s()
        self._changed_at_s = began_s
        for index, shot in enumerate(open_source(self._settings, self._clock, self.ring.append)):
            if self._stopping.is_set():
                return
            self._frames += 1
            if self._settings.paced and shot.media_s is not None:
                self._stopping.wait(max(0.0, began_s + shot.media_s - self._clock.monotonic_s()))
            if sampler.wants(shot.captured_at_ns):
                self._inspect(shot)
                self._hand_over(Frame(self._settings.id, shot.captured_at_ns, index, shot.image))
        if self._frames == 0:
            raise OperatorError(f"{self._settings.source} gave no frame", "Replace the source.")

    def _hand_over(self, frame: Frame) -> None:
        """Files that are not paced wait for the model, so that every frame is looked at; live video never waits."""
        wait = not self._live and not self._settings.paced
        while not self._slots.put(frame, wait=wait, timeout_s=WAIT_S):
            if self._stopping.is_set():
                return
        self._looks += 1

    def _inspect(self, shot: Shot) -> None:
        """Dark and frozen pictures are states of a live camera; the frames go on to the model all the same."""
        small = shot.image[::8, ::8]
        now_s = self._clock.monotonic_s()
        same = self._last_picture is not None and np.array_equal(small, self._last_picture)
        if not same:
            self._last_picture, self._changed_at_s = small.copy(), now_s
        if small.mean() < DARK_LUMA:
            self._state, self._detail = "dark", "the picture is black: lens covered or no light"
        elif self._live and same and now_s - self._changed_at_s > FROZEN_S:
            self._state, self._detail = "frozen", f"the same picture for {now_s - self._changed_at_s:.0f} s"
        else:
            self._state, self._detail = "live", ""
