"""Gathers all that the centre knows about a scenario, so that each labelled sample counts once. Solves nothing.

What counts: the datasets, what gateways contributed, and a gateway's labelled samples at the centre that its own
contribution does not cover. What does not: who was unlearned (`cloud.learning.unlearning`), contributions that are not
to be believed (`cloud.learning.robustness`), and pictures that are near-duplicates (`cloud.learning.curator`). A
contribution that counts far more samples than others do counts less (`cloud.learning.bounds`). Of contributions that
share a gateway (masked sums, `cloud.federation.masked`) the newest counts. What was gathered is kept as a version of
the scenario's dataset.
"""

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cloud.learning.bounds import weights_within
from cloud.learning.candidates import Evidence, Labelled
from cloud.learning.clocks import unpacked
from cloud.learning.curator import Curator
from cloud.learning.datasets import Catalogue, Dataset
from cloud.learning.export import read_head
from cloud.learning.heads import HeadWeights
from cloud.learning.ledger import Ledger, Part
from cloud.learning.parts import SiteParts
from cloud.learning.robustness import Judgement, Trusted, judge
from cloud.registry import Registry
from cloud.store import SUM, LabelledSet, Store
from common.manifest import Layer, Manifest
from common.packing import Packed, pack
from common.statistics import Statistics

log = logging.getLogger(__name__)

SENT = "gateway/"  # and its name: what it sent, in the ledger
Held = dict[str, tuple[str, Labelled]]
"""gateway -> its site, and its labelled samples at the centre"""


