"""Cameras in worker processes: nothing chosen is lost on the way, a dead worker comes back, a release reaches all."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.clock import SystemClock
from common.ids import layer_hash
from common.manifest import SHARED, Layer, Manifest, Scenario
from common.messages import Event, Sample
from edge.lookout import OnEvent
from edge.perception import Model, load_model
from edge.roster import Roster
from edge.settings import CameraSettings, EdgeSettings, EventSettings, SelectionSettings
from edge.workers import Workers

PICTURES = 40


def wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    folder = tmp_path / "layers"
    folder.mkdir()
    return folder


@pytest.fixture
def make_model(
    layers: Path, tiny_backbone: Callable[..., bytes], tiny_head: Callable[..., bytes]
) -> Callable[[int], Model]:
    def make(sequence: int) -> Model:
        backbone = tiny_backbone()
        head = tiny_head(layer_hash(backbone), seed=sequence)
        for data in (backbone, head):
            (layers / layer_hash(data)).write_bytes(data)
        scenario = Scenario("belt", ("normal", "tear"), "normal", {SHARED: Layer(layer_hash(head), len(head))})
        manifest = Manifest(
            sequence=sequence,
            created_at_ns=0,
            expires_at_ns=2**62,
            minimum_agent="0.1.0",
            backbone=Layer(layer_hash(backbone), len(backbone)),
            scenarios=(scenario,),
        )
        return load_model(f"r{sequence}-test", manifest, lambda name: layers / name, "north")

    return make


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    dice = np.random.default_rng(0)
    for number in range(PICTURES):
        cv2.imwrite(str(folder / f"{number:03d}.png"), dice.integers(0, 255, (12, 16, 3)).astype(np.uint8))
    return folder


def settings_for(pictures: Path, cameras: int = 2, **fields: object) -> EdgeSettings:
    return EdgeSettings(
        gateway_id="gw-1",
        site_id="north",
        release_root=Path("root.json"),
        data_dir=pictures.parent / "data",
        cameras=tuple(
            CameraSettings(id=f"camera-{n}", source=str(pictures), picture_fps=5, **fields) for n in range(cameras)
        ),
        selection=SelectionSettings(samples_per_hour=3600 * 5, window_s=2, similarity_max=1.0),
    )


def roster_of(settings: EdgeSettings) -> Roster:
    return Roster(settings.cameras, settings.selection.samples_per_hour)


@pytest.fixture
def run(layers: Path) -> Iterator[Callable[..., Workers]]:
    started: list[Workers] = []

    def start(settings: EdgeSettings, accept: Callable[[Sample], None], on_event: OnEvent | None = None) -> Workers:
        workers = Workers(settings, roster_of(settings), SystemClock(), accept, layers, 2, on_event)
        started.append(workers)
        workers.start()
        return workers

    yield start
    for workers in started:
        workers.stop()
        assert not workers.pids


Run = Callable[..., Workers]


@pytest.mark.slow
def test_samples_of_all_workers_arrive_and_each_look_is_counted(
    run: Run, make_model: Callable[[int], Model], pictures: Path
) -> None:
    samples: list[Sample] = []
    slow = threading.Lock()

    def accept(sample: Sample) -> None:
        with slow:  # a slow disk: the workers wait
            time.sleep(0.005)
            samples.append(sample)

    workers = run(settings_for(pictures, paced=False), accept)
    assert workers.model is None
    workers.hand_over(make_model(1))
    wait_until(lambda: workers.ended)
    model = workers.model
    assert model is not None
    assert model.release_id == "r1-test"
    assert workers.looks_by_release == {"r1-test": 2 * PICTURES}
    assert {state.camera_id for state in workers.states} == {"camera-0", "camera-1"}
    by_camera = {name: sum(item.camera_id == name for item in samples) for name in ("camera-0", "camera-1")}
    assert min(by_camera.values()) > 10
    assert len({item.sample_id for item in samples}) == len(samples)
    for name in by_camera:
        seen = cv2.imdecode(np.frombuffer(workers.last_look(name) or b"", np.uint8), cv2.IMREAD_COLOR)
        assert seen.shape == (240, 320, 3), "what was looked at last crosses the pipe on request"
    assert workers.last_look("nobody") is None


@pytest.mark.slow
def test_a_killed_worker_is_reported_and_comes_back_with_the_release(
    run: Run, make_model: Callable[[int], Model], pictures: Path
) -> None:
    events: list[Event] = []
    easily = EventSettings(enter_level=1e-6, clear_level=1e-9)  # whatever the head says of noise is an event
    settings = settings_for(pictures, loop=True).model_copy(update={"events": easily})
    workers = run(settings, lambda sample: None, events.append)
    workers.hand_over(make_model(1))
    wait_until(lambda: all(state.state == "live" for state in workers.states) and workers.model is not None)
    wait_until(lambda: {event.camera_id for event in events} == {"camera-0", "camera-1"})
    assert {event.phase for event in events} == {"enter"}
    victim, other = workers.pids
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: workers.states[0].state == "failed")
    assert "worker process has died" in workers.states[0].detail
    assert workers.states[1].state == "live", "the other cameras go on"
    assert other in workers.pids
    closed = next(event for event in events if event.phase == "clear")
    assert (closed.camera_id, closed.cause) == ("camera-0", "its worker process died")
    looks = workers.looks_by_release["r1-test"]
    wait_until(lambda: workers.states[0].state == "live")
    wait_until(lambda: workers.looks_by_release["r1-test"] > looks)
    assert workers.alive

    second = make_model(2)
    workers.hand_over(second)
    wait_until(lambda: workers.model is second)
    assert {state.state for state in workers.states} == {"live"}


@pytest.mark.slow
def test_cameras_come_and_go_and_a_worker_that_dies_meanwhile_begins_with_those_of_now(
    run: Run, make_model: Callable[[int], Model], pictures: Path
) -> None:
    settings = settings_for(pictures, cameras=4, loop=True)
    first, second, third, fourth = settings.cameras
    workers = run(settings.model_copy(update={"cameras": (first, second)}), lambda sample: None)
    workers.hand_over(make_model(1))
    wait_until(lambda: all(state.state == "live" for state in workers.states) and workers.model is not None)
    victim, other = workers.pids
    frames = workers.states[1].frames
    os.kill(victim, signal.SIGKILL)
    workers.watch(Roster((second, third, fourth), 3600.0))
    assert [state.camera_id for state in workers.states] == [second.id, third.id, fourth.id]
    wait_until(lambda: all(state.state == "live" for state in workers.states))
    kept = next(state for state in workers.states if state.camera_id == second.id)
    assert kept.frames > frames, "it did not begin anew"
    assert kept.reconnects == 0
    assert other in workers.pids
    assert workers.last_look(third.id)
    workers.watch(Roster((fourth,), 3600.0))
    wait_until(lambda: workers.looks_by_release["r1-test"] > 0 and len(workers.states) == 1)
    assert workers.alive
