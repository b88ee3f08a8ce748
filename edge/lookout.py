"""The look loop: frames of some cameras in, samples worth keeping out. One thread, one model, many cameras.

Owns what may live in a worker process of its own: cameras, slots, the running model, the selector. Knows no spool, no
link and no installer: a release is handed in and swapped between two frames, and a chosen sample goes to `accept`,
which returns when somebody has made it durable.
"""

import logging
import threading
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
from edge.drift import DriftWatch
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
        self._drift = DriftWatch(settings.drift_every_s)
        clips = settings.outputs.clips
        self._recorder = Recorder(clips, settings.data_dir / "clips", clock) if clips.enabled else None
        self._flushed: set[str] = set()
        self._next_model: Model | None = None
        self._model: Model | None = None
        self._swap = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="lookout", daemon=True)

    @property
    def model(self) -> Model | None:
        """What looks now; None on a box that never had a release."""
        return self._model

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
        return tuple(
            msgspec.structs.replace(camera.state, drift=round(self._drift.level(name), 3))
            for name, camera in self.cameras.items()
        )

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
        self._thread.join(timeout_s)
        if self._recorder:
            self._recorder.stop(timeout_s)

    def hand_over(self, model: Model) -> None:
        """A release to run: the look loop takes it before its next frame. Never blocks, from any thread."""
        with self._swap:
            self._next_model = model
            self._swap.notify_all()

    def _take_model(self) -> Model | None:
        """The model for the next frame: the swap happens here, between two frames. Waits a little for the first."""
        with self._swap:
            if self._model is None and self._next_model is None:
                self._swap.wait(MODEL_WAIT_S)
            if self._next_model is not None:
                self._model, self._next_model = self._next_model, None
            return self._model

    def _look_on(self) -> None:
        """The thread. An exception ends it, and with it the process (`Agent.step` sees that it is not alive)."""
        try:
            while not self._stopping.is_set():
                model = self._take_model()
                if model is None:
                    continue
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
        except Exception:
            log.exception("the look loop failed")
            raise

    def _look(self, model: Model, frame: Frame) -> None:
        camera = self.cameras[frame.camera_id]
        zone = camera.settings.zone
        if self._judged_release != model.release_id:
            self._adopt(model)
        view = model.look(
            frame.view(model.backbone.input_px, zone),
            lambda side_px: frame.fit(side_px, zone),
            with_patches=camera.settings.heat,
        )
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
        if not camera.blind:
            self._drift.tell(frame.camera_id, frame.captured_at_ns, view.embedding)
        if camera.held_bytes > camera.settings.memory_bytes_max // 2:
            # the memory for pictures is full: the frames compete within a shorter window
            self._accept(self._selector.flush(frame.camera_id))

    def _adopt(self, model: Model) -> None:
        """Another release looks from now on: events of what it no longer watches are closed."""
        for name, judge in self._judges.items():
            self._tell(name, judge.adopt(model.manifest, self._looked_at_ns.get(name, 0)), self._judged_release)
        self._judged_release = model.release_id
        self._accept(self._selector.adopt(model.manifest.backbone.hash))
        self._drift.adopt(model.backbone.hash)

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
        model = self._model
        looked_at_it = seen.still is None or isinstance(seen.still, FileStill)
        if looked_at_it or model is None or model.backbone.hash != (seen.variant or seen.backbone):
            return choice.candidate.embedding
        return model.backbone.embed(image)

    def _encode(self, image: Picture, camera_id: str) -> bytes:
        ok, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self._settings.selection.jpeg_quality])
        if not ok:
            raise HeadframeError(f"frame of camera {camera_id} could not be encoded")
        return encoded.tobytes()
