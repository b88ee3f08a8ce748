"""Statistics in few directions, with known bounds: what is masked and what noise is added to. No I/O.

The centre publishes a frame of reference per scenario: an origin, some orthonormal directions, and the length that a
sample is expected to have. A gateway describes its samples in it: class counts, class sums, the second moment of the
coordinates, and how much of their length lies outside. In units of that length a sample that was clipped to it adds at
most 1 to the count of its class, at most 1 (Euclid) to the sums, and at most 1 (Frobenius) to moment and remainder:
these are the sensitivities that noise is measured by. `lift` opens such sums into the form that everything else is
learnt from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import WireError
from common.masking import gaussian
from common.packing import CLASSES_MAX, DIMENSION_MAX, Factor
from common.statistics import Array

SHARES: Final[Mapping[str, float]] = {"counts": 0.1, "sums": 0.45, "moment": 0.45}
"""How the budget of a noised sum is spent on its parts; the means decide the head, the moment its metric."""
_CLIP_SLACK: Final = 1e-3  # directions travel as float16 and are orthonormal to about that


@dataclass(frozen=True, slots=True)
class Projection:
    """Origin (d,), directions (d, k) and the length of a sample from the origin."""

    origin: Array
    directions: Array
    length: float

    def __post_init__(self) -> None:
        if self.directions.ndim != 2 or self.origin.shape != self.directions.shape[:1]:
            raise WireError(f"an origin {self.origin.shape} does not fit directions {self.directions.shape}")
        if not 0 < self.width <= len(self.origin) <= DIMENSION_MAX:
            raise WireError(f"directions {self.directions.shape} are out of bounds")
        if not (np.isfinite(self.origin).all() and np.isfinite(self.directions).all()):
            raise WireError("a projection holds values that are not finite")
        if not (np.isfinite(self.length) and self.length > 0):
            raise WireError(f"a length of {self.length} is none")

    @property
    def width(self) -> int:
        return int(self.directions.shape[1])

    def coordinates(self, embeddings: NDArray[np.floating], *, clip: bool) -> tuple[Array, Array]:
        """Coordinates (n, k) and what of the squared length (n,) lies outside, in units of `length`.

        Args:
            clip: shorten samples that are longer than `length`.

        Raises:
            WireError: embeddings of another size.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != len(self.origin):
            raise WireError(f"embeddings {embeddings.shape} do not fit an origin {self.origin.shape}")
        x = (np.asarray(embeddings, np.float64) - self.origin) / self.length
        if clip:
            x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1.0)
        inside: Array = x @ self.directions
        outside: Array = np.maximum((x**2).sum(axis=1) - (inside**2).sum(axis=1), 0.0)
        if clip:  # rounded directions may stretch a sample a little
            inside /= 1 + _CLIP_SLACK
            outside /= (1 + _CLIP_SLACK) ** 2
        return inside, outside


def size_of(classes: int, width: int) -> int:
    """Numbers of a described scenario."""
    return classes + classes * width + width * (width + 1) // 2 + 1


def describe(
    projection: Projection,
    classes: Sequence[str],
    embeddings: NDArray[np.floating],
    labels: Sequence[str],
    *,
    clip: bool = False,
) -> Array:
    """Counts, sums, the moment's upper triangle row by row, the remainder: one vector, in units of the length."""
    inside, outside = projection.coordinates(embeddings, clip=clip)
    one_hot = np.zeros((len(labels), len(classes)))
    one_hot[np.arange(len(labels)), [list(classes).index(label) for label in labels]] = 1.0
    moment = inside.T @ inside
    upper = np.triu_indices(projection.width)
    return np.concatenate([one_hot.sum(axis=0), (one_hot.T @ inside).ravel(), moment[upper], [outside.sum()]])


def noise(classes: int, width: int, multiplier: float, contributors: int, seed: bytes) -> Array:
    """A contributor's part of the noise of a sum over `contributors`.

    One clipped sample more or less moves the noised sum as much as it moves one number with noise of `multiplier`
    standard deviations per unit: that is what the accountant counts. Off the diagonal the moment holds two of its
    numbers in one, so its noise is less by √2.
    """
    drawn = gaussian(seed, size_of(classes, width)) * multiplier / np.sqrt(contributors)
    moment = np.ones((width, width)) / np.sqrt(2)
    np.fill_diagonal(moment, 1.0)
    scale = np.concatenate(
        [
            np.full(classes, 1 / np.sqrt(SHARES["counts"])),
            np.full(classes * width, 1 / np.sqrt(SHARES["sums"])),
            moment[np.triu_indices(width)] / np.sqrt(SHARES["moment"]),
            [1 / np.sqrt(SHARES["moment"])],
        ]
    )
    scaled: Array = drawn * scale
    return scaled


def lift(described: Array, projection: Projection, classes: Sequence[str]) -> Factor:
    """Summed descriptions as statistics of embeddings (d,); repairs what noise made impossible.

    Counts become whole and not negative, a class without samples loses its sum, directions whose variance within
    classes came out negative have none, and what lies outside of the directions is spread over all that are orthogonal
    to them.

    Raises:
        WireError: not a description of so many classes, or not finite.
    """
    c, k, d = len(classes), projection.width, len(projection.origin)
    if c > CLASSES_MAX or described.shape != (size_of(c, k),) or not np.isfinite(described).all():
        raise WireError(f"{described.shape} numbers describe no {c} classes in {k} directions")
    counts = np.maximum(np.round(described[:c]), 0.0)
    sums = described[c : c + c * k].reshape(c, k) * (counts > 0)[:, None]
    moment = np.zeros((k, k))
    moment[np.triu_indices(k)] = described[c + c * k : -1]
    moment += np.triu(moment, 1).T
    means = np.divide(sums, counts[:, None], out=np.zeros((c, k)), where=counts[:, None] > 0)
    values, vectors = np.linalg.eigh(moment - (means * counts[:, None]).T @ means)
    kept = values > 0
    rows = np.sqrt(values[kept])[:, None] * vectors[:, kept].T
    unit = projection.length
    beside = np.maximum(1 - (projection.directions**2).sum(axis=1), 0.0)
    remainder = max(float(described[-1]), 0.0) * unit**2 / max(d - k, 1)
    lifted = np.where(counts[:, None] > 0, projection.origin + unit * means @ projection.directions.T, 0.0)
    return Factor(
        tuple(classes),
        counts,
        lifted,
        np.ascontiguousarray(unit * rows @ projection.directions.T),
        np.zeros(0, np.float32),
        (remainder * beside).astype(np.float32),
    )
