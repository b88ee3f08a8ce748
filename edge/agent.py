"""The agent: wires a gateway's parts along the flow of the data, and looks after them.

Frames → one model → selection → spool → uplink; releases come the other way and are swapped in between two frames.
"""

import logging
import threading
from collections import Counter
from dataclasses import dataclass

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from common import AGENT_VERSION, codec, topics
from common.clock import Clock, SystemClock
from common.errors import EnvironmentFault, HeadframeError
from common.ids import sample_id
from common.messages import Desired, FlowerFrame, LayerPart, Message, Receipt, Sample, State
from common.mqtt import MqttLink
from edge.camera import Camera
from edge.exemplars import Exemplars
from edge.frames import Frame
from edge.installer import Installer
from edge.learner import Learner
from edge.perception import Model, cut_zone
from edge.sampler import FrameSlots
from edge.selection import Candidate, Chosen, Selector
from edge.settings import EdgeSettings
from edge.spool import Spool
from edge.uplink import Uplink

log = logging.getLogger(__name__)

DISK_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a candidate carries until it is chosen: its pixels, and who looked at them."""

    image: NDArray[np.uint8]
    release_id: str
    backbone: str
    pixel_path: str


class Agent:
    """All parts of one gateway. `start`, then `step` about once a second, then `stop`."""

    def __init__(self, settings: EdgeSettings, clock: Clock | None = None) -> None:
        self.settings = settings
        self._clock = clock or SystemClock()
        folder = settings.data_dir
        self.spool = Spool.open(folder / "spool.db", settings.spool.bytes_max)
        self.exemplars = Exemplars.open(folder / "exemplars.db")
        self.looks_by_release: Counter[str] = Counter()
        self._zones = {camera.id: camera.zone for camera in settings.cameras}
        self._slots = FrameSlots()
        self._cameras = [Camera(camera, self._slots, self._clock) for camera in settings.cameras]
        self._selector = Selector(settings.selection, [camera.id for camera in settings.cameras])
        self._flushed: set[str] = set()
        self._next_model: Model | None = None
        self._model: Model | None = None
        self._swap = threading.Condition()
        self._stopping = threading.Event()
        self._link = MqttLink(
            settings.broker.to_broker(),
            f"headframe-{settings.gateway_id}",
            (topics.down_filter(settings.gateway_id),),
            self._on_message,
            will=(topics.up(settings.gateway_id, "state"), codec.encode(self._will())),
            on_connect=self._on_connect,
        )
        self.uplink = Uplink(self._link, self.spool, settings.gateway_id, settings.uplink, self._clock, settings.share)
        self.installer = Installer(
            folder / "releases",
            settings.release_key,
            settings.site_id,
            self._clock,
            lambda fetch: self._send("fetch", fetch),
            self._hand_over,
        )
        self.learner = Learner(
            settings.gateway_id,
            self.exemplars,
            lambda data: self._send("flower", FlowerFrame(message=data)),
            share=settings.share,
        )
        self._perception = threading.Thread(target=self._look_on, name="perception", daemon=True)
        self._reported_at_s = float("-inf")

    @property
    def release_id(self) -> str:
        """What runs now; empty on a box that never had a release."""
        return self._model.release_id if self._model else ""

    def scenarios(self) -> dict[str, tuple[str, ...]]:
        """Scenario -> classes of what runs now."""
        model = self._model
        return {item.name: item.classes for item in model.manifest.scenarios} if model else {}

    def start(self) -> None:
        """Start from the last good release; the network may come later."""
        model = self.installer.boot()
        if model:
            self._hand_over(model)
        self._perception.start()
        for camera in self._cameras:
            camera.start()
        self.learner.start()
        self.uplink.start()
        self._link.start()

    def step(self) -> None:
        """Housekeeping: heartbeat, installer, cameras that ended.

        Raises:
            RuntimeError: a part that must run has died; the process ends and its supervisor starts it anew.
        """
        if not self._perception.is_alive():
            raise RuntimeError("the perception thread has died; see the log above")
        self.installer.step()
        now_s = self._clock.monotonic_s()
        if now_s - self._reported_at_s >= self.settings.heartbeat_s and self._send("state", self.state()):
            self._reported_at_s = now_s

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop in the order of the flow, so that what was accepted is on disk and what can leave has left."""
        self._stopping.set()
        for camera in self._cameras:
            camera.stop()
        for camera in self._cameras:
            camera.join(timeout_s)
        with self._swap:
            self._swap.notify_all()
        self._perception.join(timeout_s)
        self.learner.stop(timeout_s)
        self.uplink.stop(timeout_s)
        self._send("state", msgspec.structs.replace(self.state(), online=False))
        self._link.stop()
        self.spool.close()
        self.exemplars.close()

    @property
    def ended(self) -> bool:
        """All cameras were files or folders, and every frame of them has been looked at and judged."""
        return all(camera.ended for camera in self._cameras) and len(self._flushed) == len(self._cameras)

    def state(self) -> State:
        """The reported state of this gateway."""
        figures = self.spool.figures()
        return State(
            gateway_id=self.settings.gateway_id,
            site_id=self.settings.site_id,
            at_ns=self._clock.wall_ns(),
            agent_version=AGENT_VERSION,
            release_id=self.release_id,
            install=self.installer.outcome,
            share=self.settings.share,
            spool_rows=figures.rows,
            spool_bytes=figures.bytes,
            accepted=figures.accepted,
            receipted=figures.receipted,
            evicted=figures.evicted,
            refused=figures.refused,
            bytes_up=self.uplink.bytes_up,
            bytes_down=self.installer.bytes_down,
            looks=sum(self.looks_by_release.values()),
            chosen=dict(figures.by_reason),
            local_labels=self.exemplars.counts().get("labels", 0),
            cameras=tuple(camera.state for camera in self._cameras),
        )

    def _will(self) -> State:
        return State(
            gateway_id=self.settings.gateway_id,
            site_id=self.settings.site_id,
            at_ns=0,
            agent_version=AGENT_VERSION,
            release_id="",
            online=False,
        )

    def _send(self, kind: str, message: Message) -> bool:
        return self._link.publish(topics.up(self.settings.gateway_id, kind), codec.encode(message))

    def _on_connect(self) -> None:
        self._reported_at_s = float("-inf")  # the next step reports at once

    def _on_message(self, topic: str, payload: bytes) -> None:
        """One message from the centre, on the link's thread."""
        message = codec.decode(payload)
        match message:
            case Receipt():
                self.uplink.on_receipt(message)
            case Desired():
                self.installer.on_desired(message)
            case LayerPart():
                self.installer.on_layer(message)
            case FlowerFrame():
                self.learner.on_frame(message.message)
            case _:
                log.warning("message on %s is not for a gateway: %s", topic, type(message).__name__)

    def _hand_over(self, model: Model) -> None:
        """Called by the installer; the perception thread takes the model before its next frame."""
        with self._swap:
            self._next_model = model
            self._swap.notify_all()

    def _take_model(self) -> Model | None:
        """The model for the next frame: the swap happens here, between two frames. Waits a little for the first."""
        with self._swap:
            if self._model is None and self._next_model is None:
                self._swap.wait(0.5)
            if self._next_model is not None:
                self._model, self._next_model = self._next_model, None
                self._reported_at_s = float("-inf")
            return self._model

    def _look_on(self) -> None:
        """The perception thread. An exception ends it, and with it the process (see `step`)."""
        try:
            while not self._stopping.is_set():
                model = self._take_model()
                if model is None:
                    continue
                frame = self._slots.take(0.25)
                if frame is not None:
                    self._look(model, frame)
                else:
                    self._flush_ended()
            self._accept(self._selector.flush())
        except Exception:
            log.exception("perception failed")
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
        for camera in self._cameras:
            name = camera.state.camera_id
            if camera.ended and name not in self._flushed:
                self._accept(self._selector.flush(name))
                self._flushed.add(name)

    def _accept(self, chosen: list[Chosen]) -> None:
        """Into the spool before anything else happens; a full disk is waited out, the sample kept in memory."""
        for choice in chosen:
            sample = self._sample(choice)
            while not self._stopping.is_set():
                try:
                    if self.spool.accept(sample):
                        self.exemplars.remember(sample, keep_picture=self.settings.share == "updates")
                    break
                except EnvironmentFault as error:
                    log.error("%s", error)
                    self._stopping.wait(DISK_RETRY_S)

    def _sample(self, choice: Chosen) -> Sample:
        candidate = choice.candidate
        seen = candidate.token
        if not isinstance(seen, _Seen):
            raise TypeError(f"candidate carries {type(seen).__name__}")
        quality = [cv2.IMWRITE_JPEG_QUALITY, self.settings.selection.jpeg_quality]
        ok, encoded = cv2.imencode(".jpg", seen.image, quality)
        if not ok:
            raise HeadframeError(f"frame of camera {candidate.camera_id} could not be encoded")
        jpeg = encoded.tobytes()
        height, width = seen.image.shape[:2]
        return Sample(
            sample_id=sample_id(jpeg, self.settings.gateway_id, candidate.camera_id, candidate.captured_at_ns),
            gateway_id=self.settings.gateway_id,
            site_id=self.settings.site_id,
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
