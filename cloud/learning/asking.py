"""In which order people are asked for labels: what is likely to teach the heads most comes first. Pure.

Samples are compared in the whitened space of the statistics, where a direction counts little in which samples of one
class differ anyway. What a waiting sample is worth is the mean of its ranks among all that wait by

- *elsewhere*: how far its direction from the centre of the classes is from that of any labelled sample;
- *cover*: how much of what waits elsewhere it resembles more than any labelled sample does (the gain of greedy facility
  location, Nemhauser 1978);
- *company*: how alike the two are that it resembles most among what waits: what happens at a site happens again, a bad
  picture is alone;
- *outside*: the share of its squared length that lies outside the span of the class means (NECO, Ammar et al. 2024,
  arXiv:2310.06823, whitened): what sets it apart is nothing that tells the known classes apart;
- *residual*: the share that lies outside the strongest directions of all that was learnt (ViM, Wang et al. 2022,
  arXiv:2203.10807), before whitening;
- *novelty*: how much farther the nearest class is than everything together (relative Mahalanobis, Ren et al. 2021,
  arXiv:2106.09022), by the head of the labels that there are now: what lies between the classes, or opposite to them;

and, added to it, what it is expected to do for classes of few labels, Σ_k p_k / n_k: the n-th label of a class moves
its mean by a share of 1/n, and by less, the more it is like what is labelled. So a class that somebody has just named
is pursued, though not through copies of one picture, and one that has its labels is not.

A question that was asked counts as a labelled sample for the next ones. Everything is solved anew from sums for each
answer, so a label given counts for the next question.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloud.learning.candidates import Labelled
from cloud.learning.heads import HeadWeights, calibrate, principal_basis, solve_lda, within_covariance
from common.coverage import unit_rows
from common.statistics import Array, Statistics

DIRECTIONS: Final = 256
"""Principal directions in which samples are compared: half of a head's, for a quarter of its time."""
STRONGEST: Final = 64
"""Directions that what was learnt is taken to fill; 32 and 128 find as much (docs/log.md)."""
KNOWN_MAX: Final = 4_000
"""Labelled samples that the waiting are compared with; if 2,000 wait, an order is made in a third of a second then."""
RANKS: Final = 6
"""Each has the same say: weights learnt by holding out one known class after another were no better (docs/log.md)."""
RARE_WEIGHT: Final = 6.0
"""A certain member of a class of one label comes before everything else; one of a class of ten, half like what is
labelled, gains twice what there is between the last and the first under one of the six ranks. With 8 or 12 more of a
class is found, and the other new class, or another scene of the same, later (docs/log.md)."""
Floats = NDArray[np.float32]
SCATTER_MIN: Final = 1e-6
"""Share of all squared length that must lie within classes; copies of one picture leave rounding."""
NOTHING: Final = Labelled((), np.zeros((0, 0), np.float32), ())


class Asking:
    """What was learnt of one scenario, and the order that follows from it.

    Args:
        statistics: the sum over everything that was learnt, for which `enough` holds.
        known: all labelled samples that are at hand.
        gold: those of them that are not in the statistics; the head's doubts are calibrated on them.
        shrinkage: as in `cloud.learning.heads.solve_lda`.
    """

    def __init__(self, statistics: Statistics, known: Labelled, gold: Labelled, shrinkage: float) -> None:
        basis = principal_basis(statistics, DIRECTIONS)
        self._mean = statistics.sums.sum(axis=0) / statistics.total
        self._shrinkage = shrinkage
        self.basis = basis
        """(d, k), the strongest directions first; in them everything is compared."""
        self._statistics = statistics.project(basis)
        self._gold = gold.project(basis) if gold.labels else NOTHING
        self._known = (
            known.pick(_spread(known.labels)).embeddings @ basis if known.labels else np.zeros((0, len(basis.T)))
        )

    def order(self, waiting: NDArray[np.floating], limit: int, fresh: Labelled = NOTHING) -> list[int]:
        """Rows of `waiting` (n, d), at most `limit`, the first question first.

        Args:
            fresh: what was labelled since the statistics were summed; it may name new classes.
        """
        if not len(waiting):
            return []
        statistics, known, rows = self._statistics, self._known, waiting.astype(np.float64) @ self.basis
        if fresh.labels:
            new = fresh.embeddings.astype(np.float64) @ self.basis
            statistics = statistics + Statistics.of(tuple(dict.fromkeys(fresh.labels)), new, fresh.labels)
            known = np.concatenate([known, new])
        head = solve_lda(statistics, self._shrinkage)
        head = calibrate(head, self._gold.embeddings, list(self._gold.labels))
        white, centre, means = _whiten(statistics, self._shrinkage)
        whitened = (rows - centre) @ white
        shares = head.probabilities(rows)
        ranks = _ranks(_outside(whitened, means)) + _ranks(self._residual(waiting)) + _ranks(head.novelty(rows))
        units = unit_rows(whitened).astype(np.float32)
        labelled = unit_rows((known - centre) @ white).astype(np.float32)
        alike = units @ units.T
        fixed = (ranks + _ranks(_company(alike))) / RANKS
        rare = RARE_WEIGHT * _for_rare(shares, head, statistics)
        return _greedy(fixed, rare, alike, _largest(units, labelled), min(limit, len(rows)))

    def _residual(self, waiting: NDArray[np.floating]) -> Array:
        """Share of the squared length from the mean that the strongest directions leave (n,)."""
        from_mean = waiting - self._mean
        whole = (from_mean**2).sum(axis=1)
        inside = ((from_mean @ self.basis[:, :STRONGEST]) ** 2).sum(axis=1)
        residual: Array = 1.0 - inside / np.maximum(whole, 1e-12)
        return residual


