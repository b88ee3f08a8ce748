"""Evidence for people: clips copied from the packets of a real stream, stills with boxes, a folder that stays small."""

import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from common.clock import SystemClock
from common.errors import OperatorError
from edge.clips import Box, Evidence, draw, write_clip
from edge.decoding import Recipe
from edge.ring import Packet, PacketRing
from edge.settings import CameraSettings
from edge.sources import open_stream
from simulations.rtsp import RtspServer, why_no_server

SIZE = (320, 180)
FPS = 10
GROUP = 5
NUMBER_PX = 20
"""Each frame shows its number as two grey squares of this size, so that a clip can be told frame by frame."""


def write_numbered_video(path: Path, seconds: float, codec: str = "libx264") -> Path:
    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "threads=1:scenecut=0"}
        stream = container.add_stream(codec, rate=FPS, options=options if codec == "libx264" else {})
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = GROUP
        for number in range(round(seconds * FPS)):
            picture = np.full((SIZE[1], SIZE[0]), 60, np.uint8)
            for digit, value in enumerate((number // 10 % 10, number % 10)):
                picture[:NUMBER_PX, digit * NUMBER_PX : (digit + 1) * NUMBER_PX] = 20 + 20 * value
            frame = av.VideoFrame.from_ndarray(picture, format="gray").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def number_of(picture: np.ndarray) -> int:
    squares = [picture[5:15, digit * NUMBER_PX + 5 : digit * NUMBER_PX + 15].mean() for digit in (0, 1)]
    tens, ones = (round((square - 20) / 20) for square in squares)
    return 10 * tens + ones


def read(path: Path) -> tuple[list[int], list[float], bool]:
    """Numbers and seconds of the frames, and whether the first is a key frame."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return (
            [number_of(frame.to_ndarray(format="gray")) for frame in frames],
            [frame.time for frame in frames],
            bool(frames[0].key_frame),
        )


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PacketRing, Recipe]]:
    """Six seconds of a real RTSP stream in a ring, its connection closed."""
    if why := why_no_server():
        pytest.skip(why)
    clip = write_numbered_video(tmp_path_factory.mktemp("clip") / "numbers.mp4", 10)
    server = RtspServer({"numbers": clip}, {"camera": ("numbers", 0.0)})
    server.start()
    ring, recipe = PacketRing(60, 10_000_000), None
    deadline_s = time.monotonic() + 20
    for arrival in open_stream(server.url("camera"), CameraSettings(id="c", source="x"), SystemClock()):
        recipe = recipe or Recipe(arrival.stream)
        if arrival.packet is not None:
            ring.append(arrival.packet)
        packets = ring.between(0, 2**63)
        if packets and packets[-1].captured_at_ns - packets[0].captured_at_ns > 6e9:
            break
        assert time.monotonic() < deadline_s
    server.stop()
    assert recipe is not None
    yield ring, recipe


def test_a_clip_shows_what_was_before_and_after_frame_by_frame(
    stream: tuple[PacketRing, Recipe], tmp_path: Path
) -> None:
    ring, recipe = stream
    packets = ring.between(0, 2**63)
    began, ended = packets[23], packets[44]
    seconds = write_clip(ring, recipe, began.captured_at_ns, ended.captured_at_ns, tmp_path / "clip.mp4")
    numbers, times, begins_with_key = read(tmp_path / "clip.mp4")
    assert begins_with_key
    first = max(n for n, packet in enumerate(packets[:24]) if packet.is_key)
    assert len(numbers) == 44 - first + 1, "from the key frame before the beginning to the end, none left out"
    assert {(later - sooner) % 100 for sooner, later in pairwise(numbers)} == {1}
    assert times[0] == 0
    assert seconds == pytest.approx(len(numbers) / FPS, abs=0.15)
    assert times[-1] == pytest.approx((len(numbers) - 1) / FPS, abs=0.1), "at the speed of the camera"
    assert [item.name for item in tmp_path.iterdir()] == ["clip.mp4"]


def test_packets_without_time_stamps_are_shown_as_they_came(stream: tuple[PacketRing, Recipe], tmp_path: Path) -> None:
    ring, recipe = stream
    bare = PacketRing(60, 10_000_000)
    for packet in ring.between(0, 2**63)[:30]:
        copy = av.Packet(bytes(packet.data))
        bare.append(Packet(packet.captured_at_ns, packet.is_key, packet.size, copy))
    write_clip(bare, recipe, 0, 2**63, tmp_path / "clip.mp4")
    numbers, times, _ = read(tmp_path / "clip.mp4")
    assert len(numbers) == 30
    assert times == sorted(set(times))


def test_what_is_no_longer_kept_is_said(stream: tuple[PacketRing, Recipe], tmp_path: Path) -> None:
    ring, recipe = stream
    with pytest.raises(OperatorError, match="no video of that time"):
        write_clip(ring, recipe, 0, 1, tmp_path / "clip.mp4")
    with pytest.raises(OperatorError, match="no video of that time"):
        write_clip(PacketRing(1, 1_000), recipe, 0, 2**63, tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def test_packets_of_a_file_are_refused_and_nothing_is_left_behind(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "file.mp4", 2)
    ring, recipe = PacketRing(60, 10_000_000), None
    for arrival in open_stream(str(path), CameraSettings(id="c", source=str(path)), SystemClock()):
        recipe = recipe or Recipe(arrival.stream)
        if arrival.packet is not None:
            ring.append(arrival.packet)
    assert recipe is not None
    with pytest.raises(OperatorError, match="cannot be copied"):
        write_clip(ring, recipe, 0, 2**63, tmp_path / "evidence" / "clip.mp4")
    assert not (tmp_path / "evidence").exists()


def test_a_still_shows_its_boxes() -> None:
    picture = np.full((540, 960, 3), 120, np.uint8)
    jpeg = draw(picture, [Box(0.25, 0.25, 0.75, 0.75, "person 0.93"), Box(0.1, 0.1, 0.2, 0.2, "锚杆")])
    seen = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).astype(int)
    red = (seen[..., 2] - seen[..., 0]) > 60
    assert red[200:350, 239:242].any(axis=1).all(), "the left side of the box"
    assert red[110:134, 240:400].any(), "its text"
    assert not red[250:300, 300:600].any()
    assert (picture == 120).all(), "the picture itself is as it was"


def test_the_folder_stays_within_its_bounds_and_the_newest_survives(tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    (folder).mkdir()
    (folder / "notes.txt").write_text("not ours")
    evidence = Evidence(folder, files_max=3, bytes_max=10**9)
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8)
    paths = [evidence.keep_still("belt", second * 10**9, noise) for second in range(5)]
    assert evidence.files() == paths[2:]
    assert paths[0].name == "belt-19700101T000000.000Z.jpg"
    small = Evidence(folder, files_max=100, bytes_max=10)
    last = small.keep_still("belt", 9 * 10**9, noise)
    assert small.files() == [last], "one that is larger than the bound is kept until the next"
    assert (folder / "notes.txt").exists()


def test_clips_are_bounded_together_with_stills(stream: tuple[PacketRing, Recipe], tmp_path: Path) -> None:
    ring, recipe = stream
    evidence = Evidence(tmp_path, files_max=2, bytes_max=10**9)
    still = evidence.keep_still("belt", 0, np.zeros((20, 20, 3), np.uint8))
    packets = ring.between(0, 2**63)
    clips = [
        evidence.keep_clip("belt", ring, recipe, packets[n].captured_at_ns, packets[n + 9].captured_at_ns)
        for n in (10, 20)
    ]
    assert not still.exists()
    assert evidence.files() == clips
    assert all(read(path)[2] for path in clips)
