"""A training run: from labels and contributions to heads that passed the gate, or to the reason why not.

Deterministic given the store's content, so a run cut short by a crash is simply run again. Every run is a record:
what it was made from, what the gate said, which release came of it.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from cloud.learning.candidates import Candidates, Evidence, Labelled, Rules, make_candidates, summarise
from cloud.learning.datasets import Catalogue, Dataset
from cloud.learning.export import export_head, read_head
from cloud.learning.heads import HeadWeights
from cloud.learning.parts import SiteParts, add_up, totals
from cloud.learning.quantise import judge_variant, read_gold
from cloud.learning.robustness import Suspicion, Trusted, find_suspects
from cloud.registry import Registry
from cloud.settings import LearningSettings
from cloud.store import Contribution, Store
from common.errors import OperatorError
from common.manifest import SHARED, Layer, Manifest, Scenario, Variant
from common.packing import Packed, Triangle, pack, read_packed
from common.statistics import Statistics

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: `release_id` is empty when the gate refused."""

    release_id: str
    record: dict[str, object]


class Trainer:
    """Makes releases from what the centre knows."""

    def __init__(self, store: Store, catalogue: Catalogue, registry: Registry, settings: LearningSettings) -> None:
        self._store, self._catalogue, self._registry = store, catalogue, registry
        self._quarantine = settings.quarantine
        self._rules = Rules(
            settings.shrinkage,
            settings.personal_weight,
            settings.personal_labels_min,
            settings.tolerance,
            settings.dimensions,
        )

    def scenarios(self) -> dict[str, tuple[str, ...]]:
        """Scenario -> classes; a class that a person used and no dataset has is appended, never reordered."""
        found: dict[str, tuple[str, ...]] = {}
        active = self._registry.active()
        for scenario in active.scenarios if active else ():
            found[scenario.name] = scenario.classes
        for dataset in self._catalogue.datasets():
            found[dataset.scenario] = _append(found.get(dataset.scenario, ()), dataset.classes)
        for name in (*found, *(name for name in self._store.labelled_scenarios() if name not in found)):
            used = sorted(set(self._store.labels(name).values()), key=lambda label: (label != "normal", label))
            if used or name in found:
                found[name] = _append(found.get(name, ()), used)
        return found

    def run(self, note: str) -> Outcome:
        """Solve, judge, and publish when every scenario's gate passes.

        Raises:
            OperatorError: there is no dataset and no label to learn from.
        """
        scenarios = self.scenarios()
        if not scenarios:
            raise OperatorError("there is nothing to learn from", "Add one with `headframe cloud dataset add`.")
        backbone, _ = self._registry.backbone()
        active = self._registry.active()
        made: dict[str, Candidates] = {}
        record: dict[str, object] = {"backbone": backbone.hash, "note": note}
        for name, classes in scenarios.items():
            evidence = self.evidence(name, classes, backbone.hash, active)
            made[name] = make_candidates(evidence, self._rules)
            record[name] = {
                "classes": list(classes),
                "data_version": _data_version(evidence),
                "samples": int(evidence.shared.total),
                "by_site": totals(evidence.by_site),
                "gate": summarise(made[name].gate),
                "quarantined": [asdict(suspect) for suspect in evidence.quarantined],
            }
        gate = {"passed": all(c.gate.passed for c in made.values())} | {
            name: summarise(candidates.gate) for name, candidates in made.items()
        }
        record["gate"] = gate
        if not gate["passed"]:
            return Outcome("", record)
        released = tuple(self._scenario(name, scenarios[name], made[name], backbone, active) for name in scenarios)
        variants, record["variants"] = self._variants(backbone, released)
        release = self._registry.publish(released, backbone, gate, note, variants)
        return Outcome(release, record | {"release_id": release})

    def _variants(self, backbone: Layer, released: Sequence[Scenario]) -> tuple[tuple[Variant, ...], dict[str, object]]:
        """The variants of the backbone on which every released head says the same, and what was found of all."""
        passed: list[Variant] = []
        record: dict[str, object] = {}
        for gold in read_gold(self._catalogue.folder, backbone.hash):
            drifts: dict[str, dict[str, object]] = {}
            verdicts = []
            for scenario in released:
                heads = {
                    key: read_head(self._registry.layer_path(layer.hash).read_bytes())
                    for key, layer in scenario.heads.items()
                }
                parts = [d.gold for d in self._catalogue.datasets(scenario.name) if d.backbone == backbone.hash]
                known = _join(parts, gold.embeddings.shape[1])
                found = judge_variant(
                    gold, heads, scenario.normal, known.ids, known.labels, known.embeddings, self._rules.tolerance
                )
                drifts[scenario.name] = {key: drift.summary() for key, drift in found.items()}
                verdicts += [drift.passed for drift in found.values()]
            record[gold.layer] = {"precision": gold.precision, "passed": all(verdicts), "drift": drifts}
            if all(verdicts):
                passed.append(Variant(Layer(gold.layer, gold.size_bytes), gold.precision))
        return tuple(passed), record

    def evidence(self, scenario: str, classes: tuple[str, ...], backbone: str, active: Manifest | None) -> Evidence:
        """Gather all that is known about a scenario: each labelled sample counts once, here or in a contribution."""
        datasets = [d for d in self._catalogue.datasets(scenario) if d.backbone == backbone]
        gold = _join([d.gold for d in datasets], datasets[0].embeddings.shape[1] if datasets else 0)
        by_gateway, covered_by = self._contributions(scenario, backbone, classes)
        suspects = self._suspects(by_gateway, datasets, classes, gold)
        by_site: dict[str, list[Packed]] = {}
        covered: set[bytes] = set()
        site_of = {state.gateway_id: state.site_id for state in self._store.states()}
        for gateway_id, packed in by_gateway.items():
            if gateway_id in {suspect.site for suspect in suspects}:
                continue  # what it uploaded and people labelled still counts below
            site = site_of.get(gateway_id, gateway_id)
            by_site.setdefault(site, []).append(packed)
            covered |= covered_by[gateway_id]
        labelled = self._labelled(scenario, backbone, classes)
        for site, own in labelled.items():
            mine = own.pick(np.array([name not in covered for name in own.ids], dtype=bool))
            if mine.labels:
                by_site.setdefault(site, []).append(pack(classes, mine.embeddings, mine.labels)[0].over(classes))
        dimension = next(
            (d.embeddings.shape[1] for d in datasets), next((p.dimension for own in by_site.values() for p in own), 0)
        )
        return Evidence(
            classes,
            _sum(classes, dimension, datasets, by_site),
            SiteParts(by_site),
            labelled,
            gold if datasets else _join([], dimension),
            self._running(scenario, active),
            suspects,
        )

    def _contributions(
        self, scenario: str, backbone: str, classes: tuple[str, ...]
    ) -> tuple[dict[str, Packed], dict[str, set[bytes]]]:
        """What every gateway sent, and which samples that counts; empty ones left out."""
        found: dict[str, Packed] = {}
        covered: dict[str, set[bytes]] = {}
        for contribution in self._store.contributions(scenario, backbone):
            packed = _unpacked(contribution).over(classes)
            if packed.total:
                found[contribution.client] = packed
                covered[contribution.client] = {bytes.fromhex(name) for name in contribution.meta["covered"]}
        return found, covered

    def _suspects(
        self, by_gateway: dict[str, Packed], datasets: list[Dataset], classes: tuple[str, ...], gold: Labelled
    ) -> tuple[Suspicion, ...]:
        """Gateways whose statistics do not go into the sum. What people labelled at the centre is never judged here."""
        if not self._quarantine or not by_gateway:
            return ()
        trusted = Statistics.empty(classes, next(iter(by_gateway.values())).dimension)
        for dataset in datasets:
            trusted = trusted + dataset.statistics(classes)
        sent = SiteParts({gateway_id: [packed] for gateway_id, packed in by_gateway.items()})
        suspects = find_suspects(sent, Trusted(trusted, gold.embeddings.astype(np.float64), gold.labels))
        for suspect in suspects:
            log.warning("the statistics of %s are left out: %s", suspect.site, suspect.reason)
        return suspects

    def _labelled(self, scenario: str, backbone: str, classes: tuple[str, ...]) -> dict[str, Labelled]:
        """The labelled samples that the centre holds, per site, in order of id."""
        found = self._store.labelled(scenario, backbone)
        order = sorted(range(len(found.sample_ids)), key=found.sample_ids.__getitem__)
        by_site: dict[str, list[int]] = {}
        for row in order:
            if found.labels[row] in classes:
                by_site.setdefault(found.sites[row], []).append(row)
        return {
            site: Labelled(
                tuple(found.sample_ids[row] for row in rows),
                found.embeddings[rows],
                tuple(found.labels[row] for row in rows),
            )
            for site, rows in sorted(by_site.items())
        }

    def _running(self, scenario: str, active: Manifest | None) -> dict[str, HeadWeights]:
        heads: dict[str, Layer] = next((s.heads for s in active.scenarios if s.name == scenario), {}) if active else {}
        return {key: read_head(self._registry.layer_path(layer.hash).read_bytes()) for key, layer in heads.items()}

    def _scenario(
        self, name: str, classes: tuple[str, ...], made: Candidates, backbone: Layer, active: Manifest | None
    ) -> Scenario:
        """Export the heads; a site that would lose keeps the layer it runs."""
        heads = {
            key: self._registry.put(export_head(weights, name, backbone.hash)) for key, weights in made.heads.items()
        }
        old = next((s for s in active.scenarios if s.name == name), None) if active else None
        for site in made.kept:
            if old:
                heads[site] = old.head_for(site)
        normal = "normal" if "normal" in classes else classes[0]
        if SHARED not in heads:
            raise OperatorError(f"scenario {name} has no shared head", "This is a defect; please report it.")
        return Scenario(name, classes, normal, heads)


