"""The centre as one object: wires store, ingest, federation, learning, registry and the link to the gateways.

The console talks to it through `cloud.desk`.
"""

import logging
from collections.abc import Sequence

from cloud.admission import check_event, check_offer, check_state
from cloud.epochs import Epochs
from cloud.events import Events
from cloud.federate import Federation
from cloud.federation.grid import MqttGrid
from cloud.giving import Giving
from cloud.guard import Guard
from cloud.ingest import Ingest
from cloud.learning.datasets import Catalogue
from cloud.learning.training import Trainer
from cloud.link import CentreLink
from cloud.offers import Offers
from cloud.registry import Registry
from cloud.reported import Reported
from cloud.review import Review
from cloud.rollout.service import Rollouts
from cloud.rounds import Rounds
from cloud.settings import CloudSettings, parse_shards
from cloud.shelf import PROBE_NAME, Shelf
from cloud.store import Store
from cloud.telling import Telling
from cloud.trust import Repository
from cloud.worker import SAMPLE_KINDS
from common import codec, topics
from common.clock import Clock, SystemClock
from common.errors import ForgeryError, HeadframeError, OperatorError
from common.frames import Courier, Frame
from common.messages import (
    Chunk,
    Desired,
    Event,
    Fetch,
    FlowerFrame,
    Message,
    Offer,
    Receipt,
    Renewal,
    Shelved,
    State,
)
from common.mqtt import Broker

log = logging.getLogger(__name__)

ALL_SHARDS = "0-255"
EPOCHS_SAID_MAX = 8
TRIGGER_LOOK_S = 5.0


def filters_of(shards: str) -> list[str]:
    """What the centre subscribes to when it takes the samples of these shards itself."""
    if shards == ALL_SHARDS:
        return [topics.up_filter()]
    others = [topics.up_filter(kind=kind) for kind in topics.UP_KINDS if kind not in SAMPLE_KINDS]
    return others + (topics.up_filters(parse_shards(shards), SAMPLE_KINDS) if shards else [])


