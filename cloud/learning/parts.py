"""What each site brought, kept packed and opened when it is looked at: a site is kilobytes then, not megabytes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce

import numpy as np

from common.packing import Factor, Packed
from common.statistics import Array, Statistics

_STACK_ROWS = 2048  # 21 MB at 1280 dimensions; a product of so many rows runs at full speed


class FactorStack:
    """Second moments of many factors, float64: their rows are stacked, and thousands are one product."""

    def __init__(self, dimension: int) -> None:
        self._moment = np.zeros((dimension, dimension))
        self._rows: list[Array] = []
        self._waiting = 0
        self.count = 0

    def push(self, packed: Factor) -> None:
        """Add one; the sums and counts are the caller's."""
        if len(packed.rest):
            self._moment.flat[:: len(self._moment) + 1] += packed.rest
        rows = packed.rows()
        self._rows.append(rows)
        self._waiting += len(rows)
        self.count += 1
        if self._waiting >= _STACK_ROWS:
            self._flush()

    def moment(self) -> Array:
        """A copy of the sum (d, d)."""
        self._flush()
        return self._moment.copy()

    def _flush(self) -> None:
        if self._rows:
            rows = np.concatenate(self._rows)
            self._moment += rows.T @ rows
            self._rows, self._waiting = [], 0


def add_up(classes: Sequence[str], dimension: int, parts: Iterable[Packed]) -> Statistics:
    """The sum of packed statistics, whatever forms they are in.

    Args:
        parts: of this dimension, each over some of the classes.
    """
    stack = FactorStack(dimension)
    whole = Statistics.empty(classes, dimension)
    counts, sums = np.zeros(len(classes)), np.zeros((len(classes), dimension))
    for part in parts:
        placed = part.over(classes)
        if isinstance(placed, Factor):
            stack.push(placed)
            counts, sums = counts + placed.counts, sums + placed.sums
        else:
            whole = whole + placed.statistics()
    return whole + Statistics(tuple(classes), counts, sums, stack.moment())


class SiteParts(Mapping[str, Statistics]):
    """site -> the sum of its parts; computed at each access, so look once.

    Args:
        parts: at least one for every site, all over the same classes.
        basis: (d, k) onto which the statistics are projected.
        weights: of sites whose samples count less than once.
    """

    def __init__(
        self,
        parts: Mapping[str, Sequence[Packed]],
        basis: Array | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self._parts, self._basis, self._weights = parts, basis, weights or {}

    def __getitem__(self, site: str) -> Statistics:
        basis = self._basis
        opened = (part.statistics() if basis is None else part.project(basis) for part in self._parts[site])
        found = reduce(Statistics.__add__, opened)
        return found * self._weights[site] if site in self._weights else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def project(self, basis: Array) -> "SiteParts":
        """The same sites, each projected when it is looked at."""
        return SiteParts(self._parts, basis if self._basis is None else self._basis @ basis, self._weights)

    def totals(self) -> dict[str, int]:
        """Samples of each site; opens nothing."""
        return {site: int(sum(part.total for part in own)) for site, own in self._parts.items()}


def project_all(by_site: Mapping[str, Statistics], basis: Array) -> Mapping[str, Statistics]:
    """Every site's statistics projected onto basis (d, k)."""
    if isinstance(by_site, SiteParts):
        return by_site.project(basis)
    return {site: part.project(basis) for site, part in by_site.items()}


def totals(by_site: Mapping[str, Statistics]) -> dict[str, int]:
    """Samples of each site."""
    if isinstance(by_site, SiteParts):
        return by_site.totals()
    return {site: int(part.total) for site, part in by_site.items()}
