"""The review queue: which samples people see first. Keeps what was learnt; `cloud.learning.asking` decides the order.

Before there is anything to compare with (no two classes were labelled, or one picture of each) the queue is that of
the store: what the gateways found most valuable, the sites in turn. Of more than `WAITING_MAX` samples those that come
first there compete; the others follow in time, as these are labelled.
"""

import threading
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from cloud.learning.asking import Asking, enough
from cloud.learning.candidates import Labelled
from cloud.learning.datasets import Catalogue
from cloud.learning.gathering import join
from cloud.learning.training import Trainer
from cloud.registry import Registry
from cloud.store import Store, StoredSample
from common.clock import Clock

WAITING_MAX: Final = 2_000
"""Samples that compete: 10 MB of embeddings, and a third of a second, for each new order."""
ORDER_S: Final = 10.0
"""New samples join the order after so long; a new label changes it at once."""
ORDERS_MAX: Final = 4
"""Scenarios whose embeddings are kept, some 20 MB each; another one is read again when somebody looks at it."""


@dataclass(slots=True)
class _Order:
    """Of a scenario: what it was taught, and the order that was made last."""

    release: str = ""
    asking: Asking | None = None
    learnt: frozenset[bytes] = frozenset()
    newest_label: int = -1
    made_s: float = 0.0
    limit: int = 0
    names: list[bytes] = field(default_factory=list)


class Review:
    """Any thread may ask."""

    def __init__(self, store: Store, catalogue: Catalogue, registry: Registry, trainer: Trainer, clock: Clock) -> None:
        self._store, self._catalogue, self._registry = store, catalogue, registry
        self._trainer, self._clock = trainer, clock
        self._orders: dict[str, _Order] = {}
        self._lock = threading.Lock()

    def queue(self, scenario: str, limit: int) -> list[StoredSample]:
        """What waits for a label of this scenario, what would teach most first."""
        with self._lock:
            names = self._names(scenario, limit)
        found = self._store.by_ids(names[:limit])
        if len(found) < limit:  # of another backbone, or beyond what competes
            seen = set(names)
            rest = [sample for sample in self._store.queue(scenario, limit + len(seen)) if sample.sample_id not in seen]
            found += rest[: limit - len(found)]
        return found

    def _names(self, scenario: str, limit: int) -> list[bytes]:
        order = self._orders.pop(scenario, None) or _Order()
        self._orders[scenario] = order  # the last looked at is the last let go
        if len(self._orders) > ORDERS_MAX:
            del self._orders[next(iter(self._orders))]
        newest, now_s = self._store.newest_label(), self._clock.monotonic_s()
        if newest == order.newest_label and now_s - order.made_s < ORDER_S and limit <= order.limit:
            return order.names
        self._learn(order, scenario)
        order.newest_label, order.made_s, order.limit, order.names = newest, now_s, limit, []
        if order.asking:
            backbone, _ = self._registry.backbone()
            names, embeddings = self._store.waiting(scenario, backbone.hash, WAITING_MAX)
            rows = order.asking.order(embeddings, limit, self._fresh(scenario, backbone.hash, order.learnt))
            order.names = [names[row] for row in rows]
        return order.names

    def _learn(self, order: _Order, scenario: str) -> None:
        """Take in what was learnt: once per release, and as long as it is too little to compare with."""
        active = self._registry.active()
        release = next((r.release_id for r in self._store.releases() if r.status == "active"), "")
        if order.asking and order.release == release:
            return
        order.release, order.asking = release, None
        backbone, _ = self._registry.backbone()
        classes = self._trainer.scenarios().get(scenario, ())
        evidence = self._trainer.gathering.evidence(scenario, classes, backbone.hash, active, keep=False)
        if not enough(evidence.shared):
            return
        excluded = self._store.excluded()
        sets = [d.without(excluded) for d in self._catalogue.datasets(scenario) if d.backbone == backbone.hash]
        held = [Labelled(d.ids, d.embeddings, d.labels) for d in sets]
        known = join([*held, *evidence.labelled.values()], evidence.shared.dimension)
        order.asking = Asking(evidence.shared, known, evidence.gold, self._trainer.rules.shrinkage)
        order.learnt = evidence.samples

    def _fresh(self, scenario: str, backbone: str, learnt: frozenset[bytes]) -> Labelled:
        """What was labelled since, without those who were unlearned."""
        found, excluded = self._store.labelled(scenario, backbone), self._store.excluded()
        mask = [
            name not in learnt and gateway not in excluded and site not in excluded
            for name, gateway, site in zip(found.sample_ids, found.gateways, found.sites, strict=True)
        ]
        return Labelled(tuple(found.sample_ids), found.embeddings, tuple(found.labels)).pick(np.array(mask, dtype=bool))
