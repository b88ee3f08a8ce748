"""Where frames come from: streams, files and devices through PyAV, folders of pictures through OpenCV.

A source yields frames in order until its end or a fault; pacing, reconnecting and reporting are `edge.camera`'s.
"""

import socket
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from common.clock import Clock
from common.errors import EnvironmentFault, OperatorError
from edge.ring import Packet
from edge.settings import CameraSettings

OnPacket = Callable[[Packet], None]
PICTURES: Final = {".jpg", ".jpeg", ".png", ".bmp"}
FOLDER_EPOCH_NS: Final = 1_700_000_000 * 10**9
"""Where the time of a folder of pictures begins: the same picture has the same time on every run."""


@dataclass(frozen=True, slots=True)
class Shot:
    """A decoded frame; `media_s` is its time since the beginning of a file or folder, None on a live stream."""

    captured_at_ns: int
    media_s: float | None
    image: NDArray[np.uint8]


def is_live(source: str) -> bool:
    """True for streams and devices, which have no end and no pace of their own to keep."""
    return "://" in source or source.startswith("/dev/")


def open_source(settings: CameraSettings, clock: Clock, on_packet: OnPacket | None = None) -> Iterator[Shot]:
    """Frames of a camera from its beginning.

    Args:
        on_packet: is given each packet before it is decoded; a folder of pictures has none.

    Raises:
        OperatorError: the file or folder is missing, empty, or cannot be decoded; names it.
        EnvironmentFault: a stream or device does not answer.
    """
    if is_live(settings.source):
        return _live(settings, clock, on_packet)
    path = Path(settings.source)
    if path.is_dir():
        return _folder(path, settings.picture_fps)
    if path.is_file():
        return _file(path, on_packet)
    raise OperatorError(f"there is no video {path}", "Correct `source` of this camera in edge.toml.")


def _folder(path: Path, picture_fps: float) -> Iterator[Shot]:
    pictures = sorted(item for item in path.iterdir() if item.suffix.lower() in PICTURES)
    if not pictures:
        raise OperatorError(f"folder {path} holds no pictures", f"Put {', '.join(sorted(PICTURES))} files there.")
    for index, picture in enumerate(pictures):
        image = cv2.imread(str(picture), cv2.IMREAD_COLOR)
        if image is None:
            raise OperatorError(f"{picture} is not a picture that OpenCV can read", "Replace or remove the file.")
        media_s = index / picture_fps
        yield Shot(FOLDER_EPOCH_NS + round(media_s * 1e9), media_s, np.asarray(image, dtype=np.uint8))


def _file(path: Path, on_packet: OnPacket | None) -> Iterator[Shot]:
    started_ns = path.stat().st_mtime_ns
    frames = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for packet in container.demux(stream):
                if on_packet and packet.size:
                    at_ns = started_ns + round(float((packet.pts or 0) * packet.time_base) * 1e9)
                    on_packet(Packet(at_ns, packet.is_keyframe, packet.size, packet))
                for frame in packet.decode():
                    if frame.is_corrupt or frame.time is None:
                        continue
                    frames += 1
                    yield Shot(started_ns + round(frame.time * 1e9), frame.time, frame.to_ndarray(format="bgr24"))
    except (av.FFmpegError, IndexError) as error:
        raise OperatorError(
            f"{path} cannot be decoded after frame {frames} ({error})",
            "Replace the file; `ffprobe` shows what it holds.",
        ) from error
    if not frames:
        raise OperatorError(f"{path} holds no video frame", "Replace the file.")


def _live(settings: CameraSettings, clock: Clock, on_packet: OnPacket | None) -> Iterator[Shot]:
    """A stream or device. Frames that the decoder marks corrupt are dropped: they would look like anomalies."""
    options = {"rtsp_transport": "tcp"} if settings.source.startswith("rtsp") else {}
    is_device = settings.source.startswith("/dev/")
    timeout = (settings.timeout_s, settings.timeout_s)  # PyAV's default waits for ever
    if not is_device:
        _probe(settings.source, settings.timeout_s)
    try:
        with av.open(
            settings.source, options=options, timeout=timeout, format="v4l2" if is_device else None
        ) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for packet in container.demux(stream):
                if on_packet and packet.size:
                    on_packet(Packet(clock.wall_ns(), packet.is_keyframe, packet.size, packet))
                for frame in packet.decode():
                    if not frame.is_corrupt:
                        yield Shot(clock.wall_ns(), None, frame.to_ndarray(format="bgr24"))
    except (OSError, IndexError) as error:  # av.FFmpegError is an OSError or has one as its base
        raise EnvironmentFault(
            f"camera {settings.id} does not deliver from {hide_password(settings.source)} ({error})",
            "Check its power, cable, address and password; try the URL in a player.",
        ) from error


def _probe(url: str, timeout_s: float) -> None:
    """A TCP connection first: FFmpeg's own connect can block for longer than its timeout."""
    parts = urllib.parse.urlsplit(url)
    port = parts.port or {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443, "rtmp": 1935}.get(parts.scheme)
    if not parts.hostname or port is None:
        return
    try:
        socket.create_connection((parts.hostname, port), timeout=timeout_s).close()
    except OSError as error:
        raise EnvironmentFault(
            f"nothing answers at {hide_password(url)} ({error})",
            "Check the address, the network and the camera's power.",
        ) from error


def hide_password(url: str) -> str:
    """The URL as it may stand in a log."""
    parts = urllib.parse.urlsplit(url)
    if parts.password is None:
        return url
    return url.replace(f":{parts.password}@", ":***@", 1)
