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
from common.messages import Desired, Event, FlowerFrame, LayerPart, Message, Receipt, Sample, State
from common.mqtt import MqttLink
from edge.events import Phase
from edge.exemplars import Exemplars
from edge.installer import LAYERS, Installer
from edge.learner import Learner
from edge.lookout import Lookout
from edge.outputs import SiteOutputs
from edge.providers import COMPILED, Compute
from edge.settings import EdgeSettings
from edge.spool import Spool
from edge.threads import usable_cores
from edge.uplink import Uplink
from edge.workers import Workers, worker_count

log = logging.getLogger(__name__)

DISK_RETRY_S = 1.0
RELEASES = "releases"
"""Folder of the installer within `data_dir`."""


class Agent:
    """All parts of one gateway. `start`, then `step` about once a second, then `stop`."""

    def __init__(self, settings: EdgeSettings, clock: Clock | None = None) -> None:
        self.settings = settings
        self._clock = clock or SystemClock()
        folder = settings.data_dir
        self.spool = Spool.open(
            folder / "spool.db",
            settings.spool.bytes_max,
            age_max_s=3600 * settings.spool.age_max_h,
            clock=self._clock,
        )
        self.exemplars = Exemplars.open(folder / "exemplars.db")
        self.compute = Compute(settings.compute.provider, folder / COMPILED)
        self.lookout = self._make_lookout()
        self._stopping = threading.Event()
        self._link = MqttLink(
            settings.broker.to_broker(),
            f"headframe-{settings.gateway_id}",
            (topics.down_filter(settings.gateway_id),),
            self._on_message,
            will=(topics.up(settings.gateway_id, "state"), codec.encode(self._will())),
            on_connect=self._on_connect,
            keep=False,
        )
        self.uplink = Uplink(self._link, self.spool, settings.gateway_id, settings.uplink, self._clock, settings.share)
        self.installer = Installer(
            folder / RELEASES,
            settings.release_key,
            settings.site_id,
            self._clock,
            lambda fetch: self._send("fetch", fetch),
            self.lookout.hand_over,
            self.compute.open,
            settings.compute.precision,
        )
        self.learner = Learner(
            settings.gateway_id,
            self.exemplars,
            lambda data: self._send("flower", FlowerFrame(message=data)),
            share=settings.share,
        )
        outputs = settings.outputs
        self.outputs = SiteOutputs(outputs, settings.gateway_id, settings.site_id) if outputs.broker.enabled else None
        self._alarms: dict[str, str] = {}
        """`camera/scenario` -> id of the event that is open there."""
        self._events = 0
        self._announced_release = ""
        self._reported_at_s = float("-inf")
        self._reported_release = ""

    def _make_lookout(self) -> Lookout | Workers:
        count = worker_count(self.settings, usable_cores())
        if not count:
            return Lookout(self.settings, self.settings.cameras, self._clock, self._accept, on_event=self._on_event)
        layers = self.settings.data_dir / RELEASES / LAYERS
        return Workers(self.settings, self._clock, self._accept, layers, count, self._on_event)

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
        if self.outputs:
            self.outputs.start()
        self._link.start()

    def step(self) -> None:
        """Housekeeping: heartbeat, installer, cameras that ended.

        Raises:
            RuntimeError: a part that must run has died; the process ends and its supervisor starts it anew.
        """
        if not self.lookout.alive:
            raise RuntimeError("the look loop has died; see the log above")
        self.installer.step()
        if self.outputs:
            self._announce(self.outputs)
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
        if self.outputs:
            self.outputs.stop()
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
            evicted=figures.evicted + figures.expired,
            epochs=self.spool.epochs(),
            refused=figures.refused,
            bytes_up=self.uplink.bytes_up,
            bytes_down=self.installer.bytes_down,
            looks=sum(self.looks_by_release.values()),
            chosen=dict(figures.by_reason),
            compute=self._runs_on(),
            events=self._events,
            alarms=tuple(sorted(self._alarms)),
            local_labels=self.exemplars.counts().get("labels", 0),
            cameras=self.lookout.states,
        )

    def _runs_on(self) -> str:
        """Provider and precision of the backbone, and why; empty before the first release."""
        model, choice = self.lookout.model, self.compute.choices.get("backbone")
        if model is None or choice is None:
            return ""
        variant = self.installer.variant
        return f"{choice.name}, {model.backbone.precision} ({choice.reason}; {variant.reason})"

    def _on_event(self, event: Event) -> None:
        """What an event does, from the look loop or from a worker's thread."""
        place = f"{event.camera_id}/{event.scenario}"
        if event.phase == Phase.CLEAR.value:
            self._alarms.pop(place, None)
        else:
            self._alarms[place] = event.event_id
        if event.phase == Phase.ENTER.value:
            self._events += 1
        self._reported_at_s = float("-inf")  # the next step reports what is open
        self.uplink.tell(event)
        if self.outputs:
            self.outputs.tell(event)

    def _announce(self, outputs: SiteOutputs) -> None:
        """Tell the site's broker what is watched for, when that has changed; and send what waits."""
        model = self.lookout.model
        if model and self._announced_release != model.release_id:
            self._announced_release = model.release_id
            names = [scenario.name for scenario in model.manifest.scenarios]
            names += [detector.name for detector in model.manifest.detectors]
            outputs.announce((camera.id, name) for camera in self.settings.cameras for name in names)
        outputs.step()

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
