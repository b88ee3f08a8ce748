"""What a detector's numbers mean, held against references that a reader can check by eye."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import manifest as keys
from common.errors import OperatorError
from edge.decoders import BOXES_MAX, CANDIDATES_MAX, Found, decode, overlaps, place, suppress

SIDE = 32  # 16 + 4 + 1 anchors
CLASSES = 3
seeds = st.integers(0, 10_000)
scores_min = st.floats(0.05, 0.9)

Row = tuple[float, int, float, float, float, float]


def rows(found: Found) -> list[Row]:
    """(score, class, left, top, right, bottom), in the order of scores."""
    return sorted(
        (float(score), int(index), *map(float, corners))
        for corners, score, index in zip(found.corners, found.scores, found.classes, strict=True)
    )


def reference_yolox(output: np.ndarray, score_min: float) -> list[Row]:
    found, anchor = [], 0
    for stride in (8, 16, 32):
        for row in range(SIDE // stride):
            for column in range(SIDE // stride):
                x, y, w, h, objectness, *shares = (float(v) for v in output[anchor])
                best = max(range(CLASSES), key=shares.__getitem__)
                score = np.float32(objectness) * np.float32(shares[best])
                if score >= score_min:
                    cx, cy = (x + column) * stride, (y + row) * stride
                    w, h = math.exp(w) * stride, math.exp(h) * stride
                    found.append((float(score), best, cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
                anchor += 1
    return found


def reference_yolov8(output: np.ndarray, score_min: float) -> list[Row]:
    found = []
    for anchor in range(output.shape[1]):
        cx, cy, w, h, *shares = (float(v) for v in output[:, anchor])
        best = max(range(CLASSES), key=shares.__getitem__)
        if shares[best] >= score_min:
            found.append((shares[best], best, cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
    return found


def reference_ssd(boxes: np.ndarray, scores: np.ndarray, score_min: float) -> list[Row]:
    found = []
    for corners, shares in zip(boxes.tolist(), scores.tolist(), strict=True):
        best = max(range(1, CLASSES + 1), key=shares.__getitem__)
        if shares[best] >= score_min:
            found.append((shares[best], best - 1, *(edge * SIDE for edge in corners)))
    return found


def assert_same(found: Found, wanted: list[Row]) -> None:
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True), "best first"
    assert len(found.scores) == len(wanted)
    for ours, theirs in zip(rows(found), sorted(wanted), strict=True):
        assert ours == pytest.approx(theirs, abs=0.02)


@given(seeds, scores_min)
def test_yolox_is_decoded_cell_by_cell(seed: int, score_min: float) -> None:
    output = np.random.default_rng(seed).uniform(0, 1, (21, 5 + CLASSES)).astype(np.float32)
    assert_same(decode("yolox", {keys.DETECTIONS: output}, SIDE, score_min), reference_yolox(output, score_min))


@given(seeds, scores_min)
def test_yolov8_is_decoded_anchor_by_anchor(seed: int, score_min: float) -> None:
    output = np.random.default_rng(seed).uniform(0, 1, (4 + CLASSES, 21)).astype(np.float32)
    output[:4] *= SIDE
    assert_same(decode("yolov8", {keys.DETECTIONS: output}, SIDE, score_min), reference_yolov8(output, score_min))


@given(seeds, scores_min)
def test_ssd_leaves_the_background_out(seed: int, score_min: float) -> None:
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0, 1, (30, 4)).astype(np.float32)
    scores = rng.dirichlet(np.ones(CLASSES + 1), 30).astype(np.float32)
    found = decode("ssd", {keys.BOXES: boxes, keys.SCORES: scores}, SIDE, score_min)
    assert_same(found, reference_ssd(boxes, scores, score_min))


def test_what_is_no_number_is_no_box() -> None:
    output = np.full((21, 5 + CLASSES), np.nan, np.float32)
    output[3] = [np.inf, 0, 0, 0, 1, 1, 0, 0]
    output[4] = [0, 0, 500, 0, 1, 1, 0, 0]  # e^500
    found = decode("yolox", {keys.DETECTIONS: output}, SIDE, 0.5)
    assert np.isfinite(found.corners).all()
    assert len(found.scores) == 1


def test_an_unknown_decoder_is_named_with_the_known() -> None:
    with pytest.raises(OperatorError, match="'detr'") as caught:
        decode("detr", {}, SIDE, 0.5)
    assert "yolov8" in caught.value.hint


def reference_overlap(a: np.ndarray, b: np.ndarray) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = sum(max(0.0, c[2] - c[0]) * max(0.0, c[3] - c[1]) for c in (a, b))
    return width * height / (area - width * height) if area > width * height else 0.0


def reference_suppress(found: Found, overlap_max: float) -> list[int]:
    kept: list[int] = []
    for index in range(len(found.scores)):
        rivals = [other for other in kept if found.classes[other] == found.classes[index]]
        if all(reference_overlap(found.corners[o], found.corners[index]) <= overlap_max for o in rivals):
            kept.append(index)
    return kept


@given(seeds, st.integers(0, 60), st.floats(0.1, 0.9))
def test_suppression_keeps_what_the_plain_loop_keeps(seed: int, count: int, overlap_max: float) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 60, (count, 2))
    corners = np.concatenate([low, low + rng.uniform(0, 40, (count, 2))], axis=1).astype(np.float32)
    scores = np.sort(rng.uniform(0, 1, count).astype(np.float32))[::-1]
    found = Found(corners, scores, rng.integers(0, 3, count))
    kept = suppress(found, overlap_max)
    np.testing.assert_array_equal(kept.corners, corners[reference_suppress(found, overlap_max)])
    for index in range(count):
        expected = [reference_overlap(corners[index], other) for other in corners]
        assert overlaps(corners[index], corners).tolist() == pytest.approx(expected, abs=1e-4)


def test_a_detector_gone_wrong_is_bounded() -> None:
    output = np.ones((4 + CLASSES, 5000), np.float32)
    output[0] = np.arange(5000) * 10
    found = decode("yolov8", {keys.DETECTIONS: output}, SIDE, 0.5)
    assert len(found.scores) == CANDIDATES_MAX
    assert len(suppress(found, 0.5).scores) == BOXES_MAX


@given(
    st.integers(16, 2000),
    st.integers(16, 2000),
    st.sampled_from(keys.LETTERBOXES),
    st.tuples(*[st.floats(0, 1)] * 4),
)
def test_a_box_comes_back_from_the_letterbox_where_it_was(
    width: int, height: int, letterbox: str, box: tuple[float, float, float, float]
) -> None:
    placement = place(width, height, 416, letterbox)
    scale = np.array([placement.scale_x * width, placement.scale_y * height] * 2)
    there = np.array(box) * scale + [placement.left, placement.top] * 2
    assert (there >= -1e-6).all()
    assert (there <= 416 + 1e-3).all(), "within the square"
    back = placement.to_fractions(there[None].astype(np.float32))[0]
    assert back == pytest.approx(box, abs=1e-3)
    if letterbox != "stretch":
        assert placement.scale_x == placement.scale_y, "the shape is kept"
