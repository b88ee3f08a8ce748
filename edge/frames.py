"""A frame on its way from a camera to the model, and the picture that can still be made of it when it was chosen.

A frame that waits or competes must be small: a camera holds hundreds. So the decoded pixels live until the look only;
what stays is a `Still`, which decodes the packets once more.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from common.pictures import read_picture
from edge.decoding import Recipe
from edge.motion import Luma
from edge.ring import Group, PacketRing

CONVERTERS_MAX: Final = 8
"""Kinds of streams and inputs that alternate on one gateway; each keeps some 100 kB."""

Zone = tuple[float, float, float, float]
Picture = NDArray[np.uint8]


class Still(Protocol):
    """Makes the full picture of a frame, uint8 (H, W, 3) BGR, clean, some time after it was looked at."""

    def picture(self) -> Picture | None:
        """None when its packets are gone or damaged."""


@dataclass(frozen=True, slots=True)
class FileStill:
    """A picture of a folder."""

    path: Path

    def picture(self) -> Picture | None:
        """Read the file again."""
        return read_picture(self.path) if self.path.is_file() else None


@dataclass(frozen=True, slots=True)
class PacketStill:
    """A frame within a group of packets, which is kept as long as somebody holds this."""

    recipe: Recipe
    group: Group
    captured_at_ns: int
    pts: int | None

    def picture(self) -> Picture | None:
        """Decode the group up to the frame, with everything on."""
        packets = self.group.until(self.captured_at_ns)
        frame = self.recipe.last(packets, self.pts) or self.recipe.last(packets, None)
        return None if frame is None else to_bgr(frame)


@dataclass(frozen=True, slots=True)
class FallbackStill:
    """The first of two that gives a picture: the main stream's, else that of the stream that was looked at."""

    first: Still
    second: Still

    def picture(self) -> Picture | None:
        """As above."""
        picture = self.first.picture()
        return self.second.picture() if picture is None else picture


def find_still(ring: PacketRing, recipe: Recipe, captured_at_ns: int, *, key_only: bool) -> PacketStill | None:
    """The picture of an instant in another stream's ring.

    Args:
        key_only: take the group's key frame: of a still scene it shows the same, and the rest need not be kept.
    """
    group = ring.group(captured_at_ns)
    if group is None:
        return None
    if key_only:
        key = group.packets[0]
        return PacketStill(recipe, Group([key], key.size), key.captured_at_ns, None)
    return PacketStill(recipe, group, captured_at_ns, None)


@dataclass(slots=True)
class Frame:
    """One frame to look at; `index` counts looks from the beginning of its source."""

    camera_id: str
    captured_at_ns: int
    index: int
    decided_at_ns: int
    """Capture time of the camera's newest packet when this frame was decided on: later than its own for a late one."""
    ready_s: float
    """Monotonic time at which it began to wait for the look."""
    path: str
    """Which pixels the model sees: `main-1920x1080` or `sub-640x360`."""
    size: tuple[int, int]
    """Width and height of what was decoded."""
    is_late: bool
    """Decoded after the fact, in a bunch: must not be replaced by the next while it waits."""
    luma: Luma
    """Brightness at low resolution (`edge.motion`)."""
    still: Still | None
    """None when its packets were not kept."""
    source: av.VideoFrame | Picture

    @property
    def image(self) -> Picture:
        """The whole picture as it was decoded for the look, uint8 (H, W, 3) BGR; converted on each call."""
        return self.source if isinstance(self.source, np.ndarray) else to_bgr(self.source)

    def fit(self, side_px: int, zone: Zone | None = None) -> Picture:
        """The picture, or a zone of it, in its own shape, no larger than fits into a square of `side_px`."""
        width, height = self.size
        left, top, right, bottom = zone or (0.0, 0.0, 1.0, 1.0)
        scale = side_px / max((right - left) * width, (bottom - top) * height, 1.0)
        if isinstance(self.source, np.ndarray) or scale >= 1:
            return cut_zone(self.image, zone)
        small = _shrink(self.source, max(1, round(width * scale)), max(1, round(height * scale)))
        return cut_zone(small, zone)

    def view(self, side_px: int, zone: Zone | None = None) -> Picture:
        """The picture, or a zone of it, for a model whose input is `side_px` square: shrunk by the converter itself,
        straight from the decoder's YUV, when it is at least as large."""
        width, height = self.size
        left, top, right, bottom = zone or (0.0, 0.0, 1.0, 1.0)
        wide, high = side_px / max(right - left, 1e-6), side_px / max(bottom - top, 1e-6)
        if isinstance(self.source, np.ndarray) or wide > width or high > height:
            return cut_zone(self.image, zone)
        return cut_zone(_shrink(self.source, round(wide), round(high)), zone)


class _Converters(threading.local):
    """The last converters of a thread, by what they convert: to set one up costs more than to shrink a small frame."""

    def __init__(self) -> None:
        self.by_task: OrderedDict[tuple[int, int, str, int, int], VideoReformatter] = OrderedDict()


_converters = _Converters()


def _shrink(frame: av.VideoFrame, width: int, height: int) -> Picture:
    """A decoded frame made smaller, uint8 (height, width, 3) BGR."""
    task = (frame.width, frame.height, frame.format.name, width, height)
    kept = _converters.by_task
    converter = kept.pop(task, None) or VideoReformatter()
    kept[task] = converter  # the last is the newest
    if len(kept) > CONVERTERS_MAX:
        kept.popitem(last=False)
    small = converter.reformat(frame, width, height, "bgr24", interpolation="AREA", threads=1)
    return np.asarray(small.to_ndarray(), dtype=np.uint8)


def cut_zone(image: Picture, zone: Zone | None) -> Picture:
    """The part of a picture that a camera's zone (left, top, right, bottom as fractions) names; a view, no copy."""
    if zone is None:
        return image
    height, width = image.shape[:2]
    left, top, right, bottom = zone
    rows = slice(int(top * height), max(int(top * height) + 1, int(bottom * height)))
    return image[rows, int(left * width) : max(int(left * width) + 1, int(right * width))]


def to_bgr(frame: av.VideoFrame) -> Picture:
    """A decoded frame as uint8 (H, W, 3) BGR, at its own size."""
    picture: Picture = frame.reformat(format="bgr24", threads=1).to_ndarray()
    return picture
