"""Statistics of an old backbone, carried over to a new one by a linear map. Pure: knows no store and no network.

A site that has not looked at its samples again after a fine-tune has statistics of embeddings that nobody computes any
more. The centre has pictures of its own, and what both backbones say of them teaches a map x' = x + W (x - m) + b by
ridge regression *of the change*: where the pictures say nothing, an embedding stays what it was. Where the new backbone
is another network its embeddings have nothing of the old ones, and the map is x' = W (x - m) + b. Statistics map as
embeddings do: means by the map, a factor of the scatter by its linear part. What the map cannot foretell is variance
that the site's own embeddings will have; it is measured on pictures of sites that the map was not learnt from, and
added to the diagonal, so that no direction looks quieter than it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.packing import Factor, Packed, Triangle
from common.statistics import Array, Statistics

PENALTIES: Final = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Over the mean eigenvalue of the old embeddings' Gram matrix; the one that foretells held-out sites best is taken."""
FOLDS: Final = 3
PAIRS_MIN: Final = 8
"""With fewer pictures the map only moves the mean."""

_HALF_MAX: Final = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class LinearMap:
    """x' = x matrix + offset, for rows x (n, d)."""

    matrix: Array
    """(d, e)"""
    offset: Array
    """(e,)"""
    unexplained: Array
    """(e,) variance of what the map does not foretell"""

    def embeddings(self, rows: NDArray[np.floating]) -> Array:
        """Embeddings (n, e) as the new backbone would see them, as far as can be told."""
        moved: Array = np.asarray(rows, np.float64) @ self.matrix + self.offset
        return moved

    def carry(self, packed: Packed) -> Packed:
        """Statistics as if they had been counted on the new backbone; in the form that they have."""
        if isinstance(packed, Triangle):
            return Triangle.of(self._opened(packed.statistics()))
        rest = packed.rest.astype(np.float64) if len(packed.rest) else np.zeros(packed.dimension)
        rows = packed.factor.astype(np.float64)
        if len(packed.steps):
            rows *= packed.steps.astype(np.float64)[:, None]
        moved, means = rows @ self.matrix, self.embeddings(packed.means)
        if (
            packed.factor.dtype.itemsize < moved.itemsize
            and max(np.abs(moved).max(initial=0.0), np.abs(means).max()) < _HALF_MAX
        ):
            moved, means = moved.astype(np.float16), means.astype(np.float16)
        carried = rest @ self.matrix**2 + packed.total * self.unexplained
        none = np.zeros(0, np.float32)
        return Factor(packed.classes, packed.counts, means, moved, none, carried.astype(np.float32))

    def _opened(self, old: Statistics) -> Statistics:
        counts, sums = old.counts, old.sums @ self.matrix + old.counts[:, None] * self.offset
        moved = (old.sums @ self.matrix).sum(axis=0)
        cross = np.outer(moved, self.offset)
        moment = self.matrix.T @ old.moment @ self.matrix + cross + cross.T
        moment += old.total * np.outer(self.offset, self.offset)
        moment.flat[:: len(moment) + 1] += old.total * self.unexplained
        return Statistics(old.classes, counts, sums, (moment + moment.T) / 2)


def learn_map(
    old: NDArray[np.floating], new: NDArray[np.floating], sites: Sequence[str], *, akin: bool = True
) -> LinearMap:
    """The map between two backbones' embeddings, (n, d) and (n, e), of the same pictures.

    Args:
        sites: where each picture is from: the penalty is chosen by sites that were left out.
        akin: the new backbone is the old one with other numbers, so d and e are equal.
    """
    x, change = np.asarray(old, np.float64), np.asarray(new, np.float64)
    start = np.zeros((x.shape[1], change.shape[1]))
    if akin:
        start, change = np.eye(x.shape[1]), change - x
    if len(x) < PAIRS_MIN:
        offset = change.mean(axis=0) if len(x) else np.zeros(change.shape[1])
        return LinearMap(start, offset, change.var(axis=0) if len(x) else np.zeros(change.shape[1]))
    order = {name: place for place, name in enumerate(dict.fromkeys(sites))}
    folds = np.array([order[name] % FOLDS for name in sites])
    if len(order) < FOLDS:
        folds = np.arange(len(x)) % FOLDS
    errors: dict[float, list[Array]] = {penalty: [] for penalty in PENALTIES}
    for fold in range(FOLDS):
        inside, outside = folds != fold, folds == fold
        ridge = _Ridge(x[inside], change[inside])
        for penalty in PENALTIES:
            weights, offset = ridge.solve(penalty)
            errors[penalty].append((x[outside] @ weights + offset - change[outside]) ** 2)
    unexplained = {penalty: np.concatenate(parts).mean(axis=0) for penalty, parts in errors.items()}
    best = min(PENALTIES, key=lambda penalty: float(unexplained[penalty].sum()))
    weights, offset = _Ridge(x, change).solve(best)
    return LinearMap(start + weights, offset, unexplained[best])


class _Ridge:
    """Ridge regression of centred rows, in the dual (n, n): one decomposition for all penalties."""

    def __init__(self, x: Array, y: Array) -> None:
        self._mean, self._target = x.mean(axis=0), y.mean(axis=0)
        self._x, self._y = x - self._mean, y - self._target
        values, self._vectors = np.linalg.eigh(self._x @ self._x.T)
        self._values = np.maximum(values, 0.0)

    def solve(self, penalty: float) -> tuple[Array, Array]:
        """Weights (d, d) and offset (d,)."""
        damped = self._values + penalty * max(float(self._values.mean()), 1e-12)
        weights: Array = self._x.T @ (self._vectors @ ((self._vectors.T @ self._y) / damped[:, None]))
        return weights, self._target - self._mean @ weights
