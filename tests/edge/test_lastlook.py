"""What the page shows of a camera: the model's own input, in the camera's proportions."""

import cv2
import numpy as np

from common.messages import Box
from edge.frames import Frame
from edge.lastlook import KEPT_PX_MAX, LastLook


def frame(width: int, height: int) -> Frame:
    picture = np.zeros((height, width, 3), np.uint8)
    luma = np.zeros((1, 1), np.uint8)
    return Frame("gate", 10**18, 0, 10**18, 0.0, "main", (width, height), False, luma, None, picture)


def decode(jpeg: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR))


def test_a_square_input_is_shown_as_wide_as_the_camera_sees_it() -> None:
    view = np.zeros((224, 224, 3), np.uint8)
    view[:, 112:] = 255
    look = LastLook.of(frame(1920, 1080), view, None, ())
    assert look.picture is view, "nothing is copied or converted while nobody looks"
    seen = decode(look.jpeg())
    assert seen.shape == (180, 320, 3)
    assert seen[:150, :150].mean() < 5
    assert seen[:150, 170:].mean() > 250


def test_a_zone_has_its_own_proportions_and_a_strip_stays_small() -> None:
    view = np.zeros((224, 224, 3), np.uint8)
    assert decode(LastLook.of(frame(1920, 1080), view, (0.0, 0.0, 0.5, 1.0), ()).jpeg()).shape == (360, 320, 3)
    assert decode(LastLook.of(frame(1920, 1080), view, (0.5, 0.0, 0.501, 1.0), ()).jpeg()).shape == (640, 320, 3)


def test_boxes_are_drawn_and_a_large_picture_is_not_kept() -> None:
    box = Box("people", "person", 0.9, 0.25, 0.25, 0.75, 0.75)
    look = LastLook.of(frame(1920, 1080), np.full((1080, 1920, 3), 128, np.uint8), None, (box,))
    assert look.picture.shape[0] * look.picture.shape[1] <= KEPT_PX_MAX
    seen = decode(look.jpeg())
    blue, _, red = seen[45, 160].astype(int)
    assert red - blue > 60, "the upper edge of the box"
