"""The state machine of rollouts: lines of the ledger in, lines of the ledger out. Pure.

A rollout is the sum of its lines (`cloud.rollout.state`). `step` looks at what gateways report and adds lines: who is
told, what came of it, which wave is full, what the gates say; what people order are lines too. Whoever calls it writes
the lines down before acting: after a crash the same lines make the same state, and the next step goes on from there.

A gateway takes part in one unsettled rollout at a time, so whatever happens on it has one cause, also while two
rollouts of disjoint parts are under way.
"""

from collections.abc import Iterable
from typing import Final

from cloud.rollout import rules
from cloud.rollout.entries import Begun, Completed, Entry, Replaced, Started
from cloud.rollout.plan import in_window, site_gap_ns, stratified
from cloud.rollout.rules import World
from cloud.rollout.state import UNDER_CHANGE, Outcome, Phase, Rollout
from common.errors import OperatorError

ATTEMPTS_MAX: Final = 3
"""How often a gateway that stayed silent is told again."""
KEEPS_IT: Final = (Outcome.UNDER_WAY, Outcome.HEALTHY, Outcome.UNPROVEN)


class Engine:
    """All rollouts.

    Args:
        entries: the ledger so far, in order.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.rollouts: dict[str, Rollout] = {}
        self._orders: dict[str, tuple[int, list[str]]] = {}
        self._live: list[Rollout] | None = None
        self.applied = 0
        """Lines taken."""
        for entry in entries:
            self.apply(entry)

    def apply(self, entry: Entry) -> None:
        """Take one line.

        Raises:
            OperatorError: it does not fit the state; nothing has changed.
        """
        self._live = None
        self.applied += 1
        if isinstance(entry, Started):
            if entry.rollout_id in self.rollouts:
                raise OperatorError(f"rollout {entry.rollout_id} has started already")
            self.rollouts[entry.rollout_id] = Rollout(entry)
            return
        if isinstance(entry, Replaced):
            self._replace(entry)
            return
        self.get(entry.rollout_id).apply(entry)

    @property
    def idle(self) -> bool:
        """Nothing can follow from any report."""
        return not self._that_matter() and not any(r.phase is Phase.WAITING for r in self.rollouts.values())

    @property
    def settled(self) -> bool:
        """No rollout is under way or waits."""
        return not any(r.phase in (*UNDER_CHANGE, Phase.WAITING) for r in self.rollouts.values())

    def check(self, entries: Iterable[Entry]) -> None:
        """Whether orders fit the state; each is judged by itself.

        Raises:
            OperatorError: one does not.
        """
        for entry in entries:
            if not isinstance(entry, Started | Replaced):
                self.get(entry.rollout_id).check(entry)

    def get(self, rollout_id: str) -> Rollout:
        """Raises:
        OperatorError: there is none of this id.
        """
        try:
            return self.rollouts[rollout_id]
        except KeyError:
            raise OperatorError(
                f"there is no rollout {rollout_id!r}", "`headframe cloud rollout list` names them."
            ) from None

    def recipe(self, gateway_id: str) -> tuple[tuple[str, bool], ...]:
        """What makes a gateway's release of the active one: rollouts, and whether their change is applied (True) or
        taken back (False), in order."""
        steps = []
        for rollout in self._that_matter():
            member = rollout.members.get(gateway_id)
            if member is None:
                continue
            if rollout.phase in UNDER_CHANGE and member.outcome in KEEPS_IT:
                steps.append((rollout.rollout_id, True))
            elif rollout.phase is Phase.COMPLETED and member.outcome in (Outcome.FAILED, Outcome.REFUSED):
                steps.append((rollout.rollout_id, False))
        return tuple(steps)

    def held_back(self) -> dict[str, str]:
        """Gateways that keep what they had although the fleet has moved on, and why."""
        return {
            name: member.reason
            for rollout in self._that_matter()
            if rollout.phase is Phase.COMPLETED
            for name, member in rollout.members.items()
            if member.outcome in (Outcome.FAILED, Outcome.REFUSED)
        }

    def waiting_for(self, parts: Iterable[str]) -> list[Rollout]:
        """Rollouts that wait for these parts: a newer one takes their place."""
        wanted = tuple(parts)
        return [r for r in self.rollouts.values() if r.phase is Phase.WAITING and r.overlaps(wanted)]

    def step(self, world: World) -> list[Entry]:
        """What is to be written down now. It is applied already: if it cannot be written, throw the engine away."""
        made: list[Entry] = []

        def add(entry: Entry | None) -> None:
            if entry is not None:
                self.apply(entry)
                made.append(entry)

        for rollout in list(self.rollouts.values()):
            if rollout.phase is Phase.WAITING:  # before any can end below: `world.active` is of before this step
                add(self._begin(rollout, world))
        for rollout in self._that_matter():
            add(rules.settle(rollout, world))
            if rollout.phase not in UNDER_CHANGE:
                continue
            verdicts = rules.verdicts_of(rollout, world)
            add(rules.abort(rollout, verdicts, world))
            if rollout.phase is Phase.RUNNING:
                able, later = self._candidates(rollout, world)
                add(rules.tell(rollout, able, world))
                add(rules.exhausted(rollout, able, later, verdicts, world))
            if rollout.phase is Phase.RUNNING:
                add(rules.fill(rollout, able, later, world))
                if not any(isinstance(entry, Completed) for entry in made):  # `world.active` is of before that
                    add(rules.advance(rollout, verdicts, world))
        return made

    def _begin(self, rollout: Rollout, world: World) -> Begun | None:
        """A rollout goes on when none before it touches the same parts."""
        for other in self.rollouts.values():
            if other is rollout:
                return Begun(rollout_id=rollout.rollout_id, at_ns=world.now_ns, before=world.active)
            if other.phase in (*UNDER_CHANGE, Phase.WAITING) and other.overlaps(rollout.started.parts):
                return None
        return None

    def _candidates(self, rollout: Rollout, world: World) -> tuple[list[str], int]:
        """Who may be told now, in order, and how many may later (their window, their line, another rollout)."""
        plan, now_ns, able, later = rollout.plan, world.now_ns, [], 0
        among = set(plan.waves[rollout.wave].among)
        busy = {
            name
            for other in self.rollouts.values()
            if other is not rollout and other.phase in UNDER_CHANGE
            for name, member in other.members.items()
            if member.outcome is Outcome.UNDER_WAY
        }
        gap_ns, last_ns = site_gap_ns(plan), self._last_told(rollout, world) if plan.site_bytes_per_s else {}
        for name in self._order(rollout, world):
            member, report = rollout.members.get(name), world.fleet[name]
            again = member is not None and member.outcome is Outcome.SILENT and member.attempts < ATTEMPTS_MAX
            if (member is not None and not again) or not report.online:
                continue
            if among and name not in among and report.site_id not in among:
                continue
            line_busy = gap_ns and now_ns - last_ns.get(report.site_id, 0) < gap_ns
            if name in busy or line_busy or not in_window(plan, now_ns, report.utc_offset_s):
                later += 1
            else:
                last_ns[report.site_id] = now_ns
                able.append(name)
        return able, later

    def _order(self, rollout: Rollout, world: World) -> list[str]:
        size, order = self._orders.get(rollout.rollout_id, (-1, []))
        if size != len(world.fleet):
            order = stratified([(r.gateway_id, r.site_id) for r in world.fleet.values()], rollout.rollout_id)
            self._orders[rollout.rollout_id] = len(world.fleet), order
        return order

    @staticmethod
    def _last_told(rollout: Rollout, world: World) -> dict[str, int]:
        last: dict[str, int] = {}
        for name, member in rollout.members.items():
            if name in world.fleet:
                site = world.fleet[name].site_id
                last[site] = max(last.get(site, 0), member.told_ns)
        return last

    def _that_matter(self) -> list[Rollout]:
        """Those that decide what some gateway runs: under way, or completed and holding gateways back."""
        if self._live is None:
            self._live = [r for r in self.rollouts.values() if r.phase in UNDER_CHANGE or self._holds_back(r)]
        return self._live

    def _holds_back(self, rollout: Rollout) -> bool:
        """Whether it has completed, and nothing newer has on the same parts."""
        if rollout.phase is not Phase.COMPLETED or rollout.closed:
            return False
        later = False
        for other in self.rollouts.values():
            if later and other.phase is Phase.COMPLETED and other.overlaps(rollout.started.parts):
                return False
            later = later or other is rollout
        return True

    def _replace(self, entry: Replaced) -> None:
        for rollout in self.rollouts.values():
            if rollout.phase in (*UNDER_CHANGE, Phase.WAITING):
                rollout.end(Phase.ABORTED, entry)
            rollout.closed = True
