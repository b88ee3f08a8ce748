"""What a detector's output tensors mean: boxes with scores, in the pixels of the model's square input. Pure.

Three declared forms (`common.manifest.DECODER`), each named after the family that made it common:

- `yolox`: (anchors, 5 + classes) per cell of the strides 8, 16, 32: centre as offset to its cell, log of the size,
  objectness, class scores; both already through the sigmoid (Ge et al. 2021, arXiv:2107.08430).
- `yolov8`: (4 + classes, anchors): centre, size in pixels; class scores through the sigmoid, no objectness.
- `ssd`: `boxes` (anchors, 4) left, top, right, bottom as fractions and `scores` (anchors, 1 + classes) through the
  softmax, background first (Liu et al. 2016, arXiv:1512.02325).

Then non-maximum suppression within each class, and the way back from the letterboxed input to the picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common import manifest as keys
from common.errors import OperatorError

Floats = NDArray[np.float32]

STRIDES: Final = (8, 16, 32)
CANDIDATES_MAX: Final = 1000
"""Boxes that compete in the suppression, the best first: its cost grows with the square."""
BOXES_MAX: Final = 100
"""Boxes of a picture: more are a detector gone wrong, not a scene."""


@dataclass(frozen=True, slots=True)
class Found:
    """Boxes of a picture, best first: `corners` (n, 4) left, top, right, bottom; `scores` (n,); `classes` (n,)."""

    corners: Floats
    scores: Floats
    classes: NDArray[np.intp]

    def pick(self, rows: NDArray[np.intp]) -> "Found":
        """Those rows, in that order."""
        return Found(self.corners[rows], self.scores[rows], self.classes[rows])


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a picture lies in the square input: input = picture * scale + offset, in pixels."""

    scale_x: float
    scale_y: float
    left: float
    top: float
    width: int
    """Of the picture."""
    height: int

    def to_fractions(self, corners: Floats) -> Floats:
        """Corners (n, 4) in input pixels as fractions 0..1 of the picture, clipped to it."""
        scale = np.array([self.scale_x * self.width, self.scale_y * self.height] * 2, np.float32)
        offset = np.array([self.left, self.top] * 2, np.float32)
        fractions: Floats = np.clip((corners - offset) / scale, 0.0, 1.0)
        return fractions


def place(width: int, height: int, side: int, letterbox: str) -> Placement:
    """How a picture is put into a square of `side` pixels.

    Args:
        letterbox: `corner` (keep the shape, at the top left), `centre` (keep the shape, centred) or `stretch`.
    """
    if letterbox == "stretch":
        return Placement(side / width, side / height, 0.0, 0.0, width, height)
    scale = min(side / width, side / height)
    if letterbox == "corner":
        return Placement(scale, scale, 0.0, 0.0, width, height)
    # whole pixels: the picture is drawn there
    left, top = (side - int(width * scale)) // 2, (side - int(height * scale)) // 2
    return Placement(scale, scale, float(left), float(top), width, height)


def decode(form: str, outputs: Mapping[str, Floats], side: int, score_min: float) -> Found:
    """Every box of at least this score, at most `CANDIDATES_MAX`, best first.

    Args:
        form: `yolox`, `yolov8` or `ssd`.
        outputs: the model's outputs by name, without the batch axis.

    Raises:
        OperatorError: no such form.
    """
    if form == "yolox":
        found = _yolox(outputs[keys.DETECTIONS], side, score_min)
    elif form == "yolov8":
        found = _yolov8(outputs[keys.DETECTIONS], score_min)
    elif form == "ssd":
        found = _ssd(outputs[keys.BOXES], outputs[keys.SCORES], side, score_min)
    else:
        raise OperatorError(f"{form!r} is no decoder", f"There are {', '.join(keys.DECODERS)}.")
    found = found.pick(np.flatnonzero(np.isfinite(found.corners).all(axis=1)))
    return found.pick(np.argsort(-found.scores, kind="stable")[:CANDIDATES_MAX])


