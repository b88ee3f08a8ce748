"""What counts as motion, and what does not."""

import av
import numpy as np
import pytest

from edge.motion import COLUMNS, Scene, changed_share, luma_of, shrink

S = 10**9


def scene(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 160, (360, 640)).astype(np.uint8)


def noisy(picture: np.ndarray, seed: int, sigma: float = 3.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def test_sensor_noise_and_a_change_of_light_are_no_motion() -> None:
    still = scene()
    assert changed_share(shrink(noisy(still, 1)), shrink(noisy(still, 2))) == 0
    brighter = np.clip(still.astype(int) + 25, 0, 255).astype(np.uint8)
    assert changed_share(shrink(brighter), shrink(still)) == 0


def test_a_small_object_is_motion() -> None:
    still = scene()
    with_object = still.copy()
    with_object[100:140, 200:216] = 250  # 0.28 % of the picture: a person far away
    assert 0.002 < changed_share(shrink(with_object), shrink(still)) < 0.006


def test_what_stands_still_is_part_of_the_scene_and_is_missed_when_it_goes() -> None:
    seen, still = Scene(0.002, memory_s=10), scene()
    parked = still.copy()
    parked[100:200, 200:300] = 250
    assert seen.moves(shrink(still), 0), "nothing is known yet"
    assert not seen.moves(shrink(still), S)
    assert seen.moves(shrink(parked), 2 * S)
    assert not seen.moves(shrink(parked), 3 * S), "it has stopped"
    assert seen.differs(shrink(still))
    assert seen.moves(shrink(still), 4 * S), "it has gone"
    assert not seen.moves(shrink(still), 5 * S), "and leaves no trace"


def test_slow_light_is_no_motion_but_what_creeps_along_is() -> None:
    light, creeper = Scene(0.002, memory_s=10), Scene(0.002, memory_s=10)
    dusk = 0
    crept = 0
    for second in range(60):
        sky = scene()
        sky[:180] = np.clip(sky[:180].astype(int) - second // 2, 0, 255)  # the upper half darkens by 30
        dusk += light.moves(shrink(sky), second * S)
        ground = scene()
        ground[100:140, 100 + second * 4 : 116 + second * 4] = 250
        crept += creeper.moves(shrink(ground), second * S)
    assert dusk == 1, "the first picture"
    assert crept > 20


@pytest.mark.parametrize("pixels", ["yuv420p", "nv12", "gray", "yuyv422", "bgr24"])
def test_luma_is_read_from_any_pixel_format(pixels: str) -> None:
    ramp = np.tile(np.linspace(20, 230, 640).astype(np.uint8), (360, 1))
    frame = av.VideoFrame.from_ndarray(np.repeat(ramp[:, :, None], 3, axis=2), format="bgr24").reformat(format=pixels)
    luma = luma_of(frame)
    assert luma.shape == (90, COLUMNS)
    assert luma[0, 0] < 45
    assert luma[0, -1] > 200
