"""The centre as one object: wires store, ingest, federation, learning, registry and the link to the gateways.

It is also what the console talks to (`cloud.console.backend.ConsoleBackend`).
"""

import dataclasses
import logging
import queue
import threading
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cloud.admission import check_event, check_offer, check_state
from cloud.epochs import Epochs
from cloud.events import Events
from cloud.federation.grid import MqttGrid
from cloud.federation.masked import MaskedRounds, Round
from cloud.federation.server_app import run_round
from cloud.federation.strategy import Parts
from cloud.giving import Giving
from cloud.guard import Guard
from cloud.ingest import Ingest
from cloud.learning.clocks import supersedes
from cloud.learning.datasets import Catalogue
from cloud.learning.training import Trainer
from cloud.learning.triggers import DRIFT_LEVEL, Past, Trigger, TriggerRules, find_trigger
from cloud.link import CentreLink
from cloud.offers import Offers
from cloud.registry import Registry
from cloud.reported import Reported
from cloud.review import Review
from cloud.rollout.service import Rollouts
from cloud.settings import CloudSettings, parse_shards
from cloud.shelf import PROBE_NAME, Shelf
from cloud.store import Run, Store
from cloud.telling import Telling
from cloud.trust import Repository
from cloud.worker import SAMPLE_KINDS
from common import codec, topics
from common.clock import Clock, SystemClock
from common.contribution import Labels
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
ROUNDS_WAITING_MAX = 4
RESUME_LOOK_S = 0.2
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
        self.masked = MaskedRounds(self.store, settings.privacy)
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
        self._rounds: queue.Queue[str] = queue.Queue(ROUNDS_WAITING_MAX)
        self._triggers_seen_s = float("-inf")
        self._stopping = threading.Event()
        self._learner = threading.Thread(target=self._learn_on, name="learning", daemon=True)

    def start(self) -> None:
        """Start all threads; rounds that a crash cut short are run again."""
        self.ingest.start()
        for run in self.store.runs():
            if run.status in ("queued", "running"):
                self._rounds.put_nowait(run.run_id)
        self.rollouts.start()
        self._learner.start()
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
            if trigger := self._find_trigger():
                self.start_round(f"trigger: {trigger.kind}", trigger)
        if not self._learner.is_alive():
            raise RuntimeError("the learning thread has died; see the log above")
        if not self.ingest.alive or not self.link.alive:
            raise RuntimeError("a thread of ingest has died; see the log above")

    def stop(self, timeout_s: float = 15.0) -> None:
        """Commit what has arrived, then leave."""
        self._stopping.set()
        self.ingest.stop(timeout_s)
        self.link.stop()
        self.reported.flush()
        self.epochs.flush()
        self._learner.join(timeout_s)
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

    # --- learning -----------------------------------------------------------------------------

    def start_round(self, author: str, trigger: Trigger | None = None) -> str:
        """Queue a round: federation, training, gate, release. Returns its run id.

        Args:
            trigger: why it starts by itself; None when somebody starts it.

        Raises:
            OperatorError: too many rounds wait already.
        """
        now_ns = self.clock.wall_ns()
        record = {
            "author": author,
            "trigger": dataclasses.asdict(trigger) if trigger else None,
            "labels": self.store.label_count(),
            "drifting": sorted(self._drifting()),
        }
        run = Run(f"run-{uuid.uuid4().hex[:12]}", now_ns, None, "queued", record)
        if self._rounds.full():
            raise OperatorError(f"{ROUNDS_WAITING_MAX} rounds wait already", "Wait until one has ended.")
        self.store.add_run(run)
        self._rounds.put_nowait(run.run_id)
        self.store.audit(author, "start round", {"run_id": run.run_id}, now_ns)
        return run.run_id

    def _find_trigger(self) -> Trigger | None:
        rules = self.settings.learning
        bounds = TriggerRules(rules.new_labels, rules.every_hours, rules.drift_cameras, rules.rounds_per_day)
        if not (bounds.new_labels or bounds.every_hours or bounds.drift_cameras):
            return None
        past = [
            Past(
                run.started_ns,
                run.status in ("queued", "running"),
                int(run.record.get("labels", 0)),
                frozenset(run.record.get("drifting", ())),
                bool(run.record.get("trigger")),
            )
            for run in self.store.runs()
        ]
        labels = self.store.label_count()
        return find_trigger(bounds, self.clock.wall_ns(), labels, self._drifting(), past)

    def _drifting(self) -> frozenset[str]:
        """Cameras that have drifted, `gateway/camera`, of the gateways online."""
        online = set(self.online())
        return frozenset(
            f"{state.gateway_id}/{camera.camera_id}"
            for state in self.store.states()
            for camera in state.cameras
            if state.gateway_id in online and camera.drift >= DRIFT_LEVEL
        )

    def _learn_on(self) -> None:
        while not self._stopping.is_set():
            try:
                run_id = self._rounds.get(timeout=0.5)
            except queue.Empty:
                continue
            self._run_round(run_id)

    def _run_round(self, run_id: str) -> None:
        """One round to its end; a failure is the run's record, not the end of the centre."""
        run = next(run for run in self.store.runs() if run.run_id == run_id)
        self.store.update_run(dataclasses.replace(run, status="running"))
        record: dict[str, object] = {}
        try:
            record["federation"] = self._federate(run)
            outcome = self.trainer.run(note=f"round {run_id}")
            record |= outcome.record
            status = "released" if outcome.release_id else "refused by the gate"
        except HeadframeError as error:
            record["error"], status = str(error), "failed"
            log.error("round %s failed: %s", run_id, error)
        noted = next(run for run in self.store.runs() if run.run_id == run_id).record
        record = {key: value for key, value in noted.items() if key != "asked"} | record
        self.store.update_run(dataclasses.replace(run, status=status, record=record, finished_ns=self.clock.wall_ns()))
        log.info("round %s: %s", run_id, status)

    def _federate(self, run: Run) -> dict[str, object]:
        """Ask the gateways for their statistics.

        Whom was asked is recorded before, and each answer is stored as it comes, by client and with its round: after a
        crash the round goes on with those that are missing, as soon as they are back.
        """
        asked: list[str] = list(run.record.get("asked", ()))
        backbone, _ = self.registry.backbone()
        everything, masked = self.trainer.scenarios(), self.settings.privacy.masked
        scenarios = {name: classes for name, classes in everything.items() if name not in masked}
        answered = self._answered(run.run_id, list(scenarios), backbone.hash) if asked else set()
        record = dict(run.record)
        if asked:
            self._await(set(asked) - answered)
        else:
            record["asked"] = asked = list(self.participants())
            self.store.update_run(dataclasses.replace(run, status="running", record=record))
        if not asked:
            return {"asked": 0, "answered": 0}
        labels = self._labels_by_gateway(list(everything))
        sums = self._sum_masked(run, record, everything, asked, labels) if masked else {}
        if not scenarios:
            return {"asked": len(asked), "answered": sums.get("summed", 0), "sums": sums}

        there = {scenario: self.store.contribution_records(scenario, backbone.hash) for scenario in scenarios}

        def keep(gateway_id: str, parts: Parts) -> None:
            for scenario, (statistics, covered) in parts.items():
                if not supersedes(len(covered), there[scenario].get(gateway_id)):
                    log.info("%s is still counting %s on the new backbone", gateway_id, scenario)
                    continue
                self.store.put_contribution(
                    scenario,
                    backbone.hash,
                    gateway_id,
                    statistics.arrays(),
                    {
                        "classes": list(statistics.classes),
                        "covered": sorted(name.hex() for name in covered),
                        "round": run.run_id,
                        "parts": len(parts),
                    },
                    self.clock.wall_ns(),
                )

        result = run_round(
            self.grid,
            backbone.hash,
            scenarios,
            lambda gateway_id: labels.get(gateway_id, {}),
            deadline_s=self.settings.learning.round_deadline_s,
            quorum=self.settings.learning.quorum,
            on_answer=keep,
            answered=answered,
            bytes_max=self.settings.learning.statistics_bytes_max,
            class_samples_min=self.settings.privacy.class_samples_min,
        )
        folded = result.counters["folded"]
        return {
            "answered": folded + len(answered),
            "resumed": len(answered),
            "counters": dict(result.counters),
            "sums": sums,
        }

    def _sum_masked(
        self,
        run: Run,
        record: dict[str, Any],
        scenarios: Mapping[str, tuple[str, ...]],
        asked: Sequence[str],
        labels: Mapping[str, Labels],
    ) -> dict[str, int]:
        """Sums of the masked scenarios; what is asked is recorded before, for the accountant."""
        plan = self.masked.plan([name for name in scenarios if name in self.settings.privacy.masked])
        record["masked"] = [*record.get("masked", ()), dataclasses.asdict(plan)]
        self.store.update_run(dataclasses.replace(run, status="running", record=record))
        if not plan.scenarios:
            return {}
        backbone, _ = self.registry.backbone()
        known = {name: self.trainer.gathering.datasets(name, scenarios[name], backbone.hash) for name in plan.scenarios}
        asking = Round(
            run.run_id,
            backbone.hash,
            {name: scenarios[name] for name in plan.scenarios},
            labels,
            self.settings.learning.round_deadline_s,
            plan.multiplier,
        )
        return self.masked.run(self.grid, asked, asking, known, self.clock.wall_ns())

    def _answered(self, run_id: str, scenarios: Sequence[str], backbone: str) -> set[str]:
        """Gateways whose statistics of this round are in the store, those of every scenario that they answered for."""
        found: Counter[str] = Counter()
        wanted: dict[str, int] = {}
        for scenario in scenarios:
            for row in self.store.contributions(scenario, backbone):
                if row.meta.get("round") == run_id:
                    found[row.client] += 1
                    wanted[row.client] = int(row.meta["parts"])
        return {client for client, parts in wanted.items() if found[client] == parts}

    def _await(self, gateways: set[str]) -> None:
        """After a restart: until these have reported again, at most for a round's deadline."""
        until_s = self.clock.monotonic_s() + self.settings.learning.round_deadline_s
        while not gateways <= set(self.online()) and self.clock.monotonic_s() < until_s:
            if self._stopping.wait(RESUME_LOOK_S):
                return

    def _labels_by_gateway(self, scenarios: Sequence[str]) -> dict[str, dict[str, dict[bytes, str]]]:
        """gateway -> scenario -> sample -> label, of the samples that each uploaded; an empty label was taken back."""
        found: dict[str, dict[str, dict[bytes, str]]] = {}
        backbone, _ = self.registry.backbone()
        for scenario in scenarios:
            for name, gateway_id, label in self.store.judged(scenario, backbone.hash):
                found.setdefault(gateway_id, {}).setdefault(scenario, {})[name] = label
        return found
