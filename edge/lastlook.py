"""What the model saw of a camera last, as a small picture for the gateway's own page.

Kept is the picture that the model was given anyway, shrunk to its input: nothing is decoded or converted for the page,
and the JPEG is made only when somebody asks. It never leaves the box but through the page, whatever `share` says.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from common.messages import Box
from edge.frames import Frame, Zone

WIDTH_PX: Final = 320
"""Of the JPEG: a little more than a model's input holds."""
QUALITY: Final = 75
KEPT_PX_MAX: Final = 512 * 512
"""A larger picture (of a folder, or a model of a large input) is shrunk before it is kept."""
_RED, _WHITE, _BLACK = (40, 40, 230), (255, 255, 255), (0, 0, 0)


@dataclass(frozen=True, slots=True)
class LastLook:
    """One look: its picture uint8 (H, W, 3) BGR, of any proportions, and those of what it shows."""

    picture: NDArray[np.uint8]
    proportion: float
    """Height over width of the part of the camera's picture that was looked at."""
    captured_at_ns: int
    boxes: tuple[Box, ...]

    @classmethod
    def of(cls, frame: Frame, view: NDArray[np.uint8], zone: Zone | None, boxes: Sequence[Box]) -> "LastLook":
        """Of a frame, and what the model was given of it."""
        left, top, right, bottom = zone or (0.0, 0.0, 1.0, 1.0)
        width, height = frame.size
        proportion = (bottom - top) * height / max((right - left) * width, 1.0)
        if view.shape[0] * view.shape[1] > KEPT_PX_MAX:
            view = np.asarray(cv2.resize(view, _size(proportion), interpolation=cv2.INTER_AREA), dtype=np.uint8)
        return cls(view, proportion, frame.captured_at_ns, tuple(boxes))

    def jpeg(self) -> bytes:
        """In its own proportions, with the boxes and the time of its capture drawn in."""
        drawn = cv2.resize(self.picture, _size(self.proportion), interpolation=cv2.INTER_LINEAR)
        height, width = drawn.shape[:2]
        for box in self.boxes:
            low = round(box.left * width), round(box.top * height)
            cv2.rectangle(drawn, low, (round(box.right * width), round(box.bottom * height)), _RED, 2)
        at = time.strftime("%H:%M:%S", time.localtime(self.captured_at_ns / 1e9))
        for colour, thickness in ((_BLACK, 3), (_WHITE, 1)):
            place = (6, height - 7)
            cv2.putText(drawn, at, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, thickness, cv2.LINE_AA)
        ok, encoded = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        return encoded.tobytes() if ok else b""


def _size(proportion: float) -> tuple[int, int]:
    """Width and height of the JPEG; a zone may be a narrow strip."""
    return WIDTH_PX, min(max(round(WIDTH_PX * proportion), 16), 2 * WIDTH_PX)
