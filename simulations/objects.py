"""What comes along on the belt: rods, wood, lumps, tears, water. Each is drawn once, then moves with the belt."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from simulations.drawing import stones
from simulations.looks import Look
from simulations.sheet import FINE, Sheet, Sprite, bgr, bury, cast_shadow, fill, finish, paint, soil, stroke


def draw_object(kind: str, look: Look, rng: np.random.Generator, scale: float) -> Sprite:
    """Draw one object; every draw of the generator gives another of its kind.

    Args:
        kind: one of `looks.EVENTS`.
        scale: px of the picture per px of a picture 480 px wide.
    """
    unit = scale * look.zoom * FINE
    side = round(170 * unit) // FINE * FINE
    texture = stones(rng, side, side, 0.5 * scale * FINE)
    sheet = Sheet(
        np.zeros((side, side, 3), np.float32),
        np.zeros((side, side), np.float32),
        np.zeros((side, side), np.float32),
        texture,
        unit,
    )
    _DRAW[kind](sheet, rng)
    soil(sheet, look.grime, rng)
    return finish(sheet)


def _axis(rng: np.random.Generator, upright_deg: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A direction and its normal; within `upright_deg` of across the belt."""
    angle = np.radians(rng.uniform(-upright_deg, upright_deg))
    along = np.array([np.cos(angle), np.sin(angle)])
    return along, np.array([-along[1], along[0]])


def _rod(sheet: Sheet, rng: np.random.Generator) -> None:
    """A roof bolt: ribbed bar, plate and nut at one end."""
    along, normal = _axis(rng, 70)
    half, radius, bend = (
        rng.uniform(85, 105) * sheet.unit,
        rng.uniform(5, 6.5) * sheet.unit,
        rng.uniform(-10, 10),
    )
    t = np.linspace(-1, 1, 40)[:, None]
    line = sheet.middle + t * half * along + (1 - t**2) * bend * sheet.unit * normal
    body = stroke(sheet, [line], 2 * radius)
    cast_shadow(sheet, body, 6 * sheet.unit)
    rust = np.array([72, 98, 138], np.float32) * rng.uniform(0.8, 1.1)
    paint(sheet, body, rust * (0.7 + 0.6 * sheet.texture[..., None]))
    paint(sheet, stroke(sheet, [line - normal * radius * 0.35], radius * 0.5), bgr(190, 200, 212))
    ribs = [np.stack([rib - normal * radius, rib + normal * radius]) for rib in line[2::3]]
    paint(sheet, stroke(sheet, ribs, 1.6 * sheet.unit), bgr(44, 56, 76))
    plate = line[-4] + np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 11 * sheet.unit @ np.stack([along, normal])
    mask = fill(sheet, plate)
    cast_shadow(sheet, mask, 5 * sheet.unit)
    paint(sheet, mask, bgr(118, 126, 134))
    paint(sheet, stroke(sheet, [line[[-6, -1]]], 13 * sheet.unit), bgr(176, 184, 190))
    bury(sheet, 0.12)


def _wood(sheet: Sheet, rng: np.random.Generator) -> None:
    """A plank or prop with grain and sawn ends."""
    along, normal = _axis(rng, 60)
    half, broad = rng.uniform(48, 70) * sheet.unit, rng.uniform(9, 16) * sheet.unit
    corners = np.array([[-1, -1], [1, -0.9], [1.0, 0.9], [-1, 1]]) * [half, broad]
    outline = sheet.middle + corners @ np.stack([along, normal])
    body = fill(sheet, outline)
    cast_shadow(sheet, body, 8 * sheet.unit)
    base = np.array([92, 142, 188], np.float32) * rng.uniform(0.8, 1.1)
    paint(sheet, body, base * (0.85 + 0.25 * sheet.texture[..., None]))
    t = np.linspace(-0.98, 0.98, 30)[:, None]
    waves = np.cumsum(rng.normal(0, 0.5, (7, 30)), axis=1) * sheet.unit
    veins = [
        sheet.middle + t * half * along + (offset * broad + wave)[:, None] * normal
        for offset, wave in zip(np.linspace(-0.8, 0.8, 7), waves, strict=True)
    ]
    paint(sheet, stroke(sheet, veins, 1.7 * sheet.unit) * body, base * 0.62)
    across = np.array([[-0.85], [0.85]]) * broad * normal
    ends = [sheet.middle + end * half * along + across for end in (-0.97, 0.97)]
    paint(sheet, stroke(sheet, ends, 5 * sheet.unit) * body, base * 1.25)
    bury(sheet, 0.12)


