"""One camera: a thread that keeps its stream open, paces it, picks frames worth a look, and reports its state.

A camera that fails, or whose picture is not well (`edge.health`), is a state with a sentence, never an exception that
leaves this module.
With a sub-stream, that is looked at and `edge.mainstream` keeps the main one for the pictures; when the sub-stream dies
the camera looks at the main stream and tries the other again from time to time.
"""

import logging
import random
import threading
import weakref
from collections import deque
from statistics import median

from common.clock import Clock
from common.errors import HeadframeError, OperatorError
from common.messages import CameraState
from edge.decoding import Recipe
from edge.frames import Frame
from edge.health import BLIND, SENTENCES, Condition
from edge.mainstream import MainStream
from edge.playback import Playback
from edge.ring import Group, PacketRing
from edge.sampler import FrameSlots, Sampler
from edge.settings import CameraSettings
from edge.sources import is_live, open_stream

log = logging.getLogger(__name__)

BACK_OFF_S = (1.0, 60.0)
RUNNING = frozenset(condition.value for condition in Condition)
"""States of a camera whose stream arrives."""
_BLIND = frozenset(condition.value for condition in BLIND)
WAIT_S = 0.5
LATE_WAIT_S = 2.0
"""How long a live camera waits with a frame decoded after the fact for the one before it to be taken."""
RING_S = 10.0
"""Of packets, for clips; bounded by half of `memory_bytes_max` as well."""
SUBSTREAM_RETRY_S = 60.0
RATE_S = 10.0
"""Rates that are reported are means over so long."""
LATENCIES = 200


