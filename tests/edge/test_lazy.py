"""Cameras on real H.264: little is decoded, nothing is missed, and the picture of a chosen frame is the right one."""

import time
from pathlib import Path

import av
import numpy as np
import pytest

from common.clock import SystemClock
from edge.camera import Camera
from edge.frames import Frame
from edge.sampler import FrameSlots
from edge.settings import CameraSettings, GearSettings

FPS, GROUP = 10, 20
SIZE = (320, 240)


def square_at(second: float, begin: float, end: float) -> tuple[int, int] | None:
    """Where the moving square is, in the large picture; None while it is away."""
    if not begin <= second < end:
        return None
    return 20 + round(80 * (second - begin)) % 240, 100


def write_clip(path: Path, seconds: float, event: tuple[float, float], size: tuple[int, int] = SIZE) -> Path:
    scene = np.random.default_rng(0).integers(80, 140, (SIZE[1] // 8, SIZE[0] // 8, 1)).astype(np.uint8)
    scene = np.repeat(np.kron(scene, np.ones((8, 8, 1), np.uint8)), 3, axis=2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size = GROUP
        for index in range(round(seconds * FPS)):
            picture = scene.copy()
            if corner := square_at(index / FPS, *event):
                x, y = corner
                picture[y : y + 40, x : x + 40] = 250
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24").reformat(*size, "yuv420p", threads=1)
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def play(settings: CameraSettings, until: int = 10**6, share: float = 1.0) -> list[Frame]:
    """Every frame that the camera wants looked at."""
    slots = FrameSlots()
    camera = Camera(settings, slots, SystemClock())
    camera.ration(share, "the test says so")
    camera.start()
    frames: list[Frame] = []
    deadline = time.monotonic() + 30
    try:
        while not camera.ended and len(frames) < until:
            assert time.monotonic() < deadline, camera.state
            frame = slots.take(0.05)
            if frame is not None:
                frames.append(frame)
                camera.looked_at(frame, striking=False)
    finally:
        camera.stop()
        camera.join(10)
    return frames


def seconds_of(frames: list[Frame], path: Path) -> list[float]:
    began_ns = path.stat().st_mtime_ns
    return [round((frame.captured_at_ns - began_ns) / 1e9, 2) for frame in frames]


def settings_for(path: Path, **fields: object) -> CameraSettings:
    return CameraSettings(id="yard", source=str(path), paced=False, **fields)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "main.mp4", 30, (12.5, 15.3))


def test_frames_of_before_the_key_frame_that_gave_it_away_are_looked_at(clip: Path) -> None:
    seconds = seconds_of(play(settings_for(clip)), clip)
    during = [at for at in seconds if 12.5 <= at < 15.3]
    assert during[0] <= 12.6, "the key frame that shows the square comes at 14.0"
    assert max(np.diff(during)) <= 0.21, "and not a look less than five a second"
    assert seconds == sorted(seconds)
    assert len(seconds) < 35, "of 300 frames; the rest of the time nothing happens"


def test_a_calm_camera_is_looked_at_as_often_as_its_floor_says(clip: Path) -> None:
    settings = settings_for(clip, gears=GearSettings(floor_s=5))
    seconds = [*seconds_of(play(settings), clip), 30.0]
    assert max(np.diff(seconds)) <= 5.0


def test_the_floor_holds_where_key_frames_are_rare(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "main.mp4", 1.5, (9, 9))
    settings = settings_for(path, gears=GearSettings(floor_s=0.5, calm_s=0.1))
    seconds = seconds_of(play(settings), path)
    assert max(np.diff([*seconds, 1.5])) <= 0.5, "one key frame in all: the group is decoded for the floor"


def test_on_a_box_that_is_much_too_small_key_frames_must_do_and_the_floor_still_holds(
    clip: Path, tmp_path: Path
) -> None:
    frames = play(settings_for(clip), share=0.125)
    seconds = seconds_of(frames, clip)
    assert all(frame.source.key_frame for frame in frames if isinstance(frame.source, av.VideoFrame))
    assert 14.0 in seconds, "it sees what moves at the moment of a key frame"
    assert max(np.diff(seconds)) <= 10
    path = write_clip(tmp_path / "main.mp4", 1.5, (9, 9))
    settings = settings_for(path, gears=GearSettings(floor_s=0.5))
    assert max(np.diff([*seconds_of(play(settings, share=0.125), path), 1.5])) <= 0.5


def test_a_camera_told_not_to_idle_or_gate_looks_at_every_frame_due(clip: Path) -> None:
    gears = GearSettings(motion_min=0, gate=0, steady_looks_per_s=5)
    assert len(play(settings_for(clip, gears=gears))) == 150


def test_the_picture_of_a_frame_is_decoded_again_clean(clip: Path) -> None:
    frames = play(settings_for(clip))
    with av.open(str(clip)) as container:
        truth = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    for frame, at_s in zip(frames, seconds_of(frames, clip), strict=True):
        assert frame.still is not None
        picture = frame.still.picture()
        assert picture is not None
        np.testing.assert_array_equal(picture, truth[round(at_s * FPS)])


@pytest.mark.parametrize("zone", [None, (0.25, 0.5, 0.75, 1.0)])
def test_the_view_for_the_model_is_the_picture_made_small(
    clip: Path, zone: tuple[float, float, float, float] | None
) -> None:
    (frame,) = play(settings_for(clip), until=1)
    view = frame.view(56, zone)
    assert view.shape == (56, 56, 3)
    left, top, right, bottom = zone or (0, 0, 1, 1)
    whole = frame.image[int(top * 240) : int(bottom * 240), int(left * 320) : int(right * 320)]
    assert abs(float(view.mean()) - float(whole.mean())) < 2


def test_the_sub_stream_is_looked_at_and_the_picture_comes_from_the_main_stream(clip: Path, tmp_path: Path) -> None:
    sub = write_clip(tmp_path / "sub.mp4", 30, (12.5, 15.3), (96, 72))
    frames = play(settings_for(clip, substream=str(sub)))
    assert {frame.path for frame in frames} == {"sub-96x72"}
    looked = 0
    for frame, at_s in zip(frames, seconds_of(frames, sub), strict=True):
        assert frame.still is not None
        picture = frame.still.picture()
        assert picture is not None
        assert picture.shape == (SIZE[1], SIZE[0], 3)
        corner = square_at(at_s, 12.5, 15.3)
        if corner:
            looked += 1
            x, y = corner
            assert picture[y + 5 : y + 35, x + 5 : x + 35].mean() > 235, f"the square of {at_s} s"
    assert looked > 10


def test_without_its_sub_stream_a_camera_looks_at_the_main_stream(clip: Path, tmp_path: Path) -> None:
    settings = settings_for(clip, substream=str(tmp_path / "not-there.mp4"))
    slots = FrameSlots()
    camera = Camera(settings, slots, SystemClock())
    camera.start()
    try:
        frame = slots.take(10)
        assert frame is not None
        assert frame.path == "main-320x240"
        assert "looks at the main stream" in camera.state.detail
    finally:
        camera.stop()
        camera.join(10)
