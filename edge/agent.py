"""The agent: wires a gateway's parts along the flow of the data, and looks after them.

Frames → one model → selection → spool → uplink; releases come the other way and are swapped in between two frames.
"""

import logging
import threading
from collections import Counter

import msgspec

from common import AGENT_VERSION, codec, topics
from common.clock import Clock, SystemClock
from common.errors import EnvironmentFault, OperatorError
from common.flower import node_id_of
from common.messages import Desired, Event, Fetch, LayerPart, Message, Sample, Shelved, State
from common.metadata import TrustedMetadata, read_root
from common.mqtt import MqttLink
from edge.contributor import Policy, make_client_app
from edge.downward import Downward
from edge.enrolment import FLAG, Renewer, renews_itself
from edge.events import Phase
from edge.exemplars import Exemplars
from edge.inbox import FOLDER as IMPORT
from edge.inbox import Inbox
from edge.installer import LAYERS, Installer
from edge.learner import Learner
from edge.lookout import Lookout
from edge.offers import Offers
from edge.outputs import SiteOutputs
from edge.proofs import Proofs
from edge.providers import COMPILED, Compute
from edge.recount import recount
from edge.roster import plan
from edge.settings import EdgeSettings
from edge.shared import Shared
from edge.spool import Spool
from edge.threads import usable_cores
from edge.trainer import Trainer
from edge.uplink import Uplink
from edge.workers import Workers

log = logging.getLogger(__name__)

DISK_RETRY_S = 1.0
RELEASES = "releases"
"""Folder of the installer within `data_dir`."""
EXEMPLARS = "exemplars.db"
TRUST = "trust"
"""Folder of what is trusted within `data_dir`."""


