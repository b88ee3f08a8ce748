"""Parts of a camera's picture that count: polygons per scenario. Pure.

A zone is a polygon in fractions 0..1 of the whole picture. What a box or a patch is judged by is the share of it that
lies in the zones of its scenario; a scenario without a zone counts everywhere. The rectangle `zone` of a camera is
another thing: it is what the model gets to see at all, and positions in it are brought back to the whole picture here.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float]
Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom."""

WHOLE: Final[Rectangle] = (0.0, 0.0, 1.0, 1.0)
SAMPLES: Final = 12
"""Points a side at which a rectangle is tried against a polygon: a share is right to a few per cent."""


def contains(polygon: Sequence[Point], x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which of the points lie in a polygon (even-odd rule, so a star has a hole)."""
    inside = np.zeros(x.shape, dtype=bool)
    before = polygon[-1]
    for corner in polygon:
        (x0, y0), (x1, y1) = before, corner
        if y0 != y1:
            crosses = (y0 > y) != (y1 > y)
            inside ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
        before = corner
    return inside


def share_inside(polygons: Sequence[Sequence[Point]], box: Rectangle) -> float:
    """Which share of a box's area lies in any of the polygons, 0..1."""
    left, top, right, bottom = box
    steps = (np.arange(SAMPLES) + 0.5) / SAMPLES
    x, y = np.meshgrid(left + steps * (right - left), top + steps * (bottom - top))
    covered = np.zeros(x.shape, dtype=bool)
    for polygon in polygons:
        covered |= contains(polygon, x, y)
    return float(covered.mean())


def to_whole(box: Rectangle, seen: Rectangle) -> Rectangle:
    """A box in fractions of the part that was looked at, in fractions of the whole picture."""
    left, top, right, bottom = seen
    width, height = right - left, bottom - top
    return (left + box[0] * width, top + box[1] * height, left + box[2] * width, top + box[3] * height)


def patch_mask(
    polygons: Sequence[Sequence[Point]], rows: int, columns: int, seen: Rectangle = WHOLE
) -> NDArray[np.floating]:
    """Share of each patch (rows, columns) of what was looked at that lies in the polygons; all ones without any."""
    if not polygons:
        return np.ones((rows, columns))
    return np.array(
        [
            [
                share_inside(
                    polygons,
                    to_whole((column / columns, row / rows, (column + 1) / columns, (row + 1) / rows), seen),
                )
                for column in range(columns)
            ]
            for row in range(rows)
        ]
    )
