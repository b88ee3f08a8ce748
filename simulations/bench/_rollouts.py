"""A fleet in simulated time for the rollout benchmarks: gateways that are told a release and report what came of it.

The engine and its gates are the product's; here are only the gateways and the clock.
"""

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from cloud.rollout.engine import Engine
from cloud.rollout.entries import Aborted, Completed, Entry, Started, Told
from cloud.rollout.gates import LabelTally
from cloud.rollout.plan import Plan, scaled
from cloud.rollout.rules import Report
from cloud.rollout.state import Phase, Rollout

NEW, OLD = "r2-new", "r1-old"
ROLLOUT = "ro-1"
BEGIN_NS: Final = 1_800_000_000 * 10**9


class Gateways(Protocol):
    """What the simulated gateways do."""

    def told(self, name: str, now_s: float) -> list[tuple[float, Callable[[Report], Report]]]:
        """A gateway is to run the new release: how its report changes, and after how many seconds."""
        ...


@dataclass
class SimulatedFleet:
    """One rollout in simulated time; also the world that the engine sees."""

    fleet: dict[str, Report]
    gateways: Gateways
    now_ns: int = BEGIN_NS
    since_ns: int = BEGIN_NS
    active: str = OLD
    label_tally: LabelTally = field(default_factory=LabelTally)
    known_classes: dict[str, float] = field(default_factory=dict)
    _due: list[tuple[float, int, str, Callable[[Report], Report]]] = field(default_factory=list)
    _number: int = 0

    def carries(self, release_id: str, rollout: Rollout) -> bool:
        return release_id == rollout.started.release_id

    def merged(self, rollout: Rollout, *, forward: bool) -> str:
        return rollout.started.release_id if forward else rollout.before

    def labels(self, rollout: Rollout) -> LabelTally:
        del rollout
        return self.label_tally

    def explained(self, rollout: Rollout, site_id: str) -> float:
        del rollout, site_id
        return 0.0

    def classes(self, rollout: Rollout) -> Mapping[str, float]:
        del rollout
        return self.known_classes

    def size(self, offline_age_max_s: float) -> int:
        del offline_age_max_s
        return len(self.fleet)

    @property
    def now_s(self) -> float:
        return (self.now_ns - BEGIN_NS) / 1e9

    def plan_change(self, after_s: float, name: str, change: Callable[[Report], Report]) -> None:
        """A gateway's report changes later."""
        self._number += 1
        heapq.heappush(self._due, (self.now_s + after_s, self._number, name, change))

    def run(
        self, plan: Plan, until_s: float, tick_s: float, passed: Callable[[Rollout], bool] = lambda _: False
    ) -> Rollout:
        """Start the rollout, and go on until it has ended, the time is over, or it has `passed` what is looked for."""
        plan = msgspec.structs.replace(plan, waves=scaled(plan.waves, len(self.fleet)))
        started = Started(
            rollout_id=ROLLOUT,
            at_ns=self.now_ns,
            release_id=NEW,
            parts=("scenario:belt",),
            plan=plan,
            fleet=len(self.fleet),
        )
        engine = Engine([started])
        rollout = engine.get(ROLLOUT)
        while self.now_s < until_s:
            while self._due and self._due[0][0] <= self.now_s:
                _, _, name, change = heapq.heappop(self._due)
                self.fleet[name] = change(self.fleet[name])
            made = engine.step(self)
            self._act(made)
            if rollout.phase in (Phase.ABORTED, Phase.COMPLETED) or passed(rollout):
                break
            self.now_ns += int(tick_s * 1e9)
        return rollout

    def _act(self, made: list[Entry]) -> None:
        for entry in made:
            if isinstance(entry, Told):
                for name in entry.gateways:
                    for after_s, change in self.gateways.told(name, self.now_s):
                        self.plan_change(after_s, name, change)
            if isinstance(entry, Aborted | Completed):
                return