class Service:
    """`start`, then `step` about once a second, then `stop`."""

    def __init__(self, settings: CloudSettings, broker: Broker, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        folder = settings.data_dir
        folder.mkdir(parents=True, exist_ok=True)
        self.store = Store.open(settings.database_url, folder / "blobs")
        self.repository = Repository.open(folder / "trust", self.clock)
        self.registry = Registry(folder / "layers", self.store, self.repository, self.clock)
        self.catalogue = Catalogue(folder / "datasets")
        self.trainer = Trainer(self.store, self.catalogue, self.registry, settings.learning)
        self.review = Review(self.store, self.catalogue, self.registry, self.trainer, self.clock)
        self.guard = Guard(folder / "ca", settings.broker_log(), self.store, self.clock)
        self.offers = Offers(settings.offers, self.store, self.clock, self._publish)
        self.ingest = Ingest(
            self.store, settings.ingest, self.clock, self._publish, self.guard, on_stored=self.offers.stored
        )
        self.link = CentreLink(
            broker,
            "headframe-centre",
            [*filters_of(settings.ingest.shards), topics.release(PROBE_NAME)],
            self._on_message,
            has_room=self.ingest.has_room,
            on_oversize=self.ingest.on_oversize,
        )
        self.events = Events()
        self.grid = MqttGrid(Courier(self._publish_flower).send, self.participants)
        self.reported = Reported(self.store, self.clock)
        self.epochs = Epochs(self.store)
        self.rollouts = Rollouts(self.store, self.registry, self.reported, settings.rollout, self.clock)
        self.registry.launch = self.rollouts.launch
        self.shelf = Shelf(
            folder / "shelf.json",
            settings.sharing,
            self.clock,
            lambda topic, payload, retain: self.link.publish(topic, payload, retain=retain),
            lambda: self.link.connects,
        )
        self.giving = Giving(settings.rollout, self.registry, self.reported, self.shelf, self.clock)
        self.telling = Telling(
            self.registry,
            self.rollouts,
            self.reported,
            self.shelf,
            self.clock,
            lambda gateway_id, desired: self._publish(topics.down(gateway_id, "desired"), desired),
        )
        federation = Federation(
            self.store,
            self.registry,
            self.trainer,
            self.grid,
            settings.learning,
            settings.privacy,
            self.participants,
            self.online,
            self.clock,
        )
        self.rounds = Rounds(self.store, self.trainer, federation, settings.learning, self.online, self.clock)
        self._triggers_seen_s = float("-inf")

    def start(self) -> None:
        """Start all threads; rounds that a crash cut short are run again."""
        self.ingest.start()
        self.rollouts.start()
        self.rounds.start()
        self.link.start()

    def step(self) -> None:
        """Write down what was reported, keep gateways told what to run, start a round when enough labels have come."""
        self.guard.step()
        self.offers.step()
        self.reported.flush()
        self.epochs.flush()
        self.repository.refresh()
        self.rollouts.step()
        self.shelf.step()
        self.telling.step(self.online())
        self.registry.flush()
        now_s = self.clock.monotonic_s()
        if now_s - self._triggers_seen_s >= TRIGGER_LOOK_S:
            self._triggers_seen_s = now_s
            self.rounds.step()
        if not self.rounds.alive:
            raise RuntimeError("the learning thread has died; see the log above")
        if not self.ingest.alive or not self.link.alive:
            raise RuntimeError("a thread of ingest has died; see the log above")

    def stop(self, timeout_s: float = 15.0) -> None:
        """Commit what has arrived, then leave."""
        self.rounds.leave()
        self.ingest.stop(timeout_s)
        self.link.stop()
        self.reported.flush()
        self.epochs.flush()
        self.rounds.stop(timeout_s)
        self.store.close()

    # --- messages from gateways ---------------------------------------------------------------

    def _on_message(self, topic: str, payload: bytes) -> None:
        if topic.startswith(topics.RELEASE):
            self.shelf.on_message(payload)
            return
        gateway_id = "unknown"
        try:
            gateway_id, kind = topics.parse_up(topic)
            if not self.guard.admits(gateway_id):
                return
            if kind in SAMPLE_KINDS:
                self.ingest.on_message(topic, payload)
                return
            self._handle(gateway_id, codec.decode(payload))
        except HeadframeError as error:
            self.guard.refused(gateway_id, error)
            self.store.quarantine(gateway_id, topic, str(error), payload, self.clock.wall_ns())

    def _handle(self, gateway_id: str, message: Message) -> None:
        match message:
            case State():
                if message.gateway_id != gateway_id:
                    raise ForgeryError(f"state of {message.gateway_id!r} came on the topic of {gateway_id!r}")
                check_state(message)
                self._on_state(message)
            case Event():
                if message.gateway_id != gateway_id:
                    raise ForgeryError(f"event of {message.gateway_id!r} came on the topic of {gateway_id!r}")
                check_event(message)
                self.events.add(message)
            case Fetch():
                answer = self.giving.answer(gateway_id, message)
                if answer is not None:
                    kind = "shelved" if isinstance(answer, Shelved) else "layer"
                    self._publish(topics.down(gateway_id, kind), answer)
            case Offer():
                check_offer(message, gateway_id)
                self.offers.take(message)
            case Renewal():
                self._publish(topics.down(gateway_id, "certificate"), self.guard.renew(gateway_id, message))
            case FlowerFrame():
                self.grid.on_frame(gateway_id, message.message)
            case Chunk():  # of a reply; those of samples have a topic of their own
                self.grid.on_chunk(gateway_id, message)
            case _:
                raise OperatorError(f"a {type(message).__name__} is not for the centre")

    def _on_state(self, state: State) -> None:
        self.reported.take(state)
        if state.online:
            self._follow(state)
            self.telling.tell(state.gateway_id)

    def _follow(self, state: State) -> None:
        """Keep how far its spool is; one that is less far than it was runs an old image, and is asked to begin anew."""
        back = self.epochs.take(state.gateway_id, state.epochs[:EPOCHS_SAID_MAX], self.clock.wall_ns())
        if back and state.epochs[0].epoch in back:
            log.warning("the spool of %s is an old image of itself", state.gateway_id)
            self.store.audit(
                "ingest", "spool went back", {"gateway": state.gateway_id, "epoch": back[0]}, self.clock.wall_ns()
            )
            self._publish(topics.down(state.gateway_id, "receipt"), Receipt(renew=state.epochs[0].epoch))

    def _publish(self, topic: str, message: Message, *, retain: bool = False) -> bool:
        return self.link.publish(topic, codec.encode(message), retain=retain or isinstance(message, Desired))

    def _publish_flower(self, gateway_id: str, frame: Frame) -> bool:
        return self._publish(topics.down(gateway_id, "flower"), frame)

    def online(self) -> Sequence[str]:
        """Gateways that reported within the last heartbeats."""
        return self.reported.online()

    def participants(self) -> Sequence[str]:
        """Gateways online that may take part in a round: all but those that were unlearned."""
        excluded = self.store.excluded()
        if not excluded:
            return self.online()
        site_of = {state.gateway_id: state.site_id for state in self.store.states()}
        return [g for g in self.online() if g not in excluded and site_of.get(g) not in excluded]
