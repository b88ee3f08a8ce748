"""In which order people are asked for labels: what is likely to teach the heads most comes first. Pure.

Samples are compared in the whitened space of the statistics, where a direction counts little in which samples of one
class differ anyway. What a waiting sample x is worth is the mean of its ranks among all that wait by

- *elsewhere*: how far its direction from the centre of the classes is from that of any labelled sample. Whatever was
  labelled or asked about already, and what is like it, falls in rank by itself;
- *outside*: the share of its squared length that lies outside the span of the class means (NECO, Ammar et al. 2024,
  arXiv:2310.06823, whitened), because what sets it apart is nothing that tells the known classes apart;
- *residual*: the share that lies outside the strongest directions of all that was learnt (ViM, Wang et al. 2022,
  arXiv:2203.10807), before whitening;
- *margin*: how close the two most probable classes are under a head solved from the labels there are now;

and, added to it, what it is expected to do for a class of few labels, Σ_k p_k / n_k: the n-th label of a class moves
its mean by a share of 1/n. So a class that somebody has just named for the first time is pursued, and one that has its
labels is not.

Everything is solved anew from sums for each answer: a label given counts for the next question.
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
"""Labelled samples that a waiting one is compared with: a question is answered in a fifth of a second then."""
RARE_WEIGHT: Final = 1.0
"""What a certain member of a class of one label is worth, in terms of ranks."""
NOTHING: Final = Labelled((), np.zeros((0, 0), np.float32), ())


class Asking:
    """What was learnt of one scenario, and the order that follows from it.

    Args:
        statistics: the sum over everything that was learnt, of at least two classes.
        known: of the samples in it those that are at hand, and other labelled ones.
        gold: labelled samples that are not in it; the head's doubts are calibrated on them.
        shrinkage: as in `cloud.learning.heads.solve_lda`.
    """

    def __init__(self, statistics: Statistics, known: Labelled, gold: Labelled, shrinkage: float) -> None:
        basis = principal_basis(statistics, DIRECTIONS)
        self._mean = statistics.sums.sum(axis=0) / statistics.total
        self._basis, self._shrinkage = basis, shrinkage
        self._statistics = statistics.project(basis)
        self._gold = gold.project(basis) if gold.labels else NOTHING
        held = [part.embeddings @ basis for part in (known.pick(_spread(known.labels)), gold) if part.labels]
        self._known = np.concatenate([np.zeros((0, basis.shape[1])), *held])

    def order(self, waiting: NDArray[np.floating], limit: int, fresh: Labelled = NOTHING) -> list[int]:
        """Rows of `waiting` (n, d), at most `limit`, the first question first.

        Args:
            fresh: what was labelled since the statistics were summed; it may name new classes.
        """
        if not len(waiting):
            return []
        statistics, known, rows = self._statistics, self._known, waiting.astype(np.float64) @ self._basis
        if fresh.labels:
            new = fresh.embeddings.astype(np.float64) @ self._basis
            statistics = statistics + Statistics.of(tuple(dict.fromkeys(fresh.labels)), new, fresh.labels)
            known = np.concatenate([known, new])
        head = solve_lda(statistics, self._shrinkage)
        head = calibrate(head, self._gold.embeddings, list(self._gold.labels))
        white, centre, means = _whiten(statistics, self._shrinkage)
        whitened = (rows - centre) @ white
        units = unit_rows(whitened)
        shares = head.probabilities(rows)
        fixed = (
            _ranks(_outside(whitened, means)) + _ranks(self._residual(waiting)) + _ranks(_torn(shares))
        ) / 4 + RARE_WEIGHT * _for_rare(shares, head, statistics)
        nearest = _largest(units, unit_rows((known - centre) @ white))
        return _greedy(fixed, nearest, units, min(limit, len(rows)))

    def _residual(self, waiting: NDArray[np.floating]) -> Array:
        """Share of the squared length from the mean that the strongest directions leave (n,)."""
        from_mean = waiting - self._mean
        whole = (from_mean**2).sum(axis=1)
        inside = ((from_mean @ self._basis[:, :STRONGEST]) ** 2).sum(axis=1)
        residual: Array = 1.0 - inside / np.maximum(whole, 1e-12)
        return residual


def _greedy(fixed: Array, nearest: Array, units: Array, count: int) -> list[int]:
    """The best by `fixed` and by the rank of what points elsewhere; each one taken counts as known for the next."""
    chosen: list[int] = []
    free = np.ones(len(fixed), dtype=bool)
    for _ in range(count):
        worth = fixed + _ranks(-nearest) / 4
        pick = int(np.where(free, worth, -np.inf).argmax())
        chosen.append(pick)
        free[pick] = False
        nearest = np.maximum(nearest, units @ units[pick])
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


def _torn(shares: Array) -> Array:
    """Second-highest probability less the highest (n,)."""
    two = np.sort(shares, axis=1)[:, -2:]
    torn: Array = two[:, 0] - two[:, 1]
    return torn


def _for_rare(shares: Array, head: HeadWeights, statistics: Statistics) -> Array:
    """Σ_k p_k / n_k (n,)."""
    counts = statistics.over(head.classes).counts
    worth: Array = shares @ np.where(counts > 0, 1 / np.maximum(counts, 1.0), 0.0)
    return worth


def _largest(units: Array, known: Array) -> Array:
    """Cosine to the most similar known sample (n,); -1 where nothing is known."""
    if not len(known):
        return np.full(len(units), -1.0)
    largest: Array = (units.astype(np.float32) @ known.T.astype(np.float32)).max(axis=1).astype(np.float64)
    return largest


def _ranks(scores: Array) -> Array:
    """Rank among all (n,), 0 the lowest to 1 the highest; equal scores have equal ranks."""
    return np.searchsorted(np.sort(scores), scores) / max(1, len(scores) - 1)


def _spread(labels: Sequence[str]) -> NDArray[np.bool_]:
    """Which of the labelled samples to keep (n,): the newest of each class, as many of each as fit `KNOWN_MAX`."""
    kept = np.zeros(len(labels), dtype=bool)
    names = np.array(labels, dtype=np.str_)
    for name in set(labels):
        kept[np.flatnonzero(names == name)[-(KNOWN_MAX // len(set(labels))) :]] = True
    return kept
