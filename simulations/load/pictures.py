"""Real JPEGs of about a wanted size, each different from all others, without encoding each."""

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from common.errors import OperatorError
from simulations.belts import still_frames

BASES: Final = 8
"""Pictures that the others are variations of."""
QUALITY: Final = 85
WIDTHS_PX: Final = (160, 240, 320, 400, 480, 560, 640, 800, 960, 1280, 1600, 1920, 2560)
_START, _COMMENT = b"\xff\xd8", b"\xff\xfe"
_NUMBER_BYTES = 16


class Pictures:
    """Pictures of belts at the width whose JPEGs come nearest to `bytes_wanted`.

    `jpeg(n)` is one of a few encoded pictures with a comment that holds `n`: it decodes like any other, its bytes and
    so its hash are its own.
    """

    def __init__(self, bytes_wanted: int, seed: int = 1) -> None:
        if not 2_000 <= bytes_wanted <= 4_000_000:
            raise OperatorError(f"pictures of {bytes_wanted} bytes", "Choose between 2,000 and 4,000,000.")
        frames = still_frames("north-drift", 1, seed, BASES)[0]
        best = min(WIDTHS_PX, key=lambda width: abs(len(_encode(frames[0], width)) - bytes_wanted))
        self._jpegs = [_encode(frame, best) for frame in frames]
        height = round(best * frames[0].shape[0] / frames[0].shape[1])
        self.size = best, height

    @property
    def bytes_mean(self) -> float:
        """What a picture takes."""
        return sum(map(len, self._jpegs)) / len(self._jpegs) + len(_COMMENT) + 2 + _NUMBER_BYTES

    def jpeg(self, number: int) -> bytes:
        """The picture of this number."""
        base = self._jpegs[number % len(self._jpegs)]
        comment = number.to_bytes(_NUMBER_BYTES, "big")
        return b"".join((_START, _COMMENT, (2 + len(comment)).to_bytes(2, "big"), comment, base[2:]))


def _encode(frame: NDArray[np.uint8], width: int) -> bytes:
    height = round(width * frame.shape[0] / frame.shape[1])
    picture = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1])
