"""The look loop with two releases: what is beside never reaches what runs, what is on trial never costs a frame."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from common.backbone import Opened, open_session
from common.clock import SystemClock
from common.ids import layer_hash
from common.manifest import SHARED, Layer, Manifest, Scenario
from edge.frames import Frame
from edge.lookout import Lookout
from edge.perception import Model, load_model
from edge.roster import Roster
from edge.settings import CameraSettings, EdgeSettings, EventSettings, GearSettings, InstallSettings
from edge.workers import Workers

FPS = 40.0


def wait_until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.005)


class Session:
    """A backbone's session that does what the test wants, on any thread but the one that loads it."""

    def __init__(self, session: Any) -> None:
        self._session, self._loader = session, threading.current_thread()
        self.does: Callable[[], None] = lambda: None
        self.spoil = False

    def run(self, *arguments: Any) -> Any:
        if threading.current_thread() is not self._loader:
            self.does()
        answer = self._session.run(*arguments)
        return [np.full_like(item, np.nan) for item in answer] if self.spoil else answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    (tmp_path / "layers").mkdir()
    return tmp_path / "layers"


@pytest.fixture
def make_model(
    layers: Path, tiny_backbone: Callable[..., bytes], tiny_head: Callable[..., bytes]
) -> Callable[[int], tuple[Model, Session]]:
    def make(sequence: int) -> tuple[Model, Session]:
        backbone = tiny_backbone(seed=sequence)
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
        made: list[Session] = []

        def opener(path: Path, kind: str) -> Opened:
            session, metadata, name = open_session(path, kind)
            made.append(Session(session))
            return made[-1], metadata, name

        return load_model(f"r{sequence}-test", manifest, lambda n: layers / n, "north", opener=opener), made[0]

    return make


@pytest.fixture
def settings(tmp_path: Path) -> EdgeSettings:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(40):
        cv2.imwrite(str(pictures / f"{number:03d}.png"), np.full((12, 16, 3), 6 * number, np.uint8))
    gears = GearSettings(gate=0, motion_min=0)
    cameras = tuple(
        CameraSettings(id=f"belt-{n}", source=str(pictures), loop=True, looks_per_s=FPS, picture_fps=FPS, gears=gears)
        for n in range(2)
    )
    return EdgeSettings(
        gateway_id="gw-1",
        site_id="north",
        data_dir=tmp_path / "data",
        release_root=Path("root.json"),
        cameras=cameras,
        events=EventSettings(enabled=False),
        install=InstallSettings(shadow_share=1.0),
    )


class Watched:
    """A look loop, and every frame that was looked at."""

    def __init__(self, settings: EdgeSettings) -> None:
        self.frames: list[tuple[str, int]] = []
        self.lookout = Lookout(settings, settings.cameras, SystemClock(), lambda _: None, self._look)
        self.lookout.start()

    def _look(self, frame: Frame, _: object) -> None:
        self.frames.append((frame.camera_id, frame.captured_at_ns))

    def goes_on(self, frames: int = 10) -> None:
        before = len(self.frames)
        wait_until(lambda: len(self.frames) >= before + frames)

    def counted(self) -> bool:
        """Every frame that was decided on was looked at, is waiting, or was replaced by a newer one."""
        looks = sum(state.looks for state in self.lookout.states)
        dropped = sum(state.dropped for state in self.lookout.states)
        return 0 <= looks - dropped - len(self.frames) <= len(self.lookout.cameras) + 1


@pytest.fixture
def watched(settings: EdgeSettings) -> Iterator[Watched]:
    made = Watched(settings)
    yield made
    made.lookout.stop(3)


Make = Callable[[int], tuple[Model, Session]]


def test_both_see_the_same_frames_and_their_disagreement_is_counted(watched: Watched, make_model: Make) -> None:
    (old, _), (new, _) = make_model(1), make_model(2)
    watched.lookout.hand_over(old, beside=new)
    wait_until(lambda: watched.lookout.observe().pair.compared >= 20)
    seen = watched.lookout.observe()
    assert seen.running == "r1-test"
    assert seen.of("r2-test").frames >= 20
    assert seen.pair.disagreed <= seen.pair.compared
    assert set(watched.lookout.looks_by_release) == {"r1-test"}, "only what runs is said to have looked"


def test_what_fails_beside_is_counted_and_harms_nothing(watched: Watched, make_model: Make) -> None:
    (old, _), (new, session) = make_model(1), make_model(2)
    session.does = lambda: 1 / 0
    watched.lookout.hand_over(old, beside=new)
    wait_until(lambda: watched.lookout.observe().of("r2-test").errors > 0)
    watched.goes_on()
    assert watched.lookout.observe().of("r1-test").errors == 0


