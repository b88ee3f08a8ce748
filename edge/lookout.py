"""The look loop: frames of some cameras in, samples worth keeping out. One thread, one model, many cameras.

Owns what may live in a worker process of its own: cameras, slots, the running model, the selector. Knows no spool, no
link and no installer: a release is handed in and swapped between two frames, with another that looks beside it, and a
chosen sample goes to `accept`, which returns when somebody has made it durable. A release on trial that raises or
answers with numbers that are none is left at once: the one beside it looks at the very frame.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from common.clock import Clock
from common.errors import HeadframeError
from common.ids import event_id, sample_id
from common.messages import Box, CameraState, Event, Sample
from edge.camera import Camera
from edge.events import Phase, Turn
from edge.frames import FileStill, Frame, Picture, Still, cut_zone
from edge.judge import Judge, Verdict
from edge.outputs import snapshot
from edge.perception import Model, View
from edge.rationing import Rationing
from edge.recorder import Recorder
from edge.sampler import FrameSlots
from edge.selection import Candidate, Chosen, Selector
from edge.selection.keeping import Keeper
from edge.settings import CameraSettings, EdgeSettings
from edge.shadow import Shadow
from edge.tally import Observation, Pair, Tally, asks_attention, is_finite

log = logging.getLogger(__name__)

Accept = Callable[[Sample], None]
"""Takes a sample and returns when it is durable, or when the agent stops. May block: the look loop then waits."""

OnEvent = Callable[[Event], None]
"""Is told what events do, on the look loop's thread; must not block."""

OnLook = Callable[[Frame, View], None]
"""Is told every look, on the look loop's thread: events, snapshots, benchmarks."""

MODEL_WAIT_S = 0.5
FRAME_WAIT_S = 0.25
RATION_S = 5.0
"""How often the looks of all cameras are weighed against what the box can do."""
ERRORS_MAX = 20
"""After so many looks in a row that raised, the loop ends and with it the process: a start anew may help."""
RELEASES_MAX = 8
"""Releases whose looks are counted apart; the oldest are forgotten."""


@dataclass(frozen=True, slots=True)
class Cast:
    """Who looks: the release that runs, and one that looks at some of the frames beside it."""

    runs: Model | None
    beside: Model | None = None
    on_trial: bool = False
    """`beside` takes over when `runs` fails."""


class _Abandoned(Exception):
    """The look of this thread hung, and another thread has taken over."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a candidate carries until it is chosen: what its picture is made from, and who looked at it."""

    still: Still | None
    release_id: str
    backbone: str
    pixel_path: str
    boxes: tuple[Box, ...]
    variant: str


