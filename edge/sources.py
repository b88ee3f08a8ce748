"""Where video comes from: streams, files and devices as packets through PyAV, folders as pictures through OpenCV.

A source yields what arrives, in order, until its end or a fault, and decodes nothing by itself; what is decoded and
when is `edge.camera`'s, as are pacing, reconnecting and reporting.
"""

import socket
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from numpy.typing import NDArray

from common.clock import Clock
from common.errors import EnvironmentFault, OperatorError
from common.pictures import read_picture
from edge.ring import Packet
from edge.settings import CameraSettings

PICTURES: Final = {".jpg", ".jpeg", ".png", ".bmp"}
FOLDER_EPOCH_NS: Final = 1_700_000_000 * 10**9
"""Where the time of a folder of pictures begins: the same picture has the same time on every run."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What came: a packet of an opened stream, or a picture's file; `media_s` is its time since the beginning of a
    file or folder, None on a live stream."""

    captured_at_ns: int
    media_s: float | None
    packet: Packet | None = None
    picture: Path | None = None
    stream: Any = None
    """The `av.VideoStream` of the packet: its decoder, its parameters."""


@dataclass(frozen=True, slots=True)
class Shot:
    """A decoded frame, uint8 (H, W, 3) BGR."""

    captured_at_ns: int
    media_s: float | None
    image: NDArray[np.uint8]
    is_key: bool = True


def is_live(source: str) -> bool:
    """True for streams and devices, which have no end and no pace of their own to keep."""
    return "://" in source or source.startswith("/dev/")


def open_stream(source: str, settings: CameraSettings, clock: Clock) -> Iterator[Arrival]:
    """What arrives from `source` (the camera's main stream, or its sub-stream), from its beginning.

    Raises:
        OperatorError: the file or folder is missing, empty, or cannot be read; names it.
        EnvironmentFault: a stream or device does not answer.
    """
    if is_live(source):
        return _live(source, settings, clock)
    path = Path(source)
    if path.is_dir():
        return _folder(path, settings.picture_fps)
    if path.is_file():
        return _file(path)
    raise OperatorError(f"there is no video {path}", "Correct `source` of this camera in edge.toml.")


def open_source(settings: CameraSettings, clock: Clock) -> Iterator[Shot]:
    """Every frame of a camera's main stream, decoded: for whoever wants to see that it works (`headframe doctor`).

    Raises:
        OperatorError, EnvironmentFault: as `open_stream`; or nothing in it can be decoded.
    """
    for arrival in open_stream(settings.source, settings, clock):
        if arrival.picture is not None:
            yield Shot(arrival.captured_at_ns, arrival.media_s, read_picture(arrival.picture))
        elif arrival.packet is not None:
            try:
                frames = arrival.packet.data.decode()
            except av.FFmpegError as error:
                raise OperatorError(
                    f"{hide_password(settings.source)} cannot be decoded ({error})", "`ffprobe` shows what it holds."
                ) from error
            for frame in frames:
                if not frame.is_corrupt:
                    yield Shot(
                        arrival.captured_at_ns, arrival.media_s, frame.to_ndarray(format="bgr24"), frame.key_frame
                    )


def _folder(path: Path, picture_fps: float) -> Iterator[Arrival]:
    pictures = sorted(item for item in path.iterdir() if item.suffix.lower() in PICTURES)
    if not pictures:
        raise OperatorError(f"folder {path} holds no pictures", f"Put {', '.join(sorted(PICTURES))} files there.")
    for index, picture in enumerate(pictures):
        media_s = index / picture_fps
        yield Arrival(FOLDER_EPOCH_NS + round(media_s * 1e9), media_s, picture=picture)


def _file(path: Path) -> Iterator[Arrival]:
    started_ns = path.stat().st_mtime_ns
    packets = 0
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container)
            for data in container.demux(stream):
                if data.size and data.pts is not None:
                    packets += 1
                    media_s = float(data.pts * data.time_base)
                    yield _arrival(started_ns + round(media_s * 1e9), media_s, data, stream)
    except (av.FFmpegError, IndexError) as error:
        raise OperatorError(
            f"{path} cannot be read after packet {packets} ({error})",
            "Replace the file; `ffprobe` shows what it holds.",
        ) from error
    if not packets:
        raise OperatorError(f"{path} holds no video frame", "Replace the file.")


def _live(source: str, settings: CameraSettings, clock: Clock) -> Iterator[Arrival]:
    """A stream or device."""
    # FFmpeg would watch for 5 s how fast the frames come before it opens; nobody here asks
    options = {"rtsp_transport": "tcp", "fpsprobesize": "0"} if source.startswith("rtsp") else {}
    is_device = source.startswith("/dev/")
    # PyAV's default waits for ever; of RTSP FFmpeg reads once more after the first time out
    read_s = settings.timeout_s / 2 if source.startswith("rtsp") else settings.timeout_s
    timeout = (settings.timeout_s, read_s)
    if not is_device:
        _probe(source, settings.timeout_s)
    try:
        with av.open(source, options=options, timeout=timeout, format="v4l2" if is_device else None) as container:
            stream = _video_stream(container)
            for data in container.demux(stream):
                if data.size:
                    yield _arrival(clock.wall_ns(), None, data, stream)
    except (av.FFmpegError, OSError, IndexError) as error:  # not every FFmpegError is an OSError: a timeout is none
        raise EnvironmentFault(
            f"camera {settings.id} does not deliver from {hide_password(source)} ({error})",
            "Check its power, cable, address and password; try the URL in a player.",
        ) from error


def _video_stream(container: Any) -> Any:
    """The first video stream, decoded by one thread: with many cameras more only cost."""
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    return stream


def _arrival(at_ns: int, media_s: float | None, data: Any, stream: Any) -> Arrival:
    return Arrival(at_ns, media_s, Packet(at_ns, data.is_keyframe, data.size, data), stream=stream)


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
