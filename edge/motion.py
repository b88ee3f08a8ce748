"""Whether a picture differs from its scene: luma at low resolution against a background that follows slowly.

0.1 to 0.3 ms a frame. What is compared are cells of the picture, each the mean of many pixels: sensor noise averages
out, an object does not. A change of light over the whole picture (exposure, a cloud) is taken out first.
"""

from typing import Final

import av
import cv2
import numpy as np
from numpy.typing import NDArray

Luma = NDArray[np.uint8]

COLUMNS: Final = 160
"""Cells in a row; a cell of a 1080p picture is 12 pixels wide: a person 60 m away still fills some."""
PLANAR: Final = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12", "gray"}
"""Pixel formats whose first plane is the luma itself: read where it is, nothing is converted."""
STEP_MIN: Final = 10.0
"""A cell has changed when its luma differs by so many grey levels: over what compression does to a still scene."""


def luma_of(frame: av.VideoFrame) -> Luma:
    """Luma of a frame at `COLUMNS` cells a row, uint8 (rows, COLUMNS)."""
    if frame.format.name not in PLANAR:
        frame = frame.reformat(format="gray", threads=1)
    plane = frame.planes[0]
    full = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
    return shrink(full)


def shrink(full: Luma) -> Luma:
    """Cells of a luma picture of any size."""
    height, width = full.shape
    rows = max(1, round(COLUMNS * height / width))
    # large pictures are first thinned by whole pixels: a quarter of the reads, and enough of them per cell
    step = max(1, width // (COLUMNS * 4))
    return np.asarray(cv2.resize(full[::step, ::step], (COLUMNS, rows), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def changed_share(one: Luma, other: NDArray[np.uint8] | NDArray[np.float32]) -> float:
    """Share of cells (0..1) that differ by more than `STEP_MIN` after the common shift of light is taken out."""
    difference = cv2.subtract(one, other, dtype=cv2.CV_32F)
    shift = float(np.median(difference[::8, ::8]))
    same: int = cv2.countNonZero(cv2.inRange(difference, shift - STEP_MIN, shift + STEP_MIN))
    return 1.0 - same / int(difference.size)


class Background:
    """What the scene looks like when nothing happens: an exponential mean of its luma.

    Args:
        memory_s: what stands still for about so long becomes part of the scene.
    """

    def __init__(self, memory_s: float) -> None:
        self._memory_ns = memory_s * 1e9
        self._mean: NDArray[np.float32] | None = None
        self._at_ns = 0

    def compare(self, luma: Luma) -> float:
        """Share of the picture (0..1) that is not the background; 1 when there is none yet."""
        if self._mean is None or self._mean.shape != luma.shape:
            return 1.0
        return changed_share(luma, self._mean)

    def measure(self, luma: Luma, at_ns: int) -> float:
        """As `compare`; then the background follows."""
        share = self.compare(luma)
        if self._mean is None or self._mean.shape != luma.shape:
            self._mean, self._at_ns = luma.astype(np.float32), at_ns
            return share
        passed_ns = max(0, at_ns - self._at_ns)
        self._at_ns = at_ns
        cv2.accumulateWeighted(luma, self._mean, float(-np.expm1(-passed_ns / self._memory_ns)))
        return share
