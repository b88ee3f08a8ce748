"""Does a camera show something else than it used to? Hotelling's T² on the mean of its recent embeddings. Pure.

The first `REFERENCE` embeddings that a camera is told (one in `every_s`, so hours of its day) are its usual: their
mean, and their covariance in the `DIRECTIONS` of most variance. From then on an exponentially weighted mean of the
embeddings in those directions is compared with it (MEWMA: Lowry et al. 1992), so haze on the lens, a dimming lamp, a
lens out of focus and a noisy sensor show within a hundred embeddings although no single frame is unusual and no head
less sure.

The limit is the camera's own: where T² of streams drawn from its usual ends up once in a thousand hundreds, by
extrapolating a bootstrap. It assumes that the hours of the reference stand for those that follow: a camera that first
sees the night after its reference drifts, and says so. Decides nothing about what is done then.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]

REFERENCE: Final = 512
DIRECTIONS: Final = 64
"""32 miss haze and dimming on belts, 128 gain little (docs/log.md)."""
RATE: Final = 0.02
"""Memory of about fifty embeddings: slow enough to see a shift of a tenth of a standard deviation in each direction."""
FIRST: Final = 5
"""No level before so many embeddings: a mean of fewer is a frame."""
STREAMS: Final = 400
STREAM: Final = 100
TAIL_SIGMAS: Final = 4.94
"""0.1 % of a Gumbel distribution, which maxima follow, lie above its mean by so many standard deviations."""
MARGIN: Final = 1.25
"""On the limit: the reference is a sample itself, and looks of a camera are not as independent as draws from it."""
_FLOOR: Final = 1e-6  # of the mean variance: a camera whose picture stands still has directions without any


@dataclass(frozen=True, slots=True)
class Usual:
    """What a camera showed during its reference."""

    mean: Rows
    """(d,)"""
    whiten: NDArray[np.float32]
    """(d, k): an embedding less the mean, times this, has unit variance in each direction"""
    count: int
    limit: float
    """Of T²; above it is drift."""

    @classmethod
    def of(cls, rows: NDArray[np.floating], seed: int = 0) -> "Usual":
        """From embeddings (n, d), n at least a few hundred."""
        x = np.asarray(rows, np.float64)
        mean, whiten = _fit(x)
        held = len(x) * 3 // 4
        part_mean, part_whiten = _fit(x[:held])
        # directions of most variance look larger on the rows that chose them than on those that follow
        wider = float((((x[held:] - part_mean) @ part_whiten) ** 2).mean())
        rng = np.random.default_rng(seed)
        white = ((x - mean) @ whiten).astype(np.float32)
        peaks = np.concatenate([_peaks(white, rng, STREAMS // 8) for _ in range(8)])
        limit = MARGIN * max(1.0, wider) * max(1.0, float(peaks.mean() + TAIL_SIGMAS * peaks.std()))
        return cls(mean, whiten.astype(np.float32), len(x), limit)


@dataclass(slots=True)
class CameraDrift:
    """The usual of one camera, and where its recent embeddings lie."""

    usual: Usual | None = None
    gathered: list[NDArray[np.float16]] = field(default_factory=list)
    recent: Rows | None = None
    count: int = 0
    level: float = 0.0
    """T² of the recent embeddings as a share of the limit: 1 is drift; 0 while the usual is being learnt."""

    def observe(self, embedding: NDArray[np.floating]) -> float:
        """Take an embedding (d,) in; returns the level."""
        if self.usual is None:
            self.gathered.append(embedding.astype(np.float16))
            if len(self.gathered) >= REFERENCE:
                self.usual, self.gathered = Usual.of(np.stack(self.gathered)), []
                self.recent = np.zeros(self.usual.whiten.shape[1])
            return self.level
        white = (embedding - self.usual.mean) @ self.usual.whiten
        self.recent = white * RATE if self.recent is None else self.recent + RATE * (white - self.recent)
        self.count += 1
        if self.count >= FIRST:
            square = float(self.recent @ self.recent)
            self.level = square / _variance(self.count, self.usual.count) / self.usual.limit
        return self.level

    def restart(self) -> None:
        """Forget the recent embeddings, not the usual."""
        self.recent, self.count, self.level = None, 0, 0.0


class DriftWatch:
    """All cameras of a gateway.

    Args:
        every_s: one embedding in so many seconds of a camera's video counts: neighbouring frames say the same.
    """

    def __init__(self, every_s: float) -> None:
        self._every_ns = int(every_s * 1e9)
        self._cameras: dict[str, CameraDrift] = {}
        self._last_ns: dict[str, int] = {}
        self._space = ""

    def tell(self, camera_id: str, at_ns: int, embedding: NDArray[np.floating]) -> None:
        """A look of a camera; most are passed over."""
        last_ns = self._last_ns.get(camera_id)
        if last_ns is not None and 0 <= at_ns - last_ns < self._every_ns:
            return
        if not np.isfinite(embedding).all():
            return
        self._last_ns[camera_id] = at_ns
        self._cameras.setdefault(camera_id, CameraDrift()).observe(embedding)

    def level(self, camera_id: str) -> float:
        """See `CameraDrift.level`."""
        camera = self._cameras.get(camera_id)
        return camera.level if camera else 0.0

    def forget(self, camera_id: str) -> None:
        """A camera is gone."""
        self._cameras.pop(camera_id, None)
        self._last_ns.pop(camera_id, None)

    def adopt(self, space: str) -> None:
        """Embeddings are of this backbone from now on; with another one every usual is learnt anew."""
        if space != self._space:
            self._space = space
            self._cameras.clear()


def _fit(rows: Rows) -> tuple[Rows, Rows]:
    """Mean (d,), and the map (d, k) that makes the rows white in the directions of most variance."""
    mean = rows.mean(axis=0)
    _, spreads, directions = np.linalg.svd(rows - mean, full_matrices=False)
    kept = min(DIRECTIONS, len(rows) // 4)
    variances = spreads[:kept] ** 2 / (len(rows) - 1)
    floor = max(_FLOOR * float(variances.mean()), 1e-12)
    return mean, directions[:kept].T / np.sqrt(np.maximum(variances, floor))


def _variance(count: int, reference: int) -> float:
    """Of each white direction of the weighted mean after `count` embeddings, with what the reference's mean is off."""
    return RATE / (2 - RATE) * (1 - (1 - RATE) ** (2 * count)) + 1 / reference


def _peaks(white: NDArray[np.float32], rng: np.random.Generator, streams: int) -> Rows:
    """The highest T² of each of some streams of `STREAM` rows drawn from these (n, k)."""
    recent = np.zeros((streams, white.shape[1]))
    peaks = np.zeros(streams)
    for number in range(1, STREAM + 1):
        recent += RATE * (white[rng.integers(0, len(white), streams)] - recent)
        if number >= FIRST:
            np.maximum(peaks, (recent**2).sum(axis=1) / _variance(number, len(white)), out=peaks)
    return peaks
