"""What the centre itself knows of a new release: labels that speak for or against it, improvement that was measured.

Labels are those that people gave, since the rollout told a gateway, to samples which that gateway uploaded. Both
releases' heads judge the same embedding, so the comparison is paired and needs no label twice.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cloud.learning.export import read_head
from cloud.learning.gates import Move
from cloud.learning.heads import HeadWeights
from cloud.registry import Registry
from cloud.rollout.assembly import SCENARIO
from cloud.rollout.gates import LabelTally
from cloud.rollout.state import EVERYTHING, Rollout
from cloud.store import Store
from common.manifest import Manifest

LABELLED_MAX = 2_000
"""Newest labelled samples that are looked at."""
SITE_PREFIX = "site/"


class Knowledge:
    """Answers for the engine; counts labels only when there are new ones."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store, self._registry = store, registry
        self._tallies: dict[str, tuple[int, int, LabelTally]] = {}
        self._gains: dict[str, tuple[float, dict[str, float]]] = {}
        self._classes: dict[tuple[str, str], dict[str, float]] = {}
        self.labels = 0
        """In the store, as of the last `look`."""

    def look(self) -> None:
        """See whether there are new labels."""
        self.labels = self._store.label_count()

    def tally(self, rollout: Rollout) -> LabelTally:
        """Of the labelled samples on which one of the releases is right and the other is not."""
        known = self._tallies.get(rollout.rollout_id)
        if known is None or known[:2] != (self.labels, len(rollout.members)):
            known = self.labels, len(rollout.members), self._count(rollout)
            self._tallies[rollout.rollout_id] = known
        return known[2]

    def gain(self, rollout: Rollout, site_id: str) -> float:
        """By how much it was measured to be better there when it was made: by the site's own labels, else by the
        gold set."""
        name = rollout.started.release_id
        if name not in self._gains:
            release = self._store.release(name)
            self._gains[name] = _gains(release.gate if release else {})
        gold, sites = self._gains[name]
        return sites.get(site_id, gold)

    def classes(self, rollout: Rollout) -> dict[str, float]:
        """`scenario/class` of what the release before could name in the parts that change, and which share of each the
        gold set showed to be named otherwise rightly when the new one was made."""
        key = rollout.started.release_id, rollout.before
        if key not in self._classes:
            before, release = self._registry.manifest(rollout.before), self._store.release(key[0])
            gate: Mapping[str, Any] = release.gate if release else {}
            self._classes[key] = {
                f"{scenario.name}/{label}": _explained(gate, scenario.name, label)
                for scenario in (before.scenarios if before else ())
                if {f"{SCENARIO}{scenario.name}", EVERYTHING} & set(rollout.started.parts)
                for label in scenario.classes
            }
        return self._classes[key]

    def _count(self, rollout: Rollout) -> LabelTally:
        after = self._registry.manifest(rollout.started.release_id)
        before = self._registry.manifest(rollout.before)
        if not rollout.members or after is None or before is None or after.backbone != before.backbone:
            return LabelTally()
        since = {name: member.told_ns for name, member in rollout.members.items()}
        rows = self._store.samples(labelled=True, limit=LABELLED_MAX)
        fresh = {r.sample_id for r in rows if r.received_at_ns >= since.get(r.gateway_id, 2**63)}
        wins: dict[tuple[str, str], list[int]] = {}
        for scenario in after.scenarios if fresh else ():
            if f"{SCENARIO}{scenario.name}" not in rollout.started.parts and EVERYTHING not in rollout.started.parts:
                continue
            wins |= {(scenario.name, label): [0, 0] for label in scenario.classes}  # all, or their weights would shift
            found = self._store.labelled(scenario.name, after.backbone.hash)
            for row, (sample_id, site, label) in enumerate(
                zip(found.sample_ids, found.sites, found.labels, strict=True)
            ):
                heads = [self._head(manifest, scenario.name, site) for manifest in (before, after)]
                if sample_id not in fresh or heads[0] is None or heads[1] is None:
                    continue
                x = found.embeddings[row : row + 1].astype(np.float64)
                was, now = (head.predict(x)[0] == label for head in heads if head is not None)
                if was != now:
                    wins.setdefault((scenario.name, label), [0, 0])[int(now)] += 1
        by_class = tuple((old, new) for old, new in wins.values())
        return LabelTally(
            old_right=sum(old for old, _ in by_class), new_right=sum(new for _, new in by_class), by_class=by_class
        )

    def _head(self, manifest: Manifest, scenario: str, site: str) -> HeadWeights | None:
        for item in manifest.scenarios:
            if item.name == scenario:
                return read_head(self._registry.layer_path(item.head_for(site).hash).read_bytes())
        return None


def _explained(gate: Mapping[str, Any], scenario: str, label: str) -> float:
    part = gate.get(scenario)
    moves = part.get("moves", {}) if isinstance(part, Mapping) else {}
    return Move(**moves[label]).explained if label in moves else 0.0


def _gains(gate: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
    """Improvement on the gold set and per site, the best over scenarios; never below 0."""
    gold, sites = 0.0, dict[str, float]()
    for part in gate.values():
        for row in part.get("comparisons", ()) if isinstance(part, Mapping) else ():
            gain, name = float(row["candidate"]) - float(row["running"]), str(row["name"])
            if name == "gold":
                gold = max(gold, gain)
            elif name.startswith(SITE_PREFIX):
                site = name.removeprefix(SITE_PREFIX)
                sites[site] = max(sites.get(site, 0.0), gain)
    return gold, sites
