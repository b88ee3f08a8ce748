"""What a camera usually shows, and how far a frame is from it. Pure.

A mean of embeddings per camera that starts from the mean of the whole gateway and becomes the camera's own as it is
seen. It forgets by the clock, not by the frame: an anomaly that stands still keeps half of its distance for the
half-life, however often it is looked at. The price is that light which changes for good takes as long to become normal;
all frames are then equally far, and their ranks among each other stay.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

WARM_LOOKS: Final = 50
"""Looks that make a camera's first mean, each counting the same: seconds in Watch. Nobody can know what is normal for a
camera that opens on an anomaly: it is what half of these showed."""
PRIOR_LOOKS: Final = 10.0
"""The gateway's mean counts like so many looks of the camera (2 is worse on real belts, docs/log.md)."""
GATEWAY_LOOKS: Final = 10_000
"""Memory of the gateway's mean, in looks; only cameras that are new lean on it."""
GAP_S_MAX: Final = 60.0
"""A camera that was away for longer learns as if it had been away for so long."""


@dataclass(slots=True)
class CameraNormal:
    """Mean of a camera's embeddings."""

    mean: Vector | None = None
    looks: int = 0

    def learn(self, embedding: Vector, gap_s: float, half_life_s: float) -> None:
        """Take a frame in, `gap_s` after the one before."""
        self.looks += 1
        if self.mean is None:
            self.mean = embedding.copy()
            return
        rate = 1.0 - 2.0 ** (-min(max(gap_s, 0.0), GAP_S_MAX) / half_life_s)
        if self.looks <= WARM_LOOKS:
            rate = max(rate, 1.0 / self.looks)
        self.mean += rate * (embedding - self.mean)


class Normality:
    """The normal of every camera of a gateway.

    Args:
        half_life_s: how long a standing anomaly keeps half of its distance.
    """

    def __init__(self, half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self._cameras: dict[str, CameraNormal] = {}
        self._gateway: Vector | None = None
        self._gateway_looks = 0

    def distance(self, camera_id: str, embedding: Vector) -> float:
        """Squared distance of an embedding (d,) to the camera's normal; 0 when nothing at all was seen."""
        if self._gateway is None:
            self._gather(len(embedding))
        if self._gateway is None:
            return 0.0
        camera = self._cameras.get(camera_id)
        normal = self._gateway
        if camera is not None and camera.mean is not None:
            own = camera.looks / (camera.looks + PRIOR_LOOKS)
            normal = normal + own * (camera.mean - normal)
        difference = embedding - normal
        return float(difference @ difference)

    def learn(self, camera_id: str, embedding: Vector, gap_s: float) -> None:
        """Take a frame of a camera in, `gap_s` after its last; `distance` was asked of it before."""
        self._cameras.setdefault(camera_id, CameraNormal()).learn(embedding, gap_s, self._half_life_s)
        self._gateway_looks += 1
        if self._gateway is None:
            self._gateway = embedding.copy()
        else:
            self._gateway += (embedding - self._gateway) / min(self._gateway_looks, GATEWAY_LOOKS)

    def recall(self, camera_id: str) -> CameraNormal | None:
        """What is normal for a camera, to be kept over a restart; None before its first look."""
        return self._cameras.get(camera_id)

    def restore(self, camera_id: str, normal: CameraNormal) -> None:
        """Go on with what was kept."""
        self._cameras[camera_id] = normal
        self._gateway = None

    def forget(self, camera_id: str) -> None:
        """Begin anew with a camera: another backbone, another space."""
        self._cameras.pop(camera_id, None)
        self._gateway = None

    def _gather(self, dimension: int) -> None:
        """Make the gateway's mean of its cameras'; those of another dimension are of another backbone, and go."""
        known: list[tuple[Vector, int]] = []
        for name, camera in list(self._cameras.items()):
            if camera.mean is not None and len(camera.mean) == dimension:
                known.append((camera.mean, camera.looks))
            else:
                del self._cameras[name]
        self._gateway_looks = sum(looks for _, looks in known)
        if known:
            weights = np.array([looks for _, looks in known]) / self._gateway_looks
            self._gateway = weights @ np.stack([mean for mean, _ in known])