class Lookout:
    """Looks at the frames of its cameras. `start`, then `hand_over` a model whenever there is one, then `stop`.

    Args:
        settings: of the gateway: its identity and selection.
        cameras: those of the gateway's cameras that this lookout has.
        clock: for the cameras' pace.
        accept: makes a chosen sample durable.
        on_look: is told every look.
        on_event: is told every event.
    """

    def __init__(
        self,
        settings: EdgeSettings,
        cameras: Sequence[CameraSettings],
        clock: Clock,
        accept: Accept,
        on_look: OnLook | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        self._settings, self._accept_sample = settings, accept
        self._on_look, self._on_event = on_look, on_event
        self.pictures_lost = 0
        """Chosen frames of which no picture could be made: their packets were gone or damaged."""
        self.looks_by_release: Counter[str] = Counter()
        self._judges = {camera.id: Judge(camera, settings.events) for camera in cameras}
        self._judged_release = ""
        self._looked_at_ns: dict[str, int] = {}
        self._slots = FrameSlots()
        self.cameras = {camera.id: Camera(camera, self._slots, clock) for camera in cameras}
        self._rationing = Rationing({camera.id: camera.priority for camera in cameras})
        self._clock = clock
        self._weighed_s, self._waited_s = clock.monotonic_s(), 0.0
        self._weighed_looks = self._weighed_drops = 0
        self._selector = Selector(settings.selection, list(self.cameras))
        self._keeper = Keeper(settings.data_dir, self._selector, list(self.cameras), clock.monotonic_s())
        self._refused = 0
        clips = settings.outputs.clips
        self._recorder = Recorder(clips, settings.data_dir / "clips", clock) if clips.enabled else None
        self._flushed: set[str] = set()
        self._next: Cast | None = None
        self._cast = Cast(None)
        self._shadow: Shadow | None = None
        self._tallies: dict[str, Tally] = {}
        self._failed = ""
        """Why this loop went back to the release beside, since the last order."""
        self._errors = 0
        """Looks in a row that raised."""
        self._under_way: tuple[Frame, float] | None = None
        """The frame that is being looked at, and since when (monotonic)."""
        self._swap = threading.Condition()
        self._stopping = threading.Event()
        self._thread = self._make_thread()

    @property
    def model(self) -> Model | None:
        """What looks now; None on a box that never had a release."""
        return self._cast.runs

    @property
    def alive(self) -> bool:
        """False when the look loop has died of an exception (or was not started)."""
        return self._thread.is_alive()

    @property
    def ended(self) -> bool:
        """All cameras were files or folders, and every frame of them has been looked at and judged."""
        return len(self._flushed) == len(self.cameras) and all(camera.ended for camera in self.cameras.values())

    @property
    def states(self) -> tuple[CameraState, ...]:
        """Reported state of each camera."""
        return tuple(camera.state for camera in self.cameras.values())

    def start(self) -> None:
        """Begin to look; does not wait for a model or a frame."""
        self._thread.start()
        if self._recorder:
            self._recorder.start()
        for camera in self.cameras.values():
            camera.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End cameras first, then judge what is still held: what was chosen has been accepted on return."""
        self._stopping.set()
        for camera in self.cameras.values():
            camera.stop()
        for camera in self.cameras.values():
            camera.join(timeout_s)
        with self._swap:
            self._swap.notify_all()
            if self._shadow:
                self._shadow.stop()
        self._thread.join(timeout_s)
        if self._recorder:
            self._recorder.stop(timeout_s)

    def hand_over(
        self, model: Model | None, beside: Model | None = None, *, on_trial: bool = False, rescue: bool = False
    ) -> None:
        """A release to run: the look loop takes it before its next frame. Never blocks, from any thread.

        Args:
            model: what runs; None: nothing may look any more.
            beside: looks at some of the frames too, at the share of a core that is set.
            on_trial: `beside` takes over when `model` fails on a frame.
            rescue: the look under way hangs: its thread is left to itself, and a new one goes on with the same frame.
        """
        with self._swap:
            self._next = Cast(model, beside, on_trial)
            if rescue and self._under_way:
                self._thread = self._make_thread(self._under_way[0])
                self._under_way = None
                self._thread.start()
            self._swap.notify_all()

    def observe(self) -> Observation:
        """What has been counted of the releases that look or looked here."""
        with self._swap:
            shadow, cast, under_way = self._shadow, self._next or self._cast, self._under_way
            tallies = {name: msgspec.structs.replace(tally) for name, tally in self._tallies.items()}
            running = self._cast.runs
            failed = "" if self._next else self._failed
        pair, beside_stuck_s = Pair(), 0.0
        if shadow and shadow.model is cast.beside:
            pair, beside_stuck_s = msgspec.structs.replace(shadow.pair), shadow.stuck_s
            tallies.setdefault(shadow.model.release_id, msgspec.structs.replace(shadow.tally))
        return Observation(
            running=running.release_id if running else "",
            tallies=tallies,
            pair=pair,
            stuck_s=self._clock.monotonic_s() - under_way[1] if under_way else 0.0,
            beside_stuck_s=beside_stuck_s,
            failed=failed,
        )

    def _make_thread(self, again: Frame | None = None) -> threading.Thread:
        return threading.Thread(target=self._look_on, args=(again,), name="lookout", daemon=True)

    def _take_model(self) -> Model | None:
        """The model for the next frame: the swap happens here, between two frames. Waits a little for the first."""
        with self._swap:
            if self._cast.runs is None and self._next is None:
                self._swap.wait(MODEL_WAIT_S)
            if self._next is not None:
                self._failed = ""
                self._turn_to(self._next)
                self._next = None
            return self._cast.runs

    def _turn_to(self, cast: Cast) -> None:
        """Another cast from now on; the lock is held."""
        self._cast, self._errors = cast, 0
        if self._shadow and self._shadow.model is not cast.beside:
            self._shadow.stop()
            self._shadow = None
        if cast.beside and self._shadow is None:
            self._shadow = Shadow(cast.beside, self._settings.install.shadow_share)

    def _look_on(self, again: Frame | None) -> None:
        """The thread. An exception ends it, and with it the process (`Agent.step` sees that it is not alive).

        Args:
            again: a frame on which the thread before this one hung.
        """
        try:
            while not self._stopping.is_set():
                model = self._take_model()
                if model is None:
                    continue
                if again is not None:
                    self._look(model, again)
                    again = None
                waits_s = self._clock.monotonic_s()
                frame = self._slots.take(FRAME_WAIT_S)
                now_s = self._clock.monotonic_s()
                self._waited_s += now_s - waits_s
                if now_s - self._weighed_s >= RATION_S:
                    self._weigh(now_s)
                if frame is not None:
                    self._look(model, frame)
                else:
                    self._flush_ended()
            self._accept(self._selector.flush())
            self._keeper.keep_all(self._clock.monotonic_s())
        except _Abandoned:
            log.warning("a look that hung has ended; its frame was looked at by another release")
        except Exception:
            log.exception("the look loop failed")
            raise

    def _look(self, model: Model, frame: Frame) -> None:
        camera = self.cameras[frame.camera_id]
        zone = camera.settings.zone
        view = self._see(model, frame, camera)
        if view is None and self._cast.runs is not model and self._cast.runs is not None:
            model = self._cast.runs  # the one on trial has failed: no frame is lost by that
            view = self._see(model, frame, camera)
        if view is None:
            return
        if self._judged_release != model.release_id:
            self._adopt(model)
        self.looks_by_release[model.release_id] += 1
        self._looked_at_ns[frame.camera_id] = frame.captured_at_ns
        verdict = self._judges[frame.camera_id].judge(
            frame.captured_at_ns, view.predictions, view.sightings, view.patches, camera.blind
        )
        camera.looked_at(frame, striking=verdict.striking, insists=verdict.insists)
        if self._on_look:
            self._on_look(frame, view)
        self._tell(frame.camera_id, verdict.turns, model.release_id, frame, verdict)
        path = frame.path + ("/zone" if zone else "")
        backbone = model.manifest.backbone.hash
        variant = model.backbone.hash if model.backbone.hash != backbone else ""
        seen = _Seen(frame.still, model.release_id, backbone, path, verdict.boxes, variant)
        candidate = Candidate(
            frame.camera_id, frame.captured_at_ns, view.embedding, view.predictions, seen, verdict.doubt
        )
        self._accept(self._selector.offer(candidate))
        if camera.held_bytes > camera.settings.memory_bytes_max // 2:
            # the memory for pictures is full: the frames compete within a shorter window
            self._accept(self._selector.flush(frame.camera_id))
        if self._shadow:
            flagged = asks_attention(model.manifest, view.predictions, view.sightings)
            self._shadow.offer(frame, zone, view.predictions, flagged=flagged)

    def _see(self, model: Model, frame: Frame, camera: Camera) -> View | None:
        """One look, counted; None when it failed."""
        zone = camera.settings.zone
        tally = self._tally(model)
        self._under_way = frame, self._clock.monotonic_s()
        began_s = time.perf_counter()
        try:
            view = model.look(
                frame.view(model.backbone.input_px, zone),
                lambda side_px: frame.fit(side_px, zone),
                with_patches=camera.settings.heat,
            )
        except Exception as error:  # ONNX Runtime's errors share no public base but Exception
            self._end_look()
            log.exception("a look of release %s failed", model.release_id)
            self._fault(tally, f"a look failed: {error}")
            if self._errors >= ERRORS_MAX:
                raise
            return None
        took_ms = 1e3 * (time.perf_counter() - began_s)
        self._end_look()
        self._errors = 0
        if not is_finite(view.embedding, view.predictions):
            self._fault(tally, "it answers with numbers that are none")
            return None if self._cast.runs is not model else view  # else the selection refuses it, and says so
        flagged = asks_attention(model.manifest, view.predictions, view.sightings)
        tally.count(view.predictions, flagged=flagged, took_ms=took_ms)
        return view

    def _end_look(self) -> None:
        """Raises _Abandoned on a thread that another has replaced meanwhile."""
        with self._swap:
            if threading.current_thread() is not self._thread:
                raise _Abandoned
            self._under_way = None

    def _tally(self, model: Model) -> Tally:
        """That of the release; it begins anew with each time it is handed over."""
        with self._swap:
            tally = self._tallies.get(model.release_id)
            if tally is None:
                tally = self._tallies[model.release_id] = Tally()
                while len(self._tallies) > RELEASES_MAX:
                    del self._tallies[next(iter(self._tallies))]
            return tally

    def _fault(self, tally: Tally, why: str) -> None:
        """A look gave no answer: on trial, the release beside takes over with this frame."""
        with self._swap:
            tally.errors += 1
            self._errors += 1
            if self._cast.on_trial and self._cast.beside:
                log.error("the release on trial is left: %s", why)
                self._failed = why
                self._turn_to(Cast(self._cast.beside))

    def _adopt(self, model: Model) -> None:
        """Another release looks from now on: events of what it no longer watches are closed."""
        for name, judge in self._judges.items():
            self._tell(name, judge.adopt(model.manifest, self._looked_at_ns.get(name, 0)), self._judged_release)
        self._judged_release = model.release_id
        self._accept(self._selector.adopt(model.manifest.backbone.hash))

    def _close_lost(self) -> None:
        """A camera that fails or is blind shows nothing: its open events are closed, and open anew when it is back."""
        for name, camera in self.cameras.items():
            state = camera.state.state
            if self._judges[name].open_events and (camera.blind or state in ("failed", "ended")):
                turns = self._judges[name].lose(self._looked_at_ns.get(name, 0), f"camera {state}")
                self._tell(name, turns, self._judged_release)

    def _tell(
        self,
        camera_id: str,
        turns: Sequence[tuple[str, Turn]],
        release_id: str,
        frame: Frame | None = None,
        verdict: Verdict | None = None,
    ) -> None:
        if not turns or self._on_event is None:
            return
        boxes = verdict.boxes if verdict else ()
        jpeg = b""
        if frame and self._settings.outputs.snapshots and any(turn.phase is Phase.ENTER for _, turn in turns):
            jpeg = snapshot(cut_zone(frame.image, self.cameras[camera_id].settings.zone), boxes)
        for scenario, turn in turns:
            if self._recorder and turn.phase is Phase.ENTER and self.cameras[camera_id].live:
                self._recorder.order(camera_id, self.cameras[camera_id], turn.began_at_ns, turn.at_ns)
            self._on_event(
                Event(
                    event_id=event_id(self._settings.gateway_id, camera_id, scenario, turn.began_at_ns),
                    gateway_id=self._settings.gateway_id,
                    site_id=self._settings.site_id,
                    camera_id=camera_id,
                    scenario=scenario,
                    phase=turn.phase.value,
                    label=turn.label,
                    peak=turn.peak,
                    began_at_ns=turn.began_at_ns,
                    at_ns=turn.at_ns,
                    release_id=release_id,
                    cause=turn.cause,
                    boxes=boxes,
                    jpeg=jpeg if turn.phase is Phase.ENTER else b"",
                )
            )

    def _weigh(self, now_s: float) -> None:
        """Too many frames replaced unseen: the least important cameras are looked at less often, and report it."""
        self._close_lost()
        self._keeper.keep(now_s)
        if self._selector.refused > self._refused:
            self._refused = self._selector.refused
            log.error("%d looks so far were not judged: the model's answer held numbers that are none", self._refused)
        looks = sum(self.looks_by_release.values())
        drops = sum(self._slots.dropped(name) for name in self.cameras)
        if self._rationing.adjust(
            looked=looks - self._weighed_looks,
            dropped=drops - self._weighed_drops,
            busy=1 - self._waited_s / (now_s - self._weighed_s),
        ):
            level = self._rationing.level
            log.warning("looks of the less important cameras are cut in half %d times: %d dropped", level, drops)
            for name, camera in self.cameras.items():
                camera.ration(self._rationing.share(name))
        self._weighed_s, self._waited_s, self._weighed_looks, self._weighed_drops = now_s, 0.0, looks, drops

    def _flush_ended(self) -> None:
        for name, camera in self.cameras.items():
            if camera.ended and name not in self._flushed:
                self._accept(self._selector.flush(name))
                self._flushed.add(name)

    def _accept(self, chosen: list[Chosen]) -> None:
        for choice in chosen:
            sample = self._sample(choice)
            if sample is None:
                self.pictures_lost += 1
            else:
                self._accept_sample(sample)

    def _sample(self, choice: Chosen) -> Sample | None:
        candidate = choice.candidate
        seen = candidate.token
        if not isinstance(seen, _Seen):
            raise TypeError(f"candidate carries {type(seen).__name__}")
        picture = seen.still.picture() if seen.still else None
        if picture is None:
            return None
        image = cut_zone(picture, self.cameras[candidate.camera_id].settings.zone)
        jpeg = self._encode(image, candidate.camera_id)
        height, width = image.shape[:2]
        return Sample(
            sample_id=sample_id(jpeg, self._settings.gateway_id, candidate.camera_id, candidate.captured_at_ns),
            gateway_id=self._settings.gateway_id,
            site_id=self._settings.site_id,
            camera_id=candidate.camera_id,
            captured_at_ns=candidate.captured_at_ns,
            release_id=seen.release_id,
            backbone=seen.backbone,
            width_px=width,
            height_px=height,
            jpeg=jpeg,
            embedding=self._embedding(choice, seen, image).astype("<f2").tobytes(),
            predictions=candidate.predictions,
            scores=choice.scores,
            reason=choice.reason,
            pixel_path=seen.pixel_path,
            boxes=seen.boxes,
            variant=seen.variant,
        )

    def _embedding(self, choice: Chosen, seen: _Seen, image: Picture) -> NDArray[np.float32]:
        """Of the picture that is sent, where that is not what was looked at: who has the JPEG gets the same numbers."""
        model = self._cast.runs
        looked_at_it = seen.still is None or isinstance(seen.still, FileStill)
        if looked_at_it or model is None or model.backbone.hash != (seen.variant or seen.backbone):
            return choice.candidate.embedding
        return model.backbone.embed(image)

    def _encode(self, image: Picture, camera_id: str) -> bytes:
        ok, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self._settings.selection.jpeg_quality])
        if not ok:
            raise HeadframeError(f"frame of camera {camera_id} could not be encoded")
        return encoded.tobytes()