class Gathering:
    """Evidence from the store and the catalogue.

    Args:
        ratio_max: a gateway's statistics count for so many times the median gateway's; 0: no bound.
    """

    def __init__(
        self, store: Store, catalogue: Catalogue, registry: Registry, *, quarantine: bool, ratio_max: float
    ) -> None:
        self._store, self._catalogue, self._registry = store, catalogue, registry
        self._quarantine, self._ratio_max = quarantine, ratio_max
        self.curator = Curator(store, catalogue)
        self.ledger = Ledger(catalogue.folder.parent / "totals")

    def datasets(self, scenario: str, classes: Sequence[str], backbone: str) -> tuple[Dataset, ...]:
        """The datasets of a scenario on a backbone, with the pictures that count or are gold."""
        return self.curator.look(scenario, classes, backbone, judge=False).datasets

    def evidence(
        self, scenario: str, classes: tuple[str, ...], backbone: str, active: Manifest | None, *, keep: bool = True
    ) -> Evidence:
        """Everything about a scenario.

        Args:
            keep: as a version of its dataset; not for who only looks.
        """
        look = self.curator.look(scenario, classes, backbone)
        datasets = look.datasets
        gold = join([d.gold for d in datasets], datasets[0].embeddings.shape[1] if datasets else 0)
        sent, covered = self._contributions(scenario, backbone, classes)
        judged = self._judge(sent, datasets, classes, gold)
        for suspect in judged.suspects:  # what it uploaded and people labelled still counts
            del sent[suspect.gateway], covered[suspect.gateway]
        bounded = weights_within({name: part.size for name, part in sent.items()}, self._ratio_max)
        held = _held(look.samples)
        version = look.version(scenario, backbone, classes, {name: part.version for name, part in sent.items()})
        kept = self.curator.keep(look, version, self._registry.now_ns()) if keep else {}
        parts = {SENT + name: part for name, part in sent.items()} | _uncovered(held, covered, classes)
        site_of = self._site_of() | {name: site for name, (site, _) in held.items()}
        by_site: dict[str, list[Packed]] = {}
        for key, part in parts.items():
            name = key.partition("/")[2]
            if name.startswith(SUM):  # nobody's own: no personal head can come of it
                continue
            by_site.setdefault(site_of.get(name, name), []).append(part.packed)
        dimension = next(
            (d.embeddings.shape[1] for d in datasets), next((part.packed.dimension for part in parts.values()), 0)
        )
        moves = active is not None and active.backbone.hash != backbone
        before = self._before(scenario, active.backbone.hash) if active and moves else None
        total = self.ledger.total(scenario, backbone, classes, dimension, parts)
        return Evidence(
            classes,
            with_datasets(_within(total, sent, bounded), datasets),
            SiteParts(by_site),
            {site: _known(own, before) for site, own in _by_site(held, dimension).items()},
            _known(gold, before) if datasets else join([], dimension),
            self._running(scenario, active),
            judged,
            frozenset[bytes]().union(
                *covered.values(),
                *(dataset.learnt_from for dataset in datasets),
                *(own.ids for _, own in held.values()),
            ),
            tuple(dataset.name for dataset in datasets),
            kept,
            before,
            bounded,
            {
                key: bounded[name]
                for name in bounded
                if name in held
                for key in covered[name].intersection(held[name][1].ids)
            },
        )

    def within_bound(self, total: Statistics, scenario: str, backbone: str, classes: tuple[str, ...]) -> Statistics:
        """A kept sum (`ledger`), with the gateways that are over the bound counting as much as it lets them."""
        sizes = {
            key.removeprefix(SENT): size
            for key, size in self.ledger.sizes(scenario, backbone).items()
            if key.startswith(SENT)
        }
        weights = weights_within(sizes, self._ratio_max)
        sent, _ = self._contributions(scenario, backbone, classes, list(weights)) if weights else ({}, {})
        return _within(total, sent, weights)

    def _before(self, scenario: str, backbone: str) -> dict[bytes, NDArray[np.float32]]:
        """What the running backbone says of all that the gate may ask about."""
        samples = self._store.labelled(scenario, backbone)
        found = dict(zip(samples.sample_ids, samples.embeddings, strict=True))
        for dataset in self._catalogue.datasets(scenario):
            if dataset.backbone == backbone:
                found |= dict(zip(dataset.ids, dataset.embeddings, strict=True))
        return found

    def gateways_of(self, name: str) -> tuple[str, ...]:
        """The gateways that the name of a site or of a gateway stands for; none of a name that nobody ever used."""
        pairs = dict.fromkeys(self._store.contributors(), "") | dict(self._store.gateways()) | self._site_of()
        return tuple(sorted(gateway for gateway, site in pairs.items() if name in (gateway, site)))

    def names_of_datasets(self) -> set[str]:
        """Sites that pictures of datasets name."""
        return {site for dataset in self._catalogue.datasets() for site in dataset.sites}

    def brought_by(
        self, gateways: Collection[str], scenario: str, backbone: str, classes: tuple[str, ...]
    ) -> dict[str, Part]:
        """The parts of these gateways, as `evidence` names them in the ledger; a sum that one is in goes whole."""
        sums = self.sums_with(gateways, scenario, backbone)
        sent, covered = self._contributions(scenario, backbone, classes, [*gateways, *sums])
        samples = self.curator.look(scenario, classes, backbone, judge=False).samples
        held = {name: own for name, own in _held(samples).items() if name in gateways}
        return {SENT + name: part for name, part in sent.items()} | _uncovered(held, covered, classes)

    def sums_with(self, gateways: Collection[str], scenario: str, backbone: str) -> list[str]:
        """Names of the kept sums that one of these gateways is in."""
        sums = self._store.sums(scenario, backbone)
        return [name for name, members in sums.items() if not set(gateways).isdisjoint(members)]

    def _site_of(self) -> dict[str, str]:
        """gateway -> site, of every gateway that ever reported."""
        return {state.gateway_id: state.site_id for state in self._store.states()}

    def _contributions(
        self, scenario: str, backbone: str, classes: tuple[str, ...], only: Collection[str] | None = None
    ) -> tuple[dict[str, Part], dict[str, set[bytes]]]:
        """What every gateway sent, and which samples that counts; empty ones and the unlearned left out."""
        found: dict[str, Part] = {}
        covered: dict[str, set[bytes]] = {}
        excluded, site_of = self._store.excluded(), self._site_of()
        told: set[str] = set()
        for contribution in sorted(self._store.contributions(scenario, backbone, only), key=lambda c: -c.at_ns):
            client, members = contribution.client, contribution.members
            if not told.isdisjoint(members):
                continue
            told.update(members)
            packed = unpacked(contribution).over(classes)
            gone = any(name in excluded or site_of.get(name) in excluded for name in members)
            if packed.total and not gone:
                found[client] = Part(str(contribution.at_ns), packed, len(members))
                covered[client] = {bytes.fromhex(name) for name in contribution.meta["covered"]}
        return dict(sorted(found.items())), covered

    def _judge(
        self, sent: Mapping[str, Part], datasets: Sequence[Dataset], classes: tuple[str, ...], gold: Labelled
    ) -> Judgement:
        """Gateways whose statistics do not go into the sum. What people labelled at the centre is never judged here."""
        if not self._quarantine or not sent:
            return Judgement()
        weights = weights_within({name: part.size for name, part in sent.items()}, self._ratio_max)
        nothing = Statistics.empty(classes, next(iter(sent.values())).packed.dimension)
        trusted = with_datasets(nothing, datasets)
        by_gateway = SiteParts({name: [part.packed] for name, part in sent.items()}, weights=weights)
        judged = judge(by_gateway, Trusted(trusted, gold.embeddings.astype(np.float64), gold.labels))
        for suspect in judged.suspects:
            log.warning("the statistics of %s are left out: %s", suspect.gateway, suspect.reason)
        return judged

    def _running(self, scenario: str, active: Manifest | None) -> dict[str, HeadWeights]:
        heads: dict[str, Layer] = next((s.heads for s in active.scenarios if s.name == scenario), {}) if active else {}
        return {key: read_head(self._registry.layer_path(layer.hash).read_bytes()) for key, layer in heads.items()}