class Agent:
    """All parts of one gateway. `start`, then `step` about once a second, then `stop`."""

    def __init__(self, settings: EdgeSettings, clock: Clock | None = None) -> None:
        self.settings = settings
        self._plan = plan(settings, usable_cores())
        self._config = ""
        self._clock = clock or SystemClock()
        folder = settings.data_dir
        self.spool = Spool.open(
            folder / "spool.db",
            settings.spool.bytes_max,
            age_max_s=3600 * settings.spool.age_max_h,
            clock=self._clock,
        )
        self.exemplars = Exemplars.open(folder / EXEMPLARS)
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
        self.offers = (
            Offers.open(folder / "offers.db", self.spool, settings.offers, self._clock)
            if settings.offers.enabled
            else None
        )
        self.uplink = Uplink(
            self._link, self.spool, settings.gateway_id, settings.uplink, self._clock, settings.share, self.offers
        )
        self.installer = Installer(
            folder / RELEASES,
            TrustedMetadata(folder / TRUST, read_root(settings.release_root), settings.gateway_id),
            settings.site_id,
            self._clock,
            self._fetch,
            self.lookout,
            settings.install,
            self.compute.open,
            settings.compute.precision,
        )
        self.proofs = Proofs(
            self._clock,
            lambda fetch: self._send("fetch", fetch),
            self.installer.on_desired,
            lambda: self.release_id,
        )
        self.shared = Shared(self._link, self.proofs.pieces, self.installer.pieces)
        self.inbox = Inbox(folder / IMPORT, settings.gateway_id, self.installer.on_desired, self.installer.on_layer)
        policy = self._policy()
        self.trainer = Trainer.of(self.exemplars, policy, settings.training.app)
        self.learner = Learner(
            settings.gateway_id,
            make_client_app(self.exemplars, policy, node_id_of(settings.gateway_id), respond=self.trainer),
            lambda frame: self._send("flower", frame),
            self._node_config(),
        )
        self.renewer = self._make_renewer()
        self.downward = Downward(
            on_receipt=self.uplink.on_receipt,
            on_desired=self._on_desired,
            on_layer=self._on_layer,
            on_shelved=self._on_shelved,
            on_piece=self._on_piece,
            on_flower=self.learner.on_frame,
            on_want=self.uplink.on_want,
            on_certificate=self.renewer.on_certificate if self.renewer else None,
        )
        outputs = settings.outputs
        self.outputs = SiteOutputs(outputs, settings.gateway_id, settings.site_id) if outputs.broker.enabled else None
        self._alarms: dict[str, str] = {}
        """`camera/scenario` -> id of the event that is open there."""
        self._events = 0
        self._announced_release = ""
        self._recounted = ""
        """The backbone on which every sample that is kept here has been looked at."""
        self._reported_at_s = float("-inf")
        self._reported_release = ""
        self._reported_shared = True

    def _policy(self) -> Policy:
        """What of this gateway's labelled samples may be told."""
        uplink = self.settings.uplink
        return Policy(
            self.settings.share in ("updates", "both"),
            uplink.statistics_bytes_max,
            uplink.class_samples_min,
            uplink.masked_only,
            uplink.cohort_min,
        )

    def _node_config(self) -> dict[str, str | int]:
        """What a client app finds in its context: `cloud.finetuning.site_app` says what for."""
        folder, training = self.settings.data_dir, self.settings.training
        return {
            "site": self.settings.site_id,
            "layers": str(folder / RELEASES / LAYERS),
            "labelled": str(folder / EXEMPLARS),
            "pictures": str(training.pictures or ""),
            "threads": training.threads,
        }

    def _make_lookout(self) -> Lookout | Workers:
        roster = self._plan.roster
        if self._plan.sentence:
            log.warning("%s", self._plan.sentence)
        if self._plan.workers:
            layers = self.settings.data_dir / RELEASES / LAYERS
            return Workers(self.settings, roster, self._clock, self._accept, layers, self._plan.workers, self._on_event)
        lookout = Lookout(self.settings, roster.cameras, self._clock, self._accept, on_event=self._on_event)
        lookout.watch(roster)
        return lookout

    def reconfigure(self, settings: EdgeSettings) -> None:
        """Take the cameras of new settings: attach, detach, restart what changed, and leave the others alone. What else
        differs waits for the next start, and is named.

        Raises:
            ConfigError: they do not fit into the budget; what runs goes on.
        """
        made = plan(settings, usable_cores(), self._plan.workers)
        before = {camera.id: camera for camera in self.settings.cameras}
        after = {camera.id: camera for camera in settings.cameras}
        self.settings, self._plan = self.settings.model_copy(update={"cameras": settings.cameras}), made
        self.lookout.watch(made.roster)
        self._announced_release = ""  # events of new cameras are announced at the site
        counts = {
            "attached": sorted(after.keys() - before.keys()),
            "detached": sorted(before.keys() - after.keys()),
            "changed": sorted(name for name in after.keys() & before.keys() if after[name] != before[name]),
        }
        if self.outputs:
            for name in counts["detached"]:
                self.outputs.withdraw(name)
        said = "; ".join(f"{what} {', '.join(names)}" for what, names in counts.items() if names)
        later = [name for name in EdgeSettings.model_fields if getattr(settings, name) != getattr(self.settings, name)]
        self._config = f"applied: {said or 'no camera differs'}"
        if later:
            self._config += f"; at the next start: {', '.join(later)}"
        log.info("configuration %s", self._config)

    def refuse(self, error: OperatorError) -> None:
        """New settings were wrong: say so where somebody looks; what runs goes on."""
        self._config = f"refused: {error}"
        log.error("configuration %s", self._config)

    def _make_renewer(self) -> Renewer | None:
        broker = self.settings.broker
        if not renews_itself(self.settings) or broker.cert_file is None or broker.ca_file is None:
            return None
        return Renewer(
            broker.cert_file,
            broker.ca_file,
            self.settings.data_dir / FLAG,
            self._clock,
            lambda renewal: self._send("renew", renewal),
            self._link.reload_certificate,
        )

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

    @property
    def linked(self) -> bool:
        """Whether the broker of the centre is connected."""
        return self._link.connected

    def last_look(self, camera_id: str) -> bytes | None:
        """A small JPEG of what was looked at last of a camera; None when there is nothing."""
        return self.lookout.last_look(camera_id)

    def start(self) -> None:
        """Start from the last good release; the network may come later."""
        self.installer.boot()
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
        if not self._link.alive:
            raise RuntimeError("the thread of the broker connection has died; see the log above")
        if not self.uplink.alive:
            raise RuntimeError("the thread that sends samples has died; see the log above")
        self.inbox.step()
        self.installer.step()
        self.proofs.step()
        self.shared.settle()
        if self.renewer:
            self.renewer.step()
        if self.outputs:
            self._announce(self.outputs)
        self._recount()
        now_s = self._clock.monotonic_s()
        due = now_s - self._reported_at_s >= self.settings.heartbeat_s
        news = (self.release_id, self.proofs.shared) != (self._reported_release, self._reported_shared)
        if (due or news) and self._send("state", state := self.state()):
            self._reported_at_s, self._reported_release = now_s, state.release_id
            self._reported_shared = state.shared

    def _recount(self) -> None:
        """Where pictures stay at the site, the running backbone looks at them again after a change."""
        model = self.lookout.model
        if model is None or self.settings.share != "updates" or model.manifest.backbone.hash == self._recounted:
            return
        try:
            if not recount(self.exemplars, model):
                self._recounted = model.manifest.backbone.hash  # looking for more would read the whole table each time
        except EnvironmentFault as error:
            log.error("%s", error)

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop in the order of the flow, so that what was accepted is on disk and what can leave has left."""
        self._stopping.set()
        self.installer.stop()
        self.inbox.close()
        self.lookout.stop(timeout_s)
        self.learner.stop(timeout_s)
        self.uplink.stop(timeout_s)
        self._send("state", msgspec.structs.replace(self.state(), online=False))
        self._link.stop()
        if self.outputs:
            self.outputs.stop()
        if self.offers:
            self.offers.close()
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
            declined=figures.declined,
            bytes_up=self.uplink.bytes_up,
            bytes_down=self.installer.bytes_down,
            looks=sum(self.looks_by_release.values()),
            chosen=dict(figures.by_reason),
            compute=self._runs_on(),
            events=self._events,
            alarms=tuple(sorted(self._alarms)),
            local_labels=self.exemplars.counts().get("labels", 0),
            cameras=self.lookout.states,
            health=self.installer.health(),
            shared=self.proofs.shared,
            trains=self.trainer.trains,
            config="; ".join(part for part in (self._config, self._plan.sentence) if part),
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
            if all(camera.id != event.camera_id for camera in self.settings.cameras):
                self.outputs.withdraw(event.camera_id)  # the last event of a camera that was detached

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
        self.downward.take(topic, payload)

    def _fetch(self, fetch: Fetch) -> bool:
        """From a file that was brought here, else from the centre."""
        shared = fetch.shared and self.proofs.shared
        return self.inbox.take(fetch) or self._send("fetch", msgspec.structs.replace(fetch, shared=shared))

    def _on_desired(self, desired: Desired) -> None:
        self.proofs.on_desired(desired)
        self.shared.settle()

    def _on_layer(self, part: LayerPart) -> None:
        self.proofs.on_layer(part)
        self.installer.on_layer(part)
        self.shared.settle()

    def _on_shelved(self, shelved: Shelved) -> None:
        self.proofs.on_shelved(shelved)
        self.installer.on_shelved(shelved)
        self.shared.settle()

    def _on_piece(self, name: str, data: bytes) -> None:
        self.proofs.on_piece(name, data)
        self.installer.on_piece(name, data)
        self.shared.settle()

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
