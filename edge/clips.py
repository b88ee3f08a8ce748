"""Evidence of an event for people: a clip copied from packets, nothing decoded or encoded anew, and a still with boxes.

The packets are those of the camera's ring (`edge.ring`), as it received them; the clip begins at the key frame at or
before the wanted instant, because nothing else can be shown. `Evidence` keeps the folder within its bounds. When an
event begins, and what it is called, is for others to say.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Final

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from common.errors import OperatorError
from common.files import READABLE, disk_fault, sync_folder, write_atomically
from edge.decoding import INTER_CODED, Recipe
from edge.ring import Packet, PacketRing

Picture = NDArray[np.uint8]

TIME_BASE: Final = Fraction(1, 90_000)
LAST: Final = 3600
"""How long the last frame of a clip is shown, in `TIME_BASE`: nobody knows when the next would have come."""
START_CODE: Final = b"\x00\x00\x01"
"""Streams part their units so; files write the length of each instead, and have no clip made of them."""
SUFFIXES: Final = {".mp4", ".jpg"}
BOX_BGR: Final = (36, 38, 179)
JPEG_QUALITY: Final = 85


@dataclass(frozen=True, slots=True)
class Box:
    """Something found in a picture: left, top, right, bottom as fractions 0..1, and what to write beside it."""

    left: float
    top: float
    right: float
    bottom: float
    text: str = ""


def write_clip(ring: PacketRing, recipe: Recipe, began_ns: int, ended_ns: int, path: Path) -> float:
    """Copy what a stream showed between two instants into an MP4 file; it appears whole, or not at all.

    Args:
        ring: of the stream; the caller adds to the interval what should be seen before and after the event.
        recipe: of the same stream.

    Returns:
        Seconds of video.

    Raises:
        OperatorError: the ring holds nothing of that time, or the stream's codec cannot be copied (only H.264 and H.265
            as streams send them).
        EnvironmentFault: the disk is full or cannot be written.
    """
    packets = ring.between(began_ns, ended_ns)
    first = next((number for number, packet in enumerate(packets) if packet.is_key), None)
    if first is None or packets[first].captured_at_ns > ended_ns:
        raise OperatorError("no video of that time is kept any more", "Ask sooner, or raise `memory_bytes_max`.")
    packets = packets[first:]
    if recipe.name not in INTER_CODED or not bytes(packets[0].data)[:4].endswith(START_CODE):
        raise OperatorError(
            f"{recipe.name} as this source gives it cannot be copied", "Clips are made of H.264 and H.265 streams."
        )
    unfinished = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        seconds = _remux(packets, recipe, unfinished)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
        sync_folder(path.parent)
    except av.FFmpegError as error:
        raise OperatorError(
            f"the video cannot be copied into {path.name} ({error})", "See the camera's codec."
        ) from error
    except OSError as error:
        raise disk_fault(path, error) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return seconds


def _remux(packets: Sequence[Packet], recipe: Recipe, path: Path) -> float:
    """Packets into a file. The muxer's parameters are read from the stream's own head and first key frame, since the
    connection that they came over may be closed by now."""
    head = BytesIO(recipe.extradata + bytes(packets[0].data))
    instants = _instants(packets)
    with (
        av.open(head, format=recipe.name) as template,
        av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as clip,
    ):
        stream = clip.add_stream_from_template(template.streams.video[0])
        for packet, at, until in zip(packets, instants, [*instants[1:], instants[-1] + LAST], strict=True):
            copy = av.Packet(bytes(packet.data))
            copy.pts = copy.dts = at
            copy.duration = until - at
            copy.time_base, copy.is_keyframe, copy.stream = TIME_BASE, packet.is_key, stream
            clip.mux(copy)
    return float((instants[-1] + LAST) * TIME_BASE)


def _instants(packets: Sequence[Packet]) -> list[int]:
    """When each frame is shown, from 0 on: by the camera's own time stamps, else by when it was received."""
    stamps = [packet.data.pts for packet in packets]
    if None in stamps or any(later <= sooner for sooner, later in pairwise(stamps)):
        found = [(packet.captured_at_ns - packets[0].captured_at_ns) * 9 // 100_000 for packet in packets]
    else:
        scale = packets[0].data.time_base / TIME_BASE
        found = [round((stamp - stamps[0]) * scale) for stamp in stamps]
    for number in range(1, len(found)):  # packets that arrived together
        found[number] = max(found[number], found[number - 1] + 1)
    return found


def draw(picture: Picture, boxes: Sequence[Box]) -> bytes:
    """A JPEG of a picture, uint8 (H, W, 3) BGR, with boxes; text that OpenCV has no letters for is left out.

    Raises:
        OperatorError: the picture is larger than a JPEG can be.
    """
    canvas = picture.copy()
    height, width = canvas.shape[:2]
    thick = max(1, round(height / 270))
    for box in boxes:
        corner = (round(box.left * width), round(box.top * height))
        cv2.rectangle(canvas, corner, (round(box.right * width), round(box.bottom * height)), BOX_BGR, thick)
        if box.text.isascii():
            above = (corner[0] + thick, max(corner[1] - 2 * thick, 12 * thick))
            cv2.putText(canvas, box.text, above, cv2.FONT_HERSHEY_SIMPLEX, thick * 0.5, BOX_BGR, thick, cv2.LINE_AA)
    ok, jpeg = cv2.imencode(".jpg", canvas, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not ok:
        raise OperatorError(f"a picture of {width} x {height} is no JPEG", "Use a smaller stream.")
    return jpeg.tobytes()


class Evidence:
    """A folder of clips and stills, bounded in files and in bytes: the oldest go first.

    Args:
        folder: nothing but evidence is kept or deleted in it.
        files_max: clips and stills together.
        bytes_max: of all of them.
    """

    def __init__(self, folder: Path, files_max: int, bytes_max: int) -> None:
        self._folder, self._files_max, self._bytes_max = folder, files_max, bytes_max
        self._writing = threading.Lock()

    def keep_still(self, camera_id: str, at_ns: int, picture: Picture, boxes: Sequence[Box] = ()) -> Path:
        """Write what was seen, with boxes; from any thread.

        Raises:
            EnvironmentFault: the disk is full or cannot be written.
        """
        path = self._name(camera_id, at_ns, ".jpg")
        with self._writing:
            write_atomically(path, draw(picture, boxes), READABLE)
            self._make_room()
        return path

    def keep_clip(self, camera_id: str, ring: PacketRing, recipe: Recipe, began_ns: int, ended_ns: int) -> Path:
        """Write what a stream showed between two instants; from any thread.

        Raises:
            OperatorError, EnvironmentFault: as `write_clip`.
        """
        path = self._name(camera_id, began_ns, ".mp4")
        with self._writing:
            write_clip(ring, recipe, began_ns, ended_ns, path)
            self._make_room()
        return path

    def files(self) -> list[Path]:
        """All evidence, the oldest first."""
        found = [path for path in self._folder.glob("*") if path.suffix in SUFFIXES and path.is_file()]
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))

    def _name(self, camera_id: str, at_ns: int, suffix: str) -> Path:
        at = datetime.fromtimestamp(at_ns / 1e9, UTC)
        return self._folder / f"{camera_id}-{at:%Y%m%dT%H%M%S}.{at_ns // 1_000_000 % 1000:03d}Z{suffix}"

    def _make_room(self) -> None:
        kept = [(path, path.stat().st_size) for path in self.files() if path.exists()]
        size = sum(bytes_ for _, bytes_ in kept)
        for number, (path, bytes_) in enumerate(kept[:-1]):  # the newest stays, however large
            if len(kept) - number <= self._files_max and size <= self._bytes_max:
                return
            path.unlink(missing_ok=True)  # another worker process keeps the same folder
            size -= bytes_
