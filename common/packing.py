"""Statistics in few bytes, as they travel and as the centre keeps them. Decides the form, and nothing about their use.

A contribution is dominated by its second moment, d × d numbers of which a site with n samples can fill only rank n. So
what is sent are the class means and a *factor* F (r, d) of the scatter within classes, FᵀF = Σ (x - μ)(x - μ)ᵀ:

- without a bound on bytes F holds the whole scatter in float64, r at most n: the same statistics to rounding. Where
  that is no smaller than the moment's upper triangle, the triangle travels (`Triangle`).
- with a bound, F and the means are rounded to float16, or F to int8 with one step a row, and of int8 rows only the
  strongest that fit are kept. The variance that is lost stays on the diagonal (`rest`), so that no direction looks
  quieter than it is.

Every form is opened into the same `Statistics`, so that contributions of any forms add up, and what was added can be
subtracted. F is the singular form of the site's centred embeddings: it says what the scatter says, and not which row
was which sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from common.errors import WireError
from common.statistics import Array, Statistics

DIMENSION_MAX = 8192
CLASSES_MAX = 1000
ROWS_MIN = 4  # of an int8 factor, whatever the bound: below that the scatter is a diagonal
_RANK_TOLERANCE = 1e-12  # of the strongest direction: what is weaker is rounding
_INT8_MAX = 127
_SLACK = 1e-6  # of rounding at the client


@dataclass(frozen=True, slots=True)
class Triangle:
    """Counts (c,), sums (c, d) and the upper triangle of the second moment, row by row, all float64."""

    classes: tuple[str, ...]
    counts: Array
    sums: Array
    moment: Array

    @classmethod
    def of(cls, statistics: Statistics) -> "Triangle":
        packed: Array = statistics.moment.ravel()[_upper(statistics.dimension)]
        return cls(statistics.classes, statistics.counts, statistics.sums, packed)

    @property
    def dimension(self) -> int:
        return int(self.sums.shape[1])

    @property
    def total(self) -> float:
        return float(self.counts.sum())

    def statistics(self) -> Statistics:
        """Opened."""
        moment = np.zeros((self.dimension, self.dimension))
        moment.ravel()[_upper(self.dimension)] = self.moment
        moment += np.triu(moment, 1).T
        return Statistics(self.classes, self.counts, self.sums, moment)

    def project(self, basis: Array) -> Statistics:
        """The statistics of the projected embeddings, basis (d, k)."""
        return self.statistics().project(basis)

    def over(self, classes: Sequence[str]) -> "Triangle":
        """See `Statistics.over`."""
        counts, sums = _over(classes, self.classes, self.counts, self.sums)
        return Triangle(tuple(classes), counts, sums.astype(np.float64, copy=False), self.moment)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {"counts": self.counts, "sums": self.sums, "moment": self.moment}


@dataclass(frozen=True, slots=True)
class Factor:
    """Counts (c,), means (c, d), and the scatter within classes as diag(rest) + FᵀF with F = factor · steps."""

    classes: tuple[str, ...]
    counts: Array
    means: NDArray[np.floating]
    factor: NDArray[np.generic]
    """(r, d) float64, float16 or int8"""
    steps: NDArray[np.float32]
    """(r,) of int8 rows; empty for floats"""
    rest: NDArray[np.float32]
    """(d,), or empty"""

    @property
    def dimension(self) -> int:
        return int(self.means.shape[1])

    @property
    def total(self) -> float:
        return float(self.counts.sum())

    @property
    def sums(self) -> Array:
        """(c, d)"""
        sums: Array = self.means.astype(np.float64) * self.counts[:, None]
        return sums

    def rows(self) -> Array:
        """R (r + c, d) float64: the second moment is RᵀR + diag(rest)."""
        scatter = self.factor.astype(np.float64)
        if len(self.steps):
            scatter *= self.steps.astype(np.float64)[:, None]
        return np.concatenate([scatter, np.sqrt(self.counts)[:, None] * self.means.astype(np.float64)])

    def statistics(self) -> Statistics:
        """Opened."""
        rows = self.rows()
        moment = rows.T @ rows
        if len(self.rest):
            moment.flat[:: self.dimension + 1] += self.rest
        return Statistics(self.classes, self.counts, self.sums, moment)

    def project(self, basis: Array) -> Statistics:
        """The statistics of the projected embeddings, basis (d, k), without the d × d moment in between."""
        rows = self.rows() @ basis
        moment = rows.T @ rows
        if len(self.rest):
            moment += basis.T @ (self.rest.astype(np.float64)[:, None] * basis)
        return Statistics(self.classes, self.counts, self.sums @ basis, moment)

    def over(self, classes: Sequence[str]) -> "Factor":
        """See `Statistics.over`."""
        counts, means = _over(classes, self.classes, self.counts, self.means)
        return replace(self, classes=tuple(classes), counts=counts, means=means)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            "counts": self.counts,
            "means": self.means,
            "factor": self.factor,
            "steps": self.steps,
            "rest": self.rest,
        }


Packed = Triangle | Factor


def pack(
    classes: Sequence[str], embeddings: NDArray[np.floating], labels: Sequence[str], bytes_max: int = 0
) -> tuple[Packed, float]:
    """Statistics of labelled embeddings (n, d), packed; only classes that have samples are kept.

    Args:
        bytes_max: bound on the arrays; 0 is none, and nothing is lost. The means and `ROWS_MIN` rows go in any case.

    Returns:
        The packed statistics, and the share of the variance within classes that is left to the diagonal.
    """
    used = tuple(name for name in classes if name in set(labels))
    x = np.asarray(embeddings, dtype=np.float64)
    truth = np.array([used.index(label) for label in labels], dtype=np.int64)
    counts = np.bincount(truth, minlength=len(used)).astype(np.float64)
    sums = np.zeros((len(used), x.shape[1]))
    np.add.at(sums, truth, x)
    means = sums / counts[:, None]
    scatter = _singular_rows(x - means[truth])
    if not bytes_max:
        if scatter.nbytes >= 8 * (x.shape[1] * (x.shape[1] + 1) // 2):
            return Triangle.of(Statistics.of(used, x, labels)), 0.0
        return Factor(used, counts, means, scatter, _EMPTY, _EMPTY), 0.0
    return _lossy(used, counts, means, scatter, bytes_max)


def packed_bytes(samples: int, classes: int, dimension: int, bytes_max: int = 0) -> int:
    """Of the arrays that `pack` makes of so many samples of so many classes, where no two are alike."""
    rank = min(samples - classes, dimension)
    counts, triangle = 8 * classes, 8 * (dimension * (dimension + 1) // 2)
    if not bytes_max:
        return counts + 8 * classes * dimension + min(8 * rank * dimension, triangle)
    short = 2 * classes * dimension
    room = bytes_max - counts - short
    if 2 * rank * dimension <= room:
        return counts + short + 2 * rank * dimension
    kept = min(rank, max(ROWS_MIN, (room - 4 * dimension) // (dimension + 4)))
    return counts + short + kept * (dimension + 4) + 4 * dimension


_EMPTY: NDArray[np.float32] = np.zeros(0, np.float32)


def _lossy(
    classes: tuple[str, ...], counts: Array, means: Array, scatter: Array, bytes_max: int
) -> tuple[Factor, float]:
    dimension = means.shape[1]
    short = means.astype(np.float16)
    room = bytes_max - counts.nbytes - short.nbytes
    if scatter.size * 2 <= room and np.abs(scatter).max(initial=0.0) < np.finfo(np.float16).max:
        return Factor(classes, counts, short, scatter.astype(np.float16), _EMPTY, _EMPTY), 0.0
    kept = max(ROWS_MIN, (room - 4 * dimension) // (dimension + 4))
    steps = (np.abs(scatter[:kept]).max(axis=1, initial=0.0) / _INT8_MAX).astype(np.float32)
    rounded = np.round(scatter[:kept] / np.maximum(steps, 1e-30)[:, None]).clip(-_INT8_MAX, _INT8_MAX).astype(np.int8)
    opened = rounded.astype(np.float64) * steps.astype(np.float64)[:, None]
    rest = np.maximum((scatter**2).sum(axis=0) - (opened**2).sum(axis=0), 0.0).astype(np.float32)
    whole = float((scatter**2).sum())
    lost = float((scatter[kept:] ** 2).sum()) / whole if whole else 0.0
    return Factor(classes, counts, short, rounded, steps, rest), lost


def read_packed(classes: tuple[str, ...], arrays: Mapping[str, NDArray[np.generic]]) -> Packed:
    """Packed statistics from arrays that came from elsewhere, checked.

    Raises:
        WireError: shapes that do not fit, values that are not finite or not possible (counts that are negative or not
            whole, a moment whose trace is smaller than its sums allow), or more than the bounds allow.
    """
    counts = np.asarray(arrays["counts"], dtype=np.float64)
    if len(classes) > CLASSES_MAX or len(set(classes)) != len(classes):
        raise WireError(f"{len(classes)} classes are over the bound of {CLASSES_MAX}, or one comes twice")
    if counts.shape != (len(classes),) or not np.isfinite(counts).all():
        raise WireError(f"counts of {len(classes)} classes have shape {counts.shape}, or are not finite")
    if (counts < 0).any() or (counts != np.round(counts)).any():
        raise WireError("counts must be whole and not negative")
    return _read_factor(classes, counts, arrays) if "factor" in arrays else _read_triangle(classes, counts, arrays)


def _read_triangle(classes: tuple[str, ...], counts: Array, arrays: Mapping[str, NDArray[np.generic]]) -> Triangle:
    sums, packed = (np.asarray(arrays[name], dtype=np.float64) for name in ("sums", "moment"))
    dimension = int((np.sqrt(8 * packed.size + 1) - 1) / 2)
    if packed.ndim != 1 or dimension > DIMENSION_MAX or dimension * (dimension + 1) // 2 != packed.size:
        raise WireError(f"a moment of {packed.size} values is no triangle within the bound")
    if sums.shape != (len(classes), dimension):
        raise WireError(f"sums have shape {sums.shape}, not {(len(classes), dimension)}")
    if not (np.isfinite(sums).all() and np.isfinite(packed).all()):
        raise WireError("statistics hold values that are not finite")
    power = np.divide((sums**2).sum(axis=1), counts, out=np.zeros(len(counts)), where=counts > 0).sum()
    if packed[_diagonal(dimension)].sum() < power * (1 - _SLACK) - _SLACK:
        raise WireError("the second moment is smaller than the sums allow")
    return Triangle(classes, counts, sums, packed)


def _read_factor(classes: tuple[str, ...], counts: Array, arrays: Mapping[str, NDArray[np.generic]]) -> Factor:
    means, factor = np.asarray(arrays["means"]), np.asarray(arrays["factor"])
    steps, rest = (np.asarray(arrays[name]) for name in ("steps", "rest"))
    if means.ndim != 2 or factor.ndim != 2 or means.shape[0] != len(classes) or means.shape[1] != factor.shape[1]:
        raise WireError(f"means {means.shape} and factor {factor.shape} of {len(classes)} classes do not fit")
    dimension = means.shape[1]
    if not 0 < dimension <= DIMENSION_MAX or len(factor) > DIMENSION_MAX:
        raise WireError(f"a factor of {factor.shape} is over the bound of {DIMENSION_MAX}")
    if means.dtype.kind != "f" or factor.dtype not in (np.float64, np.float16, np.int8):
        raise WireError(f"means are {means.dtype}, the factor is {factor.dtype}")
    if steps.shape != ((len(factor),) if factor.dtype == np.int8 else (0,)) or rest.shape not in ((dimension,), (0,)):
        raise WireError(f"steps {steps.shape} or rest {rest.shape} do not fit a factor {factor.shape}")
    if not all(np.isfinite(part).all() for part in (means, factor, steps, rest)) or (rest < 0).any():
        raise WireError("statistics hold values that are not finite, or a variance below zero")
    if means[counts == 0].any():
        raise WireError("a class without samples has a mean")
    return Factor(classes, counts, means, factor, steps.astype(np.float32), rest.astype(np.float32))


def _singular_rows(centred: Array) -> Array:
    """F (r, d) of the same scatter as these rows (n, d), the strongest direction first."""
    n, d = centred.shape
    if not n:
        return centred
    if n <= d:
        values, vectors = np.linalg.eigh(centred @ centred.T)
        rows = vectors.T @ centred
    else:
        values, vectors = np.linalg.eigh(centred.T @ centred)
        rows = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
    order = np.flatnonzero(values > _RANK_TOLERANCE * max(values[-1], 1e-300))[::-1]
    found: Array = np.ascontiguousarray(rows[order])
    return found


def _over(
    classes: Sequence[str], own: Sequence[str], counts: Array, rows: NDArray[np.floating]
) -> tuple[Array, NDArray[np.floating]]:
    """Counts and rows (c, d) at the places of `classes`."""
    missing = [name for name, count in zip(own, counts, strict=True) if count and name not in classes]
    if missing:
        raise WireError(f"statistics hold classes that the scenario does not have: {', '.join(missing)}")
    new_counts, new_rows = np.zeros(len(classes)), np.zeros((len(classes), rows.shape[1]), rows.dtype)
    for position, name in enumerate(classes):
        if name in own:
            new_counts[position], new_rows[position] = counts[own.index(name)], rows[own.index(name)]
    return new_counts, new_rows


@lru_cache(maxsize=2)  # 6.5 MB at 1280 dimensions, and most of the time that packing took
def _upper(dimension: int) -> NDArray[np.integer]:
    """Flat places of the upper triangle, row by row."""
    rows, columns = np.triu_indices(dimension)
    places: NDArray[np.integer] = rows * dimension + columns
    return places


def _diagonal(dimension: int) -> NDArray[np.integer]:
    """Where the diagonal lies in a packed upper triangle."""
    places: NDArray[np.integer] = np.concatenate([[0], np.cumsum(np.arange(dimension, 1, -1))])[:dimension]
    return places
