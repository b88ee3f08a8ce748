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
import numpy as np
from numpy.typing import NDArray

from common.clock import Clock
from common.errors import HeadframeError
from common.ids import sample_id
from common.messages import CameraState, Sample
from edge.camera import Camera
from edge.frames import Frame
from edge.perception import Model, cut_zone
from edge.sampler import FrameSlots
from edge.selection import Candidate, Chosen, Selector
from edge.settings import CameraSettings, EdgeSettings

log = logging.getLogger(__name__)

Accept = Callable[[Sample], None]
"""Takes a sample and returns when it is durable, or when the agent stops. May block: the look loop then waits."""

MODEL_WAIT_S = 0.5
FRAME_WAIT_S = 0.25


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a candidate carries until it is chosen: its pixels, and who looked at them."""

    image: NDArray[np.uint8]
    release_id: str
    backbone: str
    pixel_path: str


class Lookout:
    """Looks at the frames of its cameras. `start`, then `hand_over` a model whenever there is one, then `stop`.

    Args:
        settings: of the gateway: its identity and selection.
        cameras: those of the gateway's cameras that this lookout has.
        clock: for the cameras' pace.
        accept: makes a chosen sample durable.
    """

    def __init__(self, settings: EdgeSettings, cameras: Sequence[CameraSettings], clock: Clock, accept: Accept) -> None:
        self._settings, self._accept_sample = settings, accept
        self.looks_by_release: Counter[str] = Counter()
        self._zones = {camera.id: camera.zone for camera in cameras}
        self._slots = FrameSlots()
        self.cameras = {camera.id: Camera(camera, self._slots, clock) for camera in cameras}
        self._selector = Selector(settings.selection, [camera.id for camera in cameras])
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
        return tuple(camera.state for camera in self.cameras.values())

    def start(self) -> None:
        """Begin to look; does not wait for a model or a frame."""
        self._thread.start()
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
                frame = self._slots.take(FRAME_WAIT_S)
                if frame is not None:
                    self._look(model, frame)
                else:
                    self._flush_ended()
            self._accept(self._selector.flush())
        except Exception:
            log.exception("the look loop failed")
            raise

    def _look(self, model: Model, frame: Frame) -> None:
        image = cut_zone(frame.image, self._zones[frame.camera_id])
        view = model.look(image)
        self.looks_by_release[model.release_id] += 1
        height, width = frame.image.shape[:2]
        path = f"main-{width}x{height}" + ("/zone" if self._zones[frame.camera_id] else "")
        seen = _Seen(image, model.release_id, model.manifest.backbone.hash, path)
        candidate = Candidate(frame.camera_id, frame.captured_at_ns, view.embedding, view.predictions, seen)
        self._accept(self._selector.offer(candidate))

    def _flush_ended(self) -> None:
        for name, camera in self.cameras.items():
            if camera.ended and name not in self._flushed:
                self._accept(self._selector.flush(name))
                self._flushed.add(name)

    def _accept(self, chosen: list[Chosen]) -> None:
        for choice in chosen:
            self._accept_sample(self._sample(choice))

    def _sample(self, choice: Chosen) -> Sample:
        candidate = choice.candidate
        seen = candidate.token
        if not isinstance(seen, _Seen):
            raise TypeError(f"candidate carries {type(seen).__name__}")
        quality = [cv2.IMWRITE_JPEG_QUALITY, self._settings.selection.jpeg_quality]
        ok, encoded = cv2.imencode(".jpg", seen.image, quality)
        if not ok:
            raise HeadframeError(f"frame of camera {candidate.camera_id} could not be encoded")
        jpeg = encoded.tobytes()
        height, width = seen.image.shape[:2]
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
            embedding=candidate.embedding.astype("<f2").tobytes(),
            predictions=candidate.predictions,
            scores=choice.scores,
            reason=choice.reason,
            pixel_path=seen.pixel_path,
        )