def test_what_hangs_beside_is_reported_and_harms_nothing(watched: Watched, make_model: Make) -> None:
    (old, _), (new, session) = make_model(1), make_model(2)
    forever = threading.Event()
    session.does = forever.wait
    watched.lookout.hand_over(old, beside=new)
    wait_until(lambda: watched.lookout.observe().beside_stuck_s > 0.3)
    watched.goes_on()
    watched.lookout.hand_over(old)
    assert watched.lookout.observe().beside_stuck_s == 0
    forever.set()


@pytest.mark.parametrize("fault", ["raises", "answers with none"])
def test_a_release_on_trial_that_fails_is_left_within_the_frame(watched: Watched, make_model: Make, fault: str) -> None:
    (old, _), (new, session) = make_model(1), make_model(2)
    watched.lookout.hand_over(new, beside=old, on_trial=True)
    watched.goes_on()
    if fault == "raises":
        session.does = lambda: 1 / 0
    else:
        session.spoil = True
    wait_until(lambda: watched.lookout.observe().running == "r1-test")
    watched.goes_on()
    assert watched.lookout.observe().failed
    assert watched.lookout.observe().of("r2-test").errors == 1
    assert watched.counted()
    assert len(set(watched.frames)) == len(watched.frames)


def test_a_frame_on_which_a_release_hangs_is_looked_at_by_the_old_one(watched: Watched, make_model: Make) -> None:
    (old, _), (new, session) = make_model(1), make_model(2)
    watched.lookout.hand_over(new, beside=old, on_trial=True)
    watched.goes_on()
    forever = threading.Event()
    session.does = forever.wait
    wait_until(lambda: watched.lookout.observe().stuck_s > 0.2)
    watched.lookout.hand_over(old, rescue=True)
    watched.goes_on()
    assert watched.lookout.alive
    assert watched.counted()
    before = len(watched.frames)
    forever.set()  # the old thread comes back from its look, and must not look on
    watched.goes_on()
    assert len(set(watched.frames[before:])) == len(watched.frames) - before
    assert "r2-test" not in {watched.lookout.observe().running}


def test_a_committed_release_that_fails_now_and_then_loses_only_those_frames(
    watched: Watched, make_model: Make
) -> None:
    model, session = make_model(1)
    turns = iter(range(10**9))
    session.does = lambda: 1 / (next(turns) % 5)
    watched.lookout.hand_over(model)
    watched.goes_on(30)
    assert watched.lookout.observe().of("r1-test").errors > 3
    assert watched.lookout.alive


def test_looks_that_a_slow_release_misses_are_counted_for_it_and_for_no_other(
    watched: Watched, make_model: Make
) -> None:
    (old, _), (new, session) = make_model(1), make_model(2)
    session.does = lambda: time.sleep(5 / FPS)
    watched.lookout.hand_over(new)
    watched.goes_on(20)
    watched.lookout.hand_over(old)
    wait_until(lambda: watched.lookout.observe().of("r1-test").frames > 20)
    slow, quick = (watched.lookout.observe().of(name) for name in ("r2-test", "r1-test"))
    assert slow.unseen > slow.frames, "five of two cameras are due in the time of one"
    assert quick.unseen < quick.frames


def test_nothing_looks_when_nothing_may(watched: Watched, make_model: Make) -> None:
    watched.lookout.hand_over(make_model(1)[0])
    watched.goes_on()
    watched.lookout.hand_over(None)
    wait_until(lambda: watched.lookout.model is None)
    before = len(watched.frames)
    time.sleep(0.1)
    assert len(watched.frames) == before


@pytest.mark.slow
def test_workers_compare_on_all_their_cameras_and_swap(settings: EdgeSettings, make_model: Make, layers: Path) -> None:
    (old, _), (new, _) = make_model(1), make_model(2)
    roster = Roster(settings.cameras, settings.selection.samples_per_hour)
    workers = Workers(settings, roster, SystemClock(), lambda _: None, layers, 2)
    workers.start()
    try:
        workers.hand_over(old, beside=new)
        wait_until(lambda: workers.observe().pair.compared >= 20 and workers.observe().running == "r1-test", 60)
        assert workers.observe().of("r2-test").frames >= 20
        workers.hand_over(new, beside=old, on_trial=True)
        assert workers.observe().pair.compared == 0, "what was compared before the order does not count"
        wait_until(lambda: workers.observe().running == "r2-test")
        wait_until(lambda: workers.observe().pair.compared >= 10)
        assert workers.observe().deaths == 0
        workers.hand_over(new)
        wait_until(lambda: workers.observe().of("r2-test").frames >= 40)
    finally:
        workers.stop()
