"""Which pictures pass: exactly those that a whole decode would let pass, at a fraction of its price."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.pictures import PictureCheck, read_headers
from common.errors import WireError

PICTURE = np.random.default_rng(5).integers(0, 255, (48, 64, 3), np.uint8)
PLAIN = cv2.imencode(".jpg", PICTURE)[1].tobytes()
RESTARTS = cv2.imencode(".jpg", PICTURE, [cv2.IMWRITE_JPEG_RST_INTERVAL, 3])[1].tobytes()
PROGRESSIVE = cv2.imencode(".jpg", PICTURE, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()


def passes(check: PictureCheck, jpeg: bytes) -> bool:
    try:
        headers = read_headers(jpeg)
        check.check(jpeg, headers.width, headers.height, 10**6)
    except WireError:
        return False
    return True


def decodes(jpeg: bytes) -> bool:
    try:
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return False
    return image is not None


@pytest.mark.parametrize("jpeg", [PLAIN, RESTARTS], ids=["plain", "restarts"])
def test_a_camera_pays_for_one_decode(jpeg: bytes) -> None:
    check = PictureCheck()
    for _ in range(5):
        assert passes(check, jpeg)
    assert check.decodes == 1


def test_a_progressive_picture_is_decoded_every_time() -> None:
    check = PictureCheck()
    assert passes(check, PROGRESSIVE)
    assert passes(check, PROGRESSIVE)
    assert check.decodes == 2


@given(st.sampled_from([PLAIN, RESTARTS, PROGRESSIVE]), st.data())
def test_what_passes_decodes_wherever_it_is_damaged(jpeg: bytes, data: st.DataObject) -> None:
    check = PictureCheck()
    assert passes(check, jpeg), "its headers are known from now on"
    damaged = bytearray(jpeg)
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(2, len(damaged) - 3))] = data.draw(st.integers(0, 255))
    if passes(check, bytes(damaged)):
        assert decodes(bytes(damaged))
    if not decodes(bytes(damaged)):
        assert not passes(check, bytes(damaged))


def test_headers_that_never_decoded_are_never_trusted() -> None:
    check = PictureCheck()
    at = PLAIN.index(b"\xff\xdb") + 4
    without_tables = PLAIN[: at - 4] + PLAIN[PLAIN.index(b"\xff\xc0") :]
    for _ in range(2):
        assert not passes(check, without_tables)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from cloud import pictures

    monkeypatch.setattr(pictures, "HEADERS_MAX", 2)
    check = PictureCheck()
    for quality in (50, 60, 70, 80):
        assert passes(check, cv2.imencode(".jpg", PICTURE, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())
    assert len(check._decoded) == 2
