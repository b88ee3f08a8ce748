"""Which offered samples the centre asks for: what is new and diverse over the whole fleet, within a budget. Pure.

An offer too similar to what is in the store, or was asked for, at whatever site, is never asked for. Among the others
the budget goes to those that cover what is offered best (`common.coverage`), a valuable one weighing more.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.coverage import Coverage, from_int8, unit_rows
from common.messages import Offer

PENDING_MAX = 2_000
"""Offers that compete at once; beyond it the least valuable go, and are offered again within the hour."""
KNOWN_MAX = 8_000
"""Embeddings of what is in the store or was asked for: 40 MB at 1,280 values; the oldest go."""
VALUE_WEIGHT = 1.0

Row = NDArray[np.float32]


@dataclass(slots=True)
class _Space:
    """Embeddings of one backbone: those of another do not compare."""

    dimension: int
    pending: OrderedDict[bytes, tuple[Offer, Row]]
    known: OrderedDict[bytes, Row]


class Choice:
    """Offers and what they compete with. Not for several threads at once.

    Args:
        similarity_max: above this cosine an offer is a near-duplicate.
    """

    def __init__(self, similarity_max: float) -> None:
        self._similarity_max = similarity_max
        self._spaces: dict[str, _Space] = {}
        self.duplicates = 0
        """Offers that were near-duplicates of what is known."""

    def know(self, backbone: str, samples: Iterable[tuple[bytes, NDArray[np.floating]]]) -> None:
        """These samples are in the store or on their way."""
        for name, embedding in samples:
            space = self._space(backbone, len(embedding))
            if space is None:
                continue
            space.known[name] = _unit(embedding)
            space.known.move_to_end(name)
            space.pending.pop(name, None)
            while len(space.known) > KNOWN_MAX:
                space.known.popitem(last=False)

    def offer(self, offer: Offer) -> bool:
        """Take an offer; False when it is known already (asked for, or stored): ask again."""
        space = self._space(offer.backbone, len(offer.embedding))
        if space is None:
            return True  # of another length than the backbone's: it is heard, and competes with nothing
        if offer.sample_id in space.known:
            return False
        space.pending[offer.sample_id] = offer, _unit(from_int8(offer.embedding, offer.step))
        while len(space.pending) > PENDING_MAX:
            del space.pending[min(space.pending, key=lambda name: space.pending[name][0].scores.value)]
        return True

    def pending(self) -> list[Offer]:
        """Offers that wait, most valuable first."""
        offers = [offer for space in self._spaces.values() for offer, _ in space.pending.values()]
        return sorted(offers, key=lambda offer: -offer.scores.value)

    def pick(self, count: int) -> list[Offer]:
        """Ask for at most `count`; they count as known from now on, near-duplicates are let go."""
        chosen: list[Offer] = []
        for space in sorted(self._spaces.values(), key=lambda space: -len(space.pending)):
            if space.pending:
                chosen += self._pick_in(space, count - len(chosen))
        return chosen

    def want(self, sample_id: bytes) -> Offer | None:
        """A person asks for this one; None when it is not on offer."""
        for space in self._spaces.values():
            if found := space.pending.pop(sample_id, None):
                space.known[sample_id] = found[1]
                return found[0]
        return None

    def _pick_in(self, space: _Space, count: int) -> list[Offer]:
        offers = [offer for offer, _ in space.pending.values()]
        units = np.stack([row for _, row in space.pending.values()]).astype(np.float64)
        known = np.stack(list(space.known.values())).astype(np.float64) if space.known else units[:0]
        weights = 1.0 + VALUE_WEIGHT * np.array([offer.scores.value for offer in offers])
        coverage = Coverage(units, known, weights, self._similarity_max)
        chosen: list[Offer] = []
        while len(chosen) < count and coverage.free.any():
            row = coverage.best()
            coverage.take(row)
            chosen.append(offers[row])
            space.known[offers[row].sample_id] = space.pending[offers[row].sample_id][1]
        picked = {offer.sample_id for offer in chosen}
        for offer, free in zip(offers, coverage.free, strict=True):
            if not free:
                self.duplicates += offer.sample_id not in picked
                del space.pending[offer.sample_id]
        while len(space.known) > KNOWN_MAX:
            space.known.popitem(last=False)
        return chosen

    def _space(self, backbone: str, dimension: int) -> _Space | None:
        """None when this backbone's embeddings have another length."""
        space = self._spaces.setdefault(backbone, _Space(dimension, OrderedDict(), OrderedDict()))
        return space if space.dimension == dimension else None


def _unit(embedding: NDArray[np.floating]) -> Row:
    return np.asarray(unit_rows(embedding.astype(np.float64)[None])[0], dtype=np.float32)
