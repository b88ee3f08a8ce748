"""Parts of a picture that count."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edge.settings import CameraSettings, ZoneSettings
from edge.zones import contains, patch_mask, share_inside, to_whole

fractions = st.floats(0, 1, width=32)
boxes = st.tuples(fractions, fractions, fractions, fractions).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)


def rectangle(box: tuple[float, float, float, float]) -> tuple[tuple[float, float], ...]:
    left, top, right, bottom = box
    return ((left, top), (right, top), (right, bottom), (left, bottom))


@given(boxes, st.lists(st.tuples(fractions, fractions), min_size=1, max_size=20))
def test_a_rectangle_contains_what_is_between_its_edges(
    box: tuple[float, float, float, float], points: list[tuple[float, float]]
) -> None:
    left, top, right, bottom = box
    x, y = np.array(points).T
    near = 1e-6
    clear = (abs(x - left) > near) & (abs(x - right) > near) & (abs(y - top) > near) & (abs(y - bottom) > near)
    expected = (x > left) & (x < right) & (y > top) & (y < bottom)
    np.testing.assert_array_equal(contains(rectangle(box), x, y)[clear], expected[clear])


@given(boxes)
def test_the_share_of_the_whole_is_one_and_of_nothing_is_none(box: tuple[float, float, float, float]) -> None:
    outside = ((2.0, 2.0), (3.0, 2.0), (3.0, 3.0))
    everything = ((-1.0, -1.0), (2.0, -1.0), (2.0, 2.0), (-1.0, 2.0))
    assert share_inside([everything], box) == 1.0
    assert share_inside([outside], box) == 0.0
    assert share_inside([outside, everything], box) == 1.0


def test_the_share_of_a_triangle_is_half() -> None:
    assert share_inside([((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))], (0.0, 0.0, 1.0, 1.0)) == pytest.approx(0.5, abs=0.05)


@given(boxes, boxes)
def test_a_position_in_a_part_is_a_position_in_the_whole(
    box: tuple[float, float, float, float], seen: tuple[float, float, float, float]
) -> None:
    whole = to_whole(box, seen)
    assert seen[0] - 1e-6 <= whole[0] <= whole[2] + 1e-6 <= seen[2] + 2e-6
    assert to_whole((0.0, 0.0, 1.0, 1.0), seen) == pytest.approx(seen)
    assert to_whole(box, (0.0, 0.0, 1.0, 1.0)) == pytest.approx(box)


def test_a_patch_counts_by_its_share() -> None:
    mask = patch_mask([rectangle((0.0, 0.0, 0.5, 1.0))], 2, 4)
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
    right_half = patch_mask([rectangle((0.0, 0.0, 0.75, 1.0))], 1, 2, seen=(0.5, 0.0, 1.0, 1.0))
    assert right_half.tolist() == [[1, 0]]
    assert patch_mask([], 3, 3).all()


def test_a_zone_needs_three_corners_within_the_picture() -> None:
    for points in ([(0, 0), (1, 1)], [(0, 0), (1, 1), (0.5, 1.2)]):
        with pytest.raises(ValidationError):
            ZoneSettings(points=points)
    camera = CameraSettings(id="a", source="x", zones=[{"points": [[0, 0], [1, 0], [1, 1]], "scenario": "belt"}])
    assert camera.zones[0].scenario == "belt"
