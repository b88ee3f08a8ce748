"""Rounds: who may start one, when one starts by itself, and the thread that runs them, one after the other.

The queue is the store. So a round that a command of another process queued is run too, and what a crash cut short is
run again; one that the centre never comes back from is given up.
"""

import dataclasses
import logging
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence

from cloud.federate import Federation
from cloud.learning.training import Outcome, Trainer
from cloud.learning.triggers import DRIFT_LEVEL, Past, Trigger, TriggerRules, find_trigger
from cloud.settings import LearningSettings
from cloud.store import FAILED, QUEUED, REFUSED, RELEASED, RUNNING, Run, Store
from common.clock import Clock
from common.errors import EnvironmentFault, HeadframeError, OperatorError

log = logging.getLogger(__name__)

TRAINING = "training"
"""Status of a run without a round; `Rounds` takes up none of these."""
WAITING_MAX = 4
"""Rounds that may wait."""
BEGUN_MAX = 5
"""Times that a round is begun: one that takes the centre down with it would do so at every start."""
LOOK_S = 1.0
"""How often the thread looks for a round that another process queued."""
FAULT_WAIT_S = 10.0
"""How long nothing is tried when the store cannot be read or written."""


def queue_round(
    store: Store, author: str, now_ns: int, trigger: Trigger | None = None, drifting: frozenset[str] = frozenset()
) -> str:
    """Queue a round: federation, training, gate, release. The centre runs it; returns its run id.

    Args:
        trigger: why it starts by itself; None when somebody starts it.
        drifting: cameras that have drifted, `gateway/camera`.

    Raises:
        OperatorError: too many rounds wait already.
    """
    if sum(run.status == QUEUED for run in store.open_runs()) >= WAITING_MAX:
        raise OperatorError(f"{WAITING_MAX} rounds wait already", "Wait until one has ended.")
    record = {
        "author": author,
        "trigger": dataclasses.asdict(trigger) if trigger else None,
        "labels": store.label_count(),
        "drifting": sorted(drifting),
    }
    run = Run(f"run-{uuid.uuid4().hex[:12]}", now_ns, None, QUEUED, record)
    store.add_run(run)
    store.audit(author, "start round", {"run_id": run.run_id}, now_ns)
    return run.run_id


def train_now(store: Store, trainer: Trainer, author: str, note: str, clock: Clock) -> Outcome:
    """A training run without asking gateways, recorded like a round.

    Raises:
        HeadframeError: it failed; the record says so too.
    """
    record: dict[str, object] = {"author": author, "kind": "training", "labels": store.label_count()}
    run = Run(f"run-{uuid.uuid4().hex[:12]}", clock.wall_ns(), None, TRAINING, record)
    store.add_run(run)
    try:
        outcome = trainer.run(note)
    except HeadframeError as error:
        _end(store, run, FAILED, {"error": str(error)}, clock)
        raise
    _end(store, run, RELEASED if outcome.release_id else REFUSED, outcome.record, clock)
    return outcome


def _end(store: Store, run: Run, status: str, found: Mapping[str, object], clock: Clock) -> None:
    noted = store.run(run.run_id).record
    record = {key: value for key, value in noted.items() if key not in ("asked", "begun")} | dict(found)
    store.update_run(dataclasses.replace(run, status=status, record=record, finished_ns=clock.wall_ns()))
    log.info("run %s: %s", run.run_id, status)


class Rounds:
    """`start`, `step` now and then, `stop`.

    Args:
        online: gateways that reported lately.
    """

    def __init__(
        self,
        store: Store,
        trainer: Trainer,
        federation: Federation,
        settings: LearningSettings,
        online: Callable[[], Sequence[str]],
        clock: Clock,
    ) -> None:
        self._store, self._trainer, self._federation = store, trainer, federation
        self._settings, self._online, self._clock = settings, online, clock
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run_on, name="learning", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread lives."""
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def leave(self) -> None:
        """Begin no other round."""
        self._stopping.set()
        self._wake.set()

    def stop(self, timeout_s: float) -> None:
        """Wait for the one that runs; one that takes longer is run again at the next start."""
        self.leave()
        self._thread.join(timeout_s)

    def queue(self, author: str, trigger: Trigger | None = None) -> str:
        """See `queue_round`."""
        run_id = queue_round(self._store, author, self._clock.wall_ns(), trigger, self._drifting())
        self._wake.set()
        return run_id

    def step(self) -> None:
        """Start a round when one is due."""
        if trigger := self._find_trigger():
            self.queue(f"trigger: {trigger.kind}", trigger)

    def _find_trigger(self) -> Trigger | None:
        rules = self._settings
        bounds = TriggerRules(rules.new_labels, rules.every_hours, rules.drift_cameras, rules.rounds_per_day)
        if not (bounds.new_labels or bounds.every_hours or bounds.drift_cameras):
            return None
        past = [
            Past(
                run.started_ns,
                run.status in (QUEUED, RUNNING),
                int(run.record.get("labels", 0)),
                frozenset(run.record.get("drifting", ())),
                bool(run.record.get("trigger")),
            )
            for run in self._store.runs()
        ]
        return find_trigger(bounds, self._clock.wall_ns(), self._store.label_count(), self._drifting(), past)

    def _drifting(self) -> frozenset[str]:
        """Cameras that have drifted, `gateway/camera`, of the gateways online."""
        online = set(self._online())
        return frozenset(
            f"{state.gateway_id}/{camera.camera_id}"
            for state in self._store.states()
            for camera in state.cameras
            if state.gateway_id in online and camera.drift >= DRIFT_LEVEL
        )

    def _run_on(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                waiting = self._store.open_runs()
                if waiting:
                    self._run(waiting[0])
            except EnvironmentFault as error:  # the store is full, or away
                log.error("rounds wait: %s", error)
                self._stopping.wait(FAULT_WAIT_S)
                continue
            if not waiting:
                self._wake.wait(LOOK_S)

    def _run(self, run: Run) -> None:
        """One round to its end; a failure, and a defect too, is the run's record and not the end of the centre."""
        begun = int(run.record.get("begun", 0)) + 1
        run = dataclasses.replace(run, status=RUNNING, record=run.record | {"begun": begun})
        if begun > BEGUN_MAX:
            reason = f"the centre ended {BEGUN_MAX} times in this round; it is given up"
            _end(self._store, run, FAILED, {"error": reason}, self._clock)
            return
        self._store.update_run(run)
        found: dict[str, object] = {}
        try:
            found["federation"] = self._federation.run(run, self._stopping)
            outcome = self._trainer.run(note=f"round {run.run_id}")
            found |= outcome.record
            status = RELEASED if outcome.release_id else REFUSED
        except HeadframeError as error:
            found["error"], status = str(error), FAILED
            log.error("round %s failed: %s", run.run_id, error)
        except Exception as error:
            found["error"], status = f"a defect, please report it with the log: {error!r}", FAILED
            log.exception("round %s failed", run.run_id)
        if status == FAILED and self._stopping.is_set():
            return  # the centre leaves, and link and store with it: it is run again at the next start
        _end(self._store, run, status, found, self._clock)
