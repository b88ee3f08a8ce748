"""The agent: wires a gateway's parts along the flow of the data, and looks after them.

Frames → one model → selection → spool → uplink; releases come the other way and are swapped in between two frames.
"""

import logging
import threading
from collections import Counter

import msgspec

from common import AGENT_VERSION, codec, topics
from common.clock import Clock, SystemClock
from common.errors import EnvironmentFault
from common.messages import Desired, FlowerFrame, LayerPart, Message, Receipt, Sample, State
from common.mqtt import MqttLink
from edge.exemplars import Exemplars
from edge.installer import Installer
from edge.learner import Learner
from edge.lookout import Lookout
from edge.settings import EdgeSettings
from edge.spool import Spool
from edge.uplink import Uplink

log = logging.getLogger(__name__)

DISK_RETRY_S = 1.0


class Agent:
    """All parts of one gateway. `start`, then `step` about once a second, then `stop`."""

    def __init__(self, settings: EdgeSettings, clock: Clock | None = None) -> None:
        self.settings = settings
        self._clock = clock or SystemClock()
        folder = settings.data_dir
        self.spool = Spool.open(folder / "spool.db", settings.spool.bytes_max)
        self.exemplars = Exemplars.open(folder / "exemplars.db")
        self.lookout = Lookout(settings, settings.cameras, self._clock, self._accept)
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
            self.lookout.hand_over,
        )
        self.learner = Learner(
            settings.gateway_id,
            self.exemplars,
            lambda data: self._send("flower", FlowerFrame(message=data)),
            share=settings.share,
        )
        self._reported_at_s = float("-inf")
        self._reported_release = ""

    @property
    def release_id(self) -> str:
        """What runs now; empty on a box that never had a release."""
        model = self.lookout.model
        return model.release_id if model else ""

    @property
    def looks_by_release(self) -> Counter[str]:
        """How many frames each release has looked at since the start."""
        return self.lookout.looks_by_release

    def scenarios(self) -> dict[str, tuple[str, ...]]:
        """Scenario -> classes of what runs now."""
        model = self.lookout.model
        return {item.name: item.classes for item in model.manifest.scenarios} if model else {}

    def start(self) -> None:
        """Start from the last good release; the network may come later."""
        model = self.installer.boot()
        if model:
            self.lookout.hand_over(model)
        self.lookout.start()
        self.learner.start()
        self.uplink.start()
        self._link.start()

    def step(self) -> None:
        """Housekeeping: heartbeat, installer, cameras that ended.

        Raises:
            RuntimeError: a part that must run has died; the process ends and its supervisor starts it anew.
        """
        if not self.lookout.alive:
            raise RuntimeError("the look loop has died; see the log above")
        self.installer.step()
        now_s = self._clock.monotonic_s()
        due = now_s - self._reported_at_s >= self.settings.heartbeat_s or self.release_id != self._reported_release
        if due and self._send("state", state := self.state()):
            self._reported_at_s, self._reported_release = now_s, state.release_id

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop in the order of the flow, so that what was accepted is on disk and what can leave has left."""
        self._stopping.set()
        self.lookout.stop(timeout_s)
        self.learner.stop(timeout_s)
        self.uplink.stop(timeout_s)
        self._send("state", msgspec.structs.replace(self.state(), online=False))
        self._link.stop()
        self.spool.close()
        self.exemplars.close()

    @property
    def ended(self) -> bool:
        """All cameras were files or folders, and every frame of them has been looked at and judged."""
        return self.lookout.ended

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
            cameras=self.lookout.states,
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

    def _accept(self, sample: Sample) -> None:
        """Into the spool before anything else happens; a full disk is waited out, the sample kept in memory."""
        while True:
            try:
                if self.spool.accept(sample):
                    self.exemplars.remember(sample, keep_picture=self.settings.share == "updates")
            except EnvironmentFault as error:
                log.error("%s", error)
                if not self._stopping.wait(DISK_RETRY_S):
                    continue
            return
