"""Which few of many pictures stand for all: greedy weighted facility location on embeddings (Nemhauser 1978). Pure.

Used twice: on a gateway over a camera's window, at the centre over what the whole fleet offers. A candidate too similar
to one that was taken (cosine of the raw embeddings) is not free any more; among the free ones the gain counts, on
embeddings centred on the candidates, where what makes them differ shows.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Coverage:
    """Candidates, what was taken before, and what taking each would add.

    Args:
        units: float64 (n, d), candidates, each of length one.
        taken: float64 (m, d), what was taken before, each of length one.
        weights: float64 (n,), how much it matters that a candidate is covered.
        similarity_max: above this cosine to one that was taken, a candidate is not free.
    """

    def __init__(self, units: Floats, taken: Floats, weights: Floats, similarity_max: float) -> None:
        self._units, self._weights, self._similarity_max = units, weights, similarity_max
        self.redundancy = np.clip(units @ taken.T, 0.0, 1.0).max(axis=1) if len(taken) else np.zeros(len(units))
        """float64 (n,), largest cosine to one that was taken."""
        centre = units.mean(axis=0)
        shape = unit_rows(units - centre)
        self._similarity = shape @ shape.T
        none = np.full(len(units), -1.0)
        self._covered = (shape @ unit_rows(taken - centre).T).max(axis=1) if len(taken) else none
        self.free: NDArray[np.bool_] = self.redundancy <= similarity_max

    def best(self) -> int:
        """The free candidate that adds most; there must be one."""
        gain = (np.maximum(self._similarity - self._covered[:, None], 0.0) * self._weights[:, None]).sum(axis=0)
        return int(np.where(self.free, gain, -1.0).argmax())

    def take(self, row: int) -> None:
        """It is taken: what is like it is covered, what is too like it is not free any more."""
        self._covered = np.maximum(self._covered, self._similarity[:, row])
        self.redundancy = np.maximum(self.redundancy, np.clip(self._units @ self._units[row], 0.0, 1.0))
        self.free &= self.redundancy <= self._similarity_max
        self.free[row] = False


def unit_rows(rows: Floats) -> Floats:
    """Rows (n, d) scaled to length one; a row of zeros stays."""
    scaled: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return scaled


def to_int8(embedding: Floats | NDArray[np.float32]) -> tuple[bytes, float]:
    """One byte per value, and the step: what is lost is at most half a step of 1/127 of the largest value."""
    largest = float(np.abs(embedding).max(initial=0.0))
    step = largest / 127 if largest > 0 else 1.0
    return np.rint(embedding / step).astype(np.int8).tobytes(), step


def from_int8(data: bytes, step: float) -> Floats:
    """What `to_int8` made, float64 (d,)."""
    return np.frombuffer(data, np.int8).astype(np.float64) * step
