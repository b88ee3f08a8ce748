"""What a round asks of the gateways, and what the centre keeps of their answers. Learns nothing from it.

Whom was asked is recorded before, and each answer is stored as it comes, by client and with its round: after a crash
the round goes on with those that are missing, as soon as they are back.
"""

import dataclasses
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cloud.federation.grid import MqttGrid
from cloud.federation.masked import MaskedRounds, Round
from cloud.federation.server_app import run_round
from cloud.federation.strategy import Parts
from cloud.learning.clocks import supersedes
from cloud.learning.training import Trainer
from cloud.registry import Registry
from cloud.settings import LearningSettings, PrivacySettings
from cloud.store import Run, Store
from common.clock import Clock
from common.contribution import Labels

log = logging.getLogger(__name__)

RESUME_LOOK_S = 0.2

Gateways = Callable[[], Sequence[str]]


class Federation:
    """Asks the gateways that may take part for their statistics.

    Args:
        participants: gateways online that may take part; `online` those that are there at all.
    """

    def __init__(
        self,
        store: Store,
        registry: Registry,
        trainer: Trainer,
        grid: MqttGrid,
        learning: LearningSettings,
        privacy: PrivacySettings,
        participants: Gateways,
        online: Gateways,
        clock: Clock,
    ) -> None:
        self._store, self._registry, self._trainer, self._grid = store, registry, trainer, grid
        self._learning, self._privacy = learning, privacy
        self._participants, self._online, self._clock = participants, online, clock
        self._masked = MaskedRounds(store, privacy)

    def run(self, run: Run, stopping: threading.Event) -> dict[str, object]:
        """Ask; returns what came of it, for the run's record.

        Args:
            stopping: set when the centre leaves: nobody is waited for any more.

        Raises:
            HeadframeError: fewer answered than the quorum.
        """
        asked: list[str] = list(run.record.get("asked", ()))
        backbone, _ = self._registry.backbone()
        everything, masked = self._trainer.scenarios(), self._privacy.masked
        scenarios = {name: classes for name, classes in everything.items() if name not in masked}
        answered = self._answered(run.run_id, list(scenarios), backbone.hash) if asked else set()
        record = dict(run.record)
        if asked:
            self._await(set(asked) - answered, stopping)
        else:
            record["asked"] = asked = list(self._participants())
            self._store.update_run(dataclasses.replace(run, record=record))
        if not asked:
            return {"asked": 0, "answered": 0}
        labels = self._labels_by_gateway(list(everything))
        sums = self._sum_masked(run, record, everything, asked, labels) if masked else {}
        if not scenarios:
            return {"asked": len(asked), "answered": sums.get("summed", 0), "sums": sums}
        result = run_round(
            self._grid,
            backbone.hash,
            scenarios,
            lambda gateway_id: labels.get(gateway_id, {}),
            deadline_s=self._learning.round_deadline_s,
            quorum=self._learning.quorum,
            on_answer=self._keeping(run.run_id, backbone.hash, list(scenarios)),
            answered=answered,
            bytes_max=self._learning.statistics_bytes_max,
            class_samples_min=self._privacy.class_samples_min,
        )
        return {
            "answered": result.counters["folded"] + len(answered),
            "resumed": len(answered),
            "counters": dict(result.counters),
            "sums": sums,
        }

    def _keeping(self, run_id: str, backbone: str, scenarios: Sequence[str]) -> Callable[[str, Parts], None]:
        """Stores an answer, unless the gateway is still counting anew on a new backbone and knew more before."""
        there = {scenario: self._store.contribution_records(scenario, backbone) for scenario in scenarios}

        def keep(gateway_id: str, parts: Parts) -> None:
            for scenario, (statistics, covered) in parts.items():
                if not supersedes(len(covered), there[scenario].get(gateway_id)):
                    log.info("%s is still counting %s on the new backbone", gateway_id, scenario)
                    continue
                self._store.put_contribution(
                    scenario,
                    backbone,
                    gateway_id,
                    statistics.arrays(),
                    {
                        "classes": list(statistics.classes),
                        "covered": sorted(name.hex() for name in covered),
                        "round": run_id,
                        "parts": len(parts),
                    },
                    self._clock.wall_ns(),
                )

        return keep

    def _sum_masked(
        self,
        run: Run,
        record: dict[str, Any],
        scenarios: Mapping[str, tuple[str, ...]],
        asked: Sequence[str],
        labels: Mapping[str, Labels],
    ) -> dict[str, int]:
        """Sums of the masked scenarios; what is asked is recorded before, for the accountant."""
        plan = self._masked.plan([name for name in scenarios if name in self._privacy.masked])
        record["masked"] = [*record.get("masked", ()), dataclasses.asdict(plan)]
        self._store.update_run(dataclasses.replace(run, record=record))
        if not plan.scenarios:
            return {}
        backbone, _ = self._registry.backbone()
        known = {
            name: self._trainer.gathering.datasets(name, scenarios[name], backbone.hash) for name in plan.scenarios
        }
        asking = Round(
            run.run_id,
            backbone.hash,
            {name: scenarios[name] for name in plan.scenarios},
            labels,
            self._learning.round_deadline_s,
            plan.multiplier,
        )
        return self._masked.run(self._grid, asked, asking, known, self._clock.wall_ns())

    def _answered(self, run_id: str, scenarios: Sequence[str], backbone: str) -> set[str]:
        """Gateways whose statistics of this round are in the store, those of every scenario that they answered for."""
        found: Counter[str] = Counter()
        wanted: dict[str, int] = {}
        for scenario in scenarios:
            for row in self._store.contributions(scenario, backbone):
                if row.meta.get("round") == run_id:
                    found[row.client] += 1
                    wanted[row.client] = int(row.meta["parts"])
        return {client for client, parts in wanted.items() if found[client] == parts}

    def _await(self, gateways: set[str], stopping: threading.Event) -> None:
        """After a restart: until these have reported again, at most for a round's deadline."""
        until_s = self._clock.monotonic_s() + self._learning.round_deadline_s
        while not gateways <= set(self._online()) and self._clock.monotonic_s() < until_s:
            if stopping.wait(RESUME_LOOK_S):
                return

    def _labels_by_gateway(self, scenarios: Sequence[str]) -> dict[str, dict[str, dict[bytes, str]]]:
        """gateway -> scenario -> sample -> label, of the samples that each uploaded; an empty label was taken back."""
        found: dict[str, dict[str, dict[bytes, str]]] = {}
        backbone, _ = self._registry.backbone()
        for scenario in scenarios:
            for name, gateway_id, label in self._store.judged(scenario, backbone.hash):
                found.setdefault(gateway_id, {}).setdefault(scenario, {})[name] = label
        return found