def _lump(sheet: Sheet, rng: np.random.Generator) -> None:
    """A boulder of rock with faces that catch the light differently."""
    corners = 9
    angle = np.sort(rng.uniform(0, 2 * np.pi / corners, corners) + np.arange(corners) * 2 * np.pi / corners)
    radius = rng.uniform(0.82, 1.12, corners) * rng.uniform(32, 46) * sheet.unit
    rim = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None] + sheet.middle
    body = fill(sheet, rim)
    cast_shadow(sheet, body, 10 * sheet.unit)
    top = sheet.middle + (rim - sheet.middle) * 0.45 + np.array([-6.0, -7.0]) * sheet.unit
    base = np.array([112, 116, 120], np.float32) * rng.uniform(0.85, 1.1)
    rough = 0.75 + 0.5 * cv2.GaussianBlur(sheet.texture, (0, 0), 1.5 * sheet.unit)[..., None]
    for k in range(corners):
        face = np.stack([rim[k], rim[(k + 1) % corners], top[(k + 1) % corners], top[k]])
        direction = face.mean(axis=0) - sheet.middle
        lit = 0.72 - 0.38 * float(direction @ np.array([0.6, 0.8])) / float(np.linalg.norm(direction))
        paint(sheet, fill(sheet, face), base * lit * rough)
    paint(sheet, fill(sheet, top), base * 1.2 * rough)


def _tear(sheet: Sheet, rng: np.random.Generator) -> None:
    """A rip along the belt: a black gap with frayed pale cords, the coal fallen away beside it."""
    n = 26
    y = np.linspace(-1, 1, n) * rng.uniform(52, 75) * sheet.unit
    x = np.cumsum(rng.normal(0, 3.2, n)) * sheet.unit
    spine = np.stack([x - x.mean(), y], axis=1) + sheet.middle
    bare = cv2.GaussianBlur(stroke(sheet, [spine], 40 * sheet.unit), (0, 0), 4 * sheet.unit)
    bare = np.clip((bare - 0.35 + 0.5 * (sheet.texture - 0.5)) * 5, 0, 1)
    paint(sheet, bare, 50 + 14 * (sheet.texture[..., None] - 0.5) * np.ones(3, np.float32))
    gape = (np.sin(np.linspace(0.15, np.pi - 0.15, n)) * rng.uniform(5, 9) * sheet.unit)[:, None]
    side = np.array([1.0, 0.0])
    lips = np.vstack([spine - gape * side, (spine + gape * side)[::-1]])
    paint(sheet, stroke(sheet, [np.vstack([lips, lips[:1]])], 7 * sheet.unit), bgr(132, 138, 142))
    paint(sheet, fill(sheet, lips), bgr(5, 5, 6))
    cords = []
    for sign in (-1.0, 1.0):
        roots = (spine + sign * gape * side)[2:-2]
        length = gape[2:-2] * rng.uniform(0.2, 0.9, (n - 4, 1))
        tips = roots - sign * side * length + rng.normal(0, 3, (n - 4, 2)) * sheet.unit
        cords += list(np.stack([roots, tips], axis=1))
    paint(sheet, stroke(sheet, cords, 1.8 * sheet.unit), bgr(168, 176, 180))


def _water(sheet: Sheet, rng: np.random.Generator) -> None:
    """A puddle: dark smooth water that mirrors the sky of lamps."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    waves = rng.uniform(0, 2 * np.pi, 3)
    wobble = (
        1
        + 0.14 * np.sin(2 * angle + waves[0])
        + 0.09 * np.sin(3 * angle + waves[1])
        + 0.05 * np.sin(5 * angle + waves[2])
    )
    size = np.array([rng.uniform(50, 72), rng.uniform(30, 44)]) * sheet.unit
    rim = np.stack([np.cos(angle), np.sin(angle)], axis=1) * size * wobble[:, None] + sheet.middle
    body = cv2.GaussianBlur(fill(sheet, rim), (0, 0), 2 * sheet.unit)
    body = np.clip((body - 0.3 + 0.35 * (sheet.texture - 0.5)) * 4, 0, 1)
    y = np.arange(len(body), dtype=np.float32)[:, None] / sheet.unit
    ripple = np.sin(y / 3.2 + 3 * np.sin(np.arange(len(body), dtype=np.float32)[None] / sheet.unit / 23 + waves[0]))
    mirror = (88 + 22 * ripple)[..., None] * np.array([1.12, 1.04, 0.92], np.float32)
    paint(sheet, body * 0.94, mirror)
    for _ in range(3):
        spot = sheet.middle + rng.uniform(-0.45, 0.45, 2) * size
        glint = fill(sheet, spot + np.stack([np.cos(angle) * 16, np.sin(angle) * 5], axis=1) * sheet.unit)
        glint = cv2.GaussianBlur(glint, (0, 0), 2.5 * sheet.unit) * body * np.clip(0.7 + 0.5 * ripple, 0, 1)
        paint(sheet, glint.astype(np.float32), bgr(246, 246, 240))


_DRAW: dict[str, Callable[[Sheet, np.random.Generator], None]] = {
    "anchor-rod": _rod,
    "wood": _wood,
    "large-lump": _lump,
    "tear": _tear,
    "water": _water,
}