def check_shapes(form: str, shapes: Mapping[str, Sequence[int]], side: int, classes: int) -> None:
    """Outputs are those of the form, with as many classes as there are names: `decode` takes that for granted.

    Args:
        shapes: of the model's outputs by name, without the batch axis.

    Raises:
        OperatorError: says which output has which shape, and what it should be.
    """
    if form == "ssd":
        count = shapes[keys.BOXES][0] if shapes[keys.BOXES] else 0
        wanted: dict[str, tuple[int, ...]] = {keys.BOXES: (count, 4), keys.SCORES: (count, 1 + classes)}
    elif form == "yolox":
        wanted = {keys.DETECTIONS: (sum((side // stride) ** 2 for stride in STRIDES), 5 + classes)}
    else:  # how many anchors is the model's own affair
        wanted = {keys.DETECTIONS: (4 + classes, *shapes[keys.DETECTIONS][1:2])}
    for name, shape in wanted.items():
        if tuple(shapes[name]) != shape or len(shape) != 2:
            raise OperatorError(
                f"output {name} is {list(shapes[name])}; {form} with {classes} classes at {side} pixels has"
                f" {list(shape)}",
                "Give as many class names as the model has, in their order (docs/cloud.md, 'Bring your own detector').",
            )


def suppress(found: Found, overlap_max: float) -> Found:
    """Greedy non-maximum suppression within each class: a box that overlaps a better one by more goes.

    Args:
        found: best first.
        overlap_max: intersection over union.
    """
    kept: list[int] = []
    alive = np.ones(len(found.scores), dtype=bool)
    while alive.any() and len(kept) < BOXES_MAX:
        best = int(alive.argmax())
        kept.append(best)
        rivals = np.flatnonzero(alive & (found.classes == found.classes[best]))
        over = overlaps(found.corners[best], found.corners[rivals]) > overlap_max
        alive[rivals[over]] = False
        alive[best] = False
    return found.pick(np.array(kept, dtype=np.intp))


def overlaps(one: Floats, many: Floats) -> Floats:
    """Intersection over union (n,) of a box (4,) with boxes (n, 4); 0 where both are empty."""
    low, high = np.maximum(one[:2], many[:, :2]), np.minimum(one[2:], many[:, 2:])
    common = np.clip(high - low, 0, None).prod(axis=1)
    whole = np.clip(one[2:] - one[:2], 0, None).prod() + np.clip(many[:, 2:] - many[:, :2], 0, None).prod(axis=1)
    shares: Floats = common / np.maximum(whole - common, np.finfo(np.float32).tiny)
    return shares


def _best_classes(scores: Floats, score_min: float) -> tuple[NDArray[np.intp], Floats, NDArray[np.intp]]:
    """Rows (n, classes) whose best class scores enough: which rows, their scores, their classes."""
    classes = scores.argmax(axis=1)
    best = np.take_along_axis(scores, classes[:, None], axis=1)[:, 0]
    rows = np.flatnonzero(best >= score_min)
    return rows, best[rows], classes[rows]


def _corners(centres: Floats, sizes: Floats) -> Floats:
    corners: Floats = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
    return corners


def _yolox(output: Floats, side: int, score_min: float) -> Found:
    promising = np.flatnonzero(output[:, 4] >= score_min)  # a class score is at most 1
    rows, scores, classes = _best_classes(output[promising, 4:5] * output[promising, 5:], score_min)
    rows = promising[rows]
    cells, strides = _cells(side)
    corners = _corners(
        (output[rows, :2] + cells[rows]) * strides[rows],
        np.exp(np.minimum(output[rows, 2:4], 20.0)) * strides[rows],  # e^20 is over any picture, and no overflow
    )
    return Found(corners, scores, classes)


def _cells(side: int) -> tuple[Floats, Floats]:
    """Column and row (anchors, 2) of each anchor's cell, and its stride (anchors, 1)."""
    grids = [(np.indices((side // stride, side // stride))[::-1].reshape(2, -1).T, stride) for stride in STRIDES]
    cells = np.concatenate([grid for grid, _ in grids]).astype(np.float32)
    strides = np.concatenate([np.full((len(grid), 1), stride, np.float32) for grid, stride in grids])
    return cells, strides


def _yolov8(output: Floats, score_min: float) -> Found:
    rows, scores, classes = _best_classes(output[4:].T, score_min)
    centres, sizes = output[:2, rows].T, output[2:4, rows].T
    return Found(_corners(centres, sizes), scores, classes)


def _ssd(boxes: Floats, scores: Floats, side: int, score_min: float) -> Found:
    rows, best, classes = _best_classes(scores[:, 1:], score_min)
    return Found(boxes[rows] * np.float32(side), best, classes)
