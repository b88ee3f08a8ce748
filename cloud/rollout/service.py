"""Rollouts in the running centre: the engine on its ledger, reports from the fleet, and what each gateway is to run.

Decides which signed release a gateway is told; leaves the rules to `cloud.rollout.engine`. Also opened by commands of
people, next to a running centre: both add to one ledger (`cloud.rollout.ledger`).
"""

import logging
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from cloud.registry import CANDIDATE, Registry
from cloud.reported import Reported
from cloud.rollout.assembly import changed_parts, new_classes
from cloud.rollout.defaults import plan_of
from cloud.rollout.engine import Engine
from cloud.rollout.entries import Aborted, Entry, Paused, Replaced, Resumed, RolledBack, Started, Superseded
from cloud.rollout.gates import LabelTally
from cloud.rollout.knowledge import Knowledge
from cloud.rollout.ledger import Ledger, ended_status
from cloud.rollout.plan import without_likeness
from cloud.rollout.reports import Reports
from cloud.rollout.rules import Report, verdicts_of
from cloud.rollout.state import UNDER_CHANGE, Phase, Rollout
from cloud.rollout.targets import Targets, new_bytes
from cloud.rollout.view import row_of
from cloud.settings import RolloutSettings
from cloud.store import Store
from common.clock import Clock
from common.errors import OperatorError

log = logging.getLogger(__name__)

TRIES_MAX: Final = 5
"""How often an order is tried again because somebody else was faster."""
ORDERS: Final = ("pause", "resume", "abort", "rollback")


class _World:
    """One step's view, for the engine."""

    def __init__(self, rollouts: "Rollouts", fleet: Mapping[str, Report]) -> None:
        self._rollouts = rollouts
        self.now_ns = rollouts.clock.wall_ns()
        self.since_ns = rollouts.since_ns
        self.active, self.fleet = rollouts.targets.active, fleet

    def size(self, offline_age_max_s: float) -> int:
        oldest_ns = self.now_ns - int(offline_age_max_s * 1e9)
        return sum(report.online or report.seen_ns >= oldest_ns for report in self.fleet.values())

    def carries(self, release_id: str, rollout: Rollout) -> bool:
        return self._rollouts.targets.carries(release_id, rollout)

    def merged(self, rollout: Rollout, *, forward: bool) -> str:
        return self._rollouts.targets.merged(rollout, forward=forward)

    def labels(self, rollout: Rollout) -> LabelTally:
        return self._rollouts.knowledge.tally(rollout)

    def explained(self, rollout: Rollout, site_id: str) -> float:
        return self._rollouts.knowledge.gain(rollout, site_id)

    def classes(self, rollout: Rollout) -> Mapping[str, float]:
        return self._rollouts.knowledge.classes(rollout)


