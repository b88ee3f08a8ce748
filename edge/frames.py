"""A frame on its way from a camera to the model."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture, uint8 (H, W, 3) BGR, whole; `index` counts from the beginning of its source."""

    camera_id: str
    captured_at_ns: int
    index: int
    image: NDArray[np.uint8]
