"""Where a picture is unlike its camera's normal."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.learning.export import export_default_backbone
from common.backbone import Backbone
from common.clock import SystemClock
from edge.patches import CHANNELS, REGIONS_MAX, WARM_LOOKS, PatchNormal, regions
from edge.settings import CameraSettings
from edge.sources import open_source

RNG = np.random.default_rng(0)


def scene(noise: float = 0.1, depth: int = 200) -> np.ndarray:
    usual = np.random.default_rng(7).normal(0, 1, (depth, 5, 6))
    return (usual + RNG.normal(0, noise, usual.shape)).astype(np.float32)


def with_thing(patches: np.ndarray, row: int, column: int) -> np.ndarray:
    changed = patches.copy()
    changed[:, row, column] += 1.0
    return changed


def test_a_thing_is_hot_where_it_is_and_nowhere_else() -> None:
    normal = PatchNormal()
    for number in range(60):
        heat, hot = normal.look(scene())
        assert heat.shape == (5, 6)
        assert number < WARM_LOOKS or hot.mean() < 0.1
    heat, hot = normal.look(with_thing(scene(), 2, 3))
    assert hot[2, 3]
    assert np.unravel_index(heat.argmax(), heat.shape) == (2, 3)
    (region,) = [item for item in regions(heat, hot) if item.heat == pytest.approx(heat.max())]
    assert (region.left, region.top) == pytest.approx((3 / 6, 2 / 5))


def test_what_stays_does_not_become_normal_at_once_and_a_new_scene_does() -> None:
    normal = PatchNormal()
    for _ in range(100):
        normal.look(scene())
    stays = [normal.look(with_thing(scene(), 1, 1))[1][1, 1] for _ in range(500)]
    assert all(stays)
    turned = np.random.default_rng(9).normal(0, 1, (200, 5, 6))
    hot_shares = [
        normal.look((turned + RNG.normal(0, 0.1, turned.shape)).astype(np.float32))[1].mean() for _ in range(1500)
    ]
    assert hot_shares[0] > 0.9
    assert np.mean(hot_shares[-50:]) < 0.1, "a camera that was turned has another normal"


def test_nothing_is_said_before_there_is_a_normal_and_after_a_new_backbone() -> None:
    normal = PatchNormal()
    for _ in range(WARM_LOOKS):
        heat, hot = normal.look(scene())
        assert not heat.any()
        assert not hot.any()
    for _ in range(20):
        normal.look(scene())
    heat, hot = normal.look(scene(depth=64))
    assert not heat.any()
    assert not hot.any()


def test_memory_is_bounded() -> None:
    normal = PatchNormal()
    for _ in range(5):
        normal.look(RNG.normal(size=(1280, 7, 7)).astype(np.float32))
    held = [value.nbytes for value in vars(normal).values() if isinstance(value, np.ndarray)]
    assert sum(held) < 2 * CHANNELS * 49 * 4 + 10_000


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=30), st.integers(0, 1000))
def test_regions_cover_what_is_hot_and_touch_no_other(places: list[tuple[int, int]], seed: int) -> None:
    hot = np.zeros((7, 7), dtype=bool)
    for place in places:
        hot[place] = True
    heat = np.random.default_rng(seed).uniform(1, 5, (7, 7)).astype(np.float32)
    found = regions(heat, hot)
    assert len(found) <= REGIONS_MAX
    assert [item.heat for item in found] == sorted((item.heat for item in found), reverse=True)
    if hot.any():
        assert found[0].heat == pytest.approx(heat[hot].max())
    covered = np.zeros_like(hot)
    for item in found:
        rows = slice(round(item.top * 7), round(item.bottom * 7))
        columns = slice(round(item.left * 7), round(item.right * 7))
        assert hot[rows, columns].any()
        covered[rows, columns] = True
    if len(found) < REGIONS_MAX:
        assert covered[hot].all()


@pytest.mark.data
@pytest.mark.slow
def test_a_person_who_comes_is_found_where_the_yard_was_empty(sample_data: Path, tmp_path: Path) -> None:
    """On one real clip: most of the time somebody is there, and only the empty yard is calm."""
    (tmp_path / "backbone.onnx").write_bytes(export_default_backbone())
    backbone = Backbone.open(tmp_path / "backbone.onnx")
    camera = CameraSettings(id="yard", source=str(sample_data / "videos" / "one_by_one_person.mp4"), paced=False)
    normal, said = PatchNormal(), {}
    for number, shot in enumerate(open_source(camera, SystemClock())):
        if number % 3 == 0 and number < 460:
            _, patches = backbone.embed_patches(shot.image)
            assert patches is not None
            said[number] = normal.look(patches)[1].any()
    somebody = [hot for number, hot in said.items() if 75 <= number <= 190 or 240 <= number <= 440]
    nobody = [hot for number, hot in said.items() if 40 <= number <= 58 or 205 <= number <= 222]
    assert np.mean(somebody) > 0.9
    assert np.mean(nobody) < 0.2
