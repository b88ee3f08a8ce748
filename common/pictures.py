"""A picture file as the pixels that models look at: the same at gateway and centre."""

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