class Camera:
    """Runs until `stop`, or until a file or folder that does not loop has been played."""

    def __init__(self, settings: CameraSettings, slots: FrameSlots, clock: Clock) -> None:
        self.settings, self._slots, self._clock = settings, slots, clock
        self._watched = settings.substream or settings.source
        self._live = is_live(self._watched)
        self._stopping = threading.Event()
        self.ring = PacketRing(RING_S, settings.memory_bytes_max // 2)
        """The last seconds of the main stream, still encoded: clips are copied from it. Empty for a folder."""
        self._main = MainStream(settings, self.ring, clock, self._stopping) if settings.substream else None
        self._watch_ring = PacketRing(RING_S, settings.memory_bytes_max // 4) if settings.substream else self.ring
        self._sampler = Sampler(settings)
        self._playback: Playback | None = None
        self._played = False
        self._state, self._detail = "starting", ""
        self._frames = self._looks = self._reconnects = 0
        self._arrived = Rate()
        self._looked = Rate()
        self._latencies_ms: deque[float] = deque(maxlen=LATENCIES)
        self._why_rationed = ""
        self.held_bytes_max = settings.memory_bytes_max // 2
        """Of packets kept for frames that may yet be chosen; beyond it they compete within a shorter window."""
        self._held: weakref.WeakSet[Group] = weakref.WeakSet()
        self._thread = threading.Thread(target=self._run, name=f"camera-{settings.id}", daemon=True)

    def start(self) -> None:
        """Begin; does not wait for the first frame."""
        if self._main:
            self._main.start()
        self._thread.start()

    def stop(self) -> None:
        """Ask the camera to end; `join` waits for it."""
        self._stopping.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread; a source that blocks longer is left to end with the process."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if self._main:
            self._main.join(timeout_s)

    @property
    def ended(self) -> bool:
        """True when a file or folder was played to its end and each of its frames was taken."""
        return self._played and not self._slots.waits(self.settings.id)

    @property
    def blind(self) -> str:
        """Why its pictures say nothing of what is before it now (`edge.health.BLIND`); empty while they do."""
        return self._state if self._state in _BLIND else ""

    @property
    def live(self) -> bool:
        """A stream or device, with no end and no pace of its own to keep."""
        return self._live

    @property
    def recipe(self) -> Recipe | None:
        """How the packets in `ring` are decoded; None while there are none."""
        source = self._main or self._playback
        return source.recipe if source else None

    @property
    def held_bytes(self) -> int:
        """Size of the packets kept because a frame that may yet be chosen needs them."""
        return sum(group.size for group in list(self._held))

    @property
    def state(self) -> CameraState:
        """For the heartbeat and the status page."""
        now_s = self._clock.monotonic_s()
        latencies = sorted(self._latencies_ms)
        running = self._state in RUNNING
        detail = self._detail
        if running and self._sampler.share < 1:
            rationed = f"looked at {self._sampler.share:g} as often as it should be: {self._why_rationed}"
            detail = f"{detail}; {rationed}" if detail else rationed
        return CameraState(
            camera_id=self.settings.id,
            state=self._state,
            detail=detail,
            frames=self._frames,
            looks=self._looks,
            dropped=self._slots.dropped(self.settings.id),
            reconnects=self._reconnects,
            damaged=self._sampler.health.damaged,
            gear=self._sampler.gear.value if running else "",
            fps=self._arrived.per_s(now_s),
            looks_per_s=self._looked.per_s(now_s),
            latency_ms=median(latencies) if latencies else 0.0,
            latency_ms_p99=latencies[int(0.99 * (len(latencies) - 1))] if latencies else 0.0,
        )

    @property
    def gone(self) -> bool:
        """True when nothing of it runs: its streams are closed, or were never opened."""
        return not self._thread.is_alive() and not (self._main and self._main.alive)

    def ration(self, share: float, why: str) -> None:
        """Look less often than the gear asks for, 0..1 of it; it is reported. From any thread."""
        self._sampler.share, self._why_rationed = share, why

    def keep_at_most(self, bytes_max: int) -> None:
        """Of encoded video, for pictures and clips. From any thread."""
        self.ring.bound(bytes_max // 2)
        if self._watch_ring is not self.ring:
            self._watch_ring.bound(bytes_max // 4)
        self.held_bytes_max = bytes_max // 2

    def looked_at(self, frame: Frame, *, striking: bool, told: bool = False, insists: bool = False) -> None:
        """The model has looked at a frame of this camera (called by the look loop).

        Args:
            striking: unusually unsure or novel: looks become dense.
            told: an event begins with this look: they need no longer be.
            insists: an event is undecided: the next look does not wait for a change in the picture.
        """
        self._sampler.insists = insists
        now_s = self._clock.monotonic_s()
        self._looked.count(now_s)
        self._latencies_ms.append(1e3 * (now_s - frame.ready_s))
        self._sampler.strike(frame.captured_at_ns, striking=striking, told=told)

    def _run(self) -> None:
        """The camera loop: play, and after a fault try again, ever more slowly, until told to stop."""
        delay_s = BACK_OFF_S[0]
        while not self._stopping.is_set():
            before = self._frames
            if self._attempt(self._watched, self._main):
                if self._stopping.is_set():
                    return
                if self._live:
                    self._fail(f"camera {self.settings.id}: the stream has ended", "It is opened again.")
                elif not self.settings.loop:
                    break
                else:
                    continue
            if self._main and self._frames == before:
                self._look_at_main(self._detail)
            delay_s = BACK_OFF_S[0] if self._frames > before else min(delay_s * 2, BACK_OFF_S[1])
            self._stopping.wait(delay_s * random.uniform(0.5, 1.5))
            self._reconnects += 1
        if not self._stopping.is_set():
            self._state, self._detail, self._played = "ended", "played to its end", True

    def _look_at_main(self, why: str) -> None:
        """The sub-stream gives nothing: look at the main stream for a while."""
        log.warning("camera %s looks at its main stream: %s", self.settings.id, why)
        self._attempt(self.settings.source, None, SUBSTREAM_RETRY_S, f"looks at the main stream: {why}")

    def _attempt(self, source: str, main: MainStream | None, for_s: float | None = None, note: str = "") -> bool:
        """`_play`; False when it failed, which is then the camera's state."""
        try:
            self._play(source, main, for_s, note)
        except HeadframeError as error:
            self._fail(error.message, error.hint)
            return False
        except Exception as error:  # the camera loop: a fault of one camera must not reach the others
            log.exception("camera %s", self.settings.id)
            self._fail(f"camera {self.settings.id}: {error}", "See the log.")
            return False
        return True

    def _fail(self, message: str, hint: str) -> None:
        detail = f"{message}. {hint}"
        if detail != self._detail:
            log.warning("%s", detail)
        self._state, self._detail = "failed", detail

    def _play(self, source: str, main: MainStream | None, for_s: float | None = None, note: str = "") -> None:
        """Play a stream once from its beginning, for `for_s` at most; `note` is said while all is well."""
        began_s = self._clock.monotonic_s()
        health = self._sampler.health
        pictures = health.pictures
        playback = Playback(self.settings, self._sampler, self._watch_ring, main, self._held, self._clock)
        self._playback = playback
        arrived = 0
        for arrival in open_stream(source, self.settings, self._clock):
            if self._stopping.is_set():
                return
            arrived += 1
            self._frames += 1
            if self.settings.paced and arrival.media_s is not None:
                self._stopping.wait(max(0.0, began_s + arrival.media_s - self._clock.monotonic_s()))
            now_s = self._clock.monotonic_s()
            self._arrived.count(now_s)
            for frame in playback.take(arrival):
                pictures = -1
                self._hand_over(frame)
            if health.pictures > pictures or health.condition is Condition.GARBLED:
                self._state = health.condition.value
                self._detail = SENTENCES[health.condition] or note or (self._main.fault if self._main else "")
            if for_s is not None and now_s - began_s > for_s:
                return
        if not arrived:
            raise OperatorError(f"{source} gave no frame", "Replace the source.")

    def _hand_over(self, frame: Frame) -> None:
        """A file that is not paced waits for the model, so that every frame is looked at, and so do, for a moment,
        frames decoded after the fact; live video never waits."""
        if self._stopping.is_set():
            return  # it may have been detached, or have a successor
        unpaced = not self._live and not self.settings.paced
        waited_s = 0.0
        while not self._slots.put(frame, wait=unpaced or (frame.is_late and waited_s < LATE_WAIT_S), timeout_s=WAIT_S):
            waited_s += WAIT_S
            if self._stopping.is_set():
                return
        self._looks += 1


class Rate:
    """Events per second over the last `RATE_S`. Counted by one thread, read by any."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=round(RATE_S * 60))

    def count(self, now_s: float) -> None:
        """An event happened."""
        self._times.append(now_s)

    def per_s(self, now_s: float) -> float:
        """The mean rate until now."""
        return sum(1 for at_s in tuple(self._times) if at_s > now_s - RATE_S) / RATE_S
