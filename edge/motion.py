"""Whether a picture differs from its scene: luma at low resolution against a reference that follows slowly.

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
    some = difference[::8, ::8].ravel()
    shift = float(np.partition(some, some.size // 2)[some.size // 2])  # np.median would import numpy.ma for it
    same: int = cv2.countNonZero(cv2.inRange(difference, shift - STEP_MIN, shift + STEP_MIN))
    return 1.0 - same / int(difference.size)


class Scene:
    """What a camera saw when something last moved in front of it, slowly following.

    Each movement makes the picture of its moment the new reference: what stands still afterwards is no motion, be it
    a parked vehicle or the place where it stood. Between movements the reference is an exponential mean, so that sun
    and dust are no motion either, while what creeps along adds up until it is one.

    Args:
        motion_min: share of the picture from which a difference is motion.
        memory_s: of the mean.
    """

    def __init__(self, motion_min: float, memory_s: float) -> None:
        self._motion_min, self._memory_ns = motion_min, memory_s * 1e9
        self._mean: NDArray[np.float32] | None = None
        self._at_ns = 0

    def differs(self, luma: Luma) -> bool:
        """Whether a picture shows motion; nothing is remembered. The first picture does."""
        if self._mean is None or self._mean.shape != luma.shape:
            return True
        return changed_share(luma, self._mean) >= self._motion_min

    def moves(self, luma: Luma, at_ns: int) -> bool:
        """As `differs`; then the reference follows."""
        moved = self.differs(luma)
        if moved or self._mean is None:
            self._mean = luma.astype(np.float32)
        else:
            passed_ns = max(0, at_ns - self._at_ns)
            cv2.accumulateWeighted(luma, self._mean, float(-np.expm1(-passed_ns / self._memory_ns)))
        self._at_ns = at_ns
        return moved