def enough(statistics: Statistics) -> bool:
    """Whether there is something to compare with: two classes, and samples of one class that differ."""
    counts = statistics.counts[statistics.counts > 0]
    if len(counts) < 2:
        return False
    between = (statistics.sums[statistics.counts > 0] ** 2).sum(axis=1) / counts
    power = float(np.trace(statistics.moment))
    return power - float(between.sum()) > SCATTER_MIN * power


def _greedy(fixed: Array, rare: Array, alike: Floats, nearest: Floats, count: int) -> list[int]:
    """The best by what is fixed and by the ranks of what changes as questions are asked.

    Args:
        fixed: (n,), what a sample is worth whatever is asked before it.
        rare: (n,), what it is worth to classes of few labels if nothing labelled is like it.
        alike: (n, n), cosines among what waits.
        nearest: (n,), cosine to the most similar labelled sample.
    """
    chosen: list[int] = []
    free = np.ones(len(fixed), dtype=bool)
    cover = np.maximum(alike - nearest, 0).sum(axis=1)
    for _ in range(count):
        worth = fixed + (_ranks(-nearest) + _ranks(cover)) / RANKS + rare * (1 - nearest)
        pick = int(np.where(free, worth, -np.inf).argmax())
        chosen.append(pick)
        free[pick] = False
        nearer = np.flatnonzero(alike[pick] > nearest)
        before, after = nearest[nearer], alike[pick, nearer]
        cover -= (np.maximum(alike[:, nearer] - before, 0) - np.maximum(alike[:, nearer] - after, 0)).sum(axis=1)
        nearest = np.maximum(nearest, alike[pick])
    return chosen


def _whiten(statistics: Statistics, shrinkage: float) -> tuple[Array, Array, Array]:
    """W (k, k) with W Wᵀ the inverse of the covariance within classes, the centre (k,) of the class means, and the
    means (c, k) of the present classes, centred and whitened."""
    means, covariance = within_covariance(statistics, shrinkage)
    white: Array = np.linalg.inv(np.linalg.cholesky(covariance)).T
    centre = means.mean(axis=0)
    return white, centre, (means - centre) @ white


def _outside(whitened: Array, means: Array) -> Array:
    """Logarithm of the squared length outside the span of the class means over that inside (n,)."""
    span = np.linalg.svd(means, full_matrices=False)[2][: len(means) - 1]
    inside = ((whitened @ span.T) ** 2).sum(axis=1)
    outside = (whitened**2).sum(axis=1) - inside
    ratio: Array = np.log(np.maximum(outside, 1e-12)) - np.log(np.maximum(inside, 1e-12))
    return ratio


def _company(alike: Floats) -> Floats:
    """Mean cosine (n,) to the two others that are most alike (n, n); there may be fewer."""
    count = min(3, len(alike))  # itself is one of them
    closest: Floats = (np.partition(alike, -count, axis=1)[:, -count:].sum(axis=1) - 1) / max(1, count - 1)
    return closest


def _for_rare(shares: Array, head: HeadWeights, statistics: Statistics) -> Array:
    """Σ_k p_k / n_k (n,)."""
    counts = statistics.over(head.classes).counts
    worth: Array = shares @ np.where(counts > 0, 1 / np.maximum(counts, 1.0), 0.0)
    return worth


def _largest(units: Floats, known: Floats) -> Floats:
    """Cosine to the most similar known sample (n,); -1 where nothing is known."""
    if not len(known):
        return np.full(len(units), -1.0, np.float32)
    largest: Floats = (units @ known.T).max(axis=1)
    return largest


def _ranks(scores: NDArray[np.floating]) -> Array:
    """Rank among all (n,), 0 the lowest to 1 the highest; equal scores have equal ranks."""
    return np.searchsorted(np.sort(scores), scores) / max(1, len(scores) - 1)


def _spread(labels: Sequence[str]) -> NDArray[np.bool_]:
    """Which of the labelled samples to keep (n,): the newest of each class, as many of each as fit `KNOWN_MAX`."""
    kept = np.zeros(len(labels), dtype=bool)
    names = np.array(labels, dtype=np.str_)
    for name in set(labels):
        kept[np.flatnonzero(names == name)[-(KNOWN_MAX // len(set(labels))) :]] = True
    return kept
