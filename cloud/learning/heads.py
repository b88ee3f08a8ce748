"""The analytic heads, LDA and ridge, from the same summed statistics, with novelty for the price of one matmul.

With class means μ_k, their mean m and the shrunk within-class covariance S, everything the head says about an
embedding x follows from t = A (x - m), where A has the rows S⁻¹(μ_k - m):

- LDA with uniform priors has the logits t_k - c_k/2, with c_k = (μ_k - m)ᵀ S⁻¹ (μ_k - m).
- Relative Mahalanobis distance (Ren et al. 2021, arXiv:2106.09022) is min_k d²(x; μ_k, S) - d²(x; m, S_total). With
  S_total = S + B, B the between-class covariance, xᵀS⁻¹x cancels (Woodbury) and what is left is
  min_k (c_k - 2 t_k) + qᵀ (I + D S⁻¹ Dᵀ)⁻¹ q with q = √p t and D the rows √p (μ_k - m).

- Ridge, one-vs-rest least squares in which all classes weigh alike and scatter by S, has the scores
  (x - m)ᵀ (S + B)⁻¹ p (μ_k - m). By Woodbury again these are the rows of t p (I + D S⁻¹ Dᵀ)⁻¹: the very matrix between
  the two q of the novelty, so a ridge head is an LDA head whose logits are read elsewhere.

So a head with novelty is d·c + c² numbers: kilobytes, where a full covariance would be megabytes.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import OperatorError
from common.statistics import Array, Statistics

SCATTER_MIN = 1e-9
"""Of the samples' second moment, the share that must lie within classes: less is rounding, and its inverse nonsense."""
Form = Literal["lda", "ridge"]
_TEMPERATURES: Final = {"lda": np.geomspace(0.25, 4096.0, 85), "ridge": np.geomspace(2.0**-12, 4.0, 85)}
"""LDA in 1,280 directions of few samples needs hundreds; ridge scores differ by one at most."""
_ABSENT = 1e4  # c_k of a class without samples: its probability is zero and it is never the nearest


class UnlearnableError(OperatorError):
    """The labels at hand are too few, or too much alike, for any head."""


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """All numbers of a head over embeddings (d,): see the module docstring for the formulas."""

    classes: tuple[str, ...]
    directions: Array
    """A (c, d)"""
    offsets: Array
    """A m (c,)"""
    constants: Array
    """c (c,)"""
    quadratic: Array
    """√p (I + D S⁻¹ Dᵀ)⁻¹ √p (c, c)"""
    temperature: float = 1.0
    form: Form = "lda"

    @property
    def less(self) -> Array:
        """What the scores of the classes are lowered by (c,)."""
        half: Array = self.constants / 2
        return half if self.form == "lda" else np.where(self.constants < _ABSENT, 0.0, half)

    def project(self, embeddings: NDArray[np.floating]) -> Array:
        """t (n, c) of embeddings (n, d)."""
        return np.asarray(embeddings, dtype=np.float64) @ self.directions.T - self.offsets

    def logits(self, embeddings: NDArray[np.floating]) -> Array:
        """(n, c), before the temperature."""
        t = self.project(embeddings)
        return (t if self.form == "lda" else t @ self.quadratic) - self.less

    def probabilities(self, embeddings: NDArray[np.floating]) -> Array:
        """(n, c), rows sum to one."""
        logits = self.logits(embeddings) / self.temperature
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: Array = odds / odds.sum(axis=1, keepdims=True)
        return shares

    def novelty(self, embeddings: NDArray[np.floating]) -> Array:
        """Relative Mahalanobis distance (n,); higher is less like any trained class."""
        t = self.project(embeddings)
        nearest = (self.constants - 2 * t).min(axis=1)
        return np.asarray(nearest + np.einsum("ni,ij,nj->n", t, self.quadratic, t))

    def predict(self, embeddings: NDArray[np.floating]) -> list[str]:
        """The most probable class of each row."""
        return [self.classes[index] for index in self.logits(embeddings).argmax(axis=1)]


def solve_lda(statistics: Statistics, shrinkage: float) -> HeadWeights:
    """Solve the head from (summed, weighted) statistics.

    Args:
        statistics: of all contributions; classes with count zero are kept and never predicted.
        shrinkage: share of the scaled identity in S, 0..1; it makes S invertible with fewer samples than dimensions.

    Raises:
        UnlearnableError: fewer than two classes have samples, or those of each class are all alike, as one alone is.
    """
    present = statistics.counts > 0
    if present.sum() < 2:
        raise UnlearnableError(
            f"a head needs labelled samples of at least two classes, got {int(present.sum())}",
            "Label more samples, or add a dataset with `headframe cloud dataset add`.",
        )
    counts = statistics.counts[present]
    means, covariance = within_covariance(statistics, shrinkage)
    if not np.trace(covariance) * counts.sum() > SCATTER_MIN * np.trace(statistics.moment):
        raise UnlearnableError(
            "a head needs a class with two labelled samples that differ, got one each, or copies",
            "Label more samples, or add a dataset with `headframe cloud dataset add`.",
        )

    centre = means.mean(axis=0)
    spread = means - centre
    directions = np.linalg.solve(covariance, spread.T).T
    constants = np.einsum("kd,kd->k", spread, directions)
    share = 1.0 / len(counts)
    gram = share * spread @ directions.T
    quadratic = share * np.linalg.inv(np.eye(len(counts)) + (gram + gram.T) / 2)
    return _over_all_classes(statistics.classes, present, directions, directions @ centre, constants, quadratic)


