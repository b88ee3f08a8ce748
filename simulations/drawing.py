"""Everything on and around the belt as pictures: coal, rubber, steelwork, lamp light. Objects are in `objects`.

Coal is the gravel photograph that scikit-image bundles (CC0). All of it is drawn once per camera; `belts` only
shifts and blends per frame.
"""

from functools import cache, lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from simulations.looks import Look

Picture = NDArray[np.uint8]
Plane = NDArray[np.float32]


_OVERLAP_PX = 56
_PITCH_PX = 512 - _OVERLAP_PX


@cache
def gravel() -> Plane:
    """The texture, quilted from turned copies so that it is seamless: float32 (912, 912), 0..1.

    Overlaps are blended so that the variance stays (a plain cross-fade would show as a pale seam).
    """
    from skimage.data import gravel as photograph

    patch = np.asarray(photograph(), dtype=np.float32) / 255
    mean = float(patch.mean())
    ramp = np.clip((np.minimum(np.arange(512), np.arange(512)[::-1]) + 0.5) / _OVERLAP_PX, 0, 1)
    weight = np.outer(ramp, ramp).astype(np.float32)
    side = 2 * _PITCH_PX
    total, power = np.zeros((side, side), np.float32), np.zeros((side, side), np.float32)
    for number, turned in enumerate((patch, np.rot90(patch), patch[::-1, ::-1], np.rot90(patch, 3))):
        rows = (np.arange(512) + number // 2 * _PITCH_PX) % side
        columns = (np.arange(512) + number % 2 * _PITCH_PX) % side
        total[np.ix_(rows, columns)] += weight * (turned - mean)
        power[np.ix_(rows, columns)] += weight**2
    quilt: Plane = np.clip(total / np.sqrt(power) + mean, 0, 1).astype(np.float32)
    return quilt


@lru_cache(maxsize=8)
def _scaled_gravel(side: int) -> Plane:
    shrinks = side < gravel().shape[0]
    scaled = cv2.resize(gravel(), (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    clipped: Plane = np.clip(scaled, 0, 1).astype(np.float32)
    return clipped


def stones(rng: np.random.Generator, height: int, width: int, scale: float) -> Plane:
    """A random piece of gravel: float32 (height, width), 0..1, seamless in y when height is `period_px(scale)`."""
    side = period_px(scale)
    y, x = rng.integers(0, side, 2)
    rows, columns = (np.arange(height) + y) % side, (np.arange(width) + x) % side
    piece: Plane = _scaled_gravel(side)[rows[:, None], columns[None]]
    return piece


def period_px(scale: float) -> int:
    """Length after which scaled gravel repeats."""
    return round(2 * _PITCH_PX * scale)


def belt_tile(look: Look, rng: np.random.Generator, width: int, scale: float) -> Picture:
    """One period of the loaded belt, seamless in y: uint8 (length, width, 3) BGR.

    Args:
        width: of the belt in px.
        scale: px of this picture per px of a picture 480 px wide.
    """
    grain = 0.62 * look.grain * scale
    length = period_px(grain)
    coal = 0.75 * stones(rng, length, width, grain) + 0.25 * stones(rng, length, width, grain)
    phase = 2 * np.pi * np.arange(length, dtype=np.float32) / length
    waves = rng.uniform(0, 2 * np.pi, 4)
    swell = 1 + 0.12 * np.sin(phase + waves[0]) + 0.08 * np.sin(3 * phase + waves[1])
    value = 62 + (coal - 0.5) * 190 * look.contrast
    value *= swell[:, None].astype(np.float32)

    rubber = np.full((length, width), 46, np.float32) + rng.normal(0, 4, width).astype(np.float32)
    rubber += 8 * (stones(rng, length, width, grain) - 0.5)
    reach = width * (0.40 + 0.04 * np.sin(phase + waves[2]) + 0.03 * np.sin(2 * phase + waves[3]))
    across = np.abs(np.arange(width, dtype=np.float32) - width / 2)
    edge = reach[:, None] + (coal - 0.5) * 50 * scale * look.grain - across[None]
    for _ in range(look.gaps):
        y, x = rng.uniform(0, length), rng.uniform(-0.3, 0.3) * width
        reach_y, reach_x = rng.uniform(12, 40, 2) * scale
        along = ((np.arange(length) - y + length / 2) % length - length / 2) / reach_y
        aside = (np.arange(width) - width / 2 - x) / reach_x
        edge -= (150 * scale * np.exp(-(along[:, None] ** 2) - aside[None] ** 2)).astype(np.float32)
    loaded = np.clip(edge / (5 * scale) + 0.5, 0, 1)
    for _ in range(look.splices):
        _join(rubber, loaded, rng, scale)
    grey = value * loaded + rubber * (1 - loaded)
    colour = grey[..., None] * np.array([1.02, 1.0, 0.98], np.float32)
    tile: Picture = np.clip(colour, 4, 255).astype(np.uint8)
    return tile


def _join(rubber: Plane, loaded: Plane, rng: np.random.Generator, scale: float) -> None:
    """A joint or repair: a band of clips across the belt, scraped clear of coal."""
    length, width = rubber.shape
    band = round(rng.uniform(8, 16) * scale)
    top = int(rng.integers(0, length - 3 * band))
    left, right = (round(share * width) for share in (rng.uniform(0.05, 0.3), rng.uniform(0.7, 0.95)))
    slant = int(rng.integers(-2, 3)) * band
    shape = np.array([[left, top], [right, top + slant], [right, top + slant + band], [left, top + band]])
    mask = np.zeros(rubber.shape, np.uint8)
    cv2.fillPoly(mask, [shape], 255, cv2.LINE_AA)
    cover = mask.astype(np.float32) / 255
    clips = 60 + 70 * (np.arange(width) // max(2, round(5 * scale)) % 2)
    rubber[:] = rubber * (1 - cover) + clips[None] * cover
    loaded *= 1 - 0.85 * cover


def steelwork(rng: np.random.Generator, height: int, width: int, belt: slice, scale: float) -> Picture:
    """What stands still: floor, stringers and roller ends on both sides of the belt. uint8 (height, width, 3) BGR."""
    floor = 30 + 26 * (stones(rng, height, width, 0.4 * scale) - 0.5)
    canvas = np.repeat(np.clip(floor, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    beam = round(16 * scale)
    for left in (belt.start - beam - round(4 * scale), belt.stop + round(4 * scale)):
        cv2.rectangle(canvas, (left, 0), (left + beam, height), (78, 84, 88), -1)
        cv2.rectangle(canvas, (left, 0), (left + round(3 * scale), height), (112, 116, 118), -1)
        pitch = round(92 * scale)
        for y in range(round(30 * scale), height, pitch):
            cv2.rectangle(
                canvas,
                (left - round(8 * scale), y),
                (left + beam + round(6 * scale), y + round(14 * scale)),
                (60, 62, 92),
                -1,
            )
            cv2.line(
                canvas,
                (left - round(8 * scale), y + 2),
                (left + beam, y + 2),
                (118, 120, 150),
                2,
                cv2.LINE_AA,
            )
    return canvas


def light_map(look: Look, lamp: tuple[float, float], height: int, width: int) -> Picture:
    """Lamp, tint and what haze leaves of them, as factors of 1/128: uint8 (height, width, 3) BGR."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    distance = ((x - lamp[0] * width) ** 2 + (y - lamp[1] * height) ** 2) / (look.lamp_reach * width) ** 2
    lit = look.light * (look.ambient + (1 - look.ambient) * np.exp(-distance)) * (1 - look.haze)
    factors: Picture = np.clip(lit[..., None] * np.asarray(look.tint, np.float32) * 128, 0, 255).astype(np.uint8)
    return factors


def haze_map(look: Look, rng: np.random.Generator, height: int, width: int) -> Picture:
    """Light that dust in the air throws back, in slow billows: uint8 (height, width, 3) BGR."""
    coarse = rng.uniform(0.7, 1.15, (4, 6)).astype(np.float32)
    billows = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    back = look.haze * billows[..., None] * np.asarray(look.haze_colour, np.float32)
    light: Picture = np.clip(back, 0, 255).astype(np.uint8)
    return light


def noise_tile(look: Look, rng: np.random.Generator, height: int, width: int) -> tuple[Picture, int]:
    """Sensor noise with its mean: cut a window anywhere, add it, subtract the mean. uint8 (height, width, 3)."""
    mean = round(3 * look.noise)
    grain = rng.normal(mean, look.noise, (height, width, 1)) + rng.normal(0, look.noise / 3, (height, width, 3))
    return np.clip(grain, 0, 255).astype(np.uint8), mean
