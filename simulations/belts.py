"""A coal-belt camera that needs no mine: every frame and its truth follow from (site, camera, seed, frame number).

What a site looks like is in `looks`, how things are drawn in `drawing` and `objects`, clips are written by `clips`.

Events come one at a time, so a frame never shows two. The truth of a frame is the class whose object lies well inside
the picture; None where an object is only partly in it (nobody should be asked about such a frame); else normal.
"""

import zlib
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from common.errors import OperatorError
from simulations.drawing import Picture, belt_tile, haze_map, light_map, noise_tile, steelwork
from simulations.looks import EVENTS, NORMAL, SCENARIO_OF, SCENARIOS, SITES, Look
from simulations.objects import draw_object
from simulations.sheet import Sprite

__all__ = ["SCENARIOS", "SITES", "BeltCamera", "Look", "Truth", "still_frames"]

Truth = dict[str, str | None]
"""Scenario to class; None: ambiguous, part of the object is out of the picture."""

INSIDE_MIN = 0.8
"""Share of an object that must be in the picture for its class to be the truth."""


@dataclass(frozen=True, slots=True)
class _Event:
    kind: str
    sprite: Sprite
    enters_at: float
    """Frame number at which its lower edge reaches the upper edge of the canvas."""
    x: float
    """Left edge on the canvas, px."""


