"""A picture as the pixels that models look at: the same at gateway and centre."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from common.errors import OperatorError


def read_picture(path: Path) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) BGR.

    Raises:
        OperatorError: it is no picture.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise OperatorError(f"{path} is not a picture that OpenCV can read", "Replace or remove the file.")
    return np.asarray(image, dtype=np.uint8)


def decode_picture(data: bytes) -> NDArray[np.uint8] | None:
    """uint8 (H, W, 3) BGR of a compressed picture; None where it is damaged."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return None if image is None else np.asarray(image, dtype=np.uint8)
