"""A sheet to draw one object on, and the strokes to draw it with; a finished sheet is a sprite that blends fast."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from simulations.drawing import Picture, Plane

FINE = 2  # drawn at twice the size and shrunk, so that edges are smooth


@dataclass(frozen=True, slots=True)
class Sprite:
    """An object ready to be laid over the belt: roi · keep/255 + add."""

    keep: Picture
    """uint8 (h, w, 3): share of the belt that stays."""
    add: Picture
    """uint8 (h, w, 3) BGR."""
    outline: NDArray[np.float32]
    """(n, 2) x, y points spread over the object, from the sprite's upper left corner."""

    @property
    def height(self) -> int:
        return int(self.keep.shape[0])

    @property
    def width(self) -> int:
        return int(self.keep.shape[1])


@dataclass(frozen=True, slots=True)
class Sheet:
    """A square to draw on: colour float32 (s, s, 3) BGR times cover, cover and shadow float32 (s, s) 0..1."""

    colour: Plane
    cover: Plane
    shadow: Plane
    texture: Plane
    unit: float
    """Pixels of the sheet per pixel of a picture 480 px wide, times the zoom of the site."""

    @property
    def middle(self) -> float:
        return float(self.cover.shape[0]) / 2


def paint(sheet: Sheet, mask: Plane, colour: NDArray[np.float32]) -> None:
    """Lay a colour (3,) or (s, s, 3) over the sheet where the mask says."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    m = mask[part]
    laid = colour[part] if colour.ndim == 3 else colour
    sheet.colour[part] += (laid - sheet.colour[part]) * m[..., None]
    sheet.cover[part] += (1 - sheet.cover[part]) * m


def fill(sheet: Sheet, points: NDArray[np.floating]) -> Plane:
    """Mask of a polygon."""
    mask = np.zeros(sheet.cover.shape, np.uint8)
    cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 255, cv2.LINE_AA)
    return mask.astype(np.float32) / np.float32(255)


def stroke(sheet: Sheet, lines: Sequence[NDArray[np.floating]], width: float) -> Plane:
    """Mask of lines, each (n, 2)."""
    mask = np.zeros(sheet.cover.shape, np.uint8)
    points = [np.round(line).astype(np.int32) for line in lines]
    cv2.polylines(mask, points, False, 255, max(1, round(width)), cv2.LINE_AA)
    return mask.astype(np.float32) / np.float32(255)


def cast_shadow(sheet: Sheet, mask: Plane, reach: float) -> None:
    """Darken the belt to the lower right of what the mask shows, `reach` px away."""
    moved = np.roll(mask, (round(reach), round(reach)), (0, 1))
    np.maximum(sheet.shadow, cv2.GaussianBlur(moved, (0, 0), reach / 2), out=sheet.shadow)


def bury(sheet: Sheet, share: float) -> None:
    """Coal lies on the object here and there."""
    buried = np.clip((sheet.texture - (1 - share)) * 8, 0, 1)
    sheet.cover[:] *= 1 - buried
    sheet.colour[:] *= (1 - buried)[..., None]


def soil(sheet: Sheet, grime: float, rng: np.random.Generator) -> None:
    """Fines stick to everything on the belt, more in some places than in others."""
    side = sheet.cover.shape[0]
    coarse = rng.uniform(-0.35, 0.35, (8, 8)).astype(np.float32)
    share = np.clip(grime + cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), 0, 0.92)[..., None]
    coal = (62 + 120 * (sheet.texture - 0.5))[..., None] * sheet.cover[..., None]
    sheet.colour[:] = sheet.colour * (1 - share) + coal * share


def finish(sheet: Sheet) -> Sprite:
    """Shrink, cut away the empty border, and turn colours and covers into what blends fast."""
    small = sheet.cover.shape[0] // FINE
    cover, shadow = (
        cv2.resize(part, (small, small), interpolation=cv2.INTER_AREA) for part in (sheet.cover, sheet.shadow)
    )
    colour = cv2.resize(sheet.colour, (small, small), interpolation=cv2.INTER_AREA)
    rows, columns = (np.flatnonzero(np.maximum(cover, shadow).max(axis=axis) > 0.02) for axis in (1, 0))
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    cover, shadow, colour = cover[window], shadow[window], colour[window]
    keep = (1 - cover) * (1 - 0.75 * shadow)
    y, x = np.nonzero(cover > 0.5 * cover.max())
    pick = np.linspace(0, len(y) - 1, 60).astype(int)
    return Sprite(
        np.repeat((keep * 255).astype(np.uint8)[..., None], 3, axis=2),
        np.clip(colour, 0, 255).astype(np.uint8),
        np.stack([x[pick], y[pick]], axis=1).astype(np.float32),
    )


def bgr(blue: float, green: float, red: float) -> Plane:
    """A colour as float32 (3,) BGR."""
    return np.array([blue, green, red], np.float32)
