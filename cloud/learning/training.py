"""A training run: from labels and contributions to heads that passed the gate, or to the reason why not.

Deterministic given the store's content, so a run cut short by a crash is simply run again. Every run is a record:
what it was made from, what the gate said, which release came of it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cloud.learning.candidates import Candidates, Evidence, Labelled, Rules, make_candidates, summarise
from cloud.learning.clocks import Clocks
from cloud.learning.datasets import Catalogue, order_classes
from cloud.learning.export import export_head, read_head
from cloud.learning.gathering import Gathering
from cloud.learning.golden import make_golden
from cloud.learning.heads import UnlearnableError
from cloud.learning.parts import totals
from cloud.learning.quantise import judge_variant, read_gold
from cloud.registry import Registry
from cloud.settings import LearningSettings
from cloud.store import Store
from common.errors import OperatorError
from common.manifest import SHARED, Layer, Manifest, Scenario, Variant


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: `release_id` is empty when nothing passed."""

    release_id: str
    record: dict[str, object]
    held_back: tuple[str, ...] = ()
    """Scenarios that the gate refused, or that too little is known of: what ran of them runs on."""


class Trainer:
    """Makes releases from what the centre knows."""

    def __init__(self, store: Store, catalogue: Catalogue, registry: Registry, settings: LearningSettings) -> None:
        self._store, self._catalogue, self._registry = store, catalogue, registry
        self.gathering = Gathering(
            store, catalogue, registry, quarantine=settings.quarantine, ratio_max=settings.gateway_samples_ratio_max
        )
        self.clocks = Clocks(store, catalogue, catalogue.folder.parent / "maps")
        self._rules = Rules(
            settings.shrinkage,
            settings.personal_weight,
            settings.personal_labels_min,
            settings.tolerance,
            settings.dimensions,
            settings.head,
        )

    @property
    def rules(self) -> Rules:
        """By which heads are solved and judged."""
        return self._rules

    def scenarios(self) -> dict[str, tuple[str, ...]]:
        """Scenario -> classes; a class that a person used and no dataset has is appended, never reordered."""
        found: dict[str, tuple[str, ...]] = {}
        active = self._registry.active()
        for scenario in active.scenarios if active else ():
            found[scenario.name] = scenario.classes
        for dataset in self._catalogue.datasets():
            found[dataset.scenario] = _append(found.get(dataset.scenario, ()), dataset.classes)
        for name in (*found, *(name for name in self._store.labelled_scenarios() if name not in found)):
            used = order_classes(self._store.labels(name).values())
            if used or name in found:
                found[name] = _append(found.get(name, ()), used)
        return found

    def conflicts(self, scenario: str) -> list[dict[str, Any]]:
        """Labels in conflict, looked for now, as plain values; the strongest first."""
        backbone, _ = self._registry.backbone()
        look = self.gathering.curator.look(scenario, self.scenarios()[scenario], backbone.hash)
        return look.told(len(look.conflicts))

    def decide(self, scenario: str, labels: Sequence[tuple[bytes, str]], author: str) -> None:
        """What a person says about pictures in conflict, uploaded or of datasets; all or none.

        Raises:
            OperatorError: no such scenario, class or picture; nothing was stored.
        """
        classes = self.scenarios().get(scenario)
        if classes is None:
            raise OperatorError(f"there is no scenario {scenario!r}", "`headframe cloud dataset list` names them.")
        wrong = sorted({label for _, label in labels if label not in classes})
        if wrong:
            raise OperatorError(f"{', '.join(wrong)}: no class of {scenario}", f"Its classes: {', '.join(classes)}.")
        names = [name for name, _ in labels]
        uploaded = self._store.known_ids(names)
        rest = set(names) - uploaded
        known = {name for dataset in self._catalogue.datasets(scenario) for name in dataset.ids} if rest else set()
        if rest - known:
            raise OperatorError(f"there is no picture {min(rest - known).hex()}", "Give an id that a conflict names.")
        now_ns = self._registry.now_ns()
        given = [(name, scenario, label) for name, label in labels if name in uploaded]
        self._store.add_labels(given, author, now_ns)
        self._store.add_decisions(scenario, labels, author, now_ns)  # after it: a crash between asks once more
        self._store.audit(author, "decide labels", {"scenario": scenario, "pictures": len(labels)}, now_ns)

    def run(self, note: str, onto: Layer | None = None) -> Outcome:
        """Solve, judge, and publish the scenarios that pass; of the others what runs now runs on.

        No head runs on a backbone that it was not solved for, so heads move to another backbone together: one that runs
        and is not ready holds all of them back.

        Args:
            onto: backbone that all heads move to; by default they stay on the one that runs.

        Raises:
            OperatorError: there is nothing to learn any scenario from, or a dataset's pictures are not to be found.
        """
        scenarios = self.scenarios()
        if not scenarios:
            raise OperatorError("there is nothing to learn from", "Add one with `headframe cloud dataset add`.")
        backbone, active = onto or self._registry.backbone()[0], self._registry.active()
        for name in dict.fromkeys([backbone.hash, *([active.backbone.hash] if active else [])]):
            self.clocks.bring(name, self._registry.layer_path(name))
        made: dict[str, Candidates] = {}
        known: dict[str, Evidence] = {}
        unlearnable: dict[str, UnlearnableError] = {}
        record: dict[str, object] = {"backbone": backbone.hash, "note": note}
        for name, classes in scenarios.items():
            carried = self.clocks.carry(name, backbone.hash)
            known[name] = self.gathering.evidence(name, classes, backbone.hash, active)
            found = _summary(classes, known[name], carried)
            try:
                made[name] = make_candidates(known[name], self._rules)
                record[name] = found | {"gate": summarise(made[name].gate)}
            except UnlearnableError as error:
                unlearnable[name] = error
                record[name] = found | {"unlearnable": str(error)}
        if not made:
            name, reason = next(iter(unlearnable.items()))
            raise OperatorError(f"nothing can be learnt yet; {name}: {reason.message}", reason.hint)
        passed, running = _part(made, backbone, active)
        held_back = tuple(name for name in scenarios if name not in passed)
        gate = {"passed": bool(passed), "held_back": list(held_back)} | {
            name: summarise(candidates.gate) for name, candidates in made.items()
        }
        record["gate"] = gate
        if not passed:
            return Outcome("", record, held_back)
        renewed = {name: self._scenario(name, scenarios[name], made[name], backbone, active) for name in passed}
        for name, scenario in renewed.items():
            self._note(scenario, known[name], record[name], active)
        released = tuple((running | renewed)[name] for name in scenarios if name in running or name in renewed)
        variants, record["variants"] = self._variants(
            backbone, released, {name: evidence.gold for name, evidence in known.items()}
        )
        golden = self._registry.put(make_golden(backbone, variants, released, self._registry.layer_path))
        release = self._registry.publish(released, backbone, gate, note, variants, golden)
        return Outcome(release, record | {"release_id": release}, held_back)

    def _note(self, scenario: Scenario, evidence: Evidence, record: object, active: Manifest | None) -> None:
        """Where the heads come from; one that a site keeps has its record already."""
        before = next((s.heads for s in active.scenarios if s.name == scenario.name), {}) if active else {}
        for key, layer in scenario.heads.items():
            self._registry.note(
                layer,
                "head",
                scenario=scenario.name,
                parent=before[key].hash if key in before else "",
                samples=evidence.samples,
                data_version=_data_version(evidence),
                datasets=list(evidence.datasets),
                dataset_version={key: evidence.dataset.get(key) for key in ("version", "hash")},
                parameters=asdict(self._rules),
                evaluation=record,
                licence="the group's own",
            )

    def _variants(
        self, backbone: Layer, released: Sequence[Scenario], gold_of: Mapping[str, Labelled]
    ) -> tuple[tuple[Variant, ...], dict[str, object]]:
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
                known = gold_of[scenario.name]
                found = judge_variant(
                    gold, heads, scenario.normal, known.ids, known.labels, known.embeddings, self._rules.tolerance
                )
                drifts[scenario.name] = {key: drift.summary() for key, drift in found.items()}
                verdicts += [drift.passed for drift in found.values()]
            record[gold.layer] = {"precision": gold.precision, "passed": all(verdicts), "drift": drifts}
            if all(verdicts):
                passed.append(Variant(Layer(gold.layer, gold.size_bytes), gold.precision))
        return tuple(passed), record

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