def with_datasets(brought: Statistics, datasets: Sequence[Dataset]) -> Statistics:
    """What sites brought, and the datasets."""
    for dataset in datasets:
        brought = brought + dataset.statistics(brought.classes)
    return brought


def _within(total: Statistics, sent: Mapping[str, Part], weights: Mapping[str, float]) -> Statistics:
    """A sum in which each of these gateways counts by its weight."""
    for name, weight in weights.items():
        total = total - sent[name].packed.statistics() * (1 - weight)
    return total


def join(parts: Sequence[Labelled], dimension: int) -> Labelled:
    """All of them, in order; embeddings (n, dimension)."""
    return Labelled(
        tuple(name for part in parts for name in part.ids),
        np.concatenate([np.zeros((0, dimension), np.float32), *(part.embeddings for part in parts)]),
        tuple(label for part in parts for label in part.labels),
    )


def _uncovered(held: Held, covered: Mapping[str, set[bytes]], classes: Sequence[str]) -> dict[str, Part]:
    """Parts of the samples at the centre that their own gateway's contribution does not count; the version says which
    samples and labels these are."""
    parts = {}
    for name, (_, own) in held.items():
        counted = covered.get(name, set())
        mine = own.pick(np.array([key not in counted for key in own.ids], dtype=bool))
        if mine.labels:
            digest = hashlib.blake2b(digest_size=8)
            for key, label in zip(mine.ids, mine.labels, strict=True):
                digest.update(key + label.encode() + b"\n")
            packed, _ = pack(classes, mine.embeddings, mine.labels)
            parts[f"samples/{name}"] = Part(digest.hexdigest(), packed.over(classes))
    return parts


def _known(samples: Labelled, before: Mapping[bytes, object] | None) -> Labelled:
    """Those that running and new heads can both be asked about."""
    return samples if before is None else samples.pick(np.array([name in before for name in samples.ids], dtype=bool))


def _held(found: LabelledSet) -> Held:
    """The labelled samples that the centre learns from, per gateway, in order of id."""
    by_gateway: dict[str, list[int]] = {}
    for row in sorted(range(len(found.sample_ids)), key=found.sample_ids.__getitem__):
        by_gateway.setdefault(found.gateways[row], []).append(row)
    return {
        name: (
            found.sites[rows[0]],
            Labelled(
                tuple(found.sample_ids[row] for row in rows),
                found.embeddings[rows],
                tuple(found.labels[row] for row in rows),
            ),
        )
        for name, rows in sorted(by_gateway.items())
    }


def _by_site(held: Held, dimension: int) -> dict[str, Labelled]:
    """site -> the labelled samples of all its gateways."""
    found: dict[str, list[Labelled]] = {}
    for site, own in held.values():
        found.setdefault(site, []).append(own)
    return {site: join(own, dimension) for site, own in sorted(found.items())}