def _unpacked(contribution: Contribution) -> Packed:
    """As it is kept; before there were packed forms, the whole second moment was."""
    classes, arrays = tuple(contribution.meta["classes"]), contribution.arrays
    if "moment" in arrays and arrays["moment"].ndim == 2:
        counts, sums, moment = (np.asarray(arrays[key], np.float64) for key in ("counts", "sums", "moment"))
        return Triangle.of(Statistics(classes, counts, sums, moment))
    return read_packed(classes, arrays)


def _sum(
    classes: tuple[str, ...], dimension: int, datasets: Sequence[Dataset], by_site: Mapping[str, Sequence[Packed]]
) -> Statistics:
    """Everything: the datasets, and what every site brought."""
    shared = add_up(classes, dimension, (packed for own in by_site.values() for packed in own))
    for dataset in datasets:
        shared = shared + dataset.statistics(classes)
    return shared


def _append(classes: tuple[str, ...], more: Sequence[str]) -> tuple[str, ...]:
    return (*classes, *(name for name in more if name not in classes))


def _join(parts: list[Labelled], dimension: int) -> Labelled:
    return Labelled(
        tuple(name for part in parts for name in part.ids),
        np.concatenate([np.zeros((0, dimension), np.float32), *(part.embeddings for part in parts)]),
        tuple(label for part in parts for label in part.labels),
    )


def _data_version(evidence: Evidence) -> str:
    """Hash of the statistics a run learnt from: equal data, equal version."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (evidence.shared.counts, evidence.shared.sums, evidence.shared.moment):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