def solve(statistics: Statistics, shrinkage: float, form: Form = "lda") -> HeadWeights:
    """The head of either form; see `solve_lda`."""
    return replace(solve_lda(statistics, shrinkage), form=form)


def within_covariance(statistics: Statistics, shrinkage: float) -> tuple[Array, Array]:
    """Means (k, d) of the classes with samples, and the covariance (d, d) within them, shrunk by `shrinkage` to the
    scaled identity."""
    present = statistics.counts > 0
    counts, sums = statistics.counts[present], statistics.sums[present]
    means = sums / counts[:, None]
    within = statistics.moment - means.T @ sums
    covariance = (1 - shrinkage) * (within / counts.sum())
    covariance.flat[:: len(covariance) + 1] += shrinkage * np.trace(within) / counts.sum() / len(covariance)
    return means, covariance


def _over_all_classes(
    classes: tuple[str, ...],
    present: NDArray[np.bool_],
    directions: Array,
    offsets: Array,
    constants: Array,
    quadratic: Array,
) -> HeadWeights:
    """Put the solved classes at their places among all classes."""
    c, d = len(classes), directions.shape[1]
    index = np.flatnonzero(present)
    weights = HeadWeights(classes, np.zeros((c, d)), np.zeros(c), np.full(c, _ABSENT), np.zeros((c, c)))
    weights.directions[index], weights.offsets[index], weights.constants[index] = (
        directions,
        offsets,
        constants,
    )
    weights.quadratic[np.ix_(index, index)] = quadratic
    return weights


def principal_basis(statistics: Statistics, dimension_max: int) -> Array:
    """Orthonormal basis (d, k) of the directions with the most variance, k = min(d, dimension_max).

    Solving in it is an order of magnitude cheaper and was measured to be *better* than all of 1280 dimensions.
    """
    mean = statistics.sums.sum(axis=0) / max(statistics.total, 1.0)
    covariance = statistics.moment / max(statistics.total, 1.0) - np.outer(mean, mean)
    _, vectors = np.linalg.eigh(covariance)  # ascending
    basis: Array = vectors[:, ::-1][:, :dimension_max].copy()
    return basis


def solve_shared(statistics: Statistics, shrinkage: float, dimension_max: int, form: Form = "lda") -> HeadWeights:
    """The head of these statistics on the embeddings themselves: projected, solved, lifted back."""
    basis = principal_basis(statistics, dimension_max)
    return lift(solve(statistics.project(basis), shrinkage, form), basis)


def lift(weights: HeadWeights, basis: Array) -> HeadWeights:
    """A head solved on projected embeddings, as a head on the embeddings themselves: the projection is linear."""
    return replace(weights, directions=weights.directions @ basis.T)


def calibrate(weights: HeadWeights, embeddings: NDArray[np.floating], labels: list[str]) -> HeadWeights:
    """Choose the temperature that makes the probabilities of held-out samples honest (Guo et al. 2017).

    Labels count as right in (n + 1) of (n + 2) cases (Platt 1999): without that a head that errs on none of a hundred
    samples gets the lowest temperature there is, says 1.0 of everything, and nothing can be ranked by its doubts.

    Args:
        embeddings: (n, d) that the head was not solved from.
        labels: one of the head's classes each.
    """
    if not labels:
        return weights
    present = weights.constants < _ABSENT
    logits = weights.logits(embeddings)
    truth = np.array([weights.classes.index(label) for label in labels])
    temperatures = _TEMPERATURES[weights.form]
    losses = [_log_loss(logits / temperature, truth, present) for temperature in temperatures]
    return replace(weights, temperature=float(temperatures[int(np.argmin(losses))]))


def _log_loss(logits: Array, truth: NDArray[np.integer], present: NDArray[np.bool_]) -> float:
    """Mean over the samples (n, c); what is left of a label goes to all classes that have samples, in equal parts."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    right = (len(truth) + 1) / (len(truth) + 2)
    return -float((right * logs[np.arange(len(truth)), truth] + (1 - right) * logs[:, present].mean(axis=1)).mean())
