"""Rounds of scenarios whose gateways the centre sees as sums only: asks, opens, keeps. The protocol is `secure`.

A kept sum names its members. It counts until one of them is in a newer one: it cannot be taken apart, so whoever was in
it and is not in a newer one counts again when it is online in a later round.
"""

import logging
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cloud.federation.accounting import epsilon_of, multiplier_for
from cloud.federation.grid import MqttGrid
from cloud.federation.secure import CohortRules, CohortSum, Question, SecureSums
from cloud.learning.datasets import Dataset
from cloud.learning.heads import principal_basis
from cloud.settings import PrivacySettings
from cloud.store import SUM, Run, Store
from common.contribution import Labels
from common.errors import OperatorError
from common.flower import node_id_of
from common.projection import Projection, lift
from common.statistics import Statistics

log = logging.getLogger(__name__)

STEPS = 4
LENGTH_QUANTILE = 0.9  # of the data set's samples: a tenth are shortened a little where there is noise


@dataclass(frozen=True, slots=True)
class Round:
    """What a masked round is about."""

    run_id: str
    backbone: str
    scenarios: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, Labels]
    """gateway -> the labels of its samples at the centre"""
    deadline_s: float
    multiplier: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The scenarios that are asked about, with which noise, and ε of each with this round and all before it."""

    scenarios: tuple[str, ...]
    multiplier: float
    delta: float
    epsilon: dict[str, float] = field(default_factory=dict)


class MaskedRounds:
    """Runs them; everything is kept in the store."""

    def __init__(self, store: Store, settings: PrivacySettings) -> None:
        self._store, self._settings = store, settings

    def plan(self, scenarios: Collection[str]) -> Plan:
        """What may be asked within the budget, to be recorded before it is: what was asked was told, crash or not.

        Raises:
            OperatorError: noise without the accountant.
        """
        settings, names, spent = self._settings, [], {}
        if not settings.epsilon:
            return Plan(tuple(sorted(scenarios)), 0.0, settings.delta)
        multiplier = multiplier_for(settings.epsilon, settings.delta)
        runs = self._store.runs(limit=None)
        for scenario in sorted(scenarios):
            past = spent_multipliers(runs, scenario)
            before, after = (epsilon_of(sums, settings.delta) for sums in (past, [*past, multiplier]))
            may = not settings.epsilon_total or after <= settings.epsilon_total
            spent[scenario] = round(after if may else before, 4)
            if may:
                names.append(scenario)
            else:
                log.warning("the privacy budget of %s is spent: it is not asked about", scenario)
        return Plan(tuple(names), multiplier, settings.delta, spent)

    def run(
        self,
        grid: MqttGrid,
        gateways: Sequence[str],
        asked: Round,
        datasets: Mapping[str, Sequence[Dataset]],
        now_ns: int,
    ) -> dict[str, int]:
        """Ask these gateways and keep the sums; how it went, in numbers.

        Args:
            datasets: scenario -> what the centre has of it: where the directions come from.

        Raises:
            OperatorError: a scenario without a dataset.
        """
        settings, names = self._settings, set(asked.scenarios)
        online = {node_id_of(name): name for name in gateways}
        known = set(grid.get_node_ids())
        question = Question(
            asked.backbone,
            asked.scenarios,
            {name: public_projection(name, datasets[name], settings.directions) for name in sorted(names)},
            lambda node: {name: given for name, given in asked.labels.get(online[node], {}).items() if name in names},
            settings.class_samples_min,
            dict.fromkeys(names, asked.multiplier) if asked.multiplier else {},
        )
        sums = SecureSums(grid, question, CohortRules(settings.cohort, settings.cohort_min), asked.deadline_s / STEPS)
        for found in sums.run(sorted(known & online.keys())):
            self._keep(asked, question, found, [online[node] for node in found.members], now_ns)
        return dict(sums.counters)

    def _keep(self, asked: Round, question: Question, found: CohortSum, members: list[str], now_ns: int) -> None:
        """Store a sum, and forget what its members had told before."""
        name = f"{SUM}{asked.run_id}-{uuid.uuid4().hex[:8]}"  # a run that a crash cut short may have made some already
        for scenario, described in found.described.items():
            packed = lift(described, question.projections[scenario], question.scenarios[scenario])
            kept = self._store.sums(scenario, asked.backbone)
            old = [client for client, before in kept.items() if not set(before).isdisjoint(members)]
            meta = {
                "classes": list(packed.classes),
                "covered": [],
                "round": asked.run_id,
                "parts": len(found.described),
                "members": members,
                "multiplier": question.multipliers.get(scenario, 0.0),
            }
            self._store.put_contribution(scenario, asked.backbone, name, packed.arrays(), meta, now_ns)
            self._store.delete_contributions([*members, *old], scenario, asked.backbone)


def spent_multipliers(runs: Sequence[Run], scenario: str) -> list[float]:
    """The noise of each earlier sum of a scenario, from the plans in the records of runs."""
    plans = [plan for run in runs for plan in run.record.get("masked", ())]
    return [float(plan["multiplier"]) for plan in plans if scenario in plan["scenarios"] and plan["multiplier"]]


def public_projection(scenario: str, datasets: Sequence[Dataset], width: int) -> Projection:
    """Directions and lengths from the centre's own pictures: gateways are told of them, and they tell of no gateway.

    Raises:
        OperatorError: there are none.
    """
    rows = [dataset.embeddings for dataset in datasets]
    if not sum(map(len, rows)):
        raise OperatorError(
            f"the scenario {scenario} is to be summed under masks and has no dataset",
            "Add one with `headframe cloud dataset add`, or take it out of privacy.masked.",
        )
    x = np.concatenate(rows).astype(np.float64)
    origin = x.mean(axis=0).astype(np.float32).astype(np.float64)
    statistics = Statistics.of(("all",), x - origin, ["all"] * len(x))
    directions = principal_basis(statistics, width).astype(np.float16).astype(np.float64)
    length = float(np.quantile(np.linalg.norm(x - origin, axis=1), LENGTH_QUANTILE))
    return Projection(origin, directions, max(length, 1e-30))