def _summary(classes: Sequence[str], evidence: Evidence, carried: int) -> dict[str, object]:
    """What a scenario was learnt from, as plain values."""
    return {
        "classes": list(classes),
        "data_version": _data_version(evidence),
        "dataset": dict(evidence.dataset),
        "samples": round(evidence.shared.total),
        "by_site": totals(evidence.by_site),
        "carried": carried,
        "quarantined": [asdict(suspect) for suspect in evidence.judged.suspects],
        "costly": [asdict(gateway) for gateway in evidence.judged.costly],
        "bounded": {name: round(weight, 4) for name, weight in evidence.bounded.items()},
    }


def _part(
    made: Mapping[str, Candidates], backbone: Layer, active: Manifest | None
) -> tuple[tuple[str, ...], dict[str, Scenario]]:
    """The scenarios to renew, and those that run and may run on beside them."""
    passed = tuple(name for name, candidates in made.items() if candidates.gate.passed)
    running = {scenario.name: scenario for scenario in active.scenarios} if active else {}
    if active and active.backbone.hash != backbone.hash and not running.keys() <= set(passed):
        return (), running
    return passed, running


def _append(classes: tuple[str, ...], more: Sequence[str]) -> tuple[str, ...]:
    return (*classes, *(name for name in more if name not in classes))


def _data_version(evidence: Evidence) -> str:
    """Hash of the statistics a run learnt from: equal data, equal version."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (evidence.shared.counts, evidence.shared.sums, evidence.shared.moment):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
