"""Clips of events: the seconds before and after, of a real stream, without anybody waiting for the disk."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest

from common.clock import SystemClock
from edge.camera import Camera
from edge.decoding import Recipe
from edge.recorder import WAITING_MAX, Recorder
from edge.ring import PacketRing
from edge.sampler import FrameSlots
from edge.settings import CameraSettings, ClipSettings
from simulations.belts import BeltCamera
from simulations.clips import write_clip
from simulations.rtsp import RtspServer, why_no_server

SOON = ClipSettings(before_s=1.0, after_s=0.5)


class Clock(SystemClock):
    """A clock whose monotonic side is moved by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic_s(self) -> float:
        return self.now_s


class Closed:
    """A camera whose stream was never opened."""

    ring, recipe = PacketRing(10, 1_000_000), None


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Camera]:
    """A live camera with a few seconds of a real RTSP stream in its ring."""
    if why := why_no_server():
        pytest.skip(why)
    clip = tmp_path_factory.mktemp("belt") / "belt.mp4"
    write_clip(clip, BeltCamera("north-drift", 1, 1), 6.0)
    server = RtspServer({"belt": clip}, {"belt": ("belt", 0.0)})
    server.start()
    opened = Camera(CameraSettings(id="belt", source=server.url("belt")), FrameSlots(), SystemClock())
    opened.start()
    wait_for(lambda: len(opened.ring.between(0, 2**63)) > 40)
    yield opened
    opened.stop()
    opened.join(5)
    server.stop()


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_an_event_leaves_a_clip_of_before_and_after(camera: Camera, tmp_path: Path) -> None:
    recorder = Recorder(SOON, tmp_path / "clips", SystemClock())
    recorder.start()
    now_ns = time.time_ns()
    recorder.order("belt", camera, now_ns - 10**9, now_ns)
    wait_for(lambda: recorder.written == 1)
    recorder.stop()
    (clip,) = (tmp_path / "clips").iterdir()
    assert clip.name.startswith("belt-")
    with av.open(str(clip)) as container:
        frames = list(container.decode(video=0))
    assert 1.5 <= frames[-1].time - frames[0].time <= 2.5 + 2.0, "from the key frame before the beginning"


def test_a_clip_is_not_written_before_its_last_seconds_have_come(camera: Camera, tmp_path: Path) -> None:
    clock = Clock()
    recorder = Recorder(ClipSettings(after_s=5.0), tmp_path / "clips", clock)
    recorder.start()
    recorder.order("belt", camera, time.time_ns(), time.time_ns())
    clock.now_s = 4.9
    time.sleep(1.2)
    assert recorder.written == 0
    clock.now_s = 5.1
    wait_for(lambda: recorder.written == 1)
    recorder.stop()


def test_what_waits_is_written_when_the_agent_stops(camera: Camera, tmp_path: Path) -> None:
    recorder = Recorder(ClipSettings(after_s=5.0), tmp_path / "clips", Clock())
    recorder.start()
    recorder.order("belt", camera, time.time_ns(), time.time_ns())
    recorder.stop()
    assert recorder.written == 1


def test_more_events_than_can_wait_are_counted(tmp_path: Path) -> None:
    recorder = Recorder(SOON, tmp_path / "clips", Clock())
    for _ in range(WAITING_MAX + 3):
        recorder.order("belt", Closed(), 0, 0)
    assert recorder.lost == 3
    recorder.start()
    recorder.stop()
    assert (recorder.written, recorder.lost) == (0, WAITING_MAX + 3)


def test_a_camera_without_video_of_that_time_leaves_no_clip_and_is_counted(camera: Camera, tmp_path: Path) -> None:
    recorder = Recorder(SOON, tmp_path / "clips", Clock())
    recorder.order("belt", camera, 10**9, 2 * 10**9)
    recorder.start()
    recorder.stop()
    assert (recorder.written, recorder.lost) == (0, 1)
    assert not list((tmp_path / "clips").glob("*"))


def test_the_recipe_of_a_camera_is_that_of_its_ring(camera: Camera) -> None:
    assert isinstance(camera.recipe, Recipe)
    assert camera.recipe.name == "h264"
    assert camera.live
