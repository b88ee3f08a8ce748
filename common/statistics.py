"""Sufficient statistics of a head: all that a site's labelled embeddings tell the centre, and nothing pixel-like.

For embeddings x (d,) with labels, a contribution is, per class, the count and the sum of x, and over all classes the
second moment G = Σ x xᵀ. They add: the sum over sites is the statistics of all data in one place, so the federated
head equals the centralised one, in any order (AFL, arXiv:2405.16240; RanPAC, arXiv:2307.02251). They subtract: a
site leaves exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import WireError

Array = NDArray[np.float64]
_COUNT_MIN = 1e-6  # samples may count by less than one, but not by so little


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts (c,), sums (c, d) and second moment (d, d), float64, for the named classes."""

    classes: tuple[str, ...]
    counts: Array
    sums: Array
    moment: Array

    def __post_init__(self) -> None:
        c, d = len(self.classes), self.moment.shape[0]
        if self.counts.shape != (c,) or self.sums.shape != (c, d) or self.moment.shape != (d, d):
            raise WireError(
                f"statistics of {c} classes have shapes {self.counts.shape}, {self.sums.shape}, {self.moment.shape}"
            )
        if not all(np.isfinite(part).all() for part in (self.counts, self.sums, self.moment)):
            raise WireError("statistics hold values that are not finite")

    @classmethod
    def empty(cls, classes: Sequence[str], dimension: int) -> "Statistics":
        """The neutral element of addition."""
        c = len(classes)
        return cls(tuple(classes), np.zeros(c), np.zeros((c, dimension)), np.zeros((dimension, dimension)))

    @classmethod
    def of(
        cls,
        classes: Sequence[str],
        embeddings: NDArray[np.floating],
        labels: Sequence[str],
        weights: Array | None = None,
    ) -> "Statistics":
        """Statistics of embeddings (n, d) with one label each, accumulated in float64.

        Args:
            weights: how much each sample (n,) counts; by default once.
        """
        x = np.asarray(embeddings, dtype=np.float64)
        index = {name: position for position, name in enumerate(classes)}
        one_hot = np.zeros((len(labels), len(index)))
        one_hot[np.arange(len(labels)), [index[label] for label in labels]] = 1.0 if weights is None else weights
        weighed = x if weights is None else x * weights[:, None]
        return cls(tuple(classes), one_hot.sum(0), one_hot.T @ x, weighed.T @ x)

    @property
    def dimension(self) -> int:
        return int(self.moment.shape[0])

    @property
    def total(self) -> float:
        """Number of samples."""
        return float(self.counts.sum())

    def over(self, classes: Sequence[str]) -> "Statistics":
        """The same statistics with classes added or reordered; new classes have count zero.

        Raises:
            WireError: a class that has samples is missing from `classes`.
        """
        missing = [c for c, n in zip(self.classes, self.counts, strict=True) if n and c not in classes]
        if missing:
            raise WireError(f"statistics hold classes that the scenario does not have: {', '.join(missing)}")
        counts, sums = np.zeros(len(classes)), np.zeros((len(classes), self.dimension))
        for position, name in enumerate(classes):
            if name in self.classes:
                counts[position] = self.counts[self.classes.index(name)]
                sums[position] = self.sums[self.classes.index(name)]
        return Statistics(tuple(classes), counts, sums, self.moment)

    def __add__(self, other: "Statistics") -> "Statistics":
        return self._combine(other, 1.0)

    def __sub__(self, other: "Statistics") -> "Statistics":
        """Exact removal of a contribution that was added before; a class of which rounding alone is left has none."""
        left = self._combine(other, -1.0)
        left.counts[np.abs(left.counts) < _COUNT_MIN] = 0.0
        return left

    def __mul__(self, weight: float) -> "Statistics":
        """Statistics in which every sample counts `weight` times."""
        return Statistics(self.classes, self.counts * weight, self.sums * weight, self.moment * weight)

    def project(self, basis: Array) -> "Statistics":
        """Statistics of the projected embeddings x B, for a basis (d, k): projecting commutes with summing."""
        return Statistics(self.classes, self.counts, self.sums @ basis, basis.T @ self.moment @ basis)

    def _combine(self, other: "Statistics", sign: float) -> "Statistics":
        if other.dimension != self.dimension:
            raise WireError(f"statistics of dimension {other.dimension} do not fit dimension {self.dimension}")
        if other.classes != self.classes:
            classes = (*self.classes, *(c for c in other.classes if c not in self.classes))
            return self.over(classes)._combine(other.over(classes), sign)
        return Statistics(
            self.classes,
            self.counts + sign * other.counts,
            self.sums + sign * other.sums,
            self.moment + sign * other.moment,
        )