class Rollouts:
    """All rollouts of the centre. Any thread may call it."""

    def __init__(
        self, store: Store, registry: Registry, reported: Reported, settings: RolloutSettings, clock: Clock
    ) -> None:
        self._store, self._registry, self._reported, self._settings = store, registry, reported, settings
        self.clock, self.since_ns = clock, clock.wall_ns()
        self.knowledge = Knowledge(store, registry)
        self._reports = Reports(settings)
        self._lock = threading.RLock()
        self._opened = 0
        self.targets = Targets(store, registry)
        self.targets.refresh()
        self._open()

    def _open(self) -> None:
        """The engine of the ledger as it is on disk."""
        self._opened += 1
        self._ledger = Ledger(self._store)
        self.engine = Engine(self._ledger.news())

    # --- the running centre -------------------------------------------------------------------

    def start(self) -> None:
        """A release that was signed just before a crash is sent on its way."""
        started = {rollout.started.release_id for rollout in self.engine.rollouts.values()}
        for release in reversed(self._store.releases()):
            if release.status == CANDIDATE and release.release_id not in started:
                self.launch(release.release_id)

    def step(self) -> None:
        """Read what people ordered, look at the fleet, write down what follows."""
        with self._lock:
            self._refresh()
            if self.engine.idle:
                return
            self.knowledge.look()
            made = self.engine.step(_World(self, self._fleet()))
            if made and not self._ledger.add(made, self._statuses(made)):
                self._open()  # an order came between: what was decided is decided again, with it
                return
            for entry in made:
                log.info("rollout %s: %s %s", entry.rollout_id, type(entry).__name__.lower(), entry.why)
            if made:
                self.targets.refresh()

    @property
    def generation(self) -> tuple[object, ...]:
        """Changes whenever `wanted` may have changed for a gateway that has reported nothing new."""
        with self._lock:
            return self._opened, self.engine.applied, self.targets.active

    def wanted(self, gateway_id: str) -> str | None:
        """The release that this gateway is to run; None before the first release."""
        with self._lock:
            return self.targets.wanted(self.engine, gateway_id, self._reported.release_of(gateway_id))

    def _fleet(self) -> dict[str, Report]:
        states, ages = self._reported.states()
        now_ns = self.clock.wall_ns()
        return self._reports.make(states, {name: now_ns - int(age * 1e9) for name, age in ages.items()}, now_ns)

    def _refresh(self) -> None:
        for entry in self._ledger.news():
            self.engine.apply(entry)
        self.targets.refresh()

    def _statuses(self, entries: Sequence[Entry]) -> dict[str, str]:
        return {
            self.engine.get(entry.rollout_id).started.release_id: status
            for entry in entries
            if (status := ended_status(entry))
        }

    # --- people -------------------------------------------------------------------------------

    def launch(self, release_id: str, actor: str = "centre", why: str = "a new release") -> str:
        """Send a release on its way to the fleet by the plan of the settings; returns the rollout's id.

        Where there is no fleet to be careful with, or rollouts are switched off, it is active at once (empty id).

        Raises:
            OperatorError: there is no such release, or nothing that it could be an upgrade of.
        """
        with self._lock:
            self._refresh()
            new, active = self._registry.manifest(release_id), self._registry.manifest(self.targets.active)
            if new is None or active is None:
                raise OperatorError(f"there is no release {release_id}", "`headframe cloud releases` lists them.")
            parts = changed_parts(active, new)
            plan = plan_of(self._settings, self._known())
            if not self._known() or not self._settings.enabled or not parts:
                self._order(lambda: [_replaced(release_id, actor, why, self.clock.wall_ns())])
                return ""
            plan = msgspec.structs.replace(plan, release_bytes=new_bytes(active, new))
            if named := new_classes(active, new):
                plan, why = without_likeness(plan), f"{why}, the first to name {', '.join(named)}"
            rollout_id = f"ro-{uuid.uuid4().hex[:8]}"

            def lines() -> list[Entry]:
                at_ns = self.clock.wall_ns()
                started = Started(
                    rollout_id=rollout_id,
                    at_ns=at_ns,
                    actor=actor,
                    why=why,
                    release_id=release_id,
                    parts=parts,
                    plan=plan,
                    fleet=self._known(),
                )
                return [
                    *(
                        Superseded(rollout_id=r.rollout_id, at_ns=at_ns, actor=actor, why=f"{rollout_id} is newer")
                        for r in self.engine.waiting_for(parts)
                    ),
                    started,
                ]

            self._order(lines)
            return rollout_id

    def order(self, kind: str, rollout_id: str, actor: str, why: str = "") -> None:
        """A person's word: pause, resume, abort, or rollback.

        Raises:
            OperatorError: there is no such rollout, or it is not in a phase for that.
        """

        def lines() -> list[Entry]:
            rollout, at_ns = self.engine.get(rollout_id), self.clock.wall_ns()
            match kind:
                case "pause":
                    return [Paused(rollout_id=rollout_id, at_ns=at_ns, actor=actor, why=why)]
                case "resume":
                    return [Resumed(rollout_id=rollout_id, at_ns=at_ns, actor=actor, why=why)]
                case "abort":
                    return [Aborted(rollout_id=rollout_id, at_ns=at_ns, actor=actor, why=why)]
                case "rollback" if rollout.phase in (Phase.WAITING, *UNDER_CHANGE):
                    return [Aborted(rollout_id=rollout_id, at_ns=at_ns, actor=actor, why=why)]
                case "rollback" if rollout.phase is Phase.COMPLETED:
                    back = self.targets.merged(rollout, forward=False)
                    return [RolledBack(rollout_id=rollout_id, at_ns=at_ns, actor=actor, why=why, release_id=back)]
                case "rollback":
                    raise OperatorError(f"rollout {rollout_id} is {rollout.phase.value}", "There is nothing to undo.")
            raise OperatorError(f"{kind!r} is no order", f"Orders are {', '.join(ORDERS)}.")

        with self._lock:
            self._refresh()
            self._order(lines)

    def replace_all(self, release_id: str, actor: str, why: str) -> None:
        """The whole fleet goes onto a release at once: a person rolls back. Every rollout ends."""
        with self._lock:
            self._refresh()
            self._order(lambda: [_replaced(release_id, actor, why, self.clock.wall_ns())])

    def _order(self, lines: Callable[[], list[Entry]]) -> None:
        """Write lines and apply them; made anew when somebody else was faster.

        Raises:
            OperatorError: they do not fit the state: nothing was written.
        """
        for _ in range(TRIES_MAX):
            entries: list[Entry] = lines()
            self.engine.check(entries)
            if self._ledger.add(entries, self._statuses(entries)):
                for entry in entries:
                    self.engine.apply(entry)
                self.targets.refresh()
                return
            self._refresh()
        raise OperatorError("others are giving orders at the same time", "Try again.")

    def _known(self) -> int:
        """Gateways that have ever reported and are not long gone."""
        states, ages = self._reported.states()
        oldest_ns = self.clock.wall_ns() - int(self._settings.offline_age_max_s * 1e9)
        return sum(name in ages or state.at_ns >= oldest_ns for name, state in states.items())

    def _row(self, rollout: Rollout) -> dict[str, Any]:
        verdicts = rollout.verdicts
        if rollout.phase in UNDER_CHANGE:
            verdicts = verdicts_of(rollout, _World(self, self._fleet()))
        return row_of(rollout, verdicts)

    # --- for people to look at ----------------------------------------------------------------

    def list(self) -> list[dict[str, Any]]:
        """Every rollout, newest first."""
        with self._lock:
            self._refresh()
            return [self._row(rollout) for rollout in reversed(self.engine.rollouts.values())]

    def show(self, rollout_id: str) -> dict[str, Any]:
        """One of them, with its gateways and its ledger.

        Raises:
            OperatorError: there is none of this id.
        """
        with self._lock:
            self._refresh()
            rollout = self.engine.get(rollout_id)
            lines = [
                {"at_ns": line.at_ns, "kind": line.kind, "actor": line.actor, "why": line.why}
                for line in self._store.ledger()
                if line.rollout_id in (rollout_id, "")
            ]
            members = {
                name: {"outcome": m.outcome.value, "reason": m.reason, "told_ns": m.told_ns, "attempts": m.attempts}
                for name, m in rollout.members.items()
            }
            return self._row(rollout) | {"members": members, "ledger": lines}


def _replaced(release_id: str, actor: str, why: str, at_ns: int) -> Replaced:
    return Replaced(rollout_id="", at_ns=at_ns, actor=actor, why=why, release_id=release_id)