class BeltCamera:
    """One camera of one site.

    Args:
        site: a key of `looks.SITES`.
        camera: its number within the site; each hangs a little differently.
        seed: another seed gives other coal and other events under the same look.
        size: width and height of the picture in px.
        events_per_s: how often something comes along (bounded by the time an object needs to pass).
    """

    def __init__(
        self,
        site: str,
        camera: int = 0,
        seed: int = 0,
        size: tuple[int, int] = (480, 270),
        fps: float = 10.0,
        events_per_s: float = 0.15,
    ) -> None:
        if site not in SITES:
            raise OperatorError(f"there is no simulated site {site!r}", f"Choose one of {', '.join(SITES)}.")
        self.site, self.camera, self.seed, self.size, self.fps = site, camera, seed, size, fps
        self.look = SITES[site]
        self._scale = size[0] / 480
        self._fixed = np.random.default_rng([zlib.crc32(site.encode()), camera])  # what another seed does not change
        self._mount()
        self._step_px = self.look.speed_px_s * self._scale / fps
        passing_s = (self._canvas_size[1] + 170 * self._scale * self.look.zoom) / (self._step_px * fps)
        self._slot_frames = max(1 / events_per_s, passing_s) * fps
        self._slack_frames = self._slot_frames - passing_s * fps
        self._sprite_of_slot = lru_cache(maxsize=4)(self._draw_event)
        self._draw_surroundings()

    def frame(self, index: int) -> tuple[Picture, Truth]:
        """The picture uint8 (H, W, 3) BGR at a frame number and what it shows."""
        event = self._sprite_of_slot(int(index // self._slot_frames))
        rng = self._rng("noise", index)
        if event is None:
            return self._render(index * self._step_px, None, 0, 0, rng), truth_of(None, 0.0)
        y = (index - event.enters_at) * self._step_px - event.sprite.height
        picture = self._render(index * self._step_px, event.sprite, event.x, y, rng)
        return picture, truth_of(event.kind, self._share_inside(event.sprite, event.x, y))

    def still(self, number: int) -> tuple[Picture, Truth]:
        """A picture with no clip around it: kinds in turn (normal, then each event), the object well inside."""
        rng = self._rng("still", number)
        kind = (NORMAL, *EVENTS)[number % (1 + len(EVENTS))]
        offset = float(rng.uniform(0, 1e5))
        if kind == NORMAL:
            return self._render(offset, None, 0, 0, rng), truth_of(None, 0.0)
        sprite = draw_object(kind, self.look, rng, self._scale)
        x = self._place(sprite, rng)
        for _ in range(100):
            y = float(rng.uniform(-sprite.height, self._canvas_size[1]))
            if self._share_inside(sprite, x, y) >= INSIDE_MIN:
                break
        return self._render(offset, sprite, x, y, rng), truth_of(kind, self._share_inside(sprite, x, y))

    def _rng(self, purpose: str, number: int = 0) -> np.random.Generator:
        words = [zlib.crc32(f"{self.site}/{purpose}".encode()), self.camera, self.seed, number]
        return np.random.default_rng(words)

    def _draw_surroundings(self) -> None:
        """Everything that does not change from frame to frame."""
        look, (width, height), (canvas_width, canvas_height) = self.look, self.size, self._canvas_size
        fixed = np.random.default_rng([zlib.crc32(self.site.encode()), self.camera])  # the mounting: not of the seed
        belt_width = round(look.belt_share * width)
        left = (canvas_width - belt_width) // 2
        self._belt = slice(left, left + belt_width)
        self._tile = belt_tile(look, self._rng("coal"), belt_width, self._scale)
        self._ground = steelwork(fixed, canvas_height, canvas_width, self._belt, self._scale)
        lamp = (
            look.lamp[0] + float(fixed.uniform(-0.08, 0.08)),
            look.lamp[1] + float(fixed.uniform(-0.08, 0.08)),
        )
        self._light = light_map(look, lamp, height, width)
        grey = np.tile(np.array([0.114, 0.587, 0.299]), (3, 1))
        self._colours = look.saturation * np.eye(3) + (1 - look.saturation) * grey
        self._haze = haze_map(look, fixed, height, width) if look.haze else None
        self._noise, self._noise_mean = noise_tile(look, self._rng("sensor"), height + 128, width + 128)

    def _mount(self) -> None:
        """Hang the camera: the homography from canvas to picture, and a canvas large enough for a turned view."""
        look, (width, height) = self.look, self.size
        half = np.array([width, height]) / 2
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half / self._fixed.uniform(0.96, 1.04)
        corners[:2, 0] *= 1 + look.taper
        turn = np.radians(look.angle_deg + self._fixed.uniform(-3, 3))
        turned = corners @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        reach = np.ceil(np.abs(turned).max(axis=0)).astype(int) + 2
        self._canvas_size = int(2 * reach[0]), int(2 * reach[1])
        source = (turned + reach).astype(np.float32)
        target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
        self._view = np.asarray(cv2.getPerspectiveTransform(source, target))
        seen = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
        ground = cv2.perspectiveTransform(seen, np.linalg.inv(self._view))
        self._map, self._map_fine = cv2.convertMaps(ground[..., 0].copy(), ground[..., 1].copy(), cv2.CV_16SC2)

    def _draw_event(self, slot: int) -> _Event | None:
        """What comes along in a slot of time: in six slots each kind once, and once nothing."""
        if slot < 0:
            return None
        rng = self._rng("event", slot)
        kinds = (NORMAL, *EVENTS)
        order = self._rng("order", slot // len(kinds)).permutation(len(kinds))
        kind = kinds[order[slot % len(kinds)]]
        if kind == NORMAL:
            return None
        sprite = draw_object(kind, self.look, rng, self._scale)
        enters_at = slot * self._slot_frames + float(rng.uniform(0, self._slack_frames))
        return _Event(kind, sprite, enters_at, self._place(sprite, rng))

    def _place(self, sprite: Sprite, rng: np.random.Generator) -> float:
        """Left edge for an object: on the belt, near its middle."""
        room = max(0.0, (self._belt.stop - self._belt.start - sprite.width) / 2)
        middle = (self._belt.start + self._belt.stop - sprite.width) / 2
        return middle + float(rng.uniform(-0.7, 0.7)) * room

    def _share_inside(self, sprite: Sprite, x: float, y: float) -> float:
        """How much of an object the picture shows, 0..1."""
        points = (sprite.outline + np.array([x, y], np.float32))[None]
        seen = cv2.perspectiveTransform(points, self._view)[0]
        return float(((seen >= 0) & (seen < np.array(self.size))).all(axis=1).mean())

    def _render(self, offset: float, sprite: Sprite | None, x: float, y: float, rng: np.random.Generator) -> Picture:
        """Compose a frame: belt and object on the canvas, seen by the camera, lit, hazy and noisy."""
        canvas, rows = self._ground.copy(), self._canvas_size[1]
        start, filled = int(-offset) % len(self._tile), 0
        while filled < rows:
            part = self._tile[start : start + rows - filled]
            canvas[filled : filled + len(part), self._belt] = part
            filled, start = filled + len(part), 0
        if sprite is not None:
            _lay(canvas, sprite, round(x), round(y))
        picture = cv2.remap(canvas, self._map, self._map_fine, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        if self.look.blur_px:
            picture = cv2.GaussianBlur(picture, (0, 0), self.look.blur_px * self._scale)
        if self.look.saturation != 1:
            picture = cv2.transform(picture, self._colours)
        picture = cv2.multiply(picture, self._light, scale=1 / 128)
        if self._haze is not None:
            picture = cv2.add(picture, self._haze)
        down, right = rng.integers(0, 128, 2)
        height, width = picture.shape[:2]
        noisy = cv2.add(picture, self._noise[down : down + height, right : right + width])
        mean = self._noise_mean
        return np.asarray(cv2.subtract(noisy, (mean, mean, mean, 0)), dtype=np.uint8)


def truth_of(kind: str | None, share_inside: float) -> Truth:
    """What a frame shows, given the one event near it and how much of that is in the picture."""
    truth: Truth = dict.fromkeys(SCENARIOS, NORMAL)
    if kind is not None and share_inside > 0:
        truth[SCENARIO_OF[kind]] = kind if share_inside >= INSIDE_MIN else None
    return truth


def still_frames(site: str, camera: int, seed: int, count: int) -> tuple[list[Picture], list[Truth]]:
    """Labelled pictures for training and held-out tests: normal and each event equally often, none ambiguous."""
    source = BeltCamera(site, camera, seed)
    pairs = [source.still(number) for number in range(count)]
    return [picture for picture, _ in pairs], [truth for _, truth in pairs]


def _lay(canvas: Picture, sprite: Sprite, x: int, y: int) -> None:
    """Blend an object into the canvas at its upper left corner; what reaches over the edge is cut."""
    height, width = canvas.shape[:2]
    top, bottom = max(y, 0), min(y + sprite.height, height)
    left, right = max(x, 0), min(x + sprite.width, width)
    if top >= bottom or left >= right:
        return
    part = slice(top - y, bottom - y), slice(left - x, right - x)
    ground = canvas[top:bottom, left:right]
    ground[:] = cv2.add(cv2.multiply(ground, sprite.keep[part], scale=1 / 255), sprite.add[part])
